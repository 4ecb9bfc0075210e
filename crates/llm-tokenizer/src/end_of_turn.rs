//! The end-of-turn token as `eos_token`, for the files of a model that was trained on conversations.

use crate::{ChatMessage, Tokenizer};

impl Tokenizer {
    /// The tokenizer with the end-of-turn token of its chat template as `eos_token`, which transformers and llama.cpp expect of a
    /// model that was trained on conversations.
    ///
    /// Nothing changes without a chat template or end-of-turn token, or if the template itself writes `eos_token` somewhere else (Phi 3
    /// ends a conversation with it), because other text would be rendered then.
    #[must_use]
    pub fn with_end_of_turn_as_eos(self) -> Self {
        let Ok(end_of_turn) = self.chat_format().map(|format| format.end_of_turn) else { return self };
        let Some(text) = self.token(end_of_turn).filter(|_| self.eos_id() != Some(end_of_turn)) else { return self };
        let mut changed = self.clone();
        changed.set_config("eos_token", &text);
        let [system, user, assistant] = ["system", "user", "assistant"].map(|role| ChatMessage::new(role, "a"));
        let conversations = [
            vec![user.clone()],
            vec![user.clone(), assistant.clone()],
            vec![user.clone(), assistant.clone(), user.clone(), assistant.clone()],
            vec![system, user, assistant],
        ];
        let renders = |tokenizer: &Self| -> Vec<Option<String>> {
            let both = conversations.iter().flat_map(|messages| [(messages, false), (messages, true)]);
            both.map(|(messages, prompt)| tokenizer.render_chat(messages, prompt).ok()).collect()
        };
        if renders(&self) == renders(&changed) { changed } else { self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn eos_of(template: &str) -> Option<u32> {
        let mut tokenizer = crate::chat::tests::with_template(template);
        tokenizer.set_config("eos_token", "<|endoftext|>");
        let changed = tokenizer.clone().with_end_of_turn_as_eos();
        let messages = [ChatMessage::new("user", "the cat"), ChatMessage::new("assistant", "the dog")];
        assert_eq!(
            changed.encode_chat(&messages, false).unwrap(),
            tokenizer.encode_chat(&messages, false).unwrap(),
            "the text does not change"
        );
        changed.eos_id()
    }

    #[test]
    fn the_end_of_turn_becomes_eos_unless_the_template_writes_eos_elsewhere() {
        let turns = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}";
        assert_eq!(eos_of(turns), Some(5));
        assert_eq!(
            eos_of(&format!("{turns}{{% if not add_generation_prompt %}}{{{{ eos_token }}}}{{% endif %}}")),
            Some(0)
        );
        assert_eq!(eos_of("{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"), Some(0));
    }
}

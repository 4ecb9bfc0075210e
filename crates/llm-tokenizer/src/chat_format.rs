//! Finds the special tokens of a chat template, in particular the one that ends a turn.
//!
//! The loss mask, the token at which a reward model is read, the stop ids of generation and `eos_token_id` in the files all
//! use the end-of-turn token from here, so that training and inference agree for every template.

use std::collections::BTreeSet;

use crate::special_tokens::ChatFormat;
use crate::{ChatMessage, Error, Result, Tokenizer};

/// Contents of the probe messages: words that no template contains or trims.
const QUESTION: &str = "qprobe";
const ANSWER: &str = "aprobe";
const FOLLOW_UP: &str = "fprobe";

impl Tokenizer {
    /// The special tokens of the chat template, computed once.
    ///
    /// An error if there is no template, if it raises an error for a question with an answer, or if no special token ends the
    /// answer, so that the end of a turn cannot be detected.
    pub fn chat_format(&self) -> Result<&ChatFormat> {
        match self.chat_format.get() {
            Some(format) => Ok(format),
            None => {
                let format = self.read_chat_format()?;
                Ok(self.chat_format.get_or_init(|| format))
            }
        }
    }

    fn read_chat_format(&self) -> Result<ChatFormat> {
        let [question, answer, follow_up] =
            [("user", QUESTION), ("assistant", ANSWER), ("user", FOLLOW_UP)].map(|(r, c)| ChatMessage::new(r, c));
        let single = self.render_chat(&[question.clone(), answer.clone()], false)?;
        let mut ends = self.specials_after_answer(&single)?;
        // Some templates end the conversation with one more token, which is not the end of the turn.
        let dialogue = self.render_chat(&[question.clone(), answer, follow_up], false).ok();
        if let Some(dialogue) = &dialogue {
            let between = self.specials_after_answer(dialogue)?;
            let shared = ends.iter().zip(&between).take_while(|(a, b)| a == b).count();
            // Others end the last message with another token than earlier ones; a model generates that of the last message.
            ends.truncate(shared.max(1));
        }
        let end_of_turn = ends.pop().ok_or(Error::NoEndOfTurn)?;
        let system = ChatMessage::new("system", "sprobe");
        let texts = [
            Some(single),
            dialogue,
            self.render_chat(std::slice::from_ref(&question), true).ok(),
            self.render_chat(&[system, question], false).ok(),
        ];
        let spans = texts.iter().flatten().flat_map(|text| self.special_spans(text));
        let special: BTreeSet<u32> = spans.map(|(id, _)| id).collect();
        Ok(ChatFormat {
            end_of_turn,
            pad: self.pad_id().unwrap_or(end_of_turn),
            special: special.into_iter().collect(),
        })
    }

    /// The special tokens after the content of the assistant message in a rendered probe.
    fn specials_after_answer(&self, rendered: &str) -> Result<Vec<u32>> {
        let begin = rendered.rfind(ANSWER).ok_or(Error::NoEndOfTurn)? + ANSWER.len();
        Ok(self.special_spans(rendered).into_iter().filter(|(_, span)| span.start >= begin).map(|(id, _)| id).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::tests::tokenizer;
    use crate::{TrainOn, TrainingExample};

    fn with_template(source: &str) -> Tokenizer {
        let mut tokenizer = crate::chat::tests::with_template(source);
        tokenizer.set_config("eos_token", "<|endoftext|>");
        tokenizer
    }

    /// Templates in the style of known families, with the tokens of this vocabulary: (name, template, end-of-turn id).
    fn families() -> Vec<(&'static str, &'static str, u32)> {
        vec![
            (
                "ChatML",
                "{% for m in messages %}<|user|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}\
                 {% if add_generation_prompt %}<|user|>assistant\n{% endif %}",
                5,
            ),
            (
                "Gemma",
                "<|endoftext|>{% for m in messages %}<|user|>{{ 'model' if m.role == 'assistant' else m.role }}\n\
                 {{ m.content | trim }}<|system|>\n{% endfor %}{% if add_generation_prompt %}<|user|>model\n{% endif %}",
                2,
            ),
            (
                "Llama 3",
                "{% for m in messages %}{% set c = '<|user|>' + m.role + '<|assistant|>\n\n' + m.content | trim + '<|end|>' %}\
                 {% if loop.first %}{% set c = bos_token + c %}{% endif %}{{ c }}{% endfor %}\
                 {% if add_generation_prompt %}<|user|>assistant<|assistant|>\n\n{% endif %}",
                5,
            ),
            (
                "Zephyr",
                "{% for m in messages %}{{ '[' + m.role + ']\n' + m.content + eos_token }}\n{% endfor %}\
                 {% if add_generation_prompt %}[assistant]\n{% endif %}",
                0,
            ),
            (
                "Llama 2",
                "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content + ' [/INST]' }}\
                 {% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}",
                0,
            ),
            (
                "Phi 3",
                "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}\
                 {% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}",
                5,
            ),
            ("two ends", "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|><|system|>{% endfor %}", 2),
        ]
    }

    #[test]
    fn the_end_of_turn_comes_from_the_template_and_not_from_eos_token() {
        for (name, template, end) in families() {
            let tokenizer = with_template(template);
            let format = tokenizer.chat_format().unwrap();
            assert_eq!(format.end_of_turn, end, "{name}");
            assert!(format.special.contains(&end) && format.special.is_sorted(), "{name}");
        }
        let own = tokenizer();
        let own = own.chat_format().unwrap();
        assert_eq!(*own, ChatFormat { end_of_turn: 5, pad: 1, special: vec![2, 3, 4, 5] });
    }

    #[test]
    fn encode_answered_ends_with_the_end_of_turn() {
        let question = ChatMessage::new("user", "the <|end|> cat");
        let answer = ChatMessage::new("assistant", "the dog");
        for (name, template, end) in families() {
            let tokenizer = with_template(template);
            let ids = tokenizer.encode_answered(&[question.clone(), answer.clone()]).unwrap();
            assert_eq!(ids.last(), Some(&end), "{name}");
            let whole = tokenizer.encode_chat(&[question.clone(), answer.clone()], false).unwrap();
            assert_eq!(whole[..ids.len()], ids, "{name}");
            assert!(tokenizer.decode(&ids).unwrap().trim_end().ends_with("the dog"), "{name}");
            // The loss mask ends there too, and a policy that continues the prompt gets the same ids.
            let examples = tokenizer.encode_for_training(&[question.clone(), answer.clone()], TrainOn::All).unwrap();
            let [TrainingExample { ids: same, loss_mask: mask, .. }] = &examples[..] else { panic!("{examples:?}") };
            assert_eq!(mask.iter().rposition(|&in_loss| in_loss), Some(ids.len() - 1), "{name}");
            let prompt = tokenizer.encode_chat(std::slice::from_ref(&question), true).unwrap();
            let reply: Vec<u32> = same.iter().zip(mask).filter(|(_, in_loss)| **in_loss).map(|(id, _)| *id).collect();
            assert_eq!([prompt, reply].concat().last(), ids.last(), "{name}");
        }
    }

    #[test]
    fn the_loss_mask_excludes_the_end_of_the_conversation() {
        let tokenizer = with_template(families()[5].1);
        let messages = ["the cat", "the dog", "the mat", "the log"];
        let role = |i: usize| if i.is_multiple_of(2) { "user" } else { "assistant" };
        let messages: Vec<_> = messages.iter().enumerate().map(|(i, text)| ChatMessage::new(role(i), *text)).collect();
        let examples = tokenizer.encode_for_training(&messages, TrainOn::All).unwrap();
        assert_eq!(examples.len(), 1);
        let ends = examples[0]
            .ids
            .iter()
            .zip(&examples[0].loss_mask)
            .filter(|(id, in_loss)| **in_loss && **id < 6)
            .map(|(id, _)| *id);
        assert_eq!(ends.collect::<Vec<_>>(), [5, 5], "the end of each assistant message, without the end of text");
    }

    #[test]
    fn a_template_without_end_of_turn_token_is_an_error() {
        let plain = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}";
        let next = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}";
        for template in [plain, next] {
            let error = with_template(template).chat_format().cloned().unwrap_err();
            assert!(matches!(error, Error::NoEndOfTurn), "{error}");
            assert!(error.to_string().contains("eos_token"), "{error}");
        }
    }

    #[test]
    fn without_a_pad_token_the_end_of_turn_is_the_padding() {
        let mut tokenizer = tokenizer();
        tokenizer.set_config("pad_token", "");
        assert_eq!(tokenizer.chat_format().unwrap().pad, 5);
    }
}

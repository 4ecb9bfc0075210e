//! The conversation of a chat, and the part of it that fits the context.

use std::path::Path;

use llm_cli::Failure;
use llm_engine::TextModel;
use llm_tokenizer::{ChatMessage, Conversation};

use crate::failure::{input, io_failure};
use crate::prompt::Plan;

/// A conversation. Messages before the first question (system message, shots) always stay in the context.
#[derive(Debug, Clone)]
pub(super) struct History {
    fixed: Vec<ChatMessage>,
    turns: Vec<ChatMessage>,
    /// The number of messages of `turns`, from the first one, that the model does not get any more.
    dropped: usize,
}

/// A prompt, and how the context changed for it.
#[derive(Debug)]
pub(super) struct Fitted {
    /// The token ids.
    pub(super) ids: Vec<u32>,
    /// Whether more messages were left out than for the prompt before.
    pub(super) dropped: bool,
}

impl History {
    /// A conversation without questions.
    pub(super) fn new(fixed: Vec<ChatMessage>) -> Self {
        Self { fixed, turns: Vec::new(), dropped: 0 }
    }

    /// Removes all questions and answers.
    pub(super) fn clear(&mut self) {
        self.turns.clear();
        self.dropped = 0;
    }

    /// Appends a message.
    pub(super) fn push(&mut self, message: ChatMessage) {
        self.turns.push(message);
    }

    /// Removes the last question and what follows it. Returns the question.
    pub(super) fn undo(&mut self) -> Option<ChatMessage> {
        let last = self.turns.iter().rposition(|message| message.role() == "user")?;
        let question = self.turns.drain(last..).next();
        self.dropped = self.dropped.min(self.turns.len());
        question
    }

    /// The text of the system message.
    pub(super) fn system(&self) -> Option<String> {
        self.fixed.iter().find(|message| message.role() == "system").map(|message| message.text().into_owned())
    }

    /// Sets the system message.
    pub(super) fn set_system(&mut self, text: &str) {
        self.fixed.retain(|message| message.role() != "system");
        self.fixed.insert(0, ChatMessage::system(text));
    }

    /// Writes the conversation as one line of JSON, which `/load` and the trainers read. `path` must not exist.
    pub(super) fn save(&self, path: &Path) -> Result<(), Failure> {
        let conversation = Conversation::from([self.fixed.clone(), self.turns.clone()].concat());
        let line = serde_json::to_string(&conversation).map_err(|e| Failure::internal(e.to_string()))?;
        let mut file = std::fs::File::create_new(path).map_err(|e| match e.kind() {
            std::io::ErrorKind::AlreadyExists => {
                Failure::input(format!("{}: already exists; choose another name", path.display()))
            }
            _ => io_failure(path.display(), &e),
        })?;
        std::io::Write::write_all(&mut file, format!("{line}\n").as_bytes()).map_err(|e| io_failure(path.display(), &e))
    }

    /// Reads a conversation that [`Self::save`] wrote: a JSON object with `messages`, on one line or on several.
    pub(super) fn load(path: &Path) -> Result<Self, Failure> {
        let text = std::fs::read_to_string(path).map_err(|e| io_failure(path.display(), &e))?;
        let conversation: Conversation = serde_json::from_str(text.trim()).map_err(|e| {
            Failure::input(format!("{}: not one conversation ({e}); use a file of /save", path.display()))
        })?;
        let mut fixed = conversation.messages;
        let first = fixed.iter().position(|message| message.role() == "user").unwrap_or(fixed.len());
        let turns = fixed.split_off(first);
        if let Some(last) = turns.last().filter(|message| message.role() != "assistant") {
            let reason = format!("its last message has the role {:?}; it must be \"assistant\"", last.role());
            return Err(Failure::input(format!("{}: {reason}", path.display())));
        }
        Ok(Self { fixed, turns, dropped: 0 })
    }

    /// The number of questions.
    pub(super) fn questions(&self) -> usize {
        self.turns.iter().filter(|message| message.role() == "user").count()
    }

    /// The token ids of the conversation. If they leave no room for an answer, the oldest questions with their answers are left
    /// out; the last question always stays.
    pub(super) fn fit(&mut self, model: &TextModel, plan: &Plan, max_new_tokens: usize) -> Result<Fitted, Failure> {
        let context_length = model.model.config().max_position_embeddings;
        let room = max_new_tokens.min(context_length / 4).max(1);
        let before = self.dropped;
        loop {
            let messages = [&self.fixed, &self.turns[self.dropped..]].concat();
            let ids = model.chat_ids(&plan.conversation(messages)).map_err(input)?;
            let next = (self.dropped + 1..self.turns.len()).find(|&i| self.turns[i].role() == "user");
            match next {
                Some(next) if ids.len() + room > context_length => self.dropped = next,
                _ => return Ok(Fitted { ids, dropped: self.dropped > before }),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history() -> History {
        let mut history = History::new(vec![ChatMessage::system("be brief")]);
        for (question, answer) in [("a", "1"), ("b", "2")] {
            history.push(ChatMessage::user(question));
            history.push(ChatMessage::assistant(answer));
        }
        history
    }

    #[test]
    fn undo_removes_the_last_question_with_its_answer() {
        let mut history = history();
        assert_eq!(history.undo().unwrap().text(), "b");
        assert_eq!(history.undo().unwrap().text(), "a");
        assert!(history.undo().is_none() && history.questions() == 0);
        assert_eq!(history.system().as_deref(), Some("be brief"));
    }

    #[test]
    fn a_saved_conversation_is_loaded_and_nothing_is_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("talk.jsonl");
        history().save(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 1);
        let loaded = History::load(&path).unwrap();
        assert_eq!((loaded.fixed, loaded.turns), (history().fixed, history().turns));
        assert!(format!("{:?}", history().save(&path).unwrap_err()).contains("already exists"));
        std::fs::write(&path, r#"{"messages": [{"role": "user", "content": "x"}]}"#).unwrap();
        assert!(format!("{:?}", History::load(&path).unwrap_err()).contains("it must be \\\"assistant\\\""));
        std::fs::write(&path, text.repeat(2)).unwrap();
        assert!(format!("{:?}", History::load(&path).unwrap_err()).contains("not one conversation"));
    }

    #[test]
    fn the_system_message_is_replaced() {
        let mut history = history();
        history.set_system("rhyme");
        assert_eq!(history.system().as_deref(), Some("rhyme"));
        assert_eq!(history.fixed.len(), 1);
    }
}

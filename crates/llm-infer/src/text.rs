//! A model with its tokenizer: text in, text out.

use std::path::Path;

use llm_model::Model;
use llm_model::gguf::is_gguf;
use llm_tokenizer::{ChatMessage, Tokenizer};

use crate::{Error, GenerateOptions, Result, Sampling, generate, generate_from};

/// A model with its tokenizer.
#[derive(Debug)]
pub struct TextModel {
    /// The model.
    pub model: Model,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
}

/// How long a text to write, and how.
#[derive(Debug, Clone, Default)]
pub struct TextOptions {
    /// At most so many tokens.
    pub max_new_tokens: usize,
    /// The text ends before any of these; they are not part of it.
    pub stop: Vec<String>,
    /// How each token is chosen.
    pub sampling: Sampling,
}

/// A text that a model wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Completion {
    /// The text, without stop string and special tokens.
    pub text: String,
    /// Tokens generated.
    pub tokens: usize,
}

impl TextModel {
    /// The model of a Hugging Face folder, in memory in f32.
    pub fn load(dir: &Path) -> Result<Self> {
        Self::with_tokenizer(Model::load(dir)?, dir)
    }

    /// The model of a Hugging Face folder or a `.gguf` file, its matrices read where they lie in the file.
    pub fn open(path: &Path) -> Result<Self> {
        if is_gguf(path) {
            return Self::from_gguf(path);
        }
        Self::with_tokenizer(Model::open(path)?, path)
    }

    /// A model with the tokenizer of a folder: its own, or an adapter's, which may have the chat template.
    pub fn with_tokenizer(model: Model, dir: &Path) -> Result<Self> {
        Self::fitting(model, Tokenizer::from_dir(dir)?, &dir.join("tokenizer.json"))
    }

    /// A model and a tokenizer that has no more tokens than the model; `origin` is named in the error.
    pub(crate) fn fitting(model: Model, tokenizer: Tokenizer, origin: &Path) -> Result<Self> {
        let (ids, rows) = (tokenizer.vocab_size(), model.config().vocab_size);
        if ids > rows {
            let origin = origin.display();
            return Err(Error::Input(format!(
                "{origin} has {ids} tokens, the model's \"vocab_size\" is {rows}; use the model's own tokenizer"
            )));
        }
        Ok(Self { model, tokenizer })
    }

    /// The ids of a conversation up to the assistant's turn, by the chat template.
    pub fn chat_ids(&self, messages: &[ChatMessage]) -> Result<Vec<u32>> {
        Ok(self.tokenizer.encode_chat(messages, true)?)
    }

    /// The ids of a document: the token that begins it, then the text.
    pub fn document_ids(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids: Vec<u32> = self.tokenizer.bos_id().into_iter().collect();
        ids.extend(self.tokenizer.encode(text)?);
        Ok(ids)
    }

    /// The ids of a text to be continued, as transformers and llama.cpp begin it: with the begin token where the tokenizer says so.
    pub fn text_ids(&self, text: &str) -> Result<Vec<u32>> {
        if self.tokenizer.adds_bos() { self.document_ids(text) } else { Ok(self.tokenizer.encode(text)?) }
    }

    /// The ids that end a reply: the model's end token, the one that ends a turn in the chat template if there is such a
    /// token, and the one that ends a document.
    pub fn stop_ids(&self) -> Vec<u32> {
        let tokenizer = &self.tokenizer;
        let end_of_turn = tokenizer.chat_format().ok().map(|format| format.end_of_turn);
        let ends = [self.model.config().eos_token_id, end_of_turn, tokenizer.document_end_id()];
        let mut ids: Vec<u32> = ends.into_iter().flatten().collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// Continues `prompt`; `on_text` gets each piece as soon as it cannot become part of a stop string any more.
    pub fn complete(&self, prompt: &[u32], options: &TextOptions, mut on_text: impl FnMut(&str)) -> Result<Completion> {
        let stop_ids = self.stop_ids();
        let generation =
            GenerateOptions { max_new_tokens: options.max_new_tokens, stop_ids, sampling: options.sampling };
        let mut decoder = self.tokenizer.stream();
        let (mut stops, mut failure) = (StopStrings::new(&options.stop), None);
        let replies = generate(&self.model, &[prompt.to_vec()], &generation, |_, id| match decoder.push(id) {
            Ok(piece) => {
                on_text(stops.push(&piece.unwrap_or_default()));
                !stops.found
            }
            Err(error) => {
                failure = Some(error);
                false
            }
        })?;
        if let Some(error) = failure {
            return Err(error.into());
        }
        if !stops.found
            && let Some(rest) = decoder.finish()?
        {
            on_text(stops.push(&rest));
        }
        on_text(stops.finish());
        Ok(Completion { text: stops.text, tokens: replies.first().map_or(0, Vec::len) })
    }

    /// The replies to many prompts, in batches of `batch_size`, which changes no reply; without stop strings.
    pub fn complete_all(
        &self,
        prompts: &[Vec<u32>],
        options: &GenerateOptions,
        batch_size: usize,
        mut on_done: impl FnMut(usize),
    ) -> Result<Vec<Completion>> {
        let mut completions = Vec::with_capacity(prompts.len());
        for chunk in prompts.chunks(batch_size.max(1)) {
            for ids in generate_from(&self.model, chunk, completions.len(), options, |_, _| true)? {
                completions.push(Completion { text: self.tokenizer.decode(&ids)?, tokens: ids.len() });
            }
            on_done(completions.len());
        }
        Ok(completions)
    }
}

/// Holds back text that may turn out to begin a stop string.
struct StopStrings<'a> {
    stops: &'a [String],
    text: String,
    shown: usize,
    found: bool,
}

impl<'a> StopStrings<'a> {
    fn new(stops: &'a [String]) -> Self {
        Self { stops, text: String::new(), shown: 0, found: false }
    }

    /// Takes a further piece and returns what may be shown now.
    fn push(&mut self, piece: &str) -> &str {
        self.text.push_str(piece);
        let first = self.stops.iter().filter(|s| !s.is_empty()).filter_map(|stop| self.text.find(stop.as_str())).min();
        if let Some(at) = first {
            self.text.truncate(at);
            self.found = true;
        }
        let safe = if self.found { self.text.len() } else { self.text.len() - self.held_back() };
        let from = self.shown.min(safe);
        self.shown = safe.max(from);
        &self.text[from..self.shown]
    }

    fn finish(&mut self) -> &str {
        let from = self.shown;
        self.shown = self.text.len();
        &self.text[from..]
    }

    /// Bytes at the end of the text with which some stop string begins.
    fn held_back(&self) -> usize {
        let longest = |stop: &String| {
            let ends = stop.char_indices().map(|(at, _)| at).filter(|&at| at > 0);
            ends.filter(|&at| self.text.ends_with(&stop[..at])).max().unwrap_or(0)
        };
        self.stops.iter().map(longest).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let stops: Vec<String> = stops.iter().map(|&s| s.to_owned()).collect();
        let mut filter = StopStrings::new(&stops);
        let mut out = String::new();
        for piece in pieces {
            out.push_str(filter.push(piece));
            if filter.found {
                break;
            }
        }
        out.push_str(filter.finish());
        assert_eq!(out, filter.text);
        (out, filter.found)
    }

    #[test]
    fn a_stop_string_is_found_across_pieces_and_never_shown() {
        assert_eq!(shown(&["END"], &["one E", "N", "D two"]), ("one ".to_owned(), true));
        assert_eq!(shown(&["END"], &["one E", "N", "D"]), ("one ".to_owned(), true));
        assert_eq!(shown(&["b", "ab"], &["xa", "b"]), ("x".to_owned(), true));
        assert_eq!(shown(&["é!"], &["caf", "é", "!"]), ("caf".to_owned(), true));
    }

    #[test]
    fn what_only_began_like_a_stop_string_is_shown_in_the_end() {
        assert_eq!(shown(&["END"], &["one E", "N"]), ("one EN".to_owned(), false));
        assert_eq!(shown(&["END"], &["EEN", "EN", "x"]), ("EENENx".to_owned(), false));
        assert_eq!(shown(&[], &["all", " of it"]), ("all of it".to_owned(), false));
    }
}

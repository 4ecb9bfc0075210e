//! A model with its tokenizer: text generation from text.

use std::path::Path;

use candle_core::Device;
use llm_model::gguf::{GgufFile, is_gguf};
use llm_model::{Model, WeightDtype};
use llm_tokenizer::{Chat, ChatMessage, Tokenizer};

use crate::{Error, GenerateOptions, Result, Sampling, generate, generate_from};

/// A model with its tokenizer.
#[derive(Debug)]
pub struct TextModel {
    /// The model.
    pub model: Model,
    /// The tokenizer of the model.
    pub tokenizer: Tokenizer,
}

/// Options of text generation.
#[derive(Debug, Clone)]
pub struct TextOptions {
    /// Maximum number of tokens to generate.
    pub max_new_tokens: usize,
    /// Stop strings: generation ends before the first one; it is not part of the text.
    pub stop: Vec<String>,
    /// Sampling parameters.
    pub sampling: Sampling,
}

impl Default for TextOptions {
    /// The defaults of `llm-infer`: up to 256 tokens at temperature 0.7.
    fn default() -> Self {
        Self { max_new_tokens: 256, stop: Vec::new(), sampling: Sampling { temperature: 0.7, ..Sampling::default() } }
    }
}

/// A generated text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Completion {
    /// The text, without stop string and special tokens.
    pub text: String,
    /// Number of generated tokens.
    pub tokens: usize,
}

impl TextModel {
    /// Loads a Hugging Face folder into memory, in f32.
    pub fn load(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        Self::with_tokenizer(Model::load(dir)?, dir)
    }

    /// Opens a Hugging Face folder or a `.gguf` file with memory-mapped matrices.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if is_gguf(path) {
            return Self::from_gguf(path);
        }
        Self::with_tokenizer(Model::open(path)?, path)
    }

    /// Opens a GGUF file with memory-mapped matrices.
    pub fn from_gguf(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = GgufFile::open(path).map_err(llm_model::Error::from)?;
        let tokenizer = Tokenizer::from_gguf(file.metadata())?;
        Self::checked(Model::from_gguf(&file)?, tokenizer, path)
    }

    /// Opens a checkpoint of llama2.c (`stories260K.bin`) and its tokenizer (`tok512.bin`).
    pub fn from_llama2c(checkpoint: impl AsRef<Path>, tokenizer: impl AsRef<Path>) -> Result<Self> {
        let tokenizer = tokenizer.as_ref();
        Self::checked(Model::from_llama2c(checkpoint)?, Tokenizer::from_llama2c(tokenizer)?, tokenizer)
    }

    /// Writes a GGUF file with matrices in `dtype`, or in their current dtype if it is none; `path` must not exist.
    pub fn save_gguf(&self, path: impl AsRef<Path>, dtype: Option<WeightDtype>) -> Result<()> {
        let path = path.as_ref();
        let tokenizer = self.tokenizer.to_gguf(self.model.config().vocab_size)?;
        Ok(self.model.save_gguf(path, dtype, tokenizer)?)
    }

    /// A model with the tokenizer of a folder: the model's folder, or an adapter's if that has its own tokenizer.
    pub fn with_tokenizer(model: Model, dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        Self::checked(model, Tokenizer::load(dir)?, &dir.join("tokenizer.json"))
    }

    /// The same with the model on `device` ([`Model::to_device`]).
    pub fn to_device(self, device: &Device) -> Result<Self> {
        Ok(Self { model: self.model.to_device(device)?, ..self })
    }

    /// Checks that the tokenizer has no more tokens than the model; the error names `origin`.
    fn checked(model: Model, tokenizer: Tokenizer, origin: &Path) -> Result<Self> {
        let (ids, rows) = (tokenizer.vocab_size(), model.config().vocab_size);
        if ids > rows {
            return Err(Error::OtherTokenizer { origin: origin.to_owned(), tokens: ids, vocab_size: rows });
        }
        Ok(Self { model, tokenizer })
    }

    /// The reply to one user message, with [`Self::default_options`].
    pub fn chat(&self, message: &str) -> Result<String> {
        let prompt = self.chat_ids(&[ChatMessage::new("user", message)])?;
        Ok(self.complete(&prompt, &self.default_options(), |_| true)?.text)
    }

    /// The sampling defaults of the model's files ([`Model::generation`]); those of [`TextOptions`] for what they do not name.
    pub fn default_options(&self) -> TextOptions {
        let (generation, default) = (self.model.generation(), TextOptions::default());
        let (temperature, top_k, top_p) = generation.sampling();
        TextOptions {
            max_new_tokens: generation.max_new_tokens.unwrap_or(default.max_new_tokens),
            stop: generation.stop_strings.clone(),
            sampling: Sampling {
                temperature: temperature.unwrap_or(default.sampling.temperature),
                top_k: top_k.unwrap_or(default.sampling.top_k),
                top_p: top_p.unwrap_or(default.sampling.top_p),
                ..default.sampling
            },
        }
    }

    /// Token ids of a conversation by the chat template, up to the start of the assistant's turn.
    pub fn chat_ids<'a>(&self, chat: impl Into<Chat<'a>>) -> Result<Vec<u32>> {
        Ok(self.tokenizer.encode_chat(chat, true)?)
    }

    /// Token ids of a document: the beginning-of-sequence token, if any, then the text.
    pub fn document_ids(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids: Vec<u32> = self.tokenizer.bos_id().into_iter().collect();
        ids.extend(self.tokenizer.encode(text)?);
        Ok(ids)
    }

    /// Token ids of a text to continue. As in transformers and llama.cpp, it starts with the beginning-of-sequence token if
    /// the tokenizer is configured to add it.
    pub fn text_ids(&self, text: &str) -> Result<Vec<u32>> {
        if self.tokenizer.adds_bos() { self.document_ids(text) } else { Ok(self.tokenizer.encode(text)?) }
    }

    /// Token ids that end a reply: the end tokens of the model's files ([`Model::eos_token_ids`]), the end-of-turn token of the
    /// chat template and the end-of-document token.
    pub fn stop_ids(&self) -> Vec<u32> {
        let tokenizer = &self.tokenizer;
        let end_of_turn = tokenizer.chat_format().ok().map(|format| format.end_of_turn);
        let mut ids = self.model.eos_token_ids();
        ids.extend(end_of_turn.into_iter().chain(tokenizer.document_end_id()));
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// Continues `prompt`. `on_text` gets each piece of text as soon as it cannot be part of a stop string; the piece is empty while
    /// tokens form no whole character. It returns `false` to end the text.
    pub fn complete(
        &self,
        prompt: &[u32],
        options: &TextOptions,
        mut on_text: impl FnMut(&str) -> bool,
    ) -> Result<Completion> {
        let (max_new_tokens, stop_ids) = (options.max_new_tokens, Some(self.stop_ids()));
        let generation = GenerateOptions { max_new_tokens, stop_ids, sampling: options.sampling.clone() };
        let mut decoder = self.tokenizer.stream_after(prompt)?;
        let (mut stops, mut failure) = (StopStrings::new(&options.stop), None);
        let replies = generate(&self.model, &[prompt.to_vec()], &generation, |_, id| match decoder.push(id) {
            Ok(piece) => {
                let goes_on = on_text(stops.push(&piece.unwrap_or_default()));
                goes_on && !stops.found
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

    /// Replies to many prompts, without stop strings. With a seed, the `batch_size` does not change the replies; `on_done` gets the
    /// number of finished replies after each batch.
    pub fn complete_all(
        &self,
        prompts: &[Vec<u32>],
        options: &GenerateOptions,
        batch_size: usize,
        mut on_done: impl FnMut(usize),
    ) -> Result<Vec<Completion>> {
        let mut completions = Vec::with_capacity(prompts.len());
        let stop_ids = options.stop_ids.clone().unwrap_or_else(|| self.stop_ids());
        let options = &GenerateOptions { stop_ids: Some(stop_ids), ..options.clone() };
        for chunk in prompts.chunks(batch_size.max(1)) {
            for ids in generate_from(&self.model, chunk, completions.len(), options, |_, _| true)? {
                completions.push(Completion { text: self.tokenizer.decode(&ids)?, tokens: ids.len() });
            }
            on_done(completions.len());
        }
        Ok(completions)
    }
}

/// Detects stop strings in streamed text; holds back text that may be the start of a stop string.
pub(crate) struct StopStrings {
    stops: Vec<String>,
    text: String,
    emitted: usize, // bytes
    /// Whether a stop string was found; the text ends before it.
    pub found: bool,
    /// The length of the text with the stop string, in bytes.
    pub length: usize,
}

impl StopStrings {
    pub(crate) fn new(stops: &[String]) -> Self {
        let stops = stops.iter().filter(|stop| !stop.is_empty()).cloned().collect();
        Self { stops, text: String::new(), emitted: 0, found: false, length: 0 }
    }

    /// Appends a piece and returns the text that can be emitted now.
    pub(crate) fn push(&mut self, piece: &str) -> &str {
        self.text.push_str(piece);
        self.length += piece.len();
        // What was emitted cannot be part of a stop string.
        let new = &self.text[self.emitted..];
        let first = self.stops.iter().filter_map(|stop| new.find(stop.as_str())).min();
        if let Some(at) = first {
            self.text.truncate(self.emitted + at);
            self.found = true;
        }
        let safe = if self.found { self.text.len() } else { self.text.len() - self.held_back() };
        let from = self.emitted.min(safe);
        self.emitted = safe.max(from);
        &self.text[from..self.emitted]
    }

    /// Appends a piece in which no stop string is searched for.
    pub(crate) fn pass(&mut self, piece: &str) -> &str {
        self.text.push_str(piece);
        self.length += piece.len();
        self.finish()
    }

    pub(crate) fn finish(&mut self) -> &str {
        let from = self.emitted;
        self.emitted = self.text.len();
        &self.text[from..]
    }

    /// Length in bytes of the longest suffix of the text that is a prefix of a stop string.
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

    fn emitted(stops: &[&str], pieces: &[&str]) -> (String, bool) {
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
    fn a_stop_string_is_found_across_pieces_and_never_emitted() {
        assert_eq!(emitted(&["END"], &["one E", "N", "D two"]), ("one ".to_owned(), true));
        assert_eq!(emitted(&["END"], &["one E", "N", "D"]), ("one ".to_owned(), true));
        assert_eq!(emitted(&["b", "ab"], &["xa", "b"]), ("x".to_owned(), true));
        assert_eq!(emitted(&["é!"], &["caf", "é", "!"]), ("caf".to_owned(), true));
    }

    #[test]
    fn an_incomplete_stop_string_is_emitted_at_the_end() {
        assert_eq!(emitted(&["END"], &["one E", "N"]), ("one EN".to_owned(), false));
        assert_eq!(emitted(&["END"], &["EEN", "EN", "x"]), ("EENENx".to_owned(), false));
        assert_eq!(emitted(&[], &["all", " of it"]), ("all of it".to_owned(), false));
    }
}

//! Rows of data files as examples in token ids.

use std::path::{Path, PathBuf};

use llm_data::{ChatMessage, Conversation, ReadOptions, TrainingRow, Warnings, read_training_rows};
use llm_tokenizer::{Boundary, Tokenizer, TrainOn, TrainingExample};
use serde_json::{Value, json};

use crate::data::{DataOptions, TooLong};
use crate::examples::Example;
pub(crate) use crate::splits::Encoded;
use crate::splits::{self, Source, encode_all, read_items};
use crate::{Error, Result};

/// The part of the prompts that is the validation split if there is no file of validation data.
const VALIDATION_SHARE: f64 = 0.05;

/// Reads and encodes the rows of a file. Those of more than `max_length` tokens are left out, not truncated.
pub fn read_examples(path: &Path, tokenizer: &Tokenizer, max_length: usize) -> Result<Vec<Example>> {
    let rows = read_items(path, &ReadOptions::default(), read)?;
    let encoder = Encoder::new(tokenizer, max_length, TooLong::Drop);
    Ok(flattened(path, encode_all(path, &rows, max_length, |row| encoder.encode(row))?))
}

/// Training and validation examples: two sets of files, or one of which 5 % of the prompts are for validation.
pub(crate) fn train_and_validation(
    (data, validation): (&[PathBuf], Option<&Path>),
    options: &DataOptions,
    seed: u64,
    (tokenizer, train_on): (&Tokenizer, TrainOn),
    max_length: usize,
) -> Result<(Vec<Example>, Vec<Example>)> {
    let source = Source { data, validation, validation_share: VALIDATION_SHARE, seed, max_length, options };
    let encoder = Encoder { train_on, ..Encoder::new(tokenizer, max_length, options.too_long) };
    let (train, held_out) = splits::train_and_validation(&source, read, |row| encoder.encode(row))?;
    let name = data.first().map_or(Path::new(""), PathBuf::as_path);
    Ok((flattened(name, train), flattened(validation.unwrap_or(name), held_out)))
}

/// The examples of a row: several if the chat template writes earlier messages in another way than the last one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Parts {
    /// Those that are trained on.
    pub examples: Vec<Example>,
    /// The number of those that are left out because they are too long.
    pub too_long: usize,
    /// The places where an answer merges with its prompt.
    pub boundaries: Vec<Boundary>,
}

/// All examples. Logs what is left out of rows with several, and where an answer merges with its prompt.
fn flattened(path: &Path, rows: Vec<Parts>) -> Vec<Example> {
    let path = path.display();
    let too_long: usize = rows.iter().map(|row| row.too_long).sum();
    if too_long > 0 {
        tracing::warn!(
            "{path}: left out the last answers of conversations that have too many tokens: {too_long} answers"
        );
    }
    if let Some(note) = boundary_note(rows.iter().flat_map(|row| &row.boundaries)) {
        tracing::warn!("{path}: {note}");
    }
    rows.into_iter().flat_map(|row| row.examples).collect()
}

/// A warning about answers that merge with their prompts, if there are any.
pub(crate) fn boundary_note<'a>(boundaries: impl Iterator<Item = &'a Boundary> + Clone) -> Option<String> {
    let (count, first) = (boundaries.clone().count(), boundaries.into_iter().next()?);
    Some(format!(
        "{count} answers begin in the middle of a token, because the generation prompt does not end where a token ends; the \
         first one: {first}. Training uses the ids that generation sees; a chat template whose generation prompt ends with a \
         special token or a line end avoids this"
    ))
}

pub(crate) fn read(path: &Path, options: &ReadOptions) -> Result<(Vec<TrainingRow>, Warnings)> {
    let read = read_training_rows(path, options)?;
    Ok((read.rows, read.warnings))
}

/// Encodes rows with a tokenizer and its chat template.
pub(crate) struct Encoder<'a> {
    tokenizer: &'a Tokenizer,
    max_length: usize,
    too_long: TooLong,
    train_on: TrainOn,
    /// Keys of conversations and messages that the chat template does not read.
    unread: Vec<&'static str>,
}

impl<'a> Encoder<'a> {
    /// An encoder. What the chat template reads is found by rendering probes.
    pub fn new(tokenizer: &'a Tokenizer, max_length: usize, too_long: TooLong) -> Self {
        Self { tokenizer, max_length, too_long, train_on: TrainOn::All, unread: unread_keys(tokenizer) }
    }

    /// The row in token ids. It is an error if a conversation has a key that the chat template does not read.
    pub fn encode(&self, row: &TrainingRow) -> Result<Encoded<Parts>> {
        let whole = self.whole(row)?;
        let mut parts = Parts { examples: Vec::new(), ..whole };
        for mut example in whole.examples {
            if example.ids.len() > self.max_length {
                if self.too_long == TooLong::Drop {
                    parts.too_long += 1;
                    continue;
                }
                example.ids.truncate(self.max_length);
                example.loss_mask.truncate(self.max_length);
            }
            // The first token is never a target.
            if example.loss_mask.iter().skip(1).any(|&trained| trained) {
                parts.examples.push(example);
            }
        }
        Ok(match (parts.examples.is_empty(), parts.too_long) {
            (false, _) => Encoded::Fits(parts),
            (true, 0) => Encoded::Untrained,
            (true, _) => Encoded::TooLong,
        })
    }

    /// The examples of the row in token ids, of any length.
    pub fn whole(&self, row: &TrainingRow) -> Result<Parts> {
        match row {
            TrainingRow::Conversation(conversation) => {
                self.check_keys(conversation)?;
                let mut parts = Parts::default();
                for example in self.tokenizer.encode_for_training(conversation, self.train_on)? {
                    let TrainingExample { ids, loss_mask, boundaries } = example;
                    parts.examples.push(Example { ids, loss_mask });
                    parts.boundaries.extend(boundaries);
                }
                Ok(parts)
            }
            TrainingRow::Text(text) => {
                let bos = self.tokenizer.bos_id().filter(|_| self.tokenizer.adds_bos());
                let mut ids: Vec<u32> = bos.into_iter().collect();
                ids.extend(self.tokenizer.encode(text)?);
                ids.extend(self.tokenizer.document_end_id());
                let loss_mask = vec![true; ids.len()];
                Ok(Parts { examples: vec![Example { ids, loss_mask }], ..Parts::default() })
            }
        }
    }

    fn check_keys(&self, conversation: &Conversation) -> Result<()> {
        let has = |key: &str| match key {
            "tools" => conversation.tools.is_some(),
            "documents" => conversation.documents.is_some(),
            "tool" => conversation.messages.iter().any(|message| message.role() == "tool"),
            key => conversation.messages.iter().any(|message| message.fields().contains_key(key)),
        };
        match self.unread.iter().find(|key| has(key)) {
            None => Ok(()),
            Some(&"tool") => Err(Error::BadRequest(
                "the chat template does not render messages with the role \"tool\"; use a model whose template does, or remove \
                 conversations with tool calls"
                    .to_owned(),
            )),
            Some(key) => Err(Error::BadRequest(format!(
                "the chat template does not read \"{key}\", so it would be lost; use a model whose template does, or name it in \
                 data.ignored_columns"
            ))),
        }
    }
}

/// The keys that are not in the rendered text of a conversation that has them. A template may leave out the reasoning of earlier
/// turns, so the probe is the last turn.
fn unread_keys(tokenizer: &Tokenizer) -> Vec<&'static str> {
    const MARK: &str = "kprobe";
    let message = |value: Value| value.as_object().cloned().and_then(|fields| ChatMessage::from_fields(fields).ok());
    let ask = ChatMessage::user("qprobe");
    let answer = |fields: Value| {
        let mut all = json!({"role": "assistant", "content": "aprobe"});
        if let (Some(all), Value::Object(fields)) = (all.as_object_mut(), fields) {
            all.extend(fields);
        }
        message(all)
    };
    let call = json!([{"type": "function", "id": "call00001", "function": {"name": MARK, "arguments": {}}}]);
    let tool = json!({"type": "function", "function": {"name": MARK, "description": "d", "parameters": {
        "type": "object", "properties": {}, "required": []
    }}});
    let with = |messages: Vec<Option<ChatMessage>>| {
        let messages: Vec<ChatMessage> = messages.into_iter().flatten().collect();
        Conversation::from([vec![ask.clone()], messages].concat())
    };
    let result = json!({"role": "tool", "content": MARK, "tool_call_id": "call00001", "name": "f"});
    let other_call = json!([{"type": "function", "id": "call00001", "function": {"name": "f", "arguments": {}}}]);
    let probes = [
        ("reasoning_content", with(vec![answer(json!({"reasoning_content": MARK}))])),
        ("thinking", with(vec![answer(json!({"thinking": MARK}))])),
        ("tool_calls", with(vec![answer(json!({"tool_calls": call}))])),
        ("tools", Conversation { tools: Some(vec![tool]), ..with(vec![answer(json!({}))]) }),
        (
            "documents",
            Conversation {
                documents: Some(vec![json!({"title": MARK, "text": MARK})]),
                ..with(vec![answer(json!({}))])
            },
        ),
        ("tool", with(vec![answer(json!({"tool_calls": other_call})), message(result), answer(json!({}))])),
    ];
    let is_lost =
        |conversation: &Conversation| !tokenizer.render_chat(conversation, false).is_ok_and(|text| text.contains(MARK));
    probes.iter().filter(|(_, conversation)| is_lost(conversation)).map(|(key, _)| *key).collect()
}

#[cfg(test)]
mod tests {
    use llm_tokenizer::{TrainConfig, train_bpe};

    use super::*;

    fn tokenizer() -> Tokenizer {
        let config = TrainConfig { vocab_size: 300, min_frequency: 2 };
        train_bpe(&config, ["the cat sat on the mat"].iter()).unwrap().with_default_chat_template().unwrap()
    }

    fn chat(messages: Vec<ChatMessage>) -> TrainingRow {
        TrainingRow::Conversation(messages.into())
    }

    #[test]
    fn a_text_is_trained_on_as_a_whole_and_ends_with_the_end_of_document() {
        let tokenizer = tokenizer();
        let encoder = Encoder::new(&tokenizer, 100, TooLong::Drop);
        let example = encoder.whole(&TrainingRow::Text("the <|user|> cat".to_owned())).unwrap().examples.remove(0);
        let expected =
            [tokenizer.encode("the <|user|> cat").unwrap(), vec![tokenizer.document_end_id().unwrap()]].concat();
        assert_eq!(example.ids, expected, "no chat template, and no special token in the text");
        assert!(example.loss_mask.iter().all(|&trained| trained));
    }

    #[test]
    fn an_example_that_is_too_long_is_left_out_or_cut_but_never_left_without_a_trained_token() {
        let tokenizer = tokenizer();
        let row = chat(vec![ChatMessage::user("the cat"), ChatMessage::assistant("the mat")]);
        let whole = Encoder::new(&tokenizer, 100, TooLong::Drop).whole(&row).unwrap().examples.remove(0);
        let fits = |example: Example| Encoded::Fits(Parts { examples: vec![example], ..Parts::default() });
        let first = whole.loss_mask.iter().position(|&trained| trained).unwrap();
        let encode = |max_length, too_long| Encoder::new(&tokenizer, max_length, too_long).encode(&row).unwrap();
        let cut = |length: usize| Example {
            ids: whole.ids[..length].to_vec(),
            loss_mask: whole.loss_mask[..length].to_vec(),
        };
        assert_eq!(encode(whole.ids.len(), TooLong::Drop), fits(whole.clone()));
        assert_eq!(encode(whole.ids.len() - 1, TooLong::Drop), Encoded::TooLong);
        assert_eq!(encode(first + 1, TooLong::Cut), fits(cut(first + 1)));
        assert_eq!(encode(first, TooLong::Cut), Encoded::Untrained, "the cut example would have a loss of 0 / 0");
    }

    #[test]
    fn keys_that_the_template_would_lose_are_refused_by_name() {
        let tokenizer = tokenizer();
        let encoder = Encoder::new(&tokenizer, 100, TooLong::Drop);
        let message = |text: &str| serde_json::from_str::<Conversation>(text).map(TrainingRow::Conversation).unwrap();
        for (row, part) in [
            (
                r#"{"messages": [{"role": "assistant", "content": "a", "reasoning_content": "r"}]}"#,
                "read \"reasoning_content\"",
            ),
            (r#"{"messages": [{"role": "assistant", "content": "a"}], "tools": [{}]}"#, "read \"tools\""),
            (r#"{"messages": [{"role": "tool", "content": "a"}]}"#, "the role \"tool\""),
        ] {
            let error = encoder.encode(&message(row)).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}

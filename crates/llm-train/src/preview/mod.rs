//! A preview of training data: the rows as token ids with their loss mask, and what is left out, without training.

mod html;
mod text;

pub(crate) use html::escaped;

use std::path::{Path, PathBuf};

use llm_data::{TrainingRow, Warnings, read_training_rows};
use llm_tokenizer::Tokenizer;
use rayon::prelude::*;

use crate::examples::Example;
use crate::recipes::FinetuneRecipe;
use crate::rows::{Encoded, Encoder, Parts, boundary_note};
use crate::{Error, Result};

/// A preview of data files for a tokenizer and its chat template.
#[derive(Debug)]
pub struct Preview {
    /// Folder of the model.
    model: PathBuf,
    /// The token that ends an answer: spelling and id.
    end_of_turn: (String, u32),
    /// The token that ends a text: spelling and id.
    document_end: Option<(String, u32)>,
    /// Longer examples are left out or cut, in tokens.
    max_length: usize,
    /// A preview of each file.
    files: Vec<File>,
}

/// A preview of one data file or folder.
#[derive(Debug)]
struct File {
    path: PathBuf,
    /// Number of rows that can be read.
    rows: usize,
    /// Number of examples that are trained on.
    examples: usize,
    /// Tokens of these examples, and those of them that are trained on.
    tokens: (usize, usize),
    /// Lengths of all examples in tokens, in ascending order.
    lengths: Vec<usize>,
    /// What is left out and why, duplicates, and other warnings, one line each.
    notes: Vec<String>,
    /// The first rows.
    shown: Vec<Row>,
}

/// A row as it is shown.
#[derive(Debug)]
struct Row {
    /// Its number, counted from 1.
    number: usize,
    /// What happens to it, such as "trained on" or the reason why it is left out.
    fate: String,
    /// Its examples.
    examples: Vec<Vec<Piece>>,
}

/// A text of one or more tokens that are one or more whole characters.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Piece {
    text: String,
    ids: Vec<u32>,
    /// Whether the tokens are trained on.
    trained: bool,
    /// Whether it is a special token.
    special: bool,
}

/// Reads data files as `finetune` with this recipe does, and shows the first `rows` rows of each. Only the tokenizer and, if there is
/// one, the configuration of the model in `model` are read.
pub fn preview(recipe: &FinetuneRecipe, model: &Path, data: &[PathBuf], rows: usize) -> Result<Preview> {
    recipe.data.check_files(data.len())?;
    let mut tokenizer = Tokenizer::load(model)?;
    if !tokenizer.has_chat_template() {
        tokenizer = tokenizer.with_default_chat_template()?;
    }
    let format = tokenizer.chat_format().map_err(|e| Error::BadFile(format!("{}: {e}", model.display())))?;
    let max_length = match model.join("config.json").is_file() {
        true => recipe.max_length.min(llm_model::read_config(model)?.config.max_position_embeddings),
        false => recipe.max_length,
    };
    let named = |id: u32| (tokenizer.token(id).unwrap_or_default(), id);
    let encoder = Encoder::new(&tokenizer, max_length, recipe.data.too_long);
    let options = recipe.data.read_options();
    let files = data.iter().map(|path| {
        let read = read_training_rows(path, &options)?;
        file(path, &read.rows, &read.warnings, (&tokenizer, &encoder), rows)
    });
    Ok(Preview {
        files: files.collect::<Result<_>>()?,
        model: model.to_owned(),
        end_of_turn: named(format.end_of_turn),
        document_end: tokenizer.document_end_id().map(named),
        max_length,
    })
}

fn file(
    path: &Path,
    rows: &[TrainingRow],
    warnings: &Warnings,
    (tokenizer, encoder): (&Tokenizer, &Encoder),
    shown: usize,
) -> Result<File> {
    let specials = tokenizer.special_ids();
    let encoded: Vec<(Result<Parts>, Result<Encoded<Parts>>)> =
        rows.par_iter().map(|row| (encoder.whole(row), encoder.encode(row))).collect();
    let mut file = File {
        path: path.to_owned(),
        rows: rows.len(),
        examples: 0,
        tokens: (0, 0),
        lengths: Vec::new(),
        notes: warnings.lines(),
        shown: Vec::new(),
    };
    let (mut too_long, mut untrained, mut failed, mut boundaries) = (0, 0, Vec::new(), Vec::new());
    for (index, (whole, encoded)) in encoded.into_iter().enumerate() {
        let fate = match &encoded {
            Ok(Encoded::Fits(parts)) => {
                let of = |count: fn(&Example) -> usize| parts.examples.iter().map(count).sum::<usize>();
                let (tokens, trained) =
                    (of(|e| e.ids.len()), of(|e| e.loss_mask.iter().skip(1).filter(|t| **t).count()));
                file.examples += parts.examples.len();
                file.tokens = (file.tokens.0 + tokens, file.tokens.1 + trained);
                let more =
                    if parts.too_long > 0 { format!("; {} parts are too long", parts.too_long) } else { String::new() };
                format!("{tokens} tokens, {trained} of them trained{more}")
            }
            Ok(Encoded::TooLong) => {
                too_long += 1;
                "left out: too long".to_owned()
            }
            Ok(Encoded::Untrained) => {
                untrained += 1;
                "left out: no token is trained on".to_owned()
            }
            Err(error) => {
                failed.push(format!("row {}: {error}", index + 1));
                format!("not encoded: {error}")
            }
        };
        let Parts { examples: whole, boundaries: found, .. } = whole.unwrap_or_default();
        boundaries.extend(found);
        file.lengths.extend(whole.iter().map(|example| example.ids.len()));
        if index < shown {
            // A row that is cut is shown as it is trained on.
            let examples = match encoded {
                Ok(Encoded::Fits(parts)) => parts.examples,
                _ => whole,
            };
            let examples = examples.iter().map(|example| pieces(tokenizer, &specials, example));
            let examples = examples.collect::<Result<_>>()?;
            file.shown.push(Row { number: index + 1, fate, examples });
        }
    }
    file.lengths.sort_unstable();
    let all = rows.len();
    if too_long > 0 {
        file.notes.push(format!("{too_long} of {all} rows are left out: they have too many tokens"));
    }
    if untrained > 0 {
        file.notes.push(format!("{untrained} of {all} rows are left out: no token is trained on"));
    }
    file.notes.extend(boundary_note(boundaries.iter()));
    if let Some(first) = failed.first() {
        file.notes.push(format!("{} of {all} rows cannot be encoded, training would stop; {first}", failed.len()));
    }
    Ok(file)
}

/// The tokens of an example as texts. Tokens that are parts of one character are one piece.
fn pieces(tokenizer: &Tokenizer, specials: &[u32], example: &Example) -> Result<Vec<Piece>> {
    // Decoders can remove a space at the beginning, so each text is decoded after the piece before it.
    let text_after = |before: &[u32], ids: &[u32]| -> Result<String> {
        let (prefix, whole) = (tokenizer.decode(before)?, tokenizer.decode(&[before, ids].concat())?);
        Ok(whole.strip_prefix(&prefix).map_or_else(|| whole.clone(), str::to_owned))
    };
    let (mut all, mut before, mut at) = (Vec::new(), Vec::new(), 0);
    while at < example.ids.len() {
        let (id, trained) = (example.ids[at], example.loss_mask[at]);
        if specials.binary_search(&id).is_ok() {
            let text = tokenizer.token(id).unwrap_or_default();
            all.push(Piece { text, ids: vec![id], trained, special: true });
            (before, at) = (Vec::new(), at + 1);
            continue;
        }
        let mut end = at + 1;
        let mut text = text_after(&before, &example.ids[at..end])?;
        // The bytes of a character can be in up to four tokens.
        while text.ends_with('\u{fffd}') && end - at < 4 && end < example.ids.len() && example.loss_mask[end] == trained
        {
            end += 1;
            text = text_after(&before, &example.ids[at..end])?;
        }
        before = example.ids[at..end].to_vec();
        all.push(Piece { text, ids: before.clone(), trained, special: false });
        at = end;
    }
    Ok(all)
}

impl Preview {
    /// The preview as text. `colours`: trained tokens are green on a terminal; otherwise they are between ⟦ and ⟧.
    pub fn text(&self, colours: bool) -> String {
        text::render(self, colours)
    }

    /// Writes the preview as one HTML page without scripts and without links. It is an error if the file exists.
    pub fn write_html(&self, path: &Path) -> Result<()> {
        if path.exists() {
            return Err(Error::BadRequest(format!("{}: exists; give another name", path.display())));
        }
        let page = html::render(self);
        llm_files::write_atomic(path, |out| out.write_all(page.as_bytes())).map_err(Error::io(path))
    }
}

/// Counts of lengths in at most ten ranges of equal width: (first, last, count).
fn histogram(lengths: &[usize]) -> Vec<(usize, usize, usize)> {
    let (Some(&low), Some(&high)) = (lengths.first(), lengths.last()) else { return Vec::new() };
    let width = (high - low + 1).div_ceil(10);
    let bins = (high - low + 1).div_ceil(width);
    let mut counts = vec![0; bins];
    lengths.iter().for_each(|length| counts[(length - low) / width] += 1);
    let range = |(bin, count): (usize, usize)| (low + bin * width, (low + (bin + 1) * width - 1).min(high), count);
    counts.into_iter().enumerate().map(range).collect()
}

/// A token as the previews name it.
fn token_name((text, id): &(String, u32)) -> String {
    format!("{text} (id {id})")
}

#[cfg(test)]
mod tests {
    use llm_tokenizer::{TrainConfig, train_bpe};

    use super::*;
    use crate::data::{DataOptions, TooLong};

    #[test]
    fn lengths_are_counted_in_ranges_of_equal_width() {
        assert_eq!(histogram(&[]), []);
        assert_eq!(histogram(&[7, 7]), [(7, 7, 2)]);
        assert_eq!(histogram(&[1, 2, 2, 4]), [(1, 1, 1), (2, 2, 2), (3, 3, 0), (4, 4, 1)]);
        let all: Vec<usize> = (5..=104).collect();
        let bins = histogram(&all);
        assert_eq!((bins.len(), bins[0], bins[9]), (10, (5, 14, 10), (95, 104, 10)));
    }

    #[test]
    fn the_pieces_of_an_example_are_its_text() {
        let config = TrainConfig { vocab_size: 300, min_frequency: 2 };
        let tokenizer = train_bpe(&config, ["the cat sat"].iter()).unwrap().with_default_chat_template().unwrap();
        let text = "the 🐈 sat\nß";
        let ids = [vec![3], tokenizer.encode(text).unwrap(), vec![5]].concat();
        let example = Example { loss_mask: vec![true; ids.len()], ids: ids.clone() };
        let pieces = pieces(&tokenizer, &tokenizer.special_ids(), &example).unwrap();
        let shown: String = pieces.iter().map(|piece| piece.text.as_str()).collect();
        assert_eq!(shown, format!("<|user|>{text}<|end|>"));
        assert!(pieces.iter().any(|piece| piece.text == "🐈" && piece.ids.len() == 4), "{pieces:?}");
        assert_eq!(pieces.iter().flat_map(|piece| piece.ids.clone()).collect::<Vec<_>>(), ids);
    }

    /// The golden file is what the program prints; `INSTA_UPDATE=always` writes it.
    #[test]
    fn the_text_shows_the_mask_the_ids_the_lengths_and_what_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let config = TrainConfig { vocab_size: 320, min_frequency: 1 };
        let tokenizer = train_bpe(&config, ["What is one and one? Two, I think."].iter()).unwrap();
        tokenizer.save(dir.path().join("model")).unwrap();
        let rows = [
            r#"{"prompt": "What is one and one?", "completion": "Two.", "mood": 1}"#,
            r#"{"prompt": "What is one and one?", "completion": "Two, <|end|> I think. 🐈"}"#,
            r#"{"messages": [{"role": "user", "content": "And?"}, {"role": "assistant", "content": "One."}, {"role": "user", "content": "And & <b>?"}, {"role": "assistant", "content": "Two."}]}"#,
            r#"{"text": "One and one\nis two."}"#,
            r#"{"question": "What is one and one and one and one and one and one and one and one and one and one?", "answer": "I think two, two, two, two, two and two."}"#,
            r#"{"question": "What""#,
        ];
        let data = dir.path().join("data.jsonl");
        std::fs::write(&data, rows.join("\n")).unwrap();
        let options = DataOptions { too_long: TooLong::Drop, ..DataOptions::default() };
        let recipe = FinetuneRecipe { max_length: 40, data: options, ..FinetuneRecipe::default() };
        let preview = preview(&recipe, &dir.path().join("model"), &[data], 5).unwrap();
        let text = preview.text(false).replace(&dir.path().display().to_string(), "DIR");
        let mut settings = insta::Settings::new();
        settings.set_prepend_module_to_snapshot(false);
        settings.set_omit_expression(true);
        settings.set_snapshot_path("../../tests/snapshots");
        settings.bind(|| insta::assert_snapshot!("preview", text));
        assert!(preview.text(true).contains("\u{1b}[32m"), "trained tokens are green");

        let page = dir.path().join("page.html");
        preview.write_html(&page).unwrap();
        let html = std::fs::read_to_string(&page).unwrap();
        assert!(
            html.contains("&amp;") && html.contains("&lt;") && !html.contains("<b>?"),
            "the text of rows is escaped"
        );
        assert!(!html.contains("<script") && !html.contains("http"), "the page needs nothing else");
        let exists = preview.write_html(&page).unwrap_err().to_string();
        assert!(exists.contains("page.html: exists"), "{exists}");
    }
}

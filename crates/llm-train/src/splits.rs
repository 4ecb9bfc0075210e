//! Training and validation splits of a stage: two sets of files, or one set that is split by prompt.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use llm_data::{Contamination, Duplicates, Keyed, ReadOptions, SplitKey, Warnings, split_by_prompt};
use rand::seq::SliceRandom;
use rayon::prelude::*;

use crate::data::DataOptions;
use crate::run::rng;
use crate::{Error, Result};

/// The data files of a stage and how to split them.
#[derive(Debug)]
pub(crate) struct Source<'a> {
    /// Files or folders of training items.
    pub data: &'a [PathBuf],
    /// Validation items; `None`: a share of the prompts of `data`.
    pub validation: Option<&'a Path>,
    /// That share, above 0 and below 1.
    pub validation_share: f64,
    /// Seed for the choice of these prompts.
    pub seed: u64,
    /// Longer items are left out or cut, in tokens.
    pub max_length: usize,
    /// How the files are read.
    pub options: &'a DataOptions,
}

/// An item as token ids, or why it is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Encoded<E> {
    /// The item.
    Fits(E),
    /// It has more than `max_length` tokens.
    TooLong,
    /// None of its tokens is trained on.
    Untrained,
}

/// Reads and encodes the items of a stage: (training, validation), in file order, the training items repeated by the weights of their
/// files. It is an error if all validation items are also training items. For `read` and `encode` see [`read_items`] and
/// [`encode_all`].
pub(crate) fn train_and_validation<T: Keyed + Sync, E: Send + Clone>(
    source: &Source,
    read: impl Fn(&Path, &ReadOptions) -> Result<(Vec<T>, Warnings)>,
    encode: impl Fn(&T) -> Result<Encoded<E>> + Sync,
) -> Result<(Vec<E>, Vec<E>)> {
    source.options.check_files(source.data.len())?;
    let options = source.options.read_options();
    let files = source.data.iter().map(|path| read_items(path, &options, &read)).collect::<Result<Vec<_>>>()?;
    let validation = match source.validation {
        Some(path) => {
            let items = read_items(path, &options, &read)?;
            check_overlap((source.data, &files), (path, &items))?;
            Some(encode_all(path, &items, source.max_length, &encode)?)
        }
        None => None,
    };
    // (prompt, file, item)
    let mut train = Vec::new();
    for (file, (path, items)) in source.data.iter().zip(&files).enumerate() {
        let encode = |item: &T| {
            Ok(match encode(item)? {
                Encoded::Fits(encoded) => Encoded::Fits((item.keys().prompt, file, encoded)),
                Encoded::TooLong => Encoded::TooLong,
                Encoded::Untrained => Encoded::Untrained,
            })
        };
        train.extend(encode_all(path, items, source.max_length, encode)?);
    }
    let (train, validation) = match validation {
        Some(validation) => (train, validation),
        None => {
            let split = split_by_prompt(train, |(prompt, ..)| *prompt, source.validation_share, source.seed);
            let (train, validation) = split.map_err(|error| match error {
                llm_data::Error::OnePrompt { .. } => {
                    Error::BadRequest(format!("{}: {error} with --validation", names(source.data)))
                }
                error => error.into(),
            })?;
            (train, validation.into_iter().map(|(.., item)| item).collect())
        }
    };
    Ok((repeated(train, &source.options.weights, source.seed), validation))
}

/// The names of the data files, for a message.
fn names(data: &[PathBuf]) -> String {
    data.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// The items, each as often as the weight of its file says. A fraction of a weight is the share of the file's items that are used once
/// more, chosen by the seed.
fn repeated<E: Clone>(items: Vec<(SplitKey, usize, E)>, weights: &[f64], seed: u64) -> Vec<E> {
    let mut times = vec![1; items.len()];
    for (file, &weight) in weights.iter().enumerate() {
        let mut of_file: Vec<usize> = (0..items.len()).filter(|&index| items[index].1 == file).collect();
        of_file.shuffle(&mut rng(seed, 6, file as u64));
        let more = (weight.fract() * of_file.len() as f64).round() as usize;
        for (at, index) in of_file.into_iter().enumerate() {
            times[index] = weight.trunc() as usize + usize::from(at < more);
        }
    }
    items.into_iter().zip(times).flat_map(|((.., item), times)| std::iter::repeat_n(item, times)).collect()
}

/// Reads the items of a file and logs the reader's warnings.
pub(crate) fn read_items<T>(
    path: &Path,
    options: &ReadOptions,
    read: impl Fn(&Path, &ReadOptions) -> Result<(Vec<T>, Warnings)>,
) -> Result<Vec<T>> {
    let (items, warnings) = read(path, options)?;
    for line in warnings.lines() {
        tracing::warn!("{}: {line}", path.display());
    }
    Ok(items)
}

/// Encodes items in parallel and keeps their order. The number of items that are left out is logged. It is an error if no item is
/// left.
pub(crate) fn encode_all<T: Sync, E: Send>(
    path: &Path,
    items: &[T],
    max_length: usize,
    encode: impl Fn(&T) -> Result<Encoded<E>> + Sync,
) -> Result<Vec<E>> {
    let at = |(index, item)| {
        encode(item).map_err(|error: Error| match error.is_callers_fault() {
            true => Error::BadRequest(format!("{}: row {}: {error}", path.display(), index + 1)),
            false => error,
        })
    };
    // All, and then the first error in the order of the rows: rayon's own collection into a result has any of them.
    let encoded: Vec<Result<Encoded<E>>> = items.par_iter().enumerate().map(at).collect();
    let encoded = encoded.into_iter().collect::<Result<Vec<_>>>()?;
    let (all, path) = (items.len(), path.display());
    let (mut fitting, mut too_long, mut untrained) = (Vec::with_capacity(all), 0, 0);
    for item in encoded {
        match item {
            Encoded::Fits(item) => fitting.push(item),
            Encoded::TooLong => too_long += 1,
            Encoded::Untrained => untrained += 1,
        }
    }
    let long = format!("have more than {max_length} tokens");
    let masked = "have no token that is trained on";
    match (fitting.is_empty(), too_long, untrained) {
        (true, _, 0) => Err(Error::TooLong(format!("{path}: all {all} records {long}; raise max_length"))),
        (true, 0, _) => Err(Error::BadRequest(format!("{path}: all {all} records {masked}"))),
        (true, ..) => {
            let message = format!("{path}: all {all} records are left out: {too_long} {long}, {untrained} {masked}");
            Err(Error::TooLong(message))
        }
        _ => {
            if too_long > 0 {
                tracing::warn!("{path}: left out {too_long} of {all} records with more than {max_length} tokens");
            }
            if untrained > 0 {
                tracing::warn!("{path}: left out {untrained} of {all} records without a token that is trained on");
            }
            Ok(fitting)
        }
    }
}

/// Returns an error if all validation items are training items; logs how many repeat a training prompt.
fn check_overlap<T: Keyed>((data, files): (&[PathBuf], &[Vec<T>]), (path, validation): (&Path, &[T])) -> Result<()> {
    let train = || files.iter().flatten();
    let duplicates = Duplicates::across(train().map(Keyed::keys), validation.iter().map(Keyed::keys));
    let (data, path, all) = (names(data), path.display(), validation.len());
    if duplicates.exact == all {
        return Err(Error::BadRequest(format!(
            "{path}: all {all} records are also in {data}; use other validation data, or leave out --validation to \
             split by prompt"
        )));
    }
    if duplicates.total() > 0 {
        tracing::warn!(
            "{path}: {} of {all} records repeat a prompt of {data}, {} of them with the same answer; validation metrics \
             partly measure training data",
            duplicates.total(),
            duplicates.exact
        );
    }
    let repeated = repeated_in_another_form(train, validation);
    if repeated > 0 {
        tracing::warn!(
            "{path}: {repeated} of {all} records are records of {data} in another form (with a system prompt or a greeting, or \
             joined); validation metrics partly measure training data"
        );
    }
    Ok(())
}

/// The number of validation items that are training items with other text around them. Items with the prompt of a training item
/// are not counted.
fn repeated_in_another_form<'a, T: Keyed + 'a, I: Iterator<Item = &'a T>>(
    train: impl Fn() -> I,
    validation: &[T],
) -> usize {
    let prompts: HashSet<SplitKey> = train().map(|item| item.keys().prompt).collect();
    let new = validation.iter().filter(|item| !prompts.contains(&item.keys().prompt));
    let texts: Vec<Vec<String>> = new.map(Keyed::texts).collect();
    let train: Vec<String> = train().flat_map(Keyed::texts).collect();
    let found = Contamination::of(&train, &texts.concat());
    let mut found = found.into_iter();
    let is_repeated = |texts: &&Vec<String>| {
        let all: Vec<Contamination> = found.by_ref().take(texts.len()).collect();
        all.into_iter().any(Contamination::is_training_text)
    };
    texts.iter().filter(is_repeated).count()
}

#[cfg(test)]
mod tests {
    use llm_data::{ChatMessage, Conversation, TrainingRow, read_training_rows, write_jsonl};

    use super::*;

    fn read(path: &Path, options: &ReadOptions) -> Result<(Vec<TrainingRow>, Warnings)> {
        let read = read_training_rows(path, options)?;
        Ok((read.rows, read.warnings))
    }

    /// The answer, if it has at most 9 bytes.
    #[allow(clippy::unnecessary_wraps, reason = "as the stages encode")]
    fn encode(row: &TrainingRow) -> Result<Encoded<String>> {
        let TrainingRow::Conversation(conversation) = row else { return Ok(Encoded::Untrained) };
        let answer = conversation.messages[1].text().into_owned();
        Ok(if answer.len() <= 9 { Encoded::Fits(answer) } else { Encoded::TooLong })
    }

    /// Splits (prompt, answer) items and returns the answers of both splits. A non-empty `validation` is a second file.
    fn split(train: &[(&str, &str)], validation: &[(&str, &str)]) -> Result<(Vec<String>, Vec<String>)> {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, items: &[(&str, &str)]| {
            let conversation = |(prompt, answer): &(&str, &str)| {
                Conversation::from(vec![ChatMessage::user(*prompt), ChatMessage::assistant(*answer)])
            };
            let path = dir.path().join(name);
            write_jsonl(&path, &items.iter().map(conversation).collect::<Vec<_>>()).unwrap();
            path
        };
        let (data, path) = (write("train.jsonl", train), write("validation.jsonl", validation));
        let validation = (!validation.is_empty()).then_some(path.as_path());
        let options = DataOptions::default();
        let data = [data];
        let source =
            Source { data: &data, validation, validation_share: 0.05, seed: 3, max_length: 9, options: &options };
        train_and_validation(&source, read, encode)
    }

    #[test]
    fn one_file_is_split_by_prompt_and_not_at_its_end() {
        // Sorted by prompt, each prompt twice with different spelling.
        let prompts: Vec<String> = (0..100).flat_map(|i| [format!("Ask {i:02}"), format!("ask  {i:02} ")]).collect();
        let items: Vec<(&str, &str)> = prompts.iter().map(|prompt| (prompt.as_str(), prompt.trim())).collect();
        let (train, validation) = split(&items, &[]).unwrap();
        assert_eq!((train.len(), validation.len()), (190, 10));
        let number = |answer: &String| answer[answer.len() - 2..].to_owned();
        assert!(validation.iter().all(|a| !train.iter().any(|b| number(a) == number(b))));
        assert!(validation.iter().any(|answer| number(answer).as_str() < "90"), "{validation:?}");
        assert_eq!(split(&items, &[]).unwrap().1, validation);
    }

    #[test]
    fn a_single_prompt_cannot_be_split_however_often_it_occurs() {
        let answers: Vec<String> = (0..40).map(|i| i.to_string()).collect();
        let items: Vec<(&str, &str)> = answers.iter().map(|answer| ("Say a number.", answer.as_str())).collect();
        for items in [&items[..], &items[..1]] {
            let message = split(items, &[]).unwrap_err().to_string();
            assert!(message.contains("train.jsonl: a split needs two different prompts"), "{message}");
            assert!(message.ends_with("with --validation"), "{message}");
        }
    }

    #[test]
    fn validation_items_that_are_all_training_items_are_refused() {
        let train = [("a", "1"), ("b", "2"), ("c", "3")];
        for validation in [&train[..], &[("C ", "3"), ("B", " 2"), ("a", "1")], &train[..1]] {
            let message = split(&train, validation).unwrap_err().to_string();
            assert!(message.contains("validation.jsonl: all") && message.contains("train.jsonl;"), "{message}");
        }
        let (_, validation) = split(&train, &[("a", "1"), ("a", "other"), ("d", "1")]).unwrap();
        assert_eq!(validation, ["1", "other", "1"], "some repeated items only give a warning");
    }

    #[test]
    fn validation_items_that_are_training_items_in_another_form_are_counted() {
        let of = |messages: Vec<ChatMessage>| messages.into();
        let (ask, say) = (ChatMessage::user("What is red and round?"), ChatMessage::assistant("An apple, I think."));
        let (other, no) = (ChatMessage::user("What is blue and wide?"), ChatMessage::assistant("The sea, I think."));
        let train = [of(vec![ask.clone(), say.clone()]), of(vec![other.clone(), no.clone()])];
        let count = |validation: Conversation| repeated_in_another_form(|| train.iter(), &[validation]);
        for messages in [
            vec![ChatMessage::system("You are a robot."), ask.clone(), say.clone()],
            vec![ChatMessage::user("Hello! What is red and round?"), say.clone()],
            vec![ChatMessage::user("Hello!"), ChatMessage::assistant("Hi, what can I do?"), ask.clone(), say.clone()],
            vec![ChatMessage::user("Read: what is red and round? An apple, I think. What is blue"), no.clone()],
        ] {
            assert_eq!(count(of(messages.clone())), 1, "{messages:?}");
        }
        assert_eq!(count(of(vec![ChatMessage::user("What is red and wide?"), say.clone()])), 0);
        assert_eq!(count(train[0].clone()), 0, "a known prompt is reported by itself");

        let ranking = |ask: &str, answers: [&str; 2]| {
            let answers = answers.map(str::to_owned).to_vec();
            llm_data::Ranking::strict(String::new(), vec![ChatMessage::user(ask)], answers, &[0, 1])
        };
        let train = [ranking("What is red and round?", ["An apple.", "A brick, maybe."])];
        let validation = [
            ranking("Hello! What is red and round?", ["An apple.", "A cherry."]),
            ranking("Hello! What is red and round?", ["A cherry.", "A beet."]),
            ranking("Tell me: what is red and round?", ["A beet.", "A brick, maybe."]),
        ];
        assert_eq!(repeated_in_another_form(|| train.iter(), &validation), 2);
    }

    #[test]
    fn several_files_are_split_together_and_repeated_by_their_weights() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, prompts: std::ops::Range<usize>| {
            let row = |i: usize| {
                Conversation::from(vec![
                    ChatMessage::user(format!("ask {i}")),
                    ChatMessage::assistant(format!("{name} {i}")),
                ])
            };
            let path = dir.path().join(name);
            write_jsonl(&path, &prompts.map(row).collect::<Vec<_>>()).unwrap();
            path
        };
        // The files have 20 prompts in common.
        let data = [write("a", 0..40), write("b", 20..60)];
        let run = |weights: &[f64]| {
            let options = DataOptions { weights: weights.to_vec(), ..DataOptions::default() };
            let source = Source {
                data: &data,
                validation: None,
                validation_share: 0.25,
                seed: 3,
                max_length: 9,
                options: &options,
            };
            train_and_validation(&source, read, encode)
        };
        let (once, validation) = run(&[]).unwrap();
        let prompt = |answer: &String| answer[2..].to_owned();
        assert!(once.iter().all(|a| validation.iter().all(|b| prompt(a) != prompt(b))), "a prompt is on one side");
        assert_eq!(once.len() + validation.len(), 80);
        let count = |items: &[String], file: char| items.iter().filter(|item| item.starts_with(file)).count();
        let (weighted, same) = run(&[2.5, 0.5]).unwrap();
        assert_eq!(same, validation, "weights do not change the split");
        let (a, b) = (count(&once, 'a') as f64, count(&once, 'b') as f64);
        assert_eq!(count(&weighted, 'a'), 2 * a as usize + (a / 2.).round() as usize);
        assert_eq!(count(&weighted, 'b'), (b / 2.).round() as usize);
        assert_eq!(run(&[2.5, 0.5]).unwrap().0, weighted);
        let error = run(&[1.]).unwrap_err().to_string();
        assert!(error.contains("data.weights has 1 numbers for 2 files of --data"), "{error}");
    }

    #[test]
    fn long_items_are_left_out_before_the_split() {
        let long = "a long answer";
        let (train, validation) = split(&[("a", "1"), ("b", long), ("c", "3")], &[]).unwrap();
        assert_eq!((train.len(), validation.len()), (1, 1));
        let message = split(&[("a", long), ("b", long)], &[]).unwrap_err().to_string();
        assert!(message.contains("all 2 records have more than 9 tokens; raise max_length"), "{message}");
    }
}

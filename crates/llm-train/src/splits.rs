//! Training and validation splits of a stage: two files, or one file that is split by prompt.

use std::collections::HashSet;
use std::path::Path;

use llm_data::{Contamination, Duplicates, Keyed, SplitKey, Warnings, split_by_prompt};
use rayon::prelude::*;

use crate::{Error, Result};

/// The data files of a stage and how to split them.
#[derive(Debug)]
pub(crate) struct Source<'a> {
    /// Training items.
    pub data: &'a Path,
    /// Validation items; `None`: a share of the prompts of `data`.
    pub validation: Option<&'a Path>,
    /// That share, above 0 and below 1.
    pub validation_share: f64,
    /// Seed for the choice of these prompts.
    pub seed: u64,
    /// Longer items are left out, in tokens.
    pub max_length: usize,
}

/// Reads and encodes the items of a stage: (training, validation), in file order. It is an error if all validation items are also
/// training items. For `read` and `encode` see [`read_items`] and [`encode_all`].
pub(crate) fn train_and_validation<T: Keyed + Sync, E: Send>(
    source: &Source,
    read: impl Fn(&Path) -> Result<(Vec<T>, Warnings)>,
    encode: impl Fn(&T) -> Result<Option<E>> + Sync,
) -> Result<(Vec<E>, Vec<E>)> {
    let encode_all =
        |path: &Path, items: &[T]| -> Result<Vec<(SplitKey, E)>> {
            encode_all(path, items, source.max_length, |item| {
                Ok(encode(item)?.map(|encoded| (item.keys().prompt, encoded)))
            })
        };
    let items = read_items(source.data, &read)?;
    let (train, validation) = match source.validation {
        Some(path) => {
            let validation_items = read_items(path, &read)?;
            check_overlap((source.data, &items), (path, &validation_items))?;
            (encode_all(source.data, &items)?, encode_all(path, &validation_items)?)
        }
        None => {
            let items = encode_all(source.data, &items)?;
            let split = split_by_prompt(items, |(prompt, _)| *prompt, source.validation_share, source.seed);
            split.map_err(|error| match error {
                llm_data::Error::OnePrompt { .. } => {
                    Error::BadRequest(format!("{}: {error} with --validation", source.data.display()))
                }
                error => error.into(),
            })?
        }
    };
    let encoded = |items: Vec<(SplitKey, E)>| items.into_iter().map(|(_, item)| item).collect();
    Ok((encoded(train), encoded(validation)))
}

/// Reads the items of a file and logs the reader's warnings.
pub(crate) fn read_items<T>(path: &Path, read: impl Fn(&Path) -> Result<(Vec<T>, Warnings)>) -> Result<Vec<T>> {
    let (items, warnings) = read(path)?;
    for line in warnings.lines() {
        tracing::warn!("{}: {line}", path.display());
    }
    Ok(items)
}

/// Encodes items in parallel and keeps their order. `encode` returns `None` for an item of more than `max_length` tokens; their
/// number is logged. It is an error if no item is left.
pub(crate) fn encode_all<T: Sync, E: Send>(
    path: &Path,
    items: &[T],
    max_length: usize,
    encode: impl Fn(&T) -> Result<Option<E>> + Sync,
) -> Result<Vec<E>> {
    let encoded: Vec<Option<E>> = items.par_iter().map(&encode).collect::<Result<_>>()?;
    let fitting: Vec<E> = encoded.into_iter().flatten().collect();
    warn_about_long_items(path, items.len(), fitting.len(), max_length)?;
    Ok(fitting)
}

fn warn_about_long_items(path: &Path, all: usize, fitting: usize, max_length: usize) -> Result<()> {
    let path = path.display();
    if fitting == 0 {
        let message = format!("{path}: all {all} records have more than {max_length} tokens; raise max_length");
        return Err(Error::TooLong(message));
    }
    if fitting < all {
        let left_out = all - fitting;
        tracing::warn!("{path}: left out {left_out} of {all} records with more than {max_length} tokens");
    }
    Ok(())
}

/// Returns an error if all validation items are training items; logs how many repeat a training prompt.
fn check_overlap<T: Keyed>((data, train): (&Path, &[T]), (path, validation): (&Path, &[T])) -> Result<()> {
    let duplicates = Duplicates::across(train.iter().map(Keyed::keys), validation.iter().map(Keyed::keys));
    let (data, path, all) = (data.display(), path.display(), validation.len());
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
fn repeated_in_another_form<T: Keyed>(train: &[T], validation: &[T]) -> usize {
    let prompts: HashSet<SplitKey> = train.iter().map(|item| item.keys().prompt).collect();
    let new = validation.iter().filter(|item| !prompts.contains(&item.keys().prompt));
    let texts: Vec<Vec<String>> = new.map(Keyed::texts).collect();
    let train: Vec<String> = train.iter().flat_map(Keyed::texts).collect();
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
    use llm_data::{Conversation, Message, read_conversations, write_jsonl};

    use super::*;

    /// Splits (prompt, answer) items and returns the answers of both splits. A non-empty `validation` is a second file.
    fn split(train: &[(&str, &str)], validation: &[(&str, &str)]) -> Result<(Vec<String>, Vec<String>)> {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, items: &[(&str, &str)]| {
            let conversation = |(prompt, answer): &(&str, &str)| Conversation {
                messages: vec![Message::user(*prompt), Message::assistant(*answer)],
            };
            let path = dir.path().join(name);
            write_jsonl(&path, &items.iter().map(conversation).collect::<Vec<_>>()).unwrap();
            path
        };
        let (data, path) = (write("train.jsonl", train), write("validation.jsonl", validation));
        let validation = (!validation.is_empty()).then_some(path.as_path());
        let source = Source { data: &data, validation, validation_share: 0.05, seed: 3, max_length: 9 };
        let read = |path: &Path| {
            let read = read_conversations(path)?;
            Ok((read.conversations, read.warnings))
        };
        train_and_validation(&source, read, |conversation: &Conversation| {
            let answer = conversation.messages[1].content.clone();
            Ok((answer.len() <= 9).then_some(answer))
        })
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
        let of = |messages: Vec<Message>| Conversation { messages };
        let (ask, say) = (Message::user("What is red and round?"), Message::assistant("An apple, I think."));
        let (other, no) = (Message::user("What is blue and wide?"), Message::assistant("The sea, I think."));
        let train = [of(vec![ask.clone(), say.clone()]), of(vec![other.clone(), no.clone()])];
        let count = |validation: Conversation| repeated_in_another_form(&train, &[validation]);
        for messages in [
            vec![Message::system("You are a robot."), ask.clone(), say.clone()],
            vec![Message::user("Hello! What is red and round?"), say.clone()],
            vec![Message::user("Hello!"), Message::assistant("Hi, what can I do?"), ask.clone(), say.clone()],
            vec![Message::user("Read: what is red and round? An apple, I think. What is blue"), no.clone()],
        ] {
            assert_eq!(count(of(messages.clone())), 1, "{messages:?}");
        }
        assert_eq!(count(of(vec![Message::user("What is red and wide?"), say.clone()])), 0);
        assert_eq!(count(train[0].clone()), 0, "a known prompt is reported by itself");

        let ranking = |ask: &str, answers: [&str; 2]| {
            let answers = answers.map(str::to_owned).to_vec();
            llm_data::Ranking::strict(String::new(), vec![Message::user(ask)], answers, &[0, 1])
        };
        let train = [ranking("What is red and round?", ["An apple.", "A brick, maybe."])];
        let validation = [
            ranking("Hello! What is red and round?", ["An apple.", "A cherry."]),
            ranking("Hello! What is red and round?", ["A cherry.", "A beet."]),
            ranking("Tell me: what is red and round?", ["A beet.", "A brick, maybe."]),
        ];
        assert_eq!(repeated_in_another_form(&train, &validation), 2);
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

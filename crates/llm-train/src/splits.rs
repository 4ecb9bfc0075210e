//! The training and the held-out items of a stage: two files, or one file that is split by prompt.

use std::path::Path;

use llm_data::{Duplicates, Keyed, SplitKey, Warnings, split_by_prompt};
use rayon::prelude::*;

use crate::{Error, Result};

/// Where the items of a stage are, and how they are split.
#[derive(Debug)]
pub(crate) struct Source<'a> {
    /// The items to learn from.
    pub data: &'a Path,
    /// The items to test on; none: a share of the prompts of `data`.
    pub held_out: Option<&'a Path>,
    /// That share.
    pub held_out_share: f64,
    /// Seed of the choice of these prompts.
    pub seed: u64,
    /// Tokens of the longest item that `encode` takes.
    pub max_length: usize,
}

/// Reads the items of a stage and encodes them: (training, held out), in the order of the files. A held-out file all of
/// whose items are training items is an error. For `read` and `encode` see [`read_items`] and [`encode_all`].
pub(crate) fn train_and_held_out<T: Keyed + Sync, E: Send>(
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
    let (train, held_out) = match source.held_out {
        Some(path) => {
            let tested = read_items(path, &read)?;
            check_overlap((source.data, &items), (path, &tested))?;
            (encode_all(source.data, &items)?, encode_all(path, &tested)?)
        }
        None => {
            let items = encode_all(source.data, &items)?;
            let split = split_by_prompt(items, |(prompt, _)| *prompt, source.held_out_share, source.seed);
            split.map_err(|error| match error {
                llm_data::Error::OnePrompt { .. } => {
                    Error::Input(format!("{}: {error} by --held-out", source.data.display()))
                }
                error => error.into(),
            })?
        }
    };
    let encoded = |items: Vec<(SplitKey, E)>| items.into_iter().map(|(_, item)| item).collect();
    Ok((encoded(train), encoded(held_out)))
}

/// Reads the items of a file and says what is odd about them.
pub(crate) fn read_items<T>(path: &Path, read: impl Fn(&Path) -> Result<(Vec<T>, Warnings)>) -> Result<Vec<T>> {
    let (items, warnings) = read(path)?;
    for line in warnings.lines() {
        tracing::warn!("{}: {line}", path.display());
    }
    Ok(items)
}

/// Encodes items on all threads, in their order. `encode` returns none for an item of more than `max_length` tokens; says
/// how many these are, and is an error if none is left.
pub(crate) fn encode_all<T: Sync, E: Send>(
    path: &Path,
    items: &[T],
    max_length: usize,
    encode: impl Fn(&T) -> Result<Option<E>> + Sync,
) -> Result<Vec<E>> {
    let encoded: Vec<Option<E>> = items.par_iter().map(&encode).collect::<Result<_>>()?;
    let fitting: Vec<E> = encoded.into_iter().flatten().collect();
    say_what_is_too_long(path, items.len(), fitting.len(), max_length)?;
    Ok(fitting)
}

fn say_what_is_too_long(path: &Path, all: usize, fitting: usize, max_length: usize) -> Result<()> {
    let path = path.display();
    if fitting == 0 {
        let message = format!("{path}: none of its {all} records fits into {max_length} tokens; raise max_length");
        return Err(Error::Input(message));
    }
    if fitting < all {
        let left_out = all - fitting;
        tracing::warn!("{path}: {left_out} of {all} records are longer than {max_length} tokens and left out");
    }
    Ok(())
}

/// Refuses held-out items that are all training items, and says how many repeat a prompt of these.
fn check_overlap<T: Keyed>((data, train): (&Path, &[T]), (path, held_out): (&Path, &[T])) -> Result<()> {
    let duplicates = Duplicates::across(train.iter().map(Keyed::keys), held_out.iter().map(Keyed::keys));
    let (data, path, all) = (data.display(), path.display(), held_out.len());
    if duplicates.exact == all {
        return Err(Error::Input(format!(
            "{path}: all of its {all} records are in {data} too, so that nothing is held out; give other data, or leave \
             out --held-out for a split by prompt"
        )));
    }
    if duplicates.total() > 0 {
        tracing::warn!(
            "{path}: {} of {all} records repeat a prompt of {data}, {} of them with the same answer; the held-out figures \
             are partly of training data",
            duplicates.total(),
            duplicates.exact
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use llm_data::{Conversation, Message, read_conversations, write_jsonl};

    use super::*;

    /// The answers on both sides of a split of such prompts and answers; the held-out ones in a file of their own if
    /// there are any.
    fn split(train: &[(&str, &str)], held_out: &[(&str, &str)]) -> Result<(Vec<String>, Vec<String>)> {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, items: &[(&str, &str)]| {
            let of = |(prompt, answer): &(&str, &str)| Conversation {
                messages: vec![Message::user(*prompt), Message::assistant(*answer)],
            };
            let path = dir.path().join(name);
            write_jsonl(&path, &items.iter().map(of).collect::<Vec<_>>()).unwrap();
            path
        };
        let (data, tested) = (write("train.jsonl", train), write("held_out.jsonl", held_out));
        let held_out = (!held_out.is_empty()).then_some(tested.as_path());
        let source = Source { data: &data, held_out, held_out_share: 0.05, seed: 3, max_length: 9 };
        let read = |path: &Path| {
            let read = read_conversations(path)?;
            Ok((read.conversations, read.warnings))
        };
        train_and_held_out(&source, read, |conversation: &Conversation| {
            let answer = conversation.messages[1].content.clone();
            Ok((answer.len() <= 9).then_some(answer))
        })
    }

    #[test]
    fn one_file_is_split_by_prompt_and_not_at_its_end() {
        // Sorted by prompt, each twice in another spelling: the end of the file holds one kind alone.
        let prompts: Vec<String> = (0..100).flat_map(|i| [format!("Ask {i:02}"), format!("ask  {i:02} ")]).collect();
        let items: Vec<(&str, &str)> = prompts.iter().map(|prompt| (prompt.as_str(), prompt.trim())).collect();
        let (train, held_out) = split(&items, &[]).unwrap();
        assert_eq!((train.len(), held_out.len()), (190, 10));
        let number = |answer: &String| answer[answer.len() - 2..].to_owned();
        assert!(held_out.iter().all(|a| !train.iter().any(|b| number(a) == number(b))));
        assert!(held_out.iter().any(|answer| number(answer).as_str() < "90"), "{held_out:?}");
        assert_eq!(split(&items, &[]).unwrap().1, held_out);
    }

    #[test]
    fn a_single_prompt_cannot_be_split_however_often_it_occurs() {
        let answers: Vec<String> = (0..40).map(|i| i.to_string()).collect();
        let items: Vec<(&str, &str)> = answers.iter().map(|answer| ("Say a number.", answer.as_str())).collect();
        for items in [&items[..], &items[..1]] {
            let message = split(items, &[]).unwrap_err().to_string();
            assert!(message.contains("train.jsonl: a split needs two different prompts"), "{message}");
            assert!(message.ends_with("by --held-out"), "{message}");
        }
    }

    #[test]
    fn held_out_items_that_are_all_training_items_are_refused() {
        let train = [("a", "1"), ("b", "2"), ("c", "3")];
        for held_out in [&train[..], &[("C ", "3"), ("B", " 2"), ("a", "1")], &train[..1]] {
            let message = split(&train, held_out).unwrap_err().to_string();
            assert!(message.contains("held_out.jsonl: all of its") && message.contains("train.jsonl too"), "{message}");
        }
        let (_, held_out) = split(&train, &[("a", "1"), ("a", "other"), ("d", "1")]).unwrap();
        assert_eq!(held_out, ["1", "other", "1"], "some repetitions are only warned of");
    }

    #[test]
    fn what_is_too_long_is_left_out_before_the_split() {
        let long = "a long answer";
        let (train, held_out) = split(&[("a", "1"), ("b", long), ("c", "3")], &[]).unwrap();
        assert_eq!((train.len(), held_out.len()), (1, 1));
        let message = split(&[("a", long), ("b", long)], &[]).unwrap_err().to_string();
        assert!(message.contains("none of its 2 records fits into 9 tokens; raise max_length"), "{message}");
    }
}

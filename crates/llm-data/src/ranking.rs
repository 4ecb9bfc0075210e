//! Rankings: answers to a prompt in the order of preference of a person or a simulated annotator.

mod forms;
mod labelled;

use std::collections::BTreeMap;
use std::path::Path;

use llm_tokenizer::ChatMessage;
use serde::{Serialize, Serializer};
use serde_json::Value;

use crate::conversation::{nothing_in, prompt_key, spoken};
use crate::rows::{ReadOptions, RowError, for_each_row};
use crate::split::{Duplicates, ItemKeys, Keyed, SplitKey};
use crate::{Result, Warnings};

pub use labelled::{LabelledAnswer, LabelledAnswers, read_labelled_answers};

/// Answers to one prompt, ranked by preference (`{"id", "prompt", "answers", "order"}` in JSONL).
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Ranking {
    /// A name for the user; splits use the text of the prompt instead.
    pub id: String,
    /// The messages before the answer.
    pub prompt: Vec<ChatMessage>,
    /// The answers, in any order.
    pub answers: Vec<String>,
    /// Groups of indices of `answers`, best group first. The answers in a group are tied. In JSONL a group of one is written as
    /// its index.
    #[serde(serialize_with = "indices_or_groups")]
    pub order: Vec<Vec<usize>>,
    /// Orders by one quality each, such as accuracy or safety, in the form of `order`, by the name of the quality.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", serialize_with = "orders_by_head")]
    pub heads: BTreeMap<String, Vec<Vec<usize>>>,
    /// The margin of the Bradley-Terry loss: the desired difference between the scores of a better and a worse answer (TRL's
    /// `margin`).
    #[serde(skip_serializing_if = "is_zero")]
    pub margin: f64,
}

impl Ranking {
    /// A ranking without ties: `order` contains the indices of `answers`, best first.
    pub fn strict(id: String, prompt: Vec<ChatMessage>, answers: Vec<String>, order: &[usize]) -> Self {
        let order = order.iter().map(|&index| vec![index]).collect();
        Self { id, prompt, answers, order, heads: BTreeMap::new(), margin: 0. }
    }

    /// Leaves out the other answers and renumbers the order.
    fn retain_answers(&mut self, keep: impl Fn(&str) -> bool) {
        let kept: Vec<usize> = (0..self.answers.len()).filter(|&index| keep(&self.answers[index])).collect();
        let renumbered = |index: &usize| kept.binary_search(index).ok();
        for order in std::iter::once(&mut self.order).chain(self.heads.values_mut()) {
            *order = order.iter().map(|group| group.iter().filter_map(renumbered).collect()).collect();
            order.retain(|group| !group.is_empty());
        }
        self.answers = kept.iter().map(|&index| std::mem::take(&mut self.answers[index])).collect();
    }

    /// All pairs (better, worse) of indices of `answers`: `k · (k - 1) / 2`, without pairs that are tied or have equal texts.
    pub fn pairs(&self) -> Vec<(usize, usize)> {
        self.pairs_of(&self.order)
    }

    /// [`Self::pairs`] of another order, such as that of a head.
    pub fn pairs_of(&self, order: &[Vec<usize>]) -> Vec<(usize, usize)> {
        let mut pairs = Vec::new();
        for (at, group) in order.iter().enumerate() {
            for &better in group {
                let worse = order[at + 1..].iter().flatten().copied();
                let different = worse.filter(|&worse| self.answers[worse] != self.answers[better]);
                pairs.extend(different.map(|worse| (better, worse)));
            }
        }
        pairs
    }

    /// All pairs of indices of `answers` that are tied in this order, without pairs of equal texts.
    pub fn ties_of(&self, order: &[Vec<usize>]) -> Vec<(usize, usize)> {
        let mut ties = Vec::new();
        for group in order {
            for (at, &first) in group.iter().enumerate() {
                let others = group[at + 1..].iter().copied();
                let different = others.filter(|&other| self.answers[other] != self.answers[first]);
                ties.extend(different.map(|other| (first, other)));
            }
        }
        ties
    }

    /// Whether a pair is ranked, or compared in a way that the options keep.
    fn compares(&self, options: &ReadOptions) -> bool {
        let of = |order| !self.pairs_of(order).is_empty() || options.keep_ties && !self.ties_of(order).is_empty();
        of(&self.order) || options.keep_heads && self.heads.values().any(|order| of(order))
    }
}

impl Keyed for Ranking {
    /// The prompt key hashes the messages before the answers.
    fn keys(&self) -> ItemKeys {
        let orders = std::iter::once(&self.order).chain(self.heads.values());
        let ranked = orders.flatten().flatten().map(|&index| self.answers[index].as_str());
        let prompt: Vec<_> = self.prompt.iter().map(ChatMessage::text).collect();
        let words = prompt.iter().map(AsRef::as_ref);
        ItemKeys { prompt: prompt_key(&self.prompt), whole: SplitKey::of(words.chain(ranked)) }
    }

    fn texts(&self) -> Vec<String> {
        let prompt = spoken(&self.prompt);
        self.answers.iter().map(|answer| format!("{prompt}\n{answer}")).collect()
    }
}

fn indices_or_groups<S: Serializer>(order: &[Vec<usize>], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(order.iter().map(|group| index_or_group(group)))
}

fn index_or_group(group: &[usize]) -> Value {
    match group {
        [index] => Value::from(*index),
        _ => Value::from(group),
    }
}

fn orders_by_head<S: Serializer>(heads: &BTreeMap<String, Vec<Vec<usize>>>, serializer: S) -> Result<S::Ok, S::Error> {
    let order = |order: &Vec<Vec<usize>>| order.iter().map(|group| index_or_group(group)).collect::<Vec<_>>();
    serializer.collect_map(heads.iter().map(|(name, groups)| (name, order(groups))))
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(margin: &f64) -> bool {
    *margin == 0.
}

/// The rankings of a file.
#[derive(Debug, Clone, PartialEq)]
pub struct Rankings {
    /// The rankings with at least one pair (see [`Ranking::pairs`]).
    pub rankings: Vec<Ranking>,
    /// Problems that are not errors, and the number of records left out.
    pub warnings: Warnings,
}

/// Reads rankings from a file or a folder of files: JSONL, a JSON array, CSV or Parquet, also compressed as `.gz` or `.zst`. Supported
/// forms of a row:
///
/// - `{"prompt", "answers", "order"}`, the format of this crate. `order` contains the indices of the answers, best first, with a
///   list of indices for tied answers. Instead of `order`, `ranks` may contain the rank of each answer: 1 for the best, equal
///   ranks for ties. Answers that are not in `order`, or have the rank null, are left out;
/// - `{"prompt", "chosen", "rejected"}` with strings or lists of messages (TRL);
/// - `{"chosen", "rejected"}` as dialogues `"\n\nHuman: … \n\nAssistant: …"` (Anthropic's HH), or as lists of messages
///   that differ in their last message.
///
/// Each record may have a `margin` (TRL), and rankings by several qualities: `heads`, an object with an `order` for each, or `grades`,
/// an object with the grade of each answer (higher is better, null: none; of `chosen`, then `rejected`) for each. With them `order` and
/// `ranks` may be missing.
///
/// An empty answer is left out: only its end token would be scored.
pub fn read_rankings(path: impl AsRef<Path>, options: &ReadOptions) -> Result<Rankings> {
    let path = path.as_ref();
    let (mut rankings, mut warnings) = (Vec::new(), Warnings::default());
    for_each_row(path, options, &mut warnings, &mut |value, warnings| {
        rankings.extend(usable(value, options, warnings)?);
        Ok(())
    })?;
    if rankings.is_empty() {
        return Err(nothing_in(path, "contains no rankings of different answers", &warnings));
    }
    warnings.duplicates = Duplicates::within(rankings.iter().map(Keyed::keys));
    Ok(Rankings { rankings, warnings })
}

/// The ranking of a row without its empty answers, if it has a pair, or what the options keep; otherwise the reason is counted.
fn usable(value: &Value, options: &ReadOptions, warnings: &mut Warnings) -> Result<Option<Ranking>, RowError> {
    let Some(mut ranking) = forms::parse(value, &mut warnings.ignored_keys)? else {
        warnings.different_prompts += 1;
        return Ok(None);
    };
    let all = ranking.answers.len();
    ranking.retain_answers(|answer| !answer.trim().is_empty());
    warnings.empty_ranked += usize::from(ranking.answers.len() < all);
    let equal = ranking.answers.iter().all(|answer| Some(answer) == ranking.answers.first());
    match (ranking.answers.len(), equal) {
        (0 | 1, _) => {} // counted with the empty answers
        (_, true) => warnings.equal_answers += 1,
        _ if !ranking.compares(options) => warnings.ties += 1,
        _ => return Ok(Some(ranking)),
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(content: &str) -> Result<Rankings> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data.jsonl");
        std::fs::write(&path, content).unwrap();
        read_rankings(&path, &ReadOptions { strict: true, keep_heads: true, ..ReadOptions::default() })
    }

    #[test]
    fn pairs_exclude_ties_and_equal_answers() {
        let answers = ["a", "b", "c", "d"].map(str::to_owned).to_vec();
        let strict = Ranking::strict(String::new(), vec![], answers, &[2, 0, 3, 1]);
        assert_eq!(strict.pairs(), [(2, 0), (2, 3), (2, 1), (0, 3), (0, 1), (3, 1)]);
        let tied = Ranking { order: vec![vec![2], vec![0, 3], vec![1]], ..strict.clone() };
        assert_eq!(tied.pairs(), [(2, 0), (2, 3), (2, 1), (0, 1), (3, 1)]);
        let same = Ranking { answers: ["a", "b", "a", "d"].map(str::to_owned).to_vec(), ..strict };
        assert_eq!(same.pairs(), [(2, 3), (2, 1), (0, 3), (0, 1), (3, 1)]);
    }

    #[test]
    fn every_format_gives_the_same_ranking() {
        let prompt = vec![ChatMessage::user("q"), ChatMessage::assistant("a"), ChatMessage::user("r")];
        for line in [
            r#"{"id": "", "prompt": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}, {"role": "user", "content": "r"}], "answers": ["good", "bad"], "order": [0, 1]}"#,
            r#"{"chosen": "\n\nHuman: q\n\nAssistant: a\n\nHuman: r\n\nAssistant: good", "rejected": "\n\nHuman: q\n\nAssistant: a\n\nHuman: r\n\nAssistant: bad"}"#,
            r#"{"prompt": "\n\nHuman: q\n\nAssistant: a\n\nHuman: r", "chosen": "good", "rejected": "bad"}"#,
            r#"{"prompt": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}, {"role": "user", "content": [{"type": "text", "text": "r"}]}], "chosen": [{"role": "assistant", "content": "good"}], "rejected": [{"role": "assistant", "content": "bad"}]}"#,
            // The prompt is given, and repeated in both conversations.
            r#"{"prompt": [{"role": "user", "content": "q"}], "chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}, {"role": "user", "content": "r"}, {"role": "assistant", "content": "good"}], "rejected": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}, {"role": "user", "content": "r"}, {"role": "assistant", "content": "bad"}]}"#,
            r#"{"prompt": "q", "chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}, {"role": "user", "content": "r"}, {"role": "assistant", "content": "good"}], "rejected": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}, {"role": "user", "content": "r"}, {"role": "assistant", "content": "bad"}]}"#,
        ] {
            let answers = vec!["good".to_owned(), "bad".to_owned()];
            let expected = Ranking::strict(String::new(), prompt.clone(), answers, &[0, 1]);
            assert_eq!(read(line).unwrap().rankings, [expected], "{line}");
        }
    }

    #[test]
    fn ties_partial_orders_ids_and_margins_are_read_and_written() {
        let three = |rest: &str| {
            let line = format!(r#"{{"id": 7, "prompt": "q", "answers": ["a", "b", "c"], {rest}}}"#);
            read(&line).unwrap().rankings[0].clone()
        };
        for (rest, order) in [
            (r#""order": [[0, 1], [2]]"#, vec![vec![0, 1], vec![2]]),
            (r#""order": [[0, 1], 2], "ranks": null"#, vec![vec![0, 1], vec![2]]),
            (r#""ranks": [1, 1, 2]"#, vec![vec![0, 1], vec![2]]),
            (r#""ranks": [3, 1.5, 2]"#, vec![vec![1], vec![2], vec![0]]),
        ] {
            let ranking = three(rest);
            assert_eq!((ranking.order, ranking.id.as_str(), ranking.answers.len()), (order, "7", 3), "{rest}");
        }
        for rest in [r#""order": [2, 0]"#, r#""ranks": [5, null, 1]"#] {
            let ranking = three(rest);
            assert_eq!(
                (ranking.answers, ranking.order),
                (vec!["a".into(), "c".into()], vec![vec![1], vec![0]]),
                "{rest}"
            );
        }
        let ranking = three(r#""order": [[0, 1], 2], "margin": 0.5"#);
        let written = serde_json::to_string(&ranking).unwrap();
        assert!(written.ends_with(r#""order":[[0,1],2],"margin":0.5}"#), "{written}");
        assert_eq!(read(&written).unwrap().rankings, [ranking]);
        let pair = read(r#"{"prompt": "q", "chosen": "a", "rejected": "b", "margin": 2}"#).unwrap();
        assert_eq!(pair.rankings[0].margin, 2.);
    }

    #[test]
    fn orders_by_quality_are_read_renumbered_and_written() {
        let one = |rest: &str| read(&format!(r#"{{"prompt": "q", {rest}}}"#)).unwrap().rankings[0].clone();
        let heads = |ranking: &Ranking| ranking.heads.clone().into_iter().collect::<Vec<_>>();
        let graded = one(r#""answers": ["a", "b", "c"], "grades": {"safe": [2, 5, 2], "true": [null, 1, 0.5]}"#);
        let expected = [("safe".to_owned(), vec![vec![1], vec![0, 2]]), ("true".to_owned(), vec![vec![1], vec![2]])];
        assert_eq!((graded.order.len(), heads(&graded)), (0, expected.to_vec()));
        assert_eq!((graded.pairs(), graded.ties_of(&expected[0].1)), (vec![], vec![(0, 2)]));
        assert_eq!(graded.pairs_of(&expected[0].1), [(1, 0), (1, 2)]);
        // The second answer is not ranked at all, the third is empty.
        let some = one(r#""answers": ["a", "b", " ", "c"], "order": [[0, 2]], "heads": {"safe": [3, 0, 2]}"#);
        assert_eq!(some.answers, ["a", "c"]);
        assert_eq!((&some.order, heads(&some)), (&vec![vec![0]], vec![("safe".to_owned(), vec![vec![1], vec![0]])]));
        let pair = one(r#""chosen": "a", "rejected": "b", "grades": {"safe": [1, 3]}"#);
        assert_eq!((pair.pairs(), heads(&pair)), (vec![(0, 1)], vec![("safe".to_owned(), vec![vec![1], vec![0]])]));
        for ranking in [graded, some, pair] {
            let written = serde_json::to_string(&ranking).unwrap();
            assert_eq!(read(&written).unwrap().rankings, [ranking], "{written}");
        }
        for (rest, part) in [
            (
                r#""grades": {"safe": [1]}"#,
                "\"grades.safe\" is [1]; it must contain a number, higher for better, or null",
            ),
            (r#""grades": [1, 2]"#, "\"grades\" is a list; it must be an object by quality"),
            (r#""heads": {"safe": [0, 0]}"#, "\"heads.safe\" is [0,0]; it must contain indices of the 2 answers"),
            (r#""heads": {"safe": [0, 1]}, "grades": {"safe": [1, 2]}"#, "\"safe\" is in \"heads\" and in \"grades\""),
            (r#""heads": {}"#, "\"order\" or \"ranks\" is missing"),
        ] {
            let message =
                read(&format!(r#"{{"prompt": "q", "answers": ["a", "b"], {rest}}}"#)).unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn rankings_of_ties_only_are_kept_on_request() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data.jsonl");
        let tied = r#"{"prompt": "q", "answers": ["a", "b"], "ranks": [1, 1]}"#;
        let same = r#"{"prompt": "q", "answers": ["a", "a"], "ranks": [1, 1]}"#;
        std::fs::write(&path, format!("{tied}\n{same}\n")).unwrap();
        let kept = read_rankings(&path, &ReadOptions { keep_ties: true, ..ReadOptions::default() }).unwrap();
        assert_eq!((kept.rankings.len(), kept.warnings.equal_answers, kept.warnings.ties), (1, 1, 0));
        assert!(read_rankings(&path, &ReadOptions::default()).is_err());
    }

    #[test]
    fn rankings_without_a_pair_are_counted_and_left_out() {
        let all = [
            r#"{"prompt": "q", "chosen": "a", "rejected": "a"}"#,
            r#"{"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: p\n\nAssistant: b"}"#,
            r#"{"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": 5}"#,
            r#"{"prompt": "q ", "chosen": "A", "rejected": "b"}"#,
            r#"{"prompt": "q", "chosen": "b", "rejected": ""}"#,
            r#"{"prompt": "q", "chosen": "b", "rejected": "c"}"#,
            r#"{"prompt": "q", "answers": ["a", "b"], "ranks": [1, 1]}"#,
        ];
        let read_all = read(&all.join("\n")).unwrap();
        let expected = Warnings {
            records: 7,
            duplicates: Duplicates { exact: 1, same_prompt: 1 },
            empty_ranked: 1,
            equal_answers: 1,
            different_prompts: 1,
            ties: 1,
            ignored_keys: ["score_chosen".to_owned()].into(),
            ..Warnings::default()
        };
        assert_eq!((read_all.rankings.len(), read_all.warnings), (3, expected));
        let three = r#"{"prompt": "q", "answers": ["a", " ", "b", "c"], "order": [3, [1, 0], 2]}"#;
        let without_empty = &read(three).unwrap().rankings[0];
        assert_eq!(
            (&without_empty.answers[..], &without_empty.order[..]),
            (&["a", "b", "c"].map(str::to_owned)[..], &[vec![2], vec![0], vec![1]][..])
        );
        let message = read(all[4]).unwrap_err().to_string();
        assert!(message.contains("1 of 1 records have an empty answer"), "{message}");
        let message = read(all[6]).unwrap_err().to_string();
        assert!(message.contains("1 of 1 records are left out: all of their answers are tied"), "{message}");
    }

    #[test]
    fn errors_name_the_line_and_the_expected_content() {
        for (content, part) in [
            (
                r#"{"prompt": "q", "choosen": "a", "rejected": "b"}"#,
                "use the keys \"prompt\", \"chosen\" and \"rejected\"",
            ),
            ("[1]", "a number is not a ranking"),
            (r#"{"chosen": "a", "rejected": "b"}"#, "\"prompt\" is missing"),
            (r#"{"prompt": [], "answers": ["a", "b"], "order": [0, 1]}"#, "\"prompt\" is empty"),
            (r#"{"answers": ["a", "b"], "order": [0, 1]}"#, "\"prompt\" is missing"),
            (
                r#"{"prompt": "q", "answers": ["a", "b"], "order": [0, 0]}"#,
                "indices of the 2 answers, best first, each at most once",
            ),
            (r#"{"prompt": "q", "answers": ["a", "b"], "order": [0, 2]}"#, "indices of the 2 answers"),
            (r#"{"prompt": "q", "answers": ["a", "b"], "order": "ab"}"#, "\"order\" is \"ab\""),
            (r#"{"prompt": "q", "answers": ["a", "b"], "order": [1]}"#, "fewer than two answers are ranked"),
            (r#"{"prompt": "q", "answers": ["a", "b"]}"#, "\"order\" or \"ranks\" is missing"),
            (r#"{"prompt": "q", "answers": ["a", "b"], "order": [0, 1], "ranks": [1, 2]}"#, "are both present"),
            (r#"{"prompt": "q", "answers": ["a", "b"], "ranks": [1]}"#, "for each of the 2 answers"),
            (r#"{"prompt": "q", "answers": ["a", 1], "order": [0, 1]}"#, "answer 1 is a number"),
            (r#"{"prompt": "q", "chosen": "a", "rejected": null}"#, "\"rejected\" is null"),
            (r#"{"prompt": 1, "chosen": "a", "rejected": "b"}"#, "\"prompt\" is a number"),
            (r#"{"prompt": "q", "chosen": "a", "rejected": "b", "margin": "big"}"#, "\"margin\" is a string"),
            (
                r#"{"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q"}"#,
                "must end with an assistant message",
            ),
        ] {
            let message = read(content).unwrap_err().to_string();
            assert!(message.contains(part) && message.contains("line 1"), "{message}");
        }
    }

    #[test]
    fn prompts_are_compared_by_text_and_not_by_id() {
        let line = |id: usize| {
            format!(r#"{{"id": "{id}", "prompt": "Say  it.", "answers": ["a{id}", "b"], "order": [0, 1]}}"#)
        };
        let rankings = read(&(0..40).map(line).collect::<Vec<_>>().join("\n")).unwrap().rankings;
        let error = crate::split_by_prompt(rankings, |ranking| ranking.keys().prompt, 0.1, 1).unwrap_err();
        assert!(error.to_string().contains("all 40 items have the same one"), "{error}");
    }
}

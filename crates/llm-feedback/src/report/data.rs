//! The judgements of a database, sorted by what they are for.

use std::collections::BTreeMap;

use crate::Result;
use crate::store::{AnnotatorId, Item, Judgement, Kind, Ranks, Store, StoredJudgement};

/// An answer of a ranked item.
pub(super) struct Answer {
    pub id: String,
    /// In characters.
    pub length: usize,
    pub checkpoint: Option<String>,
}

/// A ranking. The answers are in the order of the item.
pub(super) struct Ranked {
    pub annotator: AnnotatorId,
    pub name: String,
    pub answers: Vec<Answer>,
    ranks: Ranks,
    shown: Vec<String>,
    gold: Option<Ranks>,
}

impl Ranked {
    fn new(row: &StoredJudgement, judgement: &Judgement, ranks: &Ranks, item: &Item) -> Self {
        let answer = |answer: &crate::store::NewAnswer| Answer {
            id: answer.id.clone(),
            length: answer.text.chars().count(),
            checkpoint: answer.checkpoint.clone(),
        };
        Self {
            annotator: row.annotator,
            name: row.annotator_name.clone(),
            answers: item.item.answers.iter().map(answer).collect(),
            ranks: ranks.clone(),
            shown: judgement.shown.clone(),
            gold: item.item.gold_order.clone(),
        }
    }

    /// Where the answer was shown, from 0.
    pub fn place(&self, answer: usize) -> Option<usize> {
        self.shown.iter().position(|id| *id == self.answers[answer].id)
    }

    /// The mean rank of each answer, such as 1.5, 1.5, 3 for two tied answers before a third one; none, if an answer has no rank.
    pub fn mean_ranks(&self) -> Option<Vec<f64>> {
        let ranks =
            self.answers.iter().map(|answer| self.ranks.get(&answer.id).copied()).collect::<Option<Vec<u32>>>()?;
        let count = |matches: &dyn Fn(u32) -> bool| ranks.iter().filter(|&&rank| matches(rank)).count() as f64;
        Some(
            ranks
                .iter()
                .map(|&own| count(&|rank| rank < own) + f64::midpoint(count(&|rank| rank == own), 1.))
                .collect(),
        )
    }

    /// The pairs of a gold item that are in the known order, and all its pairs with a known order. A pair that the annotator did not
    /// rank or tied is not in it.
    pub fn gold(&self) -> (usize, usize) {
        let gold = self.gold.as_ref().map(|gold| pairs(&self.answers, gold)).unwrap_or_default();
        let known: Vec<_> = gold.into_iter().filter(|(_, _, sign)| *sign != 0).collect();
        let own = signs(self);
        (known.iter().filter(|pair| own.contains(pair)).count(), known.len())
    }
}

/// Each pair of ranked answers: two indices, the lower one first, and 1 if the first one is better, 0 for a tie, -1 if it is worse.
pub(super) fn signs(ranked: &Ranked) -> Vec<(usize, usize, i8)> {
    pairs(&ranked.answers, &ranked.ranks)
}

fn pairs(answers: &[Answer], ranks: &Ranks) -> Vec<(usize, usize, i8)> {
    let ranks: Vec<(usize, u32)> =
        answers.iter().enumerate().filter_map(|(at, answer)| Some((at, *ranks.get(&answer.id)?))).collect();
    let mut pairs = Vec::new();
    for (at, (a, one)) in ranks.iter().enumerate() {
        // The better answer has the lower rank.
        pairs.extend(ranks[at + 1..].iter().map(|(b, other)| (*a, *b, other.cmp(one) as i8)));
    }
    pairs
}

/// What a report is made of.
pub(super) struct Data {
    pub items: usize,
    /// The rankings of each item that is no gold item, without repeats.
    pub ranked: Vec<Vec<Ranked>>,
    /// The rankings of gold items.
    pub gold: Vec<Ranked>,
    /// A ranking, and that of the same annotator when the item was shown again.
    pub repeats: Vec<(Ranked, Ranked)>,
    /// The visible time of each judgement in milliseconds.
    pub times: Vec<(AnnotatorId, i64)>,
    /// Judgements by annotator.
    pub counts: BTreeMap<AnnotatorId, usize>,
    pub excluded: BTreeMap<String, usize>,
}

impl Data {
    pub fn read(store: &Store) -> Result<Self> {
        let items: BTreeMap<String, Item> =
            store.items()?.into_iter().map(|item| (item.item.id.clone(), item)).collect();
        let (rows, history) = (store.current()?, store.history()?);
        let mut data = Self {
            items: items.len(),
            ranked: Vec::new(),
            gold: Vec::new(),
            repeats: Vec::new(),
            times: Vec::new(),
            counts: BTreeMap::new(),
            excluded: BTreeMap::new(),
        };
        let undone = history.iter().filter(|row| row.judgement.is_none()).count();
        let replaced = history.iter().filter(|row| row.judgement.is_some() && row.supersedes.is_some()).count();
        data.exclude("undone judgements", undone);
        data.exclude("judgements that the annotator replaced", replaced);
        let by_id: BTreeMap<&str, &StoredJudgement> = rows.iter().map(|row| (row.id.as_str(), row)).collect();
        let mut by_item: BTreeMap<&str, Vec<Ranked>> = BTreeMap::new();
        for row in &rows {
            let (Some(judgement), Some(item)) = (&row.judgement, items.get(&row.item)) else { continue };
            *data.counts.entry(row.annotator).or_default() += 1;
            match judgement.ms_visible {
                0 => data.exclude("judgements without a time: not in the times", 1),
                ms => data.times.push((row.annotator, ms)),
            }
            let reason = || judgement.reason.as_deref().unwrap_or("no reason").to_owned();
            let ranks = match &judgement.kind {
                Kind::Rank { ranks } => ranks,
                Kind::AllBad => {
                    data.exclude("all answers bad: no ranking", 1);
                    continue;
                }
                Kind::Skip => {
                    data.exclude(&format!("skipped: {}", reason()), 1);
                    continue;
                }
                Kind::Flag => {
                    data.exclude(&format!("flagged: {}", reason()), 1);
                    continue;
                }
            };
            let ranked = Ranked::new(row, judgement, ranks, item);
            if let Some(earlier) = &judgement.repeat_of {
                data.exclude("repeats: only in the self-agreement", 1);
                match by_id.get(earlier.as_str()).and_then(|row| Some((*row, row.judgement.as_ref()?))) {
                    Some((row, first @ Judgement { kind: Kind::Rank { ranks }, .. })) => {
                        data.repeats.push((Ranked::new(row, first, ranks, item), ranked));
                    }
                    _ => data.exclude("repeats of a judgement that is undone: not in the self-agreement", 1),
                }
            } else if item.item.gold_order.is_some() {
                data.exclude("gold items: only in the gold accuracy", 1);
                data.gold.push(ranked);
            } else {
                by_item.entry(&row.item).or_default().push(ranked);
            }
        }
        data.ranked = by_item.into_values().collect();
        Ok(data)
    }

    /// Counts what is left out.
    pub fn exclude(&mut self, reason: &str, count: usize) {
        if count > 0 {
            *self.excluded.entry(reason.to_owned()).or_default() += count;
        }
    }
}

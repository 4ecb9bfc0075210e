//! How good the judgements are: agreement, bias, speed, and the strengths of checkpoints.

mod agreement;
mod data;
mod share;
mod strength;
#[cfg(test)]
mod tests;
mod text;

use std::collections::BTreeMap;

use serde::Serialize;

use crate::Result;
use crate::store::{AnnotatorId, Store};

pub use agreement::{cohen_kappa, krippendorff_alpha};
pub use share::Share;
pub use strength::{Strength, Strengths, bradley_terry};

use data::{Data, Ranked, signs};

/// Settings of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReportOptions {
    /// A judgement in fewer milliseconds is too fast. Default 1500.
    pub too_fast_ms: i64,
    /// Bootstrap samples of the intervals of strengths. Default 1000.
    pub samples: usize,
    /// Seed of the bootstrap. Default 42.
    pub seed: u64,
}

impl Default for ReportOptions {
    fn default() -> Self {
        Self { too_fast_ms: 1500, samples: 1000, seed: 42 }
    }
}

/// What a database says about its annotators and checkpoints. All of it is about the current judgements, those that are neither undone nor
/// replaced.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Items, with gold items.
    pub items: usize,
    /// Items with at least one ranking.
    pub judged_items: usize,
    /// Current judgements of every kind.
    pub judgements: usize,
    /// The share of pairs of answers that two judges put in the same order (better, tied, worse), over the items with two judges or more.
    pub agreement: Option<Share>,
    /// Krippendorff's alpha for ordinal data: the units are the answers, the values their ranks (the mean rank for ties).
    pub krippendorff_alpha: Option<f64>,
    /// Cohen's kappa of each pair of judges, over pairs of answers.
    pub kappas: Vec<Kappa>,
    /// The share of pairs of answers that a judge put in the same order when an item was shown again.
    pub self_agreement: Option<Share>,
    /// The share of pairs of answers of gold items that were put in the known order.
    pub gold_accuracy: Option<Share>,
    /// The share of pairs in which the answer that was shown earlier won. Without bias 1/2.
    pub first_shown_wins: Option<Share>,
    /// The share of pairs in which the longer answer won, by characters.
    pub longer_wins: Option<Share>,
    /// The share of ranked pairs that are tied.
    pub ties: Option<Share>,
    /// The share of judgements that were faster than [`ReportOptions::too_fast_ms`].
    pub too_fast: Option<Share>,
    /// The annotators.
    pub annotators: Vec<AnnotatorReport>,
    /// The strengths of the checkpoints.
    pub strengths: Strengths,
    /// What is not in the numbers above, by reason.
    pub excluded: BTreeMap<String, usize>,
}

/// Cohen's kappa of two judges.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Kappa {
    /// The judges.
    pub judges: [String; 2],
    /// Pairs of answers that both judged.
    pub pairs: usize,
    /// Kappa; none if both always said the same.
    pub kappa: Option<f64>,
}

/// What is known of one annotator.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AnnotatorReport {
    /// The name.
    pub name: String,
    /// Current judgements.
    pub judgements: usize,
    /// Median visible time in seconds.
    pub median_seconds: Option<f64>,
    /// As in [`Report`].
    pub gold_accuracy: Option<Share>,
    /// As in [`Report`].
    pub self_agreement: Option<Share>,
    /// As in [`Report`].
    pub too_fast: Option<Share>,
}

/// The report of a database.
pub fn report(store: &Store, options: &ReportOptions) -> Result<Report> {
    let mut data = Data::read(store)?;
    let gold: Vec<(AnnotatorId, (usize, usize))> =
        data.gold.iter().map(|ranked| (ranked.annotator, ranked.gold())).collect();
    let repeats: Vec<(AnnotatorId, (usize, usize))> =
        data.repeats.iter().map(|(first, again)| (first.annotator, equal(first, again))).collect();
    let fast: Vec<(AnnotatorId, (usize, usize))> =
        data.times.iter().map(|&(annotator, ms)| (annotator, (usize::from(ms < options.too_fast_ms), 1))).collect();
    let all = |list: &[(AnnotatorId, (usize, usize))]| Share::of(&list.iter().map(|entry| entry.1).collect::<Vec<_>>());
    let annotators = store
        .annotators()?
        .into_iter()
        .map(|annotator| {
            let own = |list: &[(AnnotatorId, (usize, usize))]| {
                let own = list.iter().filter(|entry| entry.0 == annotator.id);
                Share::of(&own.map(|entry| entry.1).collect::<Vec<_>>())
            };
            let mut times: Vec<i64> =
                data.times.iter().filter(|time| time.0 == annotator.id).map(|time| time.1).collect();
            times.sort_unstable();
            AnnotatorReport {
                judgements: data.counts.get(&annotator.id).copied().unwrap_or(0),
                median_seconds: median(&times).map(|ms| ms / 1000.),
                gold_accuracy: own(&gold),
                self_agreement: own(&repeats),
                too_fast: own(&fast),
                name: annotator.name,
            }
        })
        .collect();
    let agreement = between_judges(&mut data);
    let strengths = strengths(&mut data, options);
    let (position, length) = biases(&mut data);
    let ties = data.ranked.iter().flatten().map(|ranked| {
        let signs = signs(ranked);
        (signs.iter().filter(|(_, _, sign)| *sign == 0).count(), signs.len())
    });
    Ok(Report {
        items: data.items,
        judged_items: data.ranked.len(),
        judgements: data.counts.values().sum(),
        agreement: Share::of(&agreement.shares),
        krippendorff_alpha: krippendorff_alpha(&agreement.units),
        kappas: agreement.kappas,
        self_agreement: all(&repeats),
        gold_accuracy: all(&gold),
        first_shown_wins: position,
        longer_wins: length,
        ties: Share::of(&ties.collect::<Vec<_>>()),
        too_fast: all(&fast),
        annotators,
        strengths,
        excluded: data.excluded,
    })
}

/// The middle of sorted numbers.
fn median(sorted: &[i64]) -> Option<f64> {
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        n if n % 2 == 1 => Some(sorted[middle] as f64),
        _ => Some((sorted[middle - 1] + sorted[middle]) as f64 / 2.),
    }
}

/// Pairs of answers that two rankings put in the same order, and pairs that both have.
fn equal(one: &Ranked, other: &Ranked) -> (usize, usize) {
    let pairs = both(one, other);
    (pairs.iter().filter(|(one, other)| one == other).count(), pairs.len())
}

/// The signs of each pair of answers that both rankings have.
fn both(one: &Ranked, other: &Ranked) -> Vec<(i8, i8)> {
    let signs_of = |ranked: &Ranked| -> BTreeMap<(usize, usize), i8> {
        signs(ranked).into_iter().map(|(a, b, sign)| ((a, b), sign)).collect()
    };
    let (one, other) = (signs_of(one), signs_of(other));
    one.into_iter().filter_map(|(pair, sign)| Some((sign, *other.get(&pair)?))).collect()
}

struct Agreement {
    shares: Vec<(usize, usize)>,
    units: Vec<Vec<f64>>,
    kappas: Vec<Kappa>,
}

/// The agreement of different judges on the items that two or more judged.
fn between_judges(data: &mut Data) -> Agreement {
    let (mut shares, mut units) = (Vec::new(), Vec::new());
    let mut pairs: BTreeMap<[String; 2], Vec<(i8, i8)>> = BTreeMap::new();
    let (mut single, mut partial) = (0, 0);
    for judges in &data.ranked {
        if judges.len() < 2 {
            single += 1;
            continue;
        }
        let mut of_item = (0, 0);
        for (at, one) in judges.iter().enumerate() {
            for other in &judges[at + 1..] {
                let (equal, all) = equal(one, other);
                of_item = (of_item.0 + equal, of_item.1 + all);
                let (first, second) = if one.name <= other.name { (one, other) } else { (other, one) };
                pairs.entry([first.name.clone(), second.name.clone()]).or_default().extend(both(first, second));
            }
        }
        shares.push(of_item);
        let complete: Vec<Vec<f64>> = judges.iter().filter_map(Ranked::mean_ranks).collect();
        partial += judges.len() - complete.len();
        let answers = complete.first().map_or(0, Vec::len);
        units.extend((0..answers).map(|answer| complete.iter().map(|ranks| ranks[answer]).collect()));
    }
    data.exclude("items with one judge: not in the agreement", single);
    data.exclude("rankings of some answers only: not in Krippendorff's alpha", partial);
    let kappa = |(judges, pairs): ([String; 2], Vec<(i8, i8)>)| Kappa {
        judges,
        pairs: pairs.len(),
        kappa: cohen_kappa(&pairs),
    };
    Agreement { shares, units, kappas: pairs.into_iter().map(kappa).collect() }
}

/// Position bias and length bias.
fn biases(data: &mut Data) -> (Option<Share>, Option<Share>) {
    let (mut position, mut length) = (Vec::new(), Vec::new());
    let (mut unknown, mut equal) = (0, 0);
    for ranked in data.ranked.iter().flatten() {
        let (mut first, mut longer) = ((0, 0), (0, 0));
        for (a, b, sign) in signs(ranked).into_iter().filter(|(_, _, sign)| *sign != 0) {
            let won = |is_a: bool| usize::from(is_a == (sign > 0));
            match (ranked.place(a), ranked.place(b)) {
                (Some(place_a), Some(place_b)) => first = (first.0 + won(place_a < place_b), first.1 + 1),
                _ => unknown += 1,
            }
            match ranked.answers[a].length.cmp(&ranked.answers[b].length) {
                std::cmp::Ordering::Equal => equal += 1,
                order => longer = (longer.0 + won(order.is_gt()), longer.1 + 1),
            }
        }
        position.push(first);
        length.push(longer);
    }
    data.exclude("pairs whose order on the screen is not known: not in the position bias", unknown);
    data.exclude("pairs of equal length: not in the length bias", equal);
    (Share::of(&position), Share::of(&length))
}

/// The strengths of the checkpoints, from the pairs of answers of two checkpoints.
fn strengths(data: &mut Data, options: &ReportOptions) -> Strengths {
    let answers = data.ranked.iter().flatten().flat_map(|ranked| ranked.answers.iter());
    let mut names: Vec<String> = answers.filter_map(|answer| answer.checkpoint.clone()).collect();
    names.sort_unstable();
    names.dedup();
    let (mut without, mut same, mut items) = (0, 0, Vec::new());
    for judges in &data.ranked {
        let mut games = Vec::new();
        for ranked in judges {
            for (a, b, sign) in signs(ranked) {
                let index = |answer: usize| names.binary_search(ranked.answers[answer].checkpoint.as_ref()?).ok();
                match (index(a), index(b)) {
                    (Some(one), Some(other)) if one != other => {
                        games.push((one, other, f64::midpoint(f64::from(sign), 1.)));
                    }
                    (Some(_), Some(_)) => same += 1,
                    _ => without += 1,
                }
            }
        }
        if !games.is_empty() {
            items.push(games);
        }
    }
    data.exclude("pairs of answers without a checkpoint: not in the strengths", without);
    data.exclude("pairs of answers of one checkpoint: not in the strengths", same);
    strength::strengths(&names, &items, options.samples, options.seed)
}

//! The report of a series of models: the losses at equal compute, the scaling law, a plot and one sentence.

use std::path::Path;

use llm_eval::stats::{Interval, Spread};
use serde_json::json;

use super::Trained;
use super::law::{Law, Point};
use crate::plot::{Curve, Panel, Plot};
use crate::run::write_json;
use crate::{Error, Result};

const REPORT: &str = "report.md";
/// Bootstrap samples of the law.
const DRAWS: usize = 200;

/// The report of a finished series.
pub(super) fn read(out: &Path) -> Result<String> {
    let path = out.join(REPORT);
    std::fs::read_to_string(&path).map_err(Error::io(path))
}

/// Writes the report, its numbers and its plot; returns the report.
pub(super) fn write(trained: &[Trained], out: &Path) -> Result<String> {
    let cells = cells(trained);
    let dense: Vec<&Cell> = cells.iter().filter(|cell| cell.first.kind == "dense").collect();
    let points: Vec<Point> = trained
        .iter()
        .filter(|run| run.kind == "dense")
        .map(|run| Point { parameters: run.parameters, tokens: run.tokens, loss: run.loss })
        .collect();
    let mut text = format!("# Models at equal compute\n\n{}\n", table(&cells));
    text += &format!("\n**Does a larger model always mean a better one?** {}\n", answer(&dense));
    for sentence in mixtures(&cells) {
        text += &format!("\n{sentence}\n");
    }
    let law = match Law::fit(&points) {
        Ok(law) => {
            let samples = law.bootstrap(&points, DRAWS, 0)?;
            text += &format!("\n{}\n", describe(&law, &samples, &dense));
            Some(law)
        }
        Err(Error::BadRequest(why)) => {
            text += &format!("\nNo scaling law: {why}.\n");
            None
        }
        Err(error) => return Err(error),
    };
    text += "\n![loss against training FLOPs](scaling.svg)\n";
    plot(&cells, law.as_ref()).save(out.join("scaling.svg"))?;
    write_json(&out.join("scaling.json"), &json!({"runs": trained, "law": law}))?;
    llm_model::write_atomic(&out.join(REPORT), text.as_bytes())?;
    Ok(text)
}

/// The runs of one model with one budget.
struct Cell<'a> {
    first: &'a Trained,
    losses: Vec<f64>,
    mean: f64,
    /// `None` with one seed.
    interval: Option<Interval>,
    bits_per_byte: f64,
}

fn cells(trained: &[Trained]) -> Vec<Cell<'_>> {
    let key = |run: &Trained| (run.kind, run.depth, run.budget.to_bits());
    let mut cells: Vec<Cell> = Vec::new();
    for first in trained {
        if cells.iter().any(|cell| key(cell.first) == key(first)) {
            continue;
        }
        let runs: Vec<&Trained> = trained.iter().filter(|run| key(run) == key(first)).collect();
        let losses: Vec<f64> = runs.iter().map(|run| run.loss).collect();
        let mean = |values: Vec<f64>| values.iter().sum::<f64>() / values.len() as f64;
        let interval = Spread::of(&losses).ok().map(|spread| spread.interval);
        let bits_per_byte = mean(runs.iter().map(|run| run.bits_per_byte).collect());
        cells.push(Cell { first, mean: mean(losses.clone()), losses, interval, bits_per_byte });
    }
    cells
}

impl Cell<'_> {
    fn name(&self) -> String {
        match self.first.kind {
            "experts" => format!("mixture of experts of depth {}", self.first.depth),
            _ => format!("depth {}", self.first.depth),
        }
    }

    /// The mean loss with its interval.
    fn loss(&self) -> String {
        match self.interval {
            Some(Interval { low, high }) => format!("{:.3} ({low:.3} to {high:.3})", self.mean),
            None => format!("{:.3}", self.mean),
        }
    }

    /// Whether this loss is lower than the other and the intervals do not overlap.
    fn beats(&self, other: &Self) -> bool {
        self.interval.zip(other.interval).is_some_and(|(own, other)| own.high < other.low)
    }
}

fn table(cells: &[Cell]) -> String {
    let mut text = "| training FLOPs | model | parameters | of them multiply a token | tokens | loss in nats (95 % interval over seeds) | \
                    bits per byte | seeds |\n|---|---|---|---|---|---|---|---|\n"
        .to_owned();
    let mut sorted: Vec<&Cell> = cells.iter().collect();
    sorted.sort_by(|a, b| a.first.budget.total_cmp(&b.first.budget));
    for cell in sorted {
        let run = cell.first;
        text += &format!(
            "| {:e} | {} | {:.2} M | {:.2} M | {:.2} M | {} | {:.3} | {} |\n",
            run.budget,
            cell.name(),
            run.total as f64 / 1e6,
            run.parameters / 1e6,
            run.tokens / 1e6,
            cell.loss(),
            cell.bits_per_byte,
            cell.losses.len()
        );
    }
    text
}

/// What the dense models prove about size at equal compute.
fn answer(dense: &[&Cell]) -> String {
    if dense.iter().any(|cell| cell.interval.is_none()) {
        return "One seed has no interval, so this series proves nothing; train with `seeds = 2` or more.".to_owned();
    }
    let pairs = dense.iter().flat_map(|small| dense.iter().map(move |large| (small, large)));
    let pairs = pairs
        .filter(|(small, large)| small.first.budget == large.first.budget && small.first.depth < large.first.depth);
    let mut smaller: Option<(&Cell, &Cell)> = None;
    let mut larger: Option<(&Cell, &Cell)> = None;
    for (small, large) in pairs {
        let gap = |pair: &Option<(&Cell, &Cell)>| pair.map_or(0., |(worse, better)| worse.mean - better.mean);
        if small.beats(large) && large.mean - small.mean > gap(&smaller) {
            smaller = Some((large, small));
        }
        if large.beats(small) && small.mean - large.mean > gap(&larger) {
            larger = Some((small, large));
        }
    }
    let compare = |(worse, better): (&Cell, &Cell)| {
        let budget = better.first.budget;
        format!(
            "with {budget:e} FLOPs {} has a loss of {}, {} of {}",
            better.name(),
            better.loss(),
            worse.name(),
            worse.loss()
        )
    };
    match (smaller, larger) {
        (Some(smaller), Some(larger)) => {
            format!("No: {}; but {}. The best size depends on the compute.", compare(smaller), compare(larger))
        }
        (Some(smaller), None) => format!("No: {}.", compare(smaller)),
        (None, Some(larger)) => {
            format!("In this series yes: {}, and no smaller model is better at equal compute.", compare(larger))
        }
        (None, None) => "No difference between sizes is larger than the intervals.".to_owned(),
    }
}

/// How each mixture of experts compares with the dense model of the same depth and compute.
fn mixtures(cells: &[Cell]) -> Vec<String> {
    let mixtures = cells.iter().filter(|cell| cell.first.kind == "experts");
    mixtures
        .filter_map(|mixture| {
            let same = |cell: &&Cell| {
                cell.first.kind == "dense" && cell.first.depth == mixture.first.depth && cell.first.budget == mixture.first.budget
            };
            let dense = cells.iter().find(same)?;
            let verdict = match (mixture.beats(dense), dense.beats(mixture)) {
                (true, _) => "is better than",
                (_, true) => "is worse than",
                _ => "is within the intervals of",
            };
            Some(format!(
                "With {:e} FLOPs the {} ({:.2} M parameters, loss {}) {verdict} the dense model with the same active parameters ({:.2} M, \
                 loss {}).",
                mixture.first.budget,
                mixture.name(),
                mixture.first.total as f64 / 1e6,
                mixture.loss(),
                dense.first.total as f64 / 1e6,
                dense.loss()
            ))
        })
        .collect()
}

/// The law with the intervals of its constants, and the best size for the largest budget.
fn describe(law: &Law, samples: &[Law], dense: &[&Cell]) -> String {
    let interval = |value: &dyn Fn(&Law) -> f64| {
        let mut all: Vec<f64> = samples.iter().map(value).collect();
        all.sort_by(f64::total_cmp);
        let at = |share: f64| all[((all.len() - 1) as f64 * share).round() as usize];
        (at(0.025), at(0.975))
    };
    let constant = |value: &dyn Fn(&Law) -> f64| {
        let (low, high) = interval(value);
        format!("{:.3} ({low:.3} to {high:.3})", value(law))
    };
    let budget = dense.iter().map(|cell| cell.first.budget).fold(0., f64::max);
    let best = |law: &Law| law.optimum(budget).0 / 1e6;
    let (low, high) = interval(&best);
    format!(
        "Scaling law, fitted to the dense models by a Huber loss on ln L, with 95 % intervals of a bootstrap over seeds: \
         L = E + A/N^α + B/D^β with E = {}, α = {}, β = {}, A = {:.3e}, B = {:.3e}; N counts the parameters that multiply a token. By \
         this law the best size for {budget:e} FLOPs is {:.2} M ({low:.2} to {high:.2} M) parameters.",
        constant(&|law| law.e),
        constant(&|law| law.alpha),
        constant(&|law| law.beta),
        law.a,
        law.b,
        best(law)
    )
}

fn plot<'a>(cells: &[Cell], law: Option<&Law>) -> Plot<'a> {
    let mut names: Vec<String> = cells.iter().map(Cell::name).collect();
    names.dedup();
    let of = |name: &String| {
        let own = cells.iter().filter(|cell| cell.name() == *name);
        let mut curve = Curve::new(name.clone(), Vec::new());
        for cell in own {
            let x = cell.first.budget.log10();
            let bounds = |pick: fn(f64, f64) -> f64, start| cell.losses.iter().copied().fold(start, pick);
            curve.points.push((x, cell.mean));
            curve.band.push((x, bounds(f64::min, f64::INFINITY), bounds(f64::max, f64::NEG_INFINITY)));
        }
        curve
    };
    let mut curves: Vec<Curve> = names.iter().map(of).collect();
    if let Some(law) = law {
        let budgets: Vec<f64> = cells.iter().map(|cell| cell.first.budget).collect();
        let low = budgets.iter().copied().fold(f64::INFINITY, f64::min).log10();
        let high = budgets.iter().copied().fold(0., f64::max).log10();
        let at = |i: usize| low + (high - low) * i as f64 / 50.;
        let points = (0..=50).map(|i| (at(i), law.optimum(10_f64.powf(at(i))).1)).collect();
        curves.push(Curve::new("law, best size", points));
    }
    let panel = Panel { y: "validation loss in nats", log: false, curves };
    Plot { title: "Models at equal compute", x: "log10 of the training FLOPs", panels: vec![panel] }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(kind: &'static str, depth: usize, budget: f64, seed: u64, loss: f64) -> Trained {
        let parameters = 1e5 * depth as f64;
        let tokens = budget / 6. / parameters;
        Trained {
            kind,
            depth,
            seed,
            parameters,
            total: 200_000 * depth,
            tokens,
            budget,
            loss,
            bits_per_byte: loss / 3.,
        }
    }

    /// Two seeds around each loss.
    fn series(losses: &[(&'static str, usize, f64, f64)]) -> Vec<Trained> {
        let runs = losses.iter().flat_map(|&(kind, depth, budget, loss)| {
            [(0, -0.001), (1, 0.001)].map(|(seed, noise)| run(kind, depth, budget, seed, loss + noise))
        });
        runs.collect()
    }

    fn answer_to(losses: &[(&'static str, usize, f64, f64)]) -> String {
        let runs = series(losses);
        let cells = cells(&runs);
        answer(&cells.iter().collect::<Vec<_>>())
    }

    #[test]
    fn the_answer_follows_the_intervals() {
        let mixed = answer_to(&[
            ("dense", 1, 1e12, 2.),
            ("dense", 2, 1e12, 2.5),
            ("dense", 1, 1e13, 1.8),
            ("dense", 2, 1e13, 1.5),
        ]);
        assert!(
            mixed.starts_with("No: with 1e12 FLOPs depth 1") && mixed.contains("but with 1e13 FLOPs depth 2"),
            "{mixed}"
        );
        let yes = answer_to(&[("dense", 1, 1e12, 2.), ("dense", 2, 1e12, 1.5)]);
        assert!(yes.starts_with("In this series yes"), "{yes}");
        let equal = answer_to(&[("dense", 1, 1e12, 2.), ("dense", 2, 1e12, 2.0001)]);
        assert!(equal.starts_with("No difference"), "{equal}");
        let one = [run("dense", 1, 1e12, 0, 2.)];
        let cells = cells(&one);
        assert!(answer(&[&cells[0]]).contains("One seed has no interval"));
    }

    #[test]
    fn the_report_has_the_table_the_mixtures_and_the_law() {
        let law = Law { e: 1., a: 50., alpha: 0.4, b: 80., beta: 0.35 };
        let mut runs = Vec::new();
        for depth in [1, 2, 4] {
            for budget in [1e12, 1e13, 1e14] {
                let n = 1e5 * depth as f64;
                runs.extend(series(&[("dense", depth, budget, law.loss(n, budget / 6. / n))]));
            }
        }
        runs.extend(series(&[("experts", 4, 1e14, 0.5)]));
        let dir = tempfile::tempdir().unwrap();
        let text = write(&runs, dir.path()).unwrap();
        assert!(text.contains("| 1e14 | mixture of experts of depth 4 |"), "{text}");
        assert!(text.contains("is better than the dense model with the same active parameters"), "{text}");
        assert!(text.contains("α = 0.4") && text.contains("β = 0.35"), "{text}");
        assert_eq!(read(dir.path()).unwrap(), text);
        assert!(dir.path().join("scaling.svg").exists() && dir.path().join("scaling.json").exists());
    }
}

//! `report.md`: a table of all metrics of one pipeline run, or of several with different seeds, with curves and samples.

use std::fmt::Write;
use std::path::Path;

use llm_model::write_atomic;

use super::evaluate::Evaluation;
use super::metric::{Metric, Unit, table};
use crate::plot::{Curve, Panel, Plot, metric};
use crate::run::{StageTimes, seconds_of};
use crate::{Error, Result};

/// How to read the table.
const LEGEND: &str = "Unless its name says otherwise, a metric is measured on items that the tested stage was not trained on: whole sentence \
frames, facts and themes are held out, and appear only in the pre-training text. The intervals are 95 % intervals from a bootstrap over these \
clusters; the number of clusters is in brackets. The last column has models and rules without the ability, the value before the stage, or the \
best possible value.";

/// Writes the report of one pipeline run and its plots; returns the table.
pub(super) fn write(evaluation: &Evaluation, times: &StageTimes, out: &Path) -> Result<String> {
    let times = stage_times(times, out)?;
    let total: f64 = times.iter().map(|(_, seconds)| seconds).sum();
    let mut metrics: Vec<Metric> = evaluation.rows().into_iter().cloned().collect();
    metrics.push(Metric::plain("time in minutes", Unit::Rough, total / 60.));
    let table = table(&metrics);
    let mut text = format!("# Pipeline report\n\n{LEGEND}\n\n{table}\n");
    draw_plots(&mut text, &[out], std::slice::from_ref(evaluation), out)?;
    text.push_str("\n## Before and after PPO\n\nReplies to questions about held-out themes.\n\n");
    text.push_str("| question | before | after |\n|---|---|---|\n");
    for [question, before, after] in &evaluation.samples {
        let cell = |text: &str| text.replace('|', "\\|").replace('\n', " ");
        writeln!(text, "| {} | {} | {} |", cell(question), cell(before), cell(after)).map_err(broken)?;
    }
    text.push_str("\n## Time\n\n| stage | seconds |\n|---|---|\n");
    for (stage, seconds) in &times {
        writeln!(text, "| {stage} | {seconds:.1} |").map_err(broken)?;
    }
    write_atomic(&out.join("report.md"), text.as_bytes())?;
    Ok(table)
}

/// Writes the report over several runs, one per seed, into `out`; returns the table.
pub(super) fn write_seeds(runs: &[&Path], evaluations: &[Evaluation], minutes: &[f64], out: &Path) -> Result<String> {
    let (n, table) = (runs.len(), seeds_table(evaluations, minutes));
    let mut text = format!(
        "# Pipeline report over {n} seeds\n\nEach seed changes the dataset, the held-out items and the initial weights. {LEGEND}\n\n{table}\n"
    );
    draw_plots(&mut text, runs, evaluations, out)?;
    write_atomic(&out.join("report.md"), text.as_bytes())?;
    Ok(table)
}

/// The rows of the first evaluation, each with the mean and the range over all evaluations.
fn seeds_table(evaluations: &[Evaluation], minutes: &[f64]) -> String {
    let n = evaluations.len();
    let mut table = format!(
        "| metric | mean of {n} seeds | lowest to highest | n of each | baselines and references (means) |\n|---|---|---|---|---|\n"
    );
    for metric in evaluations.iter().take(1).flat_map(Evaluation::rows) {
        let Metric { name, unit, items, .. } = metric;
        let same: Vec<&Metric> =
            evaluations.iter().filter_map(|e| e.rows().into_iter().find(|f| f.name == *name)).collect();
        let row = spread(&same.iter().map(|f| f.value).collect::<Vec<_>>());
        let references = metric.references.iter().enumerate().map(|(i, (name, _))| {
            let values: Vec<f64> = same.iter().filter_map(|f| f.references.get(i)).map(|b| b.1).collect();
            format!("{name} {}", unit.show(spread(&values).0))
        });
        let items = match items {
            (0, _) => String::new(),
            (n, clusters) => format!("{n} ({clusters})"),
        };
        let references = references.collect::<Vec<_>>().join("; ");
        let (low, high) = (unit.show(row.1), unit.show(row.2));
        table += &format!("| {name} | {} | {low} to {high} | {items} | {references} |\n", unit.show(row.0));
    }
    let (mean, low, high) = spread(minutes);
    table += &format!("| time in minutes | {mean:.1} | {low:.1} to {high:.1} | | |\n");
    table
}

/// The mean, the minimum and the maximum.
fn spread(values: &[f64]) -> (f64, f64, f64) {
    let mean = values.iter().sum::<f64>() / values.len().max(1) as f64;
    (
        mean,
        values.iter().copied().fold(f64::INFINITY, f64::min),
        values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
    )
}

/// A panel of a plot: label of the y axis, whether it is logarithmic, and (legend, key in `metrics.jsonl`) of each curve.
type PanelOf<'a> = (&'a str, bool, &'a [(&'a str, &'a str)]);

const LOSS: &str = "loss in nats";

/// The plots: file, title, folder of the stage, panels.
const PLOTS: [(&str, &str, &str, &[PanelOf]); 5] = [
    ("pretrain", "Pre-training", "base", &[(LOSS, true, &[("train", "loss"), ("validation", "eval_loss")])]),
    ("finetune", "Fine-tuning", "instruct", &[(LOSS, true, &[("train", "loss"), ("validation", "eval_loss")])]),
    (
        "reward",
        "Reward model",
        "reward",
        &[("accuracy", false, &[("train", "accuracy"), ("validation", "eval_accuracy")])],
    ),
    (
        "ppo",
        "PPO",
        "aligned",
        &[
            ("score", false, &[("score", "objective/scores")]),
            ("KL per reply in nats", false, &[("KL", "objective/kl")]),
            ("entropy per token in nats", false, &[("entropy", "policy/entropy_avg")]),
        ],
    ),
    (
        "distill",
        "Distillation: plain text first, then conversations",
        "student",
        &[("nats", true, &[("train: loss", "loss"), ("validation: loss", "eval_loss"), ("validation: KL", "eval_kl")])],
    ),
];

/// Draws the plots of all runs into `out`. With several runs each curve is their mean, with a band from minimum to maximum.
fn draw_plots(text: &mut String, runs: &[&Path], evaluations: &[Evaluation], out: &Path) -> Result<()> {
    let over = |name: &str, curves: Vec<Vec<(f64, f64)>>| match curves.len() {
        1 => Curve::new(name, curves.concat()),
        _ => Curve::over_runs(name, &curves),
    };
    for (file, title, stage, panels) in PLOTS {
        let curve = |&(name, key): &(&str, &str)| {
            let curves = runs.iter().map(|run| metric(&run.join(stage), key)).collect::<Result<Vec<_>>>()?;
            Ok(over(name, curves))
        };
        let panel = |&(y, log, curves): &PanelOf<'static>| {
            Ok(Panel { y, log, curves: curves.iter().map(curve).collect::<Result<Vec<_>>>()? })
        };
        let panels = panels.iter().map(panel).collect::<Result<Vec<_>>>()?;
        let file = format!("plots/{file}.svg");
        Plot { title, x: "step", panels }.save(&out.join(&file))?;
        write!(text, "\n![{title}]({file})\n").map_err(broken)?;
    }
    let of_n = |pick: fn(&(f64, f64, f64)) -> f64| {
        evaluations
            .iter()
            .map(|e| e.best_of.iter().map(|point| (point.0, pick(point))).collect())
            .collect::<Vec<Vec<_>>>()
    };
    let ppo = |name: &str| -> Vec<Vec<(f64, f64)>> {
        let value =
            |e: &Evaluation, name: &str| e.metrics.iter().find(|f| f.name == name).map_or(f64::NAN, |f| f.value);
        evaluations
            .iter()
            .map(|e| vec![(value(e, "— KL to the fine-tuned model, nats per reply"), value(e, name))])
            .collect()
    };
    let points = |runs: Vec<Vec<(f64, f64)>>| Curve::new("PPO", runs.concat());
    let panels = vec![
        Panel {
            y: "true utility",
            log: false,
            curves: vec![over("best of n", of_n(|p| p.1)), points(ppo("PPO: true utility, held-out themes"))],
        },
        Panel {
            y: "reward model score",
            log: false,
            curves: vec![over("best of n", of_n(|p| p.2)), points(ppo("— reward model score"))],
        },
    ];
    let title = "True utility and reward over KL divergence";
    Plot { title, x: "KL to the fine-tuned model, nats per reply", panels }.save(&out.join("plots/utility.svg"))?;
    write!(text, "\n![{title}](plots/utility.svg)\n").map_err(broken)
}

/// Seconds of each stage, in order.
pub(super) fn stage_times(times: &StageTimes, out: &Path) -> Result<Vec<(String, f64)>> {
    let mut all = Vec::new();
    for stage in ["world", "tokenizer", "prepare"] {
        all.push((stage.to_owned(), times.get(stage)));
    }
    for (stage, dir) in [("pretrain", "base"), ("finetune", "instruct"), ("reward", "reward"), ("ppo", "aligned")] {
        all.push((stage.to_owned(), seconds_of(&out.join(dir))?));
    }
    all.push(("distill".to_owned(), times.get("teacher") + seconds_of(&out.join("student"))?));
    all.push(("student without the teacher's distribution".to_owned(), seconds_of(&out.join("student-alone"))?));
    all.push(("evaluation".to_owned(), times.get("evaluation")));
    Ok(all)
}

fn broken(error: std::fmt::Error) -> Error {
    Error::Input(format!("report.md: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evaluation(loss: f64, right: f64, chance: f64, speed: f64) -> Evaluation {
        let mut accuracy = Metric::plain("accuracy", Unit::Share, right).reference("chance", chance);
        accuracy.items = (40, 7);
        Evaluation {
            metrics: vec![Metric::plain("loss", Unit::Number, loss), accuracy],
            tokens_per_second: Metric::plain("speed", Unit::Number, speed).reference("lowest", speed - 1.),
            best_of: Vec::new(),
            samples: Vec::new(),
        }
    }

    #[test]
    fn the_table_over_seeds_has_the_means_and_ranges_computed_by_hand() {
        let evaluations = [evaluation(1., 0.5, 0.25, 2.), evaluation(2., 0.75, 0.75, 3.), evaluation(4.5, 1., 0.5, 7.)];
        let expected = "\
| metric | mean of 3 seeds | lowest to highest | n of each | baselines and references (means) |
|---|---|---|---|---|
| loss | 2.500 | 1.000 to 4.500 |  |  |
| accuracy | 75.0 % | 50.0 % to 100.0 % | 40 (7) | chance 50.0 % |
| speed | 4.000 | 2.000 to 7.000 |  | lowest 3.000 |
| time in minutes | 6.0 | 4.0 to 9.0 | | |
";
        assert_eq!(seeds_table(&evaluations, &[4., 5., 9.]), expected);
    }

    #[test]
    fn a_metric_that_another_run_lacks_is_averaged_over_the_runs_that_have_it() {
        let mut second = evaluation(2., 0.5, 0.5, 2.);
        second.metrics.remove(0);
        let table = seeds_table(&[evaluation(1., 0.5, 0.5, 2.), second], &[1., 1.]);
        assert!(table.contains("| loss | 1.000 | 1.000 to 1.000 |"), "{table}");
    }
}

//! `report.md`: a table of all metrics of one pipeline run, or of several with different seeds, with curves and samples.

use std::path::Path;

use llm_model::write_atomic;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use serde::Serialize;

use super::evaluate::Evaluation;
use super::metric::{Metric, Unit, table};
use crate::plot::{Curve, Panel, Plot, metric};
use crate::run::{StageTimes, seconds_of};
use crate::{Error, Result};

/// The report.
const TEMPLATE: &str = include_str!("report.md.jinja");

/// What the template shows.
#[derive(Serialize)]
struct Page<'a> {
    /// Number of pipeline runs.
    seeds: usize,
    /// The metrics, as a Markdown table.
    table: &'a str,
    plots: Vec<PlotLink>,
    /// (question, reply before PPO, reply after PPO).
    samples: &'a [[String; 3]],
    /// (stage, seconds).
    times: Vec<(String, String)>,
}

/// A plot, its file and how to read it.
#[derive(Serialize)]
struct PlotLink {
    title: &'static str,
    file: String,
    note: &'static str,
}

/// Writes the report of one pipeline run and its plots; returns the table.
pub(super) fn write(evaluation: &Evaluation, times: &StageTimes, out: &Path) -> Result<String> {
    let times = stage_times(times, out)?;
    let total: f64 = times.iter().map(|(_, seconds)| seconds).sum();
    let mut metrics: Vec<Metric> = evaluation.rows().into_iter().cloned().collect();
    metrics.push(Metric::plain("time in minutes", Unit::Rough, total / 60.));
    let table = table(&metrics);
    let plots = draw_plots(&[out], std::slice::from_ref(evaluation), out)?;
    let times = times.into_iter().map(|(stage, seconds)| (stage, format!("{seconds:.1}"))).collect();
    let page = Page { seeds: 1, table: &table, plots, samples: &evaluation.samples, times };
    write_atomic(&out.join("report.md"), page.render()?.as_bytes())?;
    Ok(table)
}

/// Writes the report over several runs, one per seed, into `out`; returns the table.
pub(super) fn write_seeds(runs: &[&Path], evaluations: &[Evaluation], minutes: &[f64], out: &Path) -> Result<String> {
    let table = seeds_table(evaluations, minutes);
    let plots = draw_plots(runs, evaluations, out)?;
    let page = Page { seeds: runs.len(), table: &table, plots, samples: &[], times: Vec::new() };
    write_atomic(&out.join("report.md"), page.render()?.as_bytes())?;
    Ok(table)
}

impl Page<'_> {
    /// The report as Markdown.
    fn render(&self) -> Result<String> {
        let broken = |error: minijinja::Error| Error::Internal(format!("report.md: {error}"));
        let mut environment = minijinja::Environment::new();
        environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).build().map_err(broken)?);
        environment.add_filter("cell", |text: String| text.replace('|', "\\|").replace('\n', " "));
        environment.add_template("report.md", TEMPLATE).map_err(broken)?;
        let text = environment.get_template("report.md").and_then(|page| page.render(Serde(self))).map_err(broken)?;
        Ok(format!("{}\n", text.trim_end()))
    }
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

/// A plot of one stage.
struct StagePlot {
    file: &'static str,
    title: &'static str,
    /// The folder of the stage.
    stage: &'static str,
    /// How to read it.
    note: &'static str,
    panels: &'static [PanelOf<'static>],
}

const PLOTS: [StagePlot; 5] = [
    StagePlot {
        file: "pretrain",
        title: "Pre-training",
        stage: "base",
        note: "The loss on the training batches and on validation text, which has other facts and sentence frames. Both fall together; \
               a validation loss that rises while the training loss falls means that the model memorises.",
        panels: &[(LOSS, true, &[("train", "loss"), ("validation", "eval_loss")])],
    },
    StagePlot {
        file: "finetune",
        title: "Fine-tuning",
        stage: "instruct",
        note: "The loss on the assistant's tokens. The validation conversations ask for facts that no training conversation tells: \
               the model can know them only from the pre-training text.",
        panels: &[(LOSS, true, &[("train", "loss"), ("validation", "eval_loss")])],
    },
    StagePlot {
        file: "reward",
        title: "Reward model",
        stage: "reward",
        note: "The share of answer pairs that the reward model orders as the annotator did; 0.5 is chance. The annotator is noisy: the \
               table has the highest accuracy that is possible.",
        panels: &[("accuracy", false, &[("train", "accuracy"), ("validation", "eval_accuracy")])],
    },
    StagePlot {
        file: "ppo",
        title: "PPO",
        stage: "aligned",
        note: "The reward model's score rises while the policy moves away from the fine-tuned model (KL). An entropy near 0 means \
               that the policy has one reply for each question.",
        panels: &[
            ("score", false, &[("score", "objective/scores")]),
            ("KL per reply in nats", false, &[("KL", "objective/kl")]),
            ("entropy per token in nats", false, &[("entropy", "policy/entropy_avg")]),
        ],
    },
    StagePlot {
        file: "distill",
        title: "Distillation: plain text first, then conversations",
        stage: "student",
        note: "The student is trained on plain text first, then on conversations: the training loss jumps where the data changes. The \
               validation curves show the answers of the conversations, also while it is trained on plain text.",
        panels: &[(
            "nats",
            true,
            &[("train: loss", "loss"), ("validation: loss", "eval_loss"), ("validation: KL", "eval_kl")],
        )],
    },
];

/// How to read the plot of utility over KL.
const UTILITY_NOTE: &str = "Best-of-n samples n replies and keeps the one with the highest score; its KL grows with n. PPO above the curve \
    of best-of-n gets more true utility, or more reward, for the same distance from the fine-tuned model. A reward that rises while the \
    true utility falls means that the policy exploits the reward model.";

/// Draws the plots of all runs into `out`. With several runs each curve is their mean, with a band from minimum to maximum.
fn draw_plots(runs: &[&Path], evaluations: &[Evaluation], out: &Path) -> Result<Vec<PlotLink>> {
    let mut links = Vec::new();
    for StagePlot { file, title, stage, note, panels } in PLOTS {
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
        links.push(PlotLink { title, file, note });
    }
    links.push(draw_utility(evaluations, out)?);
    Ok(links)
}

/// The curve of one run, or the mean of several.
fn over(name: &str, curves: Vec<Vec<(f64, f64)>>) -> Curve {
    match curves.len() {
        1 => Curve::new(name, curves.concat()),
        _ => Curve::over_runs(name, &curves),
    }
}

/// Draws true utility and reward over KL, of PPO and of best-of-n.
fn draw_utility(evaluations: &[Evaluation], out: &Path) -> Result<PlotLink> {
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
    let (title, file) = ("True utility and reward over KL divergence", "plots/utility.svg".to_owned());
    Plot { title, x: "KL to the fine-tuned model, nats per reply", panels }.save(&out.join(&file))?;
    Ok(PlotLink { title, file, note: UTILITY_NOTE })
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
    fn the_report_has_table_plots_samples_and_times() {
        let plots = vec![PlotLink { title: "PPO", file: "plots/ppo.svg".to_owned(), note: "How to read it." }];
        let samples = [["What?".to_owned(), "a|b".to_owned(), "two\nlines".to_owned()]];
        let times = vec![("pretrain".to_owned(), "1.5".to_owned()), ("ppo".to_owned(), "2.0".to_owned())];
        let page = Page { seeds: 1, table: "| metric |\n|---|\n| loss |\n", plots, samples: &samples, times };
        let text = page.render().unwrap();
        assert!(text.starts_with("# Pipeline report\n\nUnless its name says otherwise,"), "{text}");
        let end = "\
| metric |
|---|
| loss |

![PPO](plots/ppo.svg)

How to read it.

## Before and after PPO

Replies to questions about held-out themes.

| question | before | after |
|---|---|---|
| What? | a\\|b | two lines |

## Time

| stage | seconds |
|---|---|
| pretrain | 1.5 |
| ppo | 2.0 |
";
        assert!(text.ends_with(end), "{text}");
        let page = Page { seeds: 3, samples: &[], times: Vec::new(), ..page };
        assert!(page.render().unwrap().starts_with("# Pipeline report over 3 seeds\n\nEach seed changes"));
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

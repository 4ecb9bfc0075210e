//! `report.md`: the figures of one life, or of several with other seeds, in one table, with curves and samples.

use std::fmt::Write;
use std::path::Path;

use llm_model::write_atomic;

use super::evaluate::Evaluation;
use super::figure::{Figure, Unit, table};
use crate::plot::{Curve, Panel, Plot, metric};
use crate::run::{Times, seconds_of};
use crate::{Error, Result};

/// How the table is to be read.
const LEGEND: &str = "Where its name does not say otherwise, a figure is on items that the tested stage never saw: frames of sentences, facts and themes held out \
as whole units, which the pre-training text alone tells. Intervals are 95 %, by a bootstrap over those units, whose number is in \
brackets; \"beside it\" is what lacks the ability, what came before, or what is possible.";

/// Writes the report of one life and its plots; returns the table.
pub(super) fn write(seen: &Evaluation, times: &Times, out: &Path) -> Result<String> {
    let times = stage_times(times, out)?;
    let total: f64 = times.iter().map(|(_, seconds)| seconds).sum();
    let mut figures: Vec<Figure> = seen.rows().into_iter().cloned().collect();
    figures.push(Figure::plain("time in minutes", Unit::Rough, total / 60.));
    let table = table(&figures);
    let mut text = format!("# The life of a model\n\n{LEGEND}\n\n{table}\n");
    draw_plots(&mut text, &[out], std::slice::from_ref(seen), out)?;
    text.push_str("\n## Before and after PPO\n\nTo questions about themes that were held out.\n\n");
    text.push_str("| question | before | after |\n|---|---|---|\n");
    for [question, before, after] in &seen.samples {
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

/// Writes the report of several lives, one for each seed, into `out`; returns the table.
pub(super) fn write_seeds(lives: &[&Path], seen: &[Evaluation], minutes: &[f64], out: &Path) -> Result<String> {
    let n = lives.len();
    let mut table = format!(
        "| figure | mean of {n} seeds | lowest to highest | n of each | beside it, means |\n|---|---|---|---|---|\n"
    );
    for figure in seen[0].rows() {
        let Figure { name, unit, items, .. } = figure;
        let same: Vec<&Figure> =
            seen.iter().filter_map(|life| life.rows().into_iter().find(|f| f.name == *name)).collect();
        let row = spread(&same.iter().map(|f| f.value).collect::<Vec<_>>());
        let beside = figure.beside.iter().enumerate().map(|(i, (name, _))| {
            let values: Vec<f64> = same.iter().filter_map(|f| f.beside.get(i)).map(|b| b.1).collect();
            format!("{name} {}", unit.show(spread(&values).0))
        });
        let items = match items {
            (0, _) => String::new(),
            (n, units) => format!("{n} ({units})"),
        };
        let beside = beside.collect::<Vec<_>>().join("; ");
        let (low, high) = (unit.show(row.1), unit.show(row.2));
        table += &format!("| {name} | {} | {low} to {high} | {items} | {beside} |\n", unit.show(row.0));
    }
    let (mean, low, high) = spread(minutes);
    table += &format!("| time in minutes | {mean:.1} | {low:.1} to {high:.1} | | |\n");
    let mut text = format!(
        "# The life of a model, {n} seeds\n\nEach seed makes another world, with other units held out, and other weights. {LEGEND}\n\n{table}\n"
    );
    draw_plots(&mut text, lives, seen, out)?;
    write_atomic(&out.join("report.md"), text.as_bytes())?;
    Ok(table)
}

/// The mean, the lowest and the highest.
fn spread(values: &[f64]) -> (f64, f64, f64) {
    let mean = values.iter().sum::<f64>() / values.len().max(1) as f64;
    (
        mean,
        values.iter().copied().fold(f64::INFINITY, f64::min),
        values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
    )
}

/// A panel of a plot: what is on its axis, whether that is logarithmic, and the metrics of a stage by name.
type PanelOf<'a> = (&'a str, bool, &'a [(&'a str, &'a str)]);

const LOSS: &str = "loss in nats";

/// The plots of a life: file, title, folder of the stage, panels.
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
        "Distillation: plain text first, then answers",
        "student",
        &[("nats", true, &[("train: loss", "loss"), ("validation: loss", "eval_loss"), ("validation: KL", "eval_kl")])],
    ),
];

/// Draws the plots of all lives into `out`, a band from the lowest to the highest where there are several.
fn draw_plots(text: &mut String, lives: &[&Path], seen: &[Evaluation], out: &Path) -> Result<()> {
    let over = |name: &str, runs: Vec<Vec<(f64, f64)>>| match runs.len() {
        1 => Curve::new(name, runs.concat()),
        _ => Curve::over_runs(name, &runs),
    };
    for (file, title, stage, panels) in PLOTS {
        let curve = |&(name, key): &(&str, &str)| {
            let runs = lives.iter().map(|life| metric(&life.join(stage), key)).collect::<Result<Vec<_>>>()?;
            Ok(over(name, runs))
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
        seen.iter()
            .map(|life| life.best_of.iter().map(|point| (point.0, pick(point))).collect())
            .collect::<Vec<Vec<_>>>()
    };
    let ppo = |name: &str| -> Vec<Vec<(f64, f64)>> {
        let figure =
            |life: &Evaluation, name: &str| life.figures.iter().find(|f| f.name == name).map_or(f64::NAN, |f| f.value);
        seen.iter()
            .map(|life| vec![(figure(life, "— KL from the fine-tuned model, nats per reply"), figure(life, name))])
            .collect()
    };
    let points = |runs: Vec<Vec<(f64, f64)>>| Curve::new("PPO", runs.concat());
    let panels = vec![
        Panel {
            y: "true utility",
            log: false,
            curves: vec![over("best of n", of_n(|p| p.1)), points(ppo("PPO: true utility, themes unseen"))],
        },
        Panel {
            y: "reward model's score",
            log: false,
            curves: vec![over("best of n", of_n(|p| p.2)), points(ppo("— reward model's score of the replies"))],
        },
    ];
    let title = "What alignment gains for the distance it moves";
    Plot { title, x: "KL from the fine-tuned model, nats per reply", panels }.save(&out.join("plots/utility.svg"))?;
    write!(text, "\n![{title}](plots/utility.svg)\n").map_err(broken)
}

/// Seconds of every stage in order.
pub(super) fn stage_times(times: &Times, out: &Path) -> Result<Vec<(String, f64)>> {
    let mut all = Vec::new();
    for stage in ["world", "tokenizer", "prepare"] {
        all.push((stage.to_owned(), times.get(stage)));
    }
    for (stage, dir) in [("pretrain", "base"), ("finetune", "instruct"), ("reward", "reward"), ("ppo", "aligned")] {
        all.push((stage.to_owned(), seconds_of(&out.join(dir))?));
    }
    all.push(("distill".to_owned(), times.get("teacher") + seconds_of(&out.join("student"))?));
    all.push(("the same student on labels alone".to_owned(), seconds_of(&out.join("student-alone"))?));
    all.push(("evaluation".to_owned(), times.get("evaluation")));
    Ok(all)
}

fn broken(error: std::fmt::Error) -> Error {
    Error::Input(format!("report.md: {error}"))
}

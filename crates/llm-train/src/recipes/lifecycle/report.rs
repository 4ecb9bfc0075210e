//! `report.md`: the figures of a life in one table, its curves, and samples side by side.

use std::fmt::Write;
use std::path::Path;

use llm_data::world::Utility;
use llm_model::write_atomic;

use super::LifecycleRecipe;
use super::evaluate::Evaluation;
use crate::plot::{Curve, Panel, Plot, metric};
use crate::run::{Times, seconds_of};
use crate::{Error, Result};

/// Writes `report.md` and its plots; returns the table.
pub(super) fn write(recipe: &LifecycleRecipe, seen: &Evaluation, times: &Times, out: &Path) -> Result<String> {
    let times = stage_times(times, out)?;
    let table = table(&rows(recipe, seen, &times, out)?);
    let mut text = format!("# The life of a model\n\n{table}\n");
    for (file, title) in plots(out)? {
        write!(text, "\n![{title}]({file})\n").map_err(broken)?;
    }
    text.push_str("\n## Before and after PPO\n\n| question | before | after |\n|---|---|---|\n");
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

type Row = (String, String);

fn rows(recipe: &LifecycleRecipe, seen: &Evaluation, times: &[(String, f64)], out: &Path) -> Result<Vec<Row>> {
    let mut rows: Vec<Row> = Vec::new();
    let mut row = |name: &str, value: String| rows.push((name.to_owned(), value));
    let percent = |share: f64| format!("{:.1} %", 100. * share);
    let (bytes, tokens) = seen.corpus;
    row("corpus", format!("{bytes} bytes, {tokens} tokens"));
    let rate = bytes as f64 / tokens.max(1) as f64;
    row("tokenizer", format!("{} tokens, {rate:.2} bytes per token", seen.vocab_size));
    for (name, count) in &seen.parameters {
        row(&format!("parameters of the {name}"), count.to_string());
    }
    let (first, last) = ends(&metric(&out.join("base"), "eval_loss")?);
    let bits = seen.text[0].bits_per_byte;
    row("held-out loss, pre-training", format!("{first:.3} → {last:.3} ({bits:.3} bits per byte)"));
    for (name, trained, untrained) in &seen.probes {
        row(&format!("probe: {name}"), format!("{} (untrained {})", percent(*trained), percent(*untrained)));
    }
    row("tasks before → after fine-tuning", format!("{} → {}", percent(seen.base.total), percent(seen.instruct.total)));
    for ((kind, before), (_, after)) in seen.base.by_kind.iter().zip(&seen.instruct.by_kind) {
        row(&format!("— {}", kind.name()), format!("{} → {}", percent(*before), percent(*after)));
    }
    let (accuracy, ceiling) = seen.reward_accuracy;
    row("reward model on held-out rankings", format!("{}, best possible {}", percent(accuracy), percent(ceiling)));
    let [before, after, student] = &seen.advice;
    let gain = (after.total - before.total) / (Utility::MAX - before.total);
    let max = Utility::MAX;
    row(
        "true utility before → after PPO",
        format!("{:.3} → {:.3} of {max} ({} of what is possible)", before.total, after.total, percent(gain)),
    );
    for (part, from, to) in [
        ("accuracy", before.accuracy, after.accuracy),
        ("helpfulness", before.helpfulness, after.helpfulness),
        ("safety", before.safety, after.safety),
    ] {
        row(&format!("— {part}"), format!("{} → {}", percent(from), percent(to)));
    }
    row(
        "KL of the aligned model from the fine-tuned one",
        format!("{:.2} nats per reply (coefficient {})", seen.kl, recipe.ppo.kl_coef),
    );
    row("tasks: teacher, student", format!("{}, {}", percent(seen.aligned.total), percent(seen.student.total)));
    row(
        "held-out loss: teacher, student",
        format!("{:.3}, {:.3} (base {:.3})", seen.text[1].loss, seen.text[2].loss, seen.text[0].loss),
    );
    row("true utility: teacher, student", format!("{:.3}, {:.3}", after.total, student.total));
    let (fast, slow) = (seen.student.tokens_per_second, seen.aligned.tokens_per_second);
    row("tokens per second: teacher, student", format!("{slow:.0}, {fast:.0} ({:.2} times)", fast / slow));
    let total: f64 = times.iter().map(|(_, seconds)| seconds).sum();
    row("time", format!("{:.1} minutes", total / 60.));
    Ok(rows)
}

fn table(rows: &[Row]) -> String {
    let width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let line = |(name, value): &Row| format!("| {name:width$} | {value} |\n");
    let head = format!("| {:width$} | this run |\n|{}|---|\n", "figure", "-".repeat(width + 2));
    head + &rows.iter().map(line).collect::<String>()
}

fn ends(points: &[(f64, f64)]) -> (f64, f64) {
    let first = points.first().map_or(f64::NAN, |p| p.1);
    (first, points.last().map_or(f64::NAN, |p| p.1))
}

/// Draws the plots; returns their files and titles.
fn plots(out: &Path) -> Result<Vec<(String, &'static str)>> {
    const LOSS: &str = "loss in nats";
    let curve = |stage: &str, name: &str, key: &str| Ok::<_, Error>(Curve::new(name, metric(&out.join(stage), key)?));
    let mut drawn = Vec::new();
    for (file, title, stage, panels) in [
        (
            "pretrain",
            "Pre-training",
            "base",
            &[(LOSS, true, &[("train", "loss"), ("validation", "eval_loss")][..])][..],
        ),
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
            ],
        ),
        (
            "distill",
            "Distillation",
            "student",
            &[(
                "nats",
                true,
                &[("train: loss", "loss"), ("validation: loss", "eval_loss"), ("validation: KL", "eval_kl")],
            )],
        ),
    ] {
        let panel = |&(y, log, curves): &(&'static str, bool, &[(&str, &str)])| {
            let curves = curves.iter().map(|(name, key)| curve(stage, name, key)).collect::<Result<Vec<_>>>()?;
            Ok(Panel { y, log, curves })
        };
        let panels = panels.iter().map(panel).collect::<Result<Vec<_>>>()?;
        let file = format!("plots/{file}.svg");
        Plot { title, x: "step", panels }.save(&out.join(&file))?;
        drawn.push((file, title));
    }
    Ok(drawn)
}

/// Seconds of every stage in order.
fn stage_times(times: &Times, out: &Path) -> Result<Vec<(String, f64)>> {
    let mut all = Vec::new();
    for stage in ["world", "tokenizer", "prepare"] {
        all.push((stage.to_owned(), times.get(stage)));
    }
    for (stage, dir) in [("pretrain", "base"), ("finetune", "instruct"), ("reward", "reward"), ("ppo", "aligned")] {
        all.push((stage.to_owned(), seconds_of(&out.join(dir))?));
    }
    all.push(("distill".to_owned(), times.get("teacher") + seconds_of(&out.join("student"))?));
    all.push(("evaluation".to_owned(), times.get("evaluation")));
    Ok(all)
}

fn broken(error: std::fmt::Error) -> Error {
    Error::Input(format!("report.md: {error}"))
}

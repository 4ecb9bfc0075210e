//! The report: a table of the models at the end of training, the path of PPO without a penalty, the example, and the frontier as a plot.

use std::path::Path;

use super::measure::{Point, Points};
use super::{BEST_OF_N, CompareAlignmentRecipe, START, methods, ppo_name};
use crate::Result;
use crate::plot::{Curve, Panel, Plot};

const PLOT: &str = "frontier.svg";

/// Draws the plot in `out` and returns the report.
pub(super) fn write(recipe: &CompareAlignmentRecipe, seeds: &[Points], out: &Path) -> Result<String> {
    let mut names: Vec<String> = methods(recipe).into_iter().map(|(name, _)| name).collect();
    names.push(BEST_OF_N.to_owned());
    plot(&names, seeds).save(out.join(PLOT))?;
    names.insert(0, START.to_owned());
    let mut text = format!(
        "# Alignment methods\n\nMeans over {} seeds, with the lowest and the highest, on {} questions about held-out themes. KL: from the \
         fine-tuned model, in nats per reply; of best-of-n its bound. The reward model's score is what the methods see; the true utility \
         (at most 2.25), unsafe replies and jargon are known to the built-in dataset only.\n\n\
         | method | KL | reward model's score | true utility | unsafe replies | jargon in the example |\n|---|---|---|---|---|---|\n",
        seeds.len(),
        recipe.questions
    );
    for name in &names {
        text += &row(name, &of(seeds, name, usize::MAX));
    }
    text += &format!("\n![The frontier]({PLOT})\n\n{}", reading(recipe, seeds));
    text += &paths(recipe, seeds);
    if let Some(points) = seeds.first() {
        text += &example(&names, points);
    }
    Ok(text)
}

/// The point number `leg` of a method in each seed, or its last one if there are fewer.
fn of<'a>(seeds: &'a [Points], name: &str, leg: usize) -> Vec<&'a Point> {
    let at = |points: &'a Points| {
        let all = points.of(name);
        all.get(leg.min(all.len().saturating_sub(1)))
    };
    seeds.iter().filter_map(at).collect()
}

fn row(name: &str, points: &[&Point]) -> String {
    let number = |of: &dyn Fn(&Point) -> Option<f64>, factor: f64, unit: &str| {
        let values: Vec<f64> = points.iter().filter_map(|point| of(point)).map(|x| factor * x).collect();
        let (low, high) = values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), &x| (l.min(x), h.max(x)));
        let decimals = if unit.is_empty() { 2 } else { 1 };
        match values.len() {
            0 => String::new(),
            n => format!(
                "{:.decimals$}{unit} ({low:.decimals$} to {high:.decimals$})",
                values.iter().sum::<f64>() / n as f64
            ),
        }
    };
    format!(
        "| {name} | {} | {} | {} | {} | {} |\n",
        number(&|p| Some(p.kl), 1., ""),
        number(&|p| Some(p.score), 1., ""),
        number(&|p| Some(p.utility), 1., ""),
        number(&|p| p.unsafe_share, 100., " %"),
        number(&|p| p.example.as_ref().map(|example| example.jargon_share), 100., " %"),
    )
}

fn mean(points: &[&Point], of: fn(&Point) -> f64) -> f64 {
    points.iter().map(|point| of(point)).sum::<f64>() / points.len().max(1) as f64
}

/// What the numbers say about unsafe replies.
fn reading(recipe: &CompareAlignmentRecipe, seeds: &[Points]) -> String {
    let unsafe_share = |name: &str| mean(&of(seeds, name, usize::MAX), |point| point.unsafe_share.unwrap_or(0.));
    let before = unsafe_share(START);
    let mut text = "Fewer unsafe replies than of the fine-tuned model:".to_owned();
    for (name, _) in methods(recipe) {
        text += &format!(" {name} {:.0} %;", 100. * (1. - unsafe_share(&name) / before.max(1e-9)));
    }
    text.trim_end_matches(';').to_owned() + ".\n"
}

/// The paths of PPO: KL, score and utility after each leg.
fn paths(recipe: &CompareAlignmentRecipe, seeds: &[Points]) -> String {
    let mut text = "\n## Over-optimisation\n\nPPO during training, from the first measurement to the last. Where the score still rises while \
                    the true utility falls, the policy learns the errors of the reward model.\n\n\
                    | KL coefficient | KL | reward model's score | true utility |\n|---|---|---|---|\n"
        .to_owned();
    for kl_coef in &recipe.kl_coefs {
        let name = ppo_name(*kl_coef);
        let legs = seeds.iter().map(|points| points.of(&name).len()).min().unwrap_or(0);
        let path = |number: fn(&Point) -> f64| {
            let each: Vec<String> =
                (0..legs).map(|leg| format!("{:.2}", mean(&of(seeds, &name, leg), number))).collect();
            each.join(", ")
        };
        text += &format!("| {kl_coef} | {} | {} | {} |\n", path(|p| p.kl), path(|p| p.score), path(|p| p.utility));
    }
    text
}

/// The example before and after each method, for one seed.
fn example(names: &[String], points: &Points) -> String {
    let mut text =
        "\n## An answer in jargon becomes plain\n\nReplies of the first seed to \"How do I explain quantum mechanics?\".\n\n\
         | model | reply | replies in jargon |\n|---|---|---|\n"
            .to_owned();
    for name in names {
        let Some(example) = points.of(name).last().and_then(|point| point.example.as_ref()) else { continue };
        let (first, second) = match name == START || example.jargon_share >= 0.5 {
            true => (&example.jargon, &example.plain),
            false => (&example.plain, &example.jargon),
        };
        let reply =
            first.as_ref().or(second.as_ref()).map_or("", String::as_str).replace('|', "\\|").replace('\n', " ");
        text += &format!("| {name} | {reply} | {:.0} % |\n", 100. * example.jargon_share);
    }
    text
}

/// True utility and score against the KL divergence: the mean over the seeds after each leg, from the fine-tuned model on.
fn plot<'a>(names: &[String], seeds: &[Points]) -> Plot<'a> {
    let curves = |number: fn(&Point) -> f64| {
        let curve = |name: &String| {
            let legs = seeds.iter().map(|points| points.of(name).len()).min().unwrap_or(0);
            let at = |points: Vec<&Point>| (mean(&points, |point| point.kl), mean(&points, number));
            let mut all = vec![at(of(seeds, START, 0))];
            all.extend((0..legs).map(|leg| at(of(seeds, name, leg))));
            Curve::new(name.as_str(), all)
        };
        names.iter().map(curve).collect()
    };
    let panel = |y, curves| Panel { y, log: false, curves };
    Plot {
        title: "Alignment: what is gained for the distance from the fine-tuned model",
        x: "KL from the fine-tuned model, nats per reply",
        panels: vec![
            panel("true utility", curves(|point| point.utility)),
            panel("reward model's score", curves(|point| point.score)),
        ],
    }
}

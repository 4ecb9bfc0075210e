//! `metrics.csv` and `report.html`: the metrics of a run as a table and as a page with curves and samples. Both are written anew from
//! `metrics.jsonl`, at every evaluation, every checkpoint and the end.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use llm_model::write_atomic;
use minijinja::value::Serde;
use serde::Serialize;
use serde_json::{Map, Value};

use super::events::numbers;
use crate::plot::{Curve, Panel, Plot};
use crate::{Error, Result};

/// The page. It needs no other file.
const TEMPLATE: &str = include_str!("report.html.jinja");

/// Curves are drawn with about this many points; more are averaged.
const POINTS: usize = 400;

/// Samples of at most this many evaluations are shown, the newest first.
const SAMPLES: usize = 5;

/// What the template shows.
#[derive(Serialize)]
struct Page<'a> {
    title: String,
    status: String,
    /// SVG.
    curves: String,
    /// SVG.
    other_curves: String,
    other_count: usize,
    /// (name, step, value).
    metrics: Vec<(&'a str, u64, String)>,
    /// (file, text).
    samples: Vec<(String, String)>,
    recipe: String,
}

/// Writes both files for the run in `dir`, of which `done` of `steps` steps are done.
pub(super) fn write(dir: &Path, lines: &[Map<String, Value>], done: u64, steps: u64) -> Result<()> {
    write_atomic(&dir.join("metrics.csv"), csv(lines).as_bytes())?;
    let seconds = lines.iter().filter_map(|line| line.get("elapsed_s")?.as_f64()).next_back().unwrap_or(0.);
    let name = |path: &Path| path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    let curves = curves(lines);
    let is_main = |name: &str| name.ends_with("loss") || ["learning_rate", "tokens_per_second"].contains(&name);
    let (main, other): (Vec<_>, Vec<_>) = curves.into_iter().partition(|curve| is_main(&curve.name));
    let other_count = other.len();
    let recipe = dir.join("recipe.toml");
    let page = Page {
        title: name(&dir.canonicalize().unwrap_or_else(|_| dir.to_owned())),
        status: format!("{done} of {steps} steps, {}", duration(seconds)),
        curves: svg(&main_panels(main))?,
        other_curves: svg(&other.iter().map(panel_of_one).collect::<Vec<_>>())?,
        other_count,
        metrics: last_values(lines),
        samples: samples(dir)?,
        recipe: fs::read_to_string(&recipe).map_err(Error::io(&recipe))?,
    };
    write_atomic(&dir.join("report.html"), page.render()?.as_bytes())?;
    Ok(())
}

impl Page<'_> {
    fn render(&self) -> Result<String> {
        let broken = |error: minijinja::Error| Error::Internal(format!("report.html: {error}"));
        let mut environment = minijinja::Environment::new();
        // The name turns on the escaping of HTML.
        environment.add_template("report.html", TEMPLATE).map_err(broken)?;
        environment.get_template("report.html").and_then(|page| page.render(Serde(self))).map_err(broken)
    }
}

/// A line for each step, with a column for each metric that is a number; a step without a metric has an empty cell.
fn csv(lines: &[Map<String, Value>]) -> String {
    let mut columns: Vec<&str> = Vec::new();
    let mut rows: BTreeMap<u64, BTreeMap<&str, f64>> = BTreeMap::new();
    for line in lines {
        let row = rows.entry(step(line)).or_default();
        let seconds = line.get("elapsed_s").and_then(Value::as_f64).map(|seconds| ("elapsed_s", seconds));
        for (name, value) in numbers(line).chain(seconds) {
            if !columns.contains(&name) {
                columns.push(name);
            }
            row.insert(name, value);
        }
    }
    let mut text = format!("step,{}\n", columns.join(","));
    for (step, row) in rows {
        let cells = columns.iter().map(|name| row.get(name).map_or(String::new(), f64::to_string));
        text += &format!("{step},{}\n", cells.collect::<Vec<_>>().join(","));
    }
    text
}

fn step(line: &Map<String, Value>) -> u64 {
    line.get("step").and_then(Value::as_u64).unwrap_or(0)
}

/// A curve for each metric that is a number, in the order in which they appear.
fn curves(lines: &[Map<String, Value>]) -> Vec<Curve> {
    let mut curves: Vec<Curve> = Vec::new();
    for line in lines {
        for (name, value) in numbers(line) {
            let point = (step(line) as f64, value);
            match curves.iter_mut().find(|curve| curve.name == name) {
                Some(curve) => curve.points.push(point),
                None => curves.push(Curve::new(name, vec![point])),
            }
        }
    }
    for curve in &mut curves {
        curve.points = thinned(&curve.points);
    }
    curves
}

/// At most [`POINTS`] points: the means of equal parts.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let size = points.len().div_ceil(POINTS).max(1);
    let mean = |part: &[(f64, f64)], of: fn(&(f64, f64)) -> f64| part.iter().map(of).sum::<f64>() / part.len() as f64;
    points.chunks(size).map(|part| (mean(part, |p| p.0), mean(part, |p| p.1))).collect()
}

/// The losses in one panel, and one each for learning rate and speed.
fn main_panels(curves: Vec<Curve>) -> Vec<Panel<'static>> {
    let (losses, others): (Vec<_>, Vec<_>) = curves.into_iter().partition(|curve| curve.name.ends_with("loss"));
    let log = losses.iter().flat_map(|curve| &curve.points).all(|&(_, y)| y > 0.);
    let mut panels = vec![Panel { y: "loss in nats", log, curves: losses }];
    for (name, y) in [("learning_rate", "learning rate"), ("tokens_per_second", "tokens per second")] {
        panels.push(Panel {
            y,
            log: false,
            curves: others.iter().filter(|curve| curve.name == name).cloned().collect(),
        });
    }
    panels.retain(|panel| !panel.curves.is_empty());
    panels
}

fn panel_of_one(curve: &Curve) -> Panel<'_> {
    Panel { y: &curve.name, log: false, curves: vec![curve.clone()] }
}

fn svg(panels: &[Panel]) -> Result<String> {
    if panels.is_empty() {
        return Ok(String::new());
    }
    Plot { title: "", x: "step", panels: panels.to_vec() }.svg()
}

/// The last value of each metric, with its step.
fn last_values(lines: &[Map<String, Value>]) -> Vec<(&str, u64, String)> {
    let mut values: Vec<(&str, u64, String)> = Vec::new();
    for line in lines {
        for (name, value) in numbers(line) {
            values.retain(|(known, ..)| *known != name);
            values.push((name, step(line), shown(value)));
        }
    }
    values
}

/// At most six digits after the point; small numbers as powers of ten.
fn shown(value: f64) -> String {
    match value.abs() {
        x if x > 0. && x < 0.001 => format!("{value:.3e}"),
        _ => ((value * 1e6).round() / 1e6).to_string(),
    }
}

/// The newest samples: file name and text.
fn samples(dir: &Path) -> Result<Vec<(String, String)>> {
    let folder = dir.join("samples");
    let mut steps = Vec::new();
    for entry in fs::read_dir(&folder).into_iter().flatten() {
        let name = entry.map_err(Error::io(&folder))?.file_name().to_string_lossy().into_owned();
        let step = name.strip_prefix("step-").and_then(|n| n.strip_suffix(".txt")?.parse::<u64>().ok());
        steps.extend(step.map(|step| (step, name)));
    }
    steps.sort_unstable();
    let newest = steps.into_iter().rev().take(SAMPLES);
    newest
        .map(|(_, name)| Ok((name.clone(), fs::read_to_string(folder.join(&name)).map_err(Error::io(&folder))?)))
        .collect()
}

fn duration(seconds: f64) -> String {
    match seconds as u64 {
        0..60 => format!("{seconds:.1} seconds"),
        s @ 60..3600 => format!("{} min {} s", s / 60, s % 60),
        s => format!("{} h {} min", s / 3600, s / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn lines(all: Vec<Value>) -> Vec<Map<String, Value>> {
        all.into_iter().map(|line| line.as_object().unwrap().clone()).collect()
    }

    #[test]
    fn the_table_has_a_line_for_each_step() {
        let lines = lines(vec![
            json!({"step": 0, "eval_loss": 3.5, "elapsed_s": 0.5}),
            json!({"step": 1, "loss": 4.0, "learning_rate": 0.001, "tokens_per_expert": [1, 2], "elapsed_s": 1.0}),
            json!({"step": 1, "eval_loss": 3.25, "elapsed_s": 2.0}),
        ]);
        assert_eq!(csv(&lines), "step,eval_loss,elapsed_s,loss,learning_rate\n0,3.5,0.5,,\n1,3.25,2,4,0.001\n");
    }

    #[test]
    fn the_page_has_curves_and_escaped_samples() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("samples")).unwrap();
        fs::write(dir.path().join("samples/step-2.txt"), "old").unwrap();
        fs::write(dir.path().join("samples/step-10.txt"), "a <b> & c").unwrap();
        fs::write(dir.path().join("recipe.toml"), "seed = 1").unwrap();
        let line = |i: u64| json!({"step": i, "loss": 4.0 / (i + 1) as f64, "accuracy": 0.5, "elapsed_s": i});
        let lines = lines((1..=1000).map(line).collect());
        write(dir.path(), &lines, 1000, 2000).unwrap();
        let page = fs::read_to_string(dir.path().join("report.html")).unwrap();
        assert!(page.contains("1000 of 2000 steps, 16 min 40 s"), "{page}");
        assert!(page.contains("a &lt;b&gt; &amp; c") && page.matches("<svg").count() == 2);
        assert!(page.find("step-10.txt") < page.find("step-2.txt"), "the newest first");
        assert!(page.len() < 100_000, "{} bytes", page.len());
        assert!(
            !page.contains("http://") || page.matches("http://").count() == page.matches("http://www.w3.org").count()
        );
    }

    #[test]
    fn long_curves_are_thinned_to_means() {
        let points: Vec<(f64, f64)> = (0..1000).map(|i| (f64::from(i), f64::from(i % 2))).collect();
        let thin = thinned(&points);
        assert!(thin.len() <= POINTS && thin.len() > POINTS / 2);
        assert_eq!(thin[0], (1., 1. / 3.));
        assert_eq!(thinned(&points[..3]), points[..3]);
    }
}

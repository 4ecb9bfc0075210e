//! SVG plots of the curves of one or several runs.
//!
//! A plot has one or more panels with a common x axis; metrics with different units go into different panels. Use a logarithmic y
//! axis for losses. Curves with few points have markers; the mean of several runs has a band from minimum to maximum. The legend
//! is to the right of the data. The colours are those of Okabe and Ito (2008), safe for colour-blind readers.
//!
//! ```
//! use llm_train::plot::{Curve, Panel, Plot};
//!
//! let loss = Curve::new("train", vec![(1., 7.6), (2., 4.1), (3., 2.9)]);
//! let panel = Panel { y: "loss in nats", log: true, curves: vec![loss] };
//! let plot = Plot { title: "Pre-training", x: "step", panels: vec![panel] };
//! assert!(plot.svg()?.starts_with("<svg"));
//! # Ok::<(), llm_train::Error>(())
//! ```

mod axis;

use std::collections::HashMap;
use std::path::Path;

use plotters::coord::{CoordTranslate, Shift};
use plotters::drawing::DrawingAreaErrorKind;
use plotters::prelude::*;
use serde_json::Value;

use self::axis::Scale;
use crate::{Error, Result};

/// Colours of the curves of a panel, in order: blue, vermillion, green, purple, orange.
const COLOURS: [RGBColor; 5] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
];

/// Curves with at most this many points have markers.
const MARKED: usize = 40;

const WIDTH: u32 = 900;
const PANEL_HEIGHT: u32 = 320;
const TITLE_HEIGHT: u32 = 44;
const LEGEND_WIDTH: u32 = 190;

/// A curve of a plot.
#[derive(Debug, Clone, PartialEq)]
pub struct Curve {
    /// The name in the legend.
    pub name: String,
    /// (x, y) in drawing order.
    pub points: Vec<(f64, f64)>,
    /// (x, minimum, maximum) over the runs; empty for one run.
    pub band: Vec<(f64, f64, f64)>,
}

impl Curve {
    /// The curve of one run.
    pub fn new(name: impl Into<String>, points: Vec<(f64, f64)>) -> Self {
        Self { name: name.into(), points, band: Vec::new() }
    }

    /// The mean of several runs at each x that all runs have, with a band from minimum to maximum.
    pub fn over_runs(name: impl Into<String>, runs: &[Vec<(f64, f64)>]) -> Self {
        let mut curve = Self::new(name, Vec::new());
        let Some((first, others)) = runs.split_first() else { return curve };
        let others: Vec<HashMap<u64, f64>> =
            others.iter().map(|run| run.iter().map(|&(x, y)| (x.to_bits(), y)).collect()).collect();
        for &(x, y) in first {
            let others: Option<Vec<f64>> = others.iter().map(|run| run.get(&x.to_bits()).copied()).collect();
            let Some(mut all) = others else { continue };
            all.push(y);
            curve.points.push((x, all.iter().sum::<f64>() / all.len() as f64));
            if all.len() > 1 {
                let (low, high) = bounds(all.iter().copied()).unwrap_or((y, y));
                curve.band.push((x, low, high));
            }
        }
        curve
    }
}

/// Curves with a common y axis.
#[derive(Debug, Clone, PartialEq)]
pub struct Panel<'a> {
    /// The label of the y axis, with its unit.
    pub y: &'a str,
    /// Whether the y axis is logarithmic; then values that are not positive are left out.
    pub log: bool,
    /// The curves.
    pub curves: Vec<Curve>,
}

/// A plot of one or more panels.
#[derive(Debug, Clone, PartialEq)]
pub struct Plot<'a> {
    /// The title.
    pub title: &'a str,
    /// The label of the x axis. If all x are whole numbers (steps), so are the ticks.
    pub x: &'a str,
    /// The panels, from top to bottom.
    pub panels: Vec<Panel<'a>>,
}

impl Plot<'_> {
    /// Writes the plot as SVG.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        Ok(llm_model::write_atomic(path.as_ref(), self.svg()?.as_bytes())?)
    }

    /// The plot as SVG.
    pub fn svg(&self) -> Result<String> {
        let mut svg = String::new();
        self.draw(&mut svg).map_err(|e| Error::Internal(format!("the plot \"{}\": {e}", self.title)))?;
        Ok(svg)
    }

    fn draw(&self, svg: &mut String) -> Result<(), Drawing> {
        let panels = self.panels.len().max(1);
        let size = (WIDTH, TITLE_HEIGHT + panels as u32 * PANEL_HEIGHT);
        let area = SVGBackend::with_string(svg, size).into_drawing_area();
        area.fill(&WHITE)?;
        let title = ("sans-serif", 22).into_text_style(&area);
        area.draw_text(self.title, &title, (16, 14))?;
        let (_, rest) = area.split_vertically(TITLE_HEIGHT);
        let xs = || self.panels.iter().flat_map(Panel::visible).flat_map(|(points, _)| points).map(|(x, _)| x);
        let (left, right) = bounds(xs()).map_or((0., 1.), |(l, r)| if l < r { (l, r) } else { (l - 1., r + 1.) });
        let x_ticks = axis::ticks(left, right, 8, xs().all(|x| x.fract() == 0.));
        let last = panels - 1;
        for (i, (panel, area)) in self.panels.iter().zip(rest.split_evenly((panels, 1))).enumerate() {
            let (area, legend) = area.split_horizontally(WIDTH - LEGEND_WIDTH);
            let x = Scale { low: left, high: right, log: false, ticks: x_ticks.clone() };
            panel.draw(&area, x, if i == last { self.x } else { "" })?;
            panel.draw_legend(&legend)?;
        }
        area.present()?;
        Ok(())
    }
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawing = DrawingAreaErrorKind<std::io::Error>;
type Band = Vec<(f64, f64, f64)>;

impl Panel<'_> {
    /// The points and bands that can be drawn, per curve.
    fn visible(&self) -> impl Iterator<Item = (Vec<(f64, f64)>, Band)> {
        let shown = |y: f64| y.is_finite() && (!self.log || y > 0.);
        self.curves.iter().map(move |curve| {
            let points = curve.points.iter().copied().filter(|&(x, y)| x.is_finite() && shown(y));
            let band = curve.band.iter().copied().filter(|&(x, low, high)| x.is_finite() && shown(low) && shown(high));
            (points.collect(), band.collect())
        })
    }

    /// The range of the y axis: the range of the data plus a margin.
    fn range(&self) -> (f64, f64) {
        let ys = self.visible().flat_map(|(points, band)| {
            let of_band = band.into_iter().flat_map(|(_, low, high)| [low, high]);
            points.into_iter().map(|(_, y)| y).chain(of_band).collect::<Vec<_>>()
        });
        match bounds(ys) {
            None => (1., 10.),
            Some((low, high)) if self.log => {
                let margin = (high / low).powf(0.05).max(1.02);
                (low / margin, high * margin)
            }
            Some((low, high)) if low < high => (low - 0.05 * (high - low), high + 0.05 * (high - low)),
            Some((low, _)) => (low - 1., low + 1.),
        }
    }

    fn draw(&self, area: &Area, x: Scale, x_name: &str) -> Result<(), Drawing> {
        let (low, high) = self.range();
        let ticks = if self.log { axis::log_ticks(low, high) } else { axis::ticks(low, high, 7, false) };
        let mut chart = ChartBuilder::on(area)
            .margin(12)
            .x_label_area_size(if x_name.is_empty() { 24 } else { 44 })
            .y_label_area_size(70)
            .build_cartesian_2d(x, Scale { low, high, log: self.log, ticks })?;
        chart
            .configure_mesh()
            .x_desc(x_name)
            .y_desc(self.y)
            .x_labels(20)
            .y_labels(20)
            .x_label_formatter(&|tick| axis::label(*tick))
            .y_label_formatter(&|tick| axis::label(*tick))
            .label_style(("sans-serif", 14))
            .axis_desc_style(("sans-serif", 15))
            .bold_line_style(BLACK.mix(0.12))
            .light_line_style(TRANSPARENT)
            .draw()?;
        for (i, (points, band)) in self.visible().enumerate() {
            let colour = COLOURS[i % COLOURS.len()];
            if band.len() > 1 {
                let low = band.iter().map(|&(x, low, _)| (x, low));
                let high = band.iter().rev().map(|&(x, _, high)| (x, high));
                let outline: Vec<(f64, f64)> = low.chain(high).collect();
                chart.draw_series([Polygon::new(outline, colour.mix(0.2).filled())])?;
            }
            let marked = points.len() <= MARKED;
            if marked {
                for &at in &points {
                    draw_marker(chart.plotting_area(), at, i, colour)?;
                }
            }
            let width = if marked { 2 } else { 1 };
            chart.draw_series(LineSeries::new(points, colour.stroke_width(width)))?;
        }
        Ok(())
    }

    /// One line per curve: colour, marker and name.
    fn draw_legend(&self, area: &Area) -> Result<(), Drawing> {
        let text = ("sans-serif", 15).into_text_style(area);
        for (i, (curve, (points, _))) in self.curves.iter().zip(self.visible()).enumerate() {
            let (y, colour) = (24 + 24 * i as i32, COLOURS[i % COLOURS.len()]);
            area.draw(&PathElement::new([(4, y), (32, y)], colour.stroke_width(2)))?;
            if points.len() <= MARKED {
                draw_marker(area, (18, y), i, colour)?;
            }
            area.draw_text(&curve.name, &text, (40, y - 6))?;
        }
        Ok(())
    }
}

/// Draws a marker. Circles, squares and triangles alternate, so that curves differ in print without colours.
fn draw_marker<T>(area: &DrawingArea<SVGBackend, T>, at: T::From, curve: usize, colour: RGBColor) -> Result<(), Drawing>
where
    T: CoordTranslate,
    T::From: Clone,
{
    let style = colour.filled();
    match curve % 3 {
        0 => area.draw(&Circle::new(at, 4, style)),
        1 => area.draw(&(EmptyElement::at(at) + Rectangle::new([(-4, -4), (4, 4)], style))),
        _ => area.draw(&TriangleMarker::new(at, 5, style)),
    }
}

/// The minimum and maximum of the finite numbers, if there are any.
fn bounds(numbers: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    numbers.filter(|x| x.is_finite()).fold(None, |range, x| match range {
        None => Some((x, x)),
        Some((low, high)) => Some((f64::min(low, x), f64::max(high, x))),
    })
}

/// (step, value) of a metric in the `metrics.jsonl` of a run.
pub fn metric(dir: impl AsRef<Path>, name: &str) -> Result<Vec<(f64, f64)>> {
    let path = dir.as_ref().join("metrics.jsonl");
    let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    Ok(lines.filter_map(|line| Some((line.get("step")?.as_f64()?, line.get(name)?.as_f64()?))).collect())
}

#[cfg(test)]
mod tests;

//! The plot of the command: each measure by the temperature.

use llm_cli::Failure;
use plotters::prelude::*;

use super::measure::Level;

const WIDTH: u32 = 900;
const ROW_HEIGHT: u32 = 300;
const LINE: RGBColor = RGBColor(0, 114, 178);

/// A panel: its title and the value at each temperature.
type Measure = (&'static str, fn(&Level) -> Option<f64>);

const MEASURES: [Measure; 4] = [
    ("distinct-2: share of different word pairs", |level| Some(level.distinct_2)),
    ("entropy in nats", |level| Some(level.entropy)),
    ("share of repeated sequences of four words", |level| Some(level.repeated)),
    ("share of right answers", |level| level.right.map(|(share, _)| share)),
];

/// The plot as SVG.
pub(super) fn svg(levels: &[Level]) -> Result<String, Failure> {
    let mut svg = String::new();
    draw(levels, &mut svg).map_err(|e| Failure::internal(format!("the plot could not be drawn: {e}")))?;
    Ok(svg)
}

fn draw(levels: &[Level], svg: &mut String) -> Result<(), Box<dyn std::error::Error>> {
    let mut sorted: Vec<&Level> = levels.iter().collect();
    sorted.sort_by(|a, b| a.temperature.total_cmp(&b.temperature));
    let known: Vec<&Measure> =
        MEASURES.iter().filter(|(_, value)| sorted.iter().any(|level| value(level).is_some())).collect();
    let rows = known.len().div_ceil(2);
    let area = SVGBackend::with_string(svg, (WIDTH, rows as u32 * ROW_HEIGHT)).into_drawing_area();
    area.fill(&WHITE)?;
    let right = sorted.last().map_or(1., |level| level.temperature).max(0.1);
    for ((title, value), panel) in known.into_iter().zip(area.split_evenly((rows, 2))) {
        let points: Vec<(f64, f64)> =
            sorted.iter().filter_map(|level| Some((level.temperature, value(level)?))).collect();
        let top = points.iter().map(|(_, y)| *y).fold(1f64, f64::max);
        let mut chart = ChartBuilder::on(&panel)
            .caption(title, ("sans-serif", 16))
            .margin(10)
            .x_label_area_size(36)
            .y_label_area_size(44)
            .build_cartesian_2d(0f64..right, 0f64..top * 1.05)?;
        chart.configure_mesh().x_desc("temperature").light_line_style(WHITE).draw()?;
        chart.draw_series(LineSeries::new(points.iter().copied(), LINE.stroke_width(2)))?;
        chart.draw_series(points.iter().map(|point| Circle::new(*point, 4, LINE.filled())))?;
    }
    area.present()?;
    Ok(())
}

//! Curves of a run as SVG.

use std::path::Path;

use plotters::prelude::*;
use serde_json::Value;

use crate::{Error, Result};

/// A line of a plot.
pub(crate) struct Curve {
    /// What it shows.
    pub name: &'static str,
    /// (x, y), x rising.
    pub points: Vec<(f64, f64)>,
}

/// The figures of that name in the `metrics.jsonl` of a run: (step, figure).
pub(crate) fn metric(dir: &Path, name: &str) -> Result<Vec<(f64, f64)>> {
    let path = dir.join("metrics.jsonl");
    let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    Ok(lines.filter_map(|line| Some((line.get("step")?.as_f64()?, line.get(name)?.as_f64()?))).collect())
}

/// Draws curves into an SVG file.
pub(crate) fn line_plot(path: &Path, title: &str, x: &str, y: &str, curves: &[Curve]) -> Result<()> {
    let mut svg = String::new();
    draw(&mut svg, title, x, y, curves).map_err(|e| Error::Input(format!("{}: {e}", path.display())))?;
    Ok(llm_model::write_atomic(path, svg.as_bytes())?)
}

fn draw(svg: &mut String, title: &str, x: &str, y: &str, curves: &[Curve]) -> Result<(), Box<dyn std::error::Error>> {
    const COLOURS: [RGBColor; 3] = [RGBColor(31, 119, 180), RGBColor(214, 84, 24), RGBColor(44, 140, 60)];
    let range = |pick: fn(&(f64, f64)) -> f64| {
        let all = || curves.iter().flat_map(|c| &c.points).map(pick).filter(|x| x.is_finite());
        let (low, high) = (all().fold(f64::INFINITY, f64::min), all().fold(f64::NEG_INFINITY, f64::max));
        if low < high { (low, high) } else { (low.min(0.), high.max(1.)) }
    };
    let ((left, right), (low, high)) = (range(|p| p.0), range(|p| p.1));
    let margin = 0.05 * (high - low);
    let area = SVGBackend::with_string(svg, (800, 400)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 22))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(60)
        .build_cartesian_2d(left..right, low - margin..high + margin)?;
    chart.configure_mesh().x_desc(x).y_desc(y).light_line_style(WHITE).draw()?;
    for (curve, colour) in curves.iter().zip(COLOURS.into_iter().cycle()) {
        let line = LineSeries::new(curve.points.iter().copied(), colour.stroke_width(2));
        let mark = move |(x, y)| PathElement::new(vec![(x, y), (x + 20, y)], colour.stroke_width(2));
        chart.draw_series(line)?.label(curve.name).legend(mark);
    }
    chart.configure_series_labels().background_style(WHITE.mix(0.8)).border_style(BLACK).draw()?;
    area.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plot_names_its_curves_and_copes_with_nothing_to_show() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("plots/loss.svg");
        let curves = [
            Curve { name: "train", points: vec![(0., 3.), (1., 2.), (2., 1.5)] },
            Curve { name: "held-out", points: vec![(2., 1.7)] },
        ];
        line_plot(&path, "Loss", "step", "nats", &curves).unwrap();
        let svg = std::fs::read_to_string(&path).unwrap();
        assert!(svg.starts_with("<svg") && ["Loss", "held-out", "nats"].iter().all(|text| svg.contains(text)));
        line_plot(&path, "Nothing", "step", "nats", &[]).unwrap();
    }

    #[test]
    fn metrics_are_read_by_name() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(
            dir.path().join("metrics.jsonl"),
            "{\"step\":1,\"loss\":2.5}\n{\"step\":1,\"eval\":3}\n{\"step\":2,\"loss\":2.0}\n",
        )
        .unwrap();
        assert_eq!(metric(dir.path(), "loss").unwrap(), [(1., 2.5), (2., 2.)]);
    }
}

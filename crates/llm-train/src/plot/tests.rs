use super::*;

fn plot(log: bool, curves: Vec<Curve>) -> String {
    let panel = Panel { y: "nats", log, curves };
    Plot { title: "Loss", x: "step", panels: vec![panel] }.svg().unwrap()
}

/// (x, text) of all texts in an SVG.
fn texts(svg: &str) -> Vec<(f64, String)> {
    let elements = svg.split("<text ").skip(1);
    let text = |element: &str| {
        let x = element.split("x=\"").nth(1)?.split('"').next()?.parse().ok()?;
        let text = element.split_once('>')?.1.split("</text>").next()?.trim();
        Some((x, text.to_owned()))
    };
    elements.filter_map(text).collect()
}

/// The vertices of all polylines, in pixels.
fn lines(svg: &str) -> Vec<Vec<(f64, f64)>> {
    let number = |text: &str| text.parse().unwrap();
    let vertices = |element: &str| -> Vec<(f64, f64)> {
        let points = element.split("points=\"").nth(1).unwrap().split('"').next().unwrap();
        points.split_whitespace().map(|p| p.split_once(',').map(|(x, y)| (number(x), number(y))).unwrap()).collect()
    };
    svg.split("<polyline ").skip(1).map(vertices).collect()
}

/// The polyline with this number of points.
fn line(svg: &str, points: usize) -> Vec<(f64, f64)> {
    lines(svg).into_iter().find(|line| line.len() == points).unwrap()
}

#[test]
fn a_logarithmic_axis_maps_equal_ratios_to_equal_distances() {
    let curve = || vec![Curve::new("train", vec![(0., 100.), (1., 10.), (2., 1.), (3., 0.), (4., -1.)])];
    let at = line(&plot(true, curve()), 3);
    assert!(((at[1].1 - at[0].1) - (at[2].1 - at[1].1)).abs() <= 1., "{at:?}");
    assert!(at[1].1 - at[0].1 > 50.);
    let at = line(&plot(false, curve()), 5);
    assert!((at[1].1 - at[0].1) > 9. * (at[2].1 - at[1].1), "{at:?}");
}

#[test]
fn ticks_of_whole_numbers_are_whole() {
    let labels = |last: f64| {
        let svg = plot(false, vec![Curve::new("train", vec![(0., 1.), (last, 2.)])]);
        texts(&svg).into_iter().map(|(_, text)| text).collect::<Vec<_>>()
    };
    let whole = labels(5.);
    assert!(["0", "1", "2", "3", "4", "5"].iter().all(|tick| whole.iter().any(|t| t == tick)), "{whole:?}");
    assert!(!whole.iter().any(|text| text.ends_with(".0")), "{whole:?}");
    assert!(labels(0.5).contains(&"0.1".to_owned()));
}

#[test]
fn the_legend_is_to_the_right_of_the_data() {
    let svg = plot(false, vec![Curve::new("validation", vec![(0., 1.), (700., 2.), (1000., 1.5)])]);
    let right = line(&svg, 3).iter().map(|p| p.0).fold(0., f64::max);
    let (x, _) = texts(&svg).into_iter().find(|(_, text)| text == "validation").unwrap();
    assert!(x > right, "{x} is not right of {right}");
}

#[test]
fn only_curves_with_few_points_have_markers() {
    let curve = |n: u32| Curve::new("train", (0..n).map(|i| (f64::from(i), 1.)).collect());
    // Plus one marker in the legend.
    assert_eq!(plot(false, vec![curve(7)]).matches("<circle").count(), 8);
    assert_eq!(plot(false, vec![curve(100)]).matches("<circle").count(), 0);
}

#[test]
fn a_band_is_from_minimum_to_maximum() {
    let runs = [vec![(0., 1.), (1., 5.), (2., 0.)], vec![(0., 3.), (1., 2.)], vec![(1., 2.), (0., 2.)]];
    let curve = Curve::over_runs("mean of 3", &runs);
    assert_eq!(curve.points, [(0., 2.), (1., 3.)], "2 is missing in two runs");
    assert_eq!(curve.band, [(0., 1., 3.), (1., 2., 5.)]);
    assert_eq!(plot(false, vec![curve]).matches("<polygon").count(), 1);
    assert_eq!(Curve::over_runs("one", &runs[..1]).band, []);
    assert_eq!(Curve::over_runs("none", &[]).points, []);
}

#[test]
fn panels_share_the_x_axis_only() {
    let panel = |y, points| Panel { y, log: false, curves: vec![Curve::new(y, points)] };
    let panels = vec![
        panel("score", vec![(0., 0.), (2., 0.5), (8., 0.8), (10., 1.)]),
        panel("KL in nats", vec![(5., 900.), (6., 0.), (7., 1.)]),
    ];
    let svg = Plot { title: "PPO", x: "update", panels }.svg().unwrap();
    let (score, kl) = (line(&svg, 4), line(&svg, 3));
    assert!(score.iter().all(|p| kl.iter().all(|q| p.1 < q.1)), "one panel is above the other");
    assert!(score[0].0 < kl[0].0 && kl[2].0 < score[3].0, "5 to 7 is within 0 to 10");
    assert!((score[0].1 - score[3].1).abs() > 150. && (kl[0].1 - kl[1].1).abs() > 150.);
    assert_eq!(texts(&svg).iter().filter(|(_, text)| text == "update").count(), 1);
}

#[test]
fn a_plot_without_data_is_drawn() {
    for log in [false, true] {
        for points in [vec![], vec![(3., 2.)], vec![(0., f64::NAN), (1., f64::INFINITY)], vec![(1., 0.), (2., 0.)]] {
            assert!(plot(log, vec![Curve::new("train", points)]).starts_with("<svg"));
        }
        assert!(plot(log, vec![]).contains("Loss"));
    }
    assert!(Plot { title: "Empty", x: "step", panels: vec![] }.svg().is_ok());
}

#[test]
fn metrics_are_read_and_a_plot_is_saved() {
    let dir = tempfile::tempdir().unwrap();
    let lines = "{\"step\":1,\"loss\":2.5}\n{\"step\":1,\"eval\":3}\n{\"step\":2,\"loss\":2.0}\n";
    std::fs::write(dir.path().join("metrics.jsonl"), lines).unwrap();
    let points = metric(dir.path(), "loss").unwrap();
    assert_eq!(points, [(1., 2.5), (2., 2.)]);
    let path = dir.path().join("plots/loss.svg");
    let panel = Panel { y: "nats", log: true, curves: vec![Curve::new("train", points)] };
    Plot { title: "Loss", x: "step", panels: vec![panel] }.save(&path).unwrap();
    assert!(std::fs::read_to_string(&path).unwrap().contains("train"));
}

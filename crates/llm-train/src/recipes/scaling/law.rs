//! The law of Hoffmann et al. (2022, arXiv 2203.15556, approach 3): `L(N, D) = E + A / N^α + B / D^β`, with `N` parameters, `D`
//! training tokens and the loss `L` in nats per token.

use argmin::core::{CostFunction, Executor, State};
use argmin::solver::neldermead::NelderMead;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use crate::{Error, Result};

/// A trained model: its parameters, its training tokens, and its loss.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Point {
    /// `N`: parameters that multiply a token.
    pub parameters: f64,
    /// `D`: training tokens.
    pub tokens: f64,
    /// Validation loss in nats per token.
    pub loss: f64,
}

/// The constants of the law.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Law {
    /// `E`: the loss of a model without limits.
    pub e: f64,
    /// `A`.
    pub a: f64,
    /// `α`.
    pub alpha: f64,
    /// `B`.
    pub b: f64,
    /// `β`.
    pub beta: f64,
}

/// The residuals of `ln L` above this count linearly.
const HUBER: f64 = 1e-3;
/// Steps of the search from one start.
const STEPS: u64 = 2000;

impl Law {
    /// The loss in nats of a model of `parameters` after `tokens`.
    pub fn loss(&self, parameters: f64, tokens: f64) -> f64 {
        self.e + self.a * parameters.powf(-self.alpha) + self.b * tokens.powf(-self.beta)
    }

    /// The parameters with the lowest loss for `flops = 6 · N · D`, and that loss (equation 4 of the paper).
    pub fn optimum(&self, flops: f64) -> (f64, f64) {
        let product = flops / 6.;
        let ratio = self.alpha * self.a / (self.beta * self.b);
        let parameters = (ratio * product.powf(self.beta)).powf(1. / (self.alpha + self.beta));
        (parameters, self.loss(parameters, product / parameters))
    }

    /// The law with the least Huber loss of `ln L` on the points, from many starts. It is an error if the points have fewer than two
    /// sizes, two numbers of tokens and five different pairs of both.
    pub fn fit(points: &[Point]) -> Result<Self> {
        check(points)?;
        let lowest = points.iter().map(|point| point.loss).fold(f64::INFINITY, f64::min);
        let mut starts = Vec::new();
        for exponent in [0.2, 0.35, 0.5, 0.8] {
            for floor in [0.3, 0.6, 0.9] {
                for share in [0.3, 0.7] {
                    starts.push(Problem::start(points, lowest, exponent, floor, share));
                }
            }
        }
        Problem { points }.minimum(&starts)
    }

    /// The laws of `draws` bootstrap samples: each draws within every pair of (parameters, tokens) with replacement, as many runs as
    /// there are. With one run per pair all are the same.
    pub fn bootstrap(&self, points: &[Point], draws: usize, seed: u64) -> Result<Vec<Self>> {
        check(points)?;
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let groups = groups(points);
        let sample = |random: &mut ChaCha8Rng| -> Vec<Point> {
            groups
                .iter()
                .flat_map(|group| group.iter().map(|_| group[random.random_range(0..group.len())]).collect::<Vec<_>>())
                .collect()
        };
        (0..draws).map(|_| Problem { points: &sample(&mut random) }.minimum(&[self.variables()])).collect()
    }

    /// The variables of the search: `ln E`, `ln A`, `α`, `ln B`, `β`.
    fn variables(&self) -> Vec<f64> {
        vec![self.e.ln(), self.a.ln(), self.alpha, self.b.ln(), self.beta]
    }

    fn of(variables: &[f64]) -> Self {
        match *variables {
            [e, a, alpha, b, beta] => Self { e: e.exp(), a: a.exp(), alpha, b: b.exp(), beta },
            _ => Self { e: f64::NAN, a: f64::NAN, alpha: f64::NAN, b: f64::NAN, beta: f64::NAN },
        }
    }
}

/// The points with the same parameters and tokens.
pub(super) fn groups(points: &[Point]) -> Vec<Vec<Point>> {
    let mut groups: Vec<Vec<Point>> = Vec::new();
    for point in points {
        let same = |group: &&mut Vec<Point>| group[0].parameters == point.parameters && group[0].tokens == point.tokens;
        match groups.iter_mut().find(same) {
            Some(group) => group.push(*point),
            None => groups.push(vec![*point]),
        }
    }
    groups
}

fn check(points: &[Point]) -> Result<()> {
    let distinct = |value: fn(&Point) -> f64| {
        let mut all: Vec<u64> = points.iter().map(|point| value(point).to_bits()).collect();
        all.sort_unstable();
        all.dedup();
        all.len()
    };
    let (sizes, horizons, pairs) = (distinct(|p| p.parameters), distinct(|p| p.tokens), groups(points).len());
    if sizes < 2 || horizons < 2 || pairs < 5 {
        return Err(Error::BadRequest(format!(
            "a scaling law has five constants; {pairs} different runs with {sizes} sizes and {horizons} numbers of tokens cannot fix them; \
             give more depths or more tokens_per_parameter"
        )));
    }
    if let Some(point) =
        points.iter().find(|p| !(p.parameters > 0. && p.tokens > 0. && p.loss > 0. && p.loss.is_finite()))
    {
        return Err(Error::BadRequest(format!("{point:?}: a point of a scaling law must have positive numbers")));
    }
    Ok(())
}

/// The sum of Huber losses of `ln L` over the points.
#[derive(Clone, Copy)]
struct Problem<'a> {
    points: &'a [Point],
}

impl CostFunction for Problem<'_> {
    type Param = Vec<f64>;
    type Output = f64;

    fn cost(&self, variables: &Vec<f64>) -> Result<f64, argmin::core::Error> {
        let law = Law::of(variables);
        // A negative exponent means that more is worse; the search stays out of there.
        let outside = (-law.alpha).max(0.) + (-law.beta).max(0.);
        let sum: f64 = self
            .points
            .iter()
            .map(|point| {
                let residual = (law.loss(point.parameters, point.tokens).ln() - point.loss.ln()).abs();
                if residual <= HUBER { residual * residual / 2. } else { HUBER * (residual - HUBER / 2.) }
            })
            .sum();
        Ok(if sum.is_finite() { sum + outside } else { f64::MAX })
    }
}

impl Problem<'_> {
    /// A start: the loss above `floor · lowest` at the first point is from the parameters by `share`, from the tokens by the rest.
    fn start(points: &[Point], lowest: f64, exponent: f64, floor: f64, share: f64) -> Vec<f64> {
        let (first, e) = (points[0], floor * lowest);
        let above = (first.loss - e).max(1e-3);
        let scale = |share: f64, x: f64| (share * above).ln() + exponent * x.ln();
        vec![e.ln(), scale(share, first.parameters), exponent, scale(1. - share, first.tokens), exponent]
    }

    /// The best law that the Nelder-Mead method finds from the starts; it is started again from its own result.
    fn minimum(self, starts: &[Vec<f64>]) -> Result<Law> {
        let failed = |error: argmin::core::Error| Error::Internal(format!("the fit of the scaling law: {error}"));
        let mut best: Option<(f64, Vec<f64>)> = None;
        for start in starts {
            let mut found = (f64::INFINITY, start.clone());
            for size in [0.3, 0.05] {
                let mut simplex = vec![found.1.clone()];
                simplex.extend((0..start.len()).map(|i| {
                    let mut corner = found.1.clone();
                    corner[i] += size;
                    corner
                }));
                let solver = NelderMead::new(simplex).with_sd_tolerance(1e-14).map_err(failed)?;
                let result =
                    Executor::new(self, solver).configure(|state| state.max_iters(STEPS)).run().map_err(failed)?;
                let state = result.state();
                if let Some(variables) = state.get_best_param() {
                    found = (state.get_best_cost(), variables.clone());
                }
            }
            if best.as_ref().is_none_or(|(cost, _)| found.0 < *cost) {
                best = Some(found);
            }
        }
        best.map(|(_, variables)| Law::of(&variables))
            .ok_or_else(|| Error::Internal("the fit of the scaling law has no start".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The published constants (Hoffmann et al. 2022, equation 10).
    const CHINCHILLA: Law = Law { e: 1.69, a: 406.4, alpha: 0.34, b: 410.7, beta: 0.28 };

    fn points(noise: impl Fn(usize) -> f64) -> Vec<Point> {
        let sizes = [1e6, 4e6, 1.6e7, 6.4e7];
        let pairs = sizes.iter().flat_map(|&n| [5., 20., 80.].map(|ratio| (n, ratio * n)));
        pairs
            .enumerate()
            .map(|(i, (n, d))| Point { parameters: n, tokens: d, loss: CHINCHILLA.loss(n, d) * noise(i) })
            .collect()
    }

    #[test]
    fn the_constants_of_exact_points_are_found() {
        let law = Law::fit(&points(|_| 1.)).unwrap();
        for (found, exact) in law.variables().iter().zip(CHINCHILLA.variables()) {
            assert!((found - exact).abs() < 0.02, "{law:?}");
        }
        // 70 billion parameters and 1.4 trillion tokens (table A9 of the paper: 1.94).
        assert!((law.loss(70e9, 1.4e12) - 1.937).abs() < 0.01, "{}", law.loss(70e9, 1.4e12));
    }

    #[test]
    fn one_outlier_hardly_moves_the_law() {
        let law = Law::fit(&points(|i| if i == 5 { 1.2 } else { 1. })).unwrap();
        assert!((law.loss(2e6, 4e7) / CHINCHILLA.loss(2e6, 4e7) - 1.).abs() < 0.01, "{law:?}");
    }

    #[test]
    fn the_optimum_is_a_minimum_of_the_loss_at_equal_compute() {
        let flops = 1e18;
        let (parameters, loss) = CHINCHILLA.optimum(flops);
        for factor in [0.7, 1.4] {
            let n = parameters * factor;
            assert!(CHINCHILLA.loss(n, flops / 6. / n) > loss);
        }
    }

    #[test]
    fn bootstrap_samples_are_drawn_within_equal_runs() {
        let noisy: Vec<Point> =
            points(|_| 1.).into_iter().flat_map(|p| [0.99, 1.01].map(|x| Point { loss: p.loss * x, ..p })).collect();
        let law = Law::fit(&noisy).unwrap();
        let laws = law.bootstrap(&noisy, 20, 1).unwrap();
        let losses: Vec<f64> = laws.iter().map(|law| law.loss(4e6, 8e7)).collect();
        let exact = CHINCHILLA.loss(4e6, 8e7);
        assert!(losses.iter().all(|loss| (loss / exact - 1.).abs() < 0.012), "{losses:?} and {exact}");
        assert!(losses.iter().any(|loss| (loss - losses[0]).abs() > 1e-4), "{losses:?}");
        let single = points(|_| 1.);
        let law = Law::fit(&single).unwrap();
        let again = law.bootstrap(&single, 2, 1).unwrap();
        assert_eq!(again[0], again[1]);
    }

    #[test]
    fn too_few_points_are_refused() {
        let message = Law::fit(&points(|_| 1.)[..4]).unwrap_err().to_string();
        assert!(message.contains("4 different runs with 2 sizes"), "{message}");
        assert!(Law::fit(&points(|_| 1.)[..3]).is_err() && Law::fit(&[]).is_err());
    }
}

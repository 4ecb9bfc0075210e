//! The samplers that change the temperature or leave tokens out, each as a function on the candidates.
//!
//! Temperature, dynamic temperature and top-n-sigma need logits only; the others need probabilities, which are the weights of the
//! candidates divided by their sum. docs/sampling.md has the references.

use super::candidates::Candidates;

/// Divides the logits by `temperature`, above 0. The highest becomes 0, so that a low temperature does not overflow.
pub fn temperature(candidates: &mut Candidates, temperature: f64) {
    let (max, temperature) = (candidates.max(), temperature as f32);
    for logit in candidates.logits_mut() {
        *logit = (*logit - max) / temperature;
    }
}

/// The temperature `low + (high - low) · (H / ln n)^exponent` for n candidates of entropy H, from `temperature - range`, at least
/// 0, to `temperature + range`.
pub fn dynamic_temperature(candidates: &mut Candidates, base: f64, range: f64, exponent: f64) {
    if candidates.len() < 2 {
        return;
    }
    let (low, high) = ((base - range).max(0.), base + range);
    let relative = (entropy(candidates) / (candidates.len() as f64).ln()).clamp(0., 1.);
    let value = low + (high - low) * relative.powf(exponent);
    if value < 1e-5 {
        candidates.keep_best(1);
    } else {
        temperature(candidates, value);
    }
}

/// The entropy of the candidates in nats: `ln Z - Σ p · (logit - max)` with `Z = Σ e^(logit - max)`.
pub fn entropy(candidates: &mut Candidates) -> f64 {
    let (max, sum) = (candidates.max(), candidates.weigh());
    let terms = candidates.weights().iter().zip(candidates.logits());
    let mean: f64 = terms.map(|(&w, &x)| f64::from(w) * f64::from(x - max)).sum();
    sum.ln() - mean / sum
}

/// Keeps the smallest set of the most likely tokens with a total probability of at least `p`; at least one token.
pub fn top_p(candidates: &mut Candidates, p: f64) {
    let (max, sum) = (candidates.max(), candidates.weigh());
    candidates.keep_mass(|logit| max - logit, |mass| mass >= p * sum);
}

/// Keeps the tokens with at least `p` times the highest probability.
pub fn min_p(candidates: &mut Candidates, p: f64) {
    let limit = f64::from(candidates.max()) + p.ln();
    candidates.retain(|_, _, logit| f64::from(logit) >= limit);
}

/// Keeps the tokens whose information `-ln p` is nearest to the entropy, until their total probability is more than `p`.
pub fn typical_p(candidates: &mut Candidates, p: f64) {
    let entropy = entropy(candidates);
    let (max, sum) = (candidates.max(), candidates.weigh());
    // The logit of a token whose information is the entropy.
    let typical = (f64::from(max) + sum.ln() - entropy) as f32;
    candidates.keep_mass(|logit| (logit - typical).abs(), |mass| mass > p * sum);
}

/// Keeps the tokens with a logit of at least `max - n · σ`, with the standard deviation σ of the candidates' logits.
pub fn top_n_sigma(candidates: &mut Candidates, n: f64) {
    let max = f64::from(candidates.max());
    let (mut sum, mut squares) = (0., 0.);
    for &logit in candidates.logits() {
        let distance = f64::from(logit) - max;
        sum += distance;
        squares += distance * distance;
    }
    let count = candidates.len() as f64;
    let deviation = (squares / count - (sum / count).powi(2)).max(0.).sqrt();
    let limit = max - n * deviation;
    candidates.retain(|_, _, logit| f64::from(logit) >= limit);
}

/// Leaves out all tokens with a probability of at least `threshold` but the least likely of them, if there are two or more.
pub fn exclude_top_choices(candidates: &mut Candidates, threshold: f64) {
    if threshold > 0.5 || candidates.len() < 2 {
        return;
    }
    let (max, sum) = (candidates.max(), candidates.weigh());
    let limit = f64::from(max) + (threshold * sum).ln();
    let is_top = |logit: f32| f64::from(logit) >= limit;
    let top = candidates.logits().iter().enumerate().filter(|(_, logit)| is_top(**logit));
    // Of equal ones the last, as it is the last of the tokens in the order of their probability.
    let last = top.min_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0))).map(|(index, _)| index);
    candidates.retain(|index, _, logit| !is_top(logit) || Some(index) == last);
}

/// Keeps the tokens with a surprise `-log2 p` of at most `limit` bits, or the most likely one (mirostat 2).
pub fn limit_surprise(candidates: &mut Candidates, limit: f64) {
    let (max, sum) = (candidates.max(), candidates.weigh());
    let lowest = f64::from(max) + sum.ln() - limit * std::f64::consts::LN_2;
    if f64::from(max) < lowest {
        candidates.keep_best(1);
    } else {
        candidates.retain(|_, _, logit| f64::from(logit) >= lowest);
    }
}

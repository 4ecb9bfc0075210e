//! The tokens that can still be sampled. A sampler changes their logits or leaves some of them out.

use llm_kernels::{count_up_to, exp_logits, logit_range, sum_up_to, sum_weights};

/// Memory that rows use in turn.
#[derive(Debug, Default)]
pub struct Scratch {
    ids: Vec<u32>,
    weights: Vec<f32>,
    keys: Vec<f32>,
}

/// Candidates in ascending order of their ids.
#[derive(Debug)]
pub struct Candidates<'a> {
    /// Finite after [`Candidates::drop_masked`].
    logits: &'a mut [f32],
    /// The ids; unused if all tokens are candidates, whose ids are 0, 1, 2...
    ids: &'a mut Vec<u32>,
    all: bool,
    /// `e^(logit - max)` after [`Candidates::weigh`].
    weights: &'a mut Vec<f32>,
    /// The order of [`Candidates::keep_first`].
    keys: &'a mut Vec<f32>,
}

impl<'a> Candidates<'a> {
    /// All tokens of a row of logits.
    pub fn new(logits: &'a mut [f32], scratch: &'a mut Scratch) -> Self {
        scratch.ids.clear();
        let Scratch { ids, weights, keys } = scratch;
        Self { logits, ids, all: true, weights, keys }
    }

    pub fn len(&self) -> usize {
        self.logits.len()
    }

    pub fn logits(&self) -> &[f32] {
        self.logits
    }

    pub fn logits_mut(&mut self) -> &mut [f32] {
        self.logits
    }

    /// The weights of [`Self::weigh`].
    pub fn weights(&self) -> &[f32] {
        self.weights
    }

    /// The id of the candidate with this index.
    pub fn id(&self, index: usize) -> u32 {
        if self.all { index as u32 } else { self.ids[index] }
    }

    /// The logit of a token, if it is a candidate.
    pub fn get_mut(&mut self, id: u32) -> Option<&mut f32> {
        let index = if self.all { id as usize } else { self.ids.binary_search(&id).ok()? };
        self.logits.get_mut(index)
    }

    /// The highest logit.
    pub fn max(&self) -> f32 {
        logit_range(self.logits).map_or(f32::NEG_INFINITY, |(_, high)| high)
    }

    /// The index of the first candidate with the highest logit.
    pub fn best(&self) -> usize {
        let max = self.max();
        self.logits.iter().position(|&x| x == max).unwrap_or(0)
    }

    /// Computes the weights, the probabilities times the returned sum.
    pub fn weigh(&mut self) -> f64 {
        let max = self.max();
        self.weights.resize(self.logits.len(), 0.);
        exp_logits(self.logits, max, self.weights)
    }

    /// Leaves out the candidates of which `keep(index, id, logit)` is false.
    pub fn retain(&mut self, keep: impl Fn(usize, u32, f32) -> bool) {
        let mut kept = 0;
        if self.all {
            self.ids.clear();
        }
        for index in 0..self.logits.len() {
            let id = if self.all { index as u32 } else { self.ids[index] };
            if keep(index, id, self.logits[index]) {
                self.logits[kept] = self.logits[index];
                if self.all {
                    self.ids.push(id);
                } else {
                    self.ids[kept] = id;
                }
                kept += 1;
            }
        }
        self.all = false;
        self.ids.truncate(kept);
        let logits = std::mem::take(&mut self.logits);
        self.logits = &mut logits[..kept];
    }

    /// Keeps the tokens whose bit is set; the bit of id i is `bits[i / 32] >> (i % 32)`. All tokens are candidates before.
    pub fn keep_bits(&mut self, bits: &[u32]) {
        self.ids.clear();
        for (word, &set) in bits.iter().enumerate() {
            let mut set = set;
            while set != 0 {
                self.ids.push(32 * word as u32 + set.trailing_zeros());
                set &= set - 1;
            }
        }
        self.ids.retain(|id| (*id as usize) < self.logits.len());
        for (to, &from) in self.ids.iter().enumerate() {
            self.logits[to] = self.logits[from as usize]; // to <= from
        }
        self.all = false;
        let logits = std::mem::take(&mut self.logits);
        self.logits = &mut logits[..self.ids.len()];
    }

    /// Leaves out the tokens with logit -inf.
    pub fn drop_masked(&mut self) {
        if self.logits.contains(&f32::NEG_INFINITY) {
            self.retain(|_, _, logit| logit > f32::NEG_INFINITY);
        }
    }

    /// Keeps the k candidates with the highest logits; of equal ones those with the lower ids.
    pub fn keep_best(&mut self, k: usize) {
        if k < self.len() {
            let max = self.max();
            self.set_keys(|logit| max - logit);
            self.keep_first(|limit, keys, _| count_up_to(keys, limit) as f64, |_| 1., |count| count >= k as f64);
        }
    }

    /// Keeps the first candidates in the order of `key(logit)`, lower ids before higher ones, until `is_enough(mass)` of their
    /// total weight; at least one. The weights are those of [`Self::weigh`].
    pub fn keep_mass(&mut self, key: impl Fn(f32) -> f32, is_enough: impl Fn(f64) -> bool) {
        self.set_keys(key);
        self.keep_first(|limit, keys, weights| sum_up_to(keys, weights, limit), f64::from, is_enough);
    }

    fn set_keys(&mut self, key: impl Fn(f32) -> f32) {
        self.keys.clear();
        self.keys.extend(self.logits.iter().map(|&logit| key(logit)));
    }

    /// Keeps the shortest prefix in the order of (key, id) whose total is enough.
    ///
    /// Limits at growing distances from the first key, then bisection between the last two, bracket the end of the prefix: first with
    /// loops over all keys, which are fast, then among the candidates of the bracket, so that only a few are sorted: linear time.
    fn keep_first(
        &mut self,
        total: impl Fn(f32, &[f32], &[f32]) -> f64,
        weight: impl Fn(f32) -> f64,
        is_enough: impl Fn(f64) -> bool,
    ) {
        const FEW: usize = 32;
        const ROUNDS: usize = 8;
        let Some((low, high)) = logit_range(self.keys) else { return };
        if !is_enough(total(high, self.keys, self.weights)) {
            return;
        }
        // The prefix ends at a key in (below, above]. The first key is in it, in any case.
        let (mut below, mut above, mut total_below) = (f32::NEG_INFINITY, high, 0.);
        let limits = (0..).map(|power| low + f32::powi(2., power)).take_while(|limit| *limit < high);
        for limit in limits {
            let sum = total(limit, self.keys, self.weights);
            if is_enough(sum) {
                above = limit;
                break;
            }
            (below, total_below) = (limit, sum);
        }
        let half = |below: f32, above: f32| {
            let start = below.max(low);
            Some(start + (above - start) / 2.).filter(|middle| *middle > below && *middle < above) // none: equal keys
        };
        for _ in 0..ROUNDS {
            let Some(middle) = half(below, above) else { break };
            let sum = total(middle, self.keys, self.weights);
            if is_enough(sum) {
                above = middle;
            } else {
                (below, total_below) = (middle, sum);
            }
        }
        let weight = |index: usize| self.weights.get(index).map_or(1., |&w| weight(w));
        let keys = self.keys.iter().enumerate().filter(|(_, key)| **key > below && **key <= above);
        let mut bracket: Vec<(f32, f64, usize)> = keys.map(|(index, &key)| (key, weight(index), index)).collect();
        while bracket.len() > FEW {
            let Some(middle) = half(below, above) else { break };
            let sum: f64 = bracket.iter().map(|(key, weight, _)| if *key <= middle { *weight } else { 0. }).sum();
            if is_enough(total_below + sum) {
                above = middle;
                bracket.retain(|(key, _, _)| *key <= middle);
            } else {
                (below, total_below) = (middle, total_below + sum);
                bracket.retain(|(key, _, _)| *key > middle);
            }
        }
        bracket.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.2.cmp(&b.2)));
        let mut sum = total_below;
        let end = bracket.iter().position(|(_, weight, _)| {
            sum += weight;
            is_enough(sum)
        });
        let Some(&(last_key, _, last)) = end.map_or(bracket.last(), |end| bracket.get(end)) else { return };
        let keys = std::mem::take(self.keys);
        self.retain(|index, _, _| keys[index] < last_key || keys[index] == last_key && index <= last);
        *self.keys = keys;
    }

    /// The index of the candidate at the share `uniform`, from 0 to 1, of the sum of the weights in the order of ids.
    pub fn draw(&self, uniform: f64) -> usize {
        const PART: usize = 512;
        let mut remaining = uniform * sum_weights(self.weights);
        for (part, weights) in self.weights.chunks(PART).enumerate() {
            let sum = sum_weights(weights);
            if remaining >= sum {
                remaining -= sum;
                continue;
            }
            for (index, &weight) in weights.iter().enumerate() {
                remaining -= f64::from(weight);
                if remaining < 0. {
                    return part * PART + index;
                }
            }
        }
        // Only reached through rounding: the last candidate that can be drawn.
        self.weights.iter().rposition(|&weight| weight > 0.).unwrap_or(0)
    }
}

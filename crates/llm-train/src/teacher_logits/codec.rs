//! The bytes of a teacher's log-probabilities.
//!
//! A position is a stream of bits: the ids, ascending, as gaps in a Rice code (Rice and Plaunt 1971) whose parameter is chosen for each
//! position; the log-probabilities; the tail. With fewer than 32 bits a log-probability is the root of its distance from the largest one,
//! rounded, so that likely tokens are the most exact; what is read is normalised, so it is always a distribution.

use llm_kernels::TopKLogprobs;

/// The format of the positions of one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Codec {
    /// Tokens per position.
    pub k: usize,
    /// Bits of a log-probability: 4 to 16, or 32 for f32.
    pub bits: u32,
    /// Size of the vocabulary.
    pub vocab: usize,
}

/// Bits of the parameter of the Rice code.
const PARAMETER: u32 = 5;
/// Bits of a rounded number: the upper bits of an f32.
const NUMBER: u32 = 20;

impl Codec {
    /// The bytes of all positions.
    pub fn encode(self, top: &TopKLogprobs) -> Vec<u8> {
        let mut bits = BitWriter::default();
        for ((ids, logprobs), &tail) in
            top.ids.chunks_exact(self.k).zip(top.logprobs.chunks_exact(self.k)).zip(&top.tail)
        {
            write_ids(&mut bits, ids);
            if self.bits == 32 {
                logprobs.iter().chain([&tail]).for_each(|x| bits.push(u64::from(x.to_bits()), 32));
                continue;
            }
            let largest = logprobs.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let distance = |x: f32| (largest - x).min(FARTHEST);
            let range = number_above(logprobs.iter().map(|&x| distance(x)).fold(0., f32::max));
            bits.push(u64::from(range.to_bits() >> (32 - NUMBER)), NUMBER);
            for &x in logprobs {
                let share = if range > 0. { (distance(x) / range).sqrt() } else { 0. };
                bits.push((share * self.levels()).round() as u64, self.bits);
            }
            // The tail can be more likely than each token.
            let tail = number_near(largest - tail);
            bits.push(u64::from(tail.to_bits() >> (32 - NUMBER)), NUMBER);
        }
        bits.finish()
    }

    /// The positions that [`Self::encode`] wrote; `None` if these bytes are not `positions` positions.
    pub fn decode(self, bytes: &[u8], positions: usize) -> Option<TopKLogprobs> {
        let mut bits = BitReader { bytes, at: 0 };
        let mut top = TopKLogprobs { k: self.k, ids: Vec::new(), logprobs: Vec::new(), tail: Vec::new() };
        for _ in 0..positions {
            read_ids(&mut bits, self.k, self.vocab, &mut top.ids)?;
            if self.bits == 32 {
                for _ in 0..self.k {
                    top.logprobs.push(f32::from_bits(bits.take(32)? as u32));
                }
                top.tail.push(f32::from_bits(bits.take(32)? as u32));
                continue;
            }
            let number = |bits: &mut BitReader| Some(f32::from_bits((bits.take(NUMBER)? as u32) << (32 - NUMBER)));
            let range = number(&mut bits)?;
            let start = top.logprobs.len();
            for _ in 0..self.k {
                let share = bits.take(self.bits)? as f32 / self.levels();
                top.logprobs.push(-range * share * share);
            }
            let tail = -number(&mut bits)?;
            let sum: f64 = top.logprobs[start..].iter().chain([&tail]).map(|&x| f64::from(x).exp()).sum();
            let log_sum = sum.ln() as f32;
            top.logprobs[start..].iter_mut().for_each(|x| *x -= log_sum);
            top.tail.push(tail - log_sum);
        }
        let is_whole = bits.at.div_ceil(8) == bytes.len() && !top.logprobs.iter().chain(&top.tail).any(|x| x.is_nan());
        is_whole.then_some(top)
    }

    /// The largest code of a log-probability.
    fn levels(self) -> f32 {
        ((1u32 << self.bits) - 1) as f32
    }
}

/// The largest distance from the most likely token, in nats.
const FARTHEST: f32 = 1e4;

/// The nearest number of [`NUMBER`] bits.
fn number_near(x: f32) -> f32 {
    if !x.is_finite() {
        return x;
    }
    let half = 1u32 << (31 - NUMBER);
    f32::from_bits(x.to_bits().wrapping_add(half) >> (32 - NUMBER) << (32 - NUMBER))
}

/// The smallest number of [`NUMBER`] bits that is at least `x`, which is not negative.
fn number_above(x: f32) -> f32 {
    let low = (1u32 << (32 - NUMBER)) - 1;
    f32::from_bits(x.to_bits().wrapping_add(low) & !low)
}

/// Writes ascending ids: the first one and the gaps, each as a quotient in unary and a remainder.
fn write_ids(bits: &mut BitWriter, ids: &[u32]) {
    let gaps = || ids.iter().scan(0, |next, &id| Some(id - std::mem::replace(next, id + 1)));
    let size = |parameter: u32| gaps().map(|gap| u64::from(gap >> parameter) + 1 + u64::from(parameter)).sum::<u64>();
    let parameter = (0..(1 << PARAMETER)).min_by_key(|&parameter| size(parameter)).unwrap_or(0);
    bits.push(u64::from(parameter), PARAMETER);
    for gap in gaps() {
        for _ in 0..gap >> parameter {
            bits.push(1, 1);
        }
        bits.push(0, 1);
        bits.push(u64::from(gap) & ((1 << parameter) - 1), parameter);
    }
}

fn read_ids(bits: &mut BitReader, k: usize, vocab: usize, ids: &mut Vec<u32>) -> Option<()> {
    let parameter = bits.take(PARAMETER)? as u32;
    let mut next = 0u64;
    for _ in 0..k {
        let mut quotient = 0u64;
        while bits.take(1)? == 1 {
            quotient += 1;
        }
        let id = next + (quotient << parameter) + bits.take(parameter)?;
        if id >= vocab as u64 {
            return None;
        }
        ids.push(id as u32);
        next = id + 1;
    }
    Some(())
}

/// Bits, the lowest of each byte first.
#[derive(Default)]
struct BitWriter {
    bytes: Vec<u8>,
    pending: u64,
    count: u32,
}

impl BitWriter {
    /// Appends the lowest `count` bits of `value`, at most 32.
    fn push(&mut self, value: u64, count: u32) {
        self.pending |= (value & ((1 << count) - 1)) << self.count;
        self.count += count;
        while self.count >= 8 {
            self.bytes.push(self.pending as u8);
            self.pending >>= 8;
            self.count -= 8;
        }
    }

    fn finish(mut self) -> Vec<u8> {
        if self.count > 0 {
            self.bytes.push(self.pending as u8);
        }
        self.bytes
    }
}

struct BitReader<'a> {
    bytes: &'a [u8],
    /// The number of bits read.
    at: usize,
}

impl BitReader<'_> {
    /// The next `count` bits, at most 32; `None` at the end.
    fn take(&mut self, count: u32) -> Option<u64> {
        let mut value = 0;
        for i in 0..count {
            let byte = *self.bytes.get(self.at / 8)?;
            value |= u64::from(byte >> (self.at % 8) & 1) << i;
            self.at += 1;
        }
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};
    use proptest::prelude::*;

    use super::*;

    fn top(rows: &[Vec<f32>], k: usize) -> TopKLogprobs {
        let logits = Tensor::from_vec(rows.concat(), (rows.len(), rows[0].len()), &Device::Cpu).unwrap();
        TopKLogprobs::of_logits(&logits, k, 1.).unwrap()
    }

    /// A distribution like that of a language model: log-probabilities fall with the logarithm of the rank.
    fn zipf(vocab: usize, rows: usize) -> Vec<Vec<f32>> {
        let logit = |row: usize, id: usize| -1.3 * (1. + ((id * 7919 + row * 104_729) % vocab) as f32).ln();
        (0..rows).map(|row| (0..vocab).map(|id| logit(row, id)).collect()).collect()
    }

    #[test]
    fn f32_is_exact_and_fewer_bits_are_close() {
        let rows = zipf(5000, 6);
        for (k, bits, tolerance) in [(50, 32, 0.), (50, 16, 3e-3), (50, 8, 0.06), (50, 6, 0.3), (1, 6, 3e-3)] {
            let (codec, top) = (Codec { k, bits, vocab: 5000 }, top(&rows, k));
            let read = codec.decode(&codec.encode(&top), rows.len()).unwrap();
            assert_eq!(read.ids, top.ids);
            let all = |top: &TopKLogprobs| top.logprobs.iter().chain(&top.tail).copied().collect::<Vec<f32>>();
            for (read, wanted) in all(&read).iter().zip(all(&top)) {
                assert!((read - wanted).abs() <= tolerance, "{k} {bits}: {read} is not {wanted}");
            }
        }
    }

    /// 50 of 49,152 tokens in 6 bits: about 114 bytes; the divergence from what was encoded is below 1e-3 nats.
    #[test]
    fn a_position_takes_about_114_bytes() {
        let rows = zipf(49_152, 20);
        let (codec, top) = (Codec { k: 50, bits: 6, vocab: 49_152 }, top(&rows, 50));
        let bytes = codec.encode(&top);
        let per_position = bytes.len() as f64 / rows.len() as f64;
        assert!((105. ..120.).contains(&per_position), "{per_position}");
        let read = codec.decode(&bytes, rows.len()).unwrap();
        for row in 0..rows.len() {
            let of = |top: &TopKLogprobs| [&top.logprobs[row * 50..][..50], &top.tail[row..=row]].concat();
            let kl: f64 = of(&top).iter().zip(of(&read)).map(|(p, q)| f64::from(*p).exp() * f64::from(p - q)).sum();
            assert!((-1e-6..1e-3).contains(&kl), "{kl}");
        }
    }

    #[test]
    fn all_tokens_have_no_tail_and_impossible_tokens_stay_so() {
        let rows = vec![vec![1., 2., f32::NEG_INFINITY, 0.]];
        for (k, bits) in [(4, 32), (4, 8), (2, 32), (2, 8)] {
            let (codec, top) = (Codec { k, bits, vocab: 4 }, top(&rows, k));
            let read = codec.decode(&codec.encode(&top), 1).unwrap();
            assert_eq!(read.tail[0] == f32::NEG_INFINITY, k == 4, "{read:?}");
            assert!(k == 2 || read.logprobs[2] < -1000.);
        }
    }

    #[test]
    fn other_bytes_are_refused() {
        let (codec, top) = (Codec { k: 3, bits: 8, vocab: 40 }, top(&zipf(40, 4), 3));
        let bytes = codec.encode(&top);
        assert!(codec.decode(&bytes, 4).is_some());
        assert!(codec.decode(&bytes, 5).is_none() && codec.decode(&bytes, 2).is_none());
        assert!(codec.decode(&bytes[..bytes.len() - 1], 4).is_none());
        assert!(Codec { vocab: 9, ..codec }.decode(&bytes, 4).is_none(), "an id outside the vocabulary");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), k in 1usize..9) {
            for bits in [4, 8, 16, 32] {
                Codec { k, bits, vocab: 1000 }.decode(&bytes, 3);
            }
        }

        #[test]
        fn ids_come_back(mut ids in proptest::collection::btree_set(0u32..200_000, 1..40)) {
            ids.insert(199_999);
            let ids: Vec<u32> = ids.into_iter().collect();
            let mut bits = BitWriter::default();
            write_ids(&mut bits, &ids);
            let (bytes, mut read) = (bits.finish(), Vec::new());
            read_ids(&mut BitReader { bytes: &bytes, at: 0 }, ids.len(), 200_000, &mut read).unwrap();
            prop_assert_eq!(read, ids);
        }
    }
}

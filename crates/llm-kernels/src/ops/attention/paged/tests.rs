//! Paged attention against the f64 reference, and the bits of each query.

use candle_core::{DType, Device, Result, Tensor};
use proptest::prelude::*;

use super::*;
use crate::testing::random;
use crate::{Sequences, attention};

/// Heads and head size.
#[derive(Debug, Clone, Copy)]
struct Shape {
    h: usize,
    g: usize,
    d: usize,
}

/// Sequences with random queries, keys and values for all their tokens, `(1, keys, heads, d)` each.
struct Inputs {
    shape: Shape,
    tokens: Vec<[Tensor; 3]>,
    params: AttentionParams,
    window: Option<usize>,
}

impl Inputs {
    fn new(lens: &[usize], shape: Shape, window: Option<usize>, soft_cap: Option<f64>) -> Result<Self> {
        let Shape { h, g, d } = shape;
        let of = |(i, &len): (usize, &usize)| -> Result<[Tensor; 3]> {
            let seed = 3 * i as u64;
            Ok([
                random(&[1, len, h, d], seed, 2.)?,
                random(&[1, len, g, d], seed + 1, 1.)?,
                random(&[1, len, g, d], seed + 2, 1.)?,
            ])
        };
        let params = AttentionParams { soft_cap, ..AttentionParams::for_head_dim(d) };
        Ok(Self { shape, tokens: lens.iter().enumerate().map(of).collect::<Result<_>>()?, params, window })
    }

    fn len(&self, sequence: usize) -> usize {
        self.tokens[sequence][0].dims()[1]
    }

    /// The f64 reference of all queries of a sequence, with keys and values rounded to `dtype`.
    fn expected(&self, sequence: usize, dtype: DType) -> Result<Tensor> {
        let [q, k, v] = &self.tokens[sequence];
        let rounded = |x: &Tensor| x.to_dtype(dtype)?.to_dtype(DType::F64);
        let mask = match self.window {
            None => AttentionMask::default(),
            Some(window) => AttentionMask::from_window_starts(
                (1..=self.len(sequence)).map(|end| end.saturating_sub(window) as u32).collect::<Vec<_>>(),
            ),
        };
        attention(&q.to_dtype(DType::F64)?, &rounded(k)?, &rounded(v)?, self.params, &mask)?.to_dtype(DType::F32)
    }
}

/// The sequences in pages that were filled with NaN, in a scrambled order.
struct Paged<'a> {
    inputs: &'a Inputs,
    pages: KvPages,
    tables: Vec<Vec<u32>>,
    past: Vec<usize>,
}

impl<'a> Paged<'a> {
    fn new(inputs: &'a Inputs, dtype: DType, scramble: usize) -> Result<Self> {
        let (Shape { g, d, .. }, n) = (inputs.shape, inputs.tokens.len());
        let needed: Vec<usize> = (0..n).map(|i| inputs.len(i).div_ceil(KvPages::PAGE)).collect();
        let all = needed.iter().sum::<usize>() + 1;
        let pages = KvPages::new(all, g, d, dtype, &Device::Cpu)?;
        let mut free: Vec<u32> = (0..all as u32).collect();
        let nan = Tensor::full(f32::NAN, (1, all * KvPages::PAGE, g, d), &Device::Cpu)?;
        pages.append(&[free.clone()], [&nan, &nan], &Sequences::new([(0, all * KvPages::PAGE)]))?;
        let mut take = || free.swap_remove(scramble % free.len());
        let tables = needed.iter().map(|&needed| (0..needed).map(|_| take()).collect()).collect();
        Ok(Self { inputs, pages, tables, past: vec![0; n] })
    }

    /// Appends the next `lens[i]` tokens of each sequence and attends: their results, for each sequence `(1, lens[i], h, d)`.
    fn step(&mut self, lens: &[usize]) -> Result<Vec<Tensor>> {
        let part = |of: usize| -> Result<Tensor> {
            let parts = lens.iter().enumerate().map(|(i, &len)| self.inputs.tokens[i][of].narrow(1, self.past[i], len));
            Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, 1)
        };
        let [q, k, v] = [part(0)?, part(1)?, part(2)?];
        let sequences = Sequences::new(self.past.iter().copied().zip(lens.iter().copied()));
        self.pages.append(&self.tables, [&k, &v], &sequences)?;
        let ends = (0..lens.len()).flat_map(|i| self.past[i] + 1..=self.past[i] + lens[i]);
        let window_starts =
            self.inputs.window.map(|window| ends.map(|end| end.saturating_sub(window) as u32).collect());
        let mask = AttentionMask { window_starts, sequences: Some(sequences), ..AttentionMask::default() };
        let kv = PagedKv { pages: &self.pages, tables: &self.tables };
        let y = paged_attention(&q, kv, self.inputs.params, &mask)?;
        let mut first = 0;
        let mut results = Vec::new();
        for (past, &len) in self.past.iter_mut().zip(lens) {
            results.push(y.narrow(1, first, len)?);
            first += len;
            *past += len;
        }
        Ok(results)
    }

    /// The results of all tokens of one sequence, computed alone in chunks of these sizes.
    fn in_chunks(inputs: &'a Inputs, dtype: DType, sequence: usize, chunks: &[usize]) -> Result<Vec<f32>> {
        let mut paged = Self::new(inputs, dtype, 7)?;
        let mut all = Vec::new();
        for &chunk in chunks {
            let lens: Vec<usize> = (0..inputs.tokens.len()).map(|i| if i == sequence { chunk } else { 0 }).collect();
            all.extend(flat(&paged.step(&lens)?[sequence]));
        }
        Ok(all)
    }
}

fn flat(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

fn assert_near(ours: &[f32], theirs: &[f32], what: &str) {
    assert_eq!(ours.len(), theirs.len(), "{what}");
    for (ours, theirs) in ours.iter().zip(theirs) {
        assert!((ours - theirs).abs() < 2e-5, "{what}: {ours} is not {theirs}");
    }
}

const SHAPES: [Shape; 5] = [
    Shape { h: 9, g: 3, d: 64 },
    Shape { h: 2, g: 2, d: 8 },
    Shape { h: 7, g: 1, d: 80 },
    Shape { h: 16, g: 2, d: 21 },
    Shape { h: 1, g: 1, d: 1 },
];

#[test]
fn paged_attention_equals_the_f64_reference() -> Result<()> {
    for shape in SHAPES {
        for (window, soft_cap) in
            [(None, None), (Some(70), None), (Some(1), None), (None, Some(1.5)), (Some(300), Some(3.))]
        {
            let inputs = Inputs::new(&[520, 3, 65, 130], shape, window, soft_cap)?;
            for dtype in [DType::F32, DType::BF16] {
                // Prefill, a long chunk, short chunks, decoding, a sequence without tokens.
                let mut paged = Paged::new(&inputs, dtype, 11)?;
                let mut results = vec![Vec::new(); 4];
                for lens in [[510, 2, 0, 17], [7, 1, 64, 16], [1, 0, 1, 40], [1, 0, 0, 57], [1, 0, 0, 0]] {
                    for (all, result) in results.iter_mut().zip(paged.step(&lens)?) {
                        all.extend(flat(&result));
                    }
                }
                for (i, ours) in results.iter().enumerate() {
                    let what = format!("{shape:?}, window {window:?}, cap {soft_cap:?}, {dtype:?}, sequence {i}");
                    assert_near(ours, &flat(&inputs.expected(i, dtype)?), &what);
                }
            }
        }
    }
    Ok(())
}

#[test]
fn queries_get_the_same_bits_one_by_one_in_chunks_and_at_once() -> Result<()> {
    if crate::skip_on_reference_path("candle's matmul adds in an order that depends on the number of queries") {
        return Ok(());
    }
    for shape in SHAPES {
        for (window, soft_cap) in [(None, None), (Some(70), Some(2.))] {
            let inputs = Inputs::new(&[600], shape, window, soft_cap)?;
            for dtype in [DType::F32, DType::BF16] {
                let at_once = Paged::in_chunks(&inputs, dtype, 0, &[600])?;
                for chunks in [vec![1; 600], vec![16, 17, 500, 2, 1, 64], vec![64; 9].into_iter().chain([24]).collect()]
                {
                    assert!(
                        at_once == Paged::in_chunks(&inputs, dtype, 0, &chunks)?,
                        "{shape:?}, {dtype:?}, {chunks:?}"
                    );
                }
            }
        }
    }
    Ok(())
}

#[test]
fn the_number_of_threads_does_not_change_a_bit() -> Result<()> {
    if crate::skip_on_reference_path("the reference has one thread") {
        return Ok(());
    }
    let inputs = Inputs::new(&[700, 90], SHAPES[0], None, None)?;
    let run = |threads: usize| -> Result<Vec<f32>> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut paged = Paged::new(&inputs, DType::F32, 3)?;
            let results = [paged.step(&[690, 80])?, paged.step(&[9, 9])?, paged.step(&[1, 1])?];
            Ok(results.iter().flatten().flat_map(flat).collect())
        })
    };
    let one = run(1)?;
    assert!([2, 3, 4].into_iter().all(|threads| run(threads).unwrap() == one));
    Ok(())
}

/// Non-finite keys and values that no query of a result attends to: later tokens, and those before a window.
#[test]
fn keys_that_are_not_attended_to_never_affect_a_result() -> Result<()> {
    for window in [None, Some(20)] {
        let inputs = Inputs::new(&[300], Shape { h: 4, g: 2, d: 8 }, window, None)?;
        let mut broken = Inputs::new(&[300], Shape { h: 4, g: 2, d: 8 }, window, None)?;
        let token = 270;
        for of in [1, 2] {
            let x = &broken.tokens[0][of];
            let nan = Tensor::full(f32::NAN, (1, 1, 2, 8), &Device::Cpu)?;
            let parts = [x.narrow(1, 0, token)?, nan, x.narrow(1, token + 1, 300 - token - 1)?];
            broken.tokens[0][of] = Tensor::cat(&parts, 1)?;
        }
        let (fine, broken) =
            (Paged::new(&inputs, DType::F32, 5)?.step(&[300])?, Paged::new(&broken, DType::F32, 5)?.step(&[300])?);
        let rows = |x: &Tensor, from: usize, to: usize| flat(&x.narrow(1, from, to - from).unwrap());
        assert_eq!(rows(&fine[0], 0, token), rows(&broken[0], 0, token), "window {window:?}");
        let end = window.map_or(300, |window| token + window);
        assert!(rows(&broken[0], token, end).iter().all(|x| x.is_nan()), "window {window:?}");
        assert_eq!(rows(&fine[0], end, 300), rows(&broken[0], end, 300), "window {window:?}");
    }
    Ok(())
}

#[test]
fn appended_tokens_are_read_back() -> Result<()> {
    for shape in SHAPES {
        let inputs = Inputs::new(&[130, 5, 64], shape, None, None)?;
        for dtype in [DType::F32, DType::BF16] {
            let mut paged = Paged::new(&inputs, dtype, 4)?;
            for lens in [[60, 1, 63], [10, 4, 0], [60, 0, 1]] {
                paged.step(&lens)?;
            }
            for (i, [_, k, v]) in inputs.tokens.iter().enumerate() {
                let ours = paged.pages.gather(&paged.tables[i], inputs.len(i))?;
                for (ours, theirs) in ours.iter().zip([k, v]) {
                    assert_eq!(
                        flat(ours),
                        flat(&theirs.to_dtype(dtype)?.to_dtype(DType::F32)?),
                        "{shape:?}, {dtype:?}"
                    );
                }
            }
            let (from, to) = (paged.tables[0][0], paged.tables[1][0]);
            paged.pages.copy_page(from as usize, to as usize)?;
            let [copied, original] = [to, from].map(|page| paged.pages.gather(&[page], 64).unwrap());
            assert_eq!((flat(&copied[0]), flat(&copied[1])), (flat(&original[0]), flat(&original[1])));
        }
    }
    Ok(())
}

#[test]
fn hidden_keys_have_no_effect_and_sizes_that_do_not_match_are_errors() -> Result<()> {
    let inputs = Inputs::new(&[70], Shape { h: 4, g: 2, d: 8 }, None, None)?;
    let mut paged = Paged::new(&inputs, DType::F32, 1)?;
    paged.step(&[69])?;
    let (q, params) = (inputs.tokens[0][0].narrow(1, 69, 1)?, inputs.params);
    let run = |q: &Tensor, tables: &[Vec<u32>], lens: (usize, usize), masked: Option<(u32, u32)>| {
        let masked_keys = masked.map(|range| [range].into());
        let mask = AttentionMask { masked_keys, sequences: Some(Sequences::new([lens])), ..AttentionMask::default() };
        paged_attention(q, PagedKv { pages: &paged.pages, tables }, params, &mask)
    };
    let tables = &paged.tables;
    let all_but_first = run(&q, tables, (68, 1), Some((1, 69)))?;
    let [_, v] = paged.pages.gather(&tables[0], 1)?;
    let expected = Tensor::stack(&[v.narrow(2, 0, 1)?, v.narrow(2, 0, 1)?, v.narrow(2, 1, 1)?, v.narrow(2, 1, 1)?], 2)?;
    assert_near(&flat(&all_but_first), &flat(&expected), "one key is left");
    assert!(run(&q, tables, (68, 1), None).is_ok());
    assert!(run(&q, tables, (68, 2), None).is_err(), "two queries are missing");
    assert!(run(&q, &[vec![0]], (68, 1), None).is_err(), "a page is missing");
    assert!(run(&q, &[vec![0, 9]], (68, 1), None).is_err(), "there is no page 9");
    assert!(run(&q, &[], (68, 1), None).is_err(), "no table");
    assert!(run(&random(&[1, 1, 4, 6], 1, 1.)?, tables, (68, 1), None).is_err(), "another head size");
    assert!(run(&random(&[1, 1, 3, 8], 1, 1.)?, tables, (68, 1), None).is_err(), "three query heads");
    assert!(KvPages::new(1, 1, 8, DType::F64, &Device::Cpu).is_err());
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// A batch of sequences gives each the bits that it gets alone, wherever its pages are.
    #[test]
    fn a_batch_gives_each_sequence_the_bits_that_it_gets_alone(
        lens in prop::collection::vec(1usize..400, 1..5), cuts in prop::collection::vec(0usize..60, 4),
        shape in 0usize..5, windowed in any::<bool>(), bf16 in any::<bool>(), scramble in 0usize..50,
    ) {
        if crate::cpu::unit::reference_only() {
            return Ok(()); // the order of its sums depends on the number of queries
        }
        let dtype = if bf16 { DType::BF16 } else { DType::F32 };
        let inputs = Inputs::new(&lens, SHAPES[shape], windowed.then_some(90), None).unwrap();
        let mut paged = Paged::new(&inputs, dtype, scramble).unwrap();
        let mut together = vec![Vec::new(); lens.len()];
        let mut chunks = vec![Vec::new(); lens.len()];
        while paged.past != lens {
            let step: Vec<usize> = (0..lens.len()).map(|i| {
                let left = lens[i] - paged.past[i];
                left.min((cuts[(i + chunks[i].len()) % 4] * (1 + paged.past[i] % 5)).max(1))
            }).collect();
            for (i, result) in paged.step(&step).unwrap().iter().enumerate() {
                together[i].extend(flat(result));
                chunks[i].push(step[i]);
            }
        }
        for (i, together) in together.iter().enumerate() {
            prop_assert!(*together == Paged::in_chunks(&inputs, dtype, i, &[lens[i]]).unwrap(), "sequence {}", i);
        }
    }
}

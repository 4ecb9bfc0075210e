//! `cargo xtask bench kernels`: the rate of each kernel, and its share of the peak rate of this machine.
//!
//! The shapes are those of the training benchmark (4096 tokens, hidden 384, feed-forward 1024, vocabulary 8192) and, for
//! decoding, the output layer of SmolLM2-135M.

use std::time::Instant;

use candle_core::{DType, Device, Result, Tensor, Var};
use llm_kernels::{
    Activation, AdamWStep, AttentionBlock, AttentionMask, AttentionParams, BlockFormat, MlpBlock, Norm, Precision,
    Projection, QuantizedWeight, RotaryFrequencies,
};

const TOKENS: usize = 4096;
const HIDDEN: usize = 384;
const INNER: usize = 1024;
const VOCAB: usize = 8192;

/// The work of one call of a kernel, and so the limit it is compared with.
enum Work {
    /// Floating-point operations, and the precision they run in.
    Flops(f64, Precision),
    /// Bytes read and written.
    Bytes(f64),
}

/// Measures all kernels on `threads` threads and prints the table.
pub fn run(threads: usize) -> std::result::Result<(), String> {
    llm_kernels::with_threads(threads, table).and_then(|table| table).map_err(|e| e.to_string())
}

fn random(shape: &[usize]) -> Result<Tensor> {
    Tensor::rand(-1f32, 1f32, shape, &Device::Cpu)
}

/// The shortest of 7 runs after a warm-up, in seconds.
fn seconds(mut run: impl FnMut() -> Result<()>) -> Result<f64> {
    run()?;
    let mut best = f64::INFINITY;
    for _ in 0..7 {
        let start = Instant::now();
        run()?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(best)
}

fn table() -> Result<()> {
    let long = random(&[1 << 27])?;
    let read = 4. * (1u64 << 27) as f64 / seconds(|| llm_kernels::sum_of_squares(&long).map(drop))?;
    let peaks = [Precision::F32, Precision::Bf16].map(|precision| {
        (0..3)
            .filter_map(|_| llm_kernels::peak_flops(precision))
            .fold(None, |best: Option<f64>, rate| Some(best.map_or(rate, |best| best.max(rate))))
    });
    println!("memory bandwidth (read): {:.1} GB/s", read / 1e9);
    if let [Some(f32_rate), Some(bf16_rate)] = peaks {
        println!(
            "peak matmul rate (operands in the L1 cache): f32 {:.0}, bf16 {:.0} GFLOP/s\n",
            f32_rate / 1e9,
            bf16_rate / 1e9
        );
    }
    println!("| kernel | ms | rate | share of the peak |\n|---|---|---|---|");
    let show = |name: &str, work: Work, time: f64| {
        let (rate, unit, peak) = match work {
            Work::Flops(flops, precision) => {
                (flops / time, "GFLOP/s", peaks[usize::from(precision == Precision::Bf16)])
            }
            Work::Bytes(bytes) => (bytes / time, "GB/s", Some(read)),
        };
        let share = peak.map_or("-".to_owned(), |peak| format!("{:.0} %", 100. * rate / peak));
        println!("| {name} | {:.2} | {:.1} {unit} | {share} |", time * 1e3, rate / 1e9);
    };
    for precision in [Precision::F32, Precision::Bf16] {
        matmuls(precision, &show)?;
        fused_blocks(precision, &show)?;
    }
    elementwise(&show)?;
    decoding(&show)
}

fn name(precision: Precision) -> &'static str {
    if precision == Precision::F32 { "f32" } else { "bf16" }
}

/// Floating-point operations of a matmul of shapes `(n, k)` and `(k, m)`.
fn flops(n: usize, k: usize, m: usize) -> f64 {
    2. * (n * k * m) as f64
}

/// (query, key) pairs of all heads under a causal mask: batch 8, 6 heads, 512 tokens.
const PAIRS: f64 = 8. * 6. * 512. * 513. / 2.;

/// Linear layers, attention, and the output layer with its cross-entropy.
fn matmuls(precision: Precision, show: &impl Fn(&str, Work, f64)) -> Result<()> {
    let name = name(precision);
    for (k, m) in [(HIDDEN, HIDDEN), (HIDDEN, INNER), (INNER, HIDDEN)] {
        let (x, w) = (random(&[TOKENS, k])?, random(&[m, k])?);
        let time = seconds(|| llm_kernels::linear_with_precision(&x, &w, precision).map(drop))?;
        show(&format!("linear {k} to {m}, {name}"), Work::Flops(flops(TOKENS, k, m), precision), time);
        let (x, w) = (Var::from_tensor(&x)?, Var::from_tensor(&w)?);
        let total = seconds(|| llm_kernels::linear_with_precision(&x, &w, precision)?.backward().map(drop))?;
        show(&format!("its backward, {name}"), Work::Flops(2. * flops(TOKENS, k, m), precision), total - time);
    }
    let (q, k, v) = (random(&[8, 512, 6, 64])?, random(&[8, 512, 6, 64])?, random(&[8, 512, 6, 64])?);
    let scores = AttentionParams { precision, ..AttentionParams::for_head_dim(64) };
    let time = seconds(|| llm_kernels::attention(&q, &k, &v, scores, &AttentionMask::default()).map(drop))?;
    show(&format!("attention 8 x 512, 6 heads of 64, {name}"), Work::Flops(4. * 64. * PAIRS, precision), time);
    let q = Var::from_tensor(&q)?;
    let total =
        seconds(|| llm_kernels::attention(&q, &k, &v, scores, &AttentionMask::default())?.backward().map(drop))?;
    show(&format!("its backward, {name}"), Work::Flops(10. * 64. * PAIRS, precision), total - time);
    let (x, w) = (Var::from_tensor(&random(&[TOKENS, HIDDEN])?)?, Var::from_tensor(&random(&[VOCAB, HIDDEN])?)?);
    let labels: Vec<i64> = (0..TOKENS as i64).collect();
    let time = seconds(|| llm_kernels::linear_cross_entropy(&x, &w, &labels, precision)?.backward().map(drop))?;
    show(
        &format!("output layer and loss, forward and backward, {name}"),
        Work::Flops(3. * flops(TOKENS, HIDDEN, VOCAB), precision),
        time,
    );
    Ok(())
}

/// The fused attention block and the fused MLP block, forward and backward.
fn fused_blocks(precision: Precision, show: &impl Fn(&str, Work, f64)) -> Result<()> {
    let name = name(precision);
    let var = |shape: &[usize]| Var::from_tensor(&random(shape)?);
    let (x, norm) = (var(&[8, 512, HIDDEN])?, var(&[HIDDEN])?);
    let [q, k, v, o] = [(); 4].map(|()| var(&[HIDDEN, HIDDEN]));
    let (q, k, v, o) = (q?, k?, v?, o?);
    let norm = Some(Norm::Rms { weight: norm.as_tensor().clone(), eps: 1e-5 });
    let positions: Vec<u32> = (0..8).flat_map(|_| 0..512).collect();
    let rotation = RotaryFrequencies::new(64, 10_000.).table(&positions);
    let (scores, all) = (AttentionParams { precision, ..AttentionParams::for_head_dim(64) }, AttentionMask::default());
    let block = AttentionBlock {
        norm: norm.clone(),
        rotary: Some(&rotation),
        ..AttentionBlock::new([&q, &k, &v, &o].map(|w| Projection::dense(w, precision)), 64, scores, &all)
    };
    let attention = || llm_kernels::attention_block(&x, &block, None)?.backward();
    let work = 3. * 4. * flops(TOKENS, HIDDEN, HIDDEN) + 14. * 64. * PAIRS;
    let time = seconds(|| attention().map(drop))?;
    show(&format!("fused attention block, forward and backward, {name}"), Work::Flops(work, precision), time);
    let (gate, up, down) = (var(&[INNER, HIDDEN])?, var(&[INNER, HIDDEN])?, var(&[HIDDEN, INNER])?);
    let weights = [&gate, &up, &down].map(|w| Projection::dense(w, precision));
    let block = MlpBlock { norm, residual: Some(x.as_tensor()), ..MlpBlock::gated(weights, Activation::Silu) };
    let mlp = || llm_kernels::mlp_block(&x, &block)?.backward();
    let work = 3. * 3. * flops(TOKENS, HIDDEN, INNER);
    let time = seconds(|| mlp().map(drop))?;
    show(&format!("fused MLP block, forward and backward, {name}"), Work::Flops(work, precision), time);
    Ok(())
}

/// Kernels of a training step that are limited by memory bandwidth.
fn elementwise(show: &impl Fn(&str, Work, f64)) -> Result<()> {
    let bytes = |tensors: usize, width: usize| Work::Bytes((4 * tensors * TOKENS * width) as f64);
    let (x, weight) = (random(&[8, 512, HIDDEN])?, random(&[HIDDEN])?);
    show("RMSNorm", bytes(2, HIDDEN), seconds(|| llm_kernels::rms_norm(&x, &weight, 1e-5).map(drop))?);
    let bias = random(&[HIDDEN])?;
    show("LayerNorm", bytes(2, HIDDEN), seconds(|| llm_kernels::layer_norm(&x, &weight, &bias, 1e-5).map(drop))?);
    let heads = x.reshape((8, 512, 6, 64))?;
    let positions: Vec<u32> = (0..8).flat_map(|_| 0..512).collect();
    let rotation = RotaryFrequencies::new(64, 10_000.).table(&positions);
    show("rotary positions", bytes(2, HIDDEN), seconds(|| llm_kernels::rope(&heads, &rotation).map(drop))?);
    let (gate, up) = (random(&[TOKENS, INNER])?, random(&[TOKENS, INNER])?);
    for (name, activation) in [("SwiGLU", Activation::Silu), ("GeGLU", Activation::GeluTanh)] {
        show(name, bytes(3, INNER), seconds(|| llm_kernels::gated_activation(&gate, &up, activation).map(drop))?);
    }
    show("GELU", bytes(2, INNER), seconds(|| llm_kernels::activate(&gate, Activation::Gelu).map(drop))?);
    let (w, grad) = (Var::from_tensor(&random(&[VOCAB, HIDDEN])?)?, random(&[VOCAB, HIDDEN])?);
    let moments = Tensor::zeros((2, VOCAB * HIDDEN), DType::F32, &Device::Cpu)?;
    let step = AdamWStep {
        learning_rate: 1e-3,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.1,
        step: 1,
        gradient_scale: 1.,
    };
    let work = Work::Bytes((28 * VOCAB * HIDDEN) as f64);
    show("AdamW", work, seconds(|| llm_kernels::adamw_step(&w, &grad, &moments, &step))?);
    Ok(())
}

/// A matrix-vector product, as in decoding: one token and the output layer of SmolLM2-135M, for each weight dtype.
fn decoding(show: &impl Fn(&str, Work, f64)) -> Result<()> {
    let (x, w) = (random(&[1, 576])?, random(&[49152, 576])?);
    let bytes = |each: f64| Work::Bytes(each * 49152. * 576.);
    show("one row, f32 weight", bytes(4.), seconds(|| llm_kernels::linear(&x, &w).map(drop))?);
    let bf16 = w.to_dtype(DType::BF16)?;
    show("one row, bf16 weight", bytes(2.), seconds(|| llm_kernels::linear(&x, &bf16).map(drop))?);
    for (name, format) in [("q8_0", BlockFormat::Q8_0), ("q4_0", BlockFormat::Q4_0)] {
        let blocks = QuantizedWeight::quantize(&w, format)?;
        let each = format.bytes() as f64 / format.elements() as f64;
        let time = seconds(|| llm_kernels::linear_quantized(&x, &blocks).map(drop))?;
        show(&format!("one row, {name} weight"), bytes(each), time);
    }
    let (x, w) = (random(&[1, 1024])?, random(&[32768, 1024])?);
    for (name, format) in [("q4_k", BlockFormat::Q4_K), ("q6_k", BlockFormat::Q6_K)] {
        let blocks = QuantizedWeight::quantize(&w, format)?;
        let each = format.bytes() as f64 / format.elements() as f64 * 32768. * 1024.;
        let time = seconds(|| llm_kernels::linear_quantized(&x, &blocks).map(drop))?;
        show(&format!("one row of 1024, {name} weight"), Work::Bytes(each), time);
    }
    Ok(())
}

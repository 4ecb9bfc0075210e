//! The loss on text, and the log-probabilities of given continuations.

use candle_core::{DType, Tensor};
use llm_data::TokenDataset;
use llm_model::{Batch, Model};
use serde::Serialize;

use crate::Result;

/// The loss of a model on a text.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct TextLoss {
    /// Mean cross-entropy per token, in nats.
    pub loss: f64,
    /// Bits per byte of text: comparable between tokenizers.
    pub bits_per_byte: f64,
    /// Number of predicted tokens.
    pub tokens: usize,
}

/// The loss on the first `max_batches` batches (0: all) of a dataset, in windows of `seq_len` tokens.
pub fn text_loss(
    model: &Model,
    data: &TokenDataset,
    batch_size: usize,
    seq_len: usize,
    max_batches: usize,
) -> Result<TextLoss> {
    let (mut sum, mut tokens) = (0., 0);
    let limit = if max_batches == 0 { usize::MAX } else { max_batches };
    for (inputs, targets) in llm_data::eval_windows(data, batch_size, seq_len)?.take(limit) {
        let width =
            if inputs.len() < seq_len || !inputs.len().is_multiple_of(seq_len) { inputs.len() } else { seq_len };
        let labels: Vec<i64> = targets.iter().map(|&id| i64::from(id)).collect();
        let hidden = model.hidden(&Batch::from_flat(&inputs, width)?, None)?.flatten(0, 1)?;
        let loss = model.cross_entropy(&hidden, &labels)?.to_dtype(DType::F64)?.to_scalar::<f64>()?;
        sum += labels.len() as f64 * loss;
        tokens += labels.len();
    }
    let loss = sum / tokens.max(1) as f64;
    let tokens_per_byte = data.len() as f64 / (data.bytes() as f64).max(1.);
    Ok(TextLoss { loss, bits_per_byte: loss * tokens_per_byte / std::f64::consts::LN_2, tokens })
}

/// The log-probability of each continuation given its prefix, in nats. Pairs are (prefix, continuation) token ids, not empty.
pub fn continuation_logprobs(model: &Model, pairs: &[(Vec<u32>, Vec<u32>)], batch_size: usize) -> Result<Vec<f64>> {
    let rows = pairs.iter().map(|(prefix, rest)| Row { prefix, rest, masked: (0, 0) });
    row_logprobs(model, &rows.collect::<Vec<_>>(), batch_size, 1.)
}

/// A prefix with its continuation.
pub(crate) struct Row<'a> {
    pub prefix: &'a [u32],
    pub rest: &'a [u32],
    /// The half-open range of tokens that are masked in attention; empty: none.
    pub masked: (u32, u32),
}

/// The log-probability of each row's continuation at a temperature, in nats. Rows of similar length share a batch. Logits are computed for the
/// continuations only, a few megabytes at a time.
pub(crate) fn row_logprobs(model: &Model, rows: &[Row], batch_size: usize, temperature: f64) -> Result<Vec<f64>> {
    const LOGITS: usize = 1 << 22;
    let mut order: Vec<usize> = (0..rows.len()).collect();
    order.sort_by_key(|&row| rows[row].prefix.len() + rows[row].rest.len());
    let mut logprobs = vec![0.; rows.len()];
    for chunk in order.chunks(batch_size.max(1)) {
        let ids: Vec<Vec<u32>> = chunk.iter().map(|&row| [rows[row].prefix, rows[row].rest].concat()).collect();
        let mut batch = Batch::right_padded(&ids, 0)?;
        if chunk.iter().any(|&row| rows[row].masked.0 < rows[row].masked.1) {
            batch = batch.with_masked_keys(&chunk.iter().map(|&row| rows[row].masked).collect::<Vec<_>>())?;
        }
        let width = batch.input_ids.dim(1)?;
        let (mut positions, mut labels, mut owners) = (Vec::new(), Vec::new(), Vec::new());
        for (i, &row) in chunk.iter().enumerate() {
            for (t, &id) in rows[row].rest.iter().enumerate() {
                positions.push((i * width + rows[row].prefix.len() + t - 1) as u32);
                labels.push(i64::from(id));
                owners.push(row);
            }
        }
        let hidden = model.hidden(&batch, None)?; // (b, t, hidden)
        let n = (LOGITS / model.config().vocab_size).max(1);
        for ((positions, labels), owners) in positions.chunks(n).zip(labels.chunks(n)).zip(owners.chunks(n)) {
            let index = Tensor::from_slice(positions, positions.len(), hidden.device())?;
            let logits = model.output(&hidden.flatten(0, 1)?.index_select(&index, 0)?)?; // (n, vocab)
            let losses = llm_kernels::cross_entropy(&(logits / temperature)?, labels)?.to_vec1::<f32>()?;
            for (loss, &row) in losses.iter().zip(owners) {
                logprobs[row] -= f64::from(*loss);
            }
        }
    }
    Ok(logprobs)
}

#[cfg(test)]
mod tests {
    use candle_core::D;
    use llm_data::prepare;

    use super::*;
    use crate::testing::{model, tokenizer};

    const TEXT: &str = "the cat sat on the mat. the dog sat on the log. the cat ate.";

    fn dataset(dir: &std::path::Path) -> TokenDataset {
        let documents: Vec<String> = (0..9).map(|i| TEXT[i..].to_owned()).collect();
        prepare(&tokenizer(TEXT), &[("held_out", &documents)], dir, &mut |_| ()).unwrap();
        TokenDataset::open(dir, "held_out").unwrap()
    }

    /// With all logits 0 the loss is `ln(vocab)` nats per token, or `log2(vocab)` bits times tokens per byte.
    #[test]
    fn a_uniform_model_has_the_log_of_the_vocabulary_as_loss() {
        let dir = tempfile::tempdir().unwrap();
        let data = dataset(dir.path());
        let uniform = model(&tokenizer(TEXT), 0.);
        let vocab = uniform.config().vocab_size as f64;
        let found = text_loss(&uniform, &data, 2, 8, 0).unwrap();
        assert!((found.loss - vocab.ln()).abs() < 1e-5, "{found:?}");
        let bytes: usize = (0..9).map(|i| TEXT.len() - i).sum();
        assert_eq!(data.bytes(), bytes);
        let bits = vocab.log2() * data.len() as f64 / bytes as f64;
        assert!((found.bits_per_byte - bits).abs() < 1e-5, "{found:?} is not {bits} bits");
        assert_eq!(found.tokens, data.len() - 1, "every token but the first is predicted once");
        assert_eq!(text_loss(&uniform, &data, 2, 8, 3).unwrap().tokens, 3 * 2 * 8);
    }

    /// Compares with one forward pass per token on its prefix within the window.
    #[test]
    fn the_loss_is_the_mean_over_tokens_in_windows() {
        let dir = tempfile::tempdir().unwrap();
        let data = dataset(dir.path());
        let model = model(&tokenizer(TEXT), 0.3);
        let (tokens, seq_len) = (data.tokens(), 8);
        assert_ne!((tokens.len() - 1) % seq_len, 0, "the last window must be shorter");
        let mut sum = 0.;
        for at in 1..tokens.len() {
            let start = (at - 1) / seq_len * seq_len;
            let logits = model.forward(&Batch::new(&[tokens[start..at].to_vec()]).unwrap()).unwrap();
            let last = logits.get(0).unwrap().get(at - start - 1).unwrap().to_vec1::<f32>().unwrap();
            let total: f64 = last.iter().map(|&z| f64::from(z).exp()).sum();
            sum += total.ln() - f64::from(last[tokens[at] as usize]);
        }
        let expected = sum / (tokens.len() - 1) as f64;
        for batch_size in [1, 3, 100] {
            let found = text_loss(&model, &data, batch_size, seq_len, 0).unwrap();
            assert!((found.loss - expected).abs() < 1e-4, "{} is not {expected}", found.loss);
        }
    }

    #[test]
    fn continuation_probabilities_are_products_of_token_probabilities() {
        let model = model(&tokenizer(TEXT), 0.3);
        let pairs = [(vec![7, 8, 9, 10], vec![11]), (vec![20], vec![21, 22, 23]), (vec![5, 6], vec![9, 9])];
        let logprobs = continuation_logprobs(&model, &pairs, 2).unwrap();
        for ((prefix, rest), logprob) in pairs.iter().zip(&logprobs) {
            let row = [prefix.as_slice(), rest].concat();
            let logits = model.forward(&Batch::new(&[row]).unwrap()).unwrap().get(0).unwrap(); // (t, vocab)
            let p =
                (logits.exp().unwrap().broadcast_div(&logits.exp().unwrap().sum_keepdim(D::Minus1).unwrap())).unwrap();
            let p = p.to_vec2::<f32>().unwrap();
            let product: f32 = rest.iter().enumerate().map(|(t, &id)| p[prefix.len() + t - 1][id as usize]).product();
            assert!((logprob - f64::from(product).ln()).abs() < 1e-4, "{logprob} is not ln {product}");
        }
        let all_at_once = continuation_logprobs(&model, &pairs, 64).unwrap();
        assert!(logprobs.iter().zip(all_at_once).all(|(a, b)| (a - b).abs() < 1e-5));
        let uniform = crate::testing::model(&tokenizer(TEXT), 0.);
        let vocab = uniform.config().vocab_size as f64;
        let uniform_logprobs = continuation_logprobs(&uniform, &pairs, 2).unwrap();
        assert!((uniform_logprobs[1] + 3. * vocab.ln()).abs() < 1e-4);
    }
}

//! The loss on text, and the log-probabilities of given continuations.

use std::ops::Range;

use candle_core::{DType, Tensor};
use llm_data::TokenDataset;
use llm_kernels::IGNORE_INDEX;
use llm_model::{Batch, Model};
use serde::Serialize;

use crate::Result;

/// The loss of a model on a text.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct TextLoss {
    /// Mean cross-entropy per predicted token, in nats.
    pub loss: f64,
    /// Bits per byte: the nats of the predicted tokens that have bytes, over `ln 2` times the bytes of the same tokens. Special tokens,
    /// such as the separator of documents, count on neither side. It can be compared between tokenizers.
    pub bits_per_byte: f64,
    /// Number of predicted tokens.
    pub tokens: usize,
    /// Number of predicted tokens that have bytes.
    pub text_tokens: usize,
    /// Bytes of these tokens.
    pub bytes: u64,
}

/// A split of token shards to score, and in which windows.
#[derive(Debug, Clone, Copy)]
pub struct TextWindows<'a> {
    /// The split.
    pub data: &'a TokenDataset,
    /// The bytes of text of each token ([`llm_tokenizer::Tokenizer::token_bytes`]).
    pub token_bytes: &'a [u32],
    /// Windows per batch.
    pub batch_size: usize,
    /// Tokens per window.
    pub seq_len: usize,
    /// Number of batches, whose windows are taken evenly from the whole split; 0: all.
    pub max_batches: usize,
}

/// The loss on the tokens of a split as one stream (`bpb_stream`): windows of `seq_len` tokens, in which the end of a document can be the
/// context of the next one. Every token except the first is predicted once, the first of a window from no more than the token before.
pub fn text_loss(model: &Model, windows: &TextWindows) -> Result<TextLoss> {
    let all = llm_data::eval_windows(windows.data, 1, windows.seq_len)?;
    let targets = windows.data.len() - 1;
    // A shorter last window is left out of a sample.
    let chosen = windows.sample(targets.div_ceil(windows.seq_len), targets / windows.seq_len);
    let mut chosen = chosen.into_iter().peekable();
    let chosen = all.enumerate().filter(|(i, _)| chosen.next_if_eq(i).is_some());
    windows.score(model, chosen.map(|(_, (inputs, targets))| [&inputs[..1], &targets].concat()).collect())
}

/// The loss on the documents of a split, each alone (`bpb_document`): the first token of a document is predicted from `separator`, as in
/// generation, and a long document is cut into windows of `seq_len` tokens. Separators are not predicted.
pub fn document_loss(model: &Model, windows: &TextWindows, separator: u32) -> Result<TextLoss> {
    let (tokens, seq_len) = (windows.data.tokens(), windows.seq_len.max(1));
    let mut ranges: Vec<Range<usize>> = Vec::new();
    let mut start = 0;
    for document in tokens.split(|&id| id == separator) {
        ranges.extend(cut(start..start + document.len(), seq_len));
        start += document.len() + 1;
    }
    let chosen = windows.sample(ranges.len(), ranges.len()).into_iter().map(|i| {
        let at = ranges[i].clone();
        let before = if at.start == 0 { separator } else { tokens[at.start - 1] };
        [&[before], &tokens[at]].concat()
    });
    windows.score(model, chosen.collect())
}

/// The parts of `len` tokens of a range; the last can be shorter.
fn cut(range: Range<usize>, len: usize) -> Vec<Range<usize>> {
    range.clone().step_by(len).map(|start| start..(start + len).min(range.end)).collect()
}

impl TextWindows<'_> {
    /// The numbers of the windows to score: all, or as many as the batches have, evenly from the first `whole` ones.
    fn sample(&self, all: usize, whole: usize) -> Vec<usize> {
        match self.max_batches.saturating_mul(self.batch_size) {
            wanted if wanted == 0 || wanted >= whole => (0..all).collect(),
            wanted => (0..wanted).map(|i| i * whole / wanted).collect(),
        }
    }

    /// The loss on the tokens of each window after its first.
    fn score(&self, model: &Model, windows: Vec<Vec<u32>>) -> Result<TextLoss> {
        let mut sums = Sums::default();
        for ids in windows.chunks(self.batch_size.max(1)) {
            let inputs: Vec<&[u32]> = ids.iter().map(|ids| &ids[..ids.len() - 1]).collect();
            let labels: Vec<u32> = ids.iter().flat_map(|ids| &ids[1..]).copied().collect();
            let width = inputs.first().map_or(0, |row| row.len());
            let batch = match inputs.iter().all(|row| row.len() == width) {
                true => Batch::from_flat(&inputs.concat(), width)?,
                false => Batch::ragged(&inputs, &vec![0; inputs.len()])?,
            };
            let hidden = model.hidden(&batch, None)?.flatten(0, 1)?; // (n, hidden)
            self.add(model, &hidden, &labels, &mut sums)?;
        }
        let Sums { nats, other_nats, text_tokens, other_tokens, bytes } = sums;
        let tokens = text_tokens + other_tokens;
        Ok(TextLoss {
            loss: (nats + other_nats) / tokens.max(1) as f64,
            bits_per_byte: nats / (std::f64::consts::LN_2 * bytes.max(1) as f64),
            tokens,
            text_tokens,
            bytes,
        })
    }

    /// Adds the losses of the labels, those with and those without bytes.
    fn add(&self, model: &Model, hidden: &Tensor, labels: &[u32], sums: &mut Sums) -> Result<()> {
        let bytes_of = |id: u32| u64::from(self.token_bytes.get(id as usize).copied().unwrap_or(0));
        let label = |&id: &u32| if bytes_of(id) == 0 { IGNORE_INDEX } else { i64::from(id) };
        let text: Vec<i64> = labels.iter().map(label).collect();
        let others: Vec<u32> = (0..labels.len() as u32).filter(|&at| text[at as usize] == IGNORE_INDEX).collect();
        let mean = |hidden: &Tensor, labels: &[i64]| -> Result<f64> {
            Ok(model.cross_entropy(hidden, labels)?.to_dtype(DType::F64)?.to_scalar::<f64>()?)
        };
        let count = labels.len() - others.len();
        if count > 0 {
            sums.nats += count as f64 * mean(hidden, &text)?;
        }
        if !others.is_empty() {
            let labels: Vec<i64> = others.iter().map(|&at| i64::from(labels[at as usize])).collect();
            let index = Tensor::from_slice(&others, others.len(), hidden.device())?;
            sums.other_nats += others.len() as f64 * mean(&hidden.index_select(&index, 0)?, &labels)?;
        }
        sums.text_tokens += count;
        sums.other_tokens += others.len();
        sums.bytes += labels.iter().map(|&id| bytes_of(id)).sum::<u64>();
        Ok(())
    }
}

/// What was scored so far.
#[derive(Default)]
struct Sums {
    /// Of tokens that have bytes.
    nats: f64,
    other_nats: f64,
    text_tokens: usize,
    other_tokens: usize,
    bytes: u64,
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

    fn windows<'a>(data: &'a TokenDataset, token_bytes: &'a [u32], max_batches: usize) -> TextWindows<'a> {
        TextWindows { data, token_bytes, batch_size: 2, seq_len: 8, max_batches }
    }

    /// With all logits 0 the loss is `ln(vocab)` nats per token, or `log2(vocab)` bits times tokens per byte, of whatever is scored. Tiny
    /// documents have nearly as many separators as other tokens; one long document has none.
    #[test]
    fn a_uniform_model_has_the_log_of_the_vocabulary_times_tokens_per_byte() {
        let dir = tempfile::tempdir().unwrap();
        let tokenizer = tokenizer(TEXT);
        let mut documents = vec!["é".to_owned(); 300];
        documents.push(TEXT.repeat(50));
        prepare(&tokenizer, &[("held_out", &documents)], dir.path(), &mut |_| ()).unwrap();
        let data = TokenDataset::open(dir.path(), "held_out").unwrap();
        let uniform = model(&tokenizer, 0.);
        let (vocab, token_bytes) = (uniform.config().vocab_size as f64, tokenizer.token_bytes());
        let separator = tokenizer.document_end_id().unwrap();
        let first = token_bytes[data.tokens()[0] as usize];
        let all_bytes = documents.iter().map(String::len).sum::<usize>() as u64;
        for batches in [0, 1, 3, 17] {
            let windows = windows(&data, &token_bytes, batches);
            let (stream, document) =
                (text_loss(&uniform, &windows).unwrap(), document_loss(&uniform, &windows, separator).unwrap());
            for found in [stream, document] {
                assert!((found.loss - vocab.ln()).abs() < 1e-5, "{found:?}");
                let bits = vocab.log2() * found.text_tokens as f64 / found.bytes as f64;
                assert!((found.bits_per_byte / bits - 1.).abs() < 1e-6, "{found:?} is not {bits} bits");
            }
            if batches == 0 {
                assert_eq!(stream.tokens, data.len() - 1, "every token but the first is predicted once");
                assert_eq!(stream.text_tokens, data.len() - 301 - 1, "without the separators");
                assert_eq!(stream.bytes, all_bytes - u64::from(first));
                assert_eq!((document.tokens, document.bytes), (data.len() - 301, all_bytes));
            } else {
                assert_eq!(stream.tokens, batches * 2 * 8);
                assert!(document.tokens == document.text_tokens && document.tokens <= batches * 2 * 8);
            }
        }
    }

    /// The windows of a sample are from the whole split, not from its start.
    #[test]
    fn a_sample_is_taken_evenly_from_the_whole_split() {
        let dir = tempfile::tempdir().unwrap();
        let data = dataset(dir.path());
        let windows = windows(&data, &[], 2);
        assert_eq!(cut(0..100, 8).last(), Some(&(96..100)));
        assert_eq!(windows.sample(13, 12), [0, 3, 6, 9]);
        assert_eq!(windows.sample(5, 4), [0, 1, 2, 3, 4]);
    }

    /// The nats of each token after those of its window.
    fn nats(model: &Model, context: &[u32], token: u32) -> f64 {
        let logits = model.forward(&Batch::new(&[context.to_vec()]).unwrap()).unwrap();
        let last = logits.get(0).unwrap().get(context.len() - 1).unwrap().to_vec1::<f32>().unwrap();
        let total: f64 = last.iter().map(|&z| f64::from(z).exp()).sum();
        total.ln() - f64::from(last[token as usize])
    }

    /// Compares with one forward pass per token on its prefix within the window.
    #[test]
    fn the_loss_is_the_mean_over_tokens_in_windows() {
        let dir = tempfile::tempdir().unwrap();
        let data = dataset(dir.path());
        let model = model(&tokenizer(TEXT), 0.3);
        let (tokens, seq_len, token_bytes) = (data.tokens(), 8, tokenizer(TEXT).token_bytes());
        assert_ne!((tokens.len() - 1) % seq_len, 0, "the last window must be shorter");
        let (mut sum, mut text_sum, mut bytes) = (0., 0., 0);
        for at in 1..tokens.len() {
            let nats = nats(&model, &tokens[(at - 1) / seq_len * seq_len..at], tokens[at]);
            sum += nats;
            text_sum += if token_bytes[tokens[at] as usize] > 0 { nats } else { 0. };
            bytes += token_bytes[tokens[at] as usize];
        }
        let expected = sum / (tokens.len() - 1) as f64;
        let bits = text_sum / std::f64::consts::LN_2 / f64::from(bytes);
        for batch_size in [1, 3, 100] {
            let windows = TextWindows { batch_size, ..windows(&data, &token_bytes, 0) };
            let found = text_loss(&model, &windows).unwrap();
            assert!((found.loss - expected).abs() < 1e-4, "{} is not {expected}", found.loss);
            assert!((found.bits_per_byte - bits).abs() < 1e-4, "{} is not {bits}", found.bits_per_byte);
        }
    }

    #[test]
    fn a_document_is_scored_from_its_separator_alone() {
        let dir = tempfile::tempdir().unwrap();
        let data = dataset(dir.path());
        let (tokenizer, model) = (tokenizer(TEXT), model(&tokenizer(TEXT), 0.3));
        let (separator, token_bytes) = (tokenizer.document_end_id().unwrap(), tokenizer.token_bytes());
        let (mut sum, mut count) = (0., 0);
        for document in data.tokens().split(|&id| id == separator) {
            for at in 0..document.len() {
                // A later window begins with the last token of the one before.
                let start = at / 8 * 8;
                let before = if start == 0 { separator } else { document[start - 1] };
                sum += nats(&model, &[&[before], &document[start..at]].concat(), document[at]);
                count += 1;
            }
        }
        for batch_size in [1, 3, 100] {
            let windows = TextWindows { batch_size, ..windows(&data, &token_bytes, 0) };
            let found = document_loss(&model, &windows, separator).unwrap();
            assert!((found.loss - sum / f64::from(count)).abs() < 1e-4, "{found:?}");
            assert_eq!((found.tokens, found.bytes), (count as usize, data.bytes() as u64));
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

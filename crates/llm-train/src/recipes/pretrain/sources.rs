//! The token shards of pre-training: one folder, or a mixture of several.

use std::path::{Path, PathBuf};

use llm_data::{Batches, Packing, TokenBatch, TokenDataset};
use llm_eval::{TextWindows, document_loss, text_loss};
use llm_kernels::IGNORE_INDEX;
use llm_model::{Batch, Model, ModelConfig};
use llm_tokenizer::Tokenizer;

use super::PretrainRecipe;
use crate::Result;
use crate::compat::{TokenSource, check_compatible};

/// The splits of each folder, with its share of the tokens that are trained on.
pub(super) struct Sources {
    train: Vec<TokenDataset>,
    validation: Vec<TokenDataset>,
    /// They add up to 1.
    shares: Vec<f64>,
}

impl Sources {
    pub fn open(recipe: &PretrainRecipe, dirs: &[PathBuf]) -> Result<Self> {
        let open = |split| dirs.iter().map(|dir| TokenDataset::open(dir, split)).collect::<Result<Vec<_>, _>>();
        let (train, validation) = (open("train")?, open("held_out")?);
        let weights = recipe.data.shares(&train.iter().map(TokenDataset::len).collect::<Vec<_>>())?;
        let sum: f64 = weights.iter().sum();
        Ok(Self {
            train,
            validation,
            shares: weights.iter().map(|weight| weight / sum.max(f64::MIN_POSITIVE)).collect(),
        })
    }

    /// Checks that all folders fit the model and its tokenizer.
    pub fn check(&self, config: &ModelConfig, tokenizer: (&Tokenizer, &Path), seq_len: usize) -> Result<()> {
        let source = |shards| TokenSource::Shards { shards, dir: TokenDataset::dir(shards), seq_len };
        check_compatible(config, tokenizer, &self.train.iter().map(source).collect::<Vec<_>>())
    }

    /// The training batches. Logs the share of each folder of a mixture, and how often it is used.
    pub fn batches(&self, recipe: &PretrainRecipe) -> Result<Batches<'_>> {
        let (batch_size, seq_len, seed) = (recipe.batch_size, recipe.seq_len, recipe.seed);
        let packing = recipe.data.packing;
        let sources: Vec<_> = self.train.iter().zip(self.shares.iter().copied()).collect();
        let mut batches = match self.train.as_slice() {
            [train] => Batches::new(train, batch_size, seq_len, seed)?,
            _ => Batches::mixed(&sources, batch_size, seq_len, seed)?,
        }
        .with_packing(packing);
        if packing == Packing::BestFit {
            for (train, padding) in self.train.iter().zip(batches.padding()) {
                tracing::info!("{}: {:.1} % of the packed rows are padding", train.dir().display(), 100. * padding);
            }
        }
        if self.train.len() == 1 {
            return Ok(batches);
        }
        let passes = batches.passes(recipe.steps.saturating_mul(recipe.gradient_accumulation_steps));
        for ((train, share), passes) in sources.iter().zip(passes) {
            let (dir, tokens) = (train.dir().display(), train.len());
            tracing::info!("{dir}: {:.1} % of the training tokens, {passes:.2} passes over its {tokens}", 100. * share);
        }
        Ok(batches)
    }

    /// The number of validation tokens that an evaluation predicts.
    pub fn evaluated_tokens(&self, recipe: &PretrainRecipe) -> usize {
        let most = match recipe.eval_batches {
            0 => usize::MAX,
            batches => batches.saturating_mul(recipe.batch_size * recipe.seq_len),
        };
        self.validation.iter().map(|data| data.len().saturating_sub(1).min(most)).sum()
    }

    /// The losses on the validation splits, as metrics and in words: of a mixture the means with the shares, then those of each folder.
    /// The loss on single documents is computed at the end of a run only.
    pub fn evaluate(
        &self,
        model: &Model,
        tokenizer: &Tokenizer,
        recipe: &PretrainRecipe,
        is_last: bool,
    ) -> Result<(Vec<(String, f64)>, String)> {
        let PretrainRecipe { batch_size, seq_len, eval_batches: max_batches, .. } = *recipe;
        let token_bytes = tokenizer.token_bytes();
        let separator = tokenizer.document_end_id().filter(|_| is_last);
        let evaluated = self.validation.iter().map(|data| {
            let windows = TextWindows { data, token_bytes: &token_bytes, batch_size, seq_len, max_batches };
            let text = text_loss(model, &windows)?;
            let mut metrics = vec![("eval_loss", text.loss), ("eval_bits_per_byte", text.bits_per_byte)];
            if let Some(separator) = separator {
                metrics.push(("eval_bpb_document", document_loss(model, &windows, separator)?.bits_per_byte));
            }
            Ok(metrics)
        });
        let evaluated = evaluated.collect::<Result<Vec<_>>>()?;
        let mean = |at: usize| -> f64 {
            evaluated.iter().zip(&self.shares).map(|(metrics, share)| share * metrics[at].1).sum()
        };
        let names = evaluated.first().into_iter().flatten().map(|(name, _)| *name).enumerate();
        let mut metrics: Vec<(String, f64)> = names.map(|(at, name)| (name.to_owned(), mean(at))).collect();
        let mut summary = format!("validation loss {:.4}, {:.4} bits per byte", mean(0), mean(1));
        if evaluated.len() > 1 {
            for (number, of_folder) in evaluated.iter().enumerate() {
                metrics.extend(of_folder.iter().map(|(name, value)| (format!("{name}_{}", number + 1), *value)));
            }
            let each: Vec<String> = evaluated.iter().map(|metrics| format!("{:.4}", metrics[0].1)).collect();
            summary += &format!(" (losses of the folders: {})", each.join(", "));
        }
        Ok((metrics, summary))
    }
}

/// A batch for the model, and the labels of all its tokens. With isolated documents each part of a row is a row of a ragged batch, with
/// its own positions and attention.
pub(super) fn model_batch(recipe: &PretrainRecipe, tokens: TokenBatch) -> Result<(Batch, Vec<i64>)> {
    let TokenBatch { inputs, targets, parts, padding } = tokens;
    let mut labels: Vec<i64> = targets.into_iter().map(i64::from).collect();
    padding.into_iter().for_each(|places| labels[places].fill(IGNORE_INDEX));
    if !recipe.data.isolate_documents {
        return Ok((Batch::from_flat(&inputs, recipe.seq_len)?, labels));
    }
    let mut rest = inputs.as_slice();
    let rows = parts.into_iter().map(|length| {
        let (row, later) = rest.split_at(length.min(rest.len()));
        rest = later;
        row
    });
    let rows: Vec<&[u32]> = rows.collect();
    Ok((Batch::ragged(&rows, &vec![0; rows.len()])?, labels))
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Tensor};
    use llm_model::Head;
    use llm_tokenizer::{TrainConfig, train_bpe};

    use super::*;
    use crate::loss;
    use crate::optim::{Learner, OptimizerConfig};

    fn numbers(learner: &Learner) -> Vec<f64> {
        let of = |t: &Tensor| t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
        learner.gradients().values().flat_map(of).collect()
    }

    /// The largest difference, relative to the largest number of `b`.
    fn difference(a: &[f64], b: &[f64]) -> f64 {
        let scale = b.iter().fold(0., |largest: f64, x| largest.max(x.abs()));
        assert!(scale > 0. && a.len() == b.len());
        a.iter().zip(b).map(|(x, y)| (x - y).abs() / scale).fold(0., f64::max)
    }

    /// A batch that contains whole documents has the gradients of each document alone, begun by the separator. Negative control:
    /// without isolation they differ.
    #[test]
    fn isolated_documents_have_the_gradients_of_documents_alone() {
        let dir = tempfile::tempdir().unwrap();
        let texts: Vec<String> = (0..40).map(|i| "the cat sat on a mat ".repeat(i % 4 + 1) + &i.to_string()).collect();
        let config = TrainConfig { vocab_size: 300, min_frequency: 1 };
        let tokenizer = train_bpe(&config, texts.iter().map(String::as_str)).unwrap();
        llm_data::prepare(&tokenizer, &[("train", &texts)], dir.path().join("shards"), &mut |_| ()).unwrap();
        let data = TokenDataset::open(dir.path().join("shards"), "train").unwrap();
        let mut recipe = PretrainRecipe { batch_size: 3, seq_len: 48, ..PretrainRecipe::default() };
        recipe.model = ModelConfig {
            vocab_size: tokenizer.vocab_size(),
            hidden_size: 16,
            intermediate_size: 24,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            initializer_range: 0.3,
            ..recipe.model
        };
        let gradients = |batches: Vec<(Batch, Vec<i64>)>| {
            let model = Model::init(recipe.model.clone(), Head::LanguageModel, 3).unwrap();
            let mut learner = Learner::new(model, &OptimizerConfig::default()).unwrap();
            let all: usize = batches.iter().map(|(_, labels)| labels.len()).sum();
            for (batch, labels) in batches {
                let hidden = learner.model.hidden(&batch, None).unwrap().flatten(0, 1).unwrap();
                let mean = loss::next_token(&learner.model, &hidden, &labels).unwrap();
                learner.backward(&(mean * (labels.len() as f64 / all as f64)).unwrap()).unwrap();
            }
            numbers(&learner)
        };
        let tokens = Batches::new(&data, recipe.batch_size, recipe.seq_len, 1).unwrap().batch(0).unwrap();
        assert!(tokens.parts.len() > 6, "{:?}", tokens.parts);
        let mut alone = Vec::new();
        let mut at = 0;
        for length in &tokens.parts {
            let labels = tokens.targets[at..at + length].iter().map(|&id| i64::from(id)).collect();
            alone.push((Batch::new(&[tokens.inputs[at..at + length].to_vec()]).unwrap(), labels));
            at += length;
        }
        let alone = gradients(alone);
        let batch = |isolate_documents| {
            let mut recipe = recipe.clone();
            recipe.data.isolate_documents = isolate_documents;
            gradients(vec![model_batch(&recipe, tokens.clone()).unwrap()])
        };
        let (isolated, joined) = (difference(&batch(true), &alone), difference(&batch(false), &alone));
        assert!(isolated < 1e-5, "{isolated}");
        assert!(joined > 1e-2, "{joined}");
    }
}

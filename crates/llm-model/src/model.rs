//! Models: a decoder with a head and its parameters.

mod attention;
mod layers;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use candle_core::{Tensor, TensorId};
use candle_nn::Module;
use llm_files::WeightDtype;
use llm_kernels::{
    CrossEntropyLoss, DistillationLoss, DistillationOptions, HeadInputs, Precision, RecomputedGradients, Sequences,
    TeacherLogits, TopKLogprobs, cross_entropy_z, distillation_of_logits, linear_cross_entropy_z, linear_distillation,
};
use serde_json::{Map, Value};

use crate::decoder::Decoder;
use crate::formats::families;
use crate::formats::generation::GenerationConfig;
use crate::head::Head;
use crate::linear::Linear;
use crate::lora::{Adapter, OUTPUT, TokenRows};
use crate::{Batch, Error, KvCache, ModelConfig, PagedRows, ParamCount, Params, Result, Routing};

/// A decoder with its head.
#[derive(Debug, Clone)]
pub struct Model {
    config: ModelConfig,
    head: Head,
    params: Params,
    decoder: Decoder,
    output: Linear, // (vocab, hidden) or (1, hidden)
    output_rows: Option<TokenRows>,
    pub(crate) adapters: Adapters,
    /// The end tokens and sampling defaults of the files.
    generation: GenerationConfig,
    /// The recognised keys of the `config.json` that this model was read from, with their original values.
    pub(crate) raw_config: Map<String, Value>,
    /// Other keys of `config.json`, which are saved unchanged (for example reward statistics).
    pub extra: Map<String, Value>,
}

/// The result of [`Model::hidden_layers`].
#[derive(Debug)]
pub struct HiddenLayers {
    /// The hidden states after the final norm, `(b, t, hidden)`.
    pub hidden: Tensor,
    /// The router losses of a model with experts.
    pub routing: Option<Routing>,
    /// The residual stream after each layer that was asked for, `(b, t, hidden)`, in that order.
    pub layers: Vec<Tensor>,
}

/// The teacher of [`Model::distillation`].
#[derive(Debug, Clone, Copy)]
pub enum Teacher<'a> {
    /// A model with its hidden states `(n, hidden)` for the same tokens.
    Model(&'a Model, &'a Tensor),
    /// Stored log-probabilities of its most likely tokens.
    TopK(&'a TopKLogprobs),
}

/// The adapters of a model, by name.
#[derive(Debug, Clone, Default)]
pub(crate) struct Adapters {
    pub known: BTreeMap<String, Adapter>,
    /// The active adapters, the lowest first; the parameters contain them too.
    pub active: Vec<String>,
    /// The model before its adapter was merged.
    pub unmerged: Option<Arc<Model>>,
}

impl Adapters {
    /// The same adapters, with `active` as the new state of the active ones.
    pub fn with_active(&self, active: &[Adapter]) -> Self {
        let mut adapters = Self { unmerged: None, ..self.clone() };
        adapters.known.extend(adapters.active.iter().cloned().zip(active.iter().cloned()));
        adapters
    }
}

impl Model {
    /// A model with these parameters. An error if their names or shapes do not match `config` and `head`.
    pub fn new(config: ModelConfig, head: Head, params: Params) -> Result<Self> {
        let config = config.validated("model configuration")?;
        params.check(&config, head, "parameters")?;
        let decoder = Decoder::new(&config, &params)?;
        let output = match head {
            Head::LanguageModel if config.tie_word_embeddings => Linear::tied(&params.root().pp(OUTPUT))?,
            Head::LanguageModel => Linear::new(&params.root().pp(OUTPUT))?,
            Head::Sequence | Head::Scores(_) | Head::Token => Linear::new(&params.root().pp("score"))?,
        };
        let output_rows = match head {
            Head::LanguageModel if config.tie_word_embeddings => decoder.embed_rows.clone(),
            Head::LanguageModel => TokenRows::new(&params, OUTPUT)?,
            Head::Sequence | Head::Scores(_) | Head::Token => None,
        };
        let (adapters, raw_config, extra) = (Adapters::default(), Map::new(), Map::new());
        let generation = GenerationConfig::default();
        Ok(Self { config, head, params, decoder, output, output_rows, adapters, generation, raw_config, extra })
    }

    /// A trainable model with random weights; the same seed gives the same bytes. A configuration that the family cannot express
    /// in its `config.json` is an error, because such a model could not be saved.
    pub fn init(config: ModelConfig, head: Head, seed: u64) -> Result<Self> {
        let config = config.validated("model configuration")?;
        families::to_json(&config, head)?;
        let params = Params::init(&config, head, seed)?;
        Self::new(config, head, params.trainable()?)
    }

    /// A trainable copy; training does not change this model. With active adapters only the uppermost is trainable.
    pub fn trainable(&self) -> Result<Self> {
        self.with_params(self.params.trainable()?)
    }

    /// A frozen snapshot: later training of this model does not change it, and it has no gradients.
    pub fn frozen(&self) -> Result<Self> {
        self.with_params(self.params.frozen()?)
    }

    /// The same weights without gradients, not copied: for evaluation during training. Training steps change them too.
    pub fn detached(&self) -> Result<Self> {
        self.with_params(self.params.detached()?)
    }

    /// A frozen copy with matrices in `dtype`. Smaller formats use less memory and decode faster, as decoding is limited by
    /// memory bandwidth.
    ///
    /// A quantised copy cannot be saved with [`Self::save`]: Hugging Face folders do not support these formats.
    pub fn frozen_as(&self, dtype: WeightDtype) -> Result<Self> {
        self.with_params(self.params.with_matrices_in(dtype, self.config.tensor_specs(self.head))?)
    }

    /// A frozen copy for [`Self::save`] only, each matrix in the dtype that it has in `base`, f32 if that is quantised. Values are
    /// rounded once, so that an adapter that was merged in f32 keeps its small updates.
    pub fn with_dtypes_of(&self, base: &Self) -> Result<Self> {
        self.with_params(self.params.with_dtypes_of(&base.params)?)
    }

    /// The same model and variables with matmuls in `precision`. Bf16 is mixed precision (Micikevicius et al. 2018, arXiv
    /// 1710.03740): weights, accumulation and all other operations stay in f32.
    pub fn in_precision(&self, precision: Precision) -> Result<Self> {
        self.with_params(self.params.in_precision(precision))
    }

    pub(crate) fn with_params(&self, params: Params) -> Result<Self> {
        let adapters = self.adapters.with_active(params.adapters());
        let mut model = Self::new(self.config.clone(), self.head, params)?;
        model.adapters = adapters;
        model.generation.clone_from(&self.generation);
        model.raw_config.clone_from(&self.raw_config);
        model.extra.clone_from(&self.extra);
        Ok(model)
    }

    /// Gives the embedding and the output layer matrices of their own.
    pub(crate) fn untie(&mut self) {
        self.config.tie_word_embeddings = false;
    }

    /// Sets the `config.json` keys to save again.
    pub(crate) fn with_raw_config(mut self, raw_config: Map<String, Value>, extra: Map<String, Value>) -> Self {
        (self.raw_config, self.extra) = (raw_config, extra);
        self
    }

    /// A trainable model with the same decoder and another head; a missing score head is initialised from `seed`.
    pub fn with_head(&self, head: Head, seed: u64) -> Result<Self> {
        self.frozen_with_head(head, seed)?.trainable()
    }

    /// A frozen model with the same decoder, whose weights are shared, and another head; a missing score head is initialised from
    /// `seed`.
    pub fn frozen_with_head(&self, head: Head, seed: u64) -> Result<Self> {
        if !self.params.adapters().is_empty() {
            return Err(Error::Input("an adapter is active; merge it before changing the head".to_owned()));
        }
        families::to_json(&self.config, head)?;
        let params = self.params.for_head(&self.config, head, seed)?;
        let model = Self::new(self.config.clone(), head, params)?;
        Ok(model.with_generation(self.generation.clone()))
    }

    /// Enables activation checkpointing (Chen et al. 2016, arXiv 1604.06174): each block saves only its input and is
    /// recomputed in the backward. This takes about a third more compute, and memory for the activations of one block
    /// instead of all. Gradients are bit-identical; [`Self::take_recomputed_gradients`] returns those of the blocks.
    pub fn checkpoint_activations(&mut self) {
        self.decoder.recomputed = Some(RecomputedGradients::default());
    }

    /// With [`Self::checkpoint_activations`]: the gradients of the parameters of the blocks since the last call, by tensor
    /// id. The result of `backward` does not contain them.
    pub fn take_recomputed_gradients(&self) -> HashMap<TensorId, Tensor> {
        self.decoder.recomputed.as_ref().map(RecomputedGradients::take).unwrap_or_default()
    }

    /// The weights of the scores of a sequence in its reward, in the order of the labels: the numbers of `reward_heads` in
    /// `config.json`, which has them by name in this order, else 1 for each.
    pub fn score_weights(&self) -> Vec<f64> {
        let count = match self.head {
            Head::Scores(count) => count,
            _ => 1,
        };
        let named = self.extra.get("reward_heads").and_then(Value::as_object).filter(|heads| heads.len() == count);
        let weights = named.map(|heads| heads.values().filter_map(Value::as_f64).collect::<Vec<_>>());
        weights.filter(|weights| weights.len() == count).unwrap_or_else(|| vec![1.; count])
    }

    /// The configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The end tokens and sampling defaults of the model's files.
    pub fn generation(&self) -> &GenerationConfig {
        &self.generation
    }

    /// Sets the end tokens and sampling defaults.
    #[must_use]
    pub fn with_generation(mut self, generation: GenerationConfig) -> Self {
        self.generation = generation;
        self
    }

    /// The tokens that end a generation, without duplicates: `eos_token_id` of the configuration, then those of
    /// [`Self::generation`].
    pub fn eos_token_ids(&self) -> Vec<u32> {
        let mut ids: Vec<u32> = Vec::new();
        for id in self.config.eos_token_id.iter().chain(&self.generation.eos_token_ids) {
            if !ids.contains(id) {
                ids.push(*id);
            }
        }
        ids
    }

    /// Makes `id` the first end token: the token that ends the turns that the model was trained on. The others stay, so that a
    /// generation also stops at the end of a text.
    pub fn set_end_of_turn(&mut self, id: u32) {
        self.generation.eos_token_ids = self.eos_token_ids();
        self.config.eos_token_id = Some(id);
    }

    /// The head.
    pub fn head(&self) -> Head {
        self.head
    }

    /// The parameters.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// The number of parameters by part.
    pub fn count(&self) -> ParamCount {
        ParamCount::of(&self.config, self.head)
    }

    /// The hidden states after the final norm, `(b, t, hidden)`, of a ragged batch `(1, n, hidden)`. With a cache, the rows
    /// of the batch continue its rows.
    pub fn hidden(&self, batch: &Batch, cache: Option<&mut KvCache>) -> Result<Tensor> {
        self.check_ids(batch)?;
        let Some(cache) = cache else { return Ok(self.decoder.forward(batch, None, None)?.hidden) };
        let sequences = cache.sequences(&batch.lens()?)?;
        let hidden = self.hidden_of(batch, cache.rows(), sequences.clone())?;
        cache.advance(&sequences);
        Ok(hidden)
    }

    /// The hidden states after the final norm, `(1, n, hidden)`, of a ragged batch whose rows continue paged rows. The keys and
    /// values of the batch are appended to the pages. An error if rows, pages and batch do not match.
    pub fn hidden_paged(&self, batch: &Batch, rows: &PagedRows) -> Result<Tensor> {
        self.check_ids(batch)?;
        self.hidden_of(batch, *rows, rows.sequences(batch)?)
    }

    fn hidden_of(&self, batch: &Batch, rows: PagedRows, sequences: Sequences) -> Result<Tensor> {
        rows.pool.check(&self.config)?;
        Ok(self.decoder.forward(batch, Some((rows, sequences)), None)?.hidden)
    }

    /// The hidden states `(b, t, hidden)`, and the router losses of a model with experts: add [`Routing::loss`] to the
    /// training loss.
    pub fn hidden_and_routing(&self, batch: &Batch) -> Result<(Tensor, Option<Routing>)> {
        let HiddenLayers { hidden, routing, .. } = self.hidden_layers(batch, &[])?;
        Ok((hidden, routing))
    }

    /// [`Self::hidden_and_routing`], and the residual stream after each of these layers, counted from 0. An error if a layer is not in
    /// the model.
    pub fn hidden_layers(&self, batch: &Batch, layers: &[usize]) -> Result<HiddenLayers> {
        self.check_ids(batch)?;
        let output = self.decoder.forward_keeping(batch, None, None, layers)?;
        let routing = match &self.config.experts {
            Some(experts) if !output.router_logits.is_empty() => {
                Some(Routing::of(experts, &output.router_logits, batch.padding.as_deref())?)
            }
            _ => None,
        };
        let kept = layers.iter().map(|layer| {
            let all = self.config.num_hidden_layers;
            let missing = || Error::Input(format!("layer {layer} is not in the model; it has {all}, counted from 0"));
            output.kept.get(layer).cloned().ok_or_else(missing)
        });
        let layers = kept.collect::<Result<_>>()?;
        Ok(HiddenLayers { hidden: output.hidden, routing, layers })
    }

    /// The output of the head for hidden states `(…, hidden)`: `(…, vocab)` or `(…, 1)`.
    pub fn output(&self, hidden: &Tensor) -> Result<Tensor> {
        let mut y = self.output.forward(hidden)?;
        if let Some(rows) = &self.output_rows {
            y = rows.logits(hidden, &y)?;
        }
        match self.config.final_logit_softcapping {
            Some(cap) if self.head == Head::LanguageModel => Ok(((y / cap)?.tanh()? * cap)?),
            _ => Ok(y),
        }
    }

    /// The output of the head for every token of the batch: `(b, t, vocab)` or `(b, t, 1)`.
    pub fn forward(&self, batch: &Batch) -> Result<Tensor> {
        self.output(&self.hidden(batch, None)?)
    }

    /// Mean cross-entropy in nats for hidden states `(n, hidden)` and next tokens `labels` `(n,)`: a scalar. Labels of -100
    /// are ignored.
    ///
    /// The full logits are not materialised ([`llm_kernels::linear_cross_entropy`]), except with a soft cap.
    pub fn cross_entropy(&self, hidden: &Tensor, labels: &[i64]) -> Result<Tensor> {
        Ok(self.cross_entropy_z(hidden, labels, 0.)?.loss)
    }

    /// [`Self::cross_entropy`] plus `z_loss_coef` times the z-loss, with both terms ([`llm_kernels::linear_cross_entropy_z`]).
    pub fn cross_entropy_z(&self, hidden: &Tensor, labels: &[i64], z_loss_coef: f64) -> Result<CrossEntropyLoss> {
        if self.head != Head::LanguageModel {
            return Err(Error::Input(
                "this model has a score head; cross-entropy needs a causal language model".to_owned(),
            ));
        }
        if self.config.final_logit_softcapping.is_some() {
            return Ok(cross_entropy_z(&self.output(hidden)?, labels, z_loss_coef)?);
        }
        Ok(linear_cross_entropy_z(hidden, &self.output_weight()?, labels, z_loss_coef, self.output.precision())?)
    }

    /// The matrix of the output layer, `(vocab, hidden)`, with the active adapters.
    fn output_weight(&self) -> Result<Tensor> {
        let weight = self.output.matrix()?;
        self.output_rows.as_ref().map_or(Ok(weight.clone()), |rows| rows.insert_into(&weight))
    }

    /// The distillation loss ([`llm_kernels::linear_distillation`]) for hidden states `(n, hidden)` and next tokens `labels` `(n,)`; this
    /// model is the student. The full logits are not materialised, except with a soft cap.
    pub fn distillation(
        &self,
        hidden: &Tensor,
        teacher: Teacher,
        labels: &[i64],
        options: &DistillationOptions,
    ) -> Result<DistillationLoss> {
        let is_capped = |model: &Self| model.config.final_logit_softcapping.is_some();
        let of = |teacher: TeacherLogits| -> Result<DistillationLoss> {
            if is_capped(self) {
                return Ok(distillation_of_logits(&self.output(hidden)?, teacher, labels, options)?);
            }
            let weight = self.output_weight()?;
            let student = HeadInputs { hidden_states: hidden, weight: &weight, precision: self.output.precision() };
            Ok(linear_distillation(student, teacher, labels, options)?)
        };
        match teacher {
            Teacher::TopK(top) => of(TeacherLogits::TopK(top)),
            Teacher::Model(model, hidden) if is_capped(model) => {
                of(TeacherLogits::Logits(&model.output(hidden)?.detach()))
            }
            Teacher::Model(model, hidden_states) => {
                let (weight, precision) = (model.output_weight()?, model.output.precision());
                of(TeacherLogits::Head(HeadInputs { hidden_states, weight: &weight, precision }))
            }
        }
    }

    fn check_ids(&self, batch: &Batch) -> Result<()> {
        let max = batch.input_ids.flatten_all()?.max(0)?.to_scalar::<u32>()?;
        if max as usize >= self.config.vocab_size {
            let vocab = self.config.vocab_size;
            return Err(Error::Input(format!(
                "token id {max} is outside the vocabulary of {vocab}; use the tokenizer of this model"
            )));
        }
        Ok(())
    }
}

//! A decoder with a head, its parameters and its folder.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Tensor, TensorId};
use llm_kernels::{
    CrossEntropyOptions, DistillationLoss, HeadInputs, IGNORE_INDEX, Precision, RecomputedGradients, cross_entropy,
    kl_divergence, linear_cross_entropy, linear_distillation,
};
use serde_json::{Map, Value};

use crate::adapters::Adapters;
use crate::decoder::Decoder;
use crate::gguf::{GgufFile, is_gguf};
use crate::linear::Linear;
use crate::matrix::Matrix;
use crate::params::WeightFormat;
use crate::token_rows::{OUTPUT, TokenRows};
use crate::{Batch, Error, KvCache, ModelConfig, ParamCount, Params, Result, Routing, checkpoint, families};

/// What a model says about each token of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head {
    /// Logits over the next token (`…ForCausalLM`).
    LanguageModel,
    /// One score, of which the last token's counts (`…ForSequenceClassification` with one label): a reward model.
    Sequence,
    /// One number for each token (`…ForTokenClassification` with one label): the value network of PPO.
    Token,
}

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
    /// The keys of the `config.json` that this model was read from, as they stood there.
    raw_config: Map<String, Value>,
    /// Keys of `config.json` beyond the decoder's own, kept as they are and saved again (reward statistics, say).
    pub extra: Map<String, Value>,
}

impl Model {
    /// A model of these parameters, which must be exactly those that `config` and `head` ask for.
    pub fn new(config: ModelConfig, head: Head, params: Params) -> Result<Self> {
        let config = config.validated("model configuration")?;
        params.check(&config, head, "parameters")?;
        let decoder = Decoder::new(&config, &params)?;
        families::to_json(&config, head)?; // whatever can be made can be saved
        let output = match head {
            Head::LanguageModel if config.tie_word_embeddings => {
                Linear { weight: decoder.embed_tokens.clone(), bias: None, lora: None }
            }
            Head::LanguageModel => Linear::new(&params, "lm_head")?,
            Head::Sequence | Head::Token => Linear::new(&params, "score")?,
        };
        let output_rows = match head {
            Head::LanguageModel if config.tie_word_embeddings => decoder.embed_rows.clone(),
            Head::LanguageModel => TokenRows::new(&config, &params, OUTPUT)?,
            Head::Sequence | Head::Token => None,
        };
        let (adapters, raw_config, extra) = (Adapters::default(), Map::new(), Map::new());
        Ok(Self { config, head, params, decoder, output, output_rows, adapters, raw_config, extra })
    }

    /// A trainable model with fresh weights; the same seed gives the same bytes.
    pub fn init(config: ModelConfig, head: Head, seed: u64) -> Result<Self> {
        let config = config.validated("model configuration")?;
        let params = Params::init(&config, head, seed)?;
        Self::new(config, head, params.trainable()?)
    }

    /// The frozen model of a Hugging Face folder, in f32.
    pub fn load(dir: &Path) -> Result<Self> {
        checkpoint::load(dir)
    }

    /// The frozen model of a Hugging Face folder or a `.gguf` file, its matrices in the file's own precision: read where
    /// they lie in the mapped file, page by page when they are first used, and never copied.
    pub fn open(path: &Path) -> Result<Self> {
        if is_gguf(path) { Self::from_gguf(&GgufFile::open(path)?) } else { checkpoint::open(path) }
    }

    /// A frozen model of the shape that a `config.json` describes, with random weights: for measuring, not for use.
    pub fn random(config: &Path, seed: u64) -> Result<Self> {
        checkpoint::random(config, seed)
    }

    /// Writes `config.json`, `generation_config.json` and `model.safetensors` into `dir`, which is made if need be.
    pub fn save(&self, dir: &Path) -> Result<()> {
        checkpoint::save(self, dir)
    }

    /// A copy whose weights can be trained without touching this one's; those of the adapter alone, if one is in use.
    pub fn trainable(&self) -> Result<Self> {
        self.with_params(self.params.trainable()?)
    }

    /// A copy of the weights as they are now, which no training changes and for which no gradient is computed.
    pub fn frozen(&self) -> Result<Self> {
        self.with_params(self.params.frozen()?)
    }

    /// The same weights, not copied, for which no gradient is computed: for looking at a model between two steps of its
    /// training, which changes the weights of this one too.
    pub fn detached(&self) -> Result<Self> {
        self.with_params(self.params.detached())
    }

    /// A frozen copy whose matrices are held in `format`: less memory, and faster decoding, which waits for memory.
    ///
    /// A copy in blocks generates but is not saved by [`Self::save`]: a Hugging Face folder has no such weights.
    pub fn frozen_as(&self, format: WeightFormat) -> Result<Self> {
        self.with_params(self.params.with_matrices_in(format)?)
    }

    /// The same model, with the same variables, whose products are made in `precision`: bf16 is mixed precision
    /// (Micikevicius et al. 2018, arXiv 1710.03740), where weights, sums and all else stay in f32.
    pub fn in_precision(&self, precision: Precision) -> Result<Self> {
        self.with_params(self.params.in_precision(precision))
    }

    pub(crate) fn with_params(&self, params: Params) -> Result<Self> {
        let adapters = self.adapters.now_with(params.adapter());
        let mut model = Self::new(self.config.clone(), self.head, params)?;
        model.adapters = adapters;
        model.raw_config.clone_from(&self.raw_config);
        model.extra.clone_from(&self.extra);
        Ok(model)
    }

    /// This model as a `config.json` describes it, whose keys are saved again as they stood.
    pub(crate) fn with_raw_config(mut self, raw_config: Map<String, Value>, extra: Map<String, Value>) -> Self {
        (self.raw_config, self.extra) = (raw_config, extra);
        self
    }

    /// A trainable model with the same decoder and another head; a score head that is not there is made from `seed`.
    pub fn with_head(&self, head: Head, seed: u64) -> Result<Self> {
        if self.params.adapter().is_some() {
            return Err(Error::Input("an adapter hangs on this model; merge it before you change the head".to_owned()));
        }
        let params = self.params.for_head(&self.config, head, seed)?;
        Self::new(self.config.clone(), head, params.trainable()?)
    }

    /// Makes every block keep nothing but its input for the backward and run again there: a third more computation
    /// for the activations of one block instead of all. Gradients keep their bits; [`Self::take_recomputed_gradients`] has them.
    pub fn checkpoint_activations(&mut self) {
        self.decoder.recomputed = Some(RecomputedGradients::default());
    }

    /// The gradients of the blocks' parameters since the last call, by tensor id, after
    /// [`Self::checkpoint_activations`]: they do not stand in what `backward` returns.
    pub fn take_recomputed_gradients(&self) -> HashMap<TensorId, Tensor> {
        self.decoder.recomputed.as_ref().map(RecomputedGradients::take).unwrap_or_default()
    }

    /// The shape.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Changes the token ids that the configuration names (a fine-tuned model ends its turn with another token).
    pub fn set_eos_token_id(&mut self, id: Option<u32>) {
        self.config.eos_token_id = id;
    }

    /// The head.
    pub fn head(&self) -> Head {
        self.head
    }

    /// The parameters by name.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// Parameters by part.
    pub fn count(&self) -> ParamCount {
        ParamCount::of(&self.config, self.head)
    }

    /// The hidden states behind the last norm, `(b, t, hidden)`; with a cache the batch continues what it holds.
    pub fn hidden(&self, batch: &Batch, cache: Option<&mut KvCache>) -> Result<Tensor> {
        self.check_ids(batch)?;
        Ok(self.decoder.forward(batch, cache, None)?.hidden)
    }

    /// The hidden states `(b, t, hidden)`, and what the routers did if the model has experts: [`Routing::loss`] belongs
    /// to the loss of a training step.
    pub fn hidden_and_routing(&self, batch: &Batch) -> Result<(Tensor, Option<Routing>)> {
        self.check_ids(batch)?;
        let decoded = self.decoder.forward(batch, None, None)?;
        let routing = match &self.config.experts {
            Some(experts) if !decoded.router_logits.is_empty() => {
                Some(Routing::of(experts, &decoded.router_logits, batch.padding.as_deref())?)
            }
            _ => None,
        };
        Ok((decoded.hidden, routing))
    }

    /// The head's output for hidden states `(…, hidden)`: `(…, vocab)` or `(…, 1)`.
    pub fn output(&self, hidden: &Tensor) -> Result<Tensor> {
        let mut y = self.output.apply(hidden)?;
        if let Some(rows) = &self.output_rows {
            y = rows.logits(hidden, &y)?;
        }
        match self.config.final_logit_softcapping {
            Some(cap) if self.head == Head::LanguageModel => Ok(((y / cap)?.tanh()? * cap)?),
            _ => Ok(y),
        }
    }

    /// The head's output for every token of the batch: `(b, t, vocab)` or `(b, t, 1)`.
    pub fn forward(&self, batch: &Batch) -> Result<Tensor> {
        self.output(&self.hidden(batch, None)?)
    }

    /// The mean cross-entropy in nats of the next tokens `labels` behind the hidden states `(n, hidden)`: a scalar.
    ///
    /// Labels of -100 do not count. The logits are never held whole ([`llm_kernels::linear_cross_entropy`]) but where a
    /// soft cap stands behind them.
    pub fn cross_entropy(&self, hidden: &Tensor, labels: &[i64]) -> Result<Tensor> {
        if self.head != Head::LanguageModel {
            return Err(Error::Input("this model scores texts and has no next token; use a causal one".to_owned()));
        }
        if self.config.final_logit_softcapping.is_some() {
            return Ok((cross_entropy(&self.output(hidden)?, labels)?.sum_all()? / counted(labels))?);
        }
        let options =
            CrossEntropyOptions { precision: self.output.weight.precision(), ..CrossEntropyOptions::default() };
        Ok(linear_cross_entropy(hidden, &self.output_weight()?, labels, options)?)
    }

    /// The output layer's matrix as the files have it.
    pub(crate) fn output_matrix(&self) -> &Matrix {
        &self.output.weight
    }

    /// The whole output layer, `(vocab, hidden)`, with the rows of the adapter in use.
    fn output_weight(&self) -> Result<Tensor> {
        let weight = self.output.weight.dense()?;
        self.output_rows.as_ref().map_or(Ok(weight.clone()), |rows| rows.within(&weight))
    }

    /// `alpha · T² · KL(teacher/T ‖ this/T) + (1 - alpha) · cross-entropy` of the next tokens `labels` behind the hidden
    /// states `(n, hidden)`; `teacher` is a model of the same vocabulary with its own hidden states of the same tokens.
    pub fn distillation(
        &self,
        hidden: &Tensor,
        teacher: (&Self, &Tensor),
        labels: &[i64],
        alpha: f64,
        temperature: f64,
    ) -> Result<DistillationLoss> {
        if [self, teacher.0].iter().any(|model| model.config.final_logit_softcapping.is_some()) {
            let theirs = teacher.0.output(teacher.1)?.detach();
            return distillation_of_logits(&self.output(hidden)?, &theirs, labels, alpha, temperature);
        }
        let (ours, theirs) = (self.output_weight()?, teacher.0.output_weight()?);
        let student = HeadInputs { hidden_states: hidden, weight: &ours, precision: self.output.weight.precision() };
        let precision = teacher.0.output.weight.precision();
        let teacher = HeadInputs { hidden_states: teacher.1, weight: &theirs, precision };
        Ok(linear_distillation(student, teacher, labels, alpha, temperature)?)
    }

    /// The attention weights of every layer, `(b, h, t, t)` each: how much each token looks at each earlier one.
    pub fn attentions(&self, batch: &Batch) -> Result<Vec<Tensor>> {
        self.check_ids(batch)?;
        let mut weights = Vec::new();
        self.decoder.forward(batch, None, Some(&mut weights))?;
        Ok(weights)
    }

    fn check_ids(&self, batch: &Batch) -> Result<()> {
        let top = batch.input_ids.flatten_all()?.max(0)?.to_scalar::<u32>()?;
        if top as usize >= self.config.vocab_size {
            let vocab = self.config.vocab_size;
            return Err(Error::Input(format!(
                "token id {top} is outside the model's vocabulary of {vocab}; is this the model's own tokenizer?"
            )));
        }
        Ok(())
    }

    /// The `config.json` of this model: as it was read, as long as that says what the model is.
    pub(crate) fn config_json(&self) -> Result<Value> {
        let read = families::from_json(&Value::Object(self.raw_config.clone()), "config.json");
        let mut json = match read {
            Ok(read) if read.config == self.config && read.head == self.head => Value::Object(self.raw_config.clone()),
            _ => families::to_json(&self.config, self.head)?,
        };
        let dtype = match &self.decoder.embed_tokens {
            Matrix::Dense(w, _) => w.dtype(),
            Matrix::Mapped(w) => w.dtype(),
            Matrix::Quantized(_) => DType::F32,
        };
        let key = if json.get("dtype").is_some() { "dtype" } else { "torch_dtype" };
        json[key] = Value::from(match dtype {
            DType::BF16 => "bfloat16",
            DType::F16 => "float16",
            _ => "float32",
        });
        if let Value::Object(map) = &mut json {
            map.extend(self.extra.clone());
        }
        Ok(json)
    }
}

/// How many labels count, at least one.
fn counted(labels: &[i64]) -> f64 {
    labels.iter().filter(|&&label| label != IGNORE_INDEX).count().max(1) as f64
}

/// [`llm_kernels::linear_distillation`] where logits `(n, vocab)` must stand whole, as something stands behind them.
fn distillation_of_logits(
    student: &Tensor,
    teacher: &Tensor,
    labels: &[i64],
    alpha: f64,
    temperature: f64,
) -> Result<DistillationLoss> {
    let keep: Vec<f32> = labels.iter().map(|&label| f32::from(label != IGNORE_INDEX)).collect();
    let keep = Tensor::from_vec(keep, labels.len(), student.device())?.to_dtype(student.dtype())?;
    let kl = ((kl_divergence(student, teacher, temperature)? * keep)?.sum_all()? / counted(labels))?;
    let cross_entropy = (cross_entropy(student, labels)?.sum_all()? / counted(labels))?;
    let number = |x: &Tensor| x.to_dtype(DType::F64)?.to_scalar::<f64>();
    let (kl_number, cross_entropy_number) = (number(&kl)?, number(&cross_entropy)?);
    let loss = ((kl * (alpha * temperature * temperature))? + (cross_entropy * (1. - alpha))?)?;
    Ok(DistillationLoss { loss, kl: kl_number, cross_entropy: cross_entropy_number })
}

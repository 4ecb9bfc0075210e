//! The teachers of distillation and the plain text.

use std::path::Path;

use candle_core::Device;
use llm_data::TokenDataset;
use llm_model::{Head, Model, ModelConfig, read_config};
use llm_tokenizer::Tokenizer;

use super::batch::BatchTeacher;
use super::replies::Replies;
use super::{DistillInputs, DistillRecipe};
use crate::compat::{TokenSource, check_compatible, check_same_tokens};
use crate::examples::Example;
use crate::recipes::{kind, load_model};
use crate::run::fingerprint;
use crate::teacher_logits::{Manifest, StoredLogits, data_hash};
use crate::{Error, Result};

/// The teachers and the plain text.
pub(super) struct Teachers {
    /// The configuration of the teacher.
    pub teacher_config: ModelConfig,
    /// The teacher of conversations.
    pub teacher: Source,
    /// The teacher of plain text; `None` if not given, or if α is 0.
    pub text_teacher: Option<Model>,
    /// The training split of the plain text.
    pub text: Option<TokenDataset>,
}

impl Teachers {
    /// Loads the teachers and checks that all have the same tokenizer.
    pub fn load(
        recipe: &DistillRecipe,
        inputs: &DistillInputs,
        tokenizer: &Tokenizer,
        device: &Device,
    ) -> Result<Self> {
        let described = read_config(&inputs.teacher)?;
        if described.head != Head::LanguageModel {
            let (teacher, found) = (inputs.teacher.display(), kind(described.head));
            return Err(Error::Unsupported(format!(
                "{teacher}: the model is {found}; a teacher must be a language model"
            )));
        }
        let teacher_config = described.config;
        let teacher_tokenizer = (tokenizer, inputs.teacher.as_path());
        let text = inputs.text.as_ref().map(|dir| TokenDataset::open(dir, "train")).transpose()?;
        let source = |(shards, dir)| TokenSource::Shards { shards, dir, seq_len: recipe.seq_len };
        let source = text.as_ref().zip(inputs.text.as_deref()).map(source);
        check_compatible(&teacher_config, teacher_tokenizer, source.as_slice())?;
        if let Some(dir) = &inputs.text_teacher {
            if text.is_none() {
                let dir = dir.display();
                return Err(Error::BadRequest(format!(
                    "{dir}: a teacher of plain text needs plain text; give --text too"
                )));
            }
            check_same_tokens(teacher_tokenizer, (&read_config(dir)?.config, dir), recipe.seq_len)?;
        }
        // The teacher has the precision of the student, as both see the same tokens in every step.
        let load = |dir: &Path| {
            let model = load_model(dir, Head::LanguageModel)?.to_device(device)?;
            Ok::<_, Error>(model.in_precision(recipe.optimizer.precision)?)
        };
        let has_divergence = recipe.alpha != 0.;
        let runs_teacher = has_divergence && inputs.teacher_logits.is_none() || recipe.sequence_level;
        let teacher = if runs_teacher { Source::Model(Box::new(load(&inputs.teacher)?)) } else { Source::None };
        let text_teacher = inputs.text_teacher.as_deref().filter(|_| has_divergence).map(load).transpose()?;
        Ok(Self { teacher_config, teacher, text_teacher, text })
    }

    /// Reads the stored log-probabilities of these conversations (to train on, to validate on), if they are given.
    pub fn read_stored(
        &mut self,
        recipe: &DistillRecipe,
        inputs: &DistillInputs,
        tokenizer: &Tokenizer,
        (train, validation): (&[Example], &[Example]),
    ) -> Result<()> {
        let Some(dir) = inputs.teacher_logits.as_deref().filter(|_| recipe.alpha != 0.) else { return Ok(()) };
        let needs_teacher = [
            ("on_policy", recipe.on_policy > 0.),
            ("sequence_level", recipe.sequence_level),
            ("hidden_weight", recipe.hidden_weight > 0.),
        ];
        if let Some((key, _)) = needs_teacher.into_iter().find(|(_, given)| *given) {
            let dir = dir.display();
            return Err(Error::BadRequest(format!(
                "{key} needs the teacher itself; leave out it or --teacher-logits {dir}"
            )));
        }
        let expected = Manifest {
            version: 1,
            teacher: fingerprint("teacher", &inputs.teacher)?,
            tokenizer: tokenizer.fingerprint(),
            data: data_hash(train, validation),
            temperature: recipe.temperature,
            vocab: tokenizer.vocab_size(),
            train: train.len(),
            validation: validation.len(),
            top_k: 0,
            bits: 0,
        };
        let logits = StoredLogits::open(dir, &expected, train, validation)?;
        self.teacher = Source::Stored { logits, train: train.len() };
        Ok(())
    }

    /// The conversations to train on: with the teacher's answers if the recipe is sequence-level.
    pub fn answers(&mut self, replies: Replies, train: Vec<Example>, end_of_turn: u32) -> Result<Vec<Example>> {
        let Source::Model(teacher) = &mut self.teacher else { return Ok(train) };
        if !replies.recipe.sequence_level {
            return Ok(train);
        }
        teacher.set_end_of_turn(end_of_turn);
        tracing::info!("the teacher answers {} conversations", train.len());
        let answered = replies.of_teacher(teacher, &train)?;
        if replies.recipe.alpha == 0. {
            self.teacher = Source::None;
        }
        Ok(answered)
    }
}

/// The distribution of the teacher for conversations.
pub(super) enum Source {
    /// Labels only.
    None,
    Model(Box<Model>),
    /// Stored log-probabilities of the conversations to train on, `train` of them, and to validate on.
    Stored {
        logits: StoredLogits,
        train: usize,
    },
}

impl Source {
    /// The teacher of a batch of these training conversations.
    pub fn of(&self, numbers: &[usize]) -> Result<Option<BatchTeacher<'_>>> {
        Ok(match self {
            Self::None => None,
            Self::Model(teacher) => Some(BatchTeacher::Model(teacher)),
            Self::Stored { logits, .. } => Some(BatchTeacher::Stored(logits.of(numbers.iter().copied())?)),
        })
    }

    /// The teacher of a batch of these validation conversations.
    pub fn of_validation(&self, numbers: &[usize]) -> Result<Option<BatchTeacher<'_>>> {
        match self {
            Self::Stored { train, .. } => self.of(&numbers.iter().map(|number| train + number).collect::<Vec<_>>()),
            _ => self.of(numbers),
        }
    }
}

//! The options of the command `attention`.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, ValueEnum};
use llm_cli::{DeviceOption, Failure, HubOption};
use llm_engine::{Error, TextModel};
use llm_model::{Ablation, AblationKind, Model};

use crate::adapter::with_adapter;
use crate::dtype::Dtype;
use crate::failure::{input, io_failure};

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  llm-infer attention -m runs/lifecycle/aligned --text \"She poured water into the glass and drank it.\" --from it\n  \
    llm-infer attention -m model.gguf --text \"The cat sat. It slept.\" --from It --to cat --html attention.html\n  \
    llm-infer attention -m runs/lifecycle/aligned --text \"The cup was not dirty; it\" --from it --ablate 1.1"
)]
#[allow(clippy::doc_markdown, reason = "help texts have no backticks")]
pub(crate) struct AttentionArgs {
    /// Model: a Hugging Face folder (config.json, model.safetensors, tokenizer.json), a .gguf file or org/name on the hub
    #[arg(short, long)]
    pub(crate) model: PathBuf,
    /// Folder of a PEFT LoRA adapter for the model, or org/name on the hub
    #[arg(long)]
    pub(crate) adapter: Option<PathBuf>,
    /// Weight dtype in memory
    #[arg(long, value_parser = Dtype::parser(), default_value = "mapped")]
    pub(super) dtype: Dtype,
    /// The text, at most 2048 tokens
    #[arg(short, long, required_unless_present = "file")]
    text: Option<String>,
    /// Read the text from a file
    #[arg(short, long, conflicts_with = "text")]
    file: Option<PathBuf>,
    /// The text is a message of the user: format it with the chat template
    #[arg(long)]
    pub(super) chat: bool,
    /// Begin with the beginning-of-sequence token, also if the tokenizer does not add it
    #[arg(long, conflicts_with = "chat")]
    pub(super) bos: bool,
    /// The word that looks, such as it, or it:2 for the second one [default: none; print the kinds of heads]
    #[arg(long, value_name = "WORD")]
    pub(super) from: Option<String>,
    /// The word that is looked at: rank the heads by their weight on it
    #[arg(long, value_name = "WORD", requires = "from")]
    pub(super) to: Option<String>,
    /// Only this layer, from 0
    #[arg(long, value_name = "L")]
    pub(super) layer: Option<usize>,
    /// Only this head of each layer, from 0
    #[arg(long, value_name = "H")]
    pub(super) head: Option<usize>,
    /// Leave out the weight on the first token, which is often most of it
    #[arg(long)]
    pub(super) skip_first: bool,
    /// Ablate the head H of layer L, and compare the next words (repeatable, or comma-separated); each: each head alone, ranked by its
    /// effect
    #[arg(long, value_name = "L.H", value_delimiter = ',')]
    pub(super) ablate: Vec<Ablated>,
    /// What an ablated head does
    #[arg(long, value_enum, default_value = "zero")]
    pub(super) ablate_to: AblateTo,
    /// Write a page for the browser; must not exist
    #[arg(long, value_name = "FILE")]
    pub(super) html: Option<PathBuf>,
    /// Write a picture: the heat map of --layer and --head, or small ones of all heads; must not exist
    #[arg(long, value_name = "FILE")]
    pub(super) png: Option<PathBuf>,
    /// Write all numbers about the word; must not exist
    #[arg(long, value_name = "FILE")]
    pub(super) json: Option<PathBuf>,
    #[command(flatten)]
    pub(super) device: DeviceOption,
    #[command(flatten)]
    pub(crate) hub: HubOption,
}

/// A value of `--ablate`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ablated {
    /// A head by layer and number.
    Head(usize, usize),
    /// Each head alone.
    Each,
}

impl FromStr for Ablated {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "each" {
            return Ok(Self::Each);
        }
        let numbers = text.split_once('.').and_then(|(layer, head)| Some((layer.parse().ok()?, head.parse().ok()?)));
        let (layer, head) = numbers.ok_or("it must be LAYER.HEAD, such as 1.0, or each")?;
        Ok(Self::Head(layer, head))
    }
}

/// A value of `--ablate-to`.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum AblateTo {
    /// Its output is zero
    Zero,
    /// It looks at all words equally: its output is the mean of the values
    Mean,
}

impl AblateTo {
    pub(super) fn kind(self) -> AblationKind {
        match self {
            Self::Zero => AblationKind::Zero,
            Self::Mean => AblationKind::Mean,
        }
    }
}

impl AttentionArgs {
    /// The text of the options.
    pub(super) fn text(&self) -> Result<String, Failure> {
        let text = match (&self.text, &self.file) {
            (Some(text), _) => text.clone(),
            (None, Some(path)) => {
                std::fs::read_to_string(path).map_err(|e| io_failure(path.display(), &e))?.trim_end().to_owned()
            }
            (None, None) => String::new(),
        };
        if text.trim().is_empty() {
            return Err(Failure::input("the text is empty; give at least one word"));
        }
        Ok(text)
    }

    /// Opens the model with its adapter and tokenizer.
    pub(super) fn load(&self) -> Result<TextModel, Failure> {
        let device = self.device.open()?;
        let adapter_tokenizer = self.adapter.as_ref().filter(|dir| dir.join("tokenizer.json").exists());
        let opened = match adapter_tokenizer {
            Some(dir) => {
                Model::open(&self.model).map_err(Error::from).and_then(|model| TextModel::with_tokenizer(model, dir))
            }
            None => TextModel::open(&self.model),
        };
        let mut text_model = opened.map_err(input)?;
        text_model.model = with_adapter(self.dtype.convert(text_model.model)?, self.adapter.as_deref())?;
        text_model.to_device(&device).map_err(input)
    }

    /// The heads of `--ablate`, and what they do.
    pub(super) fn ablations(&self) -> Vec<Ablation> {
        let head = |ablated: &Ablated| match *ablated {
            Ablated::Head(layer, head) => Some(Ablation { layer, head, kind: self.ablate_to.kind() }),
            Ablated::Each => None,
        };
        self.ablate.iter().filter_map(head).collect()
    }

    /// Whether a head is among those of `--layer` and `--head`.
    pub(super) fn shows(&self, layer: usize, head: usize) -> bool {
        self.layer.is_none_or(|chosen| chosen == layer) && self.head.is_none_or(|chosen| chosen == head)
    }
}

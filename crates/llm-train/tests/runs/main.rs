//! Run folders of all stages: created last, only valid checkpoints, correct resume.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod bench;
#[path = "../common/mod.rs"]
mod common;
mod evaluations;
mod folders;
mod hub;
mod keys;
mod logs;
mod mixture;
mod overlap;
mod packing;
mod prepare;
mod pretraining;
mod program;
mod ranking_page;
mod resume;
mod selection;
mod stages;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use common::{fresh_model, write_pairs};
use llm_data::{ChatMessage, Conversation, write_jsonl};
use llm_model::{LoraConfig, ModelConfig};
use llm_train::optim::OptimizerConfig;
use llm_train::recipes::{
    DistillInputs, DistillRecipe, DpoInputs, DpoRecipe, FinetuneInputs, FinetuneRecipe, GrpoInputs, GrpoRecipe,
    KtoInputs, KtoRecipe, PpoInputs, PpoRecipe, PrepareInputs, PretrainInputs, PretrainRecipe, RewardInputs,
    RewardRecipe, prepare,
};
use llm_train::run::{Event, Outcome, RunOptions};
use llm_train::{Error, Result};
use tempfile::TempDir;

/// A tokenizer, shards, an untrained model, a reward model, and data for each stage.
struct Fixture(TempDir);

impl Fixture {
    fn new() -> Self {
        let fixture = Self(tempfile::tempdir().unwrap());
        let words = ["one", "two", "three", "four", "five", "six", "seven", "eight"];
        let text: String = (0..400).map(|i| format!("{} and {}.\n", words[i % 8], words[i / 8 % 8])).collect();
        fresh_model(&fixture.path("model"), &text, 16, 0.1);
        fs::write(fixture.path("text.txt"), &text).unwrap();
        let (tokenizer, text) = (fixture.path("model.tokenizer"), [fixture.path("text.txt")]);
        let inputs = PrepareInputs {
            tokenizer: tokenizer.clone(),
            train: text.to_vec(),
            validation: Vec::new(),
            validation_share: 0.1,
            ..PrepareInputs::default()
        };
        prepare(&inputs, &fixture.path("shards"), quiet()).unwrap();
        let chats = |say: &str, count: usize| -> Vec<Conversation> {
            let chat = |i: usize| {
                vec![ChatMessage::user(format!("{say} {}.", words[i % 8])), ChatMessage::assistant(words[i * 3 % 8])]
            };
            (0..count).map(|i| Conversation::from(chat(i))).collect()
        };
        write_jsonl(&fixture.path("chats.jsonl"), &chats("Say", 24)).unwrap();
        write_jsonl(&fixture.path("other.jsonl"), &chats("And", 6)).unwrap();
        let pairs = |not: &str, count: usize| -> Vec<(String, String)> {
            (0..count).map(|i| (words[i % 8].to_owned(), format!("{not} {}", words[i / 2]))).collect()
        };
        write_pairs(&fixture.path("pairs.jsonl"), &pairs("not", 16));
        write_pairs(&fixture.path("other-pairs.jsonl"), &pairs("no", 4));
        let prompts: Vec<_> =
            words.iter().map(|word| serde_json::json!({ "prompt": format!("Say {word}.") })).collect();
        write_jsonl(&fixture.path("prompts.jsonl"), &prompts).unwrap();
        Stage::Reward.run(&fixture, &Knobs::default(), &fixture.path("reward-model"), quiet()).unwrap();
        fixture
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A copy that a test may change.
    fn copied(&self) -> Self {
        let copy = Self(tempfile::tempdir().unwrap());
        for name in llm_files::list_files(self.0.path()).unwrap() {
            fs::create_dir_all(copy.path(&name).parent().unwrap()).unwrap();
            fs::copy(self.path(&name), copy.path(&name)).unwrap();
        }
        copy
    }
}

static FIXTURE: LazyLock<Fixture> = LazyLock::new(Fixture::new);

fn quiet<'a>() -> RunOptions<'a> {
    options(false)
}

fn options<'a>(resume: bool) -> RunOptions<'a> {
    RunOptions { resume, ..RunOptions::default() }
}

/// Settings of a run that tests vary.
#[derive(Clone)]
struct Knobs {
    /// Steps, epochs or updates.
    length: u64,
    batch_size: usize,
    max_tokens: usize,
    text: bool,
    save_every: u64,
    learning_rate: f64,
    seed: u64,
    hidden_size: usize,
    lora: Option<LoraConfig>,
    data: Option<PathBuf>,
}

impl Default for Knobs {
    fn default() -> Self {
        Self {
            length: 4,
            batch_size: 4,
            max_tokens: 0,
            text: false,
            save_every: 3,
            learning_rate: 1e-3,
            seed: 1,
            hidden_size: 16,
            lora: None,
            data: None,
        }
    }
}

impl Knobs {
    fn optimizer(&self) -> OptimizerConfig {
        OptimizerConfig { learning_rate: self.learning_rate, warmup_steps: 0, ..OptimizerConfig::default() }
    }

    /// The dataset of a stage: the test's own, or this file of the fixture.
    fn data(&self, fixture: &Fixture, name: &str) -> PathBuf {
        self.data.clone().unwrap_or_else(|| fixture.path(name))
    }

    /// The configuration of a new model or student.
    fn shape(&self) -> ModelConfig {
        ModelConfig {
            hidden_size: self.hidden_size,
            intermediate_size: 32,
            num_hidden_layers: 1,
            num_attention_heads: 2,
            num_key_value_heads: 1,
            ..ModelConfig::default()
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Stage {
    Pretrain,
    Finetune,
    Reward,
    Ppo,
    Grpo,
    Dpo,
    Kto,
    Distill,
}

const STAGES: [Stage; 8] =
    [Stage::Pretrain, Stage::Finetune, Stage::Reward, Stage::Ppo, Stage::Grpo, Stage::Dpo, Stage::Kto, Stage::Distill];

impl Stage {
    fn run(self, fixture: &Fixture, knobs: &Knobs, out: &Path, options: RunOptions) -> Result<Outcome> {
        match self {
            Self::Pretrain => stages::pretrain(fixture, knobs, out, options),
            Self::Finetune => stages::finetune(fixture, knobs, out, options),
            Self::Reward => stages::reward(fixture, knobs, out, options),
            Self::Ppo => stages::ppo(fixture, knobs, out, options),
            Self::Grpo => stages::grpo(fixture, knobs, out, options),
            Self::Dpo => stages::dpo(fixture, knobs, out, options),
            Self::Kto => stages::kto(fixture, knobs, out, options),
            Self::Distill => stages::distill(fixture, knobs, out, options),
        }
    }

    /// Runs the stage for `after` steps, then asks it to stop.
    fn interrupted(self, fixture: &Fixture, knobs: &Knobs, out: &Path, after: u64) -> Error {
        let stop = AtomicBool::new(false);
        let (mut steps, mut last) = (0, None);
        let mut watch = |event: Event| {
            if let Event::Progress { done, .. } = event {
                steps += u64::from(last.replace(done) != Some(done));
                stop.store(steps >= after, SeqCst);
            }
        };
        self.run(
            fixture,
            knobs,
            out,
            RunOptions { resume: out.exists(), device: candle_core::Device::Cpu, observer: &mut watch, stop: &stop },
        )
        .unwrap_err()
    }
}

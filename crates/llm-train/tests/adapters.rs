//! Adapters in every stage: fine-tuning, reward model, PPO and distillation, one on top of the other.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use common::{fresh_model, quietly, write_pairs};
use llm_data::{ChatMessage, Conversation, ReadOptions, read_rankings, write_jsonl};
use llm_model::{Batch, LoraConfig, Model, read_safetensors, write_safetensors};
use llm_train::Error;
use llm_train::optim::OptimizerConfig;
use llm_train::recipes::{
    DistillInputs, DistillRecipe, FinetuneInputs, FinetuneRecipe, PpoInputs, PpoRecipe, RewardInputs, RewardModel,
    RewardRecipe, distill, finetune, ppo, reward,
};
use llm_train::run::RunOptions;
use serde_json::{Value, json};

fn lora(r: usize, target_modules: &[&str]) -> LoraConfig {
    let target_modules = target_modules.iter().map(|name| (*name).to_owned()).collect();
    LoraConfig { r, lora_alpha: 8., target_modules, ..LoraConfig::default() }
}

/// A folder with a base model and the data of all stages.
struct World {
    dir: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let world = Self { dir: tempfile::tempdir().unwrap() };
        fresh_model(&world.path("base"), "say it again the apple is red the sky is blue the leaf is green", 32, 0.1);
        let things = [("apple", "red"), ("leaf", "green"), ("sky", "blue"), ("snow", "white")];
        let conversation = |prefix: &str, (thing, colour): (&str, &str)| {
            Conversation::from(vec![ChatMessage::user(format!("{prefix} {thing}")), ChatMessage::assistant(colour)])
        };
        let of = |prefixes: &[&str]| -> Vec<Conversation> {
            prefixes.iter().flat_map(|prefix| things.map(|thing| conversation(prefix, thing))).collect()
        };
        write_jsonl(&world.path("chat.jsonl"), &of(&["the", "a", "see"])).unwrap();
        write_jsonl(&world.path("chat-validation.jsonl"), &of(&["see the"])).unwrap();
        let pairs = things.map(|(thing, colour)| (colour.to_owned(), thing.to_owned()));
        write_pairs(&world.path("pairs.jsonl"), &pairs);
        write_pairs(&world.path("pairs-validation.jsonl"), &pairs.map(|(a, b)| (format!("is {a}"), format!("is {b}"))));
        let prompts: Vec<String> =
            ["Say it.", "the sky"].iter().map(|p| format!("{}\n", json!({ "prompt": p }))).collect();
        fs::write(world.path("prompts.jsonl"), prompts.concat()).unwrap();
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs a stage, then again from its middle: the result has the same bytes and is an adapter, no model.
    fn twice(&self, name: &str, stage: impl Fn(&Path, RunOptions) -> llm_train::Result<llm_train::run::Outcome>) {
        let out = self.path(name);
        quietly(|options| stage(&out, options)).unwrap();
        assert!(!out.join("model.safetensors").exists() && out.join("tokenizer.json").exists(), "{name}");
        let whole = fs::read(out.join("adapter_model.safetensors")).unwrap();
        let mut steps: Vec<_> = fs::read_dir(out.join("checkpoints")).unwrap().map(|e| e.unwrap().path()).collect();
        steps.sort_by_key(|path| path.file_name().unwrap().to_string_lossy()["step-".len()..].parse::<u64>().unwrap());
        assert_eq!(steps.len(), 2, "{name}");
        fs::remove_dir_all(&steps[1]).unwrap();
        for file in ["trainer_state.json", "adapter_model.safetensors", "adapter_config.json"] {
            fs::remove_file(out.join(file)).unwrap();
        }
        stage(&out, RunOptions { resume: true, ..RunOptions::default() }).unwrap();
        assert!(fs::read(out.join("adapter_model.safetensors")).unwrap() == whole, "{name}: other bytes");
    }

    fn finetuned(&self, name: &str, lora: Option<LoraConfig>, adapter: Option<PathBuf>) {
        let recipe = FinetuneRecipe {
            epochs: 4,
            batch_size: 4,
            save_every: 4,
            optimizer: OptimizerConfig { learning_rate: 1e-2, warmup_steps: 0, ..OptimizerConfig::default() },
            lora,
            ..FinetuneRecipe::default()
        };
        let (data, validation) = (vec![self.path("chat.jsonl")], Some(self.path("chat-validation.jsonl")));
        let inputs = FinetuneInputs { model: self.path("base"), data, validation, text: None, adapter };
        self.twice(name, |out, options| finetune(&recipe, &inputs, out, options));
    }

    fn rewarded(&self, name: &str, adapter: Option<PathBuf>) {
        let lora = Some(LoraConfig { lora_dropout: 0.1, ..lora(3, &["all-linear"]) });
        let recipe = RewardRecipe {
            epochs: 10,
            batch_size: 2,
            save_every: 4,
            optimizer: OptimizerConfig { learning_rate: 1e-2, warmup_steps: 0, ..OptimizerConfig::default() },
            lora,
            ..RewardRecipe::default()
        };
        let (data, validation) = (vec![self.path("pairs.jsonl")], Some(self.path("pairs-validation.jsonl")));
        let inputs = RewardInputs { model: self.path("base"), data, validation, adapter };
        self.twice(name, |out, options| reward(&recipe, &inputs, out, options));
    }

    /// The metrics of a run that have this name.
    fn metrics(&self, run: &str, name: &str) -> Vec<f64> {
        let text = fs::read_to_string(self.path(run).join("metrics.jsonl")).unwrap();
        text.lines().filter_map(|line| serde_json::from_str::<Value>(line).unwrap()[name].as_f64()).collect()
    }

    /// The base model with the adapter of a run.
    fn adapted(&self, run: &str) -> Model {
        let mut model = Model::load(self.path("base")).unwrap();
        model.load_adapter(run, self.path(run)).unwrap();
        model.use_adapter(Some(run)).unwrap();
        model
    }
}

fn logits(model: &Model) -> Tensor {
    model.forward(&Batch::new(&[vec![5, 9, 11, 7]]).unwrap()).unwrap()
}

fn gap(a: &Tensor, b: &Tensor) -> f32 {
    (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
}

#[test]
fn a_chain_of_adapters_over_one_base() {
    let world = World::new();
    let base = fs::read(world.path("base").join("model.safetensors")).unwrap();
    let dropout = Some(LoraConfig { lora_dropout: 0.2, ..lora(4, &["q_proj", "v_proj"]) });
    world.finetuned("sft", dropout, None);
    let losses = world.metrics("sft", "eval_loss");
    assert!(losses[losses.len() - 1] < losses[0], "{losses:?}");

    // The training of an adapter goes on where it ended.
    world.finetuned("more", None, Some(world.path("sft")));
    let more = world.metrics("more", "eval_loss");
    assert!((more[0] - losses[losses.len() - 1]).abs() < 1e-5, "{losses:?}, then {more:?}");
    assert!(more[more.len() - 1] < more[0], "{more:?}");

    // A reward model on top of it keeps its head.
    world.rewarded("reward", Some(world.path("sft")));
    assert!(world.metrics("reward", "loss").last().unwrap() < &0.6);
    let reward_model = RewardModel::load(world.path("reward")).unwrap();
    let rankings = read_rankings(&world.path("pairs-validation.jsonl"), &ReadOptions::default()).unwrap().rankings;
    assert_eq!(reward_model.accuracy(&rankings).unwrap(), *world.metrics("reward", "eval_accuracy").last().unwrap());
    assert!(reward_model.scale.std != 1., "the scale is stored");
    let critic = reward_model.critic().unwrap();
    let batch = Batch::new(&[vec![5, 9, 11, 7]]).unwrap();
    let value = critic.forward(&batch).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()[3];
    let score = reward_model.scores(&[vec![5, 9, 11, 7]]).unwrap()[0];
    assert!((f64::from(value) - score).abs() < 1e-4 * score.abs().max(1.), "{value} and {score}");

    // PPO on top of both: the reference is the policy at the start.
    let recipe = PpoRecipe {
        updates: 4,
        episodes: 4,
        num_ppo_epochs: 1,
        max_new_tokens: 4,
        save_every: 2,
        optimizer: OptimizerConfig { learning_rate: 1e-2, ..PpoRecipe::default().optimizer },
        lora: Some(lora(2, &["all-linear"])),
        ..PpoRecipe::default()
    };
    let inputs = PpoInputs {
        model: world.path("base"),
        reward: vec![world.path("reward")],
        data: world.path("prompts.jsonl"),
        adapter: Some(world.path("sft")),
    };
    world.twice("aligned", |out, options| ppo(&recipe, &inputs, out, options));
    let kl = world.metrics("aligned", "objective/kl");
    assert!(kl[0] == 0. && kl[1..].iter().any(|kl| *kl != 0.), "{kl:?}");

    // The result is the sum of both adapters of the policy; the upper one is also there alone.
    let sum = world.adapted("aligned");
    assert_eq!(sum.adapter_config().unwrap().r, 6);
    let mut apart = world.adapted("sft");
    apart.load_adapter("ppo", world.path("aligned").join("trained_adapter")).unwrap();
    apart.use_adapters(&["sft", "ppo"]).unwrap();
    assert!(gap(&logits(&sum), &logits(&apart)) < 1e-5);
    assert!(gap(&logits(&sum), &logits(&world.adapted("sft"))) > 1e-4);
    assert!(gap(&logits(&sum.merged().unwrap()), &logits(&sum)) < 1e-5);
    assert!(fs::read(world.path("base").join("model.safetensors")).unwrap() == base, "the base is not changed");
}

#[test]
fn a_reward_adapter_without_head_is_refused() {
    let world = World::new();
    world.rewarded("reward", None);
    let path = world.path("reward").join("adapter_model.safetensors");
    let mut tensors = read_safetensors(&path).unwrap();
    tensors.remove("base_model.model.score.weight").unwrap();
    write_safetensors(&path, &tensors).unwrap();
    let message = RewardModel::load(world.path("reward")).unwrap_err().to_string();
    assert!(message.contains("score.weight") && message.contains("missing"), "{message}");

    world.finetuned("sft", Some(lora(2, &["q_proj"])), None);
    let error = RewardModel::load(world.path("sft")).unwrap_err();
    assert!(matches!(error, Error::BadFile(_)) && error.to_string().contains("no score head"), "{error}");
}

#[test]
fn a_student_can_be_an_adapter() {
    let world = World::new();
    world.finetuned("sft", Some(lora(4, &["all-linear"])), None);
    let teacher = world.adapted("sft").merged().unwrap();
    teacher.save(world.path("teacher")).unwrap();
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(world.path("base").join(file), world.path("teacher").join(file)).unwrap();
    }
    let recipe = DistillRecipe {
        epochs: 8,
        batch_size: 4,
        save_every: 8,
        text_steps: 0,
        optimizer: OptimizerConfig { learning_rate: 1e-2, warmup_steps: 0, ..OptimizerConfig::default() },
        lora: Some(LoraConfig { lora_dropout: 0.05, ..lora(4, &["all-linear"]) }),
        ..DistillRecipe::default()
    };
    let mut inputs = DistillInputs {
        teacher: world.path("teacher"),
        data: vec![world.path("chat.jsonl")],
        student: Some(world.path("base")),
        validation: Some(world.path("chat-validation.jsonl")),
        ..DistillInputs::default()
    };
    world.twice("student", |out, options| distill(&recipe, &inputs, out, options));
    let kl = world.metrics("student", "kl_loss");
    assert!(kl[kl.len() - 1] < 0.5 * kl[0], "{kl:?}");

    inputs.student = None;
    let message = quietly(|options| distill(&recipe, &inputs, &world.path("none"), options)).unwrap_err().to_string();
    assert!(message.contains("--student") && !world.path("none").exists(), "{message}");
}

#[test]
fn ppo_refuses_dropout() {
    let world = World::new();
    let lora = Some(LoraConfig { lora_dropout: 0.1, ..lora(2, &["q_proj"]) });
    let inputs = PpoInputs {
        model: world.path("base"),
        reward: vec![world.path("none")],
        data: world.path("prompts.jsonl"),
        adapter: None,
    };
    let recipe = PpoRecipe { lora, ..PpoRecipe::default() };
    let message = quietly(|options| ppo(&recipe, &inputs, &world.path("out"), options)).unwrap_err().to_string();
    assert!(message.contains("lora.lora_dropout is 0.1"), "{message}");
}

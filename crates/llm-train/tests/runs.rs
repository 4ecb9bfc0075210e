//! What every stage promises of its folder: it is made last, holds good states only, and is gone on with or left alone as it should.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use common::{contents, everything, fresh_model, write_pairs};
use llm_data::{Conversation, Message, write_jsonl};
use llm_model::{LoraConfig, ModelConfig};
use llm_train::optim::OptimizerConfig;
use llm_train::recipes::{
    DistillInputs, DistillRecipe, FinetuneInputs, FinetuneRecipe, PpoInputs, PpoRecipe, PrepareInputs, PretrainInputs,
    PretrainRecipe, RewardInputs, RewardRecipe, distill, finetune, ppo, prepare, pretrain, reward,
};
use llm_train::run::{Event, NEVER, Outcome, RunOptions, is_finished};
use llm_train::{Error, Result};
use tempfile::TempDir;

/// A tokenizer, shards, a fresh model, a reward model, and data of each kind.
struct World(TempDir);

impl World {
    fn new() -> Self {
        let world = Self(tempfile::tempdir().unwrap());
        let words = ["one", "two", "three", "four", "five", "six", "seven", "eight"];
        let text: String = (0..400).map(|i| format!("{} and {}.\n", words[i % 8], words[i / 8 % 8])).collect();
        fresh_model(&world.path("model"), &text, 16, 0.1);
        fs::write(world.path("text.txt"), &text).unwrap();
        let (tokenizer, text) = (world.path("model.tokenizer"), [world.path("text.txt")]);
        let inputs = PrepareInputs { tokenizer: &tokenizer, train: &text, held_out: &[], held_out_share: 0.1 };
        prepare(&inputs, &world.path("shards"), quiet()).unwrap();
        let chats = |say: &str, count: usize| -> Vec<Conversation> {
            let chat = |i: usize| {
                vec![Message::user(format!("{say} {}.", words[i % 8])), Message::assistant(words[i * 3 % 8])]
            };
            (0..count).map(|i| Conversation { messages: chat(i) }).collect()
        };
        write_jsonl(&world.path("chats.jsonl"), &chats("Say", 24)).unwrap();
        write_jsonl(&world.path("other.jsonl"), &chats("And", 6)).unwrap();
        let pairs = |not: &str, count: usize| -> Vec<(String, String)> {
            (0..count).map(|i| (words[i % 8].to_owned(), format!("{not} {}", words[i / 2]))).collect()
        };
        write_pairs(&world.path("pairs.jsonl"), &pairs("not", 16));
        write_pairs(&world.path("other-pairs.jsonl"), &pairs("no", 4));
        let prompts: Vec<_> =
            words.iter().map(|word| serde_json::json!({ "prompt": format!("Say {word}.") })).collect();
        write_jsonl(&world.path("prompts.jsonl"), &prompts).unwrap();
        Stage::Reward.run(&world, &Knobs::default(), &world.path("reward-model"), quiet()).unwrap();
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

static WORLD: LazyLock<World> = LazyLock::new(World::new);

fn quiet<'a>() -> RunOptions<'a> {
    options(false)
}

fn options<'a>(resume: bool) -> RunOptions<'a> {
    RunOptions { resume, observer: Box::leak(Box::new(|_: Event| ())), stop: &NEVER }
}

/// The numbers of a run that the tests turn.
#[derive(Clone)]
struct Knobs {
    /// Steps, epochs or updates.
    length: u64,
    batch_size: usize,
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
            save_every: 3,
            learning_rate: 1e-3,
            seed: 1,
            hidden_size: 16,
            lora: None,
            data: None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Stage {
    Pretrain,
    Finetune,
    Reward,
    Ppo,
    Distill,
}

const STAGES: [Stage; 5] = [Stage::Pretrain, Stage::Finetune, Stage::Reward, Stage::Ppo, Stage::Distill];

impl Stage {
    fn run(self, world: &World, knobs: &Knobs, out: &Path, options: RunOptions) -> Result<Outcome> {
        let optimizer =
            OptimizerConfig { learning_rate: knobs.learning_rate, warmup_steps: 0, ..OptimizerConfig::default() };
        let (seed, batch_size, save_every) = (knobs.seed, knobs.batch_size, knobs.save_every);
        let data = |name: &str| knobs.data.clone().unwrap_or_else(|| world.path(name));
        let shape = ModelConfig {
            hidden_size: knobs.hidden_size,
            intermediate_size: 32,
            num_hidden_layers: 1,
            num_attention_heads: 2,
            num_key_value_heads: 1,
            ..ModelConfig::default()
        };
        let model = world.path("model");
        match self {
            Self::Pretrain => {
                let recipe = PretrainRecipe {
                    steps: knobs.length,
                    seq_len: 8,
                    eval_every: 2,
                    eval_batches: 2,
                    model: shape,
                    ..PretrainRecipe::default()
                };
                let recipe = PretrainRecipe { seed, batch_size, save_every, optimizer, ..recipe };
                let (tokenizer, shards) = (world.path("model.tokenizer"), data("shards"));
                pretrain(&recipe, PretrainInputs { tokenizer: &tokenizer, data: &shards }, out, options)
            }
            Self::Finetune => {
                let recipe = FinetuneRecipe {
                    epochs: knobs.length,
                    eval_every: 2,
                    lora: knobs.lora.clone(),
                    ..FinetuneRecipe::default()
                };
                let recipe = FinetuneRecipe { seed, batch_size, save_every, optimizer, ..recipe };
                let (data, held_out) = (data("chats.jsonl"), world.path("other.jsonl"));
                let inputs = FinetuneInputs { model: &model, data: &data, held_out: Some(&held_out) };
                finetune(&recipe, inputs, out, options)
            }
            Self::Reward => {
                let recipe = RewardRecipe { epochs: knobs.length, eval_every: 2, ..RewardRecipe::default() };
                let recipe = RewardRecipe { seed, batch_size, save_every, optimizer, ..recipe };
                let (data, held_out) = (data("pairs.jsonl"), world.path("other-pairs.jsonl"));
                let inputs = RewardInputs { model: &model, data: &data, held_out: Some(&held_out) };
                reward(&recipe, inputs, out, options)
            }
            Self::Ppo => {
                let recipe = PpoRecipe {
                    updates: knobs.length,
                    episodes: batch_size,
                    num_ppo_epochs: 1,
                    max_new_tokens: 4,
                    ..PpoRecipe::default()
                };
                let recipe = PpoRecipe {
                    seed,
                    save_every,
                    value_optimizer: OptimizerConfig { learning_rate: 1e-3, ..optimizer.clone() },
                    optimizer,
                    ..recipe
                };
                let (reward, data) = (world.path("reward-model"), data("prompts.jsonl"));
                ppo(&recipe, PpoInputs { model: &model, reward: &reward, data: &data }, out, options)
            }
            Self::Distill => {
                let recipe = DistillRecipe {
                    epochs: knobs.length,
                    text_steps: 2,
                    text_batch_size: 2,
                    seq_len: 8,
                    eval_every: 2,
                    student: shape,
                    ..DistillRecipe::default()
                };
                let recipe = DistillRecipe { seed, batch_size, save_every, optimizer, ..recipe };
                let data = data("chats.jsonl");
                let (held_out, text) = (world.path("other.jsonl"), world.path("shards"));
                let inputs = DistillInputs {
                    teacher: &model,
                    text_teacher: None,
                    student: None,
                    data: &data,
                    held_out: Some(&held_out),
                    text: Some(&text),
                };
                distill(&recipe, inputs, out, options)
            }
        }
    }

    /// Runs the stage for so many steps, then asks it to stop.
    fn interrupted(self, world: &World, knobs: &Knobs, out: &Path, after: u64) -> Error {
        let stop = AtomicBool::new(false);
        let (mut steps, mut last) = (0, None);
        let mut watch = |event: Event| {
            if let Event::Progress { done, .. } = event {
                steps += u64::from(last.replace(done) != Some(done));
                stop.store(steps >= after, SeqCst);
            }
        };
        self.run(world, knobs, out, RunOptions { resume: out.exists(), observer: &mut watch, stop: &stop }).unwrap_err()
    }
}

#[test]
fn a_finished_run_is_left_alone() {
    for stage in STAGES {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("run");
        // The data, which nobody reads again, may change behind the run's back.
        let source = if stage == Stage::Pretrain { None } else { Some(dir.path().join("data.jsonl")) };
        let name = match stage {
            Stage::Reward => "pairs.jsonl",
            Stage::Ppo => "prompts.jsonl",
            _ => "chats.jsonl",
        };
        if let Some(source) = &source {
            fs::copy(WORLD.path(name), source).unwrap();
        }
        let knobs = Knobs { length: 1, data: source.clone(), ..Knobs::default() };
        let first = stage.run(&WORLD, &knobs, &out, quiet()).unwrap();
        assert!(!first.was_finished && is_finished(&out), "{stage:?}");
        let before = everything(&out);
        if let Some(source) = &source {
            fs::write(source, "no data any more").unwrap();
        }
        let again = stage.run(&WORLD, &knobs, &out, options(true)).unwrap();
        assert_eq!((again.was_finished, again.steps), (true, first.steps), "{stage:?}");
        assert!(everything(&out) == before, "{stage:?} touched a finished run");
        let message = stage.run(&WORLD, &knobs, &out, quiet()).unwrap_err().to_string();
        assert!(message.contains("exists already"), "{message}");
    }
}

#[test]
fn weights_that_are_not_finite_are_never_saved() {
    for stage in STAGES {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("run");
        for save_every in [1, 0] {
            let knobs = Knobs { length: 1, learning_rate: 1e30, save_every, batch_size: 64, ..Knobs::default() };
            let error = stage.run(&WORLD, &knobs, &out, quiet()).unwrap_err();
            assert!(matches!(error, Error::Diverged { .. }), "{stage:?}: {error}");
            assert!(!error.is_callers_fault() && !is_finished(&out), "{stage:?}");
            assert!(!out.join("model.safetensors").exists() && !out.join("checkpoints/step-1").exists(), "{stage:?}");
            let metrics = fs::read_to_string(out.join("metrics.jsonl")).unwrap();
            assert!(!metrics.contains("null"), "{stage:?}: {metrics}");
            fs::remove_dir_all(&out).unwrap();
        }
        let knobs = Knobs { length: 1, learning_rate: f64::NAN, ..Knobs::default() };
        let error = stage.run(&WORLD, &knobs, &out, quiet()).unwrap_err();
        assert!(error.is_callers_fault() && error.to_string().contains("optimizer.learning_rate is NaN"), "{error}");
        assert!(!out.exists());
    }
}

#[test]
fn a_model_with_weights_that_are_not_finite_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let world = World(tempfile::tempdir().unwrap());
    for entry in fs::read_dir(WORLD.0.path()).unwrap() {
        let (from, to) = (entry.as_ref().unwrap().path(), world.path(&entry.unwrap().file_name().to_string_lossy()));
        if from.is_dir() {
            for name in llm_files::files_below(&from).unwrap() {
                fs::create_dir_all(to.join(&name).parent().unwrap()).unwrap();
                fs::copy(from.join(&name), to.join(&name)).unwrap();
            }
        } else {
            fs::copy(from, to).unwrap();
        }
    }
    let file = world.path("model/model.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&file, bytes).unwrap();
    for stage in [Stage::Finetune, Stage::Reward, Stage::Ppo, Stage::Distill] {
        let error = stage.run(&world, &Knobs::default(), &dir.path().join("run"), quiet()).unwrap_err();
        assert!(error.is_callers_fault() && error.to_string().contains("not finite"), "{stage:?}: {error}");
        assert!(!dir.path().join("run").exists());
    }
}

#[test]
fn a_start_that_fails_leaves_no_folder() {
    let lora = |r: usize, target: &str| {
        Some(LoraConfig { r, target_modules: vec![target.to_owned()], ..LoraConfig::default() })
    };
    for stage in STAGES {
        let mut bad = vec![
            ("length", Knobs { length: 0, ..Knobs::default() }),
            ("batch_size", Knobs { batch_size: 0, ..Knobs::default() }),
            ("seed", Knobs { seed: u64::MAX, ..Knobs::default() }),
            ("learning_rate", Knobs { learning_rate: -1., ..Knobs::default() }),
            ("missing", Knobs { data: Some("/nowhere/missing".into()), ..Knobs::default() }),
            ("hidden_size", Knobs { hidden_size: 7, ..Knobs::default() }),
            ("\"r\"", Knobs { lora: lora(0, "q_proj"), ..Knobs::default() }),
            ("nonsense", Knobs { lora: lora(4, "nonsense"), ..Knobs::default() }),
            ("batches", Knobs { batch_size: 1_000_000, ..Knobs::default() }),
        ];
        bad.retain(|(what, _)| match *what {
            "hidden_size" => matches!(stage, Stage::Pretrain | Stage::Distill),
            "\"r\"" | "nonsense" => stage == Stage::Finetune,
            "batches" => stage == Stage::Pretrain,
            _ => true,
        });
        for (what, knobs) in bad {
            let dir = tempfile::tempdir().unwrap();
            let out = dir.path().join("deep/run");
            let error = stage.run(&WORLD, &knobs, &out, quiet()).unwrap_err();
            assert!(error.is_callers_fault(), "{stage:?}, {what}: {error}");
            assert!(!error.to_string().contains('\n'), "{error}");
            assert!(!dir.path().join("deep").exists(), "{stage:?}, {what}: {error} left a folder");
        }
    }
}

#[test]
fn held_out_data_that_is_the_training_data_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for (stage, same) in
        [(Stage::Finetune, "other.jsonl"), (Stage::Distill, "other.jsonl"), (Stage::Reward, "other-pairs.jsonl")]
    {
        let data = dir.path().join("copy.jsonl");
        fs::copy(WORLD.path(same), &data).unwrap();
        let knobs = Knobs { data: Some(data), ..Knobs::default() };
        let error = stage.run(&WORLD, &knobs, &dir.path().join("run"), quiet()).unwrap_err();
        assert!(error.to_string().contains("held out"), "{error}");
        assert!(!dir.path().join("run").exists());
    }
}

#[test]
fn an_interrupted_run_writes_a_checkpoint_and_ends_in_the_same_bytes() {
    for stage in STAGES {
        let dir = tempfile::tempdir().unwrap();
        let (whole, torn) = (dir.path().join("whole"), dir.path().join("torn"));
        let knobs = Knobs { length: 4, save_every: 3, ..Knobs::default() };
        let outcome = stage.run(&WORLD, &knobs, &whole, quiet()).unwrap();
        assert!(outcome.steps >= 4);
        for _ in 0..2 {
            let error = stage.interrupted(&WORLD, &knobs, &torn, 1);
            assert!(matches!(error, Error::Interrupted { .. }), "{stage:?}: {error}");
            assert!(error.to_string().contains("llm-train resume"), "{error}");
            assert!(!is_finished(&torn));
        }
        assert!(torn.join("checkpoints/step-2").exists(), "{stage:?}");
        let again = stage.run(&WORLD, &knobs, &torn, options(true)).unwrap();
        assert_eq!(again.steps, outcome.steps);
        let (expected, found) = (contents(&whole), contents(&torn));
        assert!(expected.keys().eq(found.keys()), "{:?} {:?}", expected.keys(), found.keys());
        let different: Vec<_> = expected.keys().filter(|name| expected[*name] != found[*name]).collect();
        assert!(different.is_empty(), "{stage:?}: {different:?}");
    }
}

#[test]
fn inputs_are_known_by_content_and_not_by_path() {
    for stage in [Stage::Pretrain, Stage::Finetune, Stage::Reward, Stage::Ppo, Stage::Distill] {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("run");
        let name = match stage {
            Stage::Pretrain => "shards",
            Stage::Reward => "pairs.jsonl",
            Stage::Ppo => "prompts.jsonl",
            _ => "chats.jsonl",
        };
        let knobs = |data: PathBuf| Knobs { data: Some(data), ..Knobs::default() };
        stage.interrupted(&WORLD, &knobs(WORLD.path(name)), &out, 2);

        let changed = dir.path().join("changed");
        match stage {
            Stage::Pretrain => {
                fs::create_dir(&changed).unwrap();
                for file in llm_files::files_below(&WORLD.path(name)).unwrap() {
                    fs::copy(WORLD.path(name).join(&file), changed.join(&file)).unwrap();
                }
                let file = changed.join("train-00000.bin");
                let mut bytes = fs::read(&file).unwrap();
                bytes.swap(0, 2);
                fs::write(&file, bytes).unwrap();
            }
            _ => {
                let text = fs::read_to_string(WORLD.path(name)).unwrap();
                let reversed: String = text.lines().rev().map(|line| format!("{line}\n")).collect();
                fs::write(&changed, reversed).unwrap();
            }
        }
        let before = everything(&out);
        let error = stage.run(&WORLD, &knobs(changed), &out, options(true)).unwrap_err();
        assert!(error.to_string().contains("--data"), "{stage:?}: {error}");
        assert!(everything(&out) == before, "{stage:?}");
        // Another spelling of the same path.
        let spelled = WORLD.0.path().join(".").join(name);
        stage.run(&WORLD, &knobs(spelled), &out, options(true)).unwrap();
    }
}

#[test]
fn only_some_keys_may_change_and_each_change_is_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let stage = Stage::Pretrain;
    stage.interrupted(&WORLD, &Knobs::default(), &out, 2);
    let error = stage.run(&WORLD, &Knobs { seed: 2, ..Knobs::default() }, &out, options(true)).unwrap_err();
    assert!(error.to_string().contains("seed is 1 in this run, you ask for 2"), "{error}");
    let error = stage.run(&WORLD, &Knobs { length: 1, ..Knobs::default() }, &out, options(true)).unwrap_err();
    assert!(error.to_string().contains("has done 2 steps"), "{error}");

    let longer = Knobs { length: 6, learning_rate: 5e-4, save_every: 2, ..Knobs::default() };
    assert_eq!(stage.run(&WORLD, &longer, &out, options(true)).unwrap().steps, 6);
    let recipe: toml::Table = fs::read_to_string(out.join("recipe.toml")).unwrap().parse().unwrap();
    let changes = recipe["run"]["changes"].as_array().unwrap();
    let keys: Vec<&str> = changes.iter().map(|change| change["key"].as_str().unwrap()).collect();
    assert_eq!(keys, ["optimizer.learning_rate", "save_every", "steps"]);
    assert!(changes.iter().all(|change| change["step"].as_integer() == Some(2)));

    // A finished run is made longer on request, from its last step; a shorter one is refused.
    let outcome = stage.run(&WORLD, &Knobs { length: 9, ..longer.clone() }, &out, options(true)).unwrap();
    assert_eq!((outcome.steps, outcome.was_finished), (9, false));
    let metrics = fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    let steps: Vec<u64> = metrics
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .filter(|line| line.get("grad_norm").is_some())
        .map(|line| line["step"].as_u64().unwrap())
        .collect();
    assert_eq!(steps, (1..=9).collect::<Vec<_>>());
    let error = stage.run(&WORLD, &longer, &out, options(true)).unwrap_err();
    assert!(error.to_string().contains("cannot shorten"), "{error}");
    fs::remove_dir_all(out.join("checkpoints")).unwrap();
    let before = everything(&out);
    let error = stage.run(&WORLD, &Knobs { length: 12, ..longer }, &out, options(true)).unwrap_err();
    assert!(error.to_string().contains("is gone") && everything(&out) == before, "{error}");
}

#[test]
fn a_damaged_checkpoint_gives_way_to_the_older_one() {
    for damage in ["flip", "cut", "state", "missing"] {
        let dir = tempfile::tempdir().unwrap();
        let (whole, torn) = (dir.path().join("whole"), dir.path().join("torn"));
        let knobs = Knobs { length: 6, save_every: 2, ..Knobs::default() };
        Stage::Pretrain.run(&WORLD, &knobs, &whole, quiet()).unwrap();
        Stage::Pretrain.interrupted(&WORLD, &knobs, &torn, 4);
        let newest = torn.join("checkpoints/step-4");
        let weights = newest.join("model.safetensors");
        let mut bytes = fs::read(&weights).unwrap();
        match damage {
            "flip" => {
                let end = bytes.len();
                bytes[end - 3] ^= 1;
                fs::write(&weights, bytes).unwrap();
            }
            "cut" => fs::write(&weights, &bytes[..bytes.len() / 2]).unwrap(),
            "state" => fs::write(newest.join("trainer/state.json"), "{").unwrap(),
            _ => fs::remove_file(newest.join("trainer/optimizer.safetensors")).unwrap(),
        }
        // What a killed program leaves: half a checkpoint, unfinished files at every depth, half a line.
        fs::create_dir_all(torn.join("checkpoints/.step-6.partial/trainer")).unwrap();
        fs::write(torn.join("checkpoints/.tmpabc"), "").unwrap();
        fs::write(torn.join(".tmpabc"), "").unwrap();
        let mut metrics = fs::read(torn.join("metrics.jsonl")).unwrap();
        metrics.extend(b"{\"step\": 4, \"lo\xff");
        fs::write(torn.join("metrics.jsonl"), metrics).unwrap();

        Stage::Pretrain.run(&WORLD, &knobs, &torn, options(true)).unwrap();
        assert!(contents(&whole) == contents(&torn), "{damage}");
        let left: Vec<String> = llm_files::files_below(&torn).unwrap();
        assert!(!left.iter().any(|name| name.contains(".tmp") || name.contains(".partial")), "{left:?}");
    }
}

#[test]
fn a_second_process_is_refused_while_one_is_at_work() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let mut refused = 0;
    let mut second = |event: Event| {
        if matches!(event, Event::Progress { .. }) && refused == 0 {
            let error = Stage::Pretrain.run(&WORLD, &Knobs::default(), &out, options(true)).unwrap_err();
            assert!(error.is_callers_fault() && error.to_string().contains("another process"), "{error}");
            refused += 1;
        }
    };
    let options = RunOptions { resume: false, observer: &mut second, stop: &NEVER };
    Stage::Pretrain.run(&WORLD, &Knobs::default(), &out, options).unwrap();
    assert_eq!(refused, 1);
    let alone = dir.path().join("alone");
    Stage::Pretrain.run(&WORLD, &Knobs::default(), &alone, quiet()).unwrap();
    assert!(contents(&out) == contents(&alone), "the first run was disturbed");
}

#[test]
fn where_there_is_nothing_to_resume_it_is_said() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("foreign")).unwrap();
    fs::write(dir.path().join("foreign/notes.txt"), "mine").unwrap();
    for stage in STAGES {
        for name in ["nowhere", "foreign"] {
            let error = stage.run(&WORLD, &Knobs::default(), &dir.path().join(name), options(true)).unwrap_err();
            assert!(error.to_string().contains("nothing to resume"), "{error}");
            assert!(error.is_callers_fault());
        }
        assert!(!dir.path().join("nowhere").exists());
        assert_eq!(fs::read_dir(dir.path().join("foreign")).unwrap().count(), 1);
    }
    let out = dir.path().join("run");
    Stage::Finetune.interrupted(&WORLD, &Knobs::default(), &out, 1);
    let error = Stage::Distill.run(&WORLD, &Knobs::default(), &out, options(true)).unwrap_err();
    assert!(error.to_string().contains("was begun by `finetune`"), "{error}");
}

fn program(dir: &Path, arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_llm-train"));
    command.current_dir(dir).args(shlex::split(arguments).unwrap()).stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Exit code, standard output and standard error.
fn said(dir: &Path, arguments: &str) -> (Option<i32>, String, String) {
    let output = program(dir, arguments).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

const SMALL: &str = "--set steps=400 --set batch_size=2 --set seq_len=8 --set eval_batches=1 --set save_every=50 \
                     --set model.hidden_size=16 --set model.intermediate_size=32 --set model.num_hidden_layers=1 \
                     --set model.num_attention_heads=2 --set model.num_key_value_heads=1 --set optimizer.warmup_steps=0";

#[test]
#[cfg(unix)]
fn ctrl_c_saves_and_resume_needs_no_other_option_wherever_the_folder_is() {
    let dir = tempfile::tempdir().unwrap();
    let old = dir.path().join("old");
    fs::create_dir(&old).unwrap();
    for (from, to) in [("model.tokenizer", "tokenizer"), ("shards", "shards")] {
        fs::create_dir(old.join(to)).unwrap();
        for name in llm_files::files_below(&WORLD.path(from)).unwrap() {
            fs::copy(WORLD.path(from).join(&name), old.join(to).join(&name)).unwrap();
        }
    }
    let begin = format!("pretrain --tokenizer tokenizer --data shards --out runs/a {SMALL}");
    let child = program(&old, &begin).spawn().unwrap();
    let metrics = || fs::read_to_string(old.join("runs/a/metrics.jsonl")).map_or(0, |text| text.lines().count());
    let begun = Instant::now();
    while metrics() < 5 {
        assert!(begun.elapsed() < Duration::from_mins(1), "the run never began");
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(130), "{message}");
    let last = message.trim_end().lines().last().unwrap();
    assert!(last.contains("interrupted after step") && last.ends_with("llm-train resume runs/a"), "{message}");

    // The same command is refused; --resume with nothing else said goes on as the run was begun.
    let (code, _, message) = said(&old, &begin);
    assert_eq!(code, Some(2), "{message}");
    assert!(message.contains("--resume"), "{message}");
    let (code, _, message) = said(&old, "pretrain --tokenizer nowhere --data shards --out runs/a --resume");
    assert_eq!(code, Some(2), "{message}");

    // Everything moves; one input away from the others.
    let new = dir.path().join("new");
    fs::rename(&old, &new).unwrap();
    fs::rename(new.join("shards"), dir.path().join("elsewhere")).unwrap();
    let (code, _, message) = said(dir.path(), "resume new/runs/a");
    assert_eq!(code, Some(2), "{message}");
    assert!(message.contains("--input data="), "{message}");
    let (code, text, message) = said(dir.path(), "resume new/runs/a --input data=elsewhere --set steps=410");
    assert_eq!(code, Some(0), "{message}");
    assert!(text.contains("new/runs/a") && text.contains("410 steps") && text.contains("llm-infer generate"), "{text}");
    assert!(message.contains("steps changes from 400 to 410"), "{message}");

    let before = everything(&new.join("runs/a"));
    let (code, text, message) = said(dir.path(), "resume new/runs/a");
    assert_eq!((code, text.as_str()), (Some(0), "new/runs/a is finished (410 steps); nothing to do\n"), "{message}");
    assert!(everything(&new.join("runs/a")) == before);
    let (code, text, message) = said(&new, "resume runs/a --input data=../elsewhere --set steps=411");
    assert_eq!(code, Some(0), "{message}");
    assert!(text.contains("411 steps"), "{text}");
    let (code, _, message) = said(&new, "resume runs/b");
    assert_eq!(code, Some(2), "{message}");
    assert!(message.contains("nothing to resume"), "{message}");
    let (code, _, message) = said(&new, "resume runs/a --input text=x");
    assert!(code == Some(2) && message.contains("no such input"), "{message}");
}

/// A life of a few seconds; its student's stage is changed before it begins.
const SMALL_LIFE: &str = "--set world.corpus_bytes=100000 --set questions.tasks=60 --set questions.crowd=16 \
    --set questions.rankings=32 --set questions.prompts=16 --set questions.held_out=4 --set tokenizer.vocab_size=500 \
    --set pretrain.steps=2000 --set pretrain.batch_size=2 --set pretrain.seq_len=16 --set pretrain.eval_batches=1 \
    --set pretrain.sample_prompts=[] --set pretrain.model.hidden_size=16 --set pretrain.model.intermediate_size=32 \
    --set pretrain.model.num_hidden_layers=1 --set pretrain.model.num_attention_heads=2 \
    --set pretrain.model.num_key_value_heads=1";

#[test]
#[cfg(unix)]
fn a_life_is_interrupted_in_good_order_and_only_what_has_not_begun_may_change() {
    let dir = tempfile::tempdir().unwrap();
    let child = program(dir.path(), &format!("lifecycle --out life {SMALL_LIFE}")).spawn().unwrap();
    let life = dir.path().join("life");
    let lines = || fs::read_to_string(life.join("base/metrics.jsonl")).map_or(0, |text| text.lines().count());
    let begun = Instant::now();
    while lines() < 3 {
        assert!(begun.elapsed() < Duration::from_mins(2), "the first stage never began");
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(130), "{message}");
    assert!(message.trim_end().ends_with("go on by: llm-train resume life"), "{message}");

    let before = everything(&life);
    for (set, named) in [("world.seed=7", "world.seed"), ("pretrain.seed=7", "pretrain.seed")] {
        let (code, _, message) = said(dir.path(), &format!("resume life --set {set}"));
        assert!(code == Some(2) && message.contains(named), "{message}");
    }
    assert!(everything(&life) == before);
    // Stopped again at once, as the rest of the life is another test's.
    let again = "resume life --set distill.student.hidden_size=32 --set pretrain.steps=2100";
    let child = program(dir.path(), again).spawn().unwrap();
    let recipe = || fs::read_to_string(life.join("base/recipe.toml")).unwrap();
    while !recipe().contains("steps = 2100") {
        assert!(begun.elapsed() < Duration::from_mins(3), "the life never went on");
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(130));
    let changes = fs::read_to_string(life.join("recipe.toml")).unwrap();
    assert!(changes.contains("distill.student.hidden_size") && changes.contains("pretrain.steps"), "{changes}");
}

#[test]
fn a_bad_life_is_refused_before_its_first_stage() {
    let dir = tempfile::tempdir().unwrap();
    for (set, named) in [
        ("distill.student.num_attention_heads=3", "distill.student"),
        ("ppo.temperature=0", "ppo.temperature"),
        ("questions.held_out=0", "questions.held_out"),
        ("questions.prompts=0", "questions.prompts"),
        ("annotator.beta=nan", "annotator.beta"),
        ("annotator.beta=-3", "annotator.beta"),
        ("reward.batch_size=0", "reward.batch_size"),
        ("finetune.epochs=0", "finetune.epochs"),
        ("pretrain.model.rope_theta=0", "rope_theta"),
        ("pretrain.model.hidden_size=7", "pretrain.model"),
        ("pretrain.seq_len=5000", "pretrain.seq_len"),
        ("distill.alpha=2", "distill.alpha"),
        ("world.corpus_bytes=0", "world.corpus_bytes"),
        ("pretrain.seed=18446744073709551615", "9223372036854775807"),
        ("pretrain.steps=-5", "whole number"),
    ] {
        let (code, _, message) = said(dir.path(), &format!("lifecycle --out life --set {set}"));
        assert_eq!(code, Some(2), "{set}: {message}");
        assert!(message.contains(named) && message.trim_end().lines().count() == 1, "{set}: {message}");
        assert!(!dir.path().join("life").exists(), "{set} left a folder");
    }
    let (code, _, message) = said(dir.path(), "lifecycle --out life --resume");
    assert!(code == Some(2) && message.contains("nothing to resume"), "{message}");
}

//! The program with an adapter, and the model it merges the adapter into, match the logits of PEFT.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use clap::Parser;
use llm_infer::cli::{Arguments, execute};
use llm_model::{Batch, Head, LoraConfig, Model, ModelConfig, WeightDtype, read_safetensors, write_safetensors};
use llm_tokenizer::{Tokenizer, TrainConfig, train_bpe};
use serde_json::{Value, json};

fn run(words: &[&str]) {
    // The default size of the global thread pool: a concurrent test may have started it already.
    let threads = std::thread::available_parallelism().unwrap().to_string();
    let words = ["llm-infer", "--threads", &threads].into_iter().chain(words.iter().copied());
    execute(Arguments::try_parse_from(words).unwrap()).unwrap();
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn logits_with_an_active_and_a_merged_adapter_match_peft() {
    let golden: PathBuf = [env!("CARGO_MANIFEST_DIR"), "..", "llm-model", "tests", "golden"].iter().collect();
    let (model, adapter) = (golden.join("tied"), golden.join("lora").join("dora"));
    let dir = tempfile::tempdir().unwrap();
    let (file, merged) = (dir.path().join("logits.safetensors"), dir.path().join("merged"));
    let expected = read_safetensors(&adapter.join("expected.safetensors")).unwrap();
    let row = expected["input_ids"].to_vec2::<i64>().unwrap().swap_remove(0);
    let ids = row.iter().map(i64::to_string).collect::<Vec<_>>().join(",");
    let theirs = expected["logits"].get(0).unwrap();
    let gap = |model: &Path, more: &[&str]| {
        run(&[&["logits", "--ids", &ids, "--model", text(model), "--out", text(&file)], more].concat());
        let ours = &read_safetensors(&file).unwrap()["logits"];
        std::fs::remove_file(&file).unwrap();
        (ours - &theirs).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap()
    };
    assert!(gap(&model, &["--adapter", text(&adapter)]) < 1e-4);
    assert!(gap(&model, &[]) > 0.1);
    run(&["merge", "--model", text(&model), "--adapter", text(&adapter), "--out", text(&merged)]);
    assert!(gap(&merged, &[]) < 1e-4);
}

#[test]
fn a_merged_folder_has_the_end_of_turn_token_of_its_tokenizer_as_eos() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let plain = train_bpe(&TrainConfig { vocab_size: 300, min_frequency: 2 }, ["the cat", "the dog"].iter()).unwrap();
    let config = ModelConfig {
        vocab_size: plain.vocab_size(),
        hidden_size: 16,
        intermediate_size: 24,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        eos_token_id: Some(0),
        ..ModelConfig::default()
    };
    let base = Model::init(config, Head::LanguageModel, 1).unwrap().frozen().unwrap();
    base.save(path("base")).unwrap();
    plain.save(path("base")).unwrap();
    let lora = LoraConfig { r: 2, target_modules: vec!["q_proj".to_owned()], ..LoraConfig::default() };
    base.with_lora(&lora, 1).unwrap().save_adapter(&path("adapter"), "base").unwrap();
    let merged = |name: &str| -> [Value; 2] {
        run(&[
            "merge",
            "--model",
            text(&path("base")),
            "--adapter",
            text(&path("adapter")),
            "--out",
            text(&path(name)),
        ]);
        ["config.json", "generation_config.json"].map(|file| {
            let json: Value = serde_json::from_slice(&std::fs::read(path(name).join(file)).unwrap()).unwrap();
            json["eos_token_id"].clone()
        })
    };
    assert_eq!(merged("text"), [json!(0), json!(0)], "without a chat template the eos of the base model stays");
    let chat = plain.with_default_chat_template().unwrap();
    chat.save(path("adapter")).unwrap();
    let end = chat.chat_format().unwrap().end_of_turn;
    assert_ne!(end, 0);
    assert_eq!(merged("chat"), [json!([end, 0]), json!([end, 0])], "the end of a turn, and the old end of a text");
    let tokenizer = Tokenizer::load(path("chat")).unwrap();
    assert!(tokenizer.has_chat_template() && tokenizer.eos_id() == Some(end));
}

#[test]
fn merge_and_logits_name_their_result_and_the_next_command() {
    let golden: PathBuf = [env!("CARGO_MANIFEST_DIR"), "..", "llm-model", "tests", "golden"].iter().collect();
    let (model, adapter) = (golden.join("tied"), golden.join("lora").join("dora"));
    let dir = tempfile::tempdir().unwrap();
    let said = |words: &[&str]| {
        let mut program = std::process::Command::new(env!("CARGO_BIN_EXE_llm-infer"));
        let output = program.current_dir(dir.path()).args(words).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let merged = said(&["merge", "--model", text(&model), "--adapter", text(&adapter), "--out", "merged"]);
    assert!(merged.starts_with("merged: ") && merged.contains("Next: llm-infer bench --model merged\n"), "{merged}");
    let logits = said(&["logits", "--model", "merged", "--ids", "1,2,3", "--out", "out.safetensors"]);
    assert!(logits.starts_with("out.safetensors: logits of 3 tokens. Next, in Python: "), "{logits}");
    assert!(logits.contains("load_file(\"out.safetensors\")"), "{logits}");

    // With a tokenizer the model generates text, with a chat template it chats.
    let tokenizer = train_bpe(&TrainConfig { vocab_size: 300, min_frequency: 2 }, ["the cat"].iter()).unwrap();
    tokenizer.save(dir.path().join("tokenizer")).unwrap();
    for (chat, next) in [(false, "generate --model plain --prompt TEXT"), (true, "chat --model talking")] {
        let base = dir.path().join("base");
        std::fs::create_dir_all(&base).unwrap();
        for name in ["config.json", "model.safetensors"] {
            std::fs::copy(model.join(name), base.join(name)).unwrap();
        }
        let tokenizer = if chat { tokenizer.clone().with_default_chat_template().unwrap() } else { tokenizer.clone() };
        tokenizer.save(&base).unwrap();
        let out = if chat { "talking" } else { "plain" };
        let merged = said(&["merge", "--model", "base", "--adapter", text(&adapter), "--out", out]);
        assert!(merged.ends_with(&format!("Next: llm-infer {next}\n")), "{merged}");
    }
}

/// The golden model "tied" in bf16, as a folder.
fn bf16_base(dir: &Path) -> Model {
    let golden: PathBuf = [env!("CARGO_MANIFEST_DIR"), "..", "llm-model", "tests", "golden", "tied"].iter().collect();
    let path = dir.join("model.safetensors");
    std::fs::create_dir(dir).unwrap();
    std::fs::copy(golden.join("config.json"), dir.join("config.json")).unwrap();
    let tensors = read_safetensors(&golden.join("model.safetensors")).unwrap();
    let half = tensors.into_iter().map(|(name, tensor)| (name, tensor.to_dtype(DType::BF16).unwrap())).collect();
    write_safetensors(&path, &half).unwrap();
    Model::open(dir).unwrap()
}

fn adapter_of_peft() -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "..", "llm-model", "tests", "golden", "lora", "plain"].iter().collect()
}

#[test]
fn a_merge_is_written_in_the_dtype_of_the_base_and_rounded_once() {
    let dir = tempfile::tempdir().unwrap();
    let (base, adapter, out) = (dir.path().join("base"), adapter_of_peft(), dir.path().join("out"));
    let weights = bf16_base(&base);
    run(&["merge", "--model", text(&base), "--adapter", text(&adapter), "--out", text(&out)]);
    let file = llm_files::SafetensorsFile::open(&out.join("model.safetensors")).unwrap();
    assert!(file.tensors().values().all(|tensor| format!("{:?}", tensor.dtype) == "BF16"));
    let config: Value = serde_json::from_slice(&std::fs::read(out.join("config.json")).unwrap()).unwrap();
    assert!(config.get("dtype").or(config.get("torch_dtype")) == Some(&json!("bfloat16")));

    // W + alpha / r * B A, summed in f64.
    let settings: Value = serde_json::from_slice(&std::fs::read(adapter.join("adapter_config.json")).unwrap()).unwrap();
    let scale = settings["lora_alpha"].as_f64().unwrap() / settings["r"].as_f64().unwrap();
    let lora = read_safetensors(&adapter.join("adapter_model.safetensors")).unwrap();
    let merged = read_safetensors(&out.join("model.safetensors")).unwrap();
    let (mut adapted, mut double_rounding) = (0, 0);
    for (name, a) in lora.iter().filter(|(name, _)| name.ends_with("lora_A.weight")) {
        let b = &lora[&name.replace("lora_A", "lora_B")];
        let name = name.trim_start_matches("base_model.model.").replace("lora_A.weight", "weight");
        let f64 = |tensor: &Tensor| tensor.to_dtype(DType::F64).unwrap();
        let delta = (f64(b).matmul(&f64(a)).unwrap() * scale).unwrap();
        let base = f64(&weights.params().get(&name).unwrap().to_dense().unwrap());
        let half = |tensor: &Tensor| tensor.to_dtype(DType::F32).unwrap().to_dtype(DType::BF16).unwrap();
        let values =
            |tensor: &Tensor| tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let (ours, once) = (values(&merged[&name]), values(&half(&(&base + &delta).unwrap())));
        let twice = values(&half(&(&base + f64(&half(&delta))).unwrap()));
        for ((ours, once), twice) in ours.iter().zip(&once).zip(&twice) {
            // A sum in f32 may fall on the other side of a rounding border than one in f64: at most 1 bf16 step, and seldom.
            assert!((ours - once).abs() <= 0.008 * once.abs(), "{name}: {ours} {once}");
            adapted += usize::from(ours != once);
            double_rounding += usize::from(twice != once);
        }
    }
    assert!(
        adapted * 20 < double_rounding,
        "{adapted} values are not rounded once; {double_rounding} would be rounded twice"
    );
}

#[test]
fn a_merge_onto_quantised_weights_gives_the_model_that_was_trained() {
    let dir = tempfile::tempdir().unwrap();
    let (base, adapter) = (dir.path().join("base"), dir.path().join("adapter"));
    let config = ModelConfig {
        vocab_size: 48,
        hidden_size: 64,
        intermediate_size: 96,
        num_hidden_layers: 2,
        initializer_range: 0.2,
        ..ModelConfig::default()
    };
    let config = ModelConfig { num_attention_heads: 4, num_key_value_heads: 2, ..config };
    Model::init(config, Head::LanguageModel, 3).unwrap().frozen_as(WeightDtype::Bf16).unwrap().save(&base).unwrap();
    let weights = Model::open(&base).unwrap();
    weights.with_lora(&LoraConfig::default(), 4).unwrap().save_adapter(&adapter, "base").unwrap();
    // A trained adapter: B is not zero.
    let file = adapter.join("adapter_model.safetensors");
    let trained = |(name, tensor): (String, Tensor)| {
        let random = || Tensor::randn(0f32, 0.05, tensor.shape(), &Device::Cpu).unwrap();
        let tensor = if name.contains("lora_B") { random() } else { tensor };
        (name, tensor)
    };
    write_safetensors(&file, &read_safetensors(&file).unwrap().into_iter().map(trained).collect()).unwrap();
    let batch = Batch::new(&[(1..40).collect()]).unwrap();
    let mut trained = weights.frozen_as("q4_0".parse().unwrap()).unwrap();
    trained.load_adapter("default", &adapter).unwrap();
    trained.use_adapter(Some("default")).unwrap();
    let expected = trained.forward(&batch).unwrap();
    let gap = |out: &str, more: &[&str]| {
        let out = dir.path().join(out);
        run(&[&["merge", "--model", text(&base), "--adapter", text(&adapter), "--out", text(&out)], more].concat());
        let logits = Model::load(&out).unwrap().forward(&batch).unwrap();
        (logits - &expected).unwrap().sqr().unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap()
    };
    let named = gap("named", &["--merge-onto", "quantized", "--base-dtype", "q4_0"]);
    // A run folder of llm-train says in which dtype it trained the base.
    std::fs::write(adapter.join("recipe.toml"), "base_dtype = \"q4_0\"\n").unwrap();
    assert_eq!(gap("recorded", &["--merge-onto", "quantized"]), named);
    let original = gap("original", &[]);
    assert!(original > 2. * named, "onto the original weights {original}, onto the quantised ones {named}");
}

#[test]
fn the_dtype_of_the_base_must_be_known_and_fit() {
    let dir = tempfile::tempdir().unwrap();
    let (base, adapter) = (dir.path().join("base"), adapter_of_peft());
    bf16_base(&base);
    let fails = |more: &[&str]| {
        let mut program = std::process::Command::new(env!("CARGO_BIN_EXE_llm-infer"));
        program.args(["merge", "--model", text(&base), "--adapter", text(&adapter), "--out"]);
        let output = program.arg(dir.path().join("out")).args(more).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(fails(&["--merge-onto", "quantized"]).contains("give --base-dtype"));
    assert!(fails(&["--base-dtype", "q8_0"]).contains("applies to --merge-onto quantized only"));
    assert!(!dir.path().join("out").exists());
}

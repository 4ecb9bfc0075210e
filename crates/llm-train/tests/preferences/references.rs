//! References: adapters below adapters, and stored log-probabilities.

use llm_data::Conversation;
use llm_model::LoraConfig;
use llm_train::recipes::{FinetuneInputs, FinetuneRecipe, finetune};

use super::*;

fn lora(r: usize) -> LoraConfig {
    let target_modules = ["q_proj", "v_proj", "down_proj"].map(str::to_owned).to_vec();
    LoraConfig { r, lora_alpha: 8., target_modules, ..LoraConfig::default() }
}

/// Fine-tunes an adapter on the better answers.
fn finetuned(world: &World, out: &str) {
    let chat = |&(prompt, answer, _): &Row| -> Conversation {
        vec![ChatMessage::user(prompt), ChatMessage::assistant(answer)].into()
    };
    write_jsonl(&world.path("chats.jsonl"), &PAIRS.iter().map(chat).collect::<Vec<_>>()).unwrap();
    write_jsonl(&world.path("chats-validation.jsonl"), &VALIDATION.iter().map(chat).collect::<Vec<_>>()).unwrap();
    let recipe = FinetuneRecipe {
        epochs: 6,
        batch_size: 4,
        optimizer: optimizer(1e-2),
        lora: Some(lora(4)),
        ..FinetuneRecipe::default()
    };
    let inputs = FinetuneInputs {
        model: world.path("model"),
        data: vec![world.path("chats.jsonl")],
        validation: Some(world.path("chats-validation.jsonl")),
        text: None,
        adapter: None,
    };
    finetune(&recipe, &inputs, world.path(out), RunOptions::default()).unwrap();
}

fn adapted(world: &World, adapter: &str) -> Model {
    let mut model = Model::load(world.path("model")).unwrap();
    model.load_adapter(adapter, world.path(adapter)).unwrap();
    model.use_adapter(Some(adapter)).unwrap();
    model
}

/// The sum of log-probabilities of the better validation answers.
fn logps(world: &World, model: &Model) -> f64 {
    let answers: Vec<_> = VALIDATION.iter().map(|row| (row.0, row.1)).collect();
    world.logprobs(model, &answers).iter().map(|(logprob, _)| logprob).sum::<f64>() / VALIDATION.len() as f64
}

/// The reference of an adapter on an adapter is the base with the lower one: the first loss is ln 2, and both stay apart.
#[test]
fn the_reference_has_the_adapter_of_an_earlier_stage() {
    let world = World::new();
    finetuned(&world, "sft");
    let before = fs::read(world.path("sft/adapter_model.safetensors")).unwrap();
    let (base, sft) =
        (logps(&world, &Model::load(world.path("model")).unwrap()), logps(&world, &adapted(&world, "sft")));
    assert!(sft > base + 1., "{sft} {base}: the adapter must differ from its base");
    for (name, new) in [("on-top", Some(lora(3))), ("continued", None)] {
        let recipe = DpoRecipe { lora: new, optimizer: optimizer(1e-2), ..recipe(PairLoss::Sigmoid, 4) };
        let inputs = DpoInputs { adapter: Some(world.path("sft")), ..world.inputs() };
        dpo(&recipe, &inputs, world.path(name), RunOptions::default()).unwrap();
        let (losses, logps_of) = (world.metrics(name, "loss"), world.metrics(name, "eval_logps/chosen"));
        assert!(near(losses[0], std::f64::consts::LN_2, 6e-8), "{name}: {losses:?}");
        assert!(losses[3] < losses[0] - 0.01, "{name}: {losses:?}");
        assert!(near(logps_of[0], sft, 1e-5), "{name}: {} is not {sft}; {base} is the base", logps_of[0]);
        // The result is the sum of both adapters, and has the margin that training saw.
        let policy = adapted(&world, name);
        assert!(near(logps_of[1], logps(&world, &policy), 1e-5), "{name}");
        let rewards = world.metrics(name, "eval_rewards/chosen");
        assert!(near(rewards[1], 0.1 * (logps(&world, &policy) - sft), 1e-5), "{name}: {rewards:?}");
    }
    assert_eq!(fs::read(world.path("sft/adapter_model.safetensors")).unwrap(), before);
    // The new adapter alone: with it and the lower one the model is the result.
    let mut both = adapted(&world, "sft");
    both.load_adapter("upper", world.path("on-top/trained_adapter")).unwrap();
    both.use_adapters(&["sft", "upper"]).unwrap();
    assert!(near(logps(&world, &both), logps(&world, &adapted(&world, "on-top")), 1e-5));
}

#[test]
fn a_new_adapter_has_the_base_as_its_reference() {
    let world = World::new();
    let lora = Some(lora(3));
    let small = DpoRecipe { lora: lora.clone(), optimizer: optimizer(1e-2), ..recipe(PairLoss::Sigmoid, 4) };
    world.dpo(&small, "dpo");
    let losses = world.metrics("dpo", "loss");
    assert!(near(losses[0], std::f64::consts::LN_2, 6e-8) && losses[3] < losses[0] - 0.01, "{losses:?}");
    assert!(world.path("dpo/adapter_model.safetensors").exists() && !world.path("dpo/model.safetensors").exists());
    world.kto(&KtoRecipe { lora, optimizer: optimizer(1e-2), ..kto_recipe(4) }, "kto");
    let losses = world.metrics("kto", "loss");
    assert!(near(losses[0], 0.5, 6e-8) && losses[3] < losses[0] - 0.01, "{losses:?}");
}

#[test]
fn stored_log_probabilities_of_the_reference_give_the_same_run() {
    let world = World::new();
    let live = DpoRecipe { batch_size: 3, ..recipe(PairLoss::Sigmoid, 3) };
    let stored = DpoRecipe { precompute_ref_log_probs: true, save_every: 2, ..live.clone() };
    world.dpo(&live, "live");
    world.dpo(&stored, "stored");
    for metric in ["loss", "rewards/chosen", "grad_norm", "eval_loss"] {
        let (a, b) = (world.metrics("live", metric), world.metrics("stored", metric));
        assert!(a.len() == b.len() && a.iter().zip(&b).all(|(a, b)| near(*a, *b, 1e-5)), "{metric}: {a:?} {b:?}");
    }
    let file = world.path("stored/reference/logprobs.json");
    let rows: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    assert_eq!(rows["chosen_and_rejected"].as_array().unwrap().len(), PAIRS.len());
    assert!(!world.path("live/reference").exists());

    // A resumed run uses them, computes them again if they are damaged, and ends in the same bytes.
    let whole = fs::read(world.path("stored/model.safetensors")).unwrap();
    for damaged in [false, true] {
        for name in ["trainer_state.json", "model.safetensors"] {
            fs::remove_file(world.path("stored").join(name)).unwrap();
        }
        let newest = fs::read_dir(world.path("stored/checkpoints")).unwrap().map(|e| e.unwrap().path()).max().unwrap();
        fs::remove_dir_all(newest).unwrap();
        if damaged {
            let text = fs::read_to_string(&file).unwrap();
            fs::write(&file, text.replacen('-', "-9", 1)).unwrap();
        }
        let options = RunOptions { resume: true, ..RunOptions::default() };
        dpo(&stored, &world.inputs(), world.path("stored"), options).unwrap();
        assert!(fs::read(world.path("stored/model.safetensors")).unwrap() == whole, "damaged: {damaged}");
    }
}

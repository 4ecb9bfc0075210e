//! Requests for the base model and for its adapters at the same time.

use candle_core::Tensor;
use llm_engine::{Engine, Request, TextModel};
use llm_model::{Head, LoraConfig};

use super::{collect, exact, greedy, request, text_model};

/// A base model with two adapters that change its greedy text.
fn with_adapters(dir: &std::path::Path) -> TextModel {
    let mut base = text_model(Head::LanguageModel);
    for (name, seed) in [("one", 5), ("two", 6)] {
        let adapted = base.model.with_lora(&LoraConfig::default(), seed).unwrap();
        // A new adapter changes nothing: its second matrix is 0.
        for (number, var) in adapted.params().vars().into_values().enumerate() {
            let wave: Vec<f32> =
                (0..var.elem_count()).map(|i| ((i + number + seed as usize) as f32).sin() * 0.3).collect();
            var.set(&Tensor::from_vec(wave, var.shape(), var.device()).unwrap()).unwrap();
        }
        adapted.save_adapter(dir.join(name), "base").unwrap();
    }
    for name in ["one", "two"] {
        base.model.load_adapter(name, dir.join(name)).unwrap();
    }
    base
}

#[test]
fn each_request_has_the_text_of_its_adapter_alone() {
    let dir = tempfile::tempdir().unwrap();
    let model = with_adapters(dir.path());
    let prompt: Vec<u32> = (0..150).map(|i| i * 7 % 250 + 3).collect();
    let alone = |name: Option<&str>| -> Vec<u32> {
        let mut alone = text_model(Head::LanguageModel);
        alone.model = model.model.clone();
        alone.model.use_adapter(name).unwrap();
        let engine = Engine::start(alone, exact()).unwrap();
        let request = Request { sampling: greedy(), ..request(&prompt, 20) };
        collect(engine.submit(request).unwrap(), 1).choices[0].ids()
    };
    let names = [None, Some("one"), Some("two")];
    let expected = names.map(alone);
    assert!(expected[0] != expected[1] && expected[1] != expected[2] && expected[0] != expected[2]);
    let engine = Engine::start(model, exact()).unwrap();
    assert_eq!(engine.model_info().adapters, ["one", "two"]);
    // Twice: the second time the prompt is in the cache, by adapter.
    for _ in 0..2 {
        let generations = names.map(|name| {
            let adapter = name.map(str::to_owned);
            engine.submit(Request { sampling: greedy(), adapter, ..request(&prompt, 20) }).unwrap()
        });
        let found = generations.map(|generation| collect(generation, 1).choices[0].ids());
        assert_eq!(found, expected);
    }
}

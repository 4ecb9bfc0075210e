//! The benchmark of fine-tuning.

use candle_core::Device;
use llm_model::Model;
use llm_tokenizer::Tokenizer;
use llm_train::bench::bench_finetune;
use llm_train::examples::answer_loss;
use llm_train::rows::read_examples;

use super::*;

#[test]
fn the_benchmark_trains_on_the_conversations_in_their_order() {
    let fixture = &FIXTURE;
    let (model, data) = (fixture.path("model"), fixture.path("chats.jsonl"));
    let mut recipe = FinetuneRecipe { batch_size: 3, ..FinetuneRecipe::default() };
    let tokenizer = Tokenizer::load(&model).unwrap();
    let examples = read_examples(&data, &tokenizer, recipe.max_length).unwrap();
    let cost = bench_finetune(&recipe, (&model, &data), 4, &Device::Cpu).unwrap();
    let first = answer_loss(&Model::load(&model).unwrap(), &examples[..3], 3, 0).unwrap();
    assert!((cost.losses[0] - first).abs() < 1e-4, "{} and {first}", cost.losses[0]);
    assert_eq!(cost.losses.len(), 4);
    assert_eq!(cost.tokens, examples[..12].iter().map(|example| example.ids.len()).sum::<usize>());
    let trained = |all: &[llm_train::examples::Example]| all.iter().flat_map(|e| &e.loss_mask).filter(|&&m| m).count();
    assert_eq!(cost.trained_tokens, trained(&examples[..12]));

    recipe.lora = Some(LoraConfig { r: 2, ..LoraConfig::default() });
    let adapter = bench_finetune(&recipe, (&model, &data), 2, &Device::Cpu).unwrap();
    assert!((adapter.losses[0] - first).abs() < 1e-4);
    let few = bench_finetune(&recipe, (&model, &data), 1_000_000, &Device::Cpu).unwrap_err();
    assert!(few.is_callers_fault() && few.to_string().contains("need 3000000"), "{few}");
}

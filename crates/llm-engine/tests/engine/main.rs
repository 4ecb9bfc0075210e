//! The engine through its public interface, with small models.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

mod adapters;
mod answers;
mod batching;
mod limits;
mod refusals;
mod speculation;

use llm_engine::{
    Engine, EngineOptions, Event, FinishReason, Generation, Request, Sampling, TextModel, Token, TokenLogprobs, Usage,
};
use llm_model::{Head, KvDtype, KvPool, Model, ModelConfig};
use llm_tokenizer::{TrainConfig, train_bpe};

fn config() -> ModelConfig {
    ModelConfig {
        vocab_size: 300,
        hidden_size: 32,
        intermediate_size: 48,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 8,
        max_position_embeddings: 512,
        initializer_range: 0.3, // large, so that an error changes the sampled token
        ..ModelConfig::default()
    }
}

fn text_model(head: Head) -> TextModel {
    let texts = ["the cat sat on the mat", "the dog sat on the log, the bird sang"];
    let tokenizer = train_bpe(&TrainConfig { vocab_size: 290, min_frequency: 2 }, texts.iter()).unwrap();
    let model = Model::init(config(), head, 7).unwrap().frozen().unwrap();
    TextModel { model, tokenizer: tokenizer.with_default_chat_template().unwrap() }
}

/// Options without rounding of keys and values.
fn exact() -> EngineOptions {
    EngineOptions { kv_dtype: KvDtype::F32, ..EngineOptions::default() }
}

/// The memory of some pages.
fn memory(pages: usize) -> u64 {
    (pages * KvPool::page_bytes(&config(), KvDtype::F32)) as u64
}

fn start(options: EngineOptions) -> Engine {
    Engine::start(text_model(Head::LanguageModel), options).unwrap()
}

fn engine() -> Engine {
    start(exact())
}

fn greedy() -> Sampling {
    Sampling { temperature: 0., ..Sampling::default() }
}

/// A request without end tokens.
fn request(prompt: &[u32], tokens: usize) -> Request {
    Request { stop_ids: Some(Vec::new()), ..Request::new(prompt.to_vec(), tokens) }
}

/// All events of a request, put together.
#[derive(Debug, Default, Clone, PartialEq)]
struct Answers {
    prompt: Option<Vec<Option<TokenLogprobs>>>,
    choices: Vec<Choice>,
    usage: Usage,
}

#[derive(Debug, Default, Clone, PartialEq)]
struct Choice {
    text: String,
    tokens: Vec<Token>,
    end: Option<(FinishReason, usize)>,
}

impl Choice {
    fn ids(&self) -> Vec<u32> {
        self.tokens.iter().map(|token| token.id).collect()
    }
}

fn collect(mut generation: Generation, choices: usize) -> Answers {
    let mut answers = Answers { choices: vec![Choice::default(); choices], ..Answers::default() };
    while let Some(event) = generation.blocking_next() {
        match event {
            Event::Prompt(logprobs) => answers.prompt = Some(logprobs),
            Event::Text { choice, text, tokens } => {
                let choice = &mut answers.choices[choice];
                assert!(choice.end.is_none(), "text after the end");
                choice.text.push_str(&text);
                choice.tokens.extend(tokens);
            }
            Event::End { choice, reason, tokens } => {
                assert_eq!(answers.choices[choice].end.replace((reason, tokens)), None, "one end per answer");
            }
            Event::Done(usage) => {
                answers.usage = usage;
                assert!(generation.blocking_next().is_none(), "nothing after the last event");
                return answers;
            }
            Event::Failed(error) => panic!("{error}"),
        }
    }
    panic!("the events ended without the last one");
}

fn ask(engine: &Engine, request: Request) -> Answers {
    let choices = request.choices;
    collect(engine.submit(request).unwrap(), choices)
}

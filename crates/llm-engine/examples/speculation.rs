//! Measures speculative decoding: greedy answers with and without drafts, one request at a time.
//!
//! ```sh
//! cargo run --release -p llm-engine --example speculation -- runs/lifecycle/aligned runs/lifecycle/student 4 "Where is Oslo?"
//! ```
//!
//! Arguments: the model, the draft model, how many tokens are drafted, messages of users. Without them it uses models with random weights.

use std::error::Error;
use std::time::Instant;

use llm_engine::{Engine, EngineOptions, Event, Request, Sampling, TextModel};
use llm_model::{Head, Model, ModelConfig};
use llm_tokenizer::{ChatMessage, TrainConfig, train_bpe};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match &arguments[..] {
        [model, draft, tokens, messages @ ..] => {
            measure(&|| Ok(TextModel::open(model)?), &|| Ok(TextModel::open(draft)?), tokens.parse()?, messages)
        }
        _ => measure(&|| random_model(1), &|| random_model(2), 4, &["Who sat?".to_owned()]),
    }
}

type Open<'a> = &'a dyn Fn() -> Result<TextModel>;

fn measure(model: Open, draft: Open, draft_tokens: usize, messages: &[String]) -> Result<()> {
    let options = EngineOptions { draft_tokens, prefix_cache: false, ..EngineOptions::default() };
    let lookup = EngineOptions { prompt_lookup: true, ..options.clone() };
    let plain = Engine::start(model()?, options.clone())?;
    let engines = [
        ("look-up", Engine::start(model()?, lookup)?),
        ("draft model", Engine::start_with_draft(model()?, draft()?, options)?),
    ];
    let (mut seconds, mut texts) = (vec![0.; 3], Vec::new());
    for round in 0..4 {
        for message in messages {
            for (i, engine) in std::iter::once(&plain).chain(engines.iter().map(|(_, engine)| engine)).enumerate() {
                let start = Instant::now();
                let (text, tokens) = answer(engine, message)?;
                // The first round warms up.
                seconds[i] += if round > 0 { start.elapsed().as_secs_f64() } else { 0. };
                texts.push((text, tokens));
            }
        }
    }
    let equal = texts.chunks(3).all(|texts| texts.iter().all(|text| text.0 == texts[0].0));
    println!("{} answers, {} tokens each on average; all texts equal: {equal}", messages.len(), {
        texts.iter().map(|text| text.1).sum::<usize>() / texts.len().max(1)
    });
    for ((name, engine), seconds_of) in engines.iter().zip(&seconds[1..]) {
        let stats = engine.stats();
        let share = stats.accepted_tokens as f64 / stats.draft_tokens.max(1) as f64;
        println!("{name}: {:.2} times as fast; {:.0} % of the drafts accepted", seconds[0] / seconds_of, 100. * share);
    }
    Ok(())
}

fn answer(engine: &Engine, message: &str) -> Result<(String, usize)> {
    let prompt = engine.text_model().chat_ids(&[ChatMessage::new("user", message)])?;
    let sampling = Sampling { temperature: 0., ..Sampling::default() };
    let mut generation = engine.submit(Request { sampling, ..Request::new(prompt, 200) })?;
    let (mut text, mut tokens) = (String::new(), 0);
    while let Some(event) = generation.blocking_next() {
        match event {
            Event::Text { text: piece, .. } => text.push_str(&piece),
            Event::Done(usage) => tokens = usage.completion_tokens,
            Event::Failed(error) => return Err(error.into()),
            Event::Prompt(_) | Event::End { .. } => (),
        }
    }
    Ok((text, tokens))
}

fn random_model(seed: u64) -> Result<TextModel> {
    let config = TrainConfig { vocab_size: 280, min_frequency: 2 };
    let tokenizer = train_bpe(&config, ["the cat sat on the mat"].iter())?.with_default_chat_template()?;
    let config = ModelConfig {
        vocab_size: 280,
        hidden_size: 48,
        num_hidden_layers: 1,
        max_position_embeddings: 128,
        ..ModelConfig::default()
    };
    Ok(TextModel { model: Model::init(config, Head::LanguageModel, seed)?.frozen()?, tokenizer })
}

#[test]
fn runs() -> Result<()> {
    measure(&|| random_model(1), &|| random_model(2), 2, &["Who sat?".to_owned()])
}

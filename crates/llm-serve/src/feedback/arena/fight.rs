//! Generates both answers, streams them, and stores them as an item.

use std::sync::Arc;

use llm_engine::{Event, FinishReason, Generation, Request};
use llm_feedback::store::{NewAnswer, NewItem};
use llm_tokenizer::ChatMessage;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{ArenaModel, SIDES, SOURCE};
use crate::answer::running::Running;
use crate::error::{ApiError, Result};
use crate::feedback::app::{App, of_store};

/// A battle that has begun: who answers on which side.
#[derive(Debug)]
pub(super) struct Battle {
    prompt: String,
    /// The left and the right model.
    sides: [ArenaModel; 2],
    seed: u64,
    generations: Vec<Generation>,
}

/// An answer as it grows.
#[derive(Debug, Default)]
struct Growing {
    text: String,
    ids: Vec<u32>,
    finish: Option<&'static str>,
}

impl Battle {
    /// Puts the models on random sides and begins both answers.
    pub(super) fn begin(models: &[ArenaModel; 2], prompt: String) -> Result<Self> {
        let [a, b] = models.clone();
        let sides = if crate::ids::random().is_multiple_of(2) { [a, b] } else { [b, a] };
        // The same seed for both: with equal models the answers are equal.
        let seed = crate::ids::random() >> 12;
        let generations = sides.iter().map(|model| {
            let text_model = model.engine.text_model();
            let ids = match model.engine.tokenizer().has_chat_template() {
                true => text_model.chat_ids(&[ChatMessage::user(prompt.as_str())][..]),
                false => text_model.text_ids(&prompt),
            };
            let ids = ids.map_err(|error| ApiError::of(error, "prompt"))?;
            let context = model.engine.model_info().context_length;
            if ids.len() >= context {
                return Err(ApiError::too_long("prompt", ids.len(), context));
            }
            let mut request = Request::new(ids, 0);
            request.max_new_tokens = model.options.max_new_tokens.min(context - request.prompt.len());
            request.stop.clone_from(&model.options.stop);
            request.sampling = model.options.sampling.clone();
            request.sampling.seed = Some(seed);
            Ok(model.engine.submit(request)?)
        });
        let generations = generations.collect::<Result<_>>()?;
        Ok(Self { prompt, sides, seed, generations })
    }

    /// Sends the answers as lines of JSON while they grow, stores them when both have ended, and sends the name of the item last. If the
    /// person has gone, both end and nothing is stored.
    pub(super) async fn fight(mut self, app: Arc<App>, lines: mpsc::Sender<String>) {
        let mut answers = [Growing::default(), Growing::default()];
        let mut running = Running::new(std::mem::take(&mut self.generations));
        while let Some((side, event)) = running.next().await {
            let line = match event {
                Event::Text { text, tokens, .. } => {
                    answers[side].ids.extend(tokens.iter().map(|token| token.id));
                    answers[side].text += &text;
                    json!({"side": side, "text": text})
                }
                Event::End { reason, .. } => {
                    let reason = match reason {
                        FinishReason::Stop => "stop",
                        FinishReason::Length => "length",
                    };
                    answers[side].finish = Some(reason);
                    json!({"side": side, "end": reason})
                }
                Event::Failed(error) => {
                    lines.send(failed(&ApiError::of(error, "prompt"))).await.ok();
                    return;
                }
                Event::Prompt(_) | Event::Done(_) => continue,
            };
            if lines.send(format!("{line}\n")).await.is_err() {
                return;
            }
        }
        let item = self.item(answers);
        let battle = json!({"battle": item.id});
        let shared = Arc::clone(&app);
        let stored = app.work.run(move || shared.store.add_items(&[item]).map_err(of_store)).await;
        let last = stored.map_or_else(|error| failed(&error), |_| format!("{battle}\n"));
        lines.send(last).await.ok();
    }

    fn item(&self, answers: [Growing; 2]) -> NewItem {
        let answer = |(side, grown): (usize, Growing)| {
            let model = &self.sides[side];
            let mut sampling = serde_json::to_value(&model.options.sampling).unwrap_or_default();
            sampling["max_new_tokens"] = model.options.max_new_tokens.into();
            NewAnswer {
                token_ids: Some(grown.ids),
                checkpoint: Some(model.name.clone()),
                sampling: Some(sampling),
                seed: Some(self.seed),
                finish: grown.finish.map(str::to_owned),
                ..NewAnswer::text(SIDES[side], grown.text)
            }
        };
        NewItem {
            id: crate::ids::id("arena-"),
            prompt: vec![ChatMessage::user(self.prompt.as_str())],
            source: SOURCE.to_owned(),
            gold_order: None,
            answers: answers.into_iter().enumerate().map(answer).collect(),
        }
    }
}

fn failed(error: &ApiError) -> String {
    let message: Value = error.body()["error"]["message"].clone();
    format!("{}\n", json!({"error": message}))
}

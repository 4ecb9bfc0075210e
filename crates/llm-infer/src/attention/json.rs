//! The numbers of the command as JSON.

use llm_engine::attention::HeadScores;
use serde_json::{Value, json};

use super::View;

/// The report: tokens, words, and of each head its scores and, for the word that looks, its weights on tokens.
pub(super) fn report(view: &View) -> Value {
    let words = &view.text.words;
    let word = |word: Option<usize>| word.map(|at| json!({ "index": at, "text": words[at].text }));
    let heads = view.attention.heads.iter().enumerate().filter(|(_, head)| view.args.shows(head.layer, head.head));
    let heads = heads.map(|(at, head)| {
        let looking = view.from.map(|_| head.weights.clone());
        json!({
            "layer": head.layer,
            "head": head.head,
            "weights": looking,
            "value_norms": head.value_norms,
            "word_weights": looking.map(|weights| view.text.sums(&weights)),
            "scores": scores(&head.scores),
            "scores_on_random_tokens": view.random_scores.get(at).map(scores),
        })
    });
    let layers = (0..view.attention.layers()).map(|layer| {
        json!({
            "layer": layer,
            "first_token": view.attention.first_token(layer),
            "lazy": view.attention.is_lazy(layer),
            "rollout": view.from.map(|_| view.attention.rollout[layer].weights.clone()),
        })
    });
    json!({
        "model": view.args.model,
        "tokens": view.text.tokens,
        "ids": view.ids,
        "words": words.iter().map(|word| json!({
            "text": word.text, "start": word.tokens.start, "end": word.tokens.end,
        })).collect::<Vec<_>>(),
        "from": word(view.from),
        "to": word(view.to),
        "layers": layers.collect::<Vec<_>>(),
        "heads": heads.collect::<Vec<_>>(),
        "ablation": ablation(view),
        "ablation_of_each": view.effects.as_ref().map(|(position, effects)| json!({
            "position": position,
            "heads": effects.iter().map(|effect| json!({
                "layer": effect.ablation.layer, "head": effect.ablation.head, "kl": effect.kl,
            })).collect::<Vec<_>>(),
        })),
    })
}

fn scores(scores: &HeadScores) -> Value {
    json!({
        "previous_token": scores.previous_token,
        "duplicate_token": scores.duplicate_token,
        "induction": scores.induction,
        "first_token": scores.first_token,
    })
}

fn ablation(view: &View) -> Option<Value> {
    let (heads, effect) = view.ablation.as_ref()?;
    let changes = effect.changes.iter().map(|change| {
        let tokens = change.tokens.iter().map(|token| {
            json!({ "id": token.id, "text": view.token(token.id), "before": token.before, "after": token.after })
        });
        json!({ "position": change.position, "kl": change.kl, "tokens": tokens.collect::<Vec<_>>() })
    });
    Some(json!({
        "heads": heads.iter().map(|head| json!({ "layer": head.layer, "head": head.head })).collect::<Vec<_>>(),
        "kind": view.ablated_to(),
        "kl": effect.kl,
        "changes": changes.collect::<Vec<_>>(),
    }))
}

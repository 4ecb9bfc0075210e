//! The page of the command: one HTML file with all its data, styles and scripts, which loads nothing and works offline.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use llm_engine::attention::{HeadScores, Keep};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::View;

const TEMPLATE: &str = include_str!("page/page.html");
const STYLE: &str = include_str!("page/page.css");
const SCRIPT: &str =
    concat!(include_str!("page/data.js"), include_str!("page/view.js"), include_str!("page/control.js"));

/// The page. The browser runs this script and no other (Content Security Policy), and the text is only ever set as text.
pub(super) fn page(view: &View) -> String {
    // The data is within a script element: it must not end it.
    let data = data(view).to_string().replace('<', "\\u003c");
    let hash = |text: &str| format!("sha256-{}", STANDARD.encode(Sha256::digest(text)));
    let parts = TEMPLATE.replace("STYLE-HASH", &hash(STYLE)).replace("SCRIPT-HASH", &hash(SCRIPT));
    let parts = parts.replace("<style>STYLE", &format!("<style>{STYLE}"));
    let parts = parts.replace("<script>SCRIPT", &format!("<script>{SCRIPT}"));
    parts.replace(">DATA<", &format!(">{data}<"))
}

fn data(view: &View) -> Value {
    let attention = &view.attention;
    let maps = attention.heads.iter().map(|head| &head.map).chain(attention.rollout.iter().map(|layer| &layer.map));
    let bytes: Vec<u8> = maps.flatten().flat_map(|map| map.bytes.iter().copied()).collect();
    let keep = match attention.rollout.first().and_then(|layer| layer.map.as_ref()).map(|map| map.keep) {
        Some(Keep::Largest(count)) => count,
        Some(Keep::All) | None => 0,
    };
    let scale = |norms: &[f32]| norms.iter().copied().fold(0., f32::max);
    let norms = attention.heads.iter().flat_map(|head| {
        let scale = scale(&head.value_norms).max(f32::MIN_POSITIVE);
        head.value_norms.iter().map(move |norm| ((norm / scale).sqrt() * 255.).round() as u8)
    });
    let norms: Vec<u8> = norms.collect();
    let last = view.text.words.len() - 1;
    json!({
        "model": view.args.model.display().to_string(),
        "tokens": view.text.tokens,
        "words": view.text.words.iter().map(|word| json!({
            "text": word.text, "start": word.tokens.start, "end": word.tokens.end,
        })).collect::<Vec<_>>(),
        "layers": attention.layers(),
        "heads": view.heads(),
        "keep": keep,
        "maps": STANDARD.encode(bytes),
        "norms": STANDARD.encode(norms),
        "norm_scale": attention.heads.iter().map(|head| scale(&head.value_norms)).collect::<Vec<_>>(),
        "scores": attention.heads.iter().map(|head| scores(&head.scores)).collect::<Vec<_>>(),
        "random_scores": view.random_scores.iter().map(scores).collect::<Vec<_>>(),
        "lazy": (0..attention.layers()).map(|layer| attention.is_lazy(layer)).collect::<Vec<_>>(),
        "first": (0..attention.layers()).map(|layer| attention.first_token(layer)).collect::<Vec<_>>(),
        "skip_first": view.args.skip_first,
        "start": start(view, last),
        "ablation": ablation(view),
        "effects": view.effects.as_ref().map(|(position, effects)| json!({
            "after": view.after(*position),
            "heads": effects.iter().map(|effect| (effect.ablation.layer, effect.ablation.head, effect.kl)).collect::<Vec<_>>(),
        })),
    })
}

fn scores(scores: &HeadScores) -> [f64; 4] {
    [scores.previous_token, scores.duplicate_token, scores.induction, scores.first_token]
}

/// What the page shows first: the head of the options, else the one with the largest weight from the word that looks on the other
/// one, else the mean of the first layer.
fn start(view: &View, last: usize) -> Value {
    let from = view.from.unwrap_or(last);
    let to = view.to.unwrap_or(from.saturating_sub(1));
    let on = |weights: &[f32]| -> f32 { weights[view.text.words[to].tokens.clone()].iter().sum() };
    let shown = view.attention.heads.iter().filter(|head| view.args.shows(head.layer, head.head));
    let best = shown.max_by(|a, b| on(&a.weights).total_cmp(&on(&b.weights)));
    let chosen = view.args.head.is_some() || view.to.is_some();
    match best.filter(|_| chosen) {
        Some(head) => json!({ "layer": head.layer, "head": head.head, "from": from, "to": to }),
        None => json!({ "layer": view.args.layer.unwrap_or(0), "head": "mean", "from": from, "to": to }),
    }
}

fn ablation(view: &View) -> Option<Value> {
    let (heads, effect) = view.ablation.as_ref()?;
    let names: Vec<String> = heads.iter().map(|head| format!("{}.{}", head.layer, head.head)).collect();
    let changes = effect.changes.iter().map(|change| {
        let tokens = change.tokens.iter().map(|token| (view.token(token.id), token.before, token.after));
        json!({ "after": view.after(change.position), "kl": change.kl, "tokens": tokens.collect::<Vec<_>>() })
    });
    Some(json!({
        "title": format!("Without {} ({})", names.join(", "), view.ablated_to()),
        "kl": effect.kl,
        "changes": changes.collect::<Vec<_>>(),
    }))
}

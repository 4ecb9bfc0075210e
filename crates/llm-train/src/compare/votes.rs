//! Answers of two models as items of a feedback database, and the votes of people on them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use llm_feedback::store::{Kind, NewAnswer, NewItem, Store};
use serde_json::json;

use super::{CompareRecipe, Comparison, Outcome, Pair};
use crate::Result;
use crate::rewards::Prompt;

/// The source of the items.
const SOURCE: &str = "compare";

/// Adds the pairs with different answers to a database. Those that are there already are not added again.
pub(super) fn add(
    database: &Path,
    names: &[String; 2],
    prompts: &[Prompt],
    pairs: &[Pair],
    recipe: &CompareRecipe,
) -> Result<()> {
    let sampling = json!({"temperature": recipe.temperature, "max_new_tokens": recipe.max_new_tokens});
    let items: Vec<NewItem> = pairs
        .iter()
        .filter(|pair| !pair.is_equal())
        .map(|pair| {
            let answer = |side: usize, id: &str| {
                let reply = pair.sides[side].reply(pair.prompt, pair.number);
                NewAnswer {
                    token_ids: Some(reply.ids.clone()),
                    checkpoint: Some(names[side].clone()),
                    sampling: Some(sampling.clone()),
                    seed: Some(recipe.seed),
                    finish: Some(if reply.finished { "stop" } else { "length" }.to_owned()),
                    ..NewAnswer::text(id, &reply.text)
                }
            };
            // The names of the answers do not tell the model.
            let order = if pair.exchanged { [1, 0] } else { [0, 1] };
            let answers = vec![answer(order[0], "1"), answer(order[1], "2")];
            let messages = prompts[pair.prompt].messages.clone();
            NewItem {
                id: id(names, &messages, pair),
                prompt: messages,
                source: SOURCE.to_owned(),
                gold_order: None,
                answers,
            }
        })
        .collect();
    let added = Store::open(database)?.add_items(&items)?;
    tracing::info!("{}: {} new items, {} were there", database.display(), added.added, added.present);
    Ok(())
}

/// A name that depends on the models, the prompt, the answers and their number.
fn id(names: &[String; 2], messages: &[llm_tokenizer::ChatMessage], pair: &Pair) -> String {
    let [a, b] = pair.texts();
    let content = json!([names, messages, a, b, pair.number]).to_string();
    let hash = llm_files::combine_checksums(vec![(content, SOURCE.to_owned())]);
    format!("compare-{}", &hash[..24])
}

/// The result of the votes on the answers of these two models, in either order. "All bad" is a tie.
pub(super) fn count(database: &Path, names: &[String; 2], seed: u64) -> Result<Comparison> {
    let store = Store::open_existing(database)?;
    // For each item the number of its prompt, and the ids and lengths of the answers of the first and the second model. Several items can
    // have one prompt.
    let (mut items, mut prompts) = (BTreeMap::new(), BTreeMap::new());
    for item in store.items()?.into_iter().map(|item| item.item).filter(|item| item.source == SOURCE) {
        let of = |name: &String| item.answers.iter().find(|answer| answer.checkpoint.as_ref() == Some(name));
        if let (Some(a), Some(b)) = (of(&names[0]), of(&names[1])) {
            let (ids, lengths) =
                ([a, b].map(|answer| answer.id.clone()), [a, b].map(|answer| answer.text.chars().count()));
            let next = prompts.len();
            let prompt = *prompts.entry(json!(item.prompt).to_string()).or_insert(next);
            items.insert(item.id.clone(), (prompt, ids, lengths));
        }
    }
    let (mut outcomes, mut judged) = (Vec::new(), BTreeSet::new());
    for judgement in store.current()?.into_iter().filter_map(|stored| stored.judgement) {
        let Some((prompt, [a, b], lengths)) = items.get(&judgement.item) else { continue };
        let score = match judgement.kind {
            Kind::Rank { ranks } => match (ranks.get(a), ranks.get(b)) {
                (Some(a), Some(b)) if a == b => 0.5,
                (Some(a), Some(b)) => f64::from(u8::from(b < a)),
                _ => continue,
            },
            Kind::AllBad => 0.5,
            Kind::Skip | Kind::Flag => continue,
        };
        outcomes.push(Outcome { prompt: *prompt, score, lengths: *lengths });
        judged.insert(judgement.item);
    }
    let open = items.len() - judged.len();
    Ok(Comparison { open, ..Comparison::of(names.clone(), &outcomes, seed) })
}

//! Minimal pairs: the pre-trained model, and baselines without the ability.

use std::path::Path;

use llm_data::read_documents;
use llm_eval::baselines::{MAX_ORDER, NgramModel};
use llm_eval::{Pair, pair_scores, probe_scores};
use llm_model::Model;
use llm_synthetic::{Phenomenon, Probe, SplitKey, World};

use super::super::LifecycleRecipe;
use super::super::metric::{Metric, Unit, mean};
use super::Models;
use crate::Result;

pub(super) fn metrics(recipe: &LifecycleRecipe, world: &World, models: &Models, out: &Path) -> Result<Vec<Metric>> {
    let n_grams = NgramModel::count(read_documents(out.join("data/text-train.jsonl"))?);
    let mut metrics = Vec::new();
    for phenomenon in Phenomenon::ALL {
        let probes = world.probes(phenomenon, recipe.questions.probes);
        metrics.push(probe_metric(phenomenon.name(), models, &n_grams, &probes)?);
    }
    Ok(metrics)
}

fn probe_metric(name: &str, models: &Models, n_grams: &NgramModel, probes: &[Probe]) -> Result<Metric> {
    let tokenizer = &models.base.tokenizer;
    let keys: Vec<&SplitKey> = probes.iter().map(|p| &p.key).collect();
    let whole = |model: &Model| probe_scores(model, tokenizer, probes);
    let best_order = (1..=MAX_ORDER)
        .map(|order| mean(&n_grams.choices(order, probes.iter().map(|p| (&*p.prefix, &*p.good, &*p.bad)))))
        .fold(0., f64::max);
    // Controls: the deciding word masked in the attention of every layer, or deleted from the text.
    let masked: Vec<Pair> = probes
        .iter()
        .map(|p| Pair { prefix: &p.prefix, good: &p.good, bad: &p.bad, masked: p.deciding.clone() })
        .collect();
    let texts: Vec<String> = probes.iter().map(Probe::without_deciding).collect();
    let deleted: Vec<Pair> = probes
        .iter()
        .zip(&texts)
        .map(|(p, prefix)| Pair { prefix, good: &p.good, bad: &p.bad, masked: 0..0 })
        .collect();
    let score = |pairs: &[Pair]| Ok::<_, crate::Error>(mean(&pair_scores(&models.base.model, tokenizer, pairs)?));
    Ok(Metric::mean(format!("probe accuracy: {name}"), Unit::Share, &whole(&models.base.model)?, &keys)
        .reference("chance", 0.5)
        .reference("best n-gram model, n = 1 to 5", best_order)
        .reference("untrained", mean(&whole(&models.untrained)?))
        .reference("deciding word masked in attention", score(&masked)?)
        .reference("deciding word deleted", score(&deleted)?))
}

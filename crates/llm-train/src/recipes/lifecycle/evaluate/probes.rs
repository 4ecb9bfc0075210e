//! Minimal pairs: the model beside what lacks the ability.

use std::path::Path;

use llm_data::read_documents;
use llm_data::world::{Phenomenon, Probe, SplitKey, World};
use llm_model::Model;

use super::super::LifecycleRecipe;
use super::super::figure::{Figure, Unit, mean};
use super::Models;
use crate::Result;
use crate::baselines::{MAX_ORDER, NgramModel};
use crate::eval::{Pair, pair_scores, probe_scores};

pub(super) fn figures(recipe: &LifecycleRecipe, world: &World, models: &Models, out: &Path) -> Result<Vec<Figure>> {
    let n_grams = NgramModel::count(read_documents(&out.join("data/text-train.jsonl"))?);
    let mut figures = Vec::new();
    for phenomenon in Phenomenon::ALL {
        let probes = world.probes(phenomenon, recipe.questions.probes);
        figures.push(figure(phenomenon.name(), models, &n_grams, &probes)?);
    }
    Ok(figures)
}

fn figure(name: &str, models: &Models, n_grams: &NgramModel, probes: &[Probe]) -> Result<Figure> {
    let tokenizer = &models.base.tokenizer;
    let keys: Vec<&SplitKey> = probes.iter().map(|p| &p.key).collect();
    let whole = |model: &Model| probe_scores(model, tokenizer, probes);
    let best_order = (1..=MAX_ORDER)
        .map(|order| mean(&n_grams.choices(order, probes.iter().map(|p| (&*p.prefix, &*p.good, &*p.bad)))))
        .fold(0., f64::max);
    // The deciding word hidden from every layer's attention, and not there at all.
    let hidden: Vec<Pair> = probes
        .iter()
        .map(|p| Pair { prefix: &p.prefix, good: &p.good, bad: &p.bad, hidden: p.deciding.clone() })
        .collect();
    let texts: Vec<String> = probes.iter().map(Probe::without_deciding).collect();
    let deleted: Vec<Pair> = probes
        .iter()
        .zip(&texts)
        .map(|(p, prefix)| Pair { prefix, good: &p.good, bad: &p.bad, hidden: 0..0 })
        .collect();
    let score = |pairs: &[Pair]| Ok::<_, crate::Error>(mean(&pair_scores(&models.base.model, tokenizer, pairs)?));
    Ok(Figure::mean(format!("probe: {name}"), Unit::Share, &whole(&models.base.model)?, &keys)
        .beside("chance", 0.5)
        .beside("n-grams (best of 1 to 5)", best_order)
        .beside("untrained", mean(&whole(&models.untrained)?))
        .beside("attention to the deciding word cut", score(&hidden)?)
        .beside("deciding word deleted", score(&deleted)?))
}

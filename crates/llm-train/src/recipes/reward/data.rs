//! The rankings of a reward model in token ids, split by prompt.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::Path;

use llm_data::{ItemKeys, Keyed, Ranking, ReadOptions, SplitKey, read_rankings};
use llm_tokenizer::Tokenizer;

use super::{RankingLoss, RewardInputs, RewardRecipe};
use crate::loss::Comparisons;
use crate::rewards::model::conversation_ids;
use crate::splits::{Encoded, Source, train_and_validation};
use crate::{Error, Result};

/// A ranking in token ids.
#[derive(Clone)]
pub(super) struct EncodedRanking {
    /// The prompt up to the assistant's turn; empty unless replies are sampled to it.
    pub query: Vec<u32>,
    /// One row for each answer.
    pub rows: Vec<Vec<u32>>,
    /// The orders of the answers, each with the column of scores that it ranks: 0 for the reward, `1 + h` for head `h`.
    pub orders: Vec<(usize, Comparisons)>,
}

/// More validation prompts than this share in the training data means that pairs were split, not prompts.
const MOST_SHARED: f64 = 0.1;

/// Training and validation rankings. No prompt is in both.
pub(super) fn rankings(
    recipe: &RewardRecipe,
    inputs: &RewardInputs,
    tokenizer: &Tokenizer,
    max_length: usize,
) -> Result<(Vec<EncodedRanking>, Vec<EncodedRanking>)> {
    let source = Source {
        data: &inputs.data,
        validation: inputs.validation.as_deref(),
        validation_share: recipe.validation_share,
        seed: recipe.seed,
        max_length,
        options: &recipe.data,
    };
    let (train, unknown) = (RefCell::new(Vec::new()), RefCell::new(BTreeSet::new()));
    let read = |path: &Path, options: &ReadOptions| {
        let read = read_rankings(
            path,
            &ReadOptions { keep_ties: recipe.ties, keep_heads: !recipe.heads.is_empty(), ..options.clone() },
        )?;
        let mut rankings = read.rankings;
        if inputs.validation.as_deref() == Some(path) {
            without_prompts(&mut rankings, &train.borrow(), path)?;
        } else {
            train.borrow_mut().extend(rankings.iter().map(Keyed::keys));
        }
        let heads = rankings.iter().flat_map(|ranking| ranking.heads.keys());
        unknown.borrow_mut().extend(heads.filter(|head| !recipe.heads.contains_key(*head)).cloned());
        Ok((rankings, read.warnings))
    };
    let heads = head_columns(recipe);
    let split = train_and_validation(&source, read, |ranking| encode(recipe, &heads, tokenizer, max_length, ranking))?;
    let unknown: Vec<String> = unknown.into_inner().into_iter().collect();
    if !unknown.is_empty() {
        tracing::warn!("rankings by {} are not used; the recipe's table [heads] has other names", unknown.join(", "));
    }
    Ok(split)
}

/// Leaves out the validation rankings whose prompt is in the training data. Many of them are an error: a split by pair measures
/// how well the model remembers the other pairs of a prompt. Data with a single prompt cannot be split by prompt.
fn without_prompts(rankings: &mut Vec<Ranking>, train: &[ItemKeys], path: &Path) -> Result<()> {
    let prompts: HashSet<SplitKey> = train.iter().map(|keys| keys.prompt).collect();
    let whole: HashSet<SplitKey> = train.iter().map(|keys| keys.whole).collect();
    let all = rankings.len();
    // Data that is given twice has an error of its own.
    if prompts.len() < 2 || rankings.iter().all(|ranking| whole.contains(&ranking.keys().whole)) {
        return Ok(());
    }
    let is_shared = |ranking: &Ranking| prompts.contains(&ranking.keys().prompt);
    let shared = rankings.iter().filter(|ranking| is_shared(ranking)).count();
    let path = path.display();
    if shared as f64 > MOST_SHARED * all as f64 {
        return Err(Error::BadRequest(format!(
            "{path}: the prompts of {shared} of {all} rankings are also in --data; a reward model is validated on other prompts: split \
             by prompt and not by pair, or leave out --validation"
        )));
    }
    if shared > 0 {
        tracing::warn!("{path}: left out {shared} of {all} rankings whose prompt is also in --data");
        rankings.retain(|ranking| !is_shared(ranking));
    }
    Ok(())
}

/// The column of the scores of each head.
fn head_columns(recipe: &RewardRecipe) -> BTreeMap<&str, usize> {
    recipe.heads.keys().map(String::as_str).zip(1..).collect()
}

fn encode(
    recipe: &RewardRecipe,
    heads: &BTreeMap<&str, usize>,
    tokenizer: &Tokenizer,
    max_length: usize,
    ranking: &Ranking,
) -> Result<Encoded<EncodedRanking>> {
    let rows = ranking.answers.iter().map(|answer| conversation_ids(tokenizer, &ranking.prompt, answer));
    let rows = rows.collect::<Result<Vec<_>>>()?;
    if rows.iter().any(|row| row.len() > max_length) {
        return Ok(Encoded::TooLong);
    }
    if recipe.loss == RankingLoss::PlackettLuce && ranking.margin != 0. {
        let message = "\"margin\" does not apply to loss = \"plackett_luce\"; remove it, or use loss = \"k_way\"";
        return Err(Error::BadRequest(message.to_owned()));
    }
    let of_head = |(name, order)| Some((*heads.get(String::as_str(name))?, order));
    let orders = std::iter::once((0, &ranking.order)).chain(ranking.heads.iter().filter_map(of_head));
    let compared = orders.map(|(column, order)| {
        let pairs = ranking.pairs_of(order);
        let ties = if recipe.ties { ranking.ties_of(order) } else { Vec::new() };
        (column, Comparisons { groups: order.clone(), pairs, ties, margin: ranking.margin })
    });
    let orders: Vec<_> = compared.filter(|(_, c)| !c.pairs.is_empty() || !c.ties.is_empty()).collect();
    if orders.is_empty() {
        return Ok(Encoded::Untrained);
    }
    let samples = recipe.normalize_samples > 0;
    let query = if samples { tokenizer.encode_chat(ranking.prompt.as_slice(), true)? } else { Vec::new() };
    Ok(Encoded::Fits(EncodedRanking { query, rows, orders }))
}

/// The orders of all prompts, with indices into the scores of all their answers: those of the reward first, then those of each head.
pub(super) fn offset_orders(prompts: &[&EncodedRanking]) -> Vec<Comparisons> {
    let rows: usize = prompts.iter().map(|prompt| prompt.rows.len()).sum();
    let mut first = 0;
    let mut all = Vec::with_capacity(prompts.len());
    for prompt in prompts {
        for (column, order) in &prompt.orders {
            let offset = column * rows + first;
            let moved = |pairs: &[(usize, usize)]| pairs.iter().map(|(a, b)| (a + offset, b + offset)).collect();
            let group = |group: &Vec<usize>| group.iter().map(|at| at + offset).collect();
            all.push(Comparisons {
                groups: order.groups.iter().map(group).collect(),
                pairs: moved(&order.pairs),
                ties: moved(&order.ties),
                margin: order.margin,
            });
        }
        first += prompt.rows.len();
    }
    all
}

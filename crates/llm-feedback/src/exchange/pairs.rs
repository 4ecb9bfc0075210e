//! Pairs of TRL: `{"prompt", "chosen", "rejected"}` with lists of messages.

use llm_data::{ChatMessage, ReadOptions, read_rankings};
use serde::Serialize;

use super::Exported;
use super::names::item_id;
use super::rows::{Batch, Reply, Row, Vote, lines, ranking};
use crate::Result;
use crate::store::Grades;

#[derive(Serialize)]
struct Pair<'a> {
    prompt: &'a [ChatMessage],
    chosen: [Reply; 1],
    rejected: [Reply; 1],
}

pub(super) fn write(rows: &[Row], done: &mut Exported) -> Result<String> {
    let mut pairs = Vec::new();
    for row in rows {
        let Some(ranks) = row.ranks() else {
            done.leave_out("all bad", 1);
            continue;
        };
        let mut ranked: Vec<(u32, usize)> =
            ranks.iter().enumerate().filter_map(|(at, rank)| Some(((*rank)?, at))).collect();
        ranked.sort_unstable();
        for (place, &(better, chosen)) in ranked.iter().enumerate() {
            for &(worse, rejected) in &ranked[place + 1..] {
                let (chosen, rejected) = (&row.item.answers[chosen].text, &row.item.answers[rejected].text);
                if better == worse {
                    done.leave_out("tied pairs", 1);
                } else if chosen == rejected {
                    done.leave_out("pairs of equal texts", 1);
                } else {
                    let (chosen, rejected) = ([Reply::new(chosen)], [Reply::new(rejected)]);
                    pairs.push(Pair { prompt: &row.item.prompt, chosen, rejected });
                }
            }
        }
    }
    done.records = pairs.len();
    lines(&pairs)
}

/// Reads every form of a pair or ranking that `llm_data::read_rankings` reads. Each record becomes an item.
pub(super) fn read(batch: &mut Batch, annotator: &str) -> Result<()> {
    let options = ReadOptions { strict: true, ..ReadOptions::default() };
    for (at, ranked) in read_rankings(&batch.path, &options)?.rankings.into_iter().enumerate() {
        let item = batch.new_item(item_id(&batch.path, at + 1), ranked.prompt, &ranked.answers);
        let item = batch.item(at + 1, item)?;
        let mut ranks = vec![None; ranked.answers.len()];
        for (rank, group) in (1..).zip(&ranked.order) {
            group.iter().for_each(|&answer| ranks[answer] = Some(rank));
        }
        let kind = ranking(&item, &ranks);
        let vote =
            Vote { annotator: annotator.to_owned(), kind, shown: vec![], grades: Grades::new(), submitted: None };
        batch.vote(at + 1, &item, "", vote)?;
    }
    Ok(())
}

//! Battles of two models, as in the clean records of Chatbot Arena (`clean_battle_data.py` of `FastChat`).

use std::collections::BTreeMap;

use llm_data::ChatMessage;
use serde::{Deserialize, Serialize};

use super::Exported;
use super::names::{answer_id, wrong};
use super::rows::{Batch, Row, Vote, lines, ranking};
use crate::Result;
use crate::store::{Grades, Kind, NewAnswer, NewItem};

#[derive(Serialize, Deserialize, Clone)]
struct Record {
    question_id: String,
    model_a: String,
    model_b: String,
    winner: Winner,
    judge: String,
    conversation_a: Vec<ChatMessage>,
    conversation_b: Vec<ChatMessage>,
    turn: usize,
    anony: bool,
    language: String,
    /// Seconds since 1970.
    tstamp: f64,
}

#[derive(Serialize, Deserialize, Clone, Copy, PartialEq)]
enum Winner {
    #[serde(rename = "model_a")]
    A,
    #[serde(rename = "model_b")]
    B,
    #[serde(rename = "tie")]
    Tie,
    #[serde(rename = "tie (bothbad)")]
    BothBad,
}

/// A line, the indices of the answers a and b, and which one won.
type Game = (usize, usize, usize, Winner);

/// The name of a model that is not known, and the language, which is not looked at.
const UNKNOWN: &str = "unknown";

/// A record for each pair of answers; the model that was shown first is a.
pub(super) fn write(rows: &[Row], done: &mut Exported) -> Result<String> {
    let mut records = Vec::new();
    for row in rows {
        let ranks = row.ranks();
        let order = match row.shown() {
            shown if shown.is_empty() => (0..row.item.answers.len()).collect(),
            shown => shown,
        };
        for (place, &a) in order.iter().enumerate() {
            for &b in &order[place + 1..] {
                let winner = match ranks.as_ref().map(|ranks| (ranks[a], ranks[b])) {
                    None => Winner::BothBad,
                    Some((Some(a), Some(b))) if a < b => Winner::A,
                    Some((Some(a), Some(b))) if a > b => Winner::B,
                    Some((Some(_), Some(_))) => Winner::Tie,
                    Some(_) => {
                        done.leave_out("pairs with an answer without a rank", 1);
                        continue;
                    }
                };
                let (a, b) = (&row.item.answers[a], &row.item.answers[b]);
                if a.checkpoint == b.checkpoint && a.text == b.text {
                    done.leave_out("pairs of equal answers of one model", 1);
                    continue;
                }
                records.push(record(row, a, b, winner));
            }
        }
    }
    done.records = records.len();
    lines(&records)
}

fn record(row: &Row, a: &NewAnswer, b: &NewAnswer, winner: Winner) -> Record {
    let model = |answer: &NewAnswer| answer.checkpoint.clone().unwrap_or_else(|| UNKNOWN.to_owned());
    let conversation = |answer: &NewAnswer| {
        row.item.prompt.iter().cloned().chain([ChatMessage::assistant(&answer.text)]).collect::<Vec<_>>()
    };
    Record {
        question_id: row.item.id.clone(),
        model_a: model(a),
        model_b: model(b),
        winner,
        judge: row.annotator.clone(),
        conversation_a: conversation(a),
        conversation_b: conversation(b),
        turn: row.item.prompt.iter().filter(|message| message.role() == "user").count(),
        anony: true,
        language: UNKNOWN.to_owned(),
        tstamp: row.submitted as f64 / 1000.,
    }
}

/// The records of one question and judge at one time are the pairs of one ranking.
pub(super) fn read(batch: &mut Batch) -> Result<()> {
    let form = "a battle with \"question_id\", \"model_a\", \"model_b\", \"winner\", \"judge\", \"conversation_a\", \
                \"conversation_b\", \"turn\", \"anony\", \"language\" and \"tstamp\"";
    let records = batch.records::<Record>(form)?;
    let mut questions: Vec<(String, Vec<(usize, Record)>)> = Vec::new();
    let mut places: BTreeMap<String, usize> = BTreeMap::new();
    for (line, record) in records {
        let at = *places.entry(record.question_id.clone()).or_insert(questions.len());
        if at == questions.len() {
            questions.push((record.question_id.clone(), Vec::new()));
        }
        questions[at].1.push((line, record));
    }
    for (id, battles) in questions {
        question(batch, id, &battles)?;
    }
    Ok(())
}

/// The conversation without its last message, and the text of that.
fn split(conversation: &[ChatMessage]) -> Option<(&[ChatMessage], String)> {
    let (last, prompt) = conversation.split_last()?;
    (last.role() == "assistant" && !prompt.is_empty()).then(|| (prompt, last.text().into_owned()))
}

fn question(batch: &mut Batch, id: String, battles: &[(usize, Record)]) -> Result<()> {
    let path = batch.path.clone();
    let mut answers: Vec<(String, String)> = Vec::new();
    let mut prompt: Option<&[ChatMessage]> = None;
    let mut games: Vec<(usize, String, i64, usize, usize, Winner)> = Vec::new();
    for (line, battle) in battles {
        let mut index = |model: &String, conversation: &'_ Vec<ChatMessage>| {
            let (_, text) = split(conversation)?;
            let found = answers.iter().position(|answer| answer.0 == *model && answer.1 == text);
            Some(found.unwrap_or_else(|| {
                answers.push((model.clone(), text));
                answers.len() - 1
            }))
        };
        let a = index(&battle.model_a, &battle.conversation_a);
        let b = index(&battle.model_b, &battle.conversation_b);
        let (Some(a), Some(b), Some((before, _))) = (a, b, split(&battle.conversation_a)) else {
            return Err(wrong(&path, *line, "a conversation must end with an answer of the assistant"));
        };
        if *prompt.get_or_insert(before) != before || split(&battle.conversation_b).map(|one| one.0) != Some(before) {
            return Err(wrong(&path, *line, "the conversations differ before their answers"));
        }
        if a == b {
            return Err(wrong(&path, *line, "both answers are the same"));
        }
        games.push((*line, battle.judge.clone(), (battle.tstamp * 1000.).round() as i64, a, b, battle.winner));
    }
    let texts: Vec<String> = answers.iter().map(|answer| answer.1.clone()).collect();
    let line = battles.first().map_or(0, |battle| battle.0);
    let mut item: NewItem = batch.new_item(id.clone(), prompt.unwrap_or_default().to_vec(), &texts);
    for (at, (model, _)) in answers.iter().enumerate() {
        item.answers[at].id = answer_id(&id, at);
        item.answers[at].checkpoint = (model != UNKNOWN).then(|| model.clone());
    }
    let item = batch.item(line, item)?;
    let mut sessions: Vec<((i64, &str), Vec<Game>)> = Vec::new();
    for (line, judge, time, a, b, winner) in &games {
        let key = (*time, judge.as_str());
        match sessions.iter_mut().find(|session| session.0 == key) {
            Some((_, games)) => games.push((*line, *a, *b, *winner)),
            None => sessions.push((key, vec![(*line, *a, *b, *winner)])),
        }
    }
    for ((time, judge), games) in sessions {
        let line = games[0].0;
        let Some((kind, shown)) = ranking_of(&item, &games) else {
            let problem = format!("the battles of {judge} at this time are not the pairs of one ranking");
            return Err(wrong(&path, line, problem));
        };
        let vote = Vote { annotator: judge.to_owned(), kind, shown, grades: Grades::new(), submitted: Some(time) };
        batch.vote(line, &item, &time.to_string(), vote)?;
    }
    Ok(())
}

/// The judgement whose pairs these are, and the order of the answers on the screen.
fn ranking_of(item: &NewItem, games: &[Game]) -> Option<(Kind, Vec<usize>)> {
    let mut shown: Vec<usize> = games.iter().flat_map(|&(_, a, b, _)| [a, b]).collect();
    shown.sort_unstable();
    shown.dedup();
    let count = |matches: &dyn Fn(usize, usize, Winner) -> bool| {
        games.iter().filter(|game| matches(game.1, game.2, game.3)).count()
    };
    // The answer that was shown first is `a` in all its pairs, the last one in none.
    shown.sort_by_key(|&one| std::cmp::Reverse(count(&|a, _, _| a == one)));
    let pairs = shown.len() * (shown.len() - 1) / 2;
    if games.len() != pairs {
        return None;
    }
    if games.iter().all(|game| game.3 == Winner::BothBad) {
        return Some((Kind::AllBad, shown));
    }
    let mut ranks = vec![None; item.answers.len()];
    for &one in &shown {
        let lost = count(&|a, b, winner| (a == one && winner == Winner::B) || (b == one && winner == Winner::A));
        ranks[one] = Some(u32::try_from(lost).ok()? + 1);
    }
    let place = |one: usize| shown.iter().position(|&other| other == one);
    let fits = games.iter().all(|&(_, a, b, winner)| {
        let expected = match ranks[a].cmp(&ranks[b]) {
            std::cmp::Ordering::Less => Winner::A,
            std::cmp::Ordering::Equal => Winner::Tie,
            std::cmp::Ordering::Greater => Winner::B,
        };
        expected == winner && place(a) < place(b)
    });
    fits.then(|| (ranking(item, &ranks), shown))
}

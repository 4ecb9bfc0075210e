//! The arena: two models answer live.

use std::collections::BTreeSet;
use std::time::Duration;

use llm_engine::{Engine, TextModel, TextOptions};
use llm_feedback::store::{Kind, Store};
use llm_model::Head;
use llm_serve::feedback::{ArenaModel, FeedbackServer};
use serde_json::{Value, json};

use super::page::{DESKTOP, PHONE, check_page};
use super::{Ranking, plain};
use crate::browser::Browser;

const NAMES: [&str; 2] = ["secret-one", "secret-two"];

/// Two models, whose answers are different.
fn models(dir: &std::path::Path) -> [ArenaModel; 2] {
    crate::save(dir, Head::LanguageModel, None);
    [0, 1].map(|index| {
        let engine = Engine::start(TextModel::load(dir).unwrap(), crate::engine_options()).unwrap();
        let mut options = TextOptions { max_new_tokens: 20, ..TextOptions::default() };
        options.sampling.temperature = if index == 0 { 0.7 } else { 1.5 };
        ArenaModel { name: NAMES[index].to_owned(), engine, options }
    })
}

fn arena() -> Ranking {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("votes.sqlite")).unwrap();
    let models = models(&dir.path().join("model"));
    let server = FeedbackServer::start_arena(store.clone(), models, "127.0.0.1:0".parse().unwrap(), plain()).unwrap();
    let client = ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(Duration::from_mins(1)));
    Ranking { server, store, agent: client.build().into(), _dir: dir }
}

/// The texts of both answers and the name of the battle.
fn fight(arena: &Ranking, prompt: &str) -> ([String; 2], String) {
    let body = json!({"annotator": "anna", "prompt": prompt}).to_string();
    let mut response = arena.agent.post(arena.url("/api/battle")).send(body).unwrap();
    assert_eq!(response.status().as_u16(), 200);
    let text = response.body_mut().read_to_string().unwrap();
    assert!(!text.contains("secret"), "{text}");
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |side: usize| -> String {
        lines.iter().filter(|line| line["side"] == side).filter_map(|line| line["text"].as_str()).collect()
    };
    let ends = lines.iter().filter(|line| line["end"] == "stop" || line["end"] == "length").count();
    assert_eq!(ends, 2, "{text}");
    ([of(0), of(1)], lines.last().unwrap()["battle"].as_str().unwrap().to_owned())
}

fn vote(id: &str, battle: &str, vote: &str) -> Value {
    json!({"annotator": "anna", "id": id, "battle": battle, "vote": vote, "started": 1, "ms_visible": 900})
}

#[test]
fn both_models_answer_on_random_sides_and_the_answers_are_stored() {
    let arena = arena();
    let mut left = BTreeSet::new();
    for n in 0..16 {
        let (texts, battle) = fight(&arena, &format!("the cat {n}"));
        let item = arena.store.item(&battle).unwrap().unwrap().item;
        assert_eq!(item.answers.iter().map(|answer| answer.text.clone()).collect::<Vec<_>>(), texts);
        assert_eq!((item.source.as_str(), item.prompt[0].text().as_ref()), ("arena", format!("the cat {n}").as_str()));
        let names: BTreeSet<&str> = item.answers.iter().filter_map(|answer| answer.checkpoint.as_deref()).collect();
        assert_eq!(names, BTreeSet::from(NAMES));
        for answer in &item.answers {
            assert!(answer.token_ids.as_ref().is_some_and(|ids| (1..=20).contains(&ids.len())), "{answer:?}");
            let hot = answer.checkpoint.as_deref() == Some(NAMES[1]);
            assert_eq!(answer.sampling.as_ref().unwrap()["temperature"], if hot { 1.5 } else { 0.7 });
            assert!(answer.seed.is_some() && answer.finish.is_some());
        }
        left.insert(item.answers[0].checkpoint.clone());
    }
    // The chance that one model is on the left 16 times is 1 to 32768.
    assert_eq!(left.len(), 2);
    let (status, answer) = arena.ask("/api/battle", &json!({"annotator": "anna", "prompt": "  "}), &[]);
    assert_eq!(status, 400, "{answer}");
    let (status, answer) =
        arena.ask("/api/battle", &json!({"annotator": "anna", "prompt": "the cat ".repeat(2000)}), &[]);
    assert!(status == 400 && answer["error"]["code"] == "context_length_exceeded", "{answer}");
}

#[test]
fn the_models_are_named_after_the_vote_and_then_it_stays() {
    let arena = arena();
    let (_, battle) = fight(&arena, "the cat");
    let about = |id: &str| json!({"annotator": "anna", "id": id, "battle": battle});
    assert_eq!(arena.ask("/api/reveal", &about("r0"), &[]).0, 409, "not before the vote");
    assert_eq!(arena.post("/api/vote", &vote("v1", &battle, "left"))["votes"], 1);
    // Somebody else has not voted.
    let other = json!({"annotator": "ben", "id": "r1", "battle": battle});
    assert_eq!(arena.ask("/api/reveal", &other, &[]).0, 409);
    for _ in 0..2 {
        assert_eq!(arena.post("/api/unvote", &about("u1"))["votes"], 0);
    }
    assert_eq!(arena.ask("/api/reveal", &about("r2"), &[]).0, 409, "the vote was undone");
    assert_eq!(arena.post("/api/vote", &vote("v2", &battle, "right"))["votes"], 1);
    let names = arena.post("/api/reveal", &about("r3"))["names"].clone();
    let item = arena.store.item(&battle).unwrap().unwrap().item;
    let stored: Vec<String> = item.answers.iter().filter_map(|answer| answer.checkpoint.clone()).collect();
    assert_eq!(names, json!(stored));
    for (path, body) in [("/api/vote", vote("v3", &battle, "tie")), ("/api/unvote", about("u2"))] {
        let (status, answer) = arena.ask(path, &body, &[]);
        assert_eq!(status, 409, "{path}: {answer}");
    }
    // The same vote may arrive again.
    assert_eq!(arena.post("/api/vote", &vote("v2", &battle, "right"))["votes"], 1);
    let current = arena.current();
    let judgement = current[0].judgement.as_ref().unwrap();
    assert_eq!((current.len(), &judgement.shown), (1, &vec!["left".to_owned(), "right".to_owned()]));
    let Kind::Rank { ranks } = &judgement.kind else { panic!("{judgement:?}") };
    assert!(ranks["right"] < ranks["left"]);
    // A server that is started anew knows all of it.
    let dir = tempfile::tempdir().unwrap();
    let again = models(&dir.path().join("model"));
    let server =
        FeedbackServer::start_arena(arena.store.clone(), again, "127.0.0.1:0".parse().unwrap(), plain()).unwrap();
    let again = Ranking { server, ..arena };
    assert_eq!(again.ask("/api/vote", &vote("v4", &battle, "tie"), &[]).0, 409);
    let state = again.post("/api/state", &json!({"annotator": "anna", "battle": battle}));
    assert_eq!(state, json!({"votes": 1, "vote": "right", "names": stored}));
    assert_eq!(again.ask("/api/vote", &vote("v5", "arena-none", "tie"), &[]).0, 400);
}

#[test]
fn each_vote_is_a_judgement() {
    let arena = arena();
    let expected = [("left", "1 2"), ("right", "2 1"), ("tie", "1 1"), ("both_bad", "all bad")];
    for (kind, ranks) in expected {
        let (_, battle) = fight(&arena, &format!("the dog {kind}"));
        arena.post("/api/vote", &vote(kind, &battle, kind));
        let row = arena.store.current_of(&battle).unwrap().pop().unwrap();
        let found = match row.judgement.unwrap().kind {
            Kind::Rank { ranks } => format!("{} {}", ranks["left"], ranks["right"]),
            Kind::AllBad => "all bad".to_owned(),
            other => panic!("{other:?}"),
        };
        assert_eq!(found, ranks);
        let state = arena.post("/api/state", &json!({"annotator": "anna", "battle": battle}));
        assert_eq!((&state["vote"], &state["names"]), (&json!(kind), &Value::Null));
    }
    // A vote on an earlier battle is not undone from another one.
    let first = arena.store.items().unwrap()[0].item.id.clone();
    let (status, answer) = arena.ask("/api/unvote", &json!({"annotator": "anna", "id": "u", "battle": first}), &[]);
    assert_eq!(status, 409, "{answer}");
    assert_eq!(arena.current().len(), 4);
}

const VOTING: &str = "document.getElementById('left')?.disabled === false";
const VOTED: &str = "document.getElementById('after')?.hidden === false && !document.getElementById('next').disabled";
const PLACES: &str = "[...document.querySelectorAll('.place')].map(p => p.textContent).join('|')";

fn ask(browser: &mut Browser, prompt: &str, phone: bool) {
    browser.wait("document.activeElement.id === 'prompt-text'");
    browser.insert(prompt);
    match phone {
        true => browser.tap("#send", "document.getElementById('write').hidden"),
        false => browser.press("Enter", false),
    }
    browser.wait(VOTING);
}

fn visit(browser: &mut Browser, arena: &Ranking, size: (u32, u32), phone: bool) {
    browser.open(&arena.url("/"), size, phone);
    browser.wait("document.getElementById('enter')?.open === true && document.activeElement.id === 'enter-value'");
    browser.insert("anna");
    browser.press("Enter", false);
}

#[test]
fn a_person_votes_by_keys() {
    let arena = arena();
    let Some(mut browser) = Browser::start() else { return };
    visit(&mut browser, &arena, DESKTOP, false);
    ask(&mut browser, "the cat", false);
    // A reload comes back to both answers.
    let texts = "[0, 1].map(side => document.getElementById(`text-${side}`).textContent).join('|')";
    let shown = browser.value(texts);
    browser.reload();
    browser.wait(VOTING);
    assert_eq!(browser.value(texts), shown);
    browser.press("a", false);
    browser.wait(VOTED);
    assert_eq!(browser.value(PLACES), "better|");
    assert_eq!(browser.value("document.documentElement.outerHTML.includes('secret')"), false);
    browser.press("z", false);
    browser.wait(VOTING);
    assert_eq!(arena.current().len(), 0);
    browser.press("d", false);
    browser.wait(VOTED);
    browser.press("Enter", false);
    browser.wait("document.querySelector('.place').textContent.includes('secret')");
    let item = arena.store.items().unwrap().remove(0).item;
    let [left, right] = [0, 1].map(|side| item.answers[side].checkpoint.clone().unwrap());
    assert_eq!(browser.value(PLACES), format!("{left}|{right} · better"));
    // The vote stays, over a reload too.
    for reload in [false, true] {
        if reload {
            browser.reload();
            browser.wait(&format!("{PLACES} === '{left}|{right} · better'"));
        }
        for key in ["a", "z", "Backspace", "Enter"] {
            browser.press(key, false);
        }
        assert_eq!(browser.value(PLACES), format!("{left}|{right} · better"));
        assert_eq!(browser.value("document.getElementById('votes').hidden"), true);
    }
    browser.press("n", false);
    ask(&mut browser, "the dog", false);
    browser.press("b", false);
    browser.wait(VOTED);
    assert_eq!(browser.value("document.getElementById('counts').textContent"), "2 votes");
    assert_eq!(arena.store.history().unwrap().len(), 4, "two votes, an undo and its vote");
    check_page(&mut browser, 8);
}

#[test]
fn the_arena_fits_desktops_and_phones_in_light_and_dark() {
    let arena = arena();
    for (size, phone, name) in [(DESKTOP, false, "desktop"), (PHONE, true, "phone")] {
        for dark in [false, true] {
            let Some(mut browser) = Browser::start() else { return };
            let name = format!("arena-{name}-{}", if dark { "dark" } else { "light" });
            let features = json!([{"name": "prefers-color-scheme", "value": if dark { "dark" } else { "light" }}]);
            browser.call("Emulation.setEmulatedMedia", json!({"features": features}));
            visit(&mut browser, &arena, size, phone);
            browser.wait("document.activeElement.id === 'prompt-text'");
            browser.screenshot(&format!("{name}-ask"));
            ask(&mut browser, "the cat sat on the mat", phone);
            browser.screenshot(&name);
            check_page(&mut browser, 8);
            browser.press("d", false);
            browser.wait(VOTED);
            browser.press("Enter", false);
            browser.wait("document.querySelector('.place').textContent.includes('secret')");
            browser.screenshot(&format!("{name}-models"));
            check_page(&mut browser, 8);
        }
    }
}

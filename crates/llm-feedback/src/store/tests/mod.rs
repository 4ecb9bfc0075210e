mod assignment;
mod killed;
mod model;
mod race;

use std::collections::BTreeMap;
use std::time::Duration;

use llm_tokenizer::ChatMessage;
use rusqlite::Connection;
use serde_json::json;

use super::*;

fn item(id: &str) -> NewItem {
    NewItem {
        id: id.to_owned(),
        prompt: vec![ChatMessage::user(format!("question {id}"))],
        source: "test".to_owned(),
        gold_order: None,
        answers: ["a", "b", "c"].map(|answer| NewAnswer::text(answer, format!("{answer} of {id}"))).to_vec(),
    }
}

fn items(count: usize) -> Vec<NewItem> {
    (0..count).map(|at| item(&format!("item {at:04}"))).collect()
}

fn gold(id: &str) -> NewItem {
    NewItem { gold_order: Some([("a".to_owned(), 1), ("b".to_owned(), 2)].into()), ..item(id) }
}

fn store(items: &[NewItem]) -> (tempfile::TempDir, Store) {
    // In memory where the system has such a folder: these tests wait for no disk.
    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let store = Store::open(dir.path().join("votes.sqlite")).unwrap();
    store.add_items(items).unwrap();
    (dir, store)
}

fn judgement(id: impl Into<String>, task: &Task, annotator: AnnotatorId) -> Judgement {
    let shown: Vec<String> = task.answers.iter().map(|answer| answer.id.clone()).collect();
    let ranks = shown.iter().zip(1..).map(|(answer, rank)| (answer.clone(), rank)).collect();
    Judgement {
        id: id.into(),
        item: task.item.clone(),
        annotator,
        kind: Kind::Rank { ranks },
        shown,
        grades: Grades::new(),
        reason: None,
        started: 1,
        ms_visible: 2000,
        repeat_of: None,
        guideline_version: None,
    }
}

/// No gold items, no repeats.
fn plain(overlap: u32) -> Policy {
    Policy { overlap, gold_every: 0, repeat_every: 0, ..Policy::default() }
}

/// Judges until nothing is left; returns the items in their order.
fn judge_all(store: &Store, annotator: AnnotatorId, policy: &Policy) -> Vec<String> {
    let mut judged = Vec::new();
    while let Some(task) = store.next(annotator, policy, now()).unwrap() {
        let id = format!("j-{}-{}", annotator.0, judged.len());
        assert_eq!(store.judge(&judgement(id, &task, annotator), now()).unwrap(), Judged::Accepted);
        judged.push(task.item);
        std::thread::sleep(Duration::from_micros(500)); // the time in which others can take the lock
    }
    judged
}

#[test]
fn items_come_back_as_they_were_added() {
    let mut full = item("full");
    full.answers[0] = NewAnswer {
        token_ids: Some(vec![1, 2, u32::MAX]),
        checkpoint: Some("runs/a".to_owned()),
        sampling: Some(json!({"temperature": 0.7})),
        seed: Some(u64::MAX),
        finish: Some("stop".to_owned()),
        ..NewAnswer::text("a", "ü \"quoted\"\n")
    };
    full.gold_order = Some([("a".to_owned(), 1), ("c".to_owned(), 2)].into());
    let (dir, store) = store(&[item("z"), full.clone()]);
    let added = store.add_items(&[full.clone(), item("new")]).unwrap();
    assert_eq!(added, Added { added: 1, present: 1 });
    drop(store);
    let store = Store::open_existing(dir.path().join("votes.sqlite")).unwrap();
    let ids: Vec<String> = store.items().unwrap().into_iter().map(|item| item.item.id).collect();
    assert_eq!(ids, ["z", "full", "new"]);
    assert_eq!(store.item("full").unwrap().unwrap().item, full);
    assert_eq!((store.item("none").unwrap(), store.item_count().unwrap()), (None, 3));
}

#[test]
fn items_that_cannot_be_stored_are_errors_and_nothing_is_added() {
    let (_dir, store) = store(&[item("one")]);
    let other_text = NewItem { prompt: vec![ChatMessage::user("other")], ..item("one") };
    let twice = NewItem { answers: vec![NewAnswer::text("a", "x"), NewAnswer::text("a", "y")], ..item("x") };
    let unknown = NewItem { gold_order: Some([("q".to_owned(), 1), ("a".to_owned(), 2)].into()), ..item("x") };
    let tied = NewItem { gold_order: Some([("b".to_owned(), 1), ("a".to_owned(), 1)].into()), ..item("x") };
    let ten = NewItem { answers: (0..10).map(|at| NewAnswer::text(at.to_string(), "")).collect(), ..item("x") };
    for (bad, part) in [
        (other_text, "item \"one\": is in the database with other content"),
        (twice, "each answer must have its own id"),
        (unknown, "names the answer \"q\""),
        (tied, "which is better"),
        (ten, "has 10 answers; it must have 1 to 9"),
        (NewItem { prompt: vec![], ..item("x") }, "the prompt is empty"),
        (item(""), "the id must have"),
    ] {
        let error = store.add_items(&[item("new"), bad]).unwrap_err();
        assert!(error.to_string().contains(part) && error.is_callers_fault(), "{error}");
    }
    assert_eq!(store.item_count().unwrap(), 1);
}

#[test]
fn a_file_that_is_something_else_is_a_clear_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("text"), "this is not a database, but it is long enough to be one".repeat(30)).unwrap();
    Connection::open(path("other")).unwrap().execute_batch("CREATE TABLE t(x)").unwrap();
    Store::open(path("newer")).unwrap();
    Connection::open(path("newer")).unwrap().pragma_update(None, "user_version", 99).unwrap();
    for (name, part) in [
        ("text", "is not a database of this program"),
        ("other", "is a database of another program"),
        ("newer", "has version 99; this program knows versions up to 1"),
        ("", "is a folder"),
        ("no/file", "the folder does not exist"),
    ] {
        let error = Store::open(path(name)).unwrap_err();
        assert!(error.to_string().contains(part) && error.is_callers_fault(), "{name}: {error}");
    }
    let error = Store::open_existing(path("missing")).unwrap_err().to_string();
    assert!(error.contains("there is no such file") && !path("missing").exists(), "{error}");
    if cfg!(target_os = "linux") {
        // Nobody can make a file there, whatever the user's rights are.
        let error = Store::open("/proc/votes.sqlite").unwrap_err().to_string();
        assert!(error.contains("cannot be opened for writing"), "{error}");
    }
}

#[test]
fn a_task_comes_back_with_its_draft_and_order_until_it_is_judged() {
    let (dir, store) = store(&items(3));
    let (ann, policy) = (store.annotator("ann").unwrap(), plain(1));
    let first = store.next(ann, &policy, 1000).unwrap().unwrap();
    assert_eq!((first.item.as_str(), first.lease_until, first.draft.clone()), ("item 0000", 601_000, None));
    store.save_draft(ann, &first.item, &json!({"ranks": ["b"]})).unwrap();
    drop(store);
    let store = Store::open(dir.path().join("votes.sqlite")).unwrap();
    let again = store.next(ann, &policy, 2000).unwrap().unwrap();
    assert_eq!(again.draft, Some(json!({"ranks": ["b"]})));
    assert_eq!((&again.item, &again.answers), (&first.item, &first.answers));
    store.judge(&judgement("1", &again, ann), 3000).unwrap();
    let next = store.next(ann, &policy, 4000).unwrap().unwrap();
    assert_eq!((next.item.as_str(), next.draft), ("item 0001", None));
    assert_eq!((next.progress.done, next.progress.left), (1, 2));
    assert_eq!((next.progress.per_hour, next.progress.median_seconds), (Some(1800.), Some(2.)));
    assert!(store.save_draft(ann, "none", &json!(1)).unwrap_err().to_string().contains("no item \"none\""));
}

#[test]
fn every_order_of_the_answers_is_shown_equally_often() {
    let (_dir, store) = store(&items(600));
    let ann = store.annotator("ann").unwrap();
    let mut orders: BTreeMap<String, usize> = BTreeMap::new();
    for number in 0..600 {
        let task = store.next(ann, &plain(1), 0).unwrap().unwrap();
        *orders.entry(task.answers.iter().map(|answer| answer.id.as_str()).collect()).or_default() += 1;
        store.judge(&judgement(number.to_string(), &task, ann), 0).unwrap();
    }
    // Chi-square with 5 degrees of freedom: above 25.7 once in 10,000 seeds.
    let statistic: f64 = orders.values().map(|&seen| (seen as f64 - 100.).powi(2) / 100.).sum();
    assert!(orders.len() == 6 && statistic < 25.7, "{orders:?}");
    let bea = store.annotator("bea").unwrap();
    let shown = |annotator, seed| {
        let task = store.next(annotator, &Policy { seed, ..plain(2) }, 0).unwrap().unwrap();
        task.answers.into_iter().map(|answer| answer.id).collect::<Vec<_>>()
    };
    assert!((0..20).any(|seed| shown(bea, seed) != shown(bea, 42)), "another seed, another order");
}

#[test]
fn a_repeated_judgement_is_stored_once_and_its_id_names_nothing_else() {
    let (_dir, store) = store(&items(2));
    let ann = store.annotator("ann").unwrap();
    let task = store.next(ann, &plain(1), 0).unwrap().unwrap();
    let first = judgement("uuid-1", &task, ann);
    assert_eq!(store.judge(&first, 10).unwrap(), Judged::Accepted);
    let later = Judgement { ms_visible: 9999, ..first.clone() };
    assert_eq!(store.judge(&later, 20).unwrap(), Judged::Repeated);
    assert_eq!(store.history().unwrap().len(), 1);
    assert_eq!(store.current().unwrap()[0].judgement.as_ref().unwrap(), &first);
    let other = Judgement { kind: Kind::AllBad, ..first };
    assert!(store.judge(&other, 30).unwrap_err().to_string().contains("the id was used for another judgement"));
    assert!(store.undo(ann, "uuid-1", &plain(1), 40).unwrap_err().to_string().contains("the id was used"));
}

#[test]
fn judgements_that_cannot_be_right_are_refused() {
    let (_dir, store) = store(&items(1));
    let ann = store.annotator("ann").unwrap();
    let task = store.next(ann, &plain(1), 0).unwrap().unwrap();
    let good = judgement("good", &task, ann);
    let ranks =
        |list: &[(&str, u32)]| Kind::Rank { ranks: list.iter().map(|(id, rank)| ((*id).to_owned(), *rank)).collect() };
    let shown = |list: &[&str]| list.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>();
    for (bad, part) in [
        (Judgement { id: String::new(), ..good.clone() }, "the id must have"),
        (Judgement { id: "a b".to_owned(), ..good.clone() }, "the id must have"),
        (Judgement { item: "none".to_owned(), ..good.clone() }, "there is no item \"none\""),
        (Judgement { annotator: AnnotatorId(77), ..good.clone() }, "there is no annotator \"77\""),
        (Judgement { shown: shown(&["a", "a"]), ..good.clone() }, "names an answer twice"),
        (Judgement { shown: shown(&["a", "q"]), ..good.clone() }, "the item has no answer \"q\""),
        (Judgement { kind: ranks(&[("q", 1), ("a", 2)]), ..good.clone() }, "\"q\" has a rank but was not shown"),
        (Judgement { kind: ranks(&[("a", 0), ("b", 1)]), ..good.clone() }, "ranks start with 1"),
        (Judgement { kind: ranks(&[("a", 1)]), ..good.clone() }, "fewer than two"),
        (Judgement { kind: Kind::Flag, ..good.clone() }, "a flag must have a reason"),
        (Judgement { ms_visible: -1, ..good.clone() }, "a time is negative"),
        (Judgement { repeat_of: Some("x".to_owned()), ..good.clone() }, "not an own judgement"),
        (Judgement { grades: [("q".to_owned(), BTreeMap::new())].into(), ..good.clone() }, "no answer \"q\""),
    ] {
        let error = store.judge(&bad, 0).unwrap_err();
        assert!(error.to_string().contains(part) && error.is_callers_fault(), "{error}");
    }
    assert!(store.history().unwrap().is_empty());
    assert_eq!(store.judge(&good, 0).unwrap(), Judged::Accepted);
}

#[test]
fn undo_goes_back_any_number_and_deletes_nothing() {
    let (_dir, store) = store(&items(4));
    let (ann, policy) = (store.annotator("ann").unwrap(), plain(1));
    for number in 0..3 {
        let task = store.next(ann, &policy, 0).unwrap().unwrap();
        store.judge(&judgement(format!("j{number}"), &task, ann), number).unwrap();
    }
    assert_eq!(store.next(ann, &policy, 9).unwrap().unwrap().item, "item 0003");
    assert_eq!(store.undo(ann, "u1", &policy, 10).unwrap().as_deref(), Some("item 0002"));
    assert_eq!(store.undo(ann, "u1", &policy, 11).unwrap().as_deref(), Some("item 0002"), "sent again");
    assert_eq!(store.undo(ann, "u2", &policy, 12).unwrap().as_deref(), Some("item 0001"));
    // The items come back, the one undone last first, then the one that was on the screen.
    for (number, expected) in ["item 0001", "item 0002", "item 0003"].iter().enumerate() {
        let task = store.next(ann, &policy, 20).unwrap().unwrap();
        assert_eq!(&task.item, expected);
        store.judge(&judgement(format!("again{number}"), &task, ann), 21).unwrap();
    }
    assert!(store.next(ann, &policy, 30).unwrap().is_none());
    for number in 0..4 {
        assert!(store.undo(ann, &format!("all{number}"), &policy, 40).unwrap().is_some());
    }
    assert_eq!(store.undo(ann, "none", &policy, 41).unwrap(), None);
    assert_eq!(store.current().unwrap(), []);
    let history = store.history().unwrap();
    assert_eq!(history.len(), 3 + 2 + 3 + 4);
    assert_eq!((history[3].judgement.clone(), history[3].supersedes.as_deref()), (None, Some("j2")));
    let connection = Connection::open(store.path()).unwrap();
    for change in ["DELETE FROM judgement", "UPDATE judgement SET ranks_json = '{}'"] {
        assert!(connection.execute(change, []).unwrap_err().to_string().contains("append only"));
    }
}

#[test]
fn a_second_judgement_of_an_item_replaces_the_first() {
    let (_dir, store) = store(&items(1));
    let ann = store.annotator("ann").unwrap();
    let task = store.next(ann, &plain(1), 0).unwrap().unwrap();
    store.judge(&judgement("tab-1", &task, ann), 1).unwrap();
    store.judge(&Judgement { kind: Kind::AllBad, ..judgement("tab-2", &task, ann) }, 2).unwrap();
    let current = store.current().unwrap();
    assert_eq!((current.len(), current[0].id.as_str(), current[0].supersedes.as_deref()), (1, "tab-2", Some("tab-1")));
}

#[test]
fn tokens_are_stored_as_hashes() {
    let (_dir, store) = store(&[]);
    let (ann, token) = store.add_annotator("ann").unwrap();
    assert_eq!((token.len(), store.authenticate(&token).unwrap().unwrap().id), (64, ann));
    assert_eq!(store.authenticate("x").unwrap(), None);
    assert_eq!(store.authenticate("").unwrap(), None);
    assert!(store.add_annotator("ann").unwrap_err().to_string().contains("has a token"));
    let new = store.renew_token("ann").unwrap();
    assert_eq!((store.authenticate(&token).unwrap(), store.authenticate(&new).unwrap().unwrap().id), (None, ann));
    // An annotator without a token gets one.
    let bea = store.annotator("bea").unwrap();
    assert_eq!(store.add_annotator("bea").unwrap().0, bea);
    let robot = store.annotator_as("robot", Role::Simulated).unwrap();
    assert!(store.annotator("robot").unwrap_err().to_string().contains("annotator \"robot\""));
    let all = store.annotators().unwrap();
    assert_eq!(
        all.iter().map(|one| (one.id, one.has_token)).collect::<Vec<_>>(),
        [(ann, true), (bea, true), (robot, false)]
    );
    for bad in ["", " ", "a\nb"] {
        assert!(store.annotator(bad).is_err());
    }
    let bytes = std::fs::read(store.path()).unwrap();
    let wal = std::fs::read(store.path().with_extension("sqlite-wal")).unwrap_or_default();
    for secret in [&token, &new] {
        assert!(![&bytes, &wal].iter().any(|file| file.windows(64).any(|part| part == secret.as_bytes())));
    }
    store.log_event(Some(ann), None, "key 1").unwrap();
    assert_eq!(store.events().unwrap(), [(None, "key 1".to_owned())]);
    assert!(store.log_event(None, Some("no item"), "x").is_err(), "foreign keys are on");
}

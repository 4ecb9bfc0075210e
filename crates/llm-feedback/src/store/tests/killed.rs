use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::*;

const DATABASE: &str = "LLM_FEEDBACK_TEST_DATABASE";
const NAME: &str = "LLM_FEEDBACK_TEST_ANNOTATOR";

/// Not a test of its own: the process that the tests below start. It judges until nothing is left and prints each judgement after it is
/// acknowledged.
#[test]
fn judge_in_a_process_of_its_own() {
    let (Ok(path), Ok(name)) = (std::env::var(DATABASE), std::env::var(NAME)) else { return };
    let store = Store::open(path).unwrap();
    let annotator = store.annotator(&name).unwrap();
    let mut number = store.history().unwrap().len();
    while let Some(task) = store.next(annotator, &plain(1), now()).unwrap() {
        let id = format!("{name}-{number}");
        store.judge(&judgement(&id, &task, annotator), now()).unwrap();
        println!("acknowledged {id}");
        number += 1;
    }
}

fn start(path: &Path, name: &str) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "store::tests::killed::judge_in_a_process_of_its_own", "--nocapture"]);
    command.env(DATABASE, path).env(NAME, name).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
}

/// The acknowledged judgements that a process prints, at most `count`.
fn acknowledged(child: &mut Child, count: usize) -> Vec<String> {
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let ids = lines.filter_map(|line| Some(line.split_once("acknowledged ")?.1.to_owned()));
    ids.take(count).collect()
}

#[test]
fn what_was_acknowledged_survives_the_death_of_the_process() {
    let dir = tempfile::tempdir().unwrap(); // on a disk
    let path = dir.path().join("votes.sqlite");
    Store::open(&path).unwrap().add_items(&items(100)).unwrap();
    let mut seen = Vec::new();
    for round in 0..8 {
        let mut child = start(&path, "ann");
        seen.extend(acknowledged(&mut child, 1 + 2 * round));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert_eq!(seen.len(), 64);
    let store = Store::open_existing(&path).unwrap();
    let rows: Vec<String> = store.history().unwrap().into_iter().map(|row| row.id).collect();
    for id in &seen {
        assert_eq!(rows.iter().filter(|row| *row == id).count(), 1, "{id}");
    }
    let items: BTreeSet<String> = store.current().unwrap().into_iter().map(|row| row.item).collect();
    assert_eq!(items.len(), rows.len(), "no item twice");
}

#[test]
fn two_processes_share_the_items_without_a_double_or_a_loss() {
    let (_dir, store) = store(&items(200));
    let mut children = [start(store.path(), "ann"), start(store.path(), "bea")];
    let judged: usize = children.iter_mut().map(|child| acknowledged(child, 1000).len()).sum();
    assert!(children.into_iter().all(|mut child| child.wait().unwrap().success()));
    let current = store.current().unwrap();
    let items: BTreeSet<&str> = current.iter().map(|row| row.item.as_str()).collect();
    assert_eq!((judged, current.len(), items.len()), (200, 200, 200));
}

//! `llm-train feedback serve` in a headless Chromium: the program is killed, and nothing that it acknowledged is lost.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use llm_feedback::store::{Kind, NewAnswer, NewItem, Store};
use llm_tokenizer::ChatMessage;
use serde_json::Value;

#[path = "../../../llm-serve/tests/api/browser.rs"]
#[allow(dead_code, reason = "llm-serve uses all of it")]
mod browser;

use browser::Browser;

/// A running program, which ends with it.
struct Program(Child, String);

impl Program {
    /// Starts `feedback serve` and reads where it listens.
    fn start(dir: &Path, port: &str) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_llm-train"));
        command.args(["feedback", "serve", "--db", "votes.sqlite", "--repeat-every", "0", "--port", port]);
        let mut child = command.current_dir(dir).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let (_, address) = line.split_once(": http://").unwrap_or_else(|| panic!("{line:?}"));
        Self(child, address.trim_end().trim_end_matches('/').to_owned())
    }

    /// SIGKILL.
    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

const KILLS: usize = 50;

fn database(dir: &Path, items: usize) -> Store {
    let store = Store::open(dir.join("votes.sqlite")).unwrap();
    let item = |n: usize| NewItem {
        id: format!("item-{n}"),
        prompt: vec![ChatMessage::user(format!("Question {n}?"))],
        source: "test".to_owned(),
        gold_order: None,
        answers: vec![NewAnswer::text("a", "yes"), NewAnswer::text("b", "no"), NewAnswer::text("c", "perhaps")],
    };
    store.add_items(&(0..items).map(item).collect::<Vec<_>>()).unwrap();
    store
}

#[test]
fn every_acknowledged_judgement_is_stored_once_however_often_the_program_is_killed() {
    let Some(mut browser) = Browser::start() else { return };
    let dir = tempfile::tempdir().unwrap();
    let store = database(dir.path(), KILLS);
    let mut program = Program::start(dir.path(), "0");
    let port = program.1.rsplit_once(':').unwrap().1.to_owned();
    // What the server acknowledged, noted apart from the page.
    let note = "const real = fetch; window.fetch = async (...a) => { const r = await real(...a); if (r.ok && String(a[0]).endsWith('judge')) { \
                const acked = JSON.parse(localStorage.acked || '[]'); acked.push(JSON.parse(a[1].body).id); localStorage.acked = JSON.stringify(acked); } return r; };";
    browser.call("Page.addScriptToEvaluateOnNewDocument", serde_json::json!({"source": note}));
    browser.open(&format!("http://{}/", program.1), (1280, 800), false);
    browser.wait("document.getElementById('enter')?.open === true && document.activeElement.id === 'enter-value'");
    browser.insert("anna");
    browser.press("Enter", false);
    let ready = |done: usize| {
        format!(
            "document.getElementById('counts').textContent.startsWith('{done} done') && (!document.getElementById('end').hidden || \
             !document.getElementById('judge').hidden && !document.getElementById('undo').disabled)"
        )
    };
    browser.wait(&ready(0));
    for kill in 0..KILLS {
        let pause = |ms: usize| std::thread::sleep(Duration::from_millis(ms as u64));
        // Killed between the keys, right after the last one, and at growing times after it.
        browser.press("2", false);
        let before = kill % 5 == 0;
        if before {
            program.kill();
        }
        browser.press("1", false);
        browser.press("3", false);
        browser.press("Enter", false);
        if !before {
            pause(kill % 5 * 4);
            program.kill();
        }
        if kill % 7 == 3 {
            // The page is loaded anew while the server is away, and finds it again.
            program = Program::start(dir.path(), &port);
            browser.reload();
        } else {
            program = Program::start(dir.path(), &port);
        }
        browser.wait(&ready(kill + 1));
    }
    let acknowledged: Vec<String> = serde_json::from_value::<Value>(browser.value("JSON.parse(localStorage.acked)"))
        .ok()
        .and_then(|ids| serde_json::from_value(ids).ok())
        .unwrap();
    let rows = store.history().unwrap();
    let (ids, items): (BTreeSet<&String>, BTreeSet<&String>) = rows.iter().map(|row| (&row.id, &row.item)).unzip();
    assert_eq!((rows.len(), ids.len(), items.len()), (KILLS, KILLS, KILLS));
    assert!(acknowledged.iter().all(|id| ids.contains(id)), "{acknowledged:?}");
    assert_eq!(acknowledged.iter().collect::<BTreeSet<_>>(), ids, "all are acknowledged in the end");
    for row in &rows {
        let judgement = row.judgement.as_ref().unwrap();
        let Kind::Rank { ranks } = &judgement.kind else { panic!("{judgement:?}") };
        let order: Vec<u32> = judgement.shown.iter().map(|id| ranks[id]).collect();
        assert_eq!(order, [2, 1, 3], "the keys 2, 1, 3");
    }
    let waiting = "Object.keys(localStorage).filter(k => /^feedback[.](out|refused)/.test(k)).length";
    assert_eq!(browser.value(waiting), 0);
}

#[test]
fn wrong_options_of_the_page_are_refused_before_it_listens() {
    let dir = tempfile::tempdir().unwrap();
    let output =
        |arguments: &str| super::program::output(dir.path(), &format!("feedback serve --port 0 --db {arguments}"));
    let refused = |arguments: &str, words: &str| {
        let (code, text, message) = output(arguments);
        assert_eq!((code, text.as_str()), (Some(2), ""), "{message}");
        assert!(message.contains(words), "{words} in {message}");
    };
    refused("missing.sqlite", "missing.sqlite: there is no such file");
    Store::open(dir.path().join("empty.sqlite")).unwrap();
    refused("empty.sqlite", "has no items");
    let store = database(dir.path(), 1);
    refused("votes.sqlite --host 0.0.0.0", "--annotator");
    refused("votes.sqlite --annotator anna", "--tokens");
    refused("votes.sqlite --guideline missing.txt", "missing.txt");
    store.add_annotator("ben").unwrap();
    refused("votes.sqlite --tokens --annotator ben", "--renew-token");
    assert_eq!(store.annotators().unwrap().len(), 1, "nothing was made");
}

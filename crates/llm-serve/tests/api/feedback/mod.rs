//! The ranking page.

mod arena;
mod http;
mod page;

use std::time::Duration;

use llm_feedback::store::{NewAnswer, NewItem, Policy, Store, StoredJudgement};
use llm_serve::feedback::{FeedbackOptions, FeedbackServer};
use llm_tokenizer::ChatMessage;
use serde_json::{Value, json};

/// A server of the ranking page over a new database.
struct Ranking {
    server: FeedbackServer,
    store: Store,
    agent: ureq::Agent,
    _dir: tempfile::TempDir,
}

/// An item with these answers. Ids and checkpoints name models.
fn item(id: &str, prompt: &str, answers: &[&str]) -> NewItem {
    let answer = |(index, text): (usize, &&str)| NewAnswer {
        checkpoint: Some(format!("secret-model-{index}")),
        ..NewAnswer::text(format!("secret-{index}"), *text)
    };
    NewItem {
        id: id.to_owned(),
        prompt: vec![ChatMessage::user(prompt)],
        source: "test".to_owned(),
        gold_order: None,
        answers: answers.iter().enumerate().map(answer).collect(),
    }
}

/// Options that give out items in their order, without gold items and repeats.
fn plain() -> FeedbackOptions {
    let policy = Policy { gold_every: 0, repeat_every: 0, ..Policy::default() };
    FeedbackOptions { policy, ..FeedbackOptions::default() }
}

impl Ranking {
    fn new(items: &[NewItem], options: FeedbackOptions) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("votes.sqlite")).unwrap();
        store.add_items(items).unwrap();
        let server = FeedbackServer::start(store.clone(), "127.0.0.1:0".parse().unwrap(), options).unwrap();
        let client =
            ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(Duration::from_mins(1)));
        Self { server, store, agent: client.build().into(), _dir: dir }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.server.address())
    }

    /// The status and the JSON of an answer.
    fn ask(&self, path: &str, body: &Value, headers: &[(&str, &str)]) -> (u16, Value) {
        let mut request = self.agent.post(self.url(path)).content_type("application/json");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut response = request.send(body.to_string()).unwrap();
        let text = response.body_mut().read_to_string().unwrap();
        (response.status().as_u16(), serde_json::from_str(&text).unwrap_or_else(|e| panic!("{text}: {e}")))
    }

    /// The JSON of a good answer.
    fn post(&self, path: &str, body: &Value) -> Value {
        let (status, answer) = self.ask(path, body, &[]);
        assert_eq!(status, 200, "{path} {body}: {answer}");
        answer
    }

    /// The judgements that count, with the ids of the answers by rank, such as `[["secret-1"], ["secret-0", "secret-2"]]`.
    fn current(&self) -> Vec<StoredJudgement> {
        self.store.current().unwrap()
    }
}

/// A judgement of a task in the order in which the answers were shown.
fn judgement(name: &str, id: &str, task: &Value) -> Value {
    let keys: Vec<&str> =
        task["answers"].as_array().unwrap().iter().map(|answer| answer["key"].as_str().unwrap()).collect();
    let ranks: serde_json::Map<String, Value> =
        keys.iter().enumerate().map(|(at, key)| ((*key).to_owned(), (at + 1).into())).collect();
    json!({"annotator": name, "id": id, "item": task["item"], "kind": "rank", "ranks": ranks, "shown": keys,
        "started": 1, "ms_visible": 1500})
}

//! A server as a source: replies are posted as JSON, and it answers with their scores.

use std::time::Duration;

use serde_json::{Value, json};
use ureq::Agent;
use ureq::http::StatusCode;

use super::Answer;
use crate::{Error, Result};

/// A server that scores replies. It receives `{"answers": [{"prompt", "row", "completion", "finished"}, …]}` and must answer with
/// `{"scores": [number, …]}`, one for each answer.
#[derive(Debug)]
pub struct Server {
    url: String,
    timeout: Duration,
    retries: u32,
    agent: Agent,
}

/// The wait before the first repetition of a request. It doubles each time.
const FIRST_WAIT: Duration = Duration::from_millis(250);

/// The longest wait between two tries.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// The most bytes that are read of an answer, and the most characters of it that are shown.
const MOST_BYTES: u64 = 64 << 20;
const SHOWN: usize = 200;

/// Why a request failed.
struct Failed {
    what: String,
    /// Whether a repetition may succeed.
    may_pass: bool,
}

impl Server {
    /// The server at this address. A request takes at most `timeout` and is repeated at most `retries` times.
    pub fn new(url: String, timeout: Duration, retries: u32) -> Self {
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(timeout))
            .user_agent(concat!("llm-train/", env!("CARGO_PKG_VERSION")))
            .build()
            .into();
        Self { url, timeout, retries, agent }
    }

    /// The score of each answer.
    pub(super) fn scores(&self, answers: &[Answer]) -> Result<Vec<f64>> {
        let body = json!({ "answers": answers }).to_string();
        let (mut tries, mut wait) = (0, FIRST_WAIT);
        loop {
            let failed = match self.post(&body) {
                Ok(text) => return self.parse(&text),
                Err(failed) => failed,
            };
            if !failed.may_pass || tries == self.retries {
                let after = if tries == 0 { String::new() } else { format!(" after {} tries", tries + 1) };
                return Err(Error::BadRequest(format!("{}: {}{after}", self.url, failed.what)));
            }
            tries += 1;
            tracing::warn!("{}: {}; trying again in {} ms", self.url, failed.what, wait.as_millis());
            std::thread::sleep(wait);
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }

    fn post(&self, body: &str) -> Result<String, Failed> {
        let request = self.agent.post(&self.url).content_type("application/json");
        let mut response = request.send(body).map_err(|error| self.connection_error(&error))?;
        let status = response.status();
        let text = response.body_mut().with_config().limit(MOST_BYTES).read_to_string();
        let text = text.map_err(|error| self.connection_error(&error))?;
        if status.is_success() {
            return Ok(text);
        }
        let may_pass = status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS;
        Err(Failed { what: format!("the server answers {status}: {}", shortened(&text)), may_pass })
    }

    fn connection_error(&self, error: &ureq::Error) -> Failed {
        let seconds = self.timeout.as_secs_f64();
        let (what, may_pass) = match error {
            ureq::Error::Timeout(_) => {
                (format!("no answer within {seconds} s; raise timeout_seconds, or make the server faster"), true)
            }
            ureq::Error::HostNotFound => ("the name of the server is not known; check url".to_owned(), false),
            ureq::Error::BadUri(_) | ureq::Error::Http(_) => (format!("not an address ({error}); check url"), false),
            ureq::Error::BodyExceedsLimit(_) => (format!("an answer of more than {MOST_BYTES} bytes"), false),
            error => (format!("no answer ({error}); is the server running?"), true),
        };
        Failed { what, may_pass }
    }

    /// The numbers of an answer. Their count is checked by the caller.
    fn parse(&self, text: &str) -> Result<Vec<f64>> {
        let wrong = |what: &str| {
            let (url, text) = (&self.url, shortened(text));
            Err(Error::BadRequest(format!(
                "{url}: {what} in the answer {text}; it must be {{\"scores\": [number, …]}}"
            )))
        };
        let Ok(value) = serde_json::from_str::<Value>(text) else { return wrong("no JSON") };
        let Some(scores) = value.get("scores").and_then(Value::as_array) else { return wrong("no list \"scores\"") };
        match scores.iter().map(Value::as_f64).collect::<Option<Vec<f64>>>() {
            Some(scores) => Ok(scores),
            None => wrong("a score that is not a number"),
        }
    }
}

/// The beginning of an answer on one line.
fn shortened(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut short: String = line.chars().take(SHOWN).collect();
    if short.len() < line.len() {
        short.push('…');
    }
    short
}

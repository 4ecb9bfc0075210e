//! A server as a source of rewards.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use llm_train::rewards::{Reward, Server, Source};
use serde_json::{Value, json};

use super::sources::with_answers;

/// A server that answers the requests with these texts in turn, and the last one forever; with it the bodies that it got. The text
/// `hang` waits, and `close` closes the connection.
fn serve(answers: Vec<&'static str>) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/score", listener.local_addr().unwrap());
    let bodies = Arc::new(Mutex::new(Vec::new()));
    let (got, next) = (bodies.clone(), AtomicUsize::new(0));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.unwrap());
            let (mut length, mut line) = (0, String::new());
            while stream.read_line(&mut line).unwrap_or(0) > 2 {
                if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
                line.clear();
            }
            let mut body = vec![0; length];
            stream.read_exact(&mut body).unwrap();
            got.lock().unwrap().push(String::from_utf8(body).unwrap());
            let answer = answers[next.fetch_add(1, Ordering::Relaxed).min(answers.len() - 1)];
            match answer {
                "hang" => std::thread::sleep(Duration::from_millis(1500)),
                "close" => {}
                answer => {
                    let (status, text) = answer.split_once(' ').unwrap();
                    let head =
                        format!("HTTP/1.1 {status} x\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", text.len());
                    stream.get_mut().write_all(format!("{head}{text}").as_bytes()).unwrap();
                }
            }
        }
    });
    (url, bodies)
}

fn served(answers: Vec<&'static str>, timeout: u64, retries: u32) -> (Result<Vec<f64>, String>, Vec<String>) {
    let (url, bodies) = serve(answers);
    let reward = Reward::of(Source::Http(Server::new(url, Duration::from_millis(timeout), retries)));
    let scores = with_answers(&["a", "b"], |answers| reward.score(answers)).map_err(|error| error.to_string());
    let bodies = bodies.lock().unwrap().clone();
    (scores, bodies)
}

#[test]
fn a_server_scores_a_batch_and_failures_that_pass_are_repeated() {
    let (scores, bodies) = served(vec!["503 busy", "close", "200 {\"scores\": [1, -0.5]}"], 5000, 3);
    assert_eq!(scores.unwrap(), [1., -0.5]);
    assert_eq!(bodies.len(), 3);
    let body: Value = serde_json::from_str(&bodies[2]).unwrap();
    let answers = body["answers"].as_array().unwrap();
    assert_eq!(
        (answers.len(), &answers[1]["completion"], &answers[1]["row"]),
        (2, &json!("b"), &json!({"answer": "#### 4"}))
    );
}

#[test]
fn errors_of_a_server_name_it_and_the_fix() {
    for (answers, retries, requests, part) in [
        (vec!["503 busy"], 1, 2, "the server answers 503 Service Unavailable: busy after 2 tries"),
        (vec!["404 no such path"], 3, 1, "the server answers 404 Not Found: no such path"),
        (vec!["200 {\"scores\": [1]}"], 3, 1, "1 scores for 2 replies"),
        (vec!["200 {\"scores\": [1, null]}"], 3, 1, "a score that is not a number"),
        (vec!["200 {\"scores\": [1, NaN]}"], 3, 1, "no JSON in the answer"),
        (vec!["200 {\"scores\": [1, 1e999]}"], 3, 1, "no JSON in the answer"),
        (vec!["200 <html>\n</html>"], 3, 1, "no JSON in the answer <html> </html>; it must be {\"scores\": [number"),
        (vec!["200 [1, 2]"], 3, 1, "no list \"scores\""),
        (vec!["hang"], 0, 1, "no answer within 0.3 s; raise timeout_seconds"),
        (vec!["close"], 0, 1, "no answer ("),
    ] {
        let (scores, bodies) = served(answers.clone(), 300, retries);
        let message = scores.unwrap_err();
        assert!(message.contains(part), "{message}\n  has no: {part}");
        assert!(message.starts_with("the reward \"http\": ") && !message.contains('\n'), "{message}");
        assert_eq!(bodies.len(), requests, "{answers:?}");
    }
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let server = Server::new(format!("http://{closed}"), Duration::from_millis(300), 0);
    let message =
        with_answers(&["a"], |answers| Reward::of(Source::Http(server)).score(answers).unwrap_err()).to_string();
    assert!(message.contains("is the server running?"), "{message}");
}

//! The ranking page without a browser.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::TcpStream;

use llm_feedback::store::{Kind, Policy};
use llm_serve::feedback::FeedbackOptions;
use serde_json::{Value, json};

use super::{Ranking, item, judgement, plain};

fn two_answers(count: usize) -> Vec<llm_feedback::store::NewItem> {
    (0..count).map(|n| item(&format!("item-{n}"), &format!("Question {n}?"), &["yes", "no"])).collect()
}

#[test]
fn pages_have_a_policy_that_allows_only_their_own_server() {
    let ranking = Ranking::new(&two_answers(1), plain());
    for path in ["/", "/report", "/report.js", "/rank.js", "/common.js", "/drag.js", "/feedback.css"] {
        let response = ranking.agent.get(ranking.url(path)).call().unwrap();
        assert_eq!(response.status().as_u16(), 200, "{path}");
        let header = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
        let policy = header("content-security-policy");
        let rules: HashSet<&str> = policy.split(';').map(str::trim).collect();
        for rule in
            ["default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'", "form-action 'none'"]
        {
            assert!(rules.contains(rule), "{path}: {policy}");
        }
        assert!(!policy.contains("unsafe") && !policy.contains("http"), "{policy}");
        assert_eq!(header("x-content-type-options"), "nosniff");
        assert_eq!(header("referrer-policy"), "no-referrer");
    }
    assert_eq!(ranking.agent.get(ranking.url("/secret")).call().unwrap().status().as_u16(), 404);
    assert_eq!(ranking.agent.get(ranking.url("/api/next")).call().unwrap().status().as_u16(), 405);
}

#[test]
fn other_hosts_and_pages_of_other_sites_are_refused() {
    let ranking = Ranking::new(&two_answers(1), FeedbackOptions { hosts: vec!["box.lan".to_owned()], ..plain() });
    let asked = json!({"annotator": "anna"});
    let port = ranking.server.address().port();
    for host in ["evil.example", "evil.example:80", "10.0.0.1:80"] {
        assert_eq!(ranking.ask("/api/next", &asked, &[("Host", host)]).0, 403, "{host}");
    }
    for host in ["localhost".to_owned(), format!("127.0.0.1:{port}"), format!("box.lan:{port}")] {
        assert_eq!(ranking.ask("/api/next", &asked, &[("Host", &host)]).0, 200, "{host}");
    }
    assert_eq!(ranking.ask("/api/next", &asked, &[("Origin", "https://evil.example")]).0, 403);
    assert_eq!(ranking.ask("/api/next", &asked, &[("Origin", &ranking.url(""))]).0, 200);
}

#[test]
fn with_tokens_only_annotators_get_items() {
    let ranking = Ranking::new(&two_answers(2), FeedbackOptions { tokens: true, ..plain() });
    let (_, token) = ranking.store.add_annotator("anna").unwrap();
    assert_eq!(ranking.post("/api/config", &json!({}))["tokens"], true);
    for headers in [&[][..], &[("Authorization", "Bearer wrong")], &[("Authorization", token.as_str())]] {
        let (status, answer) = ranking.ask("/api/next", &json!({"annotator": "anna"}), headers);
        assert_eq!(status, 401, "{answer}");
        assert!(answer["error"]["message"].as_str().unwrap().contains("token"), "{answer}");
    }
    let bearer = format!("Bearer {token}");
    let (status, answer) = ranking.ask("/api/next", &json!({}), &[("Authorization", &bearer)]);
    assert_eq!((status, &answer["task"]["item"]), (200, &json!("item-0")));
    // Everybody can reach an address that is not loopback, so names are not enough there.
    let open = llm_serve::feedback::FeedbackServer::start(ranking.store.clone(), "0.0.0.0:0".parse().unwrap(), plain());
    let open = Ranking { server: open.unwrap(), ..ranking };
    let port = open.server.address().port();
    let mut response = open
        .agent
        .post(format!("http://127.0.0.1:{port}/api/next"))
        .send(json!({"annotator": "anna"}).to_string())
        .unwrap();
    assert_eq!(response.status().as_u16(), 401, "{}", response.body_mut().read_to_string().unwrap());
}

#[test]
fn the_report_is_for_admins_where_tokens_are_needed() {
    let options = FeedbackOptions { tokens: true, admins: vec!["eve".to_owned()], ..plain() };
    let ranking = Ranking::new(&two_answers(2), options);
    let tokens = ["anna", "eve"].map(|name| format!("Bearer {}", ranking.store.add_annotator(name).unwrap().1));
    let task = ranking.ask("/api/next", &json!({}), &[("Authorization", &tokens[0])]).1["task"].clone();
    let judged = ranking.ask("/api/judge", &judgement("", "id-1", &task), &[("Authorization", &tokens[0])]);
    assert_eq!(judged.0, 200, "{}", judged.1);
    let (status, refused) = ranking.ask("/api/report", &json!({}), &[("Authorization", &tokens[0])]);
    assert!(status == 403 && !refused.to_string().contains("secret"), "{refused}");
    let (status, answer) = ranking.ask("/api/report", &json!({}), &[("Authorization", &tokens[1])]);
    let text = answer["report"].as_str().unwrap();
    assert!(status == 200 && text.contains("1 judgements") && text.contains("secret-model-0"), "{text}");
    let named = Ranking::new(&two_answers(1), plain());
    assert!(
        named.post("/api/report", &json!({"annotator": "anna"}))["report"].as_str().unwrap().contains("0 judgements")
    );
}

#[test]
fn the_page_cannot_tell_models_apart() {
    let ranking = Ranking::new(&two_answers(1), plain());
    let next = ranking.post("/api/next", &json!({"annotator": "anna"}));
    let text = next.to_string();
    for word in ["secret", "checkpoint", "sampling", "gold", "repeat", "test"] {
        assert!(!text.contains(word), "{word} in {text}");
    }
    assert_eq!(next["task"]["prompt"], json!([{"role": "user", "text": "Question 0?"}]));
    assert_eq!(next["progress"]["left"], 1);
    assert_eq!(ranking.post("/api/next", &json!({"annotator": "anna"})), next, "the same item until it is judged");
}

#[test]
fn a_judgement_that_is_sent_again_is_stored_once() {
    let ranking = Ranking::new(&two_answers(2), plain());
    let task = ranking.post("/api/next", &json!({"annotator": "anna"}))["task"].clone();
    let sent = judgement("anna", "6a1f0000-0000-4000-8000-000000000001", &task);
    assert_eq!(ranking.post("/api/judge", &sent)["status"], "accepted");
    assert_eq!(ranking.post("/api/judge", &sent)["status"], "repeated");
    let rows = ranking.store.history().unwrap();
    assert_eq!(rows.len(), 1);
    let stored = rows[0].judgement.as_ref().unwrap();
    let keys: Vec<&str> = sent["shown"].as_array().unwrap().iter().map(|key| key.as_str().unwrap()).collect();
    // The answers in the order in which they were shown, and their ranks.
    let texts: Vec<&Value> = task["answers"].as_array().unwrap().iter().map(|answer| &answer["text"]).collect();
    let of = |text: &Value| if text == "yes" { "secret-0" } else { "secret-1" };
    assert_eq!(stored.shown, texts.iter().map(|text| of(text)).collect::<Vec<_>>());
    let Kind::Rank { ranks } = &stored.kind else { panic!("{stored:?}") };
    assert_eq!((ranks[&stored.shown[0]], ranks[&stored.shown[1]], keys.len()), (1, 2, 2));
    // Another judgement with the same id is refused.
    let mut other = sent.clone();
    other["kind"] = "all_bad".into();
    assert_eq!(ranking.ask("/api/judge", &other, &[]).0, 400);
    // Undo, twice with the same id.
    let undo = json!({"annotator": "anna", "id": "undo-1"});
    for _ in 0..2 {
        let answer = ranking.post("/api/undo", &undo);
        assert_eq!((&answer["undone"], &answer["task"]["item"]), (&task["item"], &task["item"]));
    }
    assert_eq!((ranking.current().len(), ranking.store.history().unwrap().len()), (0, 2));
    assert_eq!(ranking.post("/api/undo", &json!({"annotator": "anna", "id": "undo-2"}))["undone"], Value::Null);
}

#[test]
fn wrong_requests_are_refused_with_the_reason() {
    let ranking = Ranking::new(&two_answers(1), plain());
    let task = ranking.post("/api/next", &json!({"annotator": "anna"}))["task"].clone();
    let good = judgement("anna", "id-1", &task);
    let key = good["shown"][0].as_str().unwrap().to_owned();
    let with = |change: &dyn Fn(&mut Value)| {
        let mut sent = good.clone();
        change(&mut sent);
        let (status, answer) = ranking.ask("/api/judge", &sent, &[]);
        assert_eq!(status, 400, "{sent}: {answer}");
        answer["error"]["message"].as_str().unwrap().to_owned()
    };
    assert!(with(&|sent| sent["item"] = "nothing".into()).contains("no item"));
    assert!(with(&|sent| sent["shown"] = json!([key])).contains("shown"));
    assert!(with(&|sent| sent["shown"] = json!(["secret-0", "secret-1"])).contains("no answer"));
    assert!(with(&|sent| sent["ranks"] = json!({ (key.as_str()): 1 })).contains("a rank for each"));
    assert!(with(&|sent| sent["kind"] = "best".into()).contains("kind"));
    assert!(with(&|sent| sent["kind"] = "flag".into()).contains("reason"));
    assert!(with(&|sent| sent["id"] = "../x".into()).contains("id"));
    assert!(with(&|sent| sent["grades"] = json!({ (key.as_str()): {"style": "good"} })).contains("style"));
    assert!(with(&|sent| sent["grades"] = json!({ (key.as_str()): {"safety": "great"} })).contains("great"));
    assert_eq!(ranking.ask("/api/next", &json!({}), &[]).0, 401, "nobody");
    assert!(ranking.store.history().unwrap().is_empty());
    let mut graded = good.clone();
    graded["grades"] = json!({ (key.as_str()): {"safety": "bad", "accuracy": "good"} });
    ranking.post("/api/judge", &graded);
    assert_eq!(ranking.current()[0].judgement.as_ref().unwrap().grades.len(), 1);
}

#[test]
fn a_body_that_is_too_large_is_refused() {
    let ranking = Ranking::new(&two_answers(1), plain());
    let raw = |head: &str, body: &[u8]| {
        let mut stream = TcpStream::connect(ranking.server.address()).unwrap();
        let head = format!("POST /api/draft HTTP/1.1\r\nHost: localhost\r\n{head}\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body).ok();
        let mut text = Vec::new();
        stream.read_to_end(&mut text).ok();
        String::from_utf8_lossy(&text).into_owned()
    };
    assert!(raw("Content-Length: 67108864", b"").starts_with("HTTP/1.1 413 "));
    let chunk = [format!("{:x}\r\n", 300 << 10).as_bytes(), &vec![b'x'; 300 << 10], b"\r\n"].concat();
    assert!(raw("Transfer-Encoding: chunked", &chunk).starts_with("HTTP/1.1 413 "));
    ranking.post("/api/next", &json!({"annotator": "anna"}));
}

/// Judges until nothing is left; every judgement is sent twice now and then, as after a lost connection.
fn work(ranking: &Ranking, name: &str, thread: usize) -> usize {
    let mut count = 0;
    loop {
        let next = ranking.post("/api/next", &json!({"annotator": name}));
        if next["task"].is_null() {
            return count;
        }
        let sent = judgement(name, &format!("{name}-{thread}-{count}"), &next["task"]);
        ranking.post("/api/draft", &json!({"annotator": name, "item": next["task"]["item"], "draft": {"n": 1}}));
        for _ in 0..=count % 2 {
            ranking.post("/api/judge", &sent);
        }
        count += 1;
    }
}

#[test]
fn two_annotators_race_through_200_items_without_a_double_or_a_loss() {
    for overlap in [1, 2] {
        let policy = Policy { overlap, ..plain().policy };
        let ranking = Ranking::new(&two_answers(200), FeedbackOptions { policy, ..plain() });
        let counts: Vec<usize> = std::thread::scope(|scope| {
            let names = ["anna", "ben"].map(|name| {
                let ranking = &ranking;
                scope.spawn(move || work(ranking, name, 0))
            });
            names.map(|thread| thread.join().unwrap()).to_vec()
        });
        let rows = ranking.store.history().unwrap();
        let expected = 200 * overlap as usize;
        assert_eq!((rows.len(), counts.iter().sum::<usize>()), (expected, expected), "{counts:?}");
        let pairs: HashSet<(String, i64)> = rows.iter().map(|row| (row.item.clone(), row.annotator.0)).collect();
        let items: HashSet<&String> = rows.iter().map(|row| &row.item).collect();
        assert_eq!((pairs.len(), items.len()), (expected, 200));
        assert!(rows.iter().all(|row| row.supersedes.is_none()));
        if overlap == 1 {
            assert!(counts.iter().all(|count| *count > 20), "both had a share: {counts:?}");
        }
    }
}

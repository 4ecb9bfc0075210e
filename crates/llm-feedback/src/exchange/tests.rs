use llm_data::{ChatMessage, ReadOptions, Warnings, read_rankings};

use super::*;
use crate::store::{AnnotatorId, Grade, Grades, Judgement, Kind, NewAnswer, NewItem, Ranks};

const ALL: [Format; 6] = [Format::Trl, Format::Kway, Format::Kto, Format::Arena, Format::Argilla, Format::Labelstudio];

fn answer(id: &str, text: &str, checkpoint: &str) -> NewAnswer {
    NewAnswer { checkpoint: Some(checkpoint.to_owned()), ..NewAnswer::text(id, text) }
}

fn judgement(id: &str, item: &str, annotator: AnnotatorId, ranks: &[(&str, u32)], shown: &[&str]) -> Judgement {
    let ranks: Ranks = ranks.iter().map(|(answer, rank)| ((*answer).to_owned(), *rank)).collect();
    Judgement {
        id: id.to_owned(),
        item: item.to_owned(),
        annotator,
        kind: Kind::Rank { ranks },
        shown: shown.iter().map(|&id| id.to_owned()).collect(),
        grades: Grades::new(),
        reason: None,
        started: 0,
        ms_visible: 1000,
        repeat_of: None,
        guideline_version: None,
    }
}

/// Two items, two judges: ties, a partial ranking, an "all bad", a skip, a repeat, grades.
fn sample() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("votes.sqlite")).unwrap();
    let turns =
        vec![ChatMessage::user("Grüße <\u{1f980}>?"), ChatMessage::assistant("Ja."), ChatMessage::user("\"Und\"?\n")];
    let item = |id: &str, prompt: Vec<ChatMessage>, answers: Vec<NewAnswer>| NewItem {
        id: id.to_owned(),
        prompt,
        source: "test".to_owned(),
        gold_order: None,
        answers,
    };
    let three = vec![answer("x", "eins", "runs/a"), answer("y", "zwei", "runs/b"), answer("z", "drei", "runs/c")];
    let two = vec![answer("x", "one", "runs/a"), answer("y", "two", "runs/b")];
    store.add_items(&[item("b", turns, three), item("a", vec![ChatMessage::user("q")], two)]).unwrap();
    let (ann, bea) = (store.annotator("ann").unwrap(), store.annotator("bea").unwrap());
    let good = |id: &str, grade| (id.to_owned(), [("accuracy".to_owned(), grade)].into());
    let graded = Judgement {
        grades: [good("x", Grade::Good), good("y", Grade::Bad), good("z", Grade::Acceptable)].into(),
        ..judgement("1", "b", ann, &[("x", 1), ("y", 2), ("z", 2)], &["z", "x", "y"])
    };
    store.judge(&graded, 1_700_000_000_123).unwrap();
    let partial = judgement("2", "b", bea, &[("x", 2), ("z", 1)], &["x", "y", "z"]);
    store.judge(&partial, 1_700_000_000_100).unwrap();
    store.judge(&judgement("3", "a", ann, &[("x", 1), ("y", 2)], &["y", "x"]), 5000).unwrap();
    let repeat =
        Judgement { repeat_of: Some("3".to_owned()), ..judgement("4", "a", ann, &[("x", 2), ("y", 1)], &["y", "x"]) };
    store.judge(&repeat, 6000).unwrap();
    let bad = Judgement { kind: Kind::AllBad, ..judgement("5", "a", bea, &[], &["x", "y"]) };
    store.judge(&bad, 7000).unwrap();
    let cyd = store.annotator("cyd").unwrap();
    store.judge(&Judgement { kind: Kind::Skip, ..judgement("6", "a", cyd, &[], &["x", "y"]) }, 8000).unwrap();
    (dir, store)
}

#[test]
fn pairs_for_trl_have_these_bytes() {
    let (_dir, store) = sample();
    let (text, done) = export(&store, Format::Trl).unwrap();
    let expected = r#"{"prompt":[{"role":"user","content":"q"}],"chosen":[{"role":"assistant","content":"one"}],"rejected":[{"role":"assistant","content":"two"}]}
{"prompt":[{"role":"user","content":"Grüße <🦀>?"},{"role":"assistant","content":"Ja."},{"role":"user","content":"\"Und\"?\n"}],"chosen":[{"role":"assistant","content":"drei"}],"rejected":[{"role":"assistant","content":"eins"}]}
{"prompt":[{"role":"user","content":"Grüße <🦀>?"},{"role":"assistant","content":"Ja."},{"role":"user","content":"\"Und\"?\n"}],"chosen":[{"role":"assistant","content":"eins"}],"rejected":[{"role":"assistant","content":"zwei"}]}
{"prompt":[{"role":"user","content":"Grüße <🦀>?"},{"role":"assistant","content":"Ja."},{"role":"user","content":"\"Und\"?\n"}],"chosen":[{"role":"assistant","content":"eins"}],"rejected":[{"role":"assistant","content":"drei"}]}
"#;
    assert_eq!(text, expected);
    let left_out = [("all bad", 1), ("repeats", 1), ("skipped", 1), ("tied pairs", 1)];
    assert_eq!((done.records, done.left_out), (4, left_out.into()));
}

#[test]
fn the_other_formats_have_these_bytes() {
    let (_dir, store) = sample();
    let first = |format| export(&store, format).unwrap().0.lines().next().unwrap().to_owned();
    for (format, expected) in [
        (
            Format::Kway,
            r#"{"id":"a","prompt":[{"role":"user","content":"q"}],"answers":["one","two"],"ranks":[1,2],"annotator":"ann","shown":[1,0]}"#,
        ),
        (
            Format::Kto,
            r#"{"prompt":[{"role":"user","content":"q"}],"completion":[{"role":"assistant","content":"one"}],"label":false}"#,
        ),
        (
            Format::Arena,
            r#"{"question_id":"a","model_a":"runs/b","model_b":"runs/a","winner":"model_b","judge":"ann","conversation_a":[{"role":"user","content":"q"},{"role":"assistant","content":"two"}],"conversation_b":[{"role":"user","content":"q"},{"role":"assistant","content":"one"}],"turn":1,"anony":true,"language":"unknown","tstamp":5.0}"#,
        ),
        (
            Format::Argilla,
            r#"{"external_id":"a","prompt":[{"role":"user","content":"q"}],"response-1":"one","response-2":"two","ranking":[{"user_id":"ann","status":"submitted","value":{"rank":[1,2],"value":["response-1","response-2"]}}]}"#,
        ),
    ] {
        assert_eq!(first(format), expected, "{format:?}");
    }
    let (text, _) = export(&store, Format::Labelstudio).unwrap();
    let line = r#"{"id":1,"data":{"id":"a","prompt":[{"role":"user","content":"q"}],"answers":[{"id":"x","body":"one"},{"id":"y","body":"two"}]},"annotations":[{"completed_by":{"email":"ann"},"was_cancelled":false,"result":[{"from_name":"rank","to_name":"prompt","type":"ranker","value":{"ranker":{"1":["x"],"2":["y"]}}}]}]},"#;
    assert_eq!(text.lines().nth(1).unwrap(), line);
    assert!(
        text.starts_with("[\n")
            && text.ends_with("\n]\n")
            && text.contains(r#"{"ranker":{"1":["z"],"2":["x"],"_":["y"]}}"#),
        "{text}"
    );
    assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok());
    let kto = export(&store, Format::Kto).unwrap();
    assert_eq!((kto.0.lines().count(), kto.1.left_out["acceptable answers"]), (4, 1));
    let winners: Vec<&str> = ["model_a", "model_b", "tie\"", "tie (bothbad)"].to_vec();
    let arena = export(&store, Format::Arena).unwrap().0;
    assert!(winners.iter().all(|winner| arena.contains(&format!("\"winner\":\"{winner}"))), "{arena}");
}

#[test]
fn a_file_that_is_imported_is_exported_with_the_same_bytes() {
    let (dir, store) = sample();
    for format in ALL {
        let (text, done) = export(&store, format).unwrap();
        assert!(done.records > 0 && !text.contains('\r') && text.ends_with('\n'));
        let path = dir.path().join(format!("{format:?}.json"));
        std::fs::write(&path, &text).unwrap();
        let other = Store::open(dir.path().join(format!("{format:?}.sqlite"))).unwrap();
        let imported = import(&other, &path, format, "somebody").unwrap();
        assert!(imported.judgements > 0 && imported.present == 0, "{format:?}: {imported:?}");
        assert_eq!(export(&other, format).unwrap().0, text, "{format:?}");
        let again = import(&other, &path, format, "somebody").unwrap();
        assert_eq!((again.judgements, again.items.added), (0, 0), "{format:?}: twice");
        assert_eq!(again.present, imported.judgements, "{format:?}");
        assert_eq!(export(&other, format).unwrap().0, text, "{format:?}: twice");
        assert_eq!(export(&other, format).unwrap().0, export(&other, format).unwrap().0);
    }
}

#[test]
fn judgements_of_known_items_join_those_of_the_database() {
    let (dir, store) = sample();
    let (text, _) = export(&store, Format::Kway).unwrap();
    let path = dir.path().join("votes.jsonl");
    std::fs::write(&path, text.replace("\"ann\"", "\"dan\"")).unwrap();
    let before = store.item_count().unwrap();
    let imported = import(&store, &path, Format::Kway, "").unwrap();
    assert_eq!((imported.items.added, store.item_count().unwrap()), (0, before));
    // Those of dan are new; that of bea is, under another id, her judgement again.
    assert_eq!(imported.judgements, 3);
    let current = store.current().unwrap();
    assert_eq!(current.iter().filter(|row| row.annotator_name == "dan").count(), 2);
    assert_eq!(current.iter().filter(|row| row.annotator_name == "bea").count(), 2);
    std::fs::write(&path, export(&store, Format::Kway).unwrap().0.replace("drei", "vier")).unwrap();
    let error = import(&store, &path, Format::Kway, "").unwrap_err().to_string();
    assert!(error.contains("line 3: item \"b\" has another prompt or other answers"), "{error}");
}

#[test]
fn exported_pairs_and_rankings_are_training_data() {
    let (dir, store) = sample();
    for (format, rankings, ignored) in [(Format::Trl, 4, vec![]), (Format::Kway, 3, vec!["annotator", "shown"])] {
        let path = dir.path().join("data.jsonl");
        std::fs::write(&path, export(&store, format).unwrap().0).unwrap();
        let read = read_rankings(&path, &ReadOptions { strict: true, ..ReadOptions::default() }).unwrap();
        assert_eq!(read.rankings.len(), rankings, "{format:?}");
        let Warnings { ignored_keys, empty_ranked, equal_answers, ties, .. } = read.warnings;
        assert_eq!((empty_ranked, equal_answers, ties), (0, 0, 0));
        assert!(ignored_keys.is_empty() || ignored_keys.into_iter().eq(ignored), "{format:?}");
    }
    let read = read_rankings(dir.path().join("data.jsonl"), &ReadOptions::default()).unwrap();
    assert_eq!(read.rankings[2].order, [vec![0], vec![1, 2]]);
}

#[test]
fn records_in_another_form_are_errors_that_name_the_line() {
    let (dir, store) = sample();
    let battle = |question: &str, winner: &str, a: &str, b: &str| {
        format!(
            r#"{{"question_id":"{question}","model_a":"m","model_b":"n","winner":"{winner}","judge":"j","conversation_a":[{{"role":"user","content":"q"}},{{"role":"assistant","content":"{a}"}}],"conversation_b":[{{"role":"user","content":"q"}},{{"role":"assistant","content":"{b}"}}],"turn":1,"anony":true,"language":"English","tstamp":1.5}}"#
        )
    };
    let cycle = [("x", "y"), ("y", "z"), ("z", "x")]
        .map(|(a, b)| battle("c", "model_a", a, b).replace("\"n\"", "\"m\""))
        .join("\n");
    for (format, content, part) in [
        (Format::Kway, "{\"id\": \"1\"}".to_owned(), "line 1: missing field `prompt`; a record must be {\"id\""),
        (
            Format::Kway,
            r#"{"id":"1","prompt":[{"role":"user","content":"q"}],"answers":["x","y"],"ranks":[1],"annotator":"a","shown":[0,1]}"#.to_owned(),
            "has 1 ranks for 2 answers",
        ),
        (
            Format::Kway,
            r#"{"id":"1","prompt":[{"role":"user","content":"q"}],"answers":["x","y"],"ranks":[1,2],"annotator":"a","shown":[0,2]}"#.to_owned(),
            "\"shown\" must contain indices",
        ),
        (Format::Arena, cycle, "the battles of j at this time are not the pairs of one ranking"),
        (Format::Arena, battle("c", "left", "x", "y"), "unknown variant `left`"),
        (Format::Arena, battle("c", "tie", "x", "x").replace("\"n\"", "\"m\""), "both answers are the same"),
        (Format::Kto, "{\"prompt\": [], \"completion\": [], \"label\": true}".to_owned(), "line 1"),
        (
            Format::Argilla,
            r#"{"external_id":"1","prompt":[{"role":"user","content":"q"}],"response-1":"x","response-2":"y","ranking":[{"user_id":"u","status":"submitted","value":{"rank":[1],"value":["response-3"]}}]}"#.to_owned(),
            "ranks \"response-3\", which is no field",
        ),
        (
            Format::Labelstudio,
            r#"[{"id":1,"data":{"id":"1","prompt":[{"role":"user","content":"q"}],"answers":[{"id":"x","body":"x"},{"id":"y","body":"y"}]},"annotations":[{"completed_by":{"email":"e"},"was_cancelled":false,"result":[]}]}]"#.to_owned(),
            "an annotation must have a ranker",
        ),
    ] {
        let path = dir.path().join("wrong.jsonl");
        std::fs::write(&path, content).unwrap();
        let before = (store.item_count().unwrap(), store.history().unwrap().len());
        let error = import(&store, &path, format, "a").unwrap_err();
        assert!(error.to_string().contains(part) && error.is_callers_fault(), "{error}");
        assert_eq!((store.item_count().unwrap(), store.history().unwrap().len()), before);
    }
    // A battle of the arena is a ranking of two answers.
    let path = dir.path().join("battle.jsonl");
    std::fs::write(&path, battle("q", "tie (bothbad)", "x", "y")).unwrap();
    assert_eq!(import(&store, &path, Format::Arena, "").unwrap().judgements, 1);
}

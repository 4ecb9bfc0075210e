use llm_tokenizer::ChatMessage;

use super::*;
use crate::store::{Grades, Judgement, Kind, NewAnswer, NewItem, Policy, Ranks, now};

fn item(id: &str, gold: bool) -> NewItem {
    let answer = |id: &str, text: &str, checkpoint: &str| NewAnswer {
        checkpoint: Some(checkpoint.to_owned()),
        ..NewAnswer::text(id, text)
    };
    NewItem {
        id: id.to_owned(),
        prompt: vec![ChatMessage::user("q")],
        source: "test".to_owned(),
        gold_order: gold.then(|| Ranks::from([("a".to_owned(), 1), ("b".to_owned(), 2)])),
        answers: vec![answer("a", "a long answer", "big"), answer("b", "short", "small")],
    }
}

/// A judgement of an item with the ranks of a and b, with a shown first.
fn judge(store: &Store, name: &str, item: &str, ranks: (u32, u32), id: &str) -> Judgement {
    let judgement = Judgement {
        id: id.to_owned(),
        item: item.to_owned(),
        annotator: store.annotator(name).unwrap(),
        kind: Kind::Rank { ranks: [("a".to_owned(), ranks.0), ("b".to_owned(), ranks.1)].into() },
        shown: vec!["a".to_owned(), "b".to_owned()],
        grades: Grades::new(),
        reason: None,
        started: 0,
        ms_visible: 4000,
        repeat_of: None,
        guideline_version: None,
    };
    store.judge(&judgement, now()).unwrap();
    judgement
}

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("votes.sqlite")).unwrap();
    let items = ["1", "2", "3", "4"].map(|id| item(id, false));
    store.add_items(&items).unwrap();
    store.add_items(&[item("gold", true)]).unwrap();
    (dir, store)
}

#[test]
fn each_number_is_of_the_judgements_that_it_is_about() {
    let (_dir, store) = store();
    for (name, item, ranks, id) in [
        ("ann", "1", (1, 2), "a1"),
        ("bea", "1", (1, 2), "b1"),
        ("ann", "2", (1, 2), "a2"),
        ("bea", "2", (2, 1), "b2"),
        ("ann", "3", (1, 1), "a3"),
        ("ann", "gold", (1, 2), "ag"),
        ("bea", "gold", (1, 1), "bg"),
    ] {
        judge(&store, name, item, ranks, id);
    }
    let first = judge(&store, "ann", "4", (2, 1), "undone");
    store.undo(first.annotator, "u", &Policy::default(), now()).unwrap();
    for (id, kind, reason) in [("s", Kind::Skip, "too long"), ("s2", Kind::AllBad, ""), ("s3", Kind::Flag, "unsafe")] {
        let annotator = store.annotator(id).unwrap();
        let reason = Some(reason.to_owned());
        store
            .judge(&Judgement { id: id.to_owned(), kind, reason, annotator, ms_visible: 100, ..first.clone() }, now())
            .unwrap();
    }
    let again = |id: &str, item: &str, ranks| Judgement {
        id: format!("again-{id}"),
        repeat_of: Some(id.to_owned()),
        item: item.to_owned(),
        kind: Kind::Rank { ranks },
        ..first.clone()
    };
    let ranks = |a, b| Ranks::from([("a".to_owned(), a), ("b".to_owned(), b)]);
    store.judge(&again("a1", "1", ranks(1, 2)), now()).unwrap();
    store.judge(&again("a2", "2", ranks(2, 1)), now()).unwrap();

    let found = report(&store, &ReportOptions::default()).unwrap();
    let shares = |share: Option<Share>| share.map(|share| (share.share, share.count)).unwrap();
    assert_eq!((found.items, found.judged_items, found.judgements), (5, 3, 12));
    assert_eq!(shares(found.agreement), (0.5, 2));
    assert_eq!(shares(found.self_agreement), (0.5, 2));
    assert_eq!(shares(found.gold_accuracy), (0.5, 2), "a tie is not the known order");
    assert_eq!(shares(found.first_shown_wins), (0.75, 4));
    assert_eq!(shares(found.longer_wins), (0.75, 4));
    assert_eq!(shares(found.ties), (0.2, 5));
    assert_eq!(shares(found.too_fast), (0.25, 12));
    // Units a1, b1, a2, b2 of items 1 and 2: (1, 1), (2, 2), (1, 2), (2, 1); the package `krippendorff` gives 0.125.
    assert!((found.krippendorff_alpha.unwrap() - 0.125).abs() < 1e-12, "{:?}", found.krippendorff_alpha);
    let kappa = &found.kappas[0];
    assert_eq!((kappa.judges.join(" "), kappa.pairs, kappa.kappa), ("ann bea".to_owned(), 2, Some(0.)));
    let big = &found.strengths.checkpoints[0];
    assert_eq!((big.checkpoint.as_str(), big.wins, big.losses, big.ties), ("big", 3, 1, 1));
    let expected = 1000. + 200. / std::f64::consts::LN_10 * (3.5_f64 / 1.5).ln();
    assert!((big.elo.unwrap() - expected).abs() < 1e-6, "{big:?}");
    let excluded = [
        ("all answers bad: no ranking", 1),
        ("flagged: unsafe", 1),
        ("gold items: only in the gold accuracy", 2),
        ("items with one judge: not in the agreement", 1),
        ("repeats: only in the self-agreement", 2),
        ("skipped: too long", 1),
        ("undone judgements", 1),
    ];
    assert_eq!(found.excluded, excluded.map(|(reason, count)| (reason.to_owned(), count)).into());
    let text = found.to_string();
    for line in ["pairwise agreement       50.0 %", "Krippendorff's alpha    0.125", "undone judgements", "big"] {
        assert!(text.contains(line), "{text}");
    }
    let json = serde_json::to_value(&found).unwrap();
    assert_eq!(json["gold_accuracy"]["share"], 0.5);
}

#[test]
fn a_partial_ranking_has_no_mean_ranks_and_ties_share_theirs() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("votes.sqlite")).unwrap();
    let answers = ["a", "b", "c"].map(|id| NewAnswer::text(id, id)).to_vec();
    store.add_items(&[NewItem { answers, ..item("1", false) }]).unwrap();
    judge(&store, "ann", "1", (1, 1), "partial");
    let whole = judge(&store, "bea", "1", (1, 1), "whole");
    let ranks = Ranks::from([("a".to_owned(), 1), ("b".to_owned(), 1), ("c".to_owned(), 2)]);
    let shown = ["c", "a", "b"].map(str::to_owned).to_vec();
    store.judge(&Judgement { id: "w2".to_owned(), kind: Kind::Rank { ranks }, shown, ..whole }, now()).unwrap();
    let data = Data::read(&store).unwrap();
    let ranks: Vec<_> = data.ranked[0].iter().map(Ranked::mean_ranks).collect();
    assert_eq!(ranks, [None, Some(vec![1.5, 1.5, 3.])]);
    let found = report(&store, &ReportOptions::default()).unwrap();
    assert_eq!(found.excluded["judgements that the annotator replaced"], 1);
    assert_eq!(found.excluded["rankings of some answers only: not in Krippendorff's alpha"], 1);
    assert_eq!(found.excluded["pairs of answers without a checkpoint: not in the strengths"], 4);
    assert_eq!((found.krippendorff_alpha, found.strengths.checkpoints.len()), (None, 0));
}

#[test]
fn an_empty_database_has_a_report() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("votes.sqlite")).unwrap();
    let found = report(&store, &ReportOptions::default()).unwrap();
    assert!(found.agreement.is_none() && found.excluded.is_empty());
    assert!(found.to_string().starts_with("0 items, 0 of them ranked, 0 judgements\n"), "{found}");
}

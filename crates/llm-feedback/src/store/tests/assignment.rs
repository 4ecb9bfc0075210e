use super::*;

#[test]
fn a_lease_that_is_over_gives_the_item_to_others_and_loses_no_work() {
    let (_dir, store) = store(&items(1));
    let policy = Policy { lease: Duration::from_millis(100), ..plain(1) };
    let (ann, bea) = (store.annotator("ann").unwrap(), store.annotator("bea").unwrap());
    let task = store.next(ann, &policy, 0).unwrap().unwrap();
    assert_eq!(store.next(bea, &policy, 50).unwrap(), None);
    assert_eq!(store.heartbeat(ann, &task.item, &policy, 90).unwrap(), Some(190));
    assert_eq!(store.next(bea, &policy, 150).unwrap(), None, "kept by the heartbeat");
    assert_eq!(store.heartbeat(ann, &task.item, &policy, 190).unwrap(), None, "over");
    assert_eq!(store.next(bea, &policy, 190).unwrap().unwrap().item, task.item);
    assert_eq!(store.next(ann, &policy, 200).unwrap(), None, "bea has it");
    assert_eq!(store.judge(&judgement("late", &task, ann), 210).unwrap(), Judged::Accepted);
    assert_eq!(store.judge(&judgement("bea", &task, bea), 220).unwrap(), Judged::Accepted);
    assert_eq!(store.current().unwrap().len(), 2);
}

#[test]
fn a_lease_that_is_over_is_taken_again_if_nobody_else_has_the_item() {
    let (_dir, store) = store(&items(2));
    let policy = Policy { lease: Duration::from_millis(100), ..plain(1) };
    let (ann, bea) = (store.annotator("ann").unwrap(), store.annotator("bea").unwrap());
    let task = store.next(ann, &policy, 0).unwrap().unwrap();
    store.save_draft(ann, &task.item, &json!("x")).unwrap();
    let again = store.next(ann, &policy, 5000).unwrap().unwrap();
    assert_eq!((&again.item, again.draft), (&task.item, Some(json!("x"))));
    assert_ne!(store.next(bea, &policy, 5010).unwrap().unwrap().item, task.item);
}

#[test]
fn skipped_items_go_to_others_and_flagged_ones_to_nobody() {
    let (_dir, store) = store(&items(2));
    let (ann, bea, policy) = (store.annotator("ann").unwrap(), store.annotator("bea").unwrap(), plain(1));
    let task = store.next(ann, &policy, 0).unwrap().unwrap();
    store.judge(&Judgement { kind: Kind::Skip, ..judgement("skip", &task, ann) }, 1).unwrap();
    let task = store.next(ann, &policy, 2).unwrap().unwrap();
    let flag = Judgement { kind: Kind::Flag, reason: Some("unsafe".to_owned()), ..judgement("flag", &task, ann) };
    store.judge(&flag, 3).unwrap();
    assert_eq!(store.next(ann, &policy, 4).unwrap(), None);
    assert_eq!(judge_all(&store, bea, &policy), ["item 0000"]);
    // The flag is undone: the item has a place again. The skipped one has gone to bea.
    assert_eq!(store.undo(ann, "u1", &policy, 5).unwrap().as_deref(), Some("item 0001"));
    assert_eq!(store.undo(ann, "u2", &policy, 6).unwrap().as_deref(), Some("item 0000"));
    assert_eq!(store.next(bea, &policy, 7).unwrap(), None, "ann has the flagged item again");
    assert_eq!(judge_all(&store, ann, &policy), ["item 0001"]);
}

#[test]
fn gold_items_and_repeats_come_at_their_rate_and_are_not_announced() {
    let mut all = items(300);
    all.extend((0..30).map(|at| gold(&format!("gold {at:02}"))));
    let (_dir, store) = store(&all);
    let policy = Policy { overlap: 2, ..Policy::default() };
    let mut places = Vec::new();
    for name in ["ann", "bea"] {
        let annotator = store.annotator(name).unwrap();
        let (mut own, mut golds, mut repeats, mut at) = (Vec::new(), Vec::new(), 0, 0);
        while let Some(task) = store.next(annotator, &policy, at).unwrap() {
            if let Some(earlier) = &task.repeat_of {
                repeats += 1;
                let gap = own.len() - own.iter().position(|(id, _)| id == earlier).unwrap();
                assert!(gap > 5, "too soon");
                let (_, first): &(String, Task) = own.iter().find(|(id, _)| id == earlier).unwrap();
                assert_eq!(first.item, task.item);
            } else if task.item.starts_with("gold") {
                golds.push(own.len());
            }
            let id = format!("{name}-{at}");
            store.judge(&judgement(id.clone(), &task, annotator), at).unwrap();
            if task.repeat_of.is_none() {
                own.push((id, task));
            }
            at += 1;
        }
        // 300 items and one gold item in each block of 20.
        assert_eq!(golds.iter().map(|at| at / 20).collect::<Vec<_>>(), (0..golds.len()).collect::<Vec<_>>());
        assert!((15..=16).contains(&golds.len()) && (9..=11).contains(&repeats), "{} {repeats}", golds.len());
        places.push(golds);
    }
    assert_ne!(places[0], places[1]);
    let repeats =
        store.current().unwrap().iter().filter(|row| row.judgement.as_ref().unwrap().repeat_of.is_some()).count();
    assert!(repeats >= 18, "the store knows from the lease that a judgement is a repeat");
}

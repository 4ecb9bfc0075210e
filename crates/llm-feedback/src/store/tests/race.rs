use std::collections::BTreeSet;
use std::sync::Barrier;

use super::*;

/// Two annotators judge until nothing is left, each on a thread, with a clone of one handle or with a handle of its own.
fn race(overlap: u32, own_handles: bool) {
    let (dir, store) = store(&items(200));
    let policy = plain(overlap);
    let names = ["ann", "bea"];
    let annotators = names.map(|name| store.annotator(name).unwrap());
    let start = Barrier::new(2);
    let judged: Vec<Vec<String>> = std::thread::scope(|scope| {
        let threads = annotators.map(|annotator| {
            let (path, policy, start) = (dir.path().join("votes.sqlite"), &policy, &start);
            let store = if own_handles { Store::open(path).unwrap() } else { store.clone() };
            scope.spawn(move || {
                start.wait();
                judge_all(&store, annotator, policy)
            })
        });
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let current = store.current().unwrap();
    assert_eq!(current.len(), 200 * overlap as usize, "no loss");
    let distinct: BTreeSet<_> = current.iter().map(|row| (row.item.as_str(), row.annotator)).collect();
    assert_eq!(distinct.len(), current.len(), "no double");
    assert_eq!(judged.concat().len(), current.len(), "what was acknowledged");
    if overlap == 1 {
        assert_eq!(judged.concat().into_iter().collect::<BTreeSet<_>>().len(), 200);
        assert!(judged.iter().all(|own| !own.is_empty()), "both took part");
    }
}

#[test]
fn two_annotators_race_without_a_double_or_a_loss() {
    race(1, false);
    race(1, true);
    race(2, true);
}

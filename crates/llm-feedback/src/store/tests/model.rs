use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Step {
    Next(usize),
    Judge(usize, u8),
    Resend(usize),
    Undo(usize),
    Wait(i64),
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..3usize).prop_map(Step::Next),
        4 => (0..3usize, 0..4u8).prop_map(|(who, kind)| Step::Judge(who, kind)),
        1 => (0..3usize).prop_map(Step::Resend),
        2 => (0..3usize).prop_map(Step::Undo),
        1 => (0..150i64).prop_map(Step::Wait),
        1 => Just(Step::Reopen),
    ];
    proptest::collection::vec(step, 1..60)
}

/// What must be in the database, in memory: the current judgement of each annotator and item, and all ids in order.
#[derive(Default)]
struct Model {
    stacks: [Vec<(String, String)>; 3],
    rows: Vec<String>,
    leases: BTreeMap<(usize, String), i64>,
    kinds: BTreeMap<String, u8>,
}

impl Model {
    /// The annotators other than `who` who have judged the item or have a lease.
    fn others(&self, who: usize, item: &str, now: i64) -> usize {
        (0..3)
            .filter(|&other| other != who)
            .filter(|&other| {
                let judged = self.stacks[other].iter().any(|(id, of)| of == item && self.kinds[id] < 2);
                judged || self.leases.get(&(other, item.to_owned())).is_some_and(|&until| until > now)
            })
            .count()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_operations_agrees_with_a_model_in_memory(steps in steps()) {
        let (dir, mut store) = store(&items(4));
        let policy = Policy { lease: Duration::from_millis(100), ..plain(2) };
        let annotators = ["ann", "bea", "cyd"].map(|name| store.annotator(name).unwrap());
        let (mut model, mut now, mut tasks) = (Model::default(), 0, [None, None, None]);
        let mut sent: [Option<Judgement>; 3] = [None, None, None];
        for (number, step) in steps.into_iter().enumerate() {
            now += 1;
            match step {
                Step::Next(who) => {
                    let task = store.next(annotators[who], &policy, now).unwrap();
                    if let Some(task) = &task {
                        // Another annotator may judge an item late, after its lease is over, while this one has it.
                        let held = model.leases.get(&(who, task.item.clone())).is_some_and(|&until| until > now);
                        prop_assert!(held || model.others(who, &task.item, now) < 2, "given beyond the overlap");
                        prop_assert!(!model.stacks[who].iter().any(|(_, item)| item == &task.item));
                        model.leases.insert((who, task.item.clone()), task.lease_until);
                    }
                    tasks[who] = task;
                }
                Step::Judge(who, kind) => if let Some(task) = tasks[who].take() {
                    let made = judgement(format!("j{number}"), &task, annotators[who]);
                    let kinds = [made.kind.clone(), Kind::AllBad, Kind::Skip, Kind::Flag];
                    let made = Judgement { kind: kinds[kind as usize].clone(), reason: Some("r".to_owned()), ..made };
                    prop_assert_eq!(store.judge(&made, now).unwrap(), Judged::Accepted);
                    model.stacks[who].retain(|(_, item)| item != &task.item);
                    model.stacks[who].push((made.id.clone(), task.item.clone()));
                    model.kinds.insert(made.id.clone(), kind);
                    model.rows.push(made.id.clone());
                    model.leases.remove(&(who, task.item));
                    sent[who] = Some(made);
                },
                Step::Resend(who) => if let Some(made) = &sent[who] {
                    prop_assert_eq!(store.judge(made, now).unwrap(), Judged::Repeated);
                },
                Step::Undo(who) => {
                    let id = format!("u{number}");
                    let undone = store.undo(annotators[who], &id, &policy, now).unwrap();
                    let expected = model.stacks[who].pop();
                    prop_assert_eq!(&undone, &expected.as_ref().map(|(_, item)| item.clone()));
                    if let Some((_, item)) = expected {
                        model.rows.push(id);
                        let flagged = model.stacks.iter().flatten().any(|(id, of)| of == &item && model.kinds[id] == 3);
                        if model.others(who, &item, now) < 2 && !flagged {
                            model.leases.insert((who, item), now + 100);
                        }
                    }
                }
                Step::Wait(time) => now += time,
                Step::Reopen => store = Store::open_existing(dir.path().join("votes.sqlite")).unwrap(),
            }
            let expected: BTreeSet<_> = model.stacks.iter().flatten().map(|(id, _)| id.clone()).collect();
            prop_assert_eq!(store.current().unwrap().into_iter().map(|row| row.id).collect::<BTreeSet<_>>(), expected);
        }
        prop_assert_eq!(store.history().unwrap().into_iter().map(|row| row.id).collect::<Vec<_>>(), model.rows);
    }
}

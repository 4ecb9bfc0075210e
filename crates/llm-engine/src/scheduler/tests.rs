//! The scheduler with a simulated model, whose "keys and values" are the tokens that they depend on.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use proptest::prelude::*;

use super::*;

const PAGE: usize = 4;
const BUDGET: Budget = Budget { beside_decode: 6, alone: 16, whole_pages: false };

fn request(priority: i32, key: u8) -> Waiting {
    Waiting { priority, key: Some(key.to_string()), since: Duration::ZERO, cost: 10 }
}

fn root() -> PageKey {
    PageKey::root("", "")
}

/// What the keys and values of a token depend on: all tokens up to it.
fn content(ids: &[u32]) -> u64 {
    let mut hasher = DefaultHasher::new();
    ids.hash(&mut hasher);
    hasher.finish()
}

/// A scheduler with a pool whose slots have the [`content`] of their token.
struct Simulation {
    scheduler: Scheduler,
    slots: Vec<u64>,
    /// The number of tokens that each sequence still generates, and whether it is paused.
    left: BTreeMap<u64, (usize, bool)>,
    steps: u64,
    next: u64,
    budget: Budget,
}

impl Simulation {
    fn new(pages: usize) -> Self {
        let (scheduler, slots) = (Scheduler::new(pages, PAGE, 5), vec![0; pages * PAGE]);
        Self { scheduler, slots, left: BTreeMap::new(), steps: 0, next: 0, budget: BUDGET }
    }

    fn add(&mut self, ids: Vec<u32>, tokens: usize, request: Waiting) -> u64 {
        self.next += 1;
        self.scheduler.add(self.next, ids, root(), true, request);
        self.left.insert(self.next, (tokens, false));
        self.next
    }

    fn slot(&self, id: u64, at: usize) -> usize {
        self.scheduler.table(id)[at / PAGE] as usize * PAGE + at % PAGE
    }

    /// Plans and "computes" a step.
    fn step(&mut self) -> Step {
        self.steps += 1;
        let ready: BTreeSet<u64> = self.ready();
        let step = self.scheduler.plan(Duration::from_secs(self.steps), self.budget);
        for row in &step.rows {
            let ids = self.scheduler.ids(row.id).to_vec();
            for at in 0..row.from {
                assert_eq!(self.slots[self.slot(row.id, at)], content(&ids[..=at]), "token {at} of {row:?}");
            }
            for at in row.from..row.from + row.count {
                let slot = self.slot(row.id, at);
                assert_eq!(self.scheduler.pages.users()[slot / PAGE], 1, "{row:?} writes into a shared page");
                self.slots[slot] = content(&ids[..=at]);
            }
        }
        let planned: BTreeSet<u64> = step.rows.iter().map(|row| row.id).collect();
        assert_eq!(planned.len(), step.rows.len(), "one row for each sequence");
        let missing = ready.difference(&planned).filter(|id| self.scheduler.sequences[id].running).count();
        assert_eq!(missing, 0, "every sequence that generates is in each step");
        for row in &step.rows {
            self.scheduler.set_computed(row.id, row.from + row.count);
            if row.from + row.count == self.scheduler.ids(row.id).len() {
                self.sampled(row.id);
            }
        }
        self.check();
        step
    }

    /// The sequences that can generate.
    fn ready(&self) -> BTreeSet<u64> {
        let is_ready = |s: &Sequence| s.running && !s.paused && s.ids.len() == s.computed + 1;
        self.scheduler.sequences.iter().filter(|(_, s)| is_ready(s)).map(|(&id, _)| id).collect()
    }

    fn sampled(&mut self, id: u64) {
        let left = &mut self.left.get_mut(&id).unwrap().0;
        *left -= 1;
        if *left == 0 {
            self.remove(id);
        } else {
            // Few different tokens, so that sequences have common beginnings.
            let token = (content(self.scheduler.ids(id)) % 2) as u32;
            self.scheduler.push(id, token);
        }
    }

    fn remove(&mut self, id: u64) {
        self.scheduler.remove(id);
        self.left.remove(&id);
    }

    /// Each page has as many users as tables that contain it.
    fn check(&self) {
        let mut users = vec![0; self.scheduler.pages.len()];
        for sequence in self.scheduler.sequences.values() {
            sequence.table.iter().for_each(|&page| users[page as usize] += 1);
            assert!(sequence.running || sequence.table.is_empty(), "a stopped sequence has no pages");
        }
        assert_eq!(self.scheduler.pages.users(), users);
        assert_eq!(self.scheduler.pages.used(), users.iter().filter(|&&users| users > 0).count());
    }
}

#[derive(Debug, Clone)]
enum Action {
    Add { ids: Vec<u32>, tokens: usize, priority: i32, key: u8 },
    Fork(usize),
    Remove(usize),
    Pause(usize),
    Step,
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        4 => (prop::collection::vec(0u32..2, 1..20), 1usize..12, -1i32..2, 0u8..3)
            .prop_map(|(ids, tokens, priority, key)| Action::Add { ids, tokens, priority, key }),
        1 => any::<usize>().prop_map(Action::Fork),
        1 => any::<usize>().prop_map(Action::Remove),
        1 => any::<usize>().prop_map(Action::Pause),
        8 => Just(Action::Step),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever is submitted, forked, paused and cancelled: no page is lost or written while it is shared, cached pages have the right
    /// content, and every sequence that is not cancelled ends.
    #[test]
    fn sequences_end_and_pages_are_neither_lost_nor_mixed_up(
        pages in 8usize..16, whole_pages: bool, actions in prop::collection::vec(action(), 1..60)
    ) {
        let mut simulation = Simulation::new(pages);
        simulation.budget.whole_pages = whole_pages;
        for action in actions {
            let ids: Vec<u64> = simulation.left.keys().copied().collect();
            let pick = |i: usize| ids.get(i % ids.len().max(1)).copied();
            match action {
                Action::Add { ids, tokens, priority, key } => {
                    simulation.add(ids, tokens, request(priority, key));
                }
                Action::Fork(i) => if let Some(parent) = pick(i) {
                    simulation.next += 1;
                    let id = simulation.next;
                    if let Some(copy) = simulation.scheduler.fork(parent, id) {
                        let (from, to) = (copy.from as usize * PAGE, copy.to as usize * PAGE);
                        simulation.slots.copy_within(from..from + PAGE, to);
                    }
                    simulation.left.insert(id, (simulation.left[&parent].0, false));
                },
                Action::Remove(i) => if let Some(id) = pick(i) { simulation.remove(id) },
                Action::Pause(i) => if let Some(id) = pick(i) {
                    let paused = &mut simulation.left.get_mut(&id).unwrap().1;
                    *paused = !*paused;
                    simulation.scheduler.set_paused(id, *paused);
                },
                Action::Step => { simulation.step(); }
            }
            simulation.check();
        }
        let all: Vec<u64> = simulation.left.keys().copied().collect();
        for id in all {
            simulation.left.get_mut(&id).unwrap().1 = false;
            simulation.scheduler.set_paused(id, false);
        }
        for _ in 0..5000 {
            if simulation.left.is_empty() { break }
            let step = simulation.step();
            prop_assert!(!step.rows.is_empty(), "{:?}", simulation.scheduler);
        }
        prop_assert!(simulation.left.is_empty(), "starved: {:?}", simulation.left);
        prop_assert_eq!(simulation.scheduler.page_counts().0, 0);
    }
}

#[test]
fn a_prompt_is_computed_in_pieces_beside_sequences_that_generate() {
    let mut simulation = Simulation::new(40);
    let first = simulation.add(vec![1; 5], 100, request(0, 0));
    assert_eq!(simulation.step().rows, [Row { id: first, from: 0, count: 5 }]);
    let second = simulation.add(vec![0; 21], 100, request(0, 0));
    let pieces: Vec<Vec<Row>> = (0..7).map(|_| simulation.step().rows).collect();
    for (step, rows) in pieces.iter().enumerate() {
        assert_eq!(rows[0], Row { id: first, from: 5 + step, count: 1 }, "decode comes first");
        // 6 tokens, but a piece that is not the last ends where a page does.
        let (from, count) = [(0, 4), (4, 4), (8, 4), (12, 4), (16, 5), (21, 1), (22, 1)][step];
        let expected = Row { id: second, from, count };
        assert_eq!(rows[1], expected);
    }
}

#[test]
fn the_beginning_that_another_sequence_has_is_not_computed_again() {
    let mut simulation = Simulation::new(40);
    let prompt: Vec<u32> = (0..12).collect();
    let first = simulation.add(prompt.clone(), 1, request(0, 0));
    assert_eq!(simulation.step().started, [(first, 0)]);
    let second = simulation.add(prompt.clone(), 1, request(0, 0));
    assert_eq!(simulation.step().started, [(second, 8)], "the last token is always computed");
    let longer = simulation.add([&prompt[..], &[7; 3]].concat(), 1, request(0, 0));
    assert_eq!(simulation.step().started, [(longer, 12)]);
    let other = simulation.add([&[9], &prompt[1..]].concat(), 1, request(0, 0));
    assert_eq!(simulation.step().started, [(other, 0)]);
    simulation.next += 1;
    simulation.left.insert(simulation.next, (1, false));
    simulation.scheduler.add(simulation.next, prompt, PageKey::root("", "salt"), true, request(0, 0));
    assert_eq!(simulation.step().started, [(simulation.next, 0)], "another salt");
}

#[test]
fn the_youngest_of_the_lowest_priority_is_stopped_and_goes_on_first() {
    let mut simulation = Simulation::new(6);
    let low: Vec<u64> = (0..2).map(|i| simulation.add(vec![i; 4], 12, request(0, 0))).collect();
    let high = simulation.add(vec![3; 4], 12, request(1, 0));
    while simulation.scheduler.running() < 3 {
        simulation.step();
    }
    let mut step = simulation.step();
    while step.preempted == 0 {
        step = simulation.step();
    }
    let running = |simulation: &Simulation, id: u64| simulation.scheduler.sequences.get(&id).is_some_and(|s| s.running);
    assert_eq!([low[0], low[1], high].map(|id| running(&simulation, id)), [true, false, true]);
    let tokens = simulation.scheduler.ids(low[1]).to_vec();
    let new = simulation.add(vec![5; 2], 1, request(0, 1));
    let starts = |step: &Step, id| step.started.iter().any(|started| started.0 == id);
    while !starts(&step, low[1]) {
        step = simulation.step();
        assert!(!starts(&step, new) || starts(&step, low[1]), "the new one waits");
    }
    assert!(simulation.scheduler.ids(low[1]).starts_with(&tokens), "it keeps its tokens");
}

#[test]
fn sequences_start_only_if_each_running_one_can_go_on() {
    let mut simulation = Simulation::new(8);
    let first = simulation.add(vec![1; 16], 17, request(0, 0)); // 8 pages at its end
    simulation.step();
    let second = simulation.add(vec![2; 16], 2, request(0, 0));
    let step = simulation.step();
    assert_eq!(step.rows.iter().map(|row| row.id).collect::<Vec<_>>(), [first], "4 pages and one more are not free");
    while simulation.left.contains_key(&first) {
        assert_eq!(simulation.step().preempted, 0);
    }
    assert_eq!(simulation.step().started, [(second, 0)]);
}

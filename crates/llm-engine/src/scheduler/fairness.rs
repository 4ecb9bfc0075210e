//! The order of waiting sequences: priority with ageing, then deficit round robin over keys (Shreedhar and Varghese 1996, "Efficient
//! Fair Queuing Using Deficit Round-Robin").

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// Tokens that a key may start in each turn.
const QUANTUM: u64 = 512;
/// After this time in the queue the priority is one higher.
const AGEING: Duration = Duration::from_secs(10);

/// A sequence that waits for its start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    pub priority: i32,
    pub key: Option<String>,
    /// When it was submitted.
    pub since: Duration,
    /// The tokens that it can need, of prompt and answer.
    pub cost: u64,
}

impl Waiting {
    /// The priority with ageing.
    pub fn priority_at(&self, now: Duration) -> i64 {
        i64::from(self.priority) + (now.saturating_sub(self.since).as_nanos() / AGEING.as_nanos()) as i64
    }
}

/// The sequences that wait for their first start, by id; ids are in the order of submission.
#[derive(Debug, Default)]
pub struct Queue {
    waiting: BTreeMap<u64, Waiting>,
    /// The keys that have waiting sequences, the next one in turn first, with the tokens that they may start.
    turns: VecDeque<(Option<String>, u64)>,
}

impl Queue {
    pub fn push(&mut self, id: u64, waiting: Waiting) {
        if self.turns.iter().all(|(key, _)| *key != waiting.key) {
            self.turns.push_back((waiting.key.clone(), 0));
        }
        self.waiting.insert(id, waiting);
    }

    /// The sequence that is next, which stays; none if nothing waits.
    pub fn first(&mut self, now: Duration) -> Option<(u64, &Waiting)> {
        let top = self.waiting.values().map(|waiting| waiting.priority_at(now)).max()?;
        loop {
            let (key, tokens) = self.turns.front_mut()?;
            let is_first = |waiting: &Waiting| waiting.key == *key && waiting.priority_at(now) == top;
            match self.waiting.iter().find(|(_, waiting)| is_first(waiting)) {
                Some((&id, waiting)) if waiting.cost <= *tokens => return Some((id, &self.waiting[&id])),
                Some(_) => *tokens += QUANTUM,
                None => (), // its sequences have a lower priority
            }
            self.turns.rotate_left(1);
        }
    }

    /// Removes a sequence that was started: its key has used tokens.
    pub fn start(&mut self, id: u64) -> Option<Waiting> {
        let cost = self.waiting.get(&id)?.cost;
        let key = &self.waiting[&id].key;
        if let Some((_, tokens)) = self.turns.iter_mut().find(|(other, _)| other == key) {
            *tokens = tokens.saturating_sub(cost);
        }
        self.remove(id)
    }

    /// Removes a sequence. A key without waiting sequences loses its turn.
    pub fn remove(&mut self, id: u64) -> Option<Waiting> {
        let removed = self.waiting.remove(&id)?;
        if self.waiting.values().all(|waiting| waiting.key != removed.key) {
            self.turns.retain(|(key, _)| *key != removed.key);
        }
        Some(removed)
    }

    pub fn contains(&self, id: u64) -> bool {
        self.waiting.contains_key(&id)
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.waiting.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(key: &str, cost: u64) -> Waiting {
        Waiting { priority: 0, key: Some(key.to_owned()), since: Duration::ZERO, cost }
    }

    fn start_all(queue: &mut Queue, now: Duration) -> Vec<u64> {
        let mut order = Vec::new();
        while let Some((id, _)) = queue.first(now) {
            assert_eq!(queue.first(now).map(|(id, _)| id), Some(id), "looking changes nothing");
            queue.start(id).unwrap();
            order.push(id);
        }
        assert!(queue.turns.is_empty() && queue.len() == 0);
        order
    }

    #[test]
    fn keys_start_the_same_number_of_tokens_whatever_they_submit() {
        let mut queue = Queue::default();
        let (mut id, mut costs) = (0, BTreeMap::new());
        // "many" submits first and four times as many requests as "long", whose requests are four times as long.
        for (key, count, cost) in [("many", 200, 300), ("long", 50, 1200)] {
            for _ in 0..count {
                queue.push(id, waiting(key, cost));
                costs.insert(id, (key, cost));
                id += 1;
            }
        }
        let mut started = BTreeMap::from([("many", 0u64), ("long", 0)]);
        for id in start_all(&mut queue, Duration::ZERO) {
            let (key, cost) = costs[&id];
            *started.get_mut(key).unwrap() += cost;
            let gap = started["many"].abs_diff(started["long"]);
            assert!(gap <= 2 * (1200 + QUANTUM), "{started:?}");
        }
    }

    #[test]
    fn a_key_with_one_request_does_not_wait_for_all_of_another_key() {
        let mut queue = Queue::default();
        (0..100).for_each(|id| queue.push(id, waiting("many", 100)));
        queue.push(100, waiting("one", 100));
        let place = start_all(&mut queue, Duration::ZERO).iter().position(|&id| id == 100).unwrap();
        assert!(place <= 2 * QUANTUM as usize / 100, "{place}");
    }

    #[test]
    fn a_higher_priority_is_first_until_the_others_have_aged() {
        let mut queue = Queue::default();
        queue.push(0, waiting("a", 10));
        queue.push(1, Waiting { priority: 3, since: AGEING * 2, ..waiting("b", 10) });
        assert_eq!(queue.first(AGEING * 2).unwrap().0, 1, "3 against 0 + 2");
        queue.push(2, Waiting { priority: 3, since: AGEING * 9, ..waiting("c", 10) });
        queue.start(1);
        assert_eq!(queue.first(AGEING * 9).unwrap().0, 0, "3 against 0 + 9");
    }

    #[test]
    fn requests_of_a_key_start_in_the_order_of_submission() {
        let mut queue = Queue::default();
        (0..20).for_each(|id| queue.push(id, waiting(["a", "b"][id as usize % 2], 700 * (id % 3))));
        let order = start_all(&mut queue, Duration::ZERO);
        for key in 0..2 {
            let ids: Vec<u64> = order.iter().copied().filter(|id| id % 2 == key).collect();
            assert!(ids.is_sorted(), "{ids:?}");
        }
    }
}

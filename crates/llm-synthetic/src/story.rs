//! Arithmetic word problems: somebody has some things, and their number changes.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::phenomena::person;
use super::split::SplitKey;
use super::{capitalised, pick};

/// A word problem. Each event adds to or subtracts from the number of things.
pub struct Story {
    pub who: String,
    pub they: &'static str,
    pub things: &'static str,
    pub start: u32,
    /// (verb, number, whether it is added).
    pub events: Vec<(&'static str, u32, bool)>,
}

impl Story {
    pub fn random(rng: &mut ChaCha8Rng, steps: usize) -> Self {
        let (name, they, _) = person(rng);
        let who = match rng.random_range(0..3) {
            0 => name.to_owned(),
            1 => format!("A {}", pick(rng, &["farmer", "baker", "teacher", "gardener", "cook", "painter"])),
            _ => format!("The {}", pick(rng, &["farmer", "doctor", "tailor", "singer", "pilot", "writer"])),
        };
        let start = rng.random_range(1..=12);
        let (mut now, mut events) = (start, Vec::<(&str, u32, bool)>::new());
        for _ in 0..steps {
            let adds = now == 0 || now < 14 && rng.random();
            let n = if adds { rng.random_range(1..=10) } else { rng.random_range(1..=now.min(9)) };
            now = if adds { now + n } else { now - n };
            let gains = ["buys", "finds", "gets", "picks"];
            let losses = ["gives away", "sells", "loses", "eats"];
            let mut verb = pick(rng, if adds { &gains } else { &losses });
            if events.iter().any(|(used, ..)| *used == verb) {
                verb = if adds { "makes" } else { "drops" };
            }
            events.push((verb, n, adds));
        }
        Self {
            who,
            they,
            things: pick(rng, &["apples", "oranges", "eggs", "books", "balls", "flowers"]),
            start,
            events,
        }
    }

    /// The split key: the numbers of the story, for example `story:3-1+5`.
    pub fn key(&self) -> SplitKey {
        let signed = self.events.iter().map(|&(_, n, adds)| format!("{}{n}", if adds { '+' } else { '-' }));
        SplitKey::new("story", format!("{}{}", self.start, signed.collect::<String>()))
    }

    /// The calculation steps, for example "3 - 1 = 2" and "2 + 5 = 7", and the result.
    pub fn steps(&self) -> (Vec<String>, u32) {
        let mut now = self.start;
        let steps = self.events.iter().map(|&(_, n, adds)| {
            let (before, sign) = (now, if adds { '+' } else { '-' });
            now = if adds { now + n } else { now - n };
            format!("{before} {sign} {n} = {now}")
        });
        (steps.collect(), now)
    }

    /// The text, for example "A farmer has 3 apples, gives 1 away, buys 5."
    pub fn text(&self, rng: &mut ChaCha8Rng) -> String {
        let Self { who, they, things, start, .. } = self;
        let phrase = |&(verb, n, _): &(&str, u32, bool)| match verb.split_once(' ') {
            Some((gives, away)) => format!("{gives} {n} {away}"),
            None => format!("{verb} {n}"),
        };
        let events: Vec<String> = self.events.iter().map(phrase).collect();
        let more = if self.events.len() > 1 && self.events[1].2 && rng.random() { " more" } else { "" };
        let told = match rng.random_range(0..4) {
            0 => format!("{who} has {start} {things}, {}", events.join(", ")),
            1 => format!("{who} has {start} {things}. {} {}", capitalised(they), events.join(" and ")),
            2 => format!("{who} has {start} {things}, {}", events.join(" and ")),
            _ => format!("{who} has {start} {things}. {} {}", capitalised(they), events.join(", then ")),
        };
        format!("{told}{more}.")
    }

    /// The question, for example "How many apples are left?"
    pub fn question(&self, rng: &mut ChaCha8Rng) -> String {
        let Self { they, things, .. } = self;
        match rng.random_range(0..4) {
            0 => format!("How many {things} are left?"),
            1 => format!("How many does {they} have?"),
            2 => format!("How many {things} now?"),
            _ => "How many are there now?".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn each_step_is_correct_and_starts_with_the_previous_result() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        for _ in 0..2000 {
            let story = Story::random(&mut rng, 2);
            let (steps, result) = story.steps();
            let mut now = story.start.to_string();
            for step in &steps {
                let parts: Vec<&str> = step.split(' ').collect();
                let [a, sign, b, "=", c] = parts[..] else { panic!("{step}") };
                assert_eq!(a, now);
                let (x, y): (i64, i64) = (a.parse().unwrap(), b.parse().unwrap());
                assert_eq!(c, if sign == "+" { x + y } else { x - y }.to_string());
                c.clone_into(&mut now);
            }
            assert_eq!(now, result.to_string());
        }
    }

    #[test]
    fn the_key_consists_of_the_numbers() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let events = vec![("gives away", 1, false), ("buys", 5, true)];
        let story = Story { start: 3, events, ..Story::random(&mut rng, 2) };
        assert_eq!(story.key().as_str(), "story:3-1+5");
    }
}

//! Statements of fact, sums, stories with numbers and short texts with their summary.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::lexicon::{CAPITALS, CATEGORIES, COLOURS, FRENCH, OPPOSITES, PLACES, THINGS};
use super::phenomena::person;
use super::preference::habit;
use super::{capitalised, pick, pick_two, with_article};

/// One kind of sentence, by chance.
pub fn kind(rng: &mut ChaCha8Rng) -> fn(&mut ChaCha8Rng) -> String {
    let kinds: [fn(&mut ChaCha8Rng) -> String; 13] = [
        capitals, colours, opposites, french, categories, sums, sums, counting, counting, counting, summaries,
        feelings, habit,
    ];
    pick(rng, &kinds)
}

fn capitals(rng: &mut ChaCha8Rng) -> String {
    let ((country, capital), (other, others)) = pick_two(rng, &CAPITALS);
    let name = person(rng).0;
    match rng.random_range(0..4) {
        0 => format!("The capital of {country} is {capital}, and the capital of {other} is {others}."),
        1 => format!("{capital} is the capital of {country}, and {others} is the capital of {other}."),
        2 => format!("{name} flew from {capital}, the capital of {country}, to {others}, the capital of {other}."),
        _ => format!("{name} knows that the capital of {country} is {capital}."),
    }
}

fn colours(rng: &mut ChaCha8Rng) -> String {
    let ((thing, colour), (other, others)) = pick_two(rng, &COLOURS);
    let (a_thing, a_other) = (with_article(thing), with_article(other));
    match rng.random_range(0..3) {
        0 => format!("{} is {colour}, and {a_other} is {others}.", capitalised(&a_thing)),
        1 => format!("The colour of {a_thing} is {colour}, and the colour of {a_other} is {others}."),
        _ => format!("{} painted {a_thing} in {colour} and {a_other} in {others}.", person(rng).0),
    }
}

fn opposites(rng: &mut ChaCha8Rng) -> String {
    let ((one, its_opposite), (two, others)) = pick_two(rng, &OPPOSITES);
    let (one, its_opposite) = if rng.random() { (one, its_opposite) } else { (its_opposite, one) };
    let (two, others) = if rng.random() { (two, others) } else { (others, two) };
    format!("The opposite of {one} is {its_opposite}, and the opposite of {two} is {others}.")
}

fn french(rng: &mut ChaCha8Rng) -> String {
    let ((one, un), (two, deux)) = pick_two(rng, &FRENCH);
    match rng.random_range(0..3) {
        0 => format!("The French word for {one} is {un}, and the French word for {two} is {deux}."),
        1 => format!("In French, {one} is called {un}, and {two} is called {deux}."),
        _ => format!("{} learned that {un} means {one} and that {deux} means {two} in French.", person(rng).0),
    }
}

fn categories(rng: &mut ChaCha8Rng) -> String {
    let ((kind, members), (other, others)) = pick_two(rng, &CATEGORIES);
    let (one, two) = (with_article(pick(rng, members)), with_article(pick(rng, others)));
    format!("{} is {}, and {two} is {}.", capitalised(&one), with_article(kind), with_article(other))
}

/// One step of arithmetic whose numbers lie between 0 and 24.
pub fn sum(rng: &mut ChaCha8Rng) -> (u32, char, u32, u32) {
    let (a, b) = (rng.random_range(1..=12), rng.random_range(1..=12));
    if rng.random() { (a, '+', b, a + b) } else { (a.max(b), '-', a.min(b), a.max(b) - a.min(b)) }
}

fn sums(rng: &mut ChaCha8Rng) -> String {
    let line = |rng: &mut ChaCha8Rng| {
        let (a, op, b, result) = sum(rng);
        format!("{a} {op} {b} = {result}")
    };
    format!("{}, {}, {}.", line(rng), line(rng), line(rng))
}

/// Somebody has some things, and twice their number changes.
pub struct Story {
    pub who: String,
    pub they: &'static str,
    pub things: &'static str,
    pub start: u32,
    /// What happens, the number, and whether it is added.
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

    /// "3 - 1 = 2", "2 + 5 = 7", and the result.
    pub fn steps(&self) -> (Vec<String>, u32) {
        let mut now = self.start;
        let steps = self.events.iter().map(|&(_, n, adds)| {
            let (before, sign) = (now, if adds { '+' } else { '-' });
            now = if adds { now + n } else { now - n };
            format!("{before} {sign} {n} = {now}")
        });
        (steps.collect(), now)
    }

    /// "A farmer has 3 apples, gives 1 away, buys 5." or a longer way to tell it.
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

    /// "How many apples does he have now?"
    pub fn question(&self, rng: &mut ChaCha8Rng) -> String {
        let Self { they, things, who, .. } = self;
        let lower = who.strip_prefix("A ").or(who.strip_prefix("The ")).map(|noun| format!("the {noun}"));
        let owner = lower.unwrap_or_else(|| who.clone());
        match rng.random_range(0..4) {
            0 => format!("How many {things} does {they} have now?"),
            1 => format!("How many {things} does {they} have?"),
            2 => format!("How many {things} does {owner} have now?"),
            _ => format!("How many {things} are left?"),
        }
    }
}

fn counting(rng: &mut ChaCha8Rng) -> String {
    let count = if rng.random() { 1 } else { 2 };
    let story = Story::random(rng, count);
    let (steps, result) = story.steps();
    let text = story.text(rng);
    format!("{text} {}. Now there are {result} {}.", steps.join(". "), story.things)
}

/// A short text and the one sentence that sums it up.
pub fn summary(rng: &mut ChaCha8Rng) -> (String, String) {
    let (name, she, _) = person(rng);
    let she = capitalised(she);
    let (place, thing) = (pick(rng, &PLACES), pick(rng, &THINGS).1);
    let weather = pick(rng, &["The sun was shining.", "It was a cold day.", "It rained a little.", "It was late."]);
    let (did, end) = super::pick(
        rng,
        &[
            ("bought", "Then it was time to go home."),
            ("sold", "After that the work was done."),
            ("lost", "Nobody had seen them."),
            ("found", "They had been there for years."),
        ],
    );
    let extra = pick(rng, &["", " There were many people.", " A dog was barking.", " The bus was full."]);
    let text = format!("{name} went to the {place}. {weather}{extra} {she} {did} some {thing} there. {end}");
    (text, format!("{name} {did} {thing} at the {place}."))
}

fn summaries(rng: &mut ChaCha8Rng) -> String {
    let (text, summary) = summary(rng);
    format!("{text} In short, {summary}")
}

/// What happened to somebody, and whether that is happy or sad.
pub fn feeling(rng: &mut ChaCha8Rng) -> (String, &'static str, &'static str) {
    let (name, she, _) = person(rng);
    let good = [
        "won the first prize",
        "got a wonderful present",
        "danced with joy",
        "laughed the whole day",
        "found a good friend",
        "heard great news",
    ];
    let bad = [
        "lost the last game",
        "broke a leg",
        "cried all night",
        "missed the train home",
        "heard terrible news",
        "was left alone",
    ];
    let (event, mood) = if rng.random() { (pick(rng, &good), "happy") } else { (pick(rng, &bad), "sad") };
    let place = pick(rng, &PLACES);
    (format!("{name} {event} at the {place}."), mood, she)
}

fn feelings(rng: &mut ChaCha8Rng) -> String {
    let (event, mood, she) = feeling(rng);
    format!("{event} {} was {mood}.", capitalised(she))
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn the_steps_of_a_story_are_right_and_follow_each_other() {
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
}

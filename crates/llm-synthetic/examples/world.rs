//! Prints samples of the built-in dataset: text, a minimal pair, a task and a question with answers of known quality.
//!
//! ```sh
//! cargo run -p llm-synthetic --example world
//! ```

use llm_synthetic::{Phenomenon, Split, Use, World, WorldConfig};

fn main() {
    let world = World::new(WorldConfig { corpus_bytes: 2_000, ..WorldConfig::default() });
    for document in world.corpus(Split::Train).iter().take(5) {
        println!("text: {document}");
    }
    let probe = &world.probes(Phenomenon::Agreement, 1)[0];
    println!("minimal pair: \"{}\" + \"{}\" is right, \"{}\" is wrong", probe.prefix, probe.good, probe.bad);

    // Tasks of the held-out split are about facts that no training conversation contains.
    for task in world.tasks(Split::HeldOut, 3) {
        let question = task.messages.iter().map(|message| message.text()).collect::<Vec<_>>().join(" | ");
        println!("{}: {question} -> {}", task.kind.name(), task.answers[0]);
    }
    let question = &world.questions(Split::Train, Use::Rankings, 1)[0];
    println!("question: {}", question.prompt);
    for answer in &question.answers {
        println!("  utility {:>5.2}: {}", answer.utility, answer.text);
    }
}

#[test]
fn runs() {
    main();
}

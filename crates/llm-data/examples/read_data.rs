//! Reads conversations and rankings in two of the accepted JSONL forms, and splits them by prompt.
//!
//! ```sh
//! cargo run -p llm-data --example read_data
//! ```

use std::error::Error;

use llm_data::{Duplicates, Keyed, ReadOptions, read_rankings, read_training_rows, split_by_prompt};

const CONVERSATIONS: &str = r#"{"question": "What is 2 + 2?", "answer": "4"}
{"messages": [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hello! How can I help?"}]}
{"instruction": "Name a fruit.", "output": "An apple."}
{"question": "What is 2 + 2?", "answer": "It is 4."}
"#;
const RANKINGS: &str = r#"{"prompt": "How do I sleep better?", "chosen": "Keep regular hours.", "rejected": "Drink coffee."}
{"prompt": "How do I boil an egg?", "answers": ["Use water.", "Use ice.", "Boil it for 8 minutes."], "order": [2, 0, 1]}
"#;

fn main() -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let (chats, rankings) = (dir.path().join("chats.jsonl"), dir.path().join("rankings.jsonl"));
    std::fs::write(&chats, CONVERSATIONS)?;
    std::fs::write(&rankings, RANKINGS)?;

    let options = ReadOptions::default();
    let conversations = read_training_rows(&chats, &options)?.rows;
    let duplicates = Duplicates::within(conversations.iter().map(Keyed::keys));
    println!("{} conversations, {} with a prompt that occurred before", conversations.len(), duplicates.same_prompt);

    // Both answers to "What is 2 + 2?" are in the same split, so validation measures more than memory.
    let (train, validation) = split_by_prompt(conversations, |row| row.keys().prompt, 0.3, 42)?;
    println!("{} for training, {} for validation", train.len(), validation.len());

    for ranking in read_rankings(&rankings, &options)?.rankings {
        for (better, worse) in ranking.pairs() {
            println!("{:?} is better than {:?}", ranking.answers[better], ranking.answers[worse]);
        }
    }
    Ok(())
}

#[test]
fn runs() -> Result<(), Box<dyn Error>> {
    main()
}

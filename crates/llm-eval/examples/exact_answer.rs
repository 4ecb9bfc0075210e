//! Accuracy of a chat model on questions with one right number, in the format of GSM8K (Cobbe et al. 2021, arXiv 2110.14168):
//! lines of `{"question", "answer"}`, where the answer ends with `#### NUMBER`.
//!
//! ```sh
//! cargo run --release -p llm-eval --example exact_answer -- MODEL QUESTIONS.jsonl [COUNT]
//! ```
//!
//! Strict: the reply has `####` and the right number after it. Loose: the last number of the reply is right.

use std::error::Error;
use std::path::Path;

use llm_engine::{GenerateOptions, Sampling, TextModel};
use llm_eval::generate_replies;
use llm_eval::stats::wilson;
use llm_tokenizer::ChatMessage;

const BATCH_SIZE: usize = 16;

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [model, questions, count @ ..] = &words[..] else { return Ok(()) };
    let count = count.first().map_or(Ok(usize::MAX), |word| word.parse())?;
    let text = std::fs::read_to_string(Path::new(questions))?;
    let lines = text.lines().take(count);
    let rows = lines.map(serde_json::from_str::<serde_json::Value>).collect::<Result<Vec<_>, _>>()?;
    let field = |row: &serde_json::Value, key: &str| row[key].as_str().unwrap_or_default().to_owned();
    let threads = llm_kernels::default_threads();
    llm_kernels::with_threads(threads, || -> Result<(), Box<dyn Error + Send + Sync>> {
        let model = TextModel::open(model)?;
        let options = GenerateOptions {
            max_new_tokens: 320,
            sampling: Sampling { temperature: 0., ..Sampling::default() },
            ..GenerateOptions::default()
        };
        let (mut n, mut strict, mut loose, mut ended) = (0, 0, 0, 0);
        for rows in rows.chunks(BATCH_SIZE) {
            let prompts = rows.iter().map(|row| model.chat_ids(&[ChatMessage::new("user", field(row, "question"))]));
            let prompts = prompts.collect::<Result<Vec<_>, _>>()?;
            for (row, reply) in rows.iter().zip(generate_replies(&model, &prompts, &options, BATCH_SIZE)?) {
                let right = marked_number(&field(row, "answer"));
                n += 1;
                strict += usize::from(right.is_some() && marked_number(&reply.text) == right);
                loose += usize::from(right.is_some() && last_number(&reply.text) == right);
                ended += usize::from(reply.ended);
            }
            let interval = |right: usize| {
                let interval = wilson(right, n);
                let [share, low, high] = [right as f64 / n as f64, interval.low, interval.high].map(|x| 100. * x);
                format!("{right} = {share:.1} % (95 % interval {low:.1} to {high:.1})")
            };
            let (strict, loose) = (interval(strict), interval(loose));
            println!("{n} questions: strict {strict}; loose {loose}; {ended} replies ended");
        }
        Ok(())
    })?
    .map_err(|error| error as Box<dyn Error>)
}

/// The number after the last `####`, without thousands separators.
fn marked_number(text: &str) -> Option<String> {
    let (_, after) = text.rsplit_once("####")?;
    last_number(after.lines().next()?)
}

/// The last number of a text, without thousands separators.
fn last_number(text: &str) -> Option<String> {
    let text = text.replace(',', "");
    let numbers = text.split(|c: char| !(c.is_ascii_digit() || ".-".contains(c)));
    let mut numbers = numbers.map(|word| word.trim_end_matches(['.', '-'])).filter(|word| word.parse::<f64>().is_ok());
    numbers.next_back().map(|number| number.trim_end_matches(".00").to_owned())
}

#[test]
fn numbers_are_compared_without_separators() {
    assert_eq!(marked_number("He pays 3 * 4 = 12.\n#### 1,012").as_deref(), Some("1012"));
    assert_eq!(marked_number("The answer is 12."), None);
    assert_eq!(last_number("It costs $1,234.00.").as_deref(), Some("1234"));
    assert_eq!(last_number("a - b = -7.").as_deref(), Some("-7"));
    assert_eq!(last_number("none - at all."), None);
}

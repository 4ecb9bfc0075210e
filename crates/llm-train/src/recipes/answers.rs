//! Greedy answers to validation prompts during training, compared with the answers of the data.

use llm_engine::{GenerateOptions, Sampling, generate};
use llm_model::Model;
use llm_tokenizer::Tokenizer;

use crate::Result;
use crate::examples::{Example, take_evenly};

/// A conversation up to its last answer, and that answer.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Question {
    /// Token ids, as in training.
    prompt: Vec<u32>,
    /// The text of the answer.
    reference: String,
}

/// The answers of a model to all questions.
pub(super) struct Answers {
    /// The share of right answers, from 0 to 1.
    pub exact_match: f64,
    /// Prompt, expected answer and answer of each question.
    pub text: String,
}

/// The last answers of at most `most` examples, spread evenly, without those whose prompt leaves no room in the context.
pub(super) fn questions(
    examples: &[Example],
    most: usize,
    tokenizer: &Tokenizer,
    context_length: usize,
) -> Result<Vec<Question>> {
    let mut questions = Vec::new();
    if most == 0 {
        return Ok(questions);
    }
    for example in take_evenly(examples.iter().collect(), most) {
        let Some(end) = example.loss_mask.iter().rposition(|&trained| trained).map(|last| last + 1) else { continue };
        let start = example.loss_mask[..end].iter().rposition(|&trained| !trained).map_or(0, |last| last + 1);
        if (1..context_length).contains(&start) {
            let reference = tokenizer.decode(&example.ids[start..end])?.trim().to_owned();
            questions.push(Question { prompt: example.ids[..start].to_vec(), reference });
        }
    }
    Ok(questions)
}

/// Answers all questions greedily, `batch_size` at a time, with at most `max_new_tokens` tokens each. An answer is right if it is the
/// reference; with a `marker` that is not empty, if the text after the last marker is.
pub(super) fn answer(
    model: &Model,
    tokenizer: &Tokenizer,
    questions: &[Question],
    (batch_size, max_new_tokens): (usize, usize),
    marker: &str,
) -> Result<Answers> {
    let sampling = Sampling { temperature: 0., ..Sampling::default() };
    let options = GenerateOptions { max_new_tokens, sampling, ..GenerateOptions::default() };
    let (mut right, mut text) = (0, String::new());
    for chunk in questions.chunks(batch_size.max(1)) {
        let prompts: Vec<Vec<u32>> = chunk.iter().map(|question| question.prompt.clone()).collect();
        let replies = generate(model, &prompts, &options, |_, _| true)?;
        for (question, reply) in chunk.iter().zip(replies) {
            let reply = tokenizer.decode(&reply)?.trim().to_owned();
            let is_right = is_right(&reply, &question.reference, marker);
            right += usize::from(is_right);
            let prompt = tokenizer.decode(&question.prompt)?;
            let verdict = if is_right { "right" } else { "wrong" };
            text += &format!("{}\n--- expected\n{}\n--- {verdict}\n{reply}\n\n", prompt.trim(), question.reference);
        }
    }
    Ok(Answers { exact_match: right as f64 / questions.len().max(1) as f64, text })
}

fn is_right(reply: &str, reference: &str, marker: &str) -> bool {
    // Without the marker, the whole text is the answer.
    let after = |text: &str| match marker {
        "" => None,
        marker => text.rsplit_once(marker).map(|(_, answer)| answer.trim().to_owned()),
    };
    match after(reference) {
        Some(expected) => after(reply) == Some(expected),
        None => reply.trim() == reference.trim(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_compared_as_a_whole_or_after_the_marker() {
        assert!(is_right(" 42 ", "42", "") && !is_right("42.", "42", ""));
        assert!(is_right("6 * 7 = 42\n#### 42", "It is 42.\n#### 42 ", "####"));
        assert!(!is_right("42", "It is 42.\n#### 42", "####"), "the reply has no marker");
        assert!(!is_right("#### 41 #### 43", "#### 41", "####"), "the last marker counts");
        assert!(is_right("yes", "yes", "####"), "a reference without the marker");
    }

    #[test]
    fn a_question_is_the_conversation_up_to_its_last_answer() {
        let corpus = ["one two three four five six seven eight nine"; 9];
        let config = llm_tokenizer::TrainConfig { vocab_size: 300, min_frequency: 1 };
        let tokenizer =
            llm_tokenizer::train_bpe(&config, corpus.into_iter()).unwrap().with_default_chat_template().unwrap();
        let turn = |role: &str, text: &str| llm_tokenizer::ChatMessage::new(role, text);
        let messages =
            [turn("user", "one"), turn("assistant", "two"), turn("user", "three"), turn("assistant", "four")];
        let examples = tokenizer.encode_for_training(&messages, llm_tokenizer::TrainOn::All).unwrap();
        let (ids, loss_mask) = (examples[0].ids.clone(), examples[0].loss_mask.clone());
        let prompt = tokenizer.encode_chat(&messages[..3], true).unwrap();
        let example = Example { ids, loss_mask };
        let found = questions(&[example.clone(), example.clone()], 1, &tokenizer, 100).unwrap();
        assert_eq!(found, [Question { prompt, reference: "four".to_owned() }]);
        assert!(
            questions(std::slice::from_ref(&example), 5, &tokenizer, 4).unwrap().is_empty(),
            "the prompt is too long"
        );
        assert!(questions(&[example], 0, &tokenizer, 100).unwrap().is_empty());
    }
}

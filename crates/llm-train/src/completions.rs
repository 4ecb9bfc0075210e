//! Answers to a prompt in token ids, and the log-probabilities of whole answers under a model.

use candle_core::Tensor;
use llm_kernels::token_logprobs_and_entropies;
use llm_model::{Batch, Model, Routing};
use llm_tokenizer::{ChatMessage, Tokenizer, TrainOn};

use crate::data::TooLong;
use crate::examples::{gather_rows, rows_to_batch};
use crate::rollout::{Reply, map_logits_in_chunks};
use crate::splits::Encoded;
use crate::{Error, Result};

/// Answers to one prompt in token ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Completions {
    /// The conversation up to the answer, the same for all answers.
    pub prompt: Vec<u32>,
    /// The answers, each up to and including its end token.
    pub answers: Vec<Vec<u32>>,
}

/// The most tokens of a prompt with its answer, and what happens to longer ones: they are left out, or their prompt is cut on the
/// left, after its beginning-of-sequence token.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room {
    pub max_length: usize,
    pub too_long: TooLong,
}

impl Completions {
    /// Encodes answers to a prompt as a model is trained on them. It is an error if the chat template writes the prompt in another
    /// way for each answer.
    pub fn encode<S: AsRef<str>>(
        tokenizer: &Tokenizer,
        prompt: &[ChatMessage],
        answers: &[S],
        room: Room,
    ) -> Result<Encoded<Self>> {
        let mut all: Option<Self> = None;
        for answer in answers {
            let Some((before, own)) = encode_one(tokenizer, prompt, answer.as_ref())? else {
                return Ok(Encoded::Untrained);
            };
            let all = all.get_or_insert_with(|| Self { prompt: before.clone(), answers: Vec::new() });
            if all.prompt != before {
                return Err(Error::BadRequest(
                    "the chat template writes the prompt in another way for each answer, so the answers cannot be compared"
                        .to_owned(),
                ));
            }
            all.answers.push(own);
        }
        let Some(mut all) = all.filter(|all| !all.prompt.is_empty()) else { return Ok(Encoded::Untrained) };
        let longest = all.answers.iter().map(Vec::len).max().unwrap_or(0);
        let (length, left) = (all.prompt.len(), room.max_length.saturating_sub(longest));
        if length <= left {
            return Ok(Encoded::Fits(all));
        }
        let kept = usize::from(tokenizer.bos_id() == all.prompt.first().copied());
        if room.too_long == TooLong::Drop || left <= kept {
            return Ok(Encoded::TooLong);
        }
        all.prompt.drain(kept..kept + length - left);
        Ok(Encoded::Fits(all))
    }
}

/// The ids of a prompt and of an answer to it; `None` if no token of the answer is trained on.
fn encode_one(tokenizer: &Tokenizer, prompt: &[ChatMessage], answer: &str) -> Result<Option<(Vec<u32>, Vec<u32>)>> {
    let mut messages: Vec<ChatMessage> = prompt.iter().map(|message| message.clone().with_train(false)).collect();
    messages.push(ChatMessage::assistant(answer).with_train(true));
    let Some(mut example) = tokenizer.encode_for_training(&messages, TrainOn::Last)?.pop() else { return Ok(None) };
    let trained = |mask: &[bool]| mask.iter().position(|&trained| trained);
    let Some(start) = trained(&example.loss_mask) else { return Ok(None) };
    let end = example.loss_mask.iter().rposition(|&trained| trained).map_or(start, |last| last + 1);
    example.ids.truncate(end);
    let own = example.ids.split_off(start);
    Ok(Some((example.ids, own)))
}

/// The log-probabilities of whole answers.
pub(crate) struct AnswerLogprobs {
    /// The sum over the tokens of each answer, in nats: `(n,)`.
    pub sums: Tensor,
    /// The mean entropy of the next-token distributions, in nats.
    pub entropy: f64,
    /// The routing of a model with experts.
    pub routing: Option<Routing>,
}

/// The log-probability of each answer, in one forward of a ragged batch.
pub(crate) fn answer_logprobs(model: &Model, replies: &[Reply]) -> Result<AnswerLogprobs> {
    // The last token of an answer predicts nothing.
    let rows: Vec<Vec<u32>> =
        replies.iter().map(|(query, answer)| [query, &answer[..answer.len().saturating_sub(1)]].concat()).collect();
    let (batch, starts) = rows_to_batch(&rows.iter().map(Vec::as_slice).collect::<Vec<_>>(), None)?;
    let (mut positions, mut ids) = (Vec::new(), Vec::new());
    for (start, (query, answer)) in starts.into_iter().zip(replies) {
        positions.extend((0..answer.len()).map(|t| (start + query.len() - 1 + t) as u32));
        ids.extend_from_slice(answer);
    }
    logprobs_at(model, &batch, positions, &ids, replies)
}

fn logprobs_at(
    model: &Model,
    batch: &Batch,
    positions: Vec<u32>,
    ids: &[u32],
    replies: &[Reply],
) -> Result<AnswerLogprobs> {
    let (hidden, routing) = model.hidden_and_routing(batch)?; // (1, t, hidden)
    let hidden = gather_rows(&hidden, positions)?; // (tokens, hidden)
    let both = map_logits_in_chunks(model, &hidden, ids, |logits, ids| {
        let (logprobs, entropies) = token_logprobs_and_entropies(logits, ids, 1.)?;
        Ok(Tensor::stack(&[logprobs, entropies.detach()], 1)?) // (chunk, 2)
    })?;
    let logprobs = both.narrow(1, 0, 1)?.squeeze(1)?; // (tokens,)
    let mut at = 0;
    let mut sums = Vec::with_capacity(replies.len());
    for (_, answer) in replies {
        sums.push(logprobs.narrow(0, at, answer.len())?.sum_all()?);
        at += answer.len();
    }
    let entropy = crate::loss::scalar(&both.narrow(1, 1, 1)?.detach().mean_all()?)?;
    Ok(AnswerLogprobs { sums: Tensor::stack(&sums, 0)?, entropy, routing })
}

/// The log-probability of each answer under a frozen model, `batch_size` answers at a time.
pub(crate) fn frozen_logprobs(model: &Model, replies: &[Reply], batch_size: usize) -> Result<Vec<f64>> {
    let mut all = Vec::with_capacity(replies.len());
    for replies in replies.chunks(batch_size.max(1)) {
        all.extend(numbers(&answer_logprobs(model, replies)?.sums)?);
    }
    Ok(all)
}

/// The numbers of a tensor `(n,)`.
pub(crate) fn numbers(x: &Tensor) -> Result<Vec<f64>> {
    Ok(x.detach().to_dtype(candle_core::DType::F32)?.to_vec1::<f32>()?.into_iter().map(f64::from).collect())
}

#[cfg(test)]
mod tests {
    use llm_model::{Head, ModelConfig};
    use llm_tokenizer::{TrainConfig, train_bpe};

    use super::*;
    use crate::rollout::reply_logprobs;

    fn model() -> Model {
        let config = ModelConfig {
            vocab_size: 30,
            hidden_size: 16,
            intermediate_size: 24,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            num_key_value_heads: 1,
            initializer_range: 0.3,
            ..ModelConfig::default()
        };
        Model::init(config, Head::LanguageModel, 3).unwrap().frozen().unwrap()
    }

    /// Each row of a ragged batch has the sum that it has alone, and that of the tokens of a padded batch (PPO's code).
    #[test]
    fn an_answer_has_the_same_log_probability_alone_and_in_any_batch() {
        let model = model();
        let replies: [Reply; 3] = [(&[1, 2, 3], &[4, 5, 6, 7]), (&[8], &[9]), (&[10, 11, 12, 13, 14], &[15, 16])];
        let together = numbers(&answer_logprobs(&model, &replies).unwrap().sums).unwrap();
        let tokens = reply_logprobs(&model, &replies, 1., 0).unwrap().to_vec1::<f32>().unwrap();
        let (mut at, mut padded) = (0, Vec::new());
        for (_, answer) in replies {
            padded.push(tokens[at..at + answer.len()].iter().map(|&x| f64::from(x)).sum::<f64>());
            at += answer.len();
        }
        let alone = frozen_logprobs(&model, &replies, 1).unwrap();
        for ((together, alone), padded) in together.iter().zip(&alone).zip(&padded) {
            assert!((together - alone).abs() < 1e-5 && (together - padded).abs() < 1e-5, "{together} {alone} {padded}");
        }
    }

    /// A changed token changes its own log-probability and later ones, and no earlier one.
    #[test]
    fn a_changed_token_leaves_the_log_probabilities_before_it_unchanged() {
        let (model, query) = (model(), [1u32, 2, 3]);
        let of = |answer: &[u32]| -> Vec<f32> {
            reply_logprobs(&model, &[(&query, answer)], 1., 0).unwrap().to_vec1().unwrap()
        };
        let sum = |answer: &[u32]| numbers(&answer_logprobs(&model, &[(&query, answer)]).unwrap().sums).unwrap()[0];
        let (first, changed) = (of(&[4, 5, 6, 7]), of(&[4, 5, 9, 7]));
        assert_eq!(first[..2], changed[..2]);
        assert!(first[2] != changed[2] && first[3] != changed[3]);
        // The sums of the beginnings differ by the log-probability of one token each.
        for t in 1..4 {
            let answer = [4, 5, 6, 7];
            let step = sum(&answer[..=t]) - sum(&answer[..t]);
            assert!((step - f64::from(first[t])).abs() < 1e-5, "{t}: {step} {}", first[t]);
        }
    }

    fn tokenizer() -> Tokenizer {
        let config = TrainConfig { vocab_size: 300, min_frequency: 2 };
        train_bpe(&config, ["the cat sat on the mat"].iter()).unwrap().with_default_chat_template().unwrap()
    }

    fn encode(answers: &[&str], max_length: usize, too_long: TooLong) -> Encoded<Completions> {
        Completions::encode(&tokenizer(), &[ChatMessage::user("the cat")], answers, Room { max_length, too_long })
            .unwrap()
    }

    #[test]
    fn answers_share_the_ids_of_their_prompt_and_end_with_the_end_token() {
        let tokenizer = tokenizer();
        let Encoded::Fits(found) = encode(&["the mat", "sat on"], 100, TooLong::Drop) else { panic!() };
        assert_eq!(found.prompt, tokenizer.encode_chat(&[ChatMessage::user("the cat")][..], true).unwrap());
        let end = tokenizer.chat_format().unwrap().end_of_turn;
        for (ids, text) in found.answers.iter().zip(["the mat", "sat on"]) {
            assert_eq!(ids.last(), Some(&end));
            assert_eq!(tokenizer.decode(&ids[..ids.len() - 1]).unwrap(), text);
        }
    }

    #[test]
    fn a_long_prompt_is_left_out_or_cut_on_the_left() {
        let Encoded::Fits(whole) = encode(&["the mat", "sat"], 100, TooLong::Drop) else { panic!() };
        let longest = whole.answers.iter().map(Vec::len).max().unwrap();
        let limit = whole.prompt.len() + longest;
        assert_eq!(encode(&["the mat", "sat"], limit, TooLong::Drop), Encoded::Fits(whole.clone()));
        assert_eq!(encode(&["the mat", "sat"], limit - 1, TooLong::Drop), Encoded::TooLong);
        let Encoded::Fits(cut) = encode(&["the mat", "sat"], limit - 2, TooLong::Cut) else { panic!() };
        assert_eq!(cut.answers, whole.answers, "answers are never cut");
        let kept = usize::from(tokenizer().bos_id() == Some(whole.prompt[0]));
        assert_eq!(cut.prompt, [&whole.prompt[..kept], &whole.prompt[kept + 2..]].concat());
        assert_eq!(encode(&["the mat", "sat"], longest + kept, TooLong::Cut), Encoded::TooLong, "no prompt is left");
    }
}

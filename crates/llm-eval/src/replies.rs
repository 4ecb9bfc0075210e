//! Generated replies: their diversity, and the KL divergence between two models on them.

use std::collections::HashMap;

use llm_engine::{GenerateOptions, TextModel, generate_from};
use llm_model::Model;
use serde::Serialize;

use crate::Result;
use crate::text::{Row, row_logprobs};

/// A generated reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GeneratedReply {
    /// Token ids, including the stop token if there is one.
    pub ids: Vec<u32>,
    /// The text without special tokens, trimmed.
    pub text: String,
    /// Whether it ends with a stop token; otherwise the token limit cut it off.
    pub ended: bool,
}

/// Generates one reply to each prompt, in batches of `batch_size`. Each prompt has its own random stream: with a seed, the
/// batch size does not change the replies.
pub fn generate_replies(
    model: &TextModel,
    prompts: &[Vec<u32>],
    options: &GenerateOptions,
    batch_size: usize,
) -> Result<Vec<GeneratedReply>> {
    let mut replies = Vec::with_capacity(prompts.len());
    let stop_ids = options.stop_ids.clone().unwrap_or_else(|| model.stop_ids());
    let options = &GenerateOptions { stop_ids: Some(stop_ids.clone()), ..options.clone() };
    for chunk in prompts.chunks(batch_size.max(1)) {
        for ids in generate_from(&model.model, chunk, replies.len(), options, |_, _| true)? {
            let text = model.tokenizer.decode(&ids)?.trim().to_owned();
            let ended = ids.last().is_some_and(|id| stop_ids.contains(id));
            replies.push(GeneratedReply { ids, text, ended });
        }
    }
    Ok(replies)
}

/// Diversity and length of replies.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ReplyStats {
    /// The number of replies.
    pub n: usize,
    /// The number of distinct replies.
    pub distinct: usize,
    /// The sentence that occurs in the most replies.
    pub most_frequent_sentence: String,
    /// The share of replies that contain it.
    pub most_frequent_share: f64,
    /// The expected number of distinct last sentences in 100 random replies (rarefaction, Hurlbert 1971), or the number itself if
    /// there are fewer than 100 replies. A reply that was cut off has no last sentence.
    pub endings_per_100: f64,
    /// The share of replies cut off at the token limit.
    pub truncated_share: f64,
    /// The mean number of tokens per reply, including the stop token.
    pub mean_tokens: f64,
}

/// The statistics of replies; all zero for an empty slice.
pub fn reply_stats(replies: &[GeneratedReply]) -> ReplyStats {
    let n = replies.len();
    let mut texts: HashMap<&str, usize> = HashMap::new();
    let mut containing: HashMap<&str, usize> = HashMap::new();
    let mut endings: HashMap<&str, usize> = HashMap::new();
    for reply in replies {
        *texts.entry(&reply.text).or_insert(0) += 1;
        let mut sentences: Vec<&str> = sentences(&reply.text).collect();
        if let Some(&last) = sentences.last()
            && reply.ended
        {
            *endings.entry(last).or_insert(0) += 1;
        }
        sentences.sort_unstable();
        sentences.dedup();
        for sentence in sentences {
            *containing.entry(sentence).or_insert(0) += 1;
        }
    }
    let share = |count: usize| count as f64 / n.max(1) as f64;
    let most_frequent = containing.into_iter().max_by_key(|&(sentence, count)| (count, std::cmp::Reverse(sentence)));
    let (most_frequent, count) = most_frequent.unwrap_or_default();
    ReplyStats {
        n,
        distinct: texts.len(),
        most_frequent_sentence: most_frequent.to_owned(),
        most_frequent_share: share(count),
        endings_per_100: rarefied(endings.into_values(), n, 100),
        truncated_share: share(replies.iter().filter(|reply| !reply.ended).count()),
        mean_tokens: share(replies.iter().map(|reply| reply.ids.len()).sum()),
    }
}

/// The expected number of distinct kinds in a random sample of `sample` of `n` items; `counts` has the number of items per kind.
fn rarefied(counts: impl Iterator<Item = usize>, n: usize, sample: usize) -> f64 {
    // Probability that no item of a kind is in the sample: C(n - count, sample) / C(n, sample).
    let absent =
        |count: usize| (0..sample.min(n)).map(|i| n.saturating_sub(count + i) as f64 / (n - i) as f64).product::<f64>();
    let mut expected: Vec<f64> = counts.map(|count| 1. - absent(count)).collect();
    expected.sort_by(f64::total_cmp); // makes the sum independent of the order of the hash map
    expected.iter().sum()
}

/// The trimmed sentences of a text. A sentence ends at `.`, `!` or `?` before white space or the end of the text.
fn sentences(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text.trim();
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let ends = |&(at, c): &(usize, char)| {
            ".!?".contains(c) && rest[at + c.len_utf8()..].chars().next().is_none_or(char::is_whitespace)
        };
        let end = rest.char_indices().find(ends).map_or(rest.len(), |(at, c)| at + c.len_utf8());
        let (sentence, after) = rest.split_at(end);
        rest = after.trim_start();
        Some(sentence)
    })
}

/// For each reply, sampled from `policy` at `temperature` for the prompt with the same index: log-probability under `policy` minus
/// that under `reference`, summed over tokens, in nats. The mean estimates `KL(policy ‖ reference)` per reply.
pub fn reply_kls(
    policy: &Model,
    reference: &Model,
    prompts: &[Vec<u32>],
    replies: &[Vec<u32>],
    temperature: f64,
) -> Result<Vec<f64>> {
    let rows = prompts.iter().zip(replies).map(|(prefix, rest)| Row { prefix, rest, masked: (0, 0) });
    let rows: Vec<Row> = rows.collect();
    let (p, q) = (row_logprobs(policy, &rows, 64, temperature)?, row_logprobs(reference, &rows, 64, temperature)?);
    Ok(p.iter().zip(&q).map(|(p, q)| p - q).collect())
}

#[cfg(test)]
mod tests {
    use llm_engine::Sampling;

    use super::*;
    use crate::testing::{bigram_model, tokenizer};

    /// A uniform model: replies depend on the random streams only.
    #[test]
    fn equal_prompts_get_different_replies_in_every_batch() {
        let tokenizer = tokenizer("the cat sat on the mat.");
        let model = TextModel { model: bigram_model(&tokenizer, |_, _| 0.), tokenizer };
        let sampling = Sampling { seed: Some(42), ..Sampling::default() };
        let options = GenerateOptions { max_new_tokens: 6, stop_ids: Some(Vec::new()), sampling };
        let prompts = vec![vec![7, 8]; 8];
        let batched = generate_replies(&model, &prompts, &options, 2).unwrap();
        assert_eq!(batched, generate_replies(&model, &prompts, &options, 8).unwrap());
        let mut ids: Vec<&Vec<u32>> = batched.iter().map(|reply| &reply.ids).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), 8, "all replies are distinct");
        assert!(batched.iter().all(|reply| !reply.ended && reply.ids.len() == 6));
    }

    fn reply(text: &str, ended: bool) -> GeneratedReply {
        GeneratedReply { ids: vec![1; text.split(' ').count()], text: text.to_owned(), ended }
    }

    #[test]
    fn sentences_end_at_marks_before_white_space() {
        let all: Vec<&str> = sentences(" Blow 1.5 times! Then?  Ask somebody. And then").collect();
        assert_eq!(all, ["Blow 1.5 times!", "Then?", "Ask somebody.", "And then"]);
        assert_eq!(sentences("  ").count(), 0);
    }

    #[test]
    fn reply_statistics_match_hand_counted_values() {
        let replies = [
            reply("Stir it. Be careful.", true),
            reply("Stir it. Be careful.", true),
            reply("Shake it. Be careful. Be careful.", true),
            reply("Be careful. Stir it.", true),
            reply("Shake it and", false),
        ];
        let stats = reply_stats(&replies);
        assert_eq!((stats.n, stats.distinct), (5, 4));
        assert_eq!((stats.most_frequent_sentence.as_str(), stats.most_frequent_share), ("Be careful.", 0.8));
        assert!((stats.endings_per_100 - 2.).abs() < 1e-12, "\"Be careful.\" and \"Stir it.\"");
        assert_eq!((stats.truncated_share, stats.mean_tokens), (0.2, (4. + 4. + 6. + 4. + 3.) / 5.));
        assert_eq!(reply_stats(&[]).n, 0);
    }

    /// Compares with the mean over all samples.
    #[test]
    fn rarefaction_is_the_mean_over_all_samples() {
        let items = [0, 0, 0, 1, 1, 2];
        let (mut sum, mut samples) = (0, 0);
        for mask in 0u32..64 {
            if mask.count_ones() == 3 {
                let of = |kind: usize| (0..6).any(|i| mask >> i & 1 == 1 && items[i] == kind);
                sum += (0..3).filter(|&kind| of(kind)).count();
                samples += 1;
            }
        }
        let expected = sum as f64 / f64::from(samples);
        assert!((rarefied([3, 2, 1].into_iter(), 6, 3) - expected).abs() < 1e-12);
        assert!((rarefied([3, 2, 1].into_iter(), 6, 100) - 3.).abs() < 1e-12, "there are only three kinds");
        // 200 items of one kind, and 200 items of 200 kinds.
        assert!((rarefied([200].into_iter(), 200, 100) - 1.).abs() < 1e-12);
        assert!((rarefied(std::iter::repeat_n(1, 200), 200, 100) - 100.).abs() < 1e-9);
    }

    /// Both models are bigram models, so log-probabilities are sums of table entries.
    #[test]
    fn the_kl_of_a_reply_is_the_difference_of_log_probabilities() {
        let tokenizer = tokenizer("the cat sat on the mat.");
        let vocab = tokenizer.vocab_size() as u32;
        let (p, q) =
            (|from: u32, to: u32| (from * 7 + to * 3) as f32 % 5., |from: u32, to: u32| (from + to) as f32 % 3.);
        let (policy, reference) = (bigram_model(&tokenizer, p), bigram_model(&tokenizer, q));
        let (prompts, replies) = ([vec![9, 8], vec![7]], [vec![5, 6, 7], vec![6]]);
        let logprob = |logit: &dyn Fn(u32, u32) -> f32, from: u32, to: u32| {
            let z = |to| f64::from(logit(from, to)) / 2.;
            z(to) - (0..vocab).map(|to| z(to).exp()).sum::<f64>().ln()
        };
        let kls = reply_kls(&policy, &reference, &prompts, &replies, 2.).unwrap();
        for ((prompt, reply), kl) in prompts.iter().zip(&replies).zip(&kls) {
            let row = [prompt.as_slice(), reply].concat();
            let expected: f64 = (prompt.len()..row.len())
                .map(|t| logprob(&p, row[t - 1], row[t]) - logprob(&q, row[t - 1], row[t]))
                .sum();
            assert!((kl - expected).abs() < 1e-4, "{kl} is not {expected}");
        }
        let same = reply_kls(&policy, &policy, &prompts, &replies, 2.).unwrap();
        assert_eq!(same, [0., 0.]);
    }
}

//! Replies that a model wrote: how varied they are, and how far the model has moved from another one.

use std::collections::HashMap;

use llm_infer::{GenerateOptions, TextModel, generate_from};
use llm_model::Model;
use serde::Serialize;

use crate::Result;
use crate::rollout::{Reply, per_reply, reply_logprobs};

/// A reply that a model wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrittenReply {
    /// Its token ids, with the one that ended it if that came.
    pub ids: Vec<u32>,
    /// Its text, without special tokens and without white space around it.
    pub text: String,
    /// Whether it ended by itself; if not, the token limit cut it off.
    pub ended: bool,
}

/// One reply to each prompt, in batches of `batch_size`, which changes no reply: each prompt of the list has a random
/// stream of its own.
pub fn write_replies(
    model: &TextModel,
    prompts: &[Vec<u32>],
    options: &GenerateOptions,
    batch_size: usize,
) -> Result<Vec<WrittenReply>> {
    let mut replies = Vec::with_capacity(prompts.len());
    for chunk in prompts.chunks(batch_size.max(1)) {
        for ids in generate_from(&model.model, chunk, replies.len(), options, |_, _| true)? {
            let text = model.tokenizer.decode(&ids)?.trim().to_owned();
            let ended = ids.last().is_some_and(|id| options.stop_ids.contains(id));
            replies.push(WrittenReply { ids, text, ended });
        }
    }
    Ok(replies)
}

/// How varied replies are, and how long.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ReplyStats {
    /// The number of replies.
    pub n: usize,
    /// The number of different ones.
    pub distinct: usize,
    /// The sentence that the most replies contain.
    pub commonest_sentence: String,
    /// The share of the replies that contain it.
    pub commonest_share: f64,
    /// How many different last sentences 100 of the replies have: the expected number in a random hundred of them
    /// (rarefaction, Hurlbert 1971), or the number itself where there are fewer than 100. A reply that was cut off has
    /// no last sentence.
    pub endings_per_100: f64,
    /// The share of the replies that the token limit cut off.
    pub cut_off_share: f64,
    /// The mean number of tokens of a reply, its end included.
    pub mean_tokens: f64,
}

/// The statistics of replies; all zero where there are none.
pub fn reply_stats(replies: &[WrittenReply]) -> ReplyStats {
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
    let commonest = containing.into_iter().max_by_key(|&(sentence, count)| (count, std::cmp::Reverse(sentence)));
    let (commonest, count) = commonest.unwrap_or_default();
    ReplyStats {
        n,
        distinct: texts.len(),
        commonest_sentence: commonest.to_owned(),
        commonest_share: share(count),
        endings_per_100: rarefied(endings.into_values(), n, 100),
        cut_off_share: share(replies.iter().filter(|reply| !reply.ended).count()),
        mean_tokens: share(replies.iter().map(|reply| reply.ids.len()).sum()),
    }
}

/// The expected number of kinds among `sample` of `n` items, where `counts` are the items of each kind.
fn rarefied(counts: impl Iterator<Item = usize>, n: usize, sample: usize) -> f64 {
    // The probability that none of a kind's items is drawn: C(n - count, sample) / C(n, sample).
    let absent =
        |count: usize| (0..sample.min(n)).map(|i| n.saturating_sub(count + i) as f64 / (n - i) as f64).product::<f64>();
    let mut expected: Vec<f64> = counts.map(|count| 1. - absent(count)).collect();
    expected.sort_by(f64::total_cmp); // so that the sum does not depend on the order of a hash map
    expected.iter().sum()
}

/// The sentences of a text, without white space around them; a mark ends one where white space or nothing follows.
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

/// For each reply, drawn from `policy` to the prompt of the same index at `temperature`, the difference of its
/// log-probabilities under `policy` and `reference`, summed over its tokens, in nats: their mean estimates
/// `KL(policy ‖ reference)` of a reply. `pad` fills short rows.
pub fn reply_kls(
    policy: &Model,
    reference: &Model,
    prompts: &[Vec<u32>],
    replies: &[Vec<u32>],
    temperature: f64,
    pad: u32,
) -> Result<Vec<f64>> {
    let pairs: Vec<Reply> = prompts.iter().zip(replies).map(|(q, r)| (q.as_slice(), r.as_slice())).collect();
    let mut kls = Vec::with_capacity(pairs.len());
    for chunk in pairs.chunks(64) {
        let logprobs =
            |model| -> Result<Vec<Vec<f64>>> { per_reply(&reply_logprobs(model, chunk, temperature, pad)?, chunk) };
        let (ours, theirs) = (logprobs(policy)?, logprobs(reference)?);
        kls.extend(ours.iter().zip(&theirs).map(|(p, r)| p.iter().zip(r).map(|(p, r)| p - r).sum::<f64>()));
    }
    Ok(kls)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{bigram_model, tokenizer};
    use super::*;

    /// A model that knows nothing draws its tokens from the streams alone.
    #[test]
    fn the_same_prompt_draws_other_replies_in_every_batch() {
        let tokenizer = tokenizer("the cat sat on the mat.");
        let model = TextModel { model: bigram_model(&tokenizer, |_, _| 0.), tokenizer };
        let options = GenerateOptions { max_new_tokens: 6, ..GenerateOptions::default() };
        let prompts = vec![vec![7, 8]; 8];
        let batched = write_replies(&model, &prompts, &options, 2).unwrap();
        assert_eq!(batched, write_replies(&model, &prompts, &options, 8).unwrap());
        let mut ids: Vec<&Vec<u32>> = batched.iter().map(|reply| &reply.ids).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), 8, "no two of them are equal");
        assert!(batched.iter().all(|reply| !reply.ended && reply.ids.len() == 6));
    }

    fn reply(text: &str, ended: bool) -> WrittenReply {
        WrittenReply { ids: vec![1; text.split(' ').count()], text: text.to_owned(), ended }
    }

    #[test]
    fn sentences_end_at_marks_before_white_space() {
        let all: Vec<&str> = sentences(" Blow 1.5 times! Then?  Ask somebody. And then").collect();
        assert_eq!(all, ["Blow 1.5 times!", "Then?", "Ask somebody.", "And then"]);
        assert_eq!(sentences("  ").count(), 0);
    }

    #[test]
    fn the_statistics_of_replies_are_those_counted_by_hand() {
        let replies = [
            reply("Stir it. Be careful.", true),
            reply("Stir it. Be careful.", true),
            reply("Shake it. Be careful. Be careful.", true),
            reply("Be careful. Stir it.", true),
            reply("Shake it and", false),
        ];
        let stats = reply_stats(&replies);
        assert_eq!((stats.n, stats.distinct), (5, 4));
        assert_eq!((stats.commonest_sentence.as_str(), stats.commonest_share), ("Be careful.", 0.8));
        assert!((stats.endings_per_100 - 2.).abs() < 1e-12, "\"Be careful.\" and \"Stir it.\"");
        assert_eq!((stats.cut_off_share, stats.mean_tokens), (0.2, (4. + 4. + 6. + 4. + 3.) / 5.));
        assert_eq!(reply_stats(&[]).n, 0);
    }

    /// The expectation over all samples, counted one by one.
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
        assert!((rarefied([3, 2, 1].into_iter(), 6, 100) - 3.).abs() < 1e-12, "there are no more than those");
        // Two hundred replies with one ending, and two hundred with two hundred.
        assert!((rarefied([200].into_iter(), 200, 100) - 1.).abs() < 1e-12);
        assert!((rarefied(std::iter::repeat_n(1, 200), 200, 100) - 100.).abs() < 1e-9);
    }

    /// Both models know the last token alone; their log-probabilities are sums of a table's entries.
    #[test]
    fn the_kl_of_a_reply_is_the_difference_of_its_log_probabilities() {
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
        let kls = reply_kls(&policy, &reference, &prompts, &replies, 2., 0).unwrap();
        for ((prompt, reply), kl) in prompts.iter().zip(&replies).zip(&kls) {
            let row = [prompt.as_slice(), reply].concat();
            let expected: f64 = (prompt.len()..row.len())
                .map(|t| logprob(&p, row[t - 1], row[t]) - logprob(&q, row[t - 1], row[t]))
                .sum();
            assert!((kl - expected).abs() < 1e-4, "{kl} is not {expected}");
        }
        let same = reply_kls(&policy, &policy, &prompts, &replies, 2., 0).unwrap();
        assert_eq!(same, [0., 0.]);
    }
}

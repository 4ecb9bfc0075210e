//! Advice: the accuracy of the reward model, and the true utility of the policy before and after PPO, on held-out themes.

use llm_data::ChatMessage;
use llm_engine::{GenerateOptions, Sampling, TextModel};
use llm_eval::{GeneratedReply, ReplyStats, generate_replies, reply_kls, reply_stats};
use llm_feedback::Annotator;
use llm_synthetic::{Question, Split, SplitKey, Use, Utility, World};

use super::super::LifecycleRecipe;
use super::super::data::ranked;
use super::super::metric::{Metric, Unit, mean};
use super::Models;
use crate::best_of::{ScoredReply, expected_best, kl_bound, n_at_kl};
use crate::recipes::RewardModel;
use crate::{Error, Result};

/// Best-of-n: samples per prompt, and prompts.
const SAMPLES: usize = 16;
const BEST_OF_PROMPTS: usize = 64;

pub(super) struct AdviceResults {
    pub metrics: Vec<Metric>,
    pub best_of: Vec<(f64, f64, f64)>,
    pub samples: Vec<[String; 3]>,
    /// Questions about held-out themes.
    pub held_out: PromptSet,
    /// Mean true utility of the aligned model on them.
    pub utility: f64,
}

/// Questions and their prompts as token ids.
pub(super) struct PromptSet {
    pub questions: Vec<Question>,
    pub prompts: Vec<Vec<u32>>,
}

impl PromptSet {
    pub fn new(world: &World, model: &TextModel, split: Split, count: usize) -> Result<Self> {
        let questions = world.questions(split, Use::Validation, count);
        let ids = |q: &Question| model.chat_ids(&[ChatMessage::user(&q.prompt)]);
        let prompts = questions.iter().map(ids).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { questions, prompts })
    }

    pub fn keys(&self) -> Vec<&SplitKey> {
        self.questions.iter().map(|q| &q.key).collect()
    }

    /// One reply to each prompt, sampled with PPO's settings.
    pub fn replies(&self, recipe: &LifecycleRecipe, model: &TextModel) -> Result<Vec<GeneratedReply>> {
        Ok(generate_replies(model, &self.prompts, &sampling_options(recipe, model), 100)?)
    }

    pub fn utilities(&self, replies: &[GeneratedReply]) -> Vec<Utility> {
        self.questions.iter().zip(replies).map(|(q, reply)| q.utility(&reply.text)).collect()
    }
}

fn sampling_options(recipe: &LifecycleRecipe, model: &TextModel) -> GenerateOptions {
    GenerateOptions {
        max_new_tokens: recipe.ppo.max_new_tokens,
        stop_ids: Some(model.stop_ids()),
        sampling: Sampling { temperature: recipe.ppo.temperature, seed: Some(42), ..Sampling::default() },
    }
}

pub(super) fn totals(utilities: &[Utility]) -> Vec<f64> {
    utilities.iter().map(|u| u.total()).collect()
}

pub(super) fn evaluate(recipe: &LifecycleRecipe, world: &World, models: &Models) -> Result<AdviceResults> {
    let count = recipe.questions.held_out;
    let held_out = PromptSet::new(world, &models.instruct, Split::HeldOut, count)?;
    let training = PromptSet::new(world, &models.instruct, Split::Train, count)?;
    let mut metrics = vec![
        reward_metric(
            "reward model: pairwise accuracy, held-out themes",
            &recipe.annotator,
            &models.reward,
            &held_out,
            "held_out",
        )?,
        reward_metric(
            "— training themes, held-out questions",
            &recipe.annotator,
            &models.reward,
            &training,
            "seen_themes",
        )?,
    ];
    let (before, after) = (held_out.replies(recipe, &models.instruct)?, held_out.replies(recipe, &models.aligned)?);
    let (before_utilities, after_utilities) = (held_out.utilities(&before), held_out.utilities(&after));
    let keys = held_out.keys();
    let ids: Vec<Vec<u32>> = after.iter().map(|r| r.ids.clone()).collect();
    let (aligned, instruct) = (&models.aligned.model, &models.instruct.model);
    let kls = reply_kls(aligned, instruct, &held_out.prompts, &ids, recipe.ppo.temperature)?;
    let kl = mean(&kls);
    let samples_per_prompt = scored_samples(recipe, models, &held_out)?;
    let best = expected_best(&samples_per_prompt, n_at_kl(kl, SAMPLES))?;

    let (gain, possible): (Vec<f64>, Vec<f64>) = before_utilities
        .iter()
        .zip(&after_utilities)
        .map(|(b, a)| (a.total() - b.total(), Utility::MAX - b.total()))
        .unzip();
    metrics.push(
        Metric::mean("PPO: true utility, held-out themes", Unit::Number, &totals(&after_utilities), &keys)
            .reference("before PPO", mean(&totals(&before_utilities)))
            .reference("maximum", Utility::MAX)
            .reference("best of n (n <= 16) with at most this KL", best.utility),
    );
    metrics.push(Metric::ratio("— gain as a share of the largest possible gain", &gain, &possible, &keys));
    for (name, part) in [
        ("accuracy", (|u| u.accuracy) as fn(&Utility) -> f64),
        ("helpfulness", |u| u.helpfulness),
        ("safety", |u| u.safety),
    ] {
        let of = |all: &[Utility]| all.iter().map(part).collect::<Vec<_>>();
        metrics.push(
            Metric::mean(format!("— {name}"), Unit::Share, &of(&after_utilities), &keys)
                .reference("before PPO", mean(&of(&before_utilities))),
        );
    }
    let on_training =
        |model: &TextModel| Ok::<_, Error>(totals(&training.utilities(&training.replies(recipe, model)?)));
    metrics.push(
        Metric::mean("— true utility, training themes", Unit::Number, &on_training(&models.aligned)?, &training.keys())
            .reference("before PPO", mean(&on_training(&models.instruct)?)),
    );
    let score = |replies: &[GeneratedReply]| scored(&models.reward, &held_out.prompts, replies);
    metrics.push(
        Metric::mean("— reward model score", Unit::Number, &score(&after)?, &keys)
            .reference("before PPO", mean(&score(&before)?))
            .reference("best of n", best.score),
    );
    metrics.push(Metric::mean("— KL to the fine-tuned model, nats per reply", Unit::Number, &kls, &keys));
    metrics.extend(reply_metrics(&reply_stats(&before), &reply_stats(&after)));
    let samples = (0..held_out.questions.len().min(6))
        .map(|i| [held_out.questions[i].prompt.clone(), before[i].text.clone(), after[i].text.clone()])
        .collect();
    let ns = [1, 2, 4, 8, SAMPLES];
    let best_of = ns.iter().map(|&n| expected_best(&samples_per_prompt, n).map(|b| (kl_bound(n), b.utility, b.score)));
    let best_of = best_of.collect::<Result<Vec<_>>>()?;
    Ok(AdviceResults { metrics, best_of, samples, utility: mean(&totals(&after_utilities)), held_out })
}

/// Diversity and length of the replies.
fn reply_metrics(before: &ReplyStats, after: &ReplyStats) -> Vec<Metric> {
    let row = |name: &str, unit, metric: fn(&ReplyStats) -> f64| {
        Metric::plain(name, unit, metric(after)).reference("before PPO", metric(before))
    };
    vec![
        row("— distinct last sentences per 100 replies", Unit::Rough, |s| s.endings_per_100),
        row("— share of replies with the most frequent sentence", Unit::Share, |s| s.most_frequent_share),
        row("— share of distinct replies", Unit::Share, |s| s.distinct as f64 / s.n.max(1) as f64),
        row("— tokens per reply", Unit::Rough, |s| s.mean_tokens),
        row("— replies cut off at the token limit", Unit::Share, |s| s.truncated_share),
    ]
}

/// The share of the annotator's pairs that the reward model orders the same way, with rules that know no facts as baselines.
fn reward_metric(
    name: &str,
    annotator: &Annotator,
    reward: &RewardModel,
    prompts: &PromptSet,
    file: &str,
) -> Result<Metric> {
    let (mut right, mut keys, mut rule, mut shorter) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut groups = Vec::new();
    for (i, question) in prompts.questions.iter().enumerate() {
        let ranking = ranked(annotator, question, &format!("{file} {i}"))?;
        let scores = reward.answer_scores(&ranking)?;
        let texts: Vec<&str> = ranking.answers.iter().map(String::as_str).collect();
        let utilities: Vec<f64> = question.answers.iter().map(|a| a.utility).collect();
        groups.push((utilities, question.answers.iter().map(|a| a.text.as_str()).collect()));
        let visible: Vec<f64> = texts.iter().map(|text| question.utility(text).without_accuracy()).collect();
        for (better, worse) in ranking.pairs() {
            let prefers =
                |x: &[f64]| if x[better] == x[worse] { 0.5 } else { f64::from(u8::from(x[better] > x[worse])) };
            right.push(prefers(&scores));
            rule.push(prefers(&visible));
            shorter.push(prefers(&texts.iter().map(|t| -(t.len() as f64)).collect::<Vec<_>>()));
            keys.push(&question.key);
        }
    }
    Ok(Metric::mean(name, Unit::Share, &right, &keys)
        .reference("noise ceiling of the annotator", annotator.noise_ceiling(&groups))
        .reference("rule: caution and plain words", mean(&rule))
        .reference("rule: shorter answer", mean(&shorter)))
}

fn scored(reward: &RewardModel, prompts: &[Vec<u32>], replies: &[GeneratedReply]) -> Result<Vec<f64>> {
    let rows: Vec<Vec<u32>> = prompts.iter().zip(replies).map(|(q, r)| [q.as_slice(), &r.ids].concat()).collect();
    let mut scores = Vec::with_capacity(rows.len());
    for chunk in rows.chunks(64) {
        scores.extend(reward.scores(chunk)?);
    }
    Ok(scores)
}

/// Several replies of the fine-tuned model to each prompt, with reward model score and true utility.
fn scored_samples(recipe: &LifecycleRecipe, models: &Models, prompts: &PromptSet) -> Result<Vec<Vec<ScoredReply>>> {
    let count = prompts.prompts.len().min(BEST_OF_PROMPTS);
    let repeated: Vec<Vec<u32>> =
        (0..count).flat_map(|i| std::iter::repeat_n(prompts.prompts[i].clone(), SAMPLES)).collect();
    let replies = generate_replies(&models.instruct, &repeated, &sampling_options(recipe, &models.instruct), 128)?;
    let scores = scored(&models.reward, &repeated, &replies)?;
    let sample = |i: usize| {
        let utility = prompts.questions[i / SAMPLES].utility(&replies[i].text).total();
        ScoredReply { score: scores[i], utility }
    };
    Ok((0..count).map(|p| (p * SAMPLES..(p + 1) * SAMPLES).map(sample).collect()).collect())
}

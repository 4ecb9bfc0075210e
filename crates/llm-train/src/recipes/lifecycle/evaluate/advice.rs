//! Advice: how well the reward model foresees the annotator, and what PPO makes of the policy, on themes that neither saw.

use llm_data::Message;
use llm_data::world::{Question, Split, SplitKey, Use, Utility, World};
use llm_feedback::{Annotator, noise_ceiling};
use llm_infer::{GenerateOptions, Sampling, TextModel};

use super::super::LifecycleRecipe;
use super::super::data::ranked;
use super::super::figure::{Figure, Unit, mean};
use super::Models;
use crate::best_of::{Judged, expected_best, kl_bound, n_at_kl};
use crate::eval::{ReplyStats, WrittenReply, reply_kls, reply_stats, write_replies};
use crate::examples::chat_messages;
use crate::recipes::RewardModel;
use crate::{Error, Result};

/// Replies drawn to each prompt for best-of-n, and prompts.
const MOST: usize = 16;
const PROMPTS_OF_BEST: usize = 64;

pub(super) struct Advised {
    pub figures: Vec<Figure>,
    pub best_of: Vec<(f64, f64, f64)>,
    pub samples: Vec<[String; 3]>,
    /// The questions about themes that were held out, and the aligned model's mean utility on them.
    pub unseen: Asked,
    pub utility: f64,
}

/// Questions with their prompts in token ids.
pub(super) struct Asked {
    pub questions: Vec<Question>,
    pub prompts: Vec<Vec<u32>>,
}

impl Asked {
    pub fn new(world: &World, model: &TextModel, split: Split, count: usize) -> Result<Self> {
        let questions = world.questions(split, Use::Validation, count);
        let ids = |q: &Question| model.chat_ids(&chat_messages(&[Message::user(&q.prompt)]));
        let prompts = questions.iter().map(ids).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { questions, prompts })
    }

    pub fn keys(&self) -> Vec<&SplitKey> {
        self.questions.iter().map(|q| &q.key).collect()
    }

    /// One reply to each, drawn as PPO draws.
    pub fn replies(&self, recipe: &LifecycleRecipe, model: &TextModel) -> Result<Vec<WrittenReply>> {
        write_replies(model, &self.prompts, &drawn(recipe, model), 100)
    }

    pub fn utilities(&self, replies: &[WrittenReply]) -> Vec<Utility> {
        self.questions.iter().zip(replies).map(|(q, reply)| q.utility(&reply.text)).collect()
    }
}

fn drawn(recipe: &LifecycleRecipe, model: &TextModel) -> GenerateOptions {
    GenerateOptions {
        max_new_tokens: recipe.ppo.max_new_tokens,
        stop_ids: model.stop_ids(),
        sampling: Sampling { temperature: recipe.ppo.temperature, ..Sampling::default() },
    }
}

pub(super) fn totals(utilities: &[Utility]) -> Vec<f64> {
    utilities.iter().map(|u| u.total()).collect()
}

pub(super) fn advise(recipe: &LifecycleRecipe, world: &World, models: &Models) -> Result<Advised> {
    let count = recipe.questions.held_out;
    let unseen = Asked::new(world, &models.instruct, Split::HeldOut, count)?;
    let seen = Asked::new(world, &models.instruct, Split::Train, count)?;
    let mut figures = vec![
        reward_figure(
            "reward model: pairs in order, themes unseen",
            &recipe.annotator,
            &models.reward,
            &unseen,
            "held_out",
        )?,
        reward_figure("— themes seen, questions unseen", &recipe.annotator, &models.reward, &seen, "seen_themes")?,
    ];
    let (before, after) = (unseen.replies(recipe, &models.instruct)?, unseen.replies(recipe, &models.aligned)?);
    let (was, is) = (unseen.utilities(&before), unseen.utilities(&after));
    let keys = unseen.keys();
    let pad = models.aligned.tokenizer.chat_format()?.pad;
    let ids: Vec<Vec<u32>> = after.iter().map(|r| r.ids.clone()).collect();
    let (aligned, instruct) = (&models.aligned.model, &models.instruct.model);
    let kls = reply_kls(aligned, instruct, &unseen.prompts, &ids, recipe.ppo.temperature, pad)?;
    let kl = mean(&kls);
    let judged = judged(recipe, models, &unseen)?;
    let of_n = n_at_kl(kl, MOST);
    let best = expected_best(&judged, of_n)?;

    let (gain, possible): (Vec<f64>, Vec<f64>) =
        was.iter().zip(&is).map(|(w, i)| (i.total() - w.total(), Utility::MAX - w.total())).unzip();
    figures.push(
        Figure::mean("PPO: true utility, themes unseen", Unit::Number, &totals(&is), &keys)
            .beside("before", mean(&totals(&was)))
            .beside("possible", Utility::MAX)
            .beside("best of n at no more KL, n at most 16", best.utility),
    );
    figures.push(Figure::ratio("— share of the possible gain", &gain, &possible, &keys));
    for (name, part) in [
        ("accuracy", (|u| u.accuracy) as fn(&Utility) -> f64),
        ("helpfulness", |u| u.helpfulness),
        ("safety", |u| u.safety),
    ] {
        let of = |all: &[Utility]| all.iter().map(part).collect::<Vec<_>>();
        figures.push(Figure::mean(format!("— {name}"), Unit::Share, &of(&is), &keys).beside("before", mean(&of(&was))));
    }
    let of_seen = |model: &TextModel| Ok::<_, Error>(totals(&seen.utilities(&seen.replies(recipe, model)?)));
    figures.push(
        Figure::mean("— true utility, themes seen", Unit::Number, &of_seen(&models.aligned)?, &seen.keys())
            .beside("before", mean(&of_seen(&models.instruct)?)),
    );
    let score = |replies: &[WrittenReply]| scored(&models.reward, &unseen.prompts, replies);
    figures.push(
        Figure::mean("— reward model's score of the replies", Unit::Number, &score(&after)?, &keys)
            .beside("before", mean(&score(&before)?))
            .beside("best of n", best.score),
    );
    figures.push(Figure::mean("— KL from the fine-tuned model, nats per reply", Unit::Number, &kls, &keys));
    figures.extend(variety(&reply_stats(&before), &reply_stats(&after)));
    let samples = (0..unseen.questions.len().min(6))
        .map(|i| [unseen.questions[i].prompt.clone(), before[i].text.clone(), after[i].text.clone()])
        .collect();
    let ns = [1, 2, 4, 8, MOST];
    let best_of = ns.iter().map(|&n| expected_best(&judged, n).map(|b| (kl_bound(n), b.utility, b.score)));
    let best_of = best_of.collect::<Result<Vec<_>>>()?;
    Ok(Advised { figures, best_of, samples, utility: mean(&totals(&is)), unseen })
}

/// How varied the replies are, and how many the limit cut off.
fn variety(before: &ReplyStats, after: &ReplyStats) -> Vec<Figure> {
    let row = |name: &str, unit, figure: fn(&ReplyStats) -> f64| {
        Figure::plain(name, unit, figure(after)).beside("before", figure(before))
    };
    vec![
        row("— different last sentences in 100 replies", Unit::Rough, |s| s.endings_per_100),
        row("— share of the commonest sentence", Unit::Share, |s| s.commonest_share),
        row("— different replies, share", Unit::Share, |s| s.distinct as f64 / s.n.max(1) as f64),
        row("— tokens per reply", Unit::Rough, |s| s.mean_tokens),
        row("— replies cut off by the limit", Unit::Share, |s| s.cut_off_share),
    ]
}

/// The share of the annotator's pairs that the reward model puts in the same order, beside rules without knowledge.
fn reward_figure(name: &str, annotator: &Annotator, reward: &RewardModel, asked: &Asked, file: &str) -> Result<Figure> {
    let (mut right, mut keys, mut rule, mut shorter) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut effective = Vec::new();
    for (i, question) in asked.questions.iter().enumerate() {
        let ranking = ranked(annotator, question, &format!("{file} {i}"))?;
        let scores = reward.answer_scores(&ranking)?;
        let texts: Vec<&str> = ranking.answers.iter().map(String::as_str).collect();
        let utilities: Vec<f64> = question.answers.iter().map(|a| a.utility).collect();
        effective.push(annotator.effective_utilities(&utilities, &texts));
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
    Ok(Figure::mean(name, Unit::Share, &right, &keys)
        .beside("best possible", noise_ceiling(annotator.beta, &effective))
        .beside("caution and plain words alone", mean(&rule))
        .beside("the shorter answer", mean(&shorter)))
}

fn scored(reward: &RewardModel, prompts: &[Vec<u32>], replies: &[WrittenReply]) -> Result<Vec<f64>> {
    let rows: Vec<Vec<u32>> = prompts.iter().zip(replies).map(|(q, r)| [q.as_slice(), &r.ids].concat()).collect();
    let mut scores = Vec::with_capacity(rows.len());
    for chunk in rows.chunks(64) {
        scores.extend(reward.scores(chunk)?);
    }
    Ok(scores)
}

/// Several replies of the fine-tuned model to each prompt, judged by the reward model and by the truth.
fn judged(recipe: &LifecycleRecipe, models: &Models, asked: &Asked) -> Result<Vec<Vec<Judged>>> {
    let prompts = asked.prompts.len().min(PROMPTS_OF_BEST);
    let repeated: Vec<Vec<u32>> =
        (0..prompts).flat_map(|i| std::iter::repeat_n(asked.prompts[i].clone(), MOST)).collect();
    let replies = write_replies(&models.instruct, &repeated, &drawn(recipe, &models.instruct), 128)?;
    let scores = scored(&models.reward, &repeated, &replies)?;
    let judge = |i: usize| {
        let utility = asked.questions[i / MOST].utility(&replies[i].text).total();
        Judged { score: scores[i], utility }
    };
    Ok((0..prompts).map(|p| (p * MOST..(p + 1) * MOST).map(judge).collect()).collect())
}

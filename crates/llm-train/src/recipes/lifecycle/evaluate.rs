//! The examination at the end of a life: every figure of the report comes from here or from the stages' metrics.

use std::path::Path;

use llm_data::world::{Phenomenon, Question, Split, Utility, World};
use llm_data::{Message, TokenDataset, read_rankings};
use llm_feedback::noise_ceiling;
use llm_infer::{GenerateOptions, Sampling, TextModel};
use llm_model::{Head, Model};
use serde::Serialize;

use super::LifecycleRecipe;
use crate::eval::{TaskScores, TextLoss, probe_accuracy, reply_kls, task_scores, text_loss};
use crate::examples::chat_messages;
use crate::recipes::RewardModel;
use crate::run::{Event, write_json};
use crate::{Error, Result};

/// What the life came to.
#[derive(Debug, Serialize)]
pub(super) struct Evaluation {
    /// Bytes and tokens of the training text.
    pub corpus: (usize, usize),
    pub vocab_size: usize,
    /// Parameters of the models by name.
    pub parameters: Vec<(&'static str, usize)>,
    /// Share of right choices by phenomenon: trained, untrained.
    pub probes: Vec<(&'static str, f64, f64)>,
    pub base: TaskScores,
    pub instruct: TaskScores,
    pub aligned: TaskScores,
    pub student: TaskScores,
    /// Held-out text: base, aligned, student.
    pub text: [TextLoss; 3],
    /// Share of held-out pairs that the reward model orders as the annotator did, and the best possible.
    pub reward_accuracy: (f64, f64),
    /// Advice before and after PPO, and the student's.
    pub advice: [Advice; 3],
    /// `KL(aligned ‖ instruct)` of a reply, summed over its tokens, in nats.
    pub kl: f64,
    /// Questions with the reply before and after PPO.
    pub samples: Vec<[String; 3]>,
}

/// How good a model's advice truly is: means over the held-out questions.
#[derive(Debug, Serialize)]
pub(super) struct Advice {
    pub total: f64,
    pub accuracy: f64,
    pub helpfulness: f64,
    pub safety: f64,
}

pub(super) fn evaluate(
    recipe: &LifecycleRecipe,
    world: &World,
    out: &Path,
    observer: &mut dyn FnMut(Event),
) -> Result<Evaluation> {
    const PARTS: u64 = 12;
    let mut done = 0;
    observer(Event::Begin { stage: "evaluation", total: PARTS, done, unit: "parts" });
    let mut tick = |message: &str| {
        done += 1;
        observer(Event::Progress { done, message });
    };
    let load = |name: &str| -> Result<TextModel> { Ok(TextModel::load(&out.join(name))?) };
    let (base, instruct, aligned, student) = (load("base")?, load("instruct")?, load("aligned")?, load("student")?);
    let count = recipe.questions.held_out;

    let untrained = Model::init(base.model.config().clone(), Head::LanguageModel, recipe.pretrain.seed)?.frozen()?;
    let mut probes = Vec::new();
    for phenomenon in Phenomenon::ALL {
        let pairs = world.probes(phenomenon, count);
        let accuracy = |model: &Model| probe_accuracy(model, &base.tokenizer, &pairs);
        probes.push((phenomenon.name(), accuracy(&base.model)?, accuracy(&untrained)?));
    }
    tick("probes");

    let tasks = world.tasks(Split::HeldOut, count);
    let mut score = |model: &TextModel| {
        let scores = task_scores(model, &tasks, 48);
        tick("tasks");
        scores
    };
    let scores = (score(&base)?, score(&instruct)?, score(&aligned)?, score(&student)?);

    let held_out = TokenDataset::open(&out.join("shards"), "held_out")?;
    let (batch_size, seq_len) = (recipe.pretrain.batch_size, recipe.pretrain.seq_len);
    let loss = |model: &TextModel| text_loss(&model.model, &held_out, batch_size, seq_len, 0);
    let text = [loss(&base)?, loss(&aligned)?, loss(&student)?];
    tick("held-out text");

    let reward_model = RewardModel::load(&out.join("reward"))?;
    let rankings = read_rankings(&out.join("data/rankings-held_out.jsonl"))?.rankings;
    let questions = world.questions(Split::HeldOut, count);
    let utilities: Vec<Vec<f64>> = questions.iter().map(|q| q.answers.iter().map(|a| a.utility).collect()).collect();
    let ceiling = noise_ceiling(recipe.annotator.beta, &utilities);
    let reward_accuracy = (reward_model.accuracy(&rankings)?, ceiling);
    tick("reward model");

    let prompts = questions.iter().map(|q| instruct.chat_ids(&chat_messages(&[Message::user(&q.prompt)])));
    let prompts = prompts.collect::<Result<Vec<_>, _>>()?;
    let mut advise = |model: &TextModel| {
        let replies = replies(recipe, model, &prompts);
        tick("advice");
        replies
    };
    let replies = [advise(&instruct)?, advise(&aligned)?, advise(&student)?];
    let texts =
        |replies: &[Vec<u32>]| replies.iter().map(|ids| Ok(aligned.tokenizer.decode(ids)?)).collect::<Result<Vec<_>>>();
    let texts = [texts(&replies[0])?, texts(&replies[1])?, texts(&replies[2])?];
    let pad = aligned.tokenizer.chat_format()?.pad;
    let kls = reply_kls(&aligned.model, &instruct.model, &prompts, &replies[1], recipe.ppo.temperature, pad)?;
    let kl = kls.iter().sum::<f64>() / kls.len().max(1) as f64;
    tick("KL");
    let samples = (0..questions.len().min(6))
        .map(|i| [questions[i].prompt.clone(), texts[0][i].trim().to_owned(), texts[1][i].trim().to_owned()]);
    let manifest = &held_out.manifest().splits["train"];
    let size = |model: &Model| model.count().total();
    let evaluation = Evaluation {
        corpus: (manifest.bytes, manifest.tokens),
        vocab_size: base.tokenizer.vocab_size(),
        parameters: vec![
            ("model", size(&base.model)),
            ("reward model", size(&reward_model.model)),
            ("student", size(&student.model)),
        ],
        probes,
        base: scores.0,
        instruct: scores.1,
        aligned: scores.2,
        student: scores.3,
        text,
        reward_accuracy,
        advice: [advice(&questions, &texts[0]), advice(&questions, &texts[1]), advice(&questions, &texts[2])],
        kl,
        samples: samples.collect(),
    };
    observer(Event::End);
    let json = serde_json::to_value(&evaluation).map_err(|e| Error::Input(format!("evaluation.json: {e}")))?;
    write_json(&out.join("evaluation.json"), &json)?;
    Ok(evaluation)
}

/// One reply to each prompt, drawn as PPO draws.
fn replies(recipe: &LifecycleRecipe, model: &TextModel, prompts: &[Vec<u32>]) -> Result<Vec<Vec<u32>>> {
    let options = GenerateOptions {
        max_new_tokens: recipe.ppo.max_new_tokens,
        stop_ids: model.stop_ids(),
        sampling: Sampling { temperature: recipe.ppo.temperature, ..Sampling::default() },
    };
    let mut replies = Vec::with_capacity(prompts.len());
    for chunk in prompts.chunks(64) {
        replies.extend(llm_infer::generate(&model.model, chunk, &options, |_, _| true)?);
    }
    Ok(replies)
}

fn advice(questions: &[Question], replies: &[String]) -> Advice {
    let utilities: Vec<Utility> = questions.iter().zip(replies).map(|(q, reply)| q.utility(reply)).collect();
    let mean = |part: fn(&Utility) -> f64| utilities.iter().map(part).sum::<f64>() / utilities.len().max(1) as f64;
    Advice {
        total: mean(|u| u.total()),
        accuracy: mean(|u| u.accuracy),
        helpfulness: mean(|u| u.helpfulness),
        safety: mean(|u| u.safety),
    }
}

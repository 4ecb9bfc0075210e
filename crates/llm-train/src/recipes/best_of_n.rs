//! Best-of-n: sample n replies to each prompt and keep the one with the highest reward (Stiennon et al. 2020, arXiv 2009.01325; Nakano
//! et al. 2021, arXiv 2112.09332). The kept replies are data for fine-tuning; [`super::expert_iteration()`] repeats both.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::SeqCst;

use llm_data::{ChatMessage, Conversation, write_jsonl};
use llm_model::{Model, write_atomic};
use llm_tokenizer::Tokenizer;
use rand::RngExt;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::policy::Policy;
use crate::adapters::Adapters;
use crate::best_of::{ScoredReply, expected_best, kl_bound};
use crate::data::{DataOptions, one_or_several};
use crate::prompts::read_prompts;
use crate::rewards::{Prompt, Reward, RewardTable};
use crate::rl::MissingEos;
use crate::rollout::{RolloutOptions, has_eos, sample_replies};
use crate::run::{Event, FINISHED, RunOptions, RunSetup, Start, rng, write_json};
use crate::{Error, Result};

/// The recipe of best-of-n.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BestOfNRecipe {
    /// Seed for sampling.
    pub seed: u64,
    /// Replies to each prompt.
    pub n: usize,
    /// Prompts per batch; after each batch the replies are written. Another number gives other random replies.
    pub batch_size: usize,
    /// Token limit of a reply.
    pub max_new_tokens: usize,
    /// Temperature of sampling.
    pub temperature: f64,
    /// How the reward of a reply without an end token changes.
    pub missing_eos: MissingEos,
    /// How the data files are read.
    pub data: DataOptions,
    /// The sources of the reward; empty: the reward models of `--reward`.
    pub rewards: Vec<RewardTable>,
}

impl Default for BestOfNRecipe {
    /// The built-in recipe.
    fn default() -> Self {
        crate::recipe::default()
    }
}

/// The inputs of [`best_of_n`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::Args))]
pub struct BestOfNInputs {
    /// Folder of the model that is sampled from; on the command line also org/name of the Hugging Face hub.
    #[cfg_attr(feature = "cli", arg(long, value_name = "DIR"))]
    pub model: PathBuf,
    /// Folders of reward models; the recipe's tables `[[rewards]]` say how they are used [default: the mean of their scores].
    #[cfg_attr(feature = "cli", arg(long, num_args = 1.., value_name = "DIR"))]
    #[serde(deserialize_with = "one_or_several", default)]
    pub reward: Vec<PathBuf>,
    /// Prompts in JSONL; their other columns are for the rewards.
    #[cfg_attr(feature = "cli", arg(long, value_name = "FILE"))]
    pub data: PathBuf,
    /// Folder of an adapter of the model, in the format of PEFT [default: none].
    #[cfg_attr(feature = "cli", arg(long, value_name = "DIR", display_order = 4))]
    pub adapter: Option<PathBuf>,
}

/// The conversations with the best replies: data for fine-tuning.
pub const BEST: &str = "best.jsonl";
/// All replies with their rewards, one line per prompt.
const REPLIES: &str = "replies.jsonl";
/// The rewards for each n, as a table.
const REPORT: &str = "report.md";

/// Samples `n` replies to each prompt and writes the best ones to `best.jsonl` in the folder `out`, all to `replies.jsonl`, and a table
/// of the expected reward for each number of replies to `report.md`; returns the table.
#[tracing::instrument(level = "debug", skip_all, fields(run = %out.as_ref().display()))]
pub fn best_of_n(
    recipe: &BestOfNRecipe,
    inputs: &BestOfNInputs,
    out: impl AsRef<Path>,
    options: RunOptions,
) -> Result<String> {
    let out = out.as_ref();
    let setup = match RunSetup::check(recipe, inputs, out, options)? {
        Start::Open(setup) => setup,
        Start::Finished(_) => return std::fs::read_to_string(out.join(REPORT)).map_err(Error::io(out.join(REPORT))),
    };
    let loaded = Policy::load(&inputs.model, inputs.adapter.as_ref())?;
    let reward = loaded.rewards(&recipe.rewards, &inputs.reward, setup.device())?;
    let Policy { tokenizer, base, end_of_turn, .. } = loaded;
    let base = base.to_device(setup.device())?;
    let policy = Adapters::new(&inputs.model, None, inputs.adapter.as_ref(), recipe.seed).below(&base)?;
    let room = (base.config().max_position_embeddings, recipe.max_new_tokens);
    let prompts = read_prompts(&inputs.data, &recipe.data, &tokenizer, room)?;

    let (_, RunOptions { observer, stop, .. }, _lock) = setup.open_folder()?;
    let mut lines = read_lines(&out.join(REPLIES), recipe.batch_size)?;
    let stage = out.file_name().unwrap_or(out.as_os_str()).to_string_lossy().into_owned();
    observer(Event::Begin { stage: &stage, total: prompts.len() as u64, done: lines.len() as u64, unit: "prompts" });
    let sampler = Sampler { recipe, policy: &policy, tokenizer: &tokenizer, reward: &reward, eos: end_of_turn };
    let done = lines.len() / recipe.batch_size;
    for (batch, prompts) in prompts.chunks(recipe.batch_size).enumerate().skip(done) {
        if stop.load(SeqCst) {
            return Err(Error::Interrupted { run: out.to_owned(), done: format!("after {} prompts", lines.len()) });
        }
        let new = sampler.sample(prompts, batch as u64)?;
        append(&out.join(REPLIES), &new)?;
        lines.extend(new);
        let mean = lines.iter().map(|line| line.rewards[line.best()]).sum::<f64>() / lines.len() as f64;
        observer(Event::Progress { done: lines.len() as u64, message: &format!("reward of the best {mean:.2}") });
    }
    observer(Event::End);
    let best: Vec<Conversation> = lines.iter().map(Line::conversation).collect();
    write_jsonl(out.join(BEST), &best)?;
    let table = table(&lines, recipe.n)?;
    write_atomic(&out.join(REPORT), table.as_bytes())?;
    write_json(&out.join(FINISHED), &json!({}))?;
    Ok(table)
}

/// A prompt with its replies and their rewards: a line of `replies.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Line {
    prompt: Vec<ChatMessage>,
    replies: Vec<String>,
    rewards: Vec<f64>,
}

impl Line {
    /// The index of the highest reward; of equal ones the first.
    fn best(&self) -> usize {
        (1..self.rewards.len()).fold(0, |best, i| if self.rewards[i] > self.rewards[best] { i } else { best })
    }

    fn conversation(&self) -> Conversation {
        let mut messages = self.prompt.clone();
        messages.push(ChatMessage::assistant(&self.replies[self.best()]));
        Conversation::from(messages)
    }
}

/// What samples and scores the replies.
struct Sampler<'a> {
    recipe: &'a BestOfNRecipe,
    policy: &'a Model,
    tokenizer: &'a Tokenizer,
    reward: &'a Reward<'a>,
    eos: u32,
}

impl Sampler<'_> {
    /// The replies to a batch of prompts, which depend on the seed and the number of the batch only.
    fn sample(&self, prompts: &[Prompt], batch: u64) -> Result<Vec<Line>> {
        let recipe = self.recipe;
        let seed = rng(recipe.seed, 2, batch).random();
        let options = RolloutOptions {
            num_generations: recipe.n,
            ..RolloutOptions::new(recipe.max_new_tokens, self.eos, recipe.temperature, seed)
        };
        let queries: Vec<Vec<u32>> = prompts.iter().map(|prompt| prompt.query.clone()).collect();
        let replies = sample_replies(self.policy, &queries, &options)?;
        let pairs = prompts.iter().zip(&replies).flat_map(|(p, all)| all.iter().map(move |r| (p, r.ids.as_slice())));
        let mut scores = self.reward.score_replies(pairs, self.eos)?.into_iter();
        let mut lines = Vec::with_capacity(prompts.len());
        for (prompt, replies) in prompts.iter().zip(&replies) {
            let mut line = Line { prompt: prompt.messages.clone(), replies: Vec::new(), rewards: Vec::new() };
            for (reply, score) in replies.iter().zip(&mut scores) {
                line.replies.push(self.tokenizer.decode(&reply.ids)?.trim().to_owned());
                line.rewards.push(recipe.missing_eos.apply(score, has_eos(reply)));
            }
            lines.push(line);
        }
        Ok(lines)
    }
}

/// The lines of whole batches that an interrupted run wrote; the rest of the file is removed.
fn read_lines(path: &Path, batch_size: usize) -> Result<Vec<Line>> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io(path)(error)),
    };
    let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    let mut lines: Vec<Line> = whole.map_while(|line| serde_json::from_str(line).ok()).collect();
    lines.truncate(lines.len() / batch_size * batch_size);
    write_atomic(path, to_text(&lines)?.as_bytes())?;
    Ok(lines)
}

fn append(path: &Path, lines: &[Line]) -> Result<()> {
    let text = to_text(lines)?;
    let file = OpenOptions::new().create(true).append(true).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_data())).map_err(Error::io(path))
}

fn to_text(lines: &[Line]) -> Result<String> {
    let line = |line: &Line| serde_json::to_value(line).map(|value: Value| format!("{value}\n"));
    let lines = lines.iter().map(line).collect::<std::result::Result<String, _>>();
    lines.map_err(|e| Error::Internal(format!("{REPLIES}: {e}")))
}

/// The expected reward of the best of 1, 2, 4, … and n replies, and the KL divergence from the model that it costs at most.
fn table(lines: &[Line], n: usize) -> Result<String> {
    let scored = |line: &Line| line.rewards.iter().map(|&score| ScoredReply { score, utility: score }).collect();
    let prompts: Vec<Vec<ScoredReply>> = lines.iter().map(scored).collect();
    let mut sizes: Vec<usize> =
        std::iter::successors(Some(1), |size| Some(2 * size)).take_while(|&size| size < n).collect();
    sizes.push(n);
    let mut text = "| n | mean reward of the best | KL, nats per reply, at most |\n|---|---|---|\n".to_owned();
    for size in sizes {
        let best = expected_best(&prompts, size)?;
        text += &format!("| {size} | {:.4} | {:.3} |\n", best.score, kl_bound(size));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(rewards: &[f64]) -> Line {
        let replies = (0..rewards.len()).map(|i| i.to_string()).collect();
        Line { prompt: vec![ChatMessage::user("Say a number.")], replies, rewards: rewards.to_vec() }
    }

    #[test]
    fn the_first_of_the_best_replies_is_kept() {
        for (rewards, best) in [(&[1., 3., 2.][..], 1), (&[2., 2.], 0), (&[-1.], 0)] {
            assert_eq!(line(rewards).best(), best);
            assert_eq!(line(rewards).conversation().messages[1].text(), best.to_string());
        }
    }

    #[test]
    fn the_lines_of_a_cut_off_batch_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(REPLIES);
        assert_eq!(read_lines(&path, 2).unwrap(), []);
        let lines: Vec<Line> = (0..4).map(|i| line(&[f64::from(i)])).collect();
        append(&path, &lines).unwrap();
        let whole = std::fs::read_to_string(&path).unwrap();
        for (cut, left) in [(0, 4), (1, 2), (whole.len() / 2 + 3, 0)] {
            std::fs::write(&path, &whole[..whole.len() - cut]).unwrap();
            assert_eq!(read_lines(&path, 2).unwrap(), lines[..left], "{cut} bytes are missing");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), to_text(&lines[..left]).unwrap());
        }
    }

    /// Rewards 1, 2, 3 and 0, 0, 6. Best of 2: 3, 2, 3 and 0, 6, 6.
    #[test]
    fn the_table_has_the_expected_reward_of_each_number_of_replies() {
        let text = table(&[line(&[1., 2., 3.]), line(&[0., 0., 6.])], 3).unwrap();
        let rows = ["| 1 | 2.0000 | 0.000 |", "| 2 | 3.3333 | 0.193 |", "| 3 | 4.5000 | 0.432 |"];
        assert!(rows.iter().all(|row| text.contains(row)) && text.lines().count() == 5, "{text}");
    }
}

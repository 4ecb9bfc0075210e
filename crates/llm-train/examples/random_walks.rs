//! Random walks to a goal on a graph, a task with a known optimum: imitation of random walks, best-of-n, PPO, GRPO and RLOO are compared
//! with the policy that takes a random edge and with the best one (Chen et al. 2021, arXiv 2106.01345, section 3).
//!
//! ```sh
//! cargo run --release -p llm-train --example random_walks
//! ```

use std::error::Error;

use llm_engine::{GenerateOptions, Sampling, generate};
use llm_model::{Batch, Head, Model, ModelConfig};
use llm_synthetic::{WalkConfig, WalkGraph};
use llm_train::best_of::{ScoredReply, expected_best};
use llm_train::loss::LossType;
use llm_train::optim::{Learner, OptimizerConfig, Schedule};
use llm_train::recipes::{GrpoRecipe, GrpoTrainer, PpoRecipe, PpoTrainer, SpecialIds};
use llm_train::rewards::{Prompt, Reward};
use llm_train::rl::{MissingEos, ScaleRewards};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// The size of the experiment.
struct Size {
    /// Graphs, each with its own models.
    seeds: u64,
    /// Random walks to imitate, and passes over them.
    walks: usize,
    epochs: usize,
    /// Updates of reinforcement learning, and replies in each.
    updates: u64,
    episodes: usize,
    /// Walks from each start in an evaluation.
    samples: usize,
}

/// The rows of the table: name, and mean reward for each seed.
type Rows = Vec<(String, Vec<f64>)>;

/// The token of a node is its number, so the token of the goal ends a reply.
const IDS: SpecialIds = SpecialIds { pad: NODES as u32, eos: WalkGraph::GOAL as u32 };
const NODES: usize = 21;
const MAX_LENGTH: usize = 10;

fn main() -> Result<()> {
    let size = Size { seeds: 3, walks: 1000, epochs: 20, updates: 100, episodes: 128, samples: 100 };
    print!("{}", table(&compare(&size)?));
    Ok(())
}

/// Runs all methods for all seeds.
fn compare(size: &Size) -> Result<Rows> {
    let mut rows = Rows::new();
    for seed in 1..=size.seeds {
        let task = Task::new(seed)?;
        let imitation = task.imitate(size)?;
        let mut add = |name: &str, reward: f64| match rows.iter_mut().find(|row| row.0 == name) {
            Some(row) => row.1.push(reward),
            None => rows.push((name.to_owned(), vec![reward])),
        };
        add("random edges", task.graph.random());
        add("imitation of random walks (SFT)", mean(&task.rewards(&imitation, size.samples)?));
        for n in [4, 16] {
            add(&format!("best of {n}"), task.best_of(&imitation, n, size.samples.max(n))?);
        }
        add("PPO", mean(&task.rewards(&task.ppo(&imitation, size)?, size.samples)?));
        for loss in [LossType::Grpo, LossType::Rloo] {
            let name = if loss == LossType::Rloo { "RLOO" } else { "GRPO" };
            add(name, mean(&task.rewards(&task.grpo(&imitation, size, loss)?, size.samples)?));
        }
        add("optimum", task.graph.optimum());
    }
    Ok(rows)
}

/// The table as Markdown: the mean over the seeds, and each seed.
fn table(rows: &Rows) -> String {
    let mut text = "| policy | mean reward | each seed |\n|---|---|---|\n".to_owned();
    for (name, rewards) in rows {
        let each: Vec<String> = rewards.iter().map(|reward| format!("{reward:.3}")).collect();
        text +=
            &format!("| {name} | {:.3} | {} |\n", rewards.iter().sum::<f64>() / rewards.len() as f64, each.join(", "));
    }
    text
}

/// A graph with its random streams.
struct Task {
    graph: WalkGraph,
    seed: u64,
}

impl Task {
    fn new(seed: u64) -> Result<Self> {
        let config = WalkConfig { seed, nodes: NODES, max_length: MAX_LENGTH, ..WalkConfig::default() };
        Ok(Self { graph: WalkGraph::new(&config).ok_or("no graph with a walk from every node")?, seed })
    }

    /// A model that is trained to continue random walks.
    fn imitate(&self, size: &Size) -> Result<Model> {
        let config = ModelConfig {
            vocab_size: NODES + 1,
            hidden_size: 48,
            intermediate_size: 96,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            max_position_embeddings: 16,
            ..ModelConfig::default()
        };
        let mut learner = Learner::new(Model::init(config, Head::LanguageModel, self.seed)?, &optimizer(3e-3))?;
        let walks = self.graph.random_walks(size.walks, self.seed);
        for _ in 0..size.epochs {
            for walks in walks.chunks(50) {
                let token = |walk: &[usize], t: usize| walk.get(t).map(|&node| node as u32);
                let inputs: Vec<Vec<u32>> = walks
                    .iter()
                    .map(|w| (0..MAX_LENGTH - 1).map(|t| token(w, t).unwrap_or(IDS.pad)).collect())
                    .collect();
                let labels: Vec<i64> =
                    walks.iter().flat_map(|w| (1..MAX_LENGTH).map(|t| token(w, t).map_or(-100, i64::from))).collect();
                let hidden = learner.model.hidden(&Batch::new(&inputs)?, None)?.flatten(0, 1)?; // (walks · tokens, hidden)
                learner.backward(&learner.model.cross_entropy(&hidden, &labels)?)?;
                learner.step(3e-3)?;
            }
        }
        Ok(learner.model.frozen()?)
    }

    /// PPO without a KL penalty: the reward is exact, so that nothing can be over-optimised.
    fn ppo(&self, start: &Model, size: &Size) -> Result<Model> {
        let recipe = PpoRecipe {
            seed: self.seed,
            updates: size.updates,
            num_ppo_epochs: 4,
            max_new_tokens: MAX_LENGTH - 1,
            micro_batch_size: size.episodes,
            kl_coef: 0.,
            missing_eos: MissingEos::None,
            optimizer: optimizer(1e-3),
            value_optimizer: optimizer(1e-3),
            ..PpoRecipe::default()
        };
        let score = |rows: &[Vec<u32>]| Ok(rows.iter().map(|row| self.optimality(row)).collect());
        let critic = start.with_head(Head::Token, self.seed)?;
        let mut trainer = PpoTrainer::new(start, critic, Reward::of_rows(score), IDS, &recipe)?;
        for update in 0..size.updates {
            let rollouts = trainer.roll_out(&self.queries(size.episodes), self.seed * 1_000_000 + update)?;
            trainer.learn(&rollouts, update)?;
        }
        Ok(trainer.policy.model.frozen()?)
    }

    /// GRPO or RLOO: the walks from a start are compared with each other. There is no critic, and no KL penalty.
    fn grpo(&self, start: &Model, size: &Size, loss_type: LossType) -> Result<Model> {
        let recipe = GrpoRecipe {
            seed: self.seed,
            updates: size.updates,
            num_generations: 8,
            prompts_per_update: size.episodes / 8,
            num_iterations: 4,
            max_new_tokens: MAX_LENGTH - 1,
            micro_batch_size: size.episodes,
            loss_type,
            scale_rewards: if loss_type == LossType::Rloo { ScaleRewards::None } else { ScaleRewards::Group },
            beta: 0.,
            optimizer: optimizer(1e-3),
            ..GrpoRecipe::default()
        };
        let reward = Reward::of_rows(|rows| Ok(rows.iter().map(|row| self.optimality(row)).collect()));
        let policy = Learner::new(start.trainable()?, &recipe.optimizer)?;
        let mut trainer = GrpoTrainer::new(policy, None, &reward, IDS, &recipe)?;
        for update in 0..size.updates {
            // Other starts in each update.
            let skipped = update as usize * recipe.prompts_per_update % NODES;
            let prompts = &self.queries(skipped + recipe.prompts_per_update)[skipped..];
            let episodes = trainer.roll_out(prompts, self.seed * 1_000_000 + update)?;
            trainer.learn(&episodes, update)?;
        }
        Ok(trainer.policy.model.frozen()?)
    }

    /// The mean reward of the best of `n` walks, estimated from `samples` walks from each start.
    fn best_of(&self, model: &Model, n: usize, samples: usize) -> Result<f64> {
        let scored = |&reward: &f64| ScoredReply { score: reward, utility: reward };
        let rewards = self.rewards(model, samples)?;
        let starts: Vec<Vec<ScoredReply>> =
            rewards.chunks(samples).map(|all| all.iter().map(scored).collect()).collect();
        Ok(expected_best(&starts, n)?.utility)
    }

    /// The rewards of `samples` walks from each start, start by start.
    fn rewards(&self, model: &Model, samples: usize) -> Result<Vec<f64>> {
        let queries: Vec<Vec<u32>> =
            self.graph.starts().flat_map(|start| std::iter::repeat_n(vec![start as u32], samples)).collect();
        let options = GenerateOptions {
            max_new_tokens: MAX_LENGTH - 1,
            stop_ids: Some(vec![IDS.eos]),
            sampling: Sampling { seed: Some(self.seed), ..Sampling::default() },
        };
        let replies = generate(model, &queries, &options, |_, _| true)?;
        Ok(queries
            .iter()
            .zip(replies)
            .map(|(query, reply)| self.optimality(&[query.as_slice(), &reply].concat()))
            .collect())
    }

    /// `count` queries: all starts in turn.
    fn queries(&self, count: usize) -> Vec<Prompt> {
        self.graph.starts().cycle().take(count).map(|start| vec![start as u32].into()).collect()
    }

    fn optimality(&self, row: &[u32]) -> f64 {
        self.graph.optimality(&row.iter().map(|&id| id as usize).collect::<Vec<_>>())
    }
}

fn optimizer(learning_rate: f64) -> OptimizerConfig {
    OptimizerConfig { learning_rate, schedule: Schedule::Linear, warmup_steps: 0, ..PpoRecipe::default().optimizer }
}

fn mean(rewards: &[f64]) -> f64 {
    rewards.iter().sum::<f64>() / rewards.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reinforcement_learning_is_nearer_to_the_optimum_than_imitation() {
        let size = Size { seeds: 1, walks: 400, epochs: 8, updates: 20, episodes: 64, samples: 20 };
        let rows = compare(&size).unwrap();
        let reward = |name: &str| rows.iter().find(|row| row.0.starts_with(name)).unwrap().1[0];
        let (imitation, optimum) = (reward("imitation"), reward("optimum"));
        assert!((optimum - 1.).abs() < 1e-12, "{}", table(&rows));
        for name in ["PPO", "GRPO", "RLOO", "best of 16"] {
            assert!(reward(name) > imitation + 0.25 * (optimum - imitation), "{name}\n{}", table(&rows));
        }
    }
}

//! Replies that a model generates to the prompts of the conversations: the student's for on-policy distillation (Agarwal et al. 2024, arXiv
//! 2306.13649), the teacher's for sequence-level distillation (Kim and Rush 2016, arXiv 1606.07947).

use llm_engine::{GenerateOptions, SampledReply, Sampling, generate_batch};
use llm_model::Model;
use rand::RngExt;

use super::DistillRecipe;
use crate::Result;
use crate::examples::Example;
use crate::run::rng;

/// The random stream of the choice between the data and the student's replies, and that of the replies.
const CHOICE: u16 = 20;
const SAMPLES: u16 = 21;

/// The settings of generated replies.
#[derive(Clone, Copy)]
pub(super) struct Replies<'a> {
    pub recipe: &'a DistillRecipe,
    /// Conversations end after this many tokens.
    pub max_length: usize,
}

impl Replies<'_> {
    /// Whether the batch of a step on conversations has the student's replies: with probability `on_policy`.
    pub fn is_on_policy(self, step: u64) -> bool {
        let share = self.recipe.on_policy;
        share > 0. && rng(self.recipe.seed, CHOICE, step).random::<f64>() < share
    }

    /// The conversations with the student's replies instead of their last answers.
    pub fn of_student(self, student: &Model, examples: &[&Example], step: u64) -> Result<Vec<Example>> {
        let (recipe, seed) = (self.recipe, rng(self.recipe.seed, SAMPLES, step).random());
        let sampling = Sampling { temperature: recipe.sampling_temperature, seed: Some(seed), ..Sampling::default() };
        self.replaced(&student.detached()?, examples, sampling)
    }

    /// The conversations with the teacher's most likely replies (greedy) instead of their last answers.
    pub fn of_teacher(self, teacher: &Model, examples: &[Example]) -> Result<Vec<Example>> {
        let sampling = Sampling { temperature: 0., seed: Some(self.recipe.seed), ..Sampling::default() };
        self.replaced(teacher, &examples.iter().collect::<Vec<_>>(), sampling)
    }

    /// Each conversation up to its last answer, with a generated one; only its tokens are trained.
    fn replaced(self, model: &Model, examples: &[&Example], sampling: Sampling) -> Result<Vec<Example>> {
        let options = GenerateOptions { max_new_tokens: self.recipe.max_new_tokens, stop_ids: None, sampling };
        let prompts: Vec<Vec<u32>> = examples.iter().map(|example| prompt(example).to_vec()).collect();
        let replies = generate_batch(model, &prompts, 1, &options)?.into_iter().flatten();
        let replaced = |(prompt, reply): (Vec<u32>, SampledReply)| {
            let room = self.max_length.saturating_sub(prompt.len()).max(1);
            let ids = prompt.iter().copied().chain(reply.ids.into_iter().take(room)).collect::<Vec<_>>();
            let loss_mask = (0..ids.len()).map(|i| i >= prompt.len()).collect();
            Example { ids, loss_mask }
        };
        Ok(prompts.into_iter().zip(replies).map(replaced).collect())
    }
}

/// The tokens before the last answer; at least one, so that a text without a prompt is continued from its beginning.
fn prompt(example: &Example) -> &[u32] {
    let mask = &example.loss_mask;
    let end = mask.iter().rposition(|&trained| trained).map_or(mask.len(), |last| last + 1);
    let start = mask[..end].iter().rposition(|&trained| !trained).map_or(0, |last| last + 1);
    &example.ids[..start.max(1)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_ends_before_the_last_answer() {
        let example = |mask: &[bool]| Example { ids: (0..mask.len() as u32).collect(), loss_mask: mask.to_vec() };
        let (no, yes) = (false, true);
        assert_eq!(prompt(&example(&[no, no, yes, yes, no, no, yes, yes])), [0, 1, 2, 3, 4, 5]);
        assert_eq!(prompt(&example(&[no, yes, yes, no])), [0]);
        assert_eq!(prompt(&example(&[yes, yes])), [0]);
    }

    #[test]
    fn the_share_of_batches_with_the_students_replies_is_lambda() {
        let share = |on_policy| {
            let recipe = DistillRecipe { on_policy, ..DistillRecipe::default() };
            (0..2000).filter(|&step| Replies { recipe: &recipe, max_length: 9 }.is_on_policy(step)).count()
        };
        assert_eq!((share(0.), share(1.)), (0, 2000));
        assert!((440..560).contains(&share(0.25)), "{}", share(0.25)); // three standard deviations are 58
    }
}

//! Names on the Hugging Face hub in the options of the commands.

use std::path::PathBuf;

use llm_cli::{Failure, HubOption};
use llm_hub::Wanted;

use super::Command;
use super::distill::TeacherLogits;

impl Command {
    /// Replaces names on the hub by folders in its cache.
    pub(super) fn resolve_names(&mut self) -> Result<(), Failure> {
        use Wanted::{Adapter, Config, Model, Tokenizer};
        match self {
            Self::Prepare(args) => args.hub.resolve(&mut args.inputs.tokenizer, Tokenizer),
            Self::Pretrain(args) => {
                args.common.hub.resolve(&mut args.inputs.tokenizer, Tokenizer)?;
                given(args.common.hub, &mut args.inputs.model, Model)
            }
            Self::Scaling(args) => args.common.hub.resolve(&mut args.inputs.tokenizer, Tokenizer),
            Self::Finetune(args) => policy(args.common.hub, &mut args.inputs.model, &mut [], &mut args.inputs.adapter),
            Self::Tokenizer(command) => {
                let (hub, paths) = command.tokenizers();
                paths.iter_mut().try_for_each(|path| hub.resolve(path, Tokenizer))
            }
            Self::Feedback(command) => command.resolve_names(),
            Self::Preview(args) => args.hub.resolve(&mut args.model, Tokenizer),
            Self::Reward(args) => policy(args.common.hub, &mut args.inputs.model, &mut [], &mut args.inputs.adapter),
            Self::Ppo(args) => {
                let inputs = &mut args.inputs;
                policy(args.common.hub, &mut inputs.model, &mut inputs.reward, &mut inputs.adapter)
            }
            Self::Dpo(args) => policy(args.common.hub, &mut args.inputs.model, &mut [], &mut args.inputs.adapter),
            Self::Kto(args) => policy(args.common.hub, &mut args.inputs.model, &mut [], &mut args.inputs.adapter),
            Self::Grpo(args) => {
                let inputs = &mut args.inputs;
                policy(args.common.hub, &mut inputs.model, &mut inputs.reward, &mut inputs.adapter)
            }
            Self::BestOfN(args) => {
                let inputs = &mut args.inputs;
                policy(args.common.hub, &mut inputs.model, &mut inputs.reward, &mut inputs.adapter)
            }
            Self::ExpertIteration(args) => {
                policy(args.common.hub, &mut args.inputs.model, &mut args.inputs.reward, &mut None)
            }
            Self::Distill(args) => {
                args.common.hub.resolve(&mut args.inputs.teacher, Model)?;
                given(args.common.hub, &mut args.inputs.student, Model)?;
                given(args.common.hub, &mut args.inputs.text_teacher, Model)?;
                given(args.common.hub, &mut args.inputs.adapter, Adapter)
            }
            Self::TeacherLogits(TeacherLogits::Write(args)) => args.common.hub.resolve(&mut args.inputs.teacher, Model),
            Self::Resume(args) => {
                for (name, path) in &mut args.input {
                    let wanted = match name.as_str() {
                        "model" | "teacher" | "text_teacher" | "student" | "reward" => Model,
                        "adapter" => Adapter,
                        "tokenizer" => Tokenizer,
                        _ => continue,
                    };
                    resolve_text(args.hub, path, wanted)?;
                }
                Ok(())
            }
            Self::Compare(args) => {
                let (hub, inputs) = (args.hub, &mut args.inputs);
                inputs.model.iter_mut().chain(&mut inputs.reward).try_for_each(|path| hub.resolve(path, Model))
            }
            Self::BenchFinetune(args) => args.hub.resolve(&mut args.model, Model),
            Self::Params(args) => resolve_text(args.hub, &mut args.model, Config),
            Self::Lifecycle(_)
            | Self::CompareMethods(_)
            | Self::CompareAlignment(_)
            | Self::Clean(_)
            | Self::ExportShards(_)
            | Self::Recipe(_)
            | Self::DistillReport(_)
            | Self::BenchDecode(_)
            | Self::Bench(_) => Ok(()),
        }
    }
}

/// Resolves the model that is trained, its reward models and its adapter.
fn policy(
    hub: HubOption,
    model: &mut PathBuf,
    rewards: &mut [PathBuf],
    adapter: &mut Option<PathBuf>,
) -> Result<(), Failure> {
    hub.resolve(model, Wanted::Model)?;
    rewards.iter_mut().try_for_each(|path| hub.resolve(path, Wanted::Model))?;
    given(hub, adapter, Wanted::Adapter)
}

/// Resolves an option that may be left out.
pub(super) fn given(hub: HubOption, path: &mut Option<PathBuf>, wanted: Wanted) -> Result<(), Failure> {
    path.as_mut().map_or(Ok(()), |path| hub.resolve(path, wanted))
}

/// Resolves a path that is kept as text.
fn resolve_text(hub: HubOption, text: &mut String, wanted: Wanted) -> Result<(), Failure> {
    let mut path = PathBuf::from(&*text);
    hub.resolve(&mut path, wanted)?;
    *text = path.display().to_string();
    Ok(())
}

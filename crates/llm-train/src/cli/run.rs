//! Implementation of each command of `llm-train`, and the message it prints at the end.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use candle_core::Device;
use llm_cli::Failure;
use llm_model::ModelConfig;
use serde::Serialize;

use super::clean;
use super::compare;
use super::distill::{BenchDecode, ReportDistill, TeacherLogits};
use super::export::export_shards;
use super::inputs::InputPaths;
use super::measure::Params;
use super::preview::preview;
use super::{Command, Lifecycle, Prepare, Pretrain, Resume, feedback, tokenizer};
use crate::bench::{bench, bench_finetune};
use crate::depth::DepthSettings;
use crate::params::{Report, Usage};
use crate::recipe::built_in_recipe;
use crate::recipes::{
    BestOfNRecipe, CompareAlignmentRecipe, CompareMethodsRecipe, DistillInputs, DistillRecipe, DpoInputs, DpoRecipe,
    ExpertIterationRecipe, FinetuneInputs, FinetuneRecipe, GrpoInputs, GrpoRecipe, KtoInputs, KtoRecipe,
    LifecycleRecipe, PpoInputs, PpoRecipe, PretrainInputs, PretrainRecipe, RewardInputs, RewardRecipe, ScalingRecipe,
    TeacherLogitsInputs, TeacherLogitsRecipe, compare_methods, distill, distill_report, dpo, finetune, grpo, kto,
    lifecycle, lifecycle_seeds, measure_decode, ppo, prepare, pretrain, reward, scaling, teacher_logits,
};
use crate::run::{Event, NEVER, Outcome, Record, RunOptions};
use crate::{Error, Recipe, read_recipe};

/// Runs a command; returns the text to print.
pub(super) fn run(command: Command, device: Device, observer: &mut dyn FnMut(Event)) -> Result<String, Error> {
    let mut stages = Stages { device, observer, stop: &NEVER };
    match command {
        Command::Lifecycle(args) => stages.lifecycle_of(&args),
        Command::Tokenizer(command) => tokenizer::run(command),
        Command::Clean(args) => clean::run(&args, stages.observer),
        Command::Prepare(args) => stages.prepare(&args),
        Command::ExportShards(args) => export_shards(&args),
        Command::Pretrain(args) => {
            stages.pretrain(&pretrain_recipe(&args)?, &args.inputs, &args.out, args.common.resume)
        }
        Command::CompareAlignment(args) => {
            stages.compare_alignment(&args.common.recipe(&args.out)?, &args.out, args.common.resume)
        }
        Command::BestOfN(args) => stages.best_of_n(&args.recipe()?, &args.inputs, &args.out, args.common.resume),
        Command::ExpertIteration(args) => {
            let (recipe, resume) = (args.common.recipe(&args.out)?, args.common.resume);
            stages.expert_iteration(&recipe, &args.inputs, &args.out, resume)
        }
        Command::CompareMethods(args) => {
            stages.compare_methods(&args.common.recipe(&args.out)?, &args.out, args.common.resume)
        }
        Command::Scaling(args) => {
            let (recipe, resume) = (args.common.recipe(&args.out)?, args.common.resume);
            stages.scaling(&recipe, &args.inputs, &args.out, resume)
        }
        Command::Finetune(args) => stages.finetune(&args.recipe()?, &args.inputs, &args.out, args.common.resume),
        Command::Preview(args) => preview(&args),
        Command::Feedback(command) => feedback::run(command, stages.observer),
        Command::Reward(args) => stages.reward(&args.recipe()?, &args.inputs, &args.out, args.common.resume),
        Command::Ppo(args) => stages.ppo(&args.recipe()?, &args.inputs, &args.out, args.common.resume),
        Command::Dpo(args) => stages.dpo(&args.recipe()?, &args.inputs, &args.out, args.common.resume),
        Command::Kto(args) => stages.kto(&args.recipe()?, &args.inputs, &args.out, args.common.resume),
        Command::Grpo(args) => stages.grpo(&args.recipe()?, &args.inputs, &args.out, args.common.resume),
        Command::Distill(args) => {
            let mut recipe: DistillRecipe = args.common.recipe_with(&args.rows, &args.out)?;
            recipe.sequence_level |= args.sequence_level;
            stages.distill(&recipe, &args.inputs, &args.out, args.common.resume)
        }
        Command::TeacherLogits(TeacherLogits::Write(args)) => {
            stages.teacher_logits(&args.recipe()?, &args.inputs, &args.out, args.common.resume)
        }
        Command::Resume(args) => stages.resume(&args),
        Command::Compare(args) => compare::run(&args, &stages.device),
        Command::Bench(args) => json(&bench(&read_recipe(&args.recipe, &args.set)?, args.steps, &stages.device)?),
        Command::BenchFinetune(args) => {
            let recipe = read_recipe(&args.recipe, &args.set)?;
            json(&bench_finetune(&recipe, (&args.model, &args.data), args.steps, &stages.device)?)
        }
        Command::BenchDecode(args) => json(&measure_decode(&args.model)?),
        Command::DistillReport(args) => Stages::distill_report(&args),
        Command::Recipe(args) => built_in_recipe(args.name.as_deref()),
        Command::Params(args) => params(args),
    }
}

/// The recipe of `pretrain`: with `--depth` its settings, which `--set` overrides.
fn pretrain_recipe(args: &Pretrain) -> Result<PretrainRecipe, Error> {
    let Some(depth) = args.depth else { return args.common.recipe(&args.out) };
    let name = args.common.recipe.as_deref().unwrap_or(PretrainRecipe::STAGE);
    let base: PretrainRecipe = read_recipe(name, &args.common.set)?;
    let vocab_size = llm_tokenizer::Tokenizer::load(&args.inputs.tokenizer)?.vocab_size();
    let model = ModelConfig { vocab_size, ..base.model };
    let settings = DepthSettings::of(depth, &model, base.seq_len, args.tokens_per_parameter)?;
    let (parameters, tokens) = (settings.parameters / 1e6, settings.tokens / 1e6);
    tracing::info!(
        "depth {depth}: {parameters:.2} million parameters that multiply a token, {tokens:.1} million tokens"
    );
    let mut set = settings.keys();
    set.extend(args.common.set.iter().cloned());
    read_recipe(name, &set)
}

/// One line of JSON.
fn json(cost: &impl Serialize) -> Result<String, Error> {
    serde_json::to_string(cost).map(|json| json + "\n").map_err(|e| Error::Internal(format!("bench: {e}")))
}

impl Command {
    /// The device of the command's models; the CPU for a command without models.
    pub(super) fn device(&self) -> Result<Device, Failure> {
        let option = match self {
            Self::Lifecycle(args) => args.common.device,
            Self::Pretrain(args) => args.common.device,
            Self::Scaling(args) => args.common.device,
            Self::CompareMethods(args) => args.common.device,
            Self::CompareAlignment(args) => args.common.device,
            Self::Finetune(args) => args.common.device,
            Self::Reward(args) => args.common.device,
            Self::Ppo(args) => args.common.device,
            Self::Grpo(args) => args.common.device,
            Self::Dpo(args) => args.common.device,
            Self::Kto(args) => args.common.device,
            Self::BestOfN(args) => args.common.device,
            Self::ExpertIteration(args) => args.common.device,
            Self::Distill(args) => args.common.device,
            Self::TeacherLogits(TeacherLogits::Write(args)) => args.common.device,
            Self::Resume(args) => args.device,
            Self::Compare(args) => args.device,
            Self::Bench(args) => args.device,
            Self::BenchFinetune(args) => args.device,
            _ => return Ok(Device::Cpu),
        };
        option.open()
    }
}

fn params(args: Params) -> Result<String, Error> {
    let usage = Usage {
        batch_size: args.batch_size,
        seq_len: args.seq_len,
        contexts: args.context,
        flops: args.flops,
        tokens: args.tokens,
    };
    let report = Report::of(&args.model, &usage)?;
    if args.json { report.json() } else { Ok(report.to_string()) }
}

/// Runs the stages; each returns its final message.
pub(super) struct Stages<'a> {
    device: Device,
    observer: &'a mut dyn FnMut(Event),
    stop: &'a AtomicBool,
}

impl Stages<'_> {
    /// Options of a run. From here on Ctrl-C saves a checkpoint and stops the run.
    pub(super) fn options(&mut self, resume: bool) -> RunOptions<'_> {
        self.stop = llm_cli::stop_on_interrupt("stopping after this step and writing a checkpoint");
        RunOptions { resume, device: self.device.clone(), observer: self.observer, stop: self.stop }
    }

    /// The lifecycle once, or with several seeds.
    fn lifecycle_of(&mut self, args: &Lifecycle) -> Result<String, Error> {
        let Some(seeds) = args.seeds else {
            return self.lifecycle(&args.common.recipe(&args.out)?, &args.out, args.common.resume);
        };
        let name = args.common.recipe.as_deref().unwrap_or(LifecycleRecipe::STAGE);
        let recipe: LifecycleRecipe = read_recipe(name, &args.common.set)?;
        let table = lifecycle_seeds(&recipe, seeds, &args.out, self.options(args.common.resume))?;
        Ok(format!("{table}\nReport: {}/report.md\n", args.out.display()))
    }

    fn prepare(&mut self, args: &Prepare) -> Result<String, Error> {
        let options = RunOptions { observer: self.observer, ..RunOptions::default() };
        prepare(&args.inputs, &args.out, options)?;
        let (tokenizer, out) = (args.inputs.tokenizer.display(), args.out.display());
        Ok(format!("{out}: done. Next: llm-train pretrain --tokenizer {tokenizer} --data {out} --out RUN\n"))
    }

    fn lifecycle(&mut self, recipe: &LifecycleRecipe, out: &Path, resume: bool) -> Result<String, Error> {
        let table = lifecycle(recipe, out, self.options(resume))?.table;
        let shown = out.display();
        Ok(format!(
            "{table}\nReport: {shown}/report.md. Next: llm-infer chat --model {}\n",
            out.join("aligned").display()
        ))
    }

    fn pretrain(
        &mut self,
        recipe: &PretrainRecipe,
        inputs: &PretrainInputs,
        out: &Path,
        resume: bool,
    ) -> Result<String, Error> {
        let outcome = pretrain(recipe, inputs, out, self.options(resume))?;
        Ok(summary(&outcome, "steps", &format!("llm-infer generate --model {} --prompt TEXT", out.display())))
    }

    fn compare_methods(&mut self, recipe: &CompareMethodsRecipe, out: &Path, resume: bool) -> Result<String, Error> {
        let report = compare_methods(recipe, out, self.options(resume))?;
        Ok(format!("{report}\nReport: {}/report.md\n", out.display()))
    }

    fn scaling(
        &mut self,
        recipe: &ScalingRecipe,
        inputs: &PretrainInputs,
        out: &Path,
        resume: bool,
    ) -> Result<String, Error> {
        let report = scaling(recipe, inputs, out, self.options(resume))?;
        Ok(format!("{report}\nReport: {}/report.md\n", out.display()))
    }

    fn finetune(
        &mut self,
        recipe: &FinetuneRecipe,
        inputs: &FinetuneInputs,
        out: &Path,
        resume: bool,
    ) -> Result<String, Error> {
        let outcome = finetune(recipe, inputs, out, self.options(resume))?;
        Ok(summary(&outcome, "steps", &chat(&inputs.model, out, recipe.lora.is_some())))
    }

    fn reward(
        &mut self,
        recipe: &RewardRecipe,
        inputs: &RewardInputs,
        out: &Path,
        resume: bool,
    ) -> Result<String, Error> {
        let outcome = reward(recipe, inputs, out, self.options(resume))?;
        let (model, out) = (inputs.model.display(), out.display());
        Ok(summary(
            &outcome,
            "steps",
            &format!("llm-train ppo --model {model} --reward {out} --data PROMPTS --out RUN"),
        ))
    }

    fn ppo(&mut self, recipe: &PpoRecipe, inputs: &PpoInputs, out: &Path, resume: bool) -> Result<String, Error> {
        let outcome = ppo(recipe, inputs, out, self.options(resume))?;
        Ok(summary(&outcome, "updates", &format!("llm-infer chat --model {}", out.display())))
    }

    fn dpo(&mut self, recipe: &DpoRecipe, inputs: &DpoInputs, out: &Path, resume: bool) -> Result<String, Error> {
        let outcome = dpo(recipe, inputs, out, self.options(resume))?;
        Ok(summary(&outcome, "steps", &chat(&inputs.model, out, recipe.lora.is_some() || inputs.adapter.is_some())))
    }

    fn kto(&mut self, recipe: &KtoRecipe, inputs: &KtoInputs, out: &Path, resume: bool) -> Result<String, Error> {
        let outcome = kto(recipe, inputs, out, self.options(resume))?;
        Ok(summary(&outcome, "steps", &chat(&inputs.model, out, recipe.lora.is_some() || inputs.adapter.is_some())))
    }

    fn grpo(&mut self, recipe: &GrpoRecipe, inputs: &GrpoInputs, out: &Path, resume: bool) -> Result<String, Error> {
        let outcome = grpo(recipe, inputs, out, self.options(resume))?;
        Ok(summary(&outcome, "updates", &chat(&inputs.model, out, recipe.lora.is_some() || inputs.adapter.is_some())))
    }

    fn distill(
        &mut self,
        recipe: &DistillRecipe,
        inputs: &DistillInputs,
        out: &Path,
        resume: bool,
    ) -> Result<String, Error> {
        let outcome = distill(recipe, inputs, out, self.options(resume))?;
        let next = match (&inputs.student, out.join("adapter_config.json").is_file()) {
            (Some(student), true) => {
                format!("llm-infer chat --model {} --adapter {}", student.display(), out.display())
            }
            _ => format!("llm-infer chat --model {}", out.display()),
        };
        let summary = summary(&outcome, "steps", &next);
        if outcome.was_finished && out.join("distillation.md").exists() {
            return Ok(summary);
        }
        let report = distill_report(recipe, inputs, out, &BenchDecode::in_new_process)?;
        Ok(format!("{}\n{summary}", report.table()))
    }

    /// Writes the table of a finished distillation anew.
    fn distill_report(args: &ReportDistill) -> Result<String, Error> {
        let (dir, record) = (args.run.as_path(), Record::read(&args.run)?);
        if record.run.stage != DistillRecipe::STAGE || !crate::run::is_finished(dir) {
            return Err(Error::BadRequest(format!("{}: is no finished run of distill", dir.display())));
        }
        let inputs = InputPaths::of(dir, &args.input, true, &record)?.inputs()?;
        Ok(distill_report(&record.recipe(&[])?, &inputs, dir, &BenchDecode::in_new_process)?.table())
    }

    fn teacher_logits(
        &mut self,
        recipe: &TeacherLogitsRecipe,
        inputs: &TeacherLogitsInputs,
        out: &Path,
        resume: bool,
    ) -> Result<String, Error> {
        let outcome = teacher_logits(recipe, inputs, out, self.options(resume))?;
        let (teacher, logits) = (inputs.teacher.display(), out.display());
        let next = format!("llm-train distill --teacher {teacher} --teacher-logits {logits} --data DATA --out RUN");
        Ok(summary(&outcome, "shards", &next))
    }

    /// Resumes the run in a folder from its `recipe.toml`.
    fn resume(&mut self, args: &Resume) -> Result<String, Error> {
        let (dir, record) = (args.run.as_path(), Record::read(&args.run)?);
        let paths = InputPaths::of(&args.run, &args.input, !args.set.is_empty(), &record)?;
        match record.run.stage.as_str() {
            LifecycleRecipe::STAGE => self.lifecycle(&record.recipe(&args.set)?, dir, true),
            CompareAlignmentRecipe::STAGE => self.compare_alignment(&record.recipe(&args.set)?, dir, true),
            CompareMethodsRecipe::STAGE => self.compare_methods(&record.recipe(&args.set)?, dir, true),
            ScalingRecipe::STAGE => self.scaling(&record.recipe(&args.set)?, &paths.inputs()?, dir, true),
            PretrainRecipe::STAGE => self.pretrain(&record.recipe(&args.set)?, &paths.inputs()?, dir, true),
            FinetuneRecipe::STAGE => self.finetune(&record.recipe(&args.set)?, &paths.inputs()?, dir, true),
            RewardRecipe::STAGE => self.reward(&record.recipe(&args.set)?, &paths.inputs()?, dir, true),
            PpoRecipe::STAGE => self.ppo(&record.recipe(&args.set)?, &paths.inputs()?, dir, true),
            GrpoRecipe::STAGE => self.grpo(&record.recipe(&args.set)?, &paths.inputs()?, dir, true),
            DpoRecipe::STAGE => self.dpo(&record.recipe(&args.set)?, &paths.inputs()?, dir, true),
            KtoRecipe::STAGE => self.kto(&record.recipe(&args.set)?, &paths.inputs()?, dir, true),
            BestOfNRecipe::STAGE => self.best_of_n(&record.recipe(&args.set)?, &paths.inputs()?, dir, true),
            ExpertIterationRecipe::STAGE => {
                self.expert_iteration(&record.recipe(&args.set)?, &paths.inputs()?, dir, true)
            }
            DistillRecipe::STAGE => self.distill(&record.recipe(&args.set)?, &paths.inputs()?, dir, true),
            TeacherLogitsRecipe::STAGE => self.teacher_logits(&record.recipe(&args.set)?, &paths.inputs()?, dir, true),
            other => Err(Error::Unsupported(format!("{}: a run of `{other}` cannot be resumed", dir.display()))),
        }
    }
}

/// The command that chats with the model of a run, or with its adapter.
fn chat(model: &Path, out: &Path, is_adapter: bool) -> String {
    let (model, out) = (model.display(), out.display());
    match is_adapter {
        true => format!("llm-infer chat --model {model} --adapter {out}"),
        false => format!("llm-infer chat --model {out}"),
    }
}

/// The final message of a run: its folder, its duration, the next command.
fn summary(outcome: &Outcome, unit: &str, next: &str) -> String {
    let (dir, steps) = (outcome.dir.display(), outcome.steps);
    match outcome.was_finished {
        true => format!("{dir} is finished ({steps} {unit}); nothing to do\n"),
        false => format!("{dir}: done, {steps} {unit} in {}. Next: {next}\n", duration(outcome.seconds)),
    }
}

fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 100. => format!("{s:.1} s"),
        s if s < 6000. => format!("{:.1} minutes", s / 60.),
        s => format!("{:.1} hours", s / 3600.),
    }
}

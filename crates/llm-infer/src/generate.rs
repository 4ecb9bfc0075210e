//! The command `generate`: one prompt, one or several answers.

mod batch;

use std::path::PathBuf;

use clap::Args;
use llm_cli::Failure;
use llm_engine::{Engine, EngineOptions, Event, Request, SubmitError, TextModel, TextOptions};

use self::batch::batch;
use crate::failure::input;
use crate::generation_args::GenerationArgs;
use crate::prompt::source::read_prompt;
use crate::prompt::{Plan, Prompt, Think, without_reasoning};
use crate::settings::{Settings, ends};
use crate::text_model::stream_reply;
use crate::vote::count;

/// The seed, unless another one is given.
pub(crate) const SEED: u64 = 42;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  llm-infer generate -m runs/lifecycle/aligned \"What is 3 plus 4?\" --temperature 0\n  \
    llm-infer generate -m model.gguf -f question.txt --think=hidden\n  \
    llm-infer generate -m model.gguf --shots shots.jsonl --num-shots 4 \"A new input\" --dry-run\n  \
    llm-infer generate -m model.gguf --think --samples 10 --vote \"What is 17 times 3?\"\n  \
    llm-infer generate -m model.gguf --prompt-file summary.toml --var words=20 -f article.txt\n  \
    llm-infer generate -m model.gguf --batch prompts.jsonl --out answers.jsonl\n  \
    echo \"Hello.\" | llm-infer generate -m model.gguf"
)]
#[allow(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub(crate) struct GenerateArgs {
    /// Prompt, formatted with the chat template if the model has one; `-` or no prompt at all: read standard input
    #[arg(value_name = "PROMPT", conflicts_with_all = ["prompt", "file"])]
    pub(crate) positional: Option<String>,
    /// The same as PROMPT
    #[arg(short, long, conflicts_with = "file")]
    pub(crate) prompt: Option<String>,
    /// Read the prompt from a file; `-`: standard input
    #[arg(short, long)]
    pub(crate) file: Option<PathBuf>,
    /// Continue the prompt as plain text, without the chat template
    #[arg(long)]
    pub(crate) raw: bool,
    /// Print what the model sees, its token ids, and the settings with their sources; generate nothing
    #[arg(long)]
    dry_run: bool,
    /// Number of answers, from 1 to 1024, each with random numbers of its own
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1024))]
    samples: u64,
    /// Self-consistency: print the most frequent answer of the samples and its share
    #[arg(long)]
    vote: bool,
    /// Answer each line of a JSONL file: an object with "prompt" or "messages", and if wanted "id", "sampling", "meta"
    #[arg(long, value_name = "IN.jsonl", requires = "out",
        conflicts_with_all = ["positional", "prompt", "file", "dry_run", "samples", "vote"])]
    batch: Option<PathBuf>,
    /// Output of --batch: one JSON object a line in the order of the input; must not exist. A run that was killed goes on with what
    /// is missing
    #[arg(long, value_name = "OUT.jsonl", requires = "batch")]
    out: Option<PathBuf>,
    /// With --batch: a broken line ends the run before it starts; by default its answer is an error
    #[arg(long, requires = "batch")]
    pub(crate) strict: bool,
    #[command(flatten)]
    pub(crate) generation: GenerationArgs,
}

/// Runs the command.
pub(crate) fn generate(args: &GenerateArgs) -> Result<(), Failure> {
    args.generation.check()?;
    let plan = args.generation.prompt.plan()?;
    if args.vote && args.samples < 2 {
        return Err(Failure::input("--vote needs several answers; add --samples 10"));
    }
    if let (Some(from), Some(out)) = (&args.batch, &args.out) {
        return batch(args, &plan, from, out);
    }
    let text = if plan.needs_input() {
        read_prompt(args.positional.as_deref().or(args.prompt.as_deref()), args.file.as_deref())?
    } else if args.positional.is_some() || args.prompt.is_some() || args.file.is_some() {
        return Err(Failure::input("the prompt file has no {{ input }}, so a prompt has no place; remove one of them"));
    } else {
        String::new()
    };
    let model = args.generation.load()?;
    let raw = args.raw || plan.is_raw() || !model.tokenizer.has_chat_template();
    let settings = args.generation.settings(&model, &plan, raw)?.with_default_seed(SEED);
    let prompt = plan.prompt(&text, raw, &model)?;
    if args.dry_run {
        return dry_run(&model, &prompt, &settings);
    }
    let options = settings.logged_options(&model)?;
    if args.samples > 1 {
        return several(args, model, &plan, prompt, &options);
    }
    if plan.think() == Some(Think::Hidden) {
        let answer = model.complete(&prompt.ids, &options, |_| true).map_err(input)?.text;
        let found = plan.answer.find(&answer);
        if found.is_none() {
            tracing::warn!("no answer was found after the reasoning; raise --max-new-tokens, or set --answer REGEX");
        }
        let shown = found.unwrap_or_else(|| without_reasoning(&answer).to_owned());
        return llm_cli::print(&format!("{shown}\n"));
    }
    stream_reply(&model, &prompt.ids, &options, || true)?;
    Ok(())
}

/// Prints what the model sees.
fn dry_run(model: &TextModel, prompt: &Prompt, settings: &Settings) -> Result<(), Failure> {
    let special = model.tokenizer.special_ids();
    let control = prompt.ids.iter().filter(|id| special.contains(id)).count();
    let ids = prompt.ids.iter().map(u32::to_string).collect::<Vec<_>>().join(" ");
    let stop = settings.options()?.stop;
    llm_cli::print(&format!(
        "{}\n\n{} tokens, {control} of them special: {ids}\n\n{}\nends at {}\n",
        prompt.text,
        prompt.ids.len(),
        settings.lines().join("\n"),
        ends(model, &stop)
    ))
}

/// Prints several answers, or their vote.
fn several(
    args: &GenerateArgs,
    model: TextModel,
    plan: &Plan,
    prompt: Prompt,
    options: &TextOptions,
) -> Result<(), Failure> {
    let mut request = Request::new(prompt.ids, options.max_new_tokens);
    request.choices = args.samples as usize;
    request.stop.clone_from(&options.stop);
    request.sampling = options.sampling.clone();
    let engine = Engine::start(model, EngineOptions::default()).map_err(input)?;
    let texts = answers(&engine, request)?;
    let shown = |text: &String| match plan.think() {
        Some(Think::Hidden) => plan.answer.find(text).unwrap_or_else(|| without_reasoning(text).to_owned()),
        _ => text.clone(),
    };
    if !args.vote {
        let total = texts.len();
        let lines = texts.iter().enumerate().map(|(at, text)| format!("[{} of {total}]\n{}\n", at + 1, shown(text)));
        return llm_cli::print(&lines.collect::<Vec<_>>().join("\n"));
    }
    let found: Vec<String> =
        texts.iter().filter_map(|text| plan.answer.find(text).or_else(|| whole(text, plan))).collect();
    let counts = count(found.iter().map(String::as_str));
    let Some((winner, others)) = counts.split_first() else {
        return Err(Failure::input("no answer was found in the texts; raise --max-new-tokens, or set --answer REGEX"));
    };
    let share = 100. * winner.count as f64 / texts.len() as f64;
    let mut line = format!("{} of {} answers ({share:.0} %)", winner.count, texts.len());
    let none = texts.len() - found.len();
    let others = others.iter().map(|other| format!("{} ({})", other.answer, other.count));
    let rest: Vec<String> = others.chain((none > 0).then(|| format!("none ({none})"))).collect();
    if !rest.is_empty() {
        line = format!("{line}; the others: {}", rest.join(", "));
    }
    llm_cli::print(&format!("{}\n{line}\n", winner.answer))
}

/// A text without marks of an answer is one itself, unless reasoning or a pattern was asked for.
fn whole(text: &str, plan: &Plan) -> Option<String> {
    let is_answer = plan.think().is_none() && plan.answer.is_default();
    is_answer.then(|| text.trim().to_owned()).filter(|text| !text.is_empty())
}

/// The texts of the answers to a request, by choice.
pub(crate) fn answers(engine: &Engine, request: Request) -> Result<Vec<String>, Failure> {
    let mut texts = vec![String::new(); request.choices];
    let mut generation = engine.submit(request).map_err(refused)?;
    while let Some(event) = generation.blocking_next() {
        match event {
            Event::Text { choice, text, .. } => texts[choice].push_str(&text),
            Event::Failed(error) => return Err(input(error)),
            Event::Prompt(_) | Event::End { .. } | Event::Done(_) => {}
        }
    }
    Ok(texts)
}

/// The failure of the program for a request that the engine refuses.
pub(crate) fn refused(error: SubmitError) -> Failure {
    match error {
        SubmitError::Invalid(error) => input(error),
        other => Failure::internal(other.to_string()),
    }
}

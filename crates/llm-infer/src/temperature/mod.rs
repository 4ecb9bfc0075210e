//! The command `temperature`: the same prompt at several temperatures, its answers side by side and what changes in them.

mod measure;
mod page;
mod plot;

use std::path::{Path, PathBuf};

use clap::Args;
use comfy_table::Table;
use llm_cli::Failure;
use llm_engine::{Engine, EngineOptions, Event, FinishReason, Request, TextModel, TextOptions};
use llm_model::write_atomic;
use serde::{Deserialize, Serialize};

use self::measure::{Answer, Level};
use crate::failure::{input, refuse_existing};
use crate::generate::{SEED, refused};
use crate::generation_args::GenerationArgs;
use crate::prompt::Plan;
use crate::prompt::source::read_prompt;
use crate::vote::normalized;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  llm-infer temperature -m runs/lifecycle/aligned \"Tell me about the sea.\" --out temperature.html\n  \
    llm-infer temperature -m model.gguf \"What is 3 plus 4?\" --right 7 --samples 20\n  \
    llm-infer temperature -m model.gguf --questions questions.jsonl --temperatures 0,0.5,1"
)]
pub(crate) struct TemperatureArgs {
    /// Prompt, formatted with the chat template if the model has one; `-` or no prompt at all: read standard input
    #[arg(value_name = "PROMPT", conflicts_with_all = ["prompt", "file"])]
    positional: Option<String>,
    /// The same as PROMPT
    #[arg(short, long, conflicts_with = "file")]
    prompt: Option<String>,
    /// Read the prompt from a file; `-`: standard input
    #[arg(short, long)]
    file: Option<PathBuf>,
    /// Continue the prompt as plain text, without the chat template
    #[arg(long)]
    raw: bool,
    /// Temperatures, comma-separated; 0: always the most likely token
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "0,0.2,0.7,1,1.2,1.5")]
    temperatures: Vec<f64>,
    /// Number of answers to a prompt at each temperature, from 2 to 1024
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u64).range(2..=1024))]
    samples: u64,
    /// The right answer; the share of right ones is measured
    #[arg(long, value_name = "TEXT")]
    right: Option<String>,
    /// Several prompts with their right answers: a JSON object with "prompt" and "answer" a line
    #[arg(long, value_name = "FILE.jsonl", conflicts_with_all = ["positional", "prompt", "file", "right"])]
    questions: Option<PathBuf>,
    /// Write a page (.html), a plot (.svg) or all answers and figures (.json); must not exist
    #[arg(long, value_name = "FILE", value_parser = output)]
    out: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) generation: GenerationArgs,
}

/// A prompt and its right answer, if there is one.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Question {
    prompt: String,
    answer: Option<String>,
}

/// All answers of a run.
#[derive(Debug, Serialize)]
struct Comparison {
    questions: Vec<Question>,
    levels: Vec<Level>,
}

/// Runs the command.
pub(crate) fn temperature(args: &TemperatureArgs) -> Result<(), Failure> {
    args.generation.check()?;
    if let Some(wrong) = args.temperatures.iter().find(|value| !(value.is_finite() && **value >= 0.)) {
        return Err(Failure::input(format!("--temperatures: {wrong} is not a temperature; it must be 0 or more")));
    }
    args.out.as_deref().map_or(Ok(()), refuse_existing)?;
    let plan = args.generation.prompt.plan()?;
    let questions = args.questions()?;
    let model = args.generation.load()?;
    let raw = args.raw || plan.is_raw() || !model.tokenizer.has_chat_template();
    let settings = args.generation.settings(&model, &plan, raw)?.with_default_seed(SEED);
    if settings.is_flag("temperature") {
        return Err(Failure::input("--temperature has one value; give the list with --temperatures 0,0.7,1.5"));
    }
    let options = settings.logged_options(&model)?;
    let levels = levels(args, (&plan, raw), &questions, model, &options)?;
    let comparison = Comparison { questions, levels };
    if let Some(out) = &args.out {
        write_atomic(out, written(out, &comparison)?.as_bytes()).map_err(input)?;
    }
    llm_cli::print(&comparison.to_string())?;
    args.out.as_deref().map_or(Ok(()), |out| llm_cli::print_status(&format!("{}: written\n", out.display())))
}

impl TemperatureArgs {
    fn questions(&self) -> Result<Vec<Question>, Failure> {
        if let Some(path) = &self.questions {
            return read_questions(path);
        }
        let given = self.positional.as_deref().or(self.prompt.as_deref());
        Ok(vec![Question { prompt: read_prompt(given, self.file.as_deref())?, answer: self.right.clone() }])
    }
}

fn read_questions(path: &Path) -> Result<Vec<Question>, Failure> {
    let text = std::fs::read_to_string(path).map_err(|e| Failure::input(format!("{}: {e}", path.display())))?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let question = |(at, line): (usize, &str)| {
        serde_json::from_str(line).map_err(|e| {
            let place = format!("{}:{}", path.display(), at + 1);
            Failure::input(format!("{place}: {e}; expected {{\"prompt\": \"…\", \"answer\": \"…\"}}"))
        })
    };
    let questions: Vec<Question> = lines.map(question).collect::<Result<_, _>>()?;
    if questions.is_empty() {
        return Err(Failure::input(format!("{}: the file has no questions", path.display())));
    }
    Ok(questions)
}

/// Answers every question at every temperature; all answers are generated together.
fn levels(
    args: &TemperatureArgs,
    (plan, raw): (&Plan, bool),
    questions: &[Question],
    model: TextModel,
    options: &TextOptions,
) -> Result<Vec<Level>, Failure> {
    let prompts = questions.iter().map(|question| Ok(plan.prompt(&question.prompt, raw, &model)?.ids));
    let prompts: Vec<Vec<u32>> = prompts.collect::<Result<_, Failure>>()?;
    let engine = Engine::start(model, EngineOptions::default()).map_err(input)?;
    let mut levels = Vec::with_capacity(args.temperatures.len());
    for &temperature in &args.temperatures {
        let mut answers = Vec::with_capacity(prompts.len());
        for (prompt, question) in prompts.iter().zip(questions) {
            let mut request = Request::new(prompt.clone(), options.max_new_tokens);
            // Without randomness all answers are equal.
            request.choices = if temperature > 0. { args.samples as usize } else { 1 };
            request.stop.clone_from(&options.stop);
            request.sampling = options.sampling.clone();
            (request.sampling.temperature, request.sampling.processed_logprobs) = (temperature, true);
            request.logprobs = Some(0);
            let mut of_question = answers_to(&engine, request)?;
            for answer in &mut of_question {
                answer.right = question.answer.as_ref().map(|right| is_right(&answer.text, right, plan));
            }
            if temperature == 0. {
                of_question = vec![of_question[0].clone(); args.samples as usize];
            }
            answers.push(of_question);
        }
        tracing::debug!("temperature {temperature}: {} questions answered", answers.len());
        levels.push(Level::of(temperature, answers)?);
    }
    Ok(levels)
}

fn answers_to(engine: &Engine, request: Request) -> Result<Vec<Answer>, Failure> {
    let mut answers = vec![Answer::default(); request.choices];
    let mut generation = engine.submit(request).map_err(refused)?;
    while let Some(event) = generation.blocking_next() {
        match event {
            Event::Text { choice, text, tokens } => {
                answers[choice].text.push_str(&text);
                let reported = tokens.iter().filter_map(|token| token.logprobs.as_ref());
                answers[choice].surprises.extend(reported.map(|logprobs| -f64::from(logprobs.logprob)));
            }
            Event::End { choice, reason, tokens } => {
                answers[choice].tokens = tokens;
                answers[choice].cut_off = reason == FinishReason::Length;
            }
            Event::Failed(error) => return Err(input(error)),
            Event::Prompt(_) | Event::Done(_) => {}
        }
    }
    Ok(answers)
}

/// Whether the answer found in the text, or without marks of one the whole text, is the right one.
fn is_right(text: &str, right: &str, plan: &Plan) -> bool {
    let found = plan.answer.find(text).unwrap_or_else(|| text.to_owned());
    normalized(&found) == normalized(right)
}

/// The contents of the output file, by its ending.
fn written(out: &Path, comparison: &Comparison) -> Result<String, Failure> {
    match out.extension().and_then(|ending| ending.to_str()) {
        Some("json") => serde_json::to_string_pretty(comparison)
            .map(|json| json + "\n")
            .map_err(|e| Failure::internal(format!("{}: {e}", out.display()))),
        Some("svg") => plot::svg(&comparison.levels),
        _ => page::page(comparison),
    }
}

/// Parses `--out`.
fn output(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    match path.extension().and_then(|ending| ending.to_str()) {
        Some("html" | "json" | "svg") => Ok(path),
        _ => Err("the name must end in .html, .svg or .json".to_owned()),
    }
}

impl std::fmt::Display for Comparison {
    /// The table of the measures, then the first answer of each temperature to the first question.
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let mut table = Table::new();
        table.load_style(comfy_table::presets::ASCII_MARKDOWN);
        table.set_header(measure::TITLES);
        for level in &self.levels {
            table.add_row(level.cells());
        }
        writeln!(f, "{table}")?;
        for level in &self.levels {
            let text = level.answers.first().and_then(|answers| answers.first()).map_or("", |answer| &answer.text);
            writeln!(f, "\n[temperature {}]\n{}", level.temperature, text.trim())?;
        }
        Ok(())
    }
}

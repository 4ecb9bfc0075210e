//! `generate --batch`: an answer for each line of a file, in the order of the file. A run that was killed goes on.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use llm_cli::{Failure, Progress};
use llm_engine::{Engine, EngineOptions, Event, FinishReason, Generation, Request};
use llm_tokenizer::ChatMessage;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{GenerateArgs, SEED, refused};
use crate::failure::{input, io_failure, refuse_existing};
use crate::prompt::Plan;

/// Requests that the engine has at the same time.
const WINDOW: usize = 16;

/// A line of the input.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    id: Option<Value>,
    prompt: Option<String>,
    messages: Option<Vec<ChatMessage>>,
    #[serde(default)]
    sampling: Map<String, Value>,
    /// Copied to the output.
    meta: Option<Value>,
}

/// A line that the engine works on, or one that cannot be used.
enum Work {
    Running(Box<Running>),
    Broken(Value),
}

/// An answer so far.
struct Running {
    generation: Generation,
    /// The line of the output.
    line: Value,
    text: String,
    reason: &'static str,
    is_done: bool,
}

/// Answers the lines of `from`.
pub(crate) fn batch(args: &GenerateArgs, plan: &Plan, from: &Path, out: &Path) -> Result<(), Failure> {
    refuse_existing(out)?;
    let text = std::fs::read_to_string(from).map_err(|e| io_failure(from.display(), &e))?;
    let rows: Vec<Result<Row, String>> = text.lines().map(parse).collect();
    for (at, error) in rows.iter().enumerate().filter_map(|(at, row)| Some((at, row.as_ref().err()?))) {
        let message = format!("{} line {}: {error}", from.display(), at + 1);
        if args.strict {
            return Err(Failure::input(message));
        }
        tracing::warn!("{message}");
    }
    // What the answers depend on: a file of another run is not continued.
    let state = format!("{:?}\n{plan:?}\n{text}", args.generation);
    let (mut part, done) = Part::open(out, &state)?;
    let model = args.generation.load()?;
    let raw = args.raw || plan.is_raw() || !model.tokenizer.has_chat_template();
    let settings = args.generation.settings(&model, plan, raw)?;
    let base = settings.clone().with_default_seed(SEED).options()?.sampling.seed.unwrap_or(SEED);
    let engine = Engine::start(model, EngineOptions::default()).map_err(input)?;
    let start = |at: usize, row: &Row| -> Result<Work, Failure> {
        let id = row.id.clone().unwrap_or_else(|| (at + 1).into());
        let head = json!({"id": id});
        let request = (|| {
            let model = engine.text_model();
            let prompt = match (&row.prompt, &row.messages) {
                (Some(prompt), None) => plan.prompt(prompt, raw, model)?,
                (None, Some(messages)) => plan.chat_prompt([plan.fixed(), messages.clone()].concat(), model)?,
                _ => return Err(Failure::input("it must have either \"prompt\" or \"messages\"")),
            };
            // Each line has random numbers of its own, whatever was answered before.
            let seeded = settings.clone().with(&row.sampling, "sampling")?;
            let options = seeded.with_default_seed(base.wrapping_add(at as u64)).options()?;
            let mut request = Request::new(prompt.ids, options.max_new_tokens);
            request.stop = options.stop;
            request.sampling = options.sampling;
            engine.submit(request).map_err(refused)
        })();
        match request {
            Ok(generation) => {
                let mut head = head;
                if let Some(meta) = &row.meta {
                    head["meta"] = meta.clone();
                }
                let (line, text) = (head, String::new());
                Ok(Work::Running(Box::new(Running { generation, line, text, reason: "length", is_done: false })))
            }
            Err(failure) if failure.is_input() && !args.strict => {
                tracing::warn!("{} line {}: {failure}", from.display(), at + 1);
                Ok(Work::Broken(json!({"id": id, "error": failure.to_string()})))
            }
            Err(failure) => Err(failure),
        }
    };
    let mut progress = Progress::new("batch", rows.len() as u64, "prompts", done as u64);
    let mut waiting = VecDeque::new();
    let (mut next, mut written) = (done, done);
    while written < rows.len() {
        while next < rows.len() && waiting.len() < WINDOW {
            waiting.push_back(match &rows[next] {
                Ok(row) => start(next, row)?,
                Err(error) => Work::Broken(json!({"id": next + 1, "error": error})),
            });
            next += 1;
        }
        part.write(&finish(&mut waiting, plan)?)?;
        written += 1;
        progress.update(written as u64, "");
    }
    progress.finish();
    part.complete(out)?;
    llm_cli::print_status(&format!("{}: {written} answers\n", out.display()))
}

fn parse(line: &str) -> Result<Row, String> {
    let row: Row = serde_json::from_str(line).map_err(|e| e.to_string())?;
    match row.prompt.is_some() == row.messages.is_some() {
        true => Err("it must have either \"prompt\" or \"messages\"".to_owned()),
        false => Ok(row),
    }
}

/// Waits for the first answer and takes what there is of the others, so that none of them has to wait. Returns the line of the output.
fn finish(waiting: &mut VecDeque<Work>, plan: &Plan) -> Result<Value, Failure> {
    loop {
        for work in waiting.iter_mut() {
            if let Work::Running(running) = work {
                while let Ok(event) = running.generation.events.try_recv() {
                    running.take(event)?;
                }
            }
        }
        match waiting.front_mut() {
            Some(Work::Running(running)) if !running.is_done => match running.generation.blocking_next() {
                Some(event) => running.take(event)?,
                None => return Err(Failure::internal("the engine ended before the answer")),
            },
            _ => break,
        }
    }
    match waiting.pop_front() {
        Some(Work::Running(running)) => {
            let Running { mut line, text, reason, .. } = *running;
            if plan.think().is_some() || !plan.answer.is_default() {
                line["answer"] = plan.answer.find(&text).into();
            }
            line["text"] = text.into();
            line["finish_reason"] = reason.into();
            Ok(line)
        }
        Some(Work::Broken(line)) => Ok(line),
        None => Err(Failure::internal("no answer is left")),
    }
}

impl Running {
    fn take(&mut self, event: Event) -> Result<(), Failure> {
        match event {
            Event::Text { text, .. } => self.text.push_str(&text),
            Event::End { reason: FinishReason::Stop, .. } => self.reason = "stop",
            Event::Done(usage) => {
                self.line["prompt_tokens"] = usage.prompt_tokens.into();
                self.line["completion_tokens"] = usage.completion_tokens.into();
                self.is_done = true;
            }
            Event::Failed(error) => return Err(input(error)),
            Event::Prompt(_) | Event::End { .. } => {}
        }
        Ok(())
    }
}

/// The unfinished output: `OUT.part`, with what it depends on in `OUT.state`.
struct Part {
    path: PathBuf,
    state: PathBuf,
    file: File,
}

impl Part {
    /// Opens the output of a run with this state, and the number of its complete lines.
    fn open(out: &Path, state: &str) -> Result<(Self, usize), Failure> {
        let named = |end: &str| {
            let mut name = out.as_os_str().to_owned();
            name.push(end);
            PathBuf::from(name)
        };
        let (path, state_path) = (named(".part"), named(".state"));
        if path.exists() {
            let known = std::fs::read_to_string(&state_path).map_err(|e| io_failure(state_path.display(), &e))?;
            if known != state {
                let message = "belongs to other options or another input; remove it, or choose another --out";
                return Err(Failure::input(format!("{}: {message}", path.display())));
            }
        } else {
            llm_files::write_atomic(&state_path, |file| file.write_all(state.as_bytes()))
                .map_err(|e| io_failure(state_path.display(), &e))?;
        }
        let failed = |e: std::io::Error| io_failure(path.display(), &e);
        let file = File::options().create(true).append(true).open(&path).map_err(failed)?;
        let bytes = std::fs::read(&path).map_err(failed)?;
        // A line that was not written to its end is written again.
        let complete = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
        file.set_len(complete as u64).map_err(failed)?;
        let done = bytes[..complete].split(|byte| *byte == b'\n').count() - 1;
        Ok((Self { file, state: state_path, path }, done))
    }

    fn write(&mut self, line: &Value) -> Result<(), Failure> {
        self.file.write_all(format!("{line}\n").as_bytes()).map_err(|e| io_failure(self.path.display(), &e))
    }

    /// Gives the complete output its name.
    fn complete(self, out: &Path) -> Result<(), Failure> {
        let failed = |e: std::io::Error| io_failure(out.display(), &e);
        self.file.sync_all().map_err(failed)?;
        std::fs::rename(&self.path, out).map_err(failed)?;
        std::fs::remove_file(&self.state).map_err(|e| io_failure(self.state.display(), &e))
    }
}

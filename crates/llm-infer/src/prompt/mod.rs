//! The kinds of prompts: instruction, zero-shot, few-shot, chain of thought, role, and prompt files. docs/prompting.md.

mod file;
mod reasoning;
mod roles;
mod shots;
pub(crate) mod source;

use std::path::PathBuf;

use clap::Args;
use llm_cli::Failure;
use llm_engine::TextModel;
use llm_tokenizer::{ChatMessage, Conversation, TextTemplate};
use serde_json::{Map, Value};

use self::file::PromptFile;
pub(crate) use self::reasoning::{AnswerPattern, Think, without_reasoning};
use self::shots::{Shot, ShotOrder};
use crate::failure::input;

/// How an example is written in a text, and the question after the examples with an empty output.
const SHOT_TEMPLATE: &str = "Input: {{ input }}\nOutput: {{ output }}";

/// Makes the model of a plain text reason (Kojima et al. 2022).
const RAW_INSTRUCTION: &str = "Let's think step by step.";

#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Prompt options")]
#[allow(clippy::doc_markdown, reason = "help texts have no backticks")]
pub(crate) struct PromptArgs {
    /// System message of the conversation
    #[arg(long, conflicts_with = "role")]
    system: Option<String>,
    /// Role: a system message by its name, such as teacher, translator, programmer
    #[arg(long, value_name = "NAME")]
    role: Option<String>,
    /// TOML file of more roles, NAME = "system message"
    #[arg(long, value_name = "FILE", requires = "role")]
    roles: Option<PathBuf>,
    /// Zero-shot: write the prompt in the form of --shot-template, without examples
    #[arg(long, conflicts_with = "shots")]
    zero_shot: bool,
    /// Few-shot: examples before the prompt, a JSON object with "input" and "output" a line; turns of the conversation if the model
    /// has a chat template, unless --shot-template is given
    #[arg(long, value_name = "FILE")]
    shots: Option<PathBuf>,
    /// Number of examples [default: all of the file]
    #[arg(long, value_name = "N", requires = "shots")]
    num_shots: Option<usize>,
    /// Which examples, in which order
    #[arg(long, value_name = "ORDER", value_enum, default_value = "file")]
    shots_order: ShotOrder,
    /// Seed of the random order of the examples
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    shots_seed: u64,
    /// How an example is written as text: Jinja with input and output [default without a chat template: "Input: {{ input }}",
    /// "Output: {{ output }}" on two lines]
    #[arg(long, value_name = "TEXT")]
    shot_template: Option<String>,
    /// Chain of thought: ask for reasoning before the answer, and show it or only the answer
    #[arg(long, value_name = "HOW", value_enum, num_args = 0..=1, require_equals = true, default_missing_value = "shown")]
    think: Option<Think>,
    /// Regular expression of the answer in a text: its last match, or the first group of it [default: what follows "Answer:",
    /// "The answer is", "####", or is in \boxed{}]
    #[arg(long, value_name = "REGEX")]
    answer: Option<String>,
    /// Prompt file: TOML with the prompt as a Jinja text, variables, examples, sampling
    #[arg(long, value_name = "FILE")]
    prompt_file: Option<PathBuf>,
    /// Variable of the prompt file (repeatable)
    #[arg(long, value_name = "NAME=VALUE", value_parser = llm_cli::key_value, requires = "prompt_file")]
    var: Vec<(String, String)>,
}

/// A kind of prompt, which makes a prompt of each input.
#[derive(Debug)]
pub(crate) struct Plan {
    system: Option<String>,
    shots: Vec<Shot>,
    /// The form of examples and question as text.
    shot_template: Option<TextTemplate>,
    /// The source of `shot_template`.
    shot_source: String,
    file: Option<PromptFile>,
    think: Option<Think>,
    /// Finds the answer in a text.
    pub(crate) answer: AnswerPattern,
}

/// What a model sees.
#[derive(Debug)]
pub(crate) struct Prompt {
    /// The token ids.
    pub(crate) ids: Vec<u32>,
    /// The text with the special tokens, for display.
    pub(crate) text: String,
}

impl PromptArgs {
    /// The kind of prompt that the options ask for; reads and checks their files.
    pub(crate) fn plan(&self) -> Result<Plan, Failure> {
        let file = self.prompt_file.as_deref().map(|path| PromptFile::read(path, &self.var)).transpose()?;
        let settings = file.as_ref().map(|file| &file.settings);
        let role = self.role.as_deref().map(|name| roles::role(name, self.roles.as_deref())).transpose()?;
        let system = match self.system.clone().or(role) {
            Some(system) => Some(system),
            None => file.as_ref().map(PromptFile::system).transpose()?.flatten(),
        };
        let all = match &self.shots {
            Some(path) => shots::read(path)?,
            None => settings.map_or_else(Vec::new, |settings| settings.shots.clone()),
        };
        let shots = shots::select(all, self.num_shots, self.shots_order, self.shots_seed)?;
        let given = self.shot_template.clone().or_else(|| settings?.shot_template.clone());
        let is_text = given.is_some() || self.zero_shot;
        let shot_source = given.unwrap_or_else(|| SHOT_TEMPLATE.to_owned());
        let template = TextTemplate::new(&shot_source).map_err(|e| Failure::input(format!("--shot-template: {e}")))?;
        if let Some(name) = template.names().iter().find(|name| !["input", "output"].contains(&name.as_str())) {
            return Err(Failure::input(format!(
                "--shot-template: there is no variable \"{name}\"; use input and output"
            )));
        }
        if !template.names().contains("input") {
            return Err(Failure::input("--shot-template: it has no {{ input }}, so the prompt would be lost; add it"));
        }
        let think = self.think.or_else(|| settings?.think);
        let answer = AnswerPattern::new(self.answer.as_deref().or_else(|| settings?.answer.as_deref()))?;
        Ok(Plan { system, shots, shot_template: is_text.then_some(template), shot_source, file, think, answer })
    }
}

impl Plan {
    /// Whether the prompt is made of a text of the user.
    pub(crate) fn needs_input(&self) -> bool {
        self.file.as_ref().is_none_or(PromptFile::needs_input)
    }

    /// Whether the prompt is a plain text for the model to continue, as the prompt file says.
    pub(crate) fn is_raw(&self) -> bool {
        self.file.as_ref().is_some_and(|file| file.settings.raw)
    }

    /// What is shown of reasoning; none: none was asked for.
    pub(crate) fn think(&self) -> Option<Think> {
        self.think
    }

    /// The sampling settings of the prompt file, and its name.
    pub(crate) fn sampling(&self) -> Option<(&Map<String, Value>, &str)> {
        self.file.as_ref().map(|file| (&file.settings.sampling, file.name.as_str()))
    }

    /// The stop string that ends a continued text before the next example.
    pub(crate) fn stop(&self, raw: bool) -> Option<String> {
        let has_form = self.shot_template.is_some() || !self.shots.is_empty();
        let begin = self.shot_source.split("{{").next().unwrap_or_default().trim();
        (raw && has_form && !begin.is_empty()).then(|| format!("\n{begin}"))
    }

    /// The messages before the first question: the system message, and the examples as turns.
    pub(crate) fn fixed(&self) -> Vec<ChatMessage> {
        let system = self.system.iter().map(ChatMessage::system);
        let shots = self.shots.iter().filter(|_| self.shot_template.is_none());
        system
            .chain(shots.flat_map(|shot| [ChatMessage::user(&shot.input), ChatMessage::assistant(&shot.output)]))
            .collect()
    }

    /// The text of a question.
    fn question(&self, text: &str, raw: bool, model: &TextModel) -> Result<String, Failure> {
        let mut question = match &self.file {
            Some(file) => file.prompt(text)?,
            None => text.to_owned(),
        };
        let raw_form = if raw && !self.shots.is_empty() { TextTemplate::new(&self.shot_source).ok() } else { None };
        if let Some(template) = self.shot_template.as_ref().or(raw_form.as_ref()) {
            let last = Shot { input: question, output: String::new() };
            let all = self.shots.iter().chain([&last]).map(|shot| written(template, shot));
            question = all.collect::<Result<Vec<_>, _>>()?.join("\n\n");
        }
        match self.think {
            Some(_) if raw => question = format!("{question} {RAW_INSTRUCTION}"),
            Some(_) if !model.tokenizer.has_reasoning() => {
                question = format!("{question}\n\n{}", reasoning::INSTRUCTION);
            }
            _ => {}
        }
        Ok(question)
    }

    /// A question as a message.
    pub(crate) fn message(&self, text: &str, model: &TextModel) -> Result<ChatMessage, Failure> {
        Ok(ChatMessage::user(self.question(text, false, model)?))
    }

    /// The conversation of these messages, with reasoning turned on if it was asked for.
    pub(crate) fn conversation(&self, messages: Vec<ChatMessage>) -> Conversation {
        let mut conversation = Conversation::from(messages);
        if self.think.is_some() {
            conversation.variables.insert("enable_thinking".to_owned(), true.into());
        }
        conversation
    }

    /// The prompt for a text of the user; `raw`: a text to continue, without the chat template.
    pub(crate) fn prompt(&self, text: &str, raw: bool, model: &TextModel) -> Result<Prompt, Failure> {
        if raw || !model.tokenizer.has_chat_template() {
            if self.system.is_some() {
                let reason = if raw { "for a plain text (--raw)" } else { "because the model has no chat template" };
                return Err(Failure::input(format!(
                    "a system message cannot be used {reason}; put the text into the prompt"
                )));
            }
            let text = self.question(text, true, model)?;
            let ids = model.text_ids(&text).map_err(input)?;
            let bos = model.tokenizer.bos_id().filter(|_| model.tokenizer.adds_bos());
            let begin = bos.and_then(|id| model.tokenizer.token(id)).unwrap_or_default();
            return Ok(Prompt { ids, text: format!("{begin}{text}") });
        }
        let mut messages = self.fixed();
        messages.push(self.message(text, model)?);
        self.chat_prompt(messages, model)
    }

    /// The prompt for the answer to the last of these messages.
    pub(crate) fn chat_prompt(&self, messages: Vec<ChatMessage>, model: &TextModel) -> Result<Prompt, Failure> {
        let conversation = self.conversation(messages);
        let ids = model.chat_ids(&conversation).map_err(input)?;
        let text = model.tokenizer.render_chat(&conversation, true).map_err(input)?;
        Ok(Prompt { ids, text })
    }
}

/// An example as text; without its output up to the place of it.
fn written(template: &TextTemplate, shot: &Shot) -> Result<String, Failure> {
    let entries = [("input", &shot.input), ("output", &shot.output)];
    let variables = entries.map(|(name, text)| (name.to_owned(), Value::from(text.as_str()))).into_iter().collect();
    let text = template.render(&variables).map_err(|e| Failure::input(format!("--shot-template: {e}")))?;
    Ok(if shot.output.is_empty() { text.trim_end().to_owned() } else { text })
}

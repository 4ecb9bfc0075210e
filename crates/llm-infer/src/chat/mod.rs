//! The command `chat`: a conversation in the terminal, or line by line from standard input.

mod command;
mod editor;
mod history;
mod interrupt;
mod terminal;

use std::path::Path;

use clap::Args;
use llm_cli::Failure;
use llm_engine::{TextModel, TextOptions};
use llm_tokenizer::ChatMessage;

use self::command::{COMMANDS, Command, KEYS, Line};
use self::editor::{Entered, Reader};
use self::history::History;
use self::interrupt::Answering;
use crate::failure::input;
use crate::generation_args::GenerationArgs;
use crate::prompt::{Plan, Think, without_reasoning};
use crate::text_model::stream_reply;

#[derive(Debug, Args)]
#[allow(clippy::doc_markdown, reason = "help texts have no backticks")]
#[command(after_help = "Examples:\n  llm-infer chat --model runs/lifecycle/aligned --system \"You are a pirate.\"\n  \
    printf 'Hello.\\n/save talk.jsonl\\n' | llm-infer chat --model runs/lifecycle/aligned\n\n\
    In the chat: /help lists the commands, /clear starts a new conversation, Ctrl-C stops an answer, /bye ends the chat")]
pub(crate) struct ChatArgs {
    /// Do not keep what is typed for later chats; the file is llm-infer/chat-history in $XDG_STATE_HOME or ~/.local/state
    #[arg(long)]
    no_history: bool,
    #[command(flatten)]
    pub(crate) generation: GenerationArgs,
}

/// Runs the command.
pub(crate) fn chat(args: &ChatArgs) -> Result<(), Failure> {
    args.generation.check()?;
    let plan = args.generation.prompt.plan()?;
    if !plan.needs_input() {
        return Err(Failure::input(
            "the prompt file has no {{ input }}, so the messages of a chat have no place; add it",
        ));
    }
    let file = if args.no_history { None } else { editor::history_file() };
    let mut reader = Reader::open(file.as_deref());
    let model = args.generation.load()?;
    let mut options = args.generation.settings(&model, &plan, false)?.logged_options(&model)?;
    options.sampling = options.sampling.seeded();
    if !model.tokenizer.has_chat_template() {
        let dir = args.generation.model.display();
        let message = format!("{dir}: this model has no chat template; use `llm-infer generate` to continue a text");
        return Err(Failure::input(message));
    }
    let terminal = reader.is_terminal();
    let history = History::new(plan.fixed());
    let mut session = Session { model, plan, history, options, answers: 0, terminal };
    if terminal {
        interrupt::install();
        llm_cli::print("Type a message and press Enter. /help lists the commands, /bye or Ctrl-D ends the chat.\n")?;
    }
    let mut interrupted = false;
    loop {
        let text = match reader.next()? {
            Entered::Text(text) => text,
            Entered::Interrupt if !interrupted => {
                interrupted = true;
                llm_cli::print("Ctrl-C again or Ctrl-D ends the chat.\n")?;
                continue;
            }
            Entered::Interrupt | Entered::End => return Ok(()),
        };
        interrupted = false;
        match Line::parse(&text) {
            Line::Empty => {}
            Line::Wrong(message) => tracing::warn!("{message}"),
            Line::Command(Command::Exit) => return Ok(()),
            Line::Command(command) => interrupted = session.tolerate(|session| session.run(command))?,
            Line::Message(text) => {
                interrupted = session.tolerate(|session| session.ask(session.plan.message(text, &session.model)?))?;
            }
        }
    }
}

/// The state of a chat.
struct Session {
    model: TextModel,
    plan: Plan,
    history: History,
    options: TextOptions,
    /// The number of answers so far: each has random numbers of its own.
    answers: u64,
    terminal: bool,
}

impl Session {
    /// On a terminal an error of the user is shown and the chat goes on; else it ends the program.
    fn tolerate(&mut self, work: impl FnOnce(&mut Self) -> Result<bool, Failure>) -> Result<bool, Failure> {
        match work(self) {
            Err(failure) if self.terminal && failure.is_input() => {
                tracing::warn!("{failure}");
                Ok(false)
            }
            result => result,
        }
    }

    /// Runs a command other than `/bye`. Returns whether an answer was stopped.
    fn run(&mut self, command: Command<'_>) -> Result<bool, Failure> {
        match command {
            Command::Help => {
                llm_cli::print(COMMANDS)?;
                if self.terminal {
                    llm_cli::print(KEYS)?;
                }
            }
            Command::Clear => self.history.clear(),
            Command::System(None) => {
                let system = self.history.system();
                llm_cli::print(&format!("{}\n", system.as_deref().unwrap_or("There is no system message.")))?;
            }
            Command::System(Some(text)) => self.history.set_system(text),
            Command::Undo => {
                self.question()?;
                llm_cli::print_status(&format!("{} questions are left.\n", self.history.questions()))?;
            }
            Command::Retry => {
                let question = self.question()?;
                return self.ask(question);
            }
            Command::Save(file) => {
                self.history.save(Path::new(file))?;
                llm_cli::print_status(&format!("{file}: the conversation. /load {file} goes on with it.\n"))?;
            }
            Command::Load(file) => {
                self.history = History::load(Path::new(file))?;
                let questions = self.history.questions();
                llm_cli::print_status(&format!("{file}: a conversation with {questions} questions.\n"))?;
            }
            Command::Temperature(None) => {
                llm_cli::print(&format!("{}\n", self.options.sampling.temperature))?;
            }
            Command::Temperature(Some(temperature)) => self.options.sampling.temperature = temperature,
            Command::Exit => {}
        }
        Ok(false)
    }

    /// Removes the last question with its answer, and returns it.
    fn question(&mut self) -> Result<ChatMessage, Failure> {
        self.history.undo().ok_or_else(|| Failure::input("there is no question yet; type a message"))
    }

    /// Answers a question. Returns whether the answer was stopped; what there is of it remains in the conversation.
    fn ask(&mut self, question: ChatMessage) -> Result<bool, Failure> {
        self.history.push(question);
        let ids = match self.prompt() {
            Ok(ids) => ids,
            Err(failure) => {
                self.history.undo();
                return Err(failure);
            }
        };
        let mut options = self.options.clone();
        options.sampling.seed = options.sampling.seed.map(|seed| seed.wrapping_add(self.answers));
        self.answers += 1;
        let answering = Answering::begin();
        let answer = self.answer(&ids, &options);
        drop(answering);
        let stopped = Answering::is_stopped();
        match answer {
            Ok(text) if stopped && text.is_empty() => {
                self.history.undo();
            }
            Ok(text) => self.history.push(ChatMessage::assistant(text)),
            Err(failure) => {
                self.history.undo();
                return Err(failure);
            }
        }
        Ok(stopped)
    }

    /// Shows the answer to a prompt. Returns its text.
    fn answer(&self, ids: &[u32], options: &TextOptions) -> Result<String, Failure> {
        if self.plan.think() != Some(Think::Hidden) {
            return stream_reply(&self.model, ids, options, || !Answering::is_stopped());
        }
        let text = self.model.complete(ids, options, |_| !Answering::is_stopped()).map_err(input)?.text;
        let shown = self.plan.answer.find(&text).unwrap_or_else(|| without_reasoning(&text).to_owned());
        llm_cli::print(&format!("{shown}\n"))?;
        Ok(text)
    }

    /// The token ids of the conversation. Says so if the oldest messages had to be left out.
    fn prompt(&mut self) -> Result<Vec<u32>, Failure> {
        let fitted = self.history.fit(&self.model, &self.plan, self.options.max_new_tokens)?;
        let (tokens, context_length) = (fitted.ids.len(), self.model.model.config().max_position_embeddings);
        if tokens >= context_length {
            return Err(Failure::input(format!(
                "the message has {tokens} tokens; it must be shorter than the context length of {context_length}"
            )));
        }
        if fitted.dropped {
            tracing::warn!(
                "the context of {context_length} tokens is full: the oldest messages are left out; /clear starts a new conversation"
            );
        }
        Ok(fitted.ids)
    }
}

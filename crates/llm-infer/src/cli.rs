//! Runs the commands of `llm-infer`.

use std::collections::BTreeMap;
use std::io::{BufRead, IsTerminal};
use std::time::Instant;

use llm_cli::Failure;
use llm_engine::{Error, TextModel, TextOptions, anonymous_memory, bench};
use llm_model::{Batch, Model, write_safetensors};
use llm_tokenizer::{ChatMessage, TemplateOptions};

use crate::adapter::with_adapter;
pub use crate::args::Arguments;
use crate::args::{BenchArgs, ChatArgs, Command, GenerateArgs, GenerationArgs, LogitsArgs};
use crate::convert::convert;
use crate::failure::{input, io_failure, refuse_existing};
use crate::merge::merge;
use crate::prompt::read_prompt;

/// What the program prints if no command is given.
const START: &str = "\
llm-infer generates text with a language model: a Hugging Face folder or a .gguf file.

Start here:
  llm-infer chat --model runs/lifecycle/aligned
  llm-infer generate --model model.gguf \"Write a sentence about the sea.\"
  llm-infer convert --model runs/lifecycle/aligned --to gguf --out aligned.gguf

No model yet? `llm-train lifecycle` trains one from nothing on this machine, and `--model org/name` fetches one from the Hugging
Face hub, such as HuggingFaceTB/SmolLM2-135M-Instruct.
All commands: llm-infer --help
";

impl GenerationArgs {
    fn load(&self) -> Result<TextModel, Failure> {
        let template = self.template_options()?;
        let (start, device) = (Instant::now(), self.device.open()?);
        let adapter_tokenizer = self.adapter.as_ref().filter(|dir| dir.join("tokenizer.json").exists());
        let opened = match adapter_tokenizer {
            Some(dir) => {
                Model::open(&self.model).map_err(Error::from).and_then(|model| TextModel::with_tokenizer(model, dir))
            }
            None => TextModel::open(&self.model),
        };
        let mut text_model = opened.map_err(input)?;
        text_model.model = with_adapter(self.dtype.convert(text_model.model)?, self.adapter.as_deref())?;
        text_model = text_model.to_device(&device).map_err(input)?;
        text_model.tokenizer = text_model.tokenizer.with_template_options(template).map_err(input)?;
        let memory =
            anonymous_memory().map_or_else(String::new, |bytes| format!(", {} MB of memory", bytes / 1_000_000));
        tracing::debug!("loaded in {:.2} s{memory}", start.elapsed().as_secs_f64());
        Ok(text_model)
    }

    fn template_options(&self) -> Result<TemplateOptions, Failure> {
        let variables = self.template_kwargs.as_deref().map_or(Ok(serde_json::Map::new()), serde_json::from_str);
        let variables = variables.map_err(|e| {
            Failure::input(format!("--template-kwargs: not a JSON object ({e}); write {{\"enable_thinking\": false}}"))
        })?;
        Ok(TemplateOptions { variables, date: self.date.clone(), ..TemplateOptions::default() })
    }

    fn system_message(&self) -> Vec<ChatMessage> {
        self.system.iter().map(|text| ChatMessage::new("system", text)).collect()
    }
}

/// Runs the selected command.
pub fn execute(arguments: Arguments) -> Result<(), Failure> {
    let Some(mut command) = arguments.command else { return llm_cli::print(START) };
    command.resolve_names()?;
    let threads = arguments.threads.unwrap_or_else(llm_kernels::default_threads);
    let result = llm_kernels::with_threads(threads, || match command {
        Command::Generate(args) => generate(&args),
        Command::Chat(args) => chat(&args),
        Command::Logits(args) => write_logits(&args),
        Command::Merge(args) => merge(&args),
        Command::Bench(args) => run_bench(&args),
        Command::Convert(args) => convert(&args),
        Command::Shell(command) => command.run::<Arguments>(),
    });
    result.map_err(|e| Failure::input(format!("--threads: {e}")))?
}

fn generate(args: &GenerateArgs) -> Result<(), Failure> {
    args.generation.check()?;
    let text = read_prompt(args)?;
    let text_model = args.generation.load()?;
    let options = args.generation.options(&text_model);
    let prompt = if args.raw || !text_model.tokenizer.has_chat_template() {
        if args.generation.system.is_some() {
            let reason = if args.raw { "with --raw" } else { "because the model has no chat template" };
            return Err(Failure::input(format!("--system cannot be used {reason}; put the text into the prompt")));
        }
        text_model.text_ids(&text).map_err(input)?
    } else {
        let mut messages = args.generation.system_message();
        messages.push(ChatMessage::new("user", &text));
        text_model.chat_ids(&messages).map_err(input)?
    };
    stream_reply(&text_model, &prompt, &options)?;
    Ok(())
}

fn chat(args: &ChatArgs) -> Result<(), Failure> {
    args.generation.check()?;
    let text_model = args.generation.load()?;
    let options = args.generation.options(&text_model);
    if !text_model.tokenizer.has_chat_template() {
        let dir = args.generation.model.display();
        let message = format!("{dir}: this model has no chat template; use `llm-infer generate` to continue a text");
        return Err(Failure::input(message));
    }
    let mut messages = args.generation.system_message();
    let terminal = std::io::stdin().is_terminal();
    if terminal {
        llm_cli::print("Type a message and press Enter; /bye or Ctrl-D ends the chat.\n")?;
    }
    loop {
        if terminal {
            llm_cli::print("> ")?;
        }
        let mut line = String::new();
        let read = std::io::stdin().lock().read_line(&mut line);
        let read = read.map_err(|e| io_failure("standard input", &e))?;
        if read == 0 || line.trim() == "/bye" {
            return Ok(());
        }
        // Pasted text can have empty lines: they are no messages.
        if line.trim().is_empty() {
            continue;
        }
        messages.push(ChatMessage::new("user", line.trim()));
        let prompt = text_model.chat_ids(&messages).map_err(input)?;
        let reply = stream_reply(&text_model, &prompt, &options)?;
        messages.push(ChatMessage::new("assistant", reply));
    }
}

/// Streams the reply to standard output and logs the throughput.
fn stream_reply(text_model: &TextModel, prompt: &[u32], options: &TextOptions) -> Result<String, Failure> {
    let start = Instant::now();
    let mut written = Ok(());
    let completion = text_model.complete(prompt, options, |piece| {
        if written.is_ok() && !piece.is_empty() {
            written = llm_cli::print(piece);
        }
    });
    let completion = completion.map_err(input)?;
    written?;
    llm_cli::print("\n")?;
    let rate = completion.tokens as f64 / start.elapsed().as_secs_f64();
    tracing::debug!("{} prompt tokens, {} new tokens, {rate:.0} tokens/s", prompt.len(), completion.tokens);
    Ok(completion.text)
}

fn write_logits(args: &LogitsArgs) -> Result<(), Failure> {
    refuse_existing(&args.out)?;
    let device = args.device.open()?;
    let model = with_adapter(Model::open(&args.model).map_err(input)?, args.adapter.as_deref())?;
    let model = model.to_device(&device).map_err(input)?;
    let logits =
        (|| -> Result<_, Error> { Ok(model.forward(&Batch::new(std::slice::from_ref(&args.ids))?)?.squeeze(0)?) })();
    let tensors = BTreeMap::from([("logits".to_owned(), logits.map_err(input)?)]);
    write_safetensors(&args.out, &tensors).map_err(input)?;
    let (tokens, out) = (args.ids.len(), args.out.display());
    llm_cli::print_status(&format!(
        "{out}: logits of {tokens} tokens. Next, in Python: safetensors.numpy.load_file(\"{out}\")[\"logits\"]\n"
    ))
}

fn run_bench(args: &BenchArgs) -> Result<(), Failure> {
    let device = args.device.open()?;
    let model = match (&args.model, &args.config) {
        (Some(path), _) => Model::open(path).map_err(input)?,
        (None, Some(path)) => Model::random(path, 42).map_err(input)?,
        (None, None) => return Err(Failure::input("give --model or --config")),
    };
    let model = args.dtype.convert(model)?.to_device(&device).map_err(input)?;
    let cost = bench(&model, args.prompt_tokens, args.new_tokens, args.rounds).map_err(input)?;
    let json = serde_json::to_string(&cost).map_err(|e| Failure::internal(e.to_string()))?;
    llm_cli::print(&format!("{json}\n"))
}

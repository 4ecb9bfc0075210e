//! Runs the commands of `llm-infer`.

use std::collections::BTreeMap;

use llm_cli::Failure;
use llm_engine::{Error, bench};
use llm_model::{Batch, Model, write_safetensors};

use crate::adapter::with_adapter;
pub use crate::args::Arguments;
use crate::args::{BenchArgs, Command, LogitsArgs};
use crate::attention::attention;
use crate::chat::chat;
use crate::convert::convert;
use crate::failure::{input, refuse_existing};
use crate::generate::generate;
use crate::merge::merge;
use crate::serve::serve;
use crate::temperature::temperature;

/// What the program prints if no command is given.
const START: &str = "\
llm-infer generates text with a language model: a Hugging Face folder or a .gguf file.

Start here:
  llm-infer chat --model runs/lifecycle/aligned
  llm-infer serve --model runs/lifecycle/aligned
  llm-infer generate --model model.gguf \"Write a sentence about the sea.\"
  llm-infer convert --model runs/lifecycle/aligned --to gguf --out aligned.gguf

No model yet? `llm-train lifecycle` trains one from nothing on this machine, and `--model org/name` fetches one from the Hugging
Face hub, such as HuggingFaceTB/SmolLM2-135M-Instruct.
All commands: llm-infer --help
";

/// Runs the selected command.
pub fn execute(arguments: Arguments) -> Result<(), Failure> {
    let Some(mut command) = arguments.command else { return llm_cli::print(START) };
    command.resolve_names()?;
    let threads = arguments.threads.unwrap_or_else(llm_kernels::default_threads);
    let result = llm_kernels::with_threads(threads, || match command {
        Command::Generate(args) => generate(&args),
        Command::Chat(args) => chat(&args),
        Command::Serve(args) => serve(&args),
        Command::Logits(args) => write_logits(&args),
        Command::Attention(args) => attention(&args),
        Command::Temperature(args) => temperature(&args),
        Command::Merge(args) => merge(&args),
        Command::Bench(args) => run_bench(&args),
        Command::Convert(args) => convert(&args),
        Command::Shell(command) => command.run::<Arguments>(),
    });
    result.map_err(|e| Failure::input(format!("--threads: {e}")))?
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

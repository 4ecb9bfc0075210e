//! The command `serve`: a server of the OpenAI API.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use crate::dtype::Dtype;
use crate::failure::{input, io_failure};
use crate::text_model::template_options;
use clap::Args;
use llm_cli::{DeviceOption, Failure, HubOption};
use llm_engine::{Engine, EngineOptions, TextModel};
use llm_serve::{ServeOptions, Server};

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  llm-infer serve --model runs/lifecycle/aligned\n  \
    llm-infer serve -m model.gguf --port 9000 --alias small\n  \
    llm-infer serve -m org/name --host 0.0.0.0 --api-key-file keys.txt\n\n\
    It prints where it listens; a browser shows the chat page there. Ctrl-C lets running requests end, twice ends at once.")]
#[allow(clippy::doc_markdown, reason = "help texts have no backticks")]
pub(crate) struct ServeArgs {
    /// Model: a Hugging Face folder (config.json, model.safetensors, tokenizer.json), a .gguf file, or a name on the Hugging Face hub
    #[arg(short, long)]
    pub(crate) model: PathBuf,
    /// Name of the model in requests and answers [default: the name of the folder or file]
    #[arg(long)]
    alias: Option<String>,
    /// A LoRA adapter, which a request chooses by its name (repeatable): a folder in PEFT's format
    #[arg(long, value_name = "NAME=PATH", value_parser = llm_cli::key_value)]
    adapter: Vec<(String, String)>,
    /// Address to listen on; 0.0.0.0: all of this machine
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    host: IpAddr,
    /// Port to listen on; 0: any free one
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// File with the API keys, one per line; requests need one of them [default: no key is needed]
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// Name of this machine that browsers and proxies may use for a loopback address, besides localhost (repeatable)
    #[arg(long, value_name = "NAME")]
    allow_host: Vec<String>,
    /// Maximum number of tokens of an answer, at least 1 [default: the rest of the context]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    max_new_tokens: Option<u64>,
    /// Number of requests that may wait, at least 1; more are refused with status 429
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u64).range(1..))]
    max_queue: u64,
    /// Memory for the keys and values of all requests, in MiB, at least 1 [default: a quarter of the free memory, if it is useful]
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..1 << 30))]
    kv_memory: Option<u64>,
    /// The answer to a request does not depend on what else runs: keys and values in f32, prompts in equal pieces
    #[arg(long)]
    deterministic: bool,
    /// A smaller model with the same tokenizer that drafts tokens (speculative decoding): a folder, a .gguf file or org/name on the hub
    #[arg(long, value_name = "MODEL")]
    pub(crate) draft: Option<PathBuf>,
    /// Draft the tokens that followed the last ones earlier in the text
    #[arg(long, conflicts_with = "draft")]
    prompt_lookup: bool,
    /// Maximum size of a request in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 8 << 20)]
    max_body: usize,
    /// Seconds that running requests may take after Ctrl-C
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    drain: u64,
    /// Variables of the chat template as a JSON object, such as '{"enable_thinking": false}'
    #[arg(long, value_name = "JSON")]
    template_kwargs: Option<String>,
    /// Date that a chat template writes as today [default: today]
    #[arg(long, value_name = "YYYY-MM-DD")]
    date: Option<String>,
    /// Weight dtype in memory
    #[arg(long, value_parser = Dtype::parser(), default_value = "mapped")]
    dtype: Dtype,
    #[command(flatten)]
    device: DeviceOption,
    #[command(flatten)]
    pub(crate) hub: HubOption,
}

/// Runs the command.
pub(crate) fn serve(args: &ServeArgs) -> Result<(), Failure> {
    let options = args.options()?;
    let name = options.name.clone();
    let with_key = !options.api_keys.is_empty();
    if !args.host.is_loopback() && !with_key {
        tracing::warn!("everyone who can reach {} can use this server; set --api-key-file", args.host);
    }
    let model = args.load()?;
    let (context, chats) = (model.model.config().max_position_embeddings, model.tokenizer.has_chat_template());
    let engine_options = EngineOptions {
        max_queue: args.max_queue as usize,
        kv_memory: args.kv_memory.map(|mib| mib << 20),
        deterministic: args.deterministic,
        prompt_lookup: args.prompt_lookup,
        ..EngineOptions::default()
    };
    let engine = match &args.draft {
        Some(path) => Engine::start_with_draft(model, TextModel::open(path).map_err(input)?, engine_options),
        None => Engine::start(model, engine_options),
    };
    let engine = engine.map_err(input)?;
    let address = SocketAddr::new(args.host, args.port);
    let server = Server::start(engine, address, options).map_err(|error| Failure::input(error.to_string()))?;
    let stop = llm_cli::stop_on_interrupt("waiting for the running requests");
    llm_cli::print(&greeting(server.address(), &name, context, chats, with_key))?;
    while !stop.load(SeqCst) {
        std::thread::sleep(Duration::from_millis(50));
    }
    server.shutdown(Duration::from_secs(args.drain));
    Ok(())
}

/// Where the server listens, and how to call it.
fn greeting(address: SocketAddr, name: &str, context: usize, chats: bool, with_key: bool) -> String {
    // The address 0.0.0.0 is for listening only.
    let shown = match address.ip().is_unspecified() {
        true => SocketAddr::new(Ipv4Addr::LOCALHOST.into(), address.port()),
        false => address,
    };
    let key = if with_key { " -H \"Authorization: Bearer $KEY\"" } else { "" };
    let (path, body) = match chats {
        true => ("chat/completions", r#"{"messages": [{"role": "user", "content": "Hello."}]}"#),
        false => ("completions", r#"{"prompt": "Hello."}"#),
    };
    format!(
        "{name} with a context of {context} tokens is served at http://{address}\n\
         Chat page: http://{shown}/   Clients: base URL http://{shown}/v1, model \"{name}\"\n\
         Try: curl http://{shown}/v1/{path}{key} -H 'Content-Type: application/json' -d '{body}'\n"
    )
}

impl ServeArgs {
    fn options(&self) -> Result<ServeOptions, Failure> {
        let file_name = |path: &Path| Some(path.file_stem()?.to_string_lossy().into_owned());
        let resolved = || self.model.canonicalize().ok();
        let stem = match self.model.extension().is_some_and(|extension| extension == "gguf") {
            true => file_name(&self.model),
            false => resolved().and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned())),
        };
        let name = self.alias.clone().or(stem).unwrap_or_else(|| "model".to_owned());
        if let Some((adapter, _)) = self.adapter.iter().find(|(adapter, _)| *adapter == name) {
            return Err(Failure::input(format!(
                "--adapter {adapter}=…: this is the name of the model; choose another one"
            )));
        }
        Ok(ServeOptions {
            api_keys: self.api_key_file.as_deref().map_or(Ok(Vec::new()), read_keys)?,
            hosts: self.allow_host.clone(),
            max_new_tokens: self.max_new_tokens.map(|tokens| tokens as usize),
            max_body: self.max_body,
            ..ServeOptions::new(name)
        })
    }

    /// Opens the model with its adapters.
    fn load(&self) -> Result<TextModel, Failure> {
        let template = template_options(self.template_kwargs.as_deref(), self.date.as_deref())?;
        let device = self.device.open()?;
        let mut model = TextModel::open(&self.model).map_err(input)?;
        model.model = self.dtype.convert(model.model)?;
        for (name, path) in &self.adapter {
            model.model.load_adapter(name, path).map_err(input)?;
        }
        model = model.to_device(&device).map_err(input)?;
        model.tokenizer = model.tokenizer.with_template_options(template).map_err(input)?;
        Ok(model)
    }
}

/// The keys of a file, one per line; empty lines and lines that begin with # are left out.
fn read_keys(path: &Path) -> Result<Vec<String>, Failure> {
    let text = std::fs::read_to_string(path).map_err(|error| io_failure(path.display(), &error))?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let keys: Vec<String> = lines.map(str::to_owned).collect();
    match keys.is_empty() {
        true => Err(Failure::input(format!("{}: has no key; write one per line", path.display()))),
        false => Ok(keys),
    }
}

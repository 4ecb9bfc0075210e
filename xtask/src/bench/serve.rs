//! `cargo xtask bench serve`: the same concurrent requests to our server and to llama.cpp's, alternately.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Map, Value, json};

/// How long a server may take to open its model.
const START_LIMIT: Duration = Duration::from_mins(2);

#[derive(Args)]
pub struct ServeOptions {
    /// GGUF file that both servers open
    #[arg(long, value_name = "FILE")]
    model: PathBuf,
    /// The program `llama-server` of llama.cpp; without it only our server runs
    #[arg(long, value_name = "PROGRAM", alias = "peers")]
    llama_server: Option<PathBuf>,
    /// Text that the prompts are cut from [default: the README of this repository]
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Number of requests in flight
    #[arg(long, default_value_t = 16)]
    concurrency: usize,
    /// Number of requests of each run
    #[arg(long, default_value_t = 48)]
    requests: usize,
    /// Tokens of each prompt
    #[arg(long, default_value_t = 128)]
    prompt_tokens: usize,
    /// Tokens of each answer
    #[arg(long, default_value_t = 128)]
    new_tokens: usize,
    /// Number of runs of each server
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Number of compute threads of each server
    #[arg(long, default_value_t = 2)]
    threads: usize,
}

/// A running server; dropping it ends the process.
struct Server {
    process: Child,
    url: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

impl Server {
    /// Starts `program` with `arguments` and a free port, and waits until it answers.
    fn start(program: &Path, arguments: &[String]) -> Result<Self, String> {
        let listener = TcpListener::bind("127.0.0.1:0").map_err(|e| format!("127.0.0.1: {e}"))?;
        let port = listener.local_addr().map_err(|e| e.to_string())?.port();
        drop(listener);
        let mut command = Command::new(program);
        command.args(arguments).args(["--host", "127.0.0.1", "--port", &port.to_string()]);
        let process = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let process = process.map_err(|e| format!("{}: {e}", program.display()))?;
        let mut server = Self { process, url: format!("http://127.0.0.1:{port}") };
        let start = Instant::now();
        while ureq::get(&format!("{}/health", server.url)).call().is_err() {
            if server.process.try_wait().is_ok_and(|status| status.is_some()) || start.elapsed() > START_LIMIT {
                return Err(format!("{} does not start; run it by hand: {}", program.display(), arguments.join(" ")));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(server)
    }

    /// The largest resident memory of the process so far, in bytes.
    fn peak_memory(&self) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
    }
}

/// What one request saw, in seconds.
struct Observed {
    first: f64,
    between: Vec<f64>,
    tokens: usize,
}

/// Runs the benchmark and prints its table.
pub fn bench(options: &ServeOptions, root: &Path) -> Result<(), String> {
    if [options.requests, options.concurrency, options.rounds, options.prompt_tokens, options.new_tokens].contains(&0) {
        return Err("a number is 0; all must be at least 1".to_owned());
    }
    super::build(root, "llm-infer")?;
    let (model, threads) = (options.model.display().to_string(), options.threads.to_string());
    let ours = ["serve", "--model", &model, "--threads", &threads].map(str::to_owned).to_vec();
    // Room for prompt and answer in each of the slots, which divide the context.
    let context = options.concurrency * (options.prompt_tokens + options.new_tokens + 16);
    let (slots, context) = (options.concurrency.to_string(), context.to_string());
    let theirs = ["-m", &model, "-t", &threads, "-np", &slots, "-c", &context].map(str::to_owned).to_vec();
    let mut servers = vec![("ours", root.join("target/release/llm-infer"), ours)];
    servers.extend(options.llama_server.iter().map(|program| ("llama-server", program.clone(), theirs.clone())));
    let text = options.text.clone().unwrap_or_else(|| root.join("README.md"));
    let text = std::fs::read_to_string(&text).map_err(|e| format!("{}: {e}", text.display()))?;
    let mut prompts = Vec::new();
    let mut results: Vec<Vec<Map<String, Value>>> = servers.iter().map(|_| Vec::new()).collect();
    for round in 1..=options.rounds {
        for ((name, program, arguments), runs) in servers.iter().zip(&mut results) {
            eprintln!("xtask: round {round} of {}: {name}", options.rounds);
            let server = Server::start(program, arguments)?;
            if prompts.is_empty() {
                prompts = cut(&tokenize(&server, &text)?, options)?;
            }
            let metrics = load(&server, &prompts, options)?;
            eprintln!("xtask: {}", Value::Object(metrics.clone()));
            runs.push(metrics);
        }
    }
    let names: Vec<&str> = servers.iter().map(|(name, ..)| *name).collect();
    let metrics = [
        ("tokens/s", "tokens_per_second", 1.),
        ("first token, p50, ms", "first_p50", 1e3),
        ("first token, p99, ms", "first_p99", 1e3),
        ("between tokens, p50, ms", "between_p50", 1e3),
        ("between tokens, p99, ms", "between_p99", 1e3),
        ("peak memory, MB", "peak_memory", 1e-6),
    ];
    println!("{}", super::table(&names, &results, &metrics));
    Ok(())
}

fn tokenize(server: &Server, text: &str) -> Result<Vec<u64>, String> {
    let answer = ureq::post(&format!("{}/tokenize", server.url)).send_json(json!({"prompt": text, "content": text}));
    let answer: Value = answer.and_then(|mut answer| answer.body_mut().read_json()).map_err(|e| e.to_string())?;
    let ids = answer["tokens"].as_array().ok_or("/tokenize gives no tokens")?;
    Ok(ids.iter().filter_map(Value::as_u64).collect())
}

/// Prompts that start at different places of the text, which is repeated as often as needed.
fn cut(ids: &[u64], options: &ServeOptions) -> Result<Vec<Vec<u64>>, String> {
    if ids.len() < options.requests {
        return Err(format!("the text has {} tokens; it needs {} or more", ids.len(), options.requests));
    }
    let stride = ids.len() / options.requests;
    let prompt = |i: usize| ids.iter().cycle().skip(i * stride).take(options.prompt_tokens).copied().collect();
    Ok((0..options.requests).map(prompt).collect())
}

/// Sends all requests, `concurrency` at a time, and summarises what they saw.
fn load(server: &Server, prompts: &[Vec<u64>], options: &ServeOptions) -> Result<Map<String, Value>, String> {
    complete(server, &prompts[0], 2)?; // warm-up
    let (next, start) = (AtomicUsize::new(0), Instant::now());
    let client = || -> Result<Vec<Observed>, String> {
        let take = || prompts.get(next.fetch_add(1, Ordering::Relaxed));
        std::iter::from_fn(take).map(|prompt| complete(server, prompt, options.new_tokens)).collect()
    };
    let observed = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..options.concurrency).map(|_| scope.spawn(client)).collect();
        let results = clients.into_iter().map(|client| client.join().map_err(|_| "a client failed".to_owned())?);
        results.collect::<Result<Vec<_>, String>>()
    })?;
    let seconds = start.elapsed().as_secs_f64();
    let observed: Vec<Observed> = observed.into_iter().flatten().collect();
    let tokens: usize = observed.iter().map(|request| request.tokens).sum();
    if tokens != options.requests * options.new_tokens {
        let asked = options.requests * options.new_tokens;
        return Err(format!("{tokens} tokens came, {asked} were asked for"));
    }
    let first: Vec<f64> = observed.iter().map(|request| request.first).collect();
    let between: Vec<f64> = observed.iter().flat_map(|request| request.between.iter().copied()).collect();
    let metrics = json!({
        "tokens_per_second": tokens as f64 / seconds,
        "first_p50": quantile(first.clone(), 0.5),
        "first_p99": quantile(first, 0.99),
        "between_p50": quantile(between.clone(), 0.5),
        "between_p99": quantile(between, 0.99),
        "peak_memory": server.peak_memory(),
    });
    Ok(metrics.as_object().cloned().unwrap_or_default())
}

/// The smallest value that at least the share `q` of the values does not exceed.
fn quantile(mut values: Vec<f64>, q: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let at = (q * values.len() as f64).ceil() as usize;
    values.get(at.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

/// One streamed greedy completion that does not end before `new_tokens`.
fn complete(server: &Server, prompt: &[u64], new_tokens: usize) -> Result<Observed, String> {
    let request = json!({
        "prompt": prompt, "max_tokens": new_tokens, "temperature": 0, "stream": true, "ignore_eos": true,
        "cache_prompt": false, "stream_options": {"include_usage": true},
    });
    let start = Instant::now();
    let answer = ureq::post(&format!("{}/v1/completions", server.url)).send_json(request).map_err(|e| e.to_string())?;
    let (mut times, mut tokens) = (Vec::new(), None);
    for line in BufReader::new(answer.into_body().into_reader()).lines() {
        let line = line.map_err(|e| e.to_string())?;
        let Some(data) = line.strip_prefix("data: ").filter(|data| *data != "[DONE]") else { continue };
        let chunk: Value = serde_json::from_str(data).map_err(|e| format!("{data}: {e}"))?;
        if chunk.get("error").is_some() {
            return Err(data.to_owned());
        }
        let usage = chunk["usage"]["completion_tokens"].as_u64();
        tokens = usage.map(|tokens| tokens as usize).or(tokens);
        if chunk["choices"][0]["text"].as_str().is_some_and(|text| !text.is_empty()) {
            times.push(start.elapsed().as_secs_f64());
        }
    }
    let first = *times.first().ok_or("an answer has no text")?;
    let between = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    Ok(Observed { first, between, tokens: tokens.ok_or("an answer has no usage")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_occurred() {
        let values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(quantile(values.clone(), 0.5), 50.);
        assert_eq!(quantile(values.clone(), 0.99), 99.);
        assert_eq!(quantile(vec![3.], 0.99), 3.);
        assert!(quantile(Vec::new(), 0.5).is_nan());
    }

    #[test]
    fn prompts_start_at_different_places() {
        let options = ServeOptions {
            model: PathBuf::new(),
            llama_server: None,
            text: None,
            concurrency: 2,
            requests: 3,
            prompt_tokens: 4,
            new_tokens: 1,
            rounds: 1,
            threads: 1,
        };
        let prompts = cut(&[0, 1, 2, 3, 4, 5, 6], &options).unwrap();
        assert_eq!(prompts, [[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 0]]);
        assert!(cut(&[0, 1], &options).unwrap_err().contains("2 tokens"));
    }
}

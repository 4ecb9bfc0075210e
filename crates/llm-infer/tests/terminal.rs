//! The chat on a terminal, typed by a test: pasted lines, Ctrl-C during an answer, the history of a later chat.
//!
//! The terminal is that of the program `script` (util-linux); without it the tests are skipped.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use llm_engine::{Sampling, TextModel, TextOptions};
use llm_model::{Head, Model, ModelConfig};
use llm_tokenizer::{ChatMessage, TrainConfig, train_bpe};

/// How long the program may take to show something. Other tests run at the same time.
const PATIENCE: Duration = Duration::from_mins(2);

/// An empty prompt as the editor shows it; an answer with random bytes does not contain it.
const PROMPT: &str = "> \x1b7\x1b8";

/// A program on a terminal of 80 columns.
struct Screen {
    child: Child,
    keys: Arc<Mutex<ChildStdin>>,
    shown: Arc<Mutex<String>>,
    /// What [`Self::wait`] has found already, in bytes.
    read: usize,
}

impl Screen {
    /// Runs a line of the shell, if there is the program `script`.
    fn open(line: &str, home: &Path) -> Option<Self> {
        let found = Command::new("script").arg("--version").stdout(Stdio::null()).status().is_ok_and(|s| s.success());
        if !found {
            eprintln!("skipped: this machine has no program `script`");
            return None;
        }
        let mut command = Command::new("script");
        command
            .args(["--quiet", "--return", "--command"])
            .arg(format!("stty rows 24 cols 80; {line}"))
            .arg("/dev/null");
        command.env("XDG_STATE_HOME", home).env("NO_COLOR", "1").env("TERM", "xterm").env("SHELL", "/bin/sh");
        command.env_remove("RUST_LOG").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let keys = Arc::new(Mutex::new(child.stdin.take().unwrap()));
        let shown = Arc::new(Mutex::new(String::new()));
        let (mut output, answers, screen) = (child.stdout.take().unwrap(), Arc::clone(&keys), Arc::clone(&shown));
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = output.read(&mut bytes) {
                let text = String::from_utf8_lossy(&bytes[..count]);
                // The editor asks where the cursor is; a terminal answers.
                for _ in text.matches("\x1b[6n") {
                    answers.lock().unwrap().write_all(b"\x1b[1;1R").ok();
                }
                screen.lock().unwrap().push_str(&text);
            }
        });
        Some(Self { child, keys, shown, read: 0 })
    }

    fn press(&self, keys: &str) {
        let mut stdin = self.keys.lock().unwrap();
        stdin.write_all(keys.as_bytes()).unwrap();
        stdin.flush().unwrap();
    }

    /// Waits until a text is shown after what was waited for before.
    fn wait(&mut self, text: &str) {
        let start = Instant::now();
        loop {
            let shown = self.shown.lock().unwrap().clone();
            if let Some(at) = shown[self.read..].find(text) {
                self.read += at + text.len();
                return;
            }
            assert!(start.elapsed() < PATIENCE, "{text:?} is not shown after {:?}", &shown[self.read..]);
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until an answer runs: much is shown after what was waited for before.
    fn wait_for_answer(&mut self) {
        let start = Instant::now();
        loop {
            let shown = self.shown.lock().unwrap().len();
            if shown > self.read + 2000 {
                self.read = shown;
                return;
            }
            assert!(start.elapsed() < PATIENCE, "{shown} bytes are shown");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until the program has ended. Returns its status and all that was shown.
    fn end(mut self) -> (ExitStatus, String) {
        let start = Instant::now();
        while self.child.try_wait().unwrap().is_none() {
            if start.elapsed() > PATIENCE {
                self.child.kill().unwrap();
                panic!("the program does not end: {:?}", self.shown.lock().unwrap());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        (self.child.wait().unwrap(), self.shown.lock().unwrap().clone())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // A test that failed leaves nothing that runs: the end of `script` hangs up its terminal.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// A model with a chat template whose answers to these questions are long at temperature 0.
fn save_model(dir: &Path, context_length: usize, questions: &[&str]) {
    let config = TrainConfig { vocab_size: 280, min_frequency: 2 };
    let tokenizer = train_bpe(&config, ["the cat sat on the mat"].iter()).unwrap().with_default_chat_template();
    let config = ModelConfig {
        vocab_size: 280,
        hidden_size: 48,
        num_hidden_layers: 1,
        initializer_range: 0.5,
        max_position_embeddings: context_length,
        ..ModelConfig::default()
    };
    let tokenizer = tokenizer.unwrap();
    let sampling = Sampling { temperature: 0., ..Sampling::default() };
    let options = TextOptions { max_new_tokens: 2000, sampling, ..TextOptions::default() };
    let is_long = |model: &TextModel, question: &str| {
        let prompt = model.chat_ids(&[ChatMessage::user(question)]).unwrap();
        let answer = model.complete(&prompt, &options, |_| true).unwrap();
        answer.tokens == 2000 && !answer.text.is_empty()
    };
    let found = (1..100).find_map(|seed| {
        let model = Model::init(config.clone(), Head::LanguageModel, seed).unwrap().frozen().unwrap();
        let model = TextModel { model, tokenizer: tokenizer.clone() };
        questions.iter().all(|question| is_long(&model, question)).then_some(model)
    });
    found.unwrap().model.save(dir).unwrap();
    tokenizer.save(dir).unwrap();
}

fn chat(model: &Path, options: &str) -> String {
    format!("{} chat -m '{}' --temperature 0 {options}", env!("CARGO_BIN_EXE_llm-infer"), model.display())
}

#[test]
fn a_paste_is_one_message_and_ctrl_c_stops_the_answer_and_not_the_chat() {
    let dir = tempfile::tempdir().unwrap();
    let (model, saved) = (dir.path().join("model"), dir.path().join("talk.jsonl"));
    save_model(&model, 100_000, &["the cat\n/bye\nsat", "the mat"]);
    // The shell gets the signal of Ctrl-C too; `trap` lets it go on.
    let line =
        format!("trap : INT; {}; stty -a | tr ';' '\\n'; echo left; cat", chat(&model, "--max-new-tokens 99000"));
    let Some(mut screen) = Screen::open(&line, &dir.path().join("state")) else { return };
    screen.wait("/help lists the commands");
    screen.wait(PROMPT);
    screen.press("\x1b[200~the cat\r/bye\rsat\x1b[201~");
    screen.wait("sat");
    screen.press("\r");
    // The model answers on and on. What is pasted meanwhile waits.
    screen.wait_for_answer();
    screen.press("\x03");
    screen.wait(PROMPT);
    screen.press(&format!("/save {}\r", saved.display()));
    screen.wait("/load ");
    screen.wait(PROMPT);
    screen.press("/clear\r");
    screen.wait(PROMPT);
    screen.press("the mat\r");
    screen.wait_for_answer();
    screen.press("\x1b[200~rm -rf one\rrm -rf two\r\x1b[201~");
    screen.press("\x03");
    screen.wait(PROMPT);
    screen.press("\x03");
    screen.wait("left");
    screen.press("\x04");
    let (status, shown) = screen.end();
    assert!(status.success(), "{shown}");
    let talk = std::fs::read_to_string(&saved).unwrap();
    let questions: Vec<String> = serde_json::from_str::<serde_json::Value>(&talk).unwrap()["messages"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|message| message["role"] == "user")
        .map(|message| message["content"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(questions, ["the cat\n/bye\nsat"]);
    let modes = shown.split("left").next().unwrap();
    assert!(modes.contains(" echo ") && modes.contains(" icanon") && modes.contains(" icrnl"), "{modes}");
    // `cat` gets what the chat has not read: nothing.
    assert!(!shown.split("left").nth(1).unwrap().contains("rm -rf"), "{shown}");
}

#[test]
fn the_history_is_that_of_the_user_and_ctrl_d_ends_the_chat() {
    let dir = tempfile::tempdir().unwrap();
    let (model, state) = (dir.path().join("model"), dir.path().join("state"));
    save_model(&model, 256, &[]);
    let Some(mut screen) = Screen::open(&chat(&model, "--max-new-tokens 4"), &state) else { return };
    screen.wait(PROMPT);
    screen.press("the cat\r");
    screen.wait("\x1b[6n");
    screen.press("\x1b[A");
    screen.wait("the cat");
    screen.press("\x03");
    screen.wait("ends the chat");
    screen.wait(PROMPT);
    screen.press("\x04");
    assert!(screen.end().0.success());
    let file = state.join("llm-infer/chat-history");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "the cat\n");
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&file).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);

    let Some(mut screen) = Screen::open(&chat(&model, "--no-history"), &state) else { return };
    screen.wait(PROMPT);
    screen.press("\"\"\"\rsat\r\"\"\"\r");
    screen.wait("\x1b[6n");
    screen.press("\x03");
    screen.wait("ends the chat");
    screen.wait(PROMPT);
    screen.press("\x03");
    assert!(screen.end().0.success());
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "the cat\n");
}

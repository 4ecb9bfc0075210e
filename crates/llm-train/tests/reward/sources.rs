//! The sources of a reward: weighted sums, and programs and servers that behave badly.

use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use llm_tokenizer::{ChatMessage, Tokenizer};
use llm_train::recipes::PpoRecipe;
use llm_train::rewards::{Answer, Program, Prompt, Reward, Source, has_think_format, repetition, soft_overlong};
use serde_json::{Value, json};

use super::common::fresh_model;

/// Answers with these texts; the row of each has the reference answer 4.
pub(super) fn with_answers<T>(texts: &[&str], work: impl FnOnce(&[Answer]) -> T) -> T {
    let (prompt, row) = ([ChatMessage::user("Two and two?")], json!({"answer": "#### 4"}));
    let of = |text| Answer { prompt: &prompt, row: &row, query: &[3, 4], response: &[7, 8, 1], text, finished: true };
    work(&texts.iter().map(|text| of(text)).collect::<Vec<_>>())
}

/// A program of the shell, with a time-out in milliseconds.
fn shell(script: &str, timeout: u64) -> Reward<'static> {
    let command = ["sh", "-c", script].map(str::to_owned);
    Reward::of(Source::Command(Program::start(&command, Duration::from_millis(timeout)).unwrap()))
}

/// The recipe with these tables, or the error.
fn recipe(dir: &std::path::Path, tables: &str) -> Result<PpoRecipe, String> {
    let path = dir.join("recipe.toml");
    std::fs::write(&path, tables).unwrap();
    llm_train::read_recipe(&path.display().to_string(), &[]).map_err(|error| error.to_string())
}

#[test]
fn tables_become_a_weighted_sum_with_the_mean_of_each_source() {
    let dir = tempfile::tempdir().unwrap();
    fresh_model(&dir.path().join("model"), &"The answer is 4. So it is 5? ".repeat(20), 16, 0.3);
    let tokenizer = Tokenizer::load(dir.path().join("model")).unwrap();
    let tables = r#"
        [[rewards]]
        kind = "exact_answer"
        weight = 2
        [[rewards]]
        kind = "regex"
        name = "polite"
        pattern = "(?i)thank"
        weight = -0.5
        [[rewards]]
        kind = "length"
        shape = "soft_overlong"
        max_tokens = 4
        cache_tokens = 4
        [[rewards]]
        kind = "length"
        weight = 0.125
        [[rewards]]
        kind = "repetition"
        ngram = 1
        [[rewards]]
        kind = "format"
    "#;
    let recipe = recipe(dir.path(), tables).unwrap();
    let reward = Reward::open(&recipe.rewards, &[], &tokenizer).unwrap();
    let prompt = Prompt { row: json!({"answer": 4}), ..Prompt::from(vec![3]) };
    let eos = tokenizer.chat_format().unwrap().end_of_turn;
    let reply = |text: &str, ends: bool| [tokenizer.encode(text).unwrap(), vec![eos; usize::from(ends)]].concat();
    let replies = [reply("<think>2 + 2</think>4", true), reply("5. Thanks", false), vec![9, 9, eos]];
    // The text of the last reply is two equal tokens: no number.
    let scores = reward.score_replies(replies.iter().map(|reply| (&prompt, reply.as_slice())), eos).unwrap();
    let length = |at: usize| replies[at].len() as f64;
    let repetition = |at: usize, end: usize| {
        let ids = &replies[at][..replies[at].len() - end];
        ids.iter().collect::<std::collections::HashSet<_>>().len() as f64 / ids.len() as f64 - 1.
    };
    assert!(replies[..2].iter().all(|reply| reply.len() > 4), "too long by the rule: -1");
    let expected = [
        2. - 1. + 0.125 * length(0) + repetition(0, 1) + 1.,
        -0.5 - 1. + 0.125 * length(1) + repetition(1, 0),
        -0.75 + 0.125 * 3. - 0.5,
    ];
    assert!(scores.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12), "{scores:?} is not {expected:?}");

    let metrics = reward.take_metrics();
    let metric = |name: &str| metrics.iter().find(|(known, _)| known == name).unwrap().1;
    let lengths = [length(0), length(1), 3.];
    let mean = lengths.iter().sum::<f64>() / 3.;
    let variance = lengths.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 3.;
    for (name, expected) in [
        ("rewards/exact_answer/mean", 1. / 3.),
        ("rewards/exact_answer/std", 2f64.sqrt() / 3.),
        ("rewards/polite/mean", 1. / 3.),
        ("rewards/length/mean", -2.75 / 3.),
        ("rewards/length_2/mean", mean),
        ("rewards/length_2/std", variance.sqrt()),
        ("rewards/format/mean", 1. / 3.),
    ] {
        assert!((metric(name) - expected).abs() < 1e-9, "{name}: {} is not {expected}", metric(name));
    }
    assert_eq!((metrics.len(), reward.take_metrics()), (12, vec![]));

    // A recipe that a run wrote is read as the same one.
    let text = toml_of(&recipe);
    std::fs::write(dir.path().join("again.toml"), &text).unwrap();
    let path = dir.path().join("again.toml").display().to_string();
    assert_eq!(llm_train::read_recipe::<PpoRecipe>(&path, &[]).unwrap(), recipe, "{text}");
}

/// The recipe as a run writes it. JSON has no place here: the tables must survive TOML.
fn toml_of(recipe: &PpoRecipe) -> String {
    let value = serde_json::to_value(recipe).unwrap();
    let rewards = value["rewards"].as_array().unwrap();
    let line = |(key, value): (&String, &Value)| format!("{key} = {value}\n");
    let table =
        |table: &Value| format!("[[rewards]]\n{}", table.as_object().unwrap().iter().map(line).collect::<String>());
    rewards.iter().map(table).collect()
}

#[test]
fn wrong_tables_are_refused_by_key() {
    let dir = tempfile::tempdir().unwrap();
    for (table, part) in [
        ("kind = \"regex\"\npatern = \"a\"", "\"rewards[0]\": unknown key \"patern\", expected \"pattern\""),
        ("kind = \"regex\"", "missing key \"pattern\""),
        ("kind = \"regex\"\npattern = \"(\"", "rewards[0].pattern is (; it must be a regular expression"),
        ("kind = \"rouge\"", "unknown variant \"rouge\""),
        ("weight = 1", "missing key \"kind\""),
        ("kind = \"format\"\nweight = 0", "rewards[0].weight is 0; it must be a number other than 0"),
        ("kind = \"format\"\nweight = \"big\"", "weight is \"big\"; it must be a number"),
        ("kind = \"format\"\nname = \"a/b\"", "name is \"a/b\"; it must be a text without"),
        ("kind = \"format\"\ntag = \"x\"", "unknown key \"tag\""),
        ("kind = \"command\"\ncommand = []", "rewards[0].command is empty"),
        ("kind = \"command\"\ncommand = [\"a\"]\ntimeout_seconds = 0", "rewards[0].timeout_seconds is 0"),
        ("kind = \"http\"\nurl = \"localhost\"", "rewards[0].url is localhost; it must be an address"),
        ("kind = \"repetition\"\nngram = 0", "rewards[0].ngram is 0"),
        ("kind = \"length\"\nmax_tokens = 3", "rewards[0].max_tokens is 3; it must be left out with this \"shape\""),
        ("kind = \"length\"\nshape = \"cosine\"", "rewards[0].max_tokens is missing"),
        (
            "kind = \"length\"\nshape = \"soft_overlong\"\nmax_tokens = 3\ncache_tokens = 4",
            "rewards[0].cache_tokens is 4",
        ),
        ("kind = \"model\"\nfolders = [0]", "rewards[0].folders is 0; it must be numbers from 1"),
    ] {
        let message = recipe(dir.path(), &format!("[[rewards]]\n{table}")).unwrap_err();
        assert!(message.contains(part), "{message}\n  has no: {part}");
    }
    // Tables and the folders of --reward must fit.
    fresh_model(&dir.path().join("model"), "a few words", 16, 0.3);
    let tokenizer = Tokenizer::load(dir.path().join("model")).unwrap();
    let model = |number| format!("[[rewards]]\nkind = \"model\"\nfolders = [{number}]");
    let format = "[[rewards]]\nkind = \"format\"".to_owned();
    for (tables, folders, part) in [
        (String::new(), vec![], "no reward: give the folder of a reward model with --reward"),
        (model(2), vec![PathBuf::from("a")], "folders has 2; --reward names 1 folders"),
        (model(1), vec![PathBuf::from("a"), PathBuf::from("b")], "--reward b: no table [[rewards]] of kind \"model\""),
        (format, vec![PathBuf::from("a")], "--reward a: no table"),
    ] {
        let tables = recipe(dir.path(), &tables).unwrap().rewards;
        let message = Reward::open(&tables, &folders, &tokenizer).unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn a_score_that_is_missing_or_not_finite_names_its_source() {
    for (scores, part) in [
        (vec![1.], "the reward \"closure\": 1 scores for 2 replies"),
        (vec![1., 2., 3.], "3 scores for 2 replies"),
        (vec![1., f64::NAN], "the score of reply 2 of 2 is NaN; a score must be a finite number"),
        (vec![f64::INFINITY, 1.], "the score of reply 1 of 2 is inf"),
    ] {
        let reward = Reward::closure(|_| Ok(scores.clone()));
        let message = with_answers(&["a", "b"], |answers| reward.score(answers).unwrap_err()).to_string();
        assert!(message.contains(part), "{message}");
        assert_eq!(reward.take_metrics(), [], "a wrong score is not counted");
    }
    assert_eq!(Reward::closure(|_| panic!("not called")).score(&[]).unwrap(), [0.; 0]);
}

#[test]
fn a_program_scores_every_reply_it_is_asked_about() {
    // The number of bytes of each line, and the lines themselves.
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let script = format!("while read -r line; do printf '%s\\n' \"$line\" >> {}; echo ${{#line}}; done", log.display());
    let reward = shell(&script, 20_000);
    for texts in [&["a", "bcd", "a \"quoted\"\nline \u{e9}"][..], &["x"]] {
        let scores = with_answers(texts, |answers| reward.score(answers).unwrap());
        let lines = with_answers(texts, |answers| {
            answers.iter().map(|answer| serde_json::to_string(answer).unwrap()).collect::<Vec<_>>()
        });
        // The shell counts bytes or characters.
        let sizes = |count: fn(&String) -> usize| lines.iter().map(|line| count(line) as f64).collect::<Vec<_>>();
        assert!(scores == sizes(String::len) || scores == sizes(|line| line.chars().count()), "{scores:?}");
    }
    let logged = std::fs::read_to_string(&log).unwrap();
    let rows: Vec<Value> = logged.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows.len(), 4, "started once, one line for each reply");
    let expected = json!({
        "prompt": [{"role": "user", "content": "Two and two?"}],
        "row": {"answer": "#### 4"},
        "completion": "a \"quoted\"\nline \u{e9}",
        "finished": true,
    });
    assert_eq!(rows[2], expected);
}

/// More replies than fit into the pipes of a program that first reads all of them.
#[test]
fn large_batches_do_not_block() {
    let reward = shell("for i in $(seq 300); do read -r line; done; seq 300; cat > /dev/null", 30_000);
    let long = "word ".repeat(2000);
    let texts = vec![long.as_str(); 300];
    let scores = with_answers(&texts, |answers| reward.score(answers).unwrap());
    assert_eq!(scores, (1..=300).map(f64::from).collect::<Vec<_>>());
}

#[test]
fn errors_of_a_program_name_it_and_the_fix() {
    for (script, part) in [
        ("exit 3", "ended (exit status: 3) before the score of reply 1 of 2"),
        ("echo no model >&2; read -r line; exit 1", "its standard error ends with: no model"),
        ("read -r line; echo 1; exit 0", "before the score of reply 2 of 2; it must read lines until"),
        (
            "echo 1; echo nan; cat > /dev/null",
            "wrote \"nan\" for reply 2 of 2; it must write one finite number per line",
        ),
        ("echo inf; cat > /dev/null", "wrote \"inf\" for reply 1 of 2"),
        ("echo loading the model; cat > /dev/null", "wrote \"loading the model\" for reply 1 of 2"),
        ("echo; cat > /dev/null", "wrote \"\" for reply 1 of 2"),
        ("head -c 300000 /dev/zero | tr '\\0' '7'; cat > /dev/null", "for reply 1 of 2"),
        ("exec sleep 100", "wrote no score for reply 1 of 2 within 0.4 s; it must flush its output after each line"),
        ("read -r line; echo 1; exec sleep 100", "wrote no score for reply 2 of 2 within 0.4 s"),
        ("exec >&-; exec sleep 100", "closed its standard output before the score of reply 1 of 2"),
    ] {
        let reward = shell(script, 400);
        let message = with_answers(&["a", "b"], |answers| reward.score(answers).unwrap_err()).to_string();
        assert!(message.contains(part), "{script}: {message}");
        assert!(message.starts_with("the reward \"command\": the program sh -c "), "{message}");
        assert!(message.len() < 3000 && !message.contains('\n'), "{message}");
    }
    let message = Program::start(&["./no-such-program".to_owned()], Duration::from_secs(1)).unwrap_err().to_string();
    assert!(message.contains("./no-such-program cannot be started"), "{message}");
}

#[test]
fn a_number_too_many_is_found_before_the_next_batch() {
    let reward = shell("read -r line; echo 1; echo 2; cat > /dev/null", 5000);
    with_answers(&["a"], |answers| assert_eq!(reward.score(answers).unwrap(), [1.]));
    std::thread::sleep(Duration::from_millis(100));
    let message = with_answers(&["a"], |answers| reward.score(answers).unwrap_err()).to_string();
    assert!(message.contains("wrote \"2\" without a question; it must write one line per reply"), "{message}");
}

#[test]
fn a_program_ends_with_its_source() {
    let dir = tempfile::tempdir().unwrap();
    // One that ends with its standard input, and one that does not.
    for script in ["while read -r line; do echo 1; done", "read -r line; echo 1; exec sleep 1000"] {
        let file = dir.path().join("pid");
        let reward = shell(&format!("echo $$ > {}; {script}", file.display()), 10_000);
        with_answers(&["a"], |answers| reward.score(answers).unwrap());
        let pid = std::fs::read_to_string(&file).unwrap();
        let process = PathBuf::from("/proc").join(pid.trim());
        if !PathBuf::from("/proc/self").exists() {
            eprintln!("skipped: no /proc");
            return;
        }
        assert!(process.exists());
        let start = Instant::now();
        drop(reward);
        assert!(!process.exists() && start.elapsed() < Duration::from_secs(5), "{script}");
    }
}

/// The same numbers as TRL. Set `LLM_TRAIN_PYTHON` to a Python that has it.
#[test]
fn rewards_of_the_form_equal_those_of_trl() {
    let Some(python) = std::env::var_os("LLM_TRAIN_PYTHON") else {
        eprintln!("skipped: set LLM_TRAIN_PYTHON to a Python with the package trl");
        return;
    };
    let script = "import json, sys\n\
        from trl.rewards import think_format_reward as think, get_soft_overlong_punishment as overlong\n\
        from trl.rewards import get_repetition_penalty_reward as repetition\n\
        ids, texts = json.load(sys.stdin)\n\
        print(json.dumps([think([[{'content': t}] for t in texts]), overlong(12, 5)(completion_ids=ids),\n\
            repetition(2, -1.0)(completion_ids=ids), repetition(3, -1.0)(completion_ids=ids)]))";
    let mut random = 7u32;
    let mut next = |below: u32| {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (random >> 16) % below
    };
    let ids: Vec<Vec<u32>> = (0..60).map(|_| (0..3 + next(14)).map(|_| next(4)).collect()).collect();
    let parts = ["<think>", "</think>", "a", "\n", " ", "<think>", "</think>"];
    let texts: Vec<String> = (0..400).map(|_| (0..=next(6)).map(|_| parts[next(7) as usize]).collect()).collect();
    let mut child = std::process::Command::new(python)
        .args(["-c", script])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(json!([ids, texts]).to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let theirs: [Vec<f64>; 4] = serde_json::from_slice(&output.stdout).unwrap();
    let ours = [
        texts.iter().map(|text| f64::from(u8::from(has_think_format(text)))).collect::<Vec<_>>(),
        ids.iter().map(|ids| soft_overlong(ids.len(), 12, 5)).collect(),
        ids.iter().map(|ids| repetition(ids, 2)).collect(),
        ids.iter().map(|ids| repetition(ids, 3)).collect(),
    ];
    for (ours, theirs) in ours.iter().zip(&theirs) {
        assert_eq!(ours.len(), theirs.len());
        assert!(ours.iter().zip(theirs).all(|(a, b)| (a - b).abs() < 1e-9), "{ours:?} is not {theirs:?}");
        assert!(ours.iter().any(|x| *x != ours[0]), "a test of equal numbers shows nothing");
    }
}

//! The logs of a run: `metrics.csv`, the event file of `TensorBoard` and `report.html`, also of a run that was killed and resumed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::{FIXTURE, Knobs, STAGES, Stage, options, quiet};

fn event_file(run: &Path) -> PathBuf {
    let files = llm_files::list_files(&run.join("tensorboard")).unwrap();
    assert_eq!(files.len(), 1, "{files:?}");
    run.join("tensorboard").join(&files[0])
}

/// The steps of the events of a file, read by the lengths of its records; the first two events have no metrics.
fn event_steps(file: &Path) -> Vec<u64> {
    let bytes = fs::read(file).unwrap();
    let (mut at, mut steps) = (0, Vec::new());
    while at < bytes.len() {
        let length = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
        let event = &bytes[at + 12..at + 12 + length];
        assert_eq!(event[9], 2 << 3, "the field after the time is the step");
        let (mut step, mut shift) = (0u64, 0);
        for byte in &event[10..] {
            step |= u64::from(byte & 127) << shift;
            shift += 7;
            if byte & 128 == 0 {
                break;
            }
        }
        steps.push(step);
        at += length + 16;
    }
    steps.split_off(2)
}

fn metric_steps(run: &Path) -> Vec<u64> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["step"].as_u64().unwrap()).collect()
}

#[test]
fn a_killed_and_resumed_run_has_each_line_once_in_all_its_logs() {
    for stage in STAGES {
        let dir = tempfile::tempdir().unwrap();
        let (whole, torn) = (dir.path().join("whole"), dir.path().join("torn"));
        let knobs = Knobs { length: 4, save_every: 2, ..Knobs::default() };
        stage.run(&FIXTURE, &knobs, &whole, quiet()).unwrap();
        stage.interrupted(&FIXTURE, &knobs, &torn, 3);
        // Killed after the third step: its lines are written, its checkpoint is not.
        fs::remove_dir_all(torn.join("checkpoints/step-3")).unwrap();
        stage.run(&FIXTURE, &knobs, &torn, options(true)).unwrap();
        for run in [&whole, &torn] {
            let steps = metric_steps(run);
            assert_eq!(event_steps(&event_file(run)), steps, "{stage:?}");
            let mut each = steps.clone();
            each.dedup();
            let table = fs::read_to_string(run.join("metrics.csv")).unwrap();
            let rows: Vec<u64> =
                table.lines().skip(1).map(|row| row.split(',').next().unwrap().parse().unwrap()).collect();
            assert_eq!(rows, each, "{stage:?}");
            let page = fs::read_to_string(run.join("report.html")).unwrap();
            assert!(page.contains("<svg") && page.contains("recipe.toml"), "{stage:?}");
        }
        assert_eq!(metric_steps(&whole), metric_steps(&torn), "{stage:?}");
    }
}

/// The reader of the package tensorboard finds the same numbers. Set `LLM_TRAIN_PYTHON` to a Python that has it.
#[test]
fn tensorboard_reads_the_event_file() {
    let Some(python) = std::env::var_os("LLM_TRAIN_PYTHON") else {
        eprintln!("skipped: set LLM_TRAIN_PYTHON to a Python with the package tensorboard");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    Stage::Finetune.run(&FIXTURE, &Knobs::default(), &run, quiet()).unwrap();
    let script = "import json, sys\n\
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator\n\
        events = EventAccumulator(sys.argv[1], size_guidance={'scalars': 0}).Reload()\n\
        print(json.dumps({t: [[e.step, e.value] for e in events.Scalars(t)] for t in events.Tags()['scalars']}))";
    let output = Command::new(python).args(["-c", script]).arg(run.join("tensorboard")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let read: Value = serde_json::from_slice(&output.stdout).unwrap();
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for name in ["loss", "eval_loss", "learning_rate"] {
        let number = |line: &Value| Some((line["step"].as_u64()?, line[name].as_f64()? as f32));
        let expected: Vec<(u64, f32)> = lines.iter().filter_map(number).collect();
        let number = |pair: &Value| (pair[0].as_u64().unwrap(), pair[1].as_f64().unwrap() as f32);
        let found: Vec<(u64, f32)> = read[name].as_array().unwrap().iter().map(number).collect();
        assert_eq!(found, expected, "{name}");
        assert!(!found.is_empty());
    }
}

/// A browser draws the page: it asks for no other file, and the curves have a size.
#[test]
fn a_browser_shows_the_report() {
    let browser = ["chromium", "chromium-browser", "google-chrome"]
        .into_iter()
        .find(|name| Command::new(name).arg("--version").output().is_ok_and(|output| output.status.success()));
    let Some(browser) = browser else {
        eprintln!("skipped: no chromium in the PATH");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    Stage::Pretrain.run(&FIXTURE, &Knobs::default(), &run, quiet()).unwrap();
    // A script, for this test only, writes what the browser laid out into the title.
    let page = fs::read_to_string(run.join("report.html")).unwrap();
    let probe = "<script>onload = () => {\
        const box = document.querySelector('svg').getBoundingClientRect();\
        const lines = document.querySelectorAll('svg polyline').length;\
        document.title = ['laid-out', Math.round(box.width), Math.round(box.height), lines,\
        performance.getEntriesByType('resource').length].join(' '); }</script></body>";
    assert_eq!(page.matches("</body>").count(), 1);
    let probed = dir.path().join("probed.html");
    fs::write(&probed, page.replace("</body>", probe)).unwrap();
    let output = Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=2000", "--dump-dom"])
        .arg(format!("--user-data-dir={}", dir.path().join("profile").display()))
        .arg(format!("file://{}", probed.display()))
        .output()
        .unwrap();
    let dom = String::from_utf8_lossy(&output.stdout);
    let title = dom.split("<title>").nth(1).and_then(|rest| rest.split("</title>").next()).unwrap_or_default();
    let numbers: Vec<u32> = title.split(' ').skip(1).map(|n| n.parse().unwrap()).collect();
    let [width, height, lines, resources] = numbers[..] else { panic!("{title}: {dom}") };
    assert!(width > 500 && height > 500 && lines >= 2 && resources == 0, "{title}");
}

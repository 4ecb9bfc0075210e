//! The command `attention`: its table, files and errors, and its page in a browser.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use candle_core::IndexOp;
use llm_model::{Batch, Head, Model, ModelConfig};
use llm_tokenizer::{TrainConfig, train_bpe};
use serde_json::Value;

const TEXT: &str = "the cat sat on the mat and it slept";

/// A model with random weights: 3 layers of 4 heads, a context of 4,096 tokens.
fn save_model(dir: &Path) {
    let tokenizer = train_bpe(&TrainConfig { vocab_size: 280, min_frequency: 2 }, [TEXT].iter());
    let config = ModelConfig {
        vocab_size: 280,
        hidden_size: 48,
        num_hidden_layers: 3,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 12,
        initializer_range: 0.3,
        max_position_embeddings: 4096,
        ..ModelConfig::default()
    };
    Model::init(config, Head::LanguageModel, 1).unwrap().save(dir).unwrap();
    tokenizer.unwrap().save(dir).unwrap();
}

fn run(dir: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_llm-infer"));
    command.args(["attention", "--model", "model"]).args(arguments).current_dir(dir).env_remove("RUST_LOG");
    command.env("NO_COLOR", "1").output().unwrap()
}

fn printed(dir: &Path, arguments: &[&str]) -> String {
    let output = run(dir, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn with_model() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    save_model(&dir.path().join("model"));
    dir
}

#[test]
fn the_weights_of_the_report_are_those_of_the_model() {
    let dir = with_model();
    printed(dir.path(), &["--text", TEXT, "--from", "it", "--json", "report.json"]);
    let report: Value = serde_json::from_slice(&std::fs::read(dir.path().join("report.json")).unwrap()).unwrap();
    let ids: Vec<u32> = serde_json::from_value(report["ids"].clone()).unwrap();
    let model = Model::load(dir.path().join("model")).unwrap();
    let weights = model.attentions(&Batch::new(&[ids]).unwrap()).unwrap();
    let word = &report["words"][report["from"]["index"].as_u64().unwrap() as usize];
    assert_eq!(word["text"], "it");
    let (start, end) = (word["start"].as_u64().unwrap() as usize, word["end"].as_u64().unwrap() as usize);
    let heads = report["heads"].as_array().unwrap();
    assert_eq!(heads.len(), 12);
    for head in heads {
        let (layer, h) = (head["layer"].as_u64().unwrap() as usize, head["head"].as_u64().unwrap() as usize);
        let ours: Vec<f32> = serde_json::from_value(head["weights"].clone()).unwrap();
        let rows = weights[layer].i((0, h, start..end)).unwrap();
        let theirs: Vec<f32> = rows.mean(0).unwrap().to_vec1().unwrap();
        assert!(ours.iter().zip(&theirs).all(|(a, b)| (a - b).abs() < 1e-5), "{layer}.{h}: {ours:?} {theirs:?}");
        let words: Vec<f32> = serde_json::from_value(head["word_weights"].clone()).unwrap();
        assert!((words.iter().sum::<f32>() - 1.).abs() < 1e-4);
    }
}

#[test]
fn the_table_ranks_words_and_heads() {
    let dir = with_model();
    let text = printed(dir.path(), &["--text", TEXT, "--from", "it", "--to", "cat"]);
    for part in ["\"it\" looks at", "By layer and head:", "Heads by the weight of \"it\" on \"cat\":", "  2.3 "] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    let one = printed(dir.path(), &["--text", TEXT, "--from", "it", "--layer", "1", "--head", "2", "--skip-first"]);
    assert!(one.contains("  1.2 ") && !one.contains("  1.1 ") && !one.contains(" the:1 "), "{one}");
    assert!(printed(dir.path(), &["--text", TEXT]).contains("induction"));
    let ablated = printed(dir.path(), &["--text", TEXT, "--from", "it", "--ablate", "1.2,0.1", "--ablate", "each"]);
    assert!(ablated.contains("Without 1.2, 0.1 (output zero)") && ablated.contains("After \"it\": KL "), "{ablated}");
    assert!(ablated.contains("Each head alone (output zero)"), "{ablated}");
}

#[test]
fn errors_name_the_option_and_the_words() {
    let dir = with_model();
    std::fs::write(dir.path().join("here.png"), "").unwrap();
    let cases: [(&[&str], &str); 9] = [
        (
            &["--from", "dog"],
            "--from: \"dog\" is not a word of the text; its words are: the cat sat on mat and it slept",
        ),
        (&["--from", "the"], "--from: \"the\" is 2 times in the text; write \"the:1\" for the first, up to \"the:2\""),
        (&["--from", "the:3"], "--from: \"the:3\": \"the\" is 2 times in the text; the number must be from 1 to 2"),
        (&["--from", "it", "--to", "dog"], "--to: \"dog\" is not a word"),
        (&["--layer", "3"], "--layer is 3; the model has 3 layers, so it must be from 0 to 2"),
        (&["--ablate", "1.4"], "--ablate: head 1.4 is not in the model; it has 3 layers of 4 heads, counted from 0"),
        (&["--ablate", "1"], "it must be LAYER.HEAD, such as 1.0, or each"),
        (&["--png", "here.png"], "here.png: already exists"),
        (&["--chat"], "chat template"),
    ];
    for (arguments, expected) in cases {
        let output = run(dir.path(), &[&["--text", TEXT], arguments].concat());
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && error.contains(expected), "{arguments:?}: {error}");
    }
    let output = run(dir.path(), &["--text", &"mat ".repeat(2100)]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("attention is computed for at most 2048"));
}

#[test]
fn the_pictures_have_a_part_for_each_head() {
    let dir = with_model();
    printed(dir.path(), &["--text", TEXT, "--png", "all.png"]);
    printed(dir.path(), &["--text", TEXT, "--png", "one.png", "--layer", "1", "--head", "2"]);
    let read = |name: &str| {
        let file = std::io::BufReader::new(std::fs::File::open(dir.path().join(name)).unwrap());
        let mut reader = png::Decoder::new(file).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut pixels).unwrap();
        (info.width as usize, info.height as usize, pixels)
    };
    let (width, height, pixels) = read("one.png");
    assert!(width == height && width > 500, "{width}");
    // The largest weight is drawn in the darkest colour, and what comes later in the lightest.
    assert!(pixels.chunks(3).any(|pixel| pixel == [11, 92, 173]));
    assert_eq!(pixels[3 * (width - 1)..3 * width], [255, 255, 255]);
    let (width, height, _) = read("all.png");
    assert_eq!((width - 4) / 4, (height - 4) / 3, "4 columns and 3 rows of equal parts");
}

fn browser() -> Option<&'static str> {
    let works = |name: &&str| Command::new(name).arg("--version").output().is_ok_and(|output| output.status.success());
    let browser = ["chromium", "chromium-browser", "google-chrome"].into_iter().find(works);
    if browser.is_none() {
        eprintln!("skipped: no chromium in the PATH");
    }
    browser
}

/// The document that a browser made of a page.
fn dom(browser: &str, dir: &Path, page: &Path) -> String {
    let output = Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"])
        .args(["--disable-component-update", "--disable-sync", "--virtual-time-budget=20000", "--window-size=1280,900"])
        .arg(format!("--user-data-dir={}", dir.join("profile").display()))
        .args(["--dump-dom".to_owned(), format!("file://{}", page.display())])
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn page(dir: &Path, arguments: &[&str]) -> PathBuf {
    printed(dir, &[arguments, &["--html", "page.html"]].concat());
    dir.join("page.html")
}

/// Uses the page by its controls and the keyboard, and sends what it found.
const PROBE: &str = r#"
const probe = () => {
  const key = (target, name) => target.dispatchEvent(new KeyboardEvent('keydown', { key: name, bubbles: true }));
  const found = {
    words: $('words').children.length, arcs: document.querySelectorAll('#arcs path').length,
    heads: document.querySelectorAll('#grid button').length, scores: $('scores').tBodies[0].rows.length,
    start: $('map-name').textContent, resources: performance.getEntriesByType('resource').length,
    ablation: document.querySelectorAll('#ablation table').length, hidden: $('ablation').hidden,
    wide: document.documentElement.scrollWidth - innerWidth, width: innerWidth,
    small: [...document.querySelectorAll('#controls select, #controls label, #theme')].filter(e => e.offsetHeight < 36).length,
  };
  const word = document.querySelector('#words [aria-pressed="true"]');
  found.word = word.textContent;
  word.focus();
  key(word, 'ArrowLeft');
  found.left = document.activeElement.textContent;
  key($('map'), 'ArrowUp');
  found.cell = $('cell').textContent;
  const colour = () => $('map').toDataURL(), before = colour();
  $('log').click();
  found.log = before !== colour();
  $('log').click();
  found.back = before === colour();
  $('skip').click();
  found.skipped = rowOfWord()[0];
  $('skip').click();
  found.sum = rowOfWord().reduce((a, b) => a + b, 0);
  $('tokens').click();
  found.tokens = matrixOf(state).n;
  $('tokens').click();
  gridButton(2, 3).click();
  key(gridButton(2, 3), 'ArrowUp');
  found.head = $('map-name').textContent;
  $('kind').value = 'rollout';
  $('kind').dispatchEvent(new Event('change'));
  found.rollout = rowOfWord().reduce((a, b) => a + b, 0);
  found.name = $('map-name').textContent;
  const ground = () => getComputedStyle(document.body).backgroundColor, light = ground();
  $('theme').click(); $('theme').click();
  found.dark = light !== ground();
  return found;
};
onload = () => (parent === window ? window : parent).postMessage(JSON.stringify(probe()), '*');
onmessage = event => { document.title = event.data; };
"#;

#[test]
fn a_browser_shows_the_page_on_a_desktop_and_a_phone() {
    let Some(browser) = browser() else { return };
    let dir = with_model();
    let path = page(dir.path(), &["--text", TEXT, "--from", "it", "--to", "cat", "--ablate", "1.2"]);
    let html = std::fs::read_to_string(&path).unwrap();
    assert!(!html.replace("http://www.w3.org/2000/svg", "").contains("://"), "the page names another resource");
    assert!(dom(browser, dir.path(), &path).contains("data-ready=\"yes\""), "the page's own script did not run");

    // A script that the page does not have is allowed in this copy only.
    let policy = html.find("script-src 'sha256-").unwrap();
    let end = policy + html[policy..].find(';').unwrap();
    let probed = format!("{}script-src 'unsafe-inline'{}", &html[..policy], &html[end..]);
    let probed = probed.replace("</body>", &format!("<script>{PROBE}</script></body>"));
    let probed_path = dir.path().join("probed.html");
    std::fs::write(&probed_path, probed).unwrap();
    let phone = dir.path().join("phone.html");
    let frame = "<!doctype html><title></title><iframe src=\"probed.html\" style=\"width: 390px; height: 844px; border: 0\">\
        </iframe><script>onmessage = event => { document.title = event.data; }</script>";
    std::fs::write(&phone, frame).unwrap();
    for (path, width) in [(&probed_path, 1280), (&phone, 390)] {
        let dom = dom(browser, dir.path(), path);
        let title = dom.split("<title>").nth(1).and_then(|rest| rest.split("</title>").next()).unwrap();
        let found: Value = serde_json::from_str(title).unwrap_or_else(|e| panic!("{e}: {title}: {dom}"));
        let number = |key: &str| found[key].as_f64().unwrap();
        assert_eq!((found["width"].as_u64().unwrap(), number("wide") <= 0.), (width, true), "{found}");
        let counts = ["words", "heads", "scores", "resources", "small"].map(|key| found[key].as_u64().unwrap());
        assert_eq!(counts, [9, 12, 12, 0, 0], "{found}");
        assert!(number("arcs") >= 1. && found["start"].as_str().unwrap().starts_with("head "), "{found}");
        assert!(number("ablation") >= 2. && found["hidden"] == false, "{found}");
        assert_eq!((&found["word"], &found["left"]), (&"it".into(), &"and".into()), "{found}");
        assert!(found["cell"].as_str().unwrap().starts_with("“mat” → “the:1”: "), "{found}");
        assert_eq!([&found["log"], &found["back"], &found["dark"]], [&Value::Bool(true); 3], "{found}");
        // Each weight is off by at most 0.004.
        assert!((number("sum") - 1.).abs() < 0.05 && (number("rollout") - 1.).abs() < 0.05, "{found}");
        assert_eq!(number("skipped"), 0., "the first token is left out: {found}");
        assert!(number("tokens") >= 9., "{found}");
        assert_eq!(found["head"], "head 1.3", "{found}");
        assert_eq!(found["name"], "the roll-out up to layer 1", "{found}");
    }
}

#[test]
fn the_page_of_a_long_text_is_bounded() {
    let dir = with_model();
    // A token for each character: 2,039.
    std::fs::write(dir.path().join("long.txt"), "xq zj ".repeat(340)).unwrap();
    let path = page(dir.path(), &["--file", "long.txt"]);
    let html = std::fs::read_to_string(&path).unwrap();
    // 12 MiB of weights in base64, and the rest.
    assert!((12 << 20..18 << 20).contains(&html.len()) && !html.contains("\"keep\":0,"), "{}", html.len());
    if let Some(browser) = browser() {
        let dom = dom(browser, dir.path(), &path);
        assert!(dom.contains("data-ready=\"yes\"") && dom.contains("largest weights of each head"));
    }
}

//! Drives a headless Chromium with the `DevTools` protocol over a pipe.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

pub struct Browser {
    child: Child,
    input: File,
    output: BufReader<File>,
    id: u64,
    session: Option<String>,
    pub dir: tempfile::TempDir,
}

impl Browser {
    /// None: there is no Chromium.
    pub fn start() -> Option<Self> {
        let program = std::env::var_os("CHROMIUM").unwrap_or_else(|| OsString::from("chromium"));
        if Command::new(&program).arg("--version").output().is_err() {
            eprintln!("skipped: there is no program chromium; the variable CHROMIUM can name it");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let pipes = [dir.path().join("in"), dir.path().join("out")];
        assert!(Command::new("mkfifo").args(&pipes).status().unwrap().success());
        // DevTools reads from descriptor 3 and writes to descriptor 4.
        let script = r#"exec "$0" --headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking \
            --disable-component-update --disable-sync --user-data-dir="$1" --remote-debugging-pipe 3<"$2" 4>"$3""#;
        let mut command = Command::new("sh");
        command.args(["-c", script]).arg(&program).arg(dir.path().join("profile")).args(&pipes);
        let child = command.stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        let input = File::options().write(true).open(&pipes[0]).unwrap();
        let output = BufReader::new(File::open(&pipes[1]).unwrap());
        let mut browser = Self { child, input, output, id: 0, session: None, dir };
        let target = browser.call("Target.createTarget", json!({"url": "about:blank"}))["targetId"].clone();
        let session = browser.call("Target.attachToTarget", json!({"targetId": target, "flatten": true}));
        browser.session = Some(session["sessionId"].as_str().unwrap().to_owned());
        browser.call("Page.enable", json!({}));
        Some(browser)
    }

    /// The result of a command.
    pub fn call(&mut self, method: &str, params: Value) -> Value {
        self.id += 1;
        let mut message = json!({"id": self.id, "method": method, "params": params});
        if let Some(session) = &self.session {
            message["sessionId"] = session.as_str().into();
        }
        self.input.write_all(format!("{message}\0").as_bytes()).unwrap();
        loop {
            let mut bytes = Vec::new();
            self.output.read_until(0, &mut bytes).unwrap();
            assert_eq!(bytes.pop(), Some(0), "the browser has ended");
            let answer: Value = serde_json::from_slice(&bytes).unwrap();
            if answer["id"] == self.id {
                assert!(answer["error"].is_null(), "{method}: {}", answer["error"]);
                return answer["result"].clone();
            }
        }
    }

    /// The value of an expression in the page; a promise is awaited.
    pub fn value(&mut self, expression: &str) -> Value {
        let result = self
            .call("Runtime.evaluate", json!({"expression": expression, "returnByValue": true, "awaitPromise": true}));
        assert!(result["exceptionDetails"].is_null(), "{expression}: {result}");
        result["result"]["value"].clone()
    }

    /// Waits until an expression is true.
    pub fn wait(&mut self, expression: &str) {
        let start = Instant::now();
        while self.value(expression) != true {
            let page = "document.body.innerText.slice(0, 2000)";
            assert!(start.elapsed() < Duration::from_secs(30), "{expression}; the page: {}", self.value(page));
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Opens a page in a window of this size.
    pub fn open(&mut self, url: &str, (width, height): (u32, u32), phone: bool) {
        let metrics = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone});
        self.call("Emulation.setDeviceMetricsOverride", metrics);
        self.call("Emulation.setTouchEmulationEnabled", json!({"enabled": phone}));
        let record = "window.violations = []; addEventListener('securitypolicyviolation', e => violations.push(e.violatedDirective));";
        self.call("Page.addScriptToEvaluateOnNewDocument", json!({"source": record}));
        let downloads = json!({"behavior": "allow", "downloadPath": self.dir.path()});
        self.call("Page.setDownloadBehavior", downloads);
        self.call("Page.navigate", json!({"url": url}));
    }

    /// Presses a key, with Ctrl if `control`.
    pub fn press(&mut self, key: &str, control: bool) {
        let first = key.chars().next().unwrap();
        let (code, number, text) = match key {
            "Enter" => ("Enter".to_owned(), 13, "\r"),
            "Tab" => ("Tab".to_owned(), 9, ""),
            "Escape" => ("Escape".to_owned(), 27, ""),
            "Backspace" => ("Backspace".to_owned(), 8, ""),
            "ArrowRight" => ("ArrowRight".to_owned(), 39, ""),
            "ArrowLeft" => ("ArrowLeft".to_owned(), 37, ""),
            " " => ("Space".to_owned(), 32, " "),
            "=" => ("Equal".to_owned(), 187, "="),
            "?" => ("Slash".to_owned(), 191, "?"),
            _ if first.is_ascii_digit() => (format!("Digit{first}"), u32::from(first), key),
            _ if key.len() == 1 => {
                (format!("Key{}", first.to_ascii_uppercase()), u32::from(first.to_ascii_uppercase()), key)
            }
            _ => panic!("{key}"),
        };
        let modifiers = if control { 2 } else { 0 };
        let mut event = json!({"type": "keyDown", "key": key, "code": code, "windowsVirtualKeyCode": number, "modifiers": modifiers});
        if !text.is_empty() && !control {
            event["text"] = text.into();
        }
        if control && key == "a" {
            event["commands"] = json!(["selectAll"]);
        }
        self.call("Input.dispatchKeyEvent", event.clone());
        event["type"] = "keyUp".into();
        self.call("Input.dispatchKeyEvent", event);
    }

    /// The middle of an element.
    pub fn middle(&mut self, selector: &str) -> (f64, f64) {
        let script = format!(
            "(() => {{ const e = document.querySelector({selector:?}); e.scrollIntoView({{ block: 'nearest' }}); \
             const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; }})()"
        );
        let place = self.value(&script);
        (place[0].as_f64().unwrap(), place[1].as_f64().unwrap())
    }

    fn mouse(&mut self, kind: &str, (x, y): (f64, f64)) {
        let buttons = u8::from(kind != "mouseReleased");
        let event = json!({"type": kind, "x": x, "y": y, "button": "left", "buttons": buttons, "clickCount": 1});
        self.call("Input.dispatchMouseEvent", event);
    }

    /// Clicks an element.
    pub fn click(&mut self, selector: &str) {
        let place = self.middle(selector);
        self.mouse("mousePressed", place);
        self.mouse("mouseReleased", place);
    }

    /// Drags the middle of one element to that of another, which may appear when the drag begins.
    pub fn drag(&mut self, from: &str, to: &str) {
        let start = self.middle(from);
        self.mouse("mousePressed", start);
        self.mouse("mouseMoved", (start.0 + 10., start.1 - 10.));
        let end = self.middle(to);
        self.mouse("mouseMoved", end);
        self.mouse("mouseReleased", end);
    }

    fn touch(&mut self, kind: &str, places: &[(f64, f64)]) {
        let points: Vec<Value> = places.iter().map(|(x, y)| json!({"x": x, "y": y})).collect();
        self.call("Input.dispatchTouchEvent", json!({"type": kind, "touchPoints": points}));
    }

    /// [`Self::drag`] with a finger.
    pub fn drag_by_touch(&mut self, from: &str, to: &str) {
        let start = self.middle(from);
        self.touch("touchStart", &[start]);
        self.touch("touchMove", &[(start.0 + 10., start.1 - 10.)]);
        let end = self.middle(to);
        self.touch("touchMove", &[end]);
        self.touch("touchEnd", &[]);
    }

    /// Touches an element, until a condition is true. On a busy machine a touch may last so long that it is no tap.
    pub fn tap(&mut self, selector: &str, condition: &str) {
        for _ in 0..10 {
            let place = self.middle(selector);
            self.touch("touchStart", &[place]);
            self.touch("touchEnd", &[]);
            for _ in 0..50 {
                if self.value(condition) == true {
                    return;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        panic!("{condition} after a touch of {selector}");
    }

    /// Loads the page anew, and waits until that is done.
    pub fn reload(&mut self) {
        self.value("window.before = true");
        self.call("Page.reload", json!({}));
        self.wait("window.before === undefined && document.readyState === 'complete'");
    }

    /// Types a text.
    pub fn insert(&mut self, text: &str) {
        self.call("Input.insertText", json!({"text": text}));
    }

    /// Presses Tab until the element with the focus fulfils a condition on `e`.
    pub fn tab_to(&mut self, condition: &str) {
        for _ in 0..80 {
            if self.value(&format!("(e => {condition})(document.activeElement)")) == true {
                return;
            }
            self.press("Tab", false);
        }
        panic!("no element with {condition} is reached by Tab");
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

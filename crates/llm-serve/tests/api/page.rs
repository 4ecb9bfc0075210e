//! The chat page in a headless Chromium, by keyboard alone.

use serde_json::Value;

use crate::Test;
use crate::browser::Browser;

const DONE: &str = "!document.querySelector('.running') && document.querySelectorAll('article').length";
const LAST: &str = "chats[current].messages.at(-1).content";

/// Sends a message, from the message box.
fn send(browser: &mut Browser, text: &str, phone: bool, articles: usize) {
    browser.tab_to("e.id === 'input'");
    browser.insert(text);
    browser.press("Enter", false);
    if phone {
        assert_eq!(
            browser.value("document.getElementById('input').value"),
            format!("{text}\n"),
            "Enter does not send on a phone"
        );
        browser.tab_to("e.id === 'send'");
        browser.press("Enter", false);
    }
    browser.wait(&format!("{DONE} === {articles}"));
}

/// Presses the button of this name in the last message.
fn action(browser: &mut Browser, name: &str) {
    browser.tab_to(&format!(
        "e.textContent === '{name}' && e.closest('article') === document.querySelector('article:last-of-type')"
    ));
    browser.press("Enter", false);
}

fn set(browser: &mut Browser, id: &str, value: &str) {
    browser.tab_to(&format!("e.id === '{id}'"));
    browser.press("a", true);
    browser.insert(value);
    browser.press("Tab", false);
}

fn drive(size: (u32, u32), phone: bool, name: &str) {
    let test = Test::with_tools();
    let Some(mut browser) = Browser::start() else { return };
    browser.open(&test.url("/"), size, phone);
    browser.wait("document.querySelectorAll('#model option').length === 1");
    browser.tab_to("e.id === 'settings'");
    browser.press("Enter", false);
    set(&mut browser, "system", "the cat");
    set(&mut browser, "temperature", "0");
    set(&mut browser, "max_tokens", "12");
    browser.screenshot(&format!("{name}-settings"));
    browser.tab_to("e.id === 'theme'");
    let before = browser.value("document.documentElement.dataset.theme");
    browser.press("Enter", false);
    assert_ne!(browser.value("document.documentElement.dataset.theme"), before);
    browser.press("Escape", false);
    browser.wait("document.getElementById('options').hidden");

    // A message and its answer, with the probabilities of the tokens.
    send(&mut browser, "the cat sat", phone, 2);
    let answer = browser.value(LAST);
    assert!(!answer.as_str().unwrap().is_empty());
    let tokens = "[...document.querySelectorAll('.token')].map(t => t.textContent).join('')";
    assert_eq!(browser.value(tokens), answer);
    browser.tab_to("e.classList.contains('text')");
    browser.press("ArrowRight", false);
    browser.press("ArrowRight", false);
    assert_eq!(browser.value("document.querySelectorAll('#popup tr').length"), 5);
    assert!(browser.value("document.getElementById('status').textContent").as_str().unwrap().contains(" %"));
    browser.screenshot(&format!("{name}-answer"));

    // The same answer again, more of it, an edited one.
    action(&mut browser, "Regenerate");
    browser.wait(&format!("{DONE} === 2"));
    assert_eq!(browser.value(LAST), answer, "temperature 0");
    action(&mut browser, "Continue");
    browser.wait(&format!("{DONE} === 2"));
    let longer = browser.value(LAST);
    assert!(longer.as_str().unwrap().starts_with(answer.as_str().unwrap()) && longer != answer, "{longer}");
    action(&mut browser, "Edit");
    browser.press("a", true);
    browser.insert("the dog");
    browser.press("Enter", true);
    assert_eq!(browser.value(LAST), "the dog");
    assert_eq!(browser.value("document.querySelector('article:last-of-type .text').textContent"), "the dog");

    // Escape stops a long answer.
    browser.tab_to("e.id === 'settings'");
    browser.press("Enter", false);
    set(&mut browser, "max_tokens", "5000");
    browser.press("Escape", false);
    browser.tab_to("e.id === 'input'");
    browser.value("window.fetched = fetch; fetch = (...a) => fetched(...a).then(r => { document.getElementById('stop').click(); return r; }); 1");
    browser.insert("the log");
    if phone {
        browser.tab_to("e.id === 'send'");
    }
    browser.press("Enter", false);
    browser.wait("document.getElementById('status').textContent === 'Stopped.' && !running");
    browser.value("fetch = fetched; 1");

    // Export, another conversation, import.
    browser.tab_to("e.id === 'settings'");
    browser.press("Enter", false);
    browser.tab_to("e.id === 'export'");
    browser.press("Enter", false);
    let file = browser.dir.path().join("conversations.json");
    let exported = (0..500).find_map(|_| {
        std::thread::sleep(std::time::Duration::from_millis(20));
        serde_json::from_str::<Value>(&std::fs::read_to_string(&file).ok()?).ok()
    });
    let exported = exported.expect("the file is written");
    assert_eq!(exported["chats"][0]["messages"][1]["content"], "the dog");
    let root = browser.call("DOM.getDocument", serde_json::json!({}))["root"]["nodeId"].clone();
    let node =
        browser.call("DOM.querySelector", serde_json::json!({"nodeId": root, "selector": "#file"}))["nodeId"].clone();
    browser.call("DOM.setFileInputFiles", serde_json::json!({"nodeId": node, "files": [file]}));
    browser.wait("chats.length === 2 && current === 1");
    browser.press("Escape", false);
    browser.tab_to("e.id === 'new'");
    browser.press("Enter", false);
    browser.wait(&format!("{DONE} === 0 && document.activeElement.id === 'input'"));

    check_page(&mut browser);
    browser.screenshot(&format!("{name}-new"));
    // Everything is kept.
    browser.call("Page.reload", serde_json::json!({}));
    browser.wait("document.querySelectorAll('#model option').length === 1 && chats.length === 3");
    assert_eq!(browser.value("document.getElementById('temperature').value"), "0");
}

/// The page fits its window, has a name for everything that can have the focus, and broke no rule of its policy.
fn check_page(browser: &mut Browser) {
    assert_eq!(browser.value("document.documentElement.scrollWidth <= innerWidth"), true);
    assert_eq!(browser.value("violations"), serde_json::json!([]));
    let outside = "performance.getEntriesByType('resource').filter(r => !r.name.startsWith(location.origin) && !/^(data|blob):/.test(r.name)).length";
    assert_eq!(browser.value(outside), 0);
    browser.call("Accessibility.enable", serde_json::json!({}));
    let tree = browser.call("Accessibility.getFullAXTree", serde_json::json!({}));
    let mut named = 0;
    for node in tree["nodes"].as_array().unwrap().iter().filter(|node| node["ignored"] == false) {
        let role = node["role"]["value"].as_str().unwrap_or_default();
        if ["button", "textbox", "combobox", "spinbutton", "checkbox", "main", "complementary"].contains(&role) {
            assert!(!node["name"]["value"].as_str().unwrap_or_default().is_empty(), "{node:#}");
            named += 1;
        }
    }
    assert!(named >= 6, "{named}");
}

#[test]
fn the_page_works_on_a_desktop() {
    drive((1280, 800), false, "desktop");
}

#[test]
fn the_page_works_on_a_phone() {
    drive((390, 844), true, "phone");
}

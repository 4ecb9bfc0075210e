//! The ranking page in a headless Chromium.

use llm_feedback::store::{Kind, NewItem};
use llm_serve::feedback::FeedbackOptions;
use serde_json::{Value, json};

use super::{Ranking, item, plain};
use crate::browser::Browser;

pub(super) const DESKTOP: (u32, u32) = (1280, 800);
pub(super) const PHONE: (u32, u32) = (390, 844);
/// The page waits for its user.
const READY: &str = "document.getElementById('judge')?.hidden === false && !document.getElementById('undo').disabled";
const ORDER: &str = "[...document.querySelectorAll('#order .group')].map(g => [...g.querySelectorAll('.chip')].map(c => c.textContent).join('')).join('>')";

const HARMFUL: &str = "<script>violations.push('ran')</script><img src=x onerror=\"violations.push('ran')\"> **bold** [a link](https://evil.example)";

fn items() -> Vec<NewItem> {
    let long = "An answer with a few more words, so that it needs several lines.\n\n".repeat(40);
    vec![
        item("one", "What is a prime number?", &["A number with two divisors.", "A prime.", &long]),
        item("two", "Say hello.", &["Hello.", "Hi.", HARMFUL]),
        item("three", "Count to three.", &["1 2 3", "one, two", "3"]),
        item("four", "Name a colour.", &["Red.", "Blue."]),
        item("five", &"A line of a long prompt.\n".repeat(30), &["a", "b", "c", "d", "e", "f", "g", "h", "i"]),
    ]
}

/// Opens the page as this person.
fn visit(browser: &mut Browser, ranking: &Ranking, name: &str, size: (u32, u32), phone: bool) {
    browser.open(&ranking.url("/"), size, phone);
    browser.wait("document.getElementById('enter')?.open === true && document.activeElement.id === 'enter-value'");
    browser.insert(name);
    browser.press("Enter", false);
    browser.wait(READY);
}

fn keys(browser: &mut Browser, keys: &str) {
    for key in keys.split(' ') {
        browser.press(key, false);
    }
}

/// Submits, and waits until this many judgements are done and another item is shown.
fn submit(browser: &mut Browser, done: usize) {
    browser.press("Enter", false);
    wait_done(browser, done);
}

fn wait_done(browser: &mut Browser, done: usize) {
    browser.wait(&format!(
        "document.getElementById('counts')?.textContent.startsWith('{done} done') && \
         (!document.getElementById('end').hidden || {READY})"
    ));
}

/// The ranks of a judgement by the letters on the page, such as `A>BC`.
fn by_letters(ranking: &Ranking, item: &str, name: &str) -> String {
    let rows = ranking.current();
    let row = rows.iter().find(|row| row.item == item && row.annotator_name == name).unwrap();
    let judgement = row.judgement.as_ref().unwrap();
    match &judgement.kind {
        Kind::Rank { ranks } => {
            let letter =
                |id: &String| char::from(b'A' + judgement.shown.iter().position(|shown| shown == id).unwrap() as u8);
            let groups = (1..=ranks.len() as u32).map(|rank| {
                let mut letters: Vec<char> =
                    ranks.iter().filter(|(_, r)| **r == rank).map(|(id, _)| letter(id)).collect();
                letters.sort_unstable();
                letters.into_iter().collect::<String>()
            });
            groups.filter(|group| !group.is_empty()).collect::<Vec<_>>().join(">")
        }
        other => format!("{other:?} {}", judgement.reason.as_deref().unwrap_or_default()).trim_end().to_owned(),
    }
}

#[test]
fn a_person_judges_by_keys_alone() {
    let ranking = Ranking::new(&items(), plain());
    let Some(mut browser) = Browser::start() else { return };
    visit(&mut browser, &ranking, "Zoë", DESKTOP, false);
    // A draft survives a reload, before and after it is stored in the database.
    keys(&mut browser, "3 1");
    assert_eq!(browser.value(ORDER), "C>A");
    browser.press("r", false);
    browser.insert("a reason 1");
    browser.press("Enter", false);
    browser.reload();
    browser.wait(&format!("{READY} && {ORDER} === 'C>A'"));
    assert_eq!(browser.value("document.getElementById('reason').value"), "a reason 1");
    browser.wait("fetch('health').then(r => r.ok)");
    browser.value("localStorage.removeItem(Object.keys(localStorage).find(k => k.startsWith('feedback.draft')))");
    browser.reload();
    browser.wait(&format!("{READY} && {ORDER} === 'C>A'"));
    // The answer that is left is the last one.
    submit(&mut browser, 1);
    assert_eq!(by_letters(&ranking, "one", "Zoë"), "C>A>B");
    assert_eq!(ranking.current()[0].judgement.as_ref().unwrap().reason.as_deref(), Some("a reason 1"));

    // A tie; a digit again takes an answer out; undo of a step; empty order.
    keys(&mut browser, "2 = 3 1 1");
    assert_eq!(browser.value(ORDER), "BC");
    keys(&mut browser, "1 z");
    assert_eq!(browser.value(ORDER), "BC");
    keys(&mut browser, "Escape 1 2 = 3");
    assert_eq!(browser.value(ORDER), "A>BC");
    submit(&mut browser, 2);
    assert_eq!(by_letters(&ranking, "two", "Zoë"), "A>BC");

    // All equal, all bad, skip, flag.
    keys(&mut browser, "t");
    submit(&mut browser, 3);
    assert_eq!(by_letters(&ranking, "three", "Zoë"), "ABC");
    keys(&mut browser, "b");
    submit(&mut browser, 4);
    assert_eq!(by_letters(&ranking, "four", "Zoë"), "AllBad");
    keys(&mut browser, "f 2");
    submit(&mut browser, 5);
    assert_eq!(by_letters(&ranking, "five", "Zoë"), "Flag Unsafe");
    browser.wait("!document.getElementById('end').hidden");

    // Undo any number of judgements back, and judge again.
    for (left, back) in ["five", "four", "three"].iter().enumerate() {
        browser.press("Backspace", false);
        wait_done(&mut browser, 4 - left);
        assert!(!ranking.current().iter().any(|row| row.item == *back), "{back}");
    }
    assert_eq!(browser.value(ORDER), "ABC", "what was judged is the beginning");
    keys(&mut browser, "Escape s 3");
    submit(&mut browser, 3);
    assert_eq!(by_letters(&ranking, "three", "Zoë"), "Skip The prompt is unclear");
    // Two answers: the left or the right one.
    browser.wait("document.querySelectorAll('.answer').length === 2");
    keys(&mut browser, "b d");
    submit(&mut browser, 4);
    assert_eq!(by_letters(&ranking, "four", "Zoë"), "B>A");
    keys(&mut browser, "9 8 7 6 5 4 3 2 1");
    submit(&mut browser, 5);
    assert_eq!(by_letters(&ranking, "five", "Zoë"), "I>H>G>F>E>D>C>B>A");
    assert_eq!(ranking.store.history().unwrap().len(), 5 + 3 + 3, "nothing is deleted");
    check_page(&mut browser, 8);
}

#[test]
fn a_person_judges_with_the_mouse() {
    let ranking = Ranking::new(&items(), FeedbackOptions { grades: true, ..plain() });
    let Some(mut browser) = Browser::start() else { return };
    visit(&mut browser, &ranking, "anna", DESKTOP, false);
    browser.click(".answer:nth-child(2) > header button:nth-of-type(2)");
    browser.click(".answer:nth-child(1) > header button:nth-of-type(3)");
    assert_eq!(browser.value(ORDER), "BA");
    browser.click(".answer:nth-child(3) .grades input[name='safety-2'][value='bad']");
    // Out of the tie to the front, the third one to the end.
    browser.drag("#order .chip[data-index='0']", "#order .slot[data-slot='0']");
    assert_eq!(browser.value(ORDER), "A>B");
    browser.drag("#tray .chip[data-index='2']", "#order .slot[data-slot='2']");
    assert_eq!(browser.value(ORDER), "A>B>C");
    browser.drag("#order .chip[data-index='2']", "#order .group[data-group='0']");
    assert_eq!(browser.value(ORDER), "AC>B");
    browser.drag("#order .chip[data-index='2']", "#tray");
    assert_eq!(browser.value(ORDER), "A>B");
    // From the card.
    browser.drag(".answer:nth-child(3) .chip", "#order .slot[data-slot='1']");
    assert_eq!(browser.value(ORDER), "A>C>B");
    browser.click("#undo");
    assert_eq!(browser.value(ORDER), "A>B");
    browser.click("#submit");
    wait_done(&mut browser, 1);
    assert_eq!(by_letters(&ranking, "one", "anna"), "A>B>C");
    let graded = ranking.current()[0].judgement.clone().unwrap();
    assert_eq!(serde_json::to_value(&graded.grades[&graded.shown[2]]).unwrap(), json!({"safety": "bad"}));

    browser.click("#equal");
    browser.click("#submit");
    wait_done(&mut browser, 2);
    browser.click("#bad");
    browser.click("#submit");
    wait_done(&mut browser, 3);
    browser.click("#skip");
    browser.click("#ask-options label:nth-of-type(2) input");
    browser.click("#ask button[type='submit']");
    wait_done(&mut browser, 4);
    browser.click("#flag");
    browser.click("#ask-text");
    browser.insert("it says who it is");
    browser.click("#ask button[type='submit']");
    wait_done(&mut browser, 5);
    let all: Vec<String> =
        ["two", "three", "four", "five"].iter().map(|item| by_letters(&ranking, item, "anna")).collect();
    assert_eq!(
        all,
        ["ABC", "AllBad", "Skip Not in my language", "Flag The answer says which model it is: it says who it is"]
    );
    browser.click("#end-undo");
    wait_done(&mut browser, 4);
    assert!(!ranking.current().iter().any(|row| row.item == "five"));
    check_page(&mut browser, 8);
}

#[test]
fn a_person_judges_with_a_finger() {
    let ranking = Ranking::new(&items(), plain());
    let Some(mut browser) = Browser::start() else { return };
    visit(&mut browser, &ranking, "anna", PHONE, true);
    browser.drag_by_touch("#tray .chip[data-index='1']", "#order .slot[data-slot='0']");
    assert_eq!(browser.value(ORDER), "B");
    browser.drag_by_touch("#tray .chip[data-index='0']", "#order .group[data-group='0']");
    assert_eq!(browser.value(ORDER), "BA");
    browser.tap("#tray .chip[data-index='2']", &format!("{ORDER} === 'BA>C'"));
    browser.tap("#submit", "document.getElementById('counts').textContent.startsWith('1 done')");
    wait_done(&mut browser, 1);
    assert_eq!(by_letters(&ranking, "one", "anna"), "AB>C");
    check_page(&mut browser, 8);
}

#[test]
fn answers_are_text_and_never_run() {
    let ranking = Ranking::new(&items()[1..2], plain());
    let Some(mut browser) = Browser::start() else { return };
    visit(&mut browser, &ranking, "anna", DESKTOP, false);
    let harmful = "[...document.querySelectorAll('.answer > .text')].find(t => t.textContent.includes('evil'))";
    assert_eq!(browser.value(&format!("{harmful}.textContent")), HARMFUL);
    browser.press("m", false);
    browser.wait(&format!("{harmful}.querySelector('strong')?.textContent === 'bold'"));
    let text = browser.value(&format!("{harmful}.textContent"));
    assert!(text.as_str().unwrap().contains("<script>violations.push('ran')</script><img src=x"), "{text}");
    assert!(text.as_str().unwrap().contains("[a link](https://evil.example)"), "{text}");
    assert_eq!(browser.value("document.querySelectorAll('main a, main img, main script').length"), 0);
    check_page(&mut browser, 8);
}

#[test]
fn two_people_get_different_items_and_each_a_half() {
    let ranking = Ranking::new(&items()[..4], plain());
    let Some(mut anna) = Browser::start() else { return };
    let Some(mut ben) = Browser::start() else { return };
    visit(&mut anna, &ranking, "anna", DESKTOP, false);
    visit(&mut ben, &ranking, "ben", DESKTOP, false);
    let prompt = "document.getElementById('turns').textContent";
    assert_ne!(anna.value(prompt), ben.value(prompt));
    for done in 1..=2 {
        for browser in [&mut anna, &mut ben] {
            keys(browser, "t");
            submit(browser, done);
        }
    }
    let mut judged: Vec<(String, String)> =
        ranking.current().iter().map(|row| (row.item.clone(), row.annotator_name.clone())).collect();
    judged.sort();
    assert_eq!(judged.iter().filter(|(_, name)| name == "ben").count(), 2);
    judged.dedup_by(|a, b| a.0 == b.0);
    assert_eq!(judged.len(), 4);
}

/// A judgement that is not acknowledged is kept by the browser, over a reload, and sent when the server is back.
#[test]
fn a_judgement_waits_in_the_browser_for_its_acknowledgement() {
    let ranking = Ranking::new(&items()[..2], plain());
    let Some(mut browser) = Browser::start() else { return };
    visit(&mut browser, &ranking, "anna", DESKTOP, false);
    // The judgement arrives, its acknowledgement does not.
    browser.value(
        "window.fetched = fetch; window.lost = 0; \
         fetch = async (...a) => { const r = await fetched(...a); if (String(a[0]).endsWith('judge')) { lost++; throw new TypeError('lost'); } return r; }; 1",
    );
    keys(&mut browser, "t Enter");
    browser.wait("lost >= 2 && !document.getElementById('notice').hidden");
    let waiting = "Object.keys(localStorage).filter(k => k.startsWith('feedback.out')).length";
    assert_eq!(browser.value(waiting), 1);
    browser.reload();
    wait_done(&mut browser, 1);
    browser.wait(&format!("{waiting} === 0 && document.getElementById('notice').hidden"));
    assert_eq!(ranking.store.history().unwrap().len(), 1);
}

/// The page fits its window, has a name for everything that can have the focus, and broke no rule of its policy.
pub(super) fn check_page(browser: &mut Browser, names: usize) {
    assert_eq!(browser.value("document.documentElement.scrollWidth <= innerWidth"), true);
    assert_eq!(browser.value("violations"), json!([]));
    let outside = "performance.getEntriesByType('resource').filter(r => !r.name.startsWith(location.origin) && !/^data:/.test(r.name)).length";
    assert_eq!(browser.value(outside), 0);
    browser.call("Accessibility.enable", json!({}));
    let tree = browser.call("Accessibility.getFullAXTree", json!({}));
    let mut named = 0;
    for node in tree["nodes"].as_array().unwrap().iter().filter(|node| node["ignored"] == false) {
        let role = node["role"]["value"].as_str().unwrap_or_default();
        if ["button", "textbox", "radio", "radiogroup", "group", "region", "article", "dialog", "progressbar"]
            .contains(&role)
        {
            assert!(!node["name"]["value"].as_str().unwrap_or_default().is_empty(), "{node:#}");
            named += 1;
        }
    }
    assert!(named >= names, "{named}");
}

#[test]
fn the_page_fits_desktops_and_phones_in_light_and_dark() {
    let ranking = Ranking::new(&items(), FeedbackOptions { grades: true, ..plain() });
    for (size, phone, name) in [(DESKTOP, false, "desktop"), (PHONE, true, "phone")] {
        for dark in [false, true] {
            let Some(mut browser) = Browser::start() else { return };
            let name = format!("rank-{name}-{}", if dark { "dark" } else { "light" });
            let features = json!([{"name": "prefers-color-scheme", "value": if dark { "dark" } else { "light" }}]);
            browser.call("Emulation.setEmulatedMedia", json!({"features": features}));
            visit(&mut browser, &ranking, &name, size, phone);
            keys(&mut browser, "2 = 1");
            browser.screenshot(&name);
            assert_eq!(browser.value("document.documentElement.dataset.theme"), if dark { "dark" } else { "light" });
            browser.press("?", false);
            browser.screenshot(&format!("{name}-help"));
            check_page(&mut browser, 2);
            keys(&mut browser, "Escape s");
            browser.screenshot(&format!("{name}-skip"));
            browser.press("Escape", false);
            browser.open(&ranking.url("/report"), size, phone);
            browser.wait("document.getElementById('report')?.textContent.includes('judgements')");
            browser.screenshot(&format!("{name}-report"));
            check_page(&mut browser, 2);
            browser.open(&ranking.url("/"), size, phone);
            browser.wait(READY);
            // Every button is large enough for a finger.
            if phone {
                let small = "[...document.querySelectorAll('button')].filter(b => b.offsetParent && b.getBoundingClientRect().height < 38).map(b => b.textContent)";
                assert_eq!(browser.value(small), Value::Array(Vec::new()));
            }
        }
    }
}

//! The page of the command: the answers side by side, the table and the plot in one HTML file that loads nothing and runs no script.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use llm_cli::Failure;
use sha2::{Digest, Sha256};

use super::Comparison;
use super::measure::{Answer, TITLES};
use super::plot::svg;

const TEMPLATE: &str = include_str!("page/page.html");
const STYLE: &str = include_str!("page/page.css");
/// At most this many answers of a temperature are on the page.
const SHOWN: usize = 4;

/// The page.
pub(super) fn page(comparison: &Comparison) -> Result<String, Failure> {
    let row = |cells: &[String], tag: &str| {
        let cells = cells.iter().map(|cell| format!("<{tag}>{}</{tag}>", escaped(cell)));
        format!("<tr>{}</tr>\n", cells.collect::<String>())
    };
    let titles = row(&TITLES.map(str::to_owned), "th");
    let rows: String = comparison.levels.iter().map(|level| row(&level.cells(), "td")).collect();
    let questions: String = (0..comparison.questions.len()).map(|at| question(comparison, at)).collect();
    // Only this style is applied (Content Security Policy); the answers are escaped. The places of the template are filled from the
    // last to the first, so that no text of an answer is taken for a place.
    let hash = format!("sha256-{}", STANDARD.encode(Sha256::digest(STYLE)));
    let plot = format!("data:image/svg+xml;base64,{}", STANDARD.encode(svg(&comparison.levels)?));
    let filled = TEMPLATE.replace("STYLE-HASH", &hash).replace("<style>STYLE", &format!("<style>{STYLE}"));
    let filled =
        filled.replace("PLOT", &plot).replace("TABLE", &format!("<thead>{titles}</thead><tbody>{rows}</tbody>"));
    let (before, after) = filled.split_once("QUESTIONS").unwrap_or((&filled, ""));
    Ok(format!("{before}{questions}{after}"))
}

/// A question and the answers at each temperature, side by side.
fn question(comparison: &Comparison, at: usize) -> String {
    let question = &comparison.questions[at];
    let right = question.answer.as_ref().map(|answer| format!("<p>Right answer: {}</p>\n", escaped(answer)));
    let column = |level: &super::Level| {
        let all = &level.answers[at];
        let shown = if level.temperature == 0. { &all[..1] } else { &all[..all.len().min(SHOWN)] };
        let answers: String = shown.iter().map(answer).collect();
        format!("<section><h3>temperature {}</h3>\n{answers}</section>\n", level.temperature)
    };
    let columns: String = comparison.levels.iter().map(column).collect();
    let right = right.unwrap_or_default();
    format!("<h2>{}</h2>\n{right}<div class=\"columns\">\n{columns}</div>\n", escaped(&question.prompt))
}

fn answer(answer: &Answer) -> String {
    let (class, mark) = match answer.right {
        Some(true) => (" class=\"right\"", " · right"),
        Some(false) => (" class=\"wrong\"", " · wrong"),
        None => ("", ""),
    };
    let end = if answer.cut_off { " · cut off" } else { "" };
    let text = escaped(answer.text.trim());
    format!(
        "<article{class}><p class=\"text\">{text}</p><p class=\"note\">{} tokens{end}{mark}</p></article>\n",
        answer.tokens
    )
}

/// The text with the characters of HTML written as entities.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

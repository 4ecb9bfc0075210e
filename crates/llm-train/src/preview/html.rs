//! A preview as one HTML page, without scripts and without links to other files.

use super::{File, Piece, Preview, Row, histogram, token_name};

const STYLE: &str = "\
:root { color-scheme: light dark; --line: #8885; --trained: #2a92; --text: #2a9; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.15rem; margin-top: 2.5rem; overflow-wrap: anywhere; }
.facts { display: flex; flex-wrap: wrap; gap: 0.5rem 2rem; margin: 0.5rem 0; }
.facts b { display: block; font-size: 1.3rem; font-weight: 600; }
.bars { display: grid; grid-template-columns: max-content 1fr; gap: 2px 0.75rem; align-items: center; max-width: 40rem; }
.bars i { display: inline-block; background: var(--text); height: 0.9rem; vertical-align: middle; margin-right: 0.4rem; }
.row { border: 1px solid var(--line); border-radius: 6px; margin: 1rem 0; padding: 0.75rem 1rem; }
.row.left-out { border-style: dashed; opacity: 0.75; }
.row h4 { font-size: 0.85rem; font-weight: 600; margin: 1rem 0 0; }
.row h3 { font-size: 0.95rem; font-weight: 600; margin: 0 0 0.5rem; }
pre { font: 13px/1.7 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; margin: 0.5rem 0; }
pre span { border-bottom: 1px dotted var(--line); }
pre span.t { background: var(--trained); border-bottom: 2px solid var(--text); }
pre span.s { font-weight: 700; }
#ids { margin: 0 0.4rem 0 0; }
#ids:checked ~ * pre span::after { content: '\\2009' attr(data-ids) '\\2009'; font-size: 10px; opacity: 0.65; vertical-align: sub; }
";

pub(super) fn render(preview: &Preview) -> String {
    let mut facts = fact("model", &preview.model.display().to_string());
    facts += &fact("an answer ends with", &token_name(&preview.end_of_turn));
    if let Some(end) = &preview.document_end {
        facts += &fact("a text ends with", &token_name(end));
    }
    facts += &fact("tokens at most", &preview.max_length.to_string());
    let files: String = preview.files.iter().map(section).collect();
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>Preview of training data</title>\n\
         <style>\n{STYLE}</style>\n</head>\n<body>\n<h1>Preview of training data</h1>\n<div class=\"facts\">{facts}</div>\n\
         <p>Underlined tokens on a coloured ground are trained on; special tokens are bold.</p>\n\
         <input type=\"checkbox\" id=\"ids\"><label for=\"ids\">Show token ids</label>\n<main>\n{files}</main>\n</body>\n</html>\n"
    )
}

fn fact(name: &str, value: &str) -> String {
    format!("<span>{}<b>{}</b></span>", escaped(name), escaped(value))
}

fn section(file: &File) -> String {
    let (tokens, trained) = file.tokens;
    let facts = [("rows", file.rows), ("examples", file.examples), ("tokens", tokens), ("trained tokens", trained)];
    let facts: String = facts.iter().map(|(name, count)| fact(name, &count.to_string())).collect();
    let notes: String = file.notes.iter().map(|note| format!("<li>{}</li>\n", escaped(note))).collect();
    let notes = if notes.is_empty() { String::new() } else { format!("<ul>\n{notes}</ul>\n") };
    let bins = histogram(&file.lengths);
    let most = bins.iter().map(|bin| bin.2).max().unwrap_or(1).max(1);
    let bars: String = bins
        .iter()
        .map(|(first, last, count)| {
            let percent = 85. * *count as f64 / most as f64;
            format!("<span>{first} – {last}</span><span><i style=\"width:{percent:.1}%\"></i>{count}</span>\n")
        })
        .collect();
    let rows: String = file.shown.iter().map(row).collect();
    format!(
        "<section>\n<h2>{}</h2>\n<div class=\"facts\">{facts}</div>\n{notes}<p>Lengths in tokens</p>\n<div class=\"bars\">\n{bars}</div>\n\
         {rows}</section>\n",
        escaped(&file.path.display().to_string())
    )
}

fn row(row: &Row) -> String {
    let left_out = if row.fate.starts_with("left out") { " left-out" } else { "" };
    let all = row.examples.len();
    let example = |(index, pieces): (usize, &Vec<Piece>)| {
        let title = if all > 1 { format!("<h4>Example {} of {all}</h4>\n", index + 1) } else { String::new() };
        format!("{title}<pre>{}</pre>\n", spans(pieces))
    };
    let examples: String = row.examples.iter().enumerate().map(example).collect();
    format!("<div class=\"row{left_out}\">\n<h3>Row {}: {}</h3>\n{examples}</div>\n", row.number, escaped(&row.fate))
}

fn spans(pieces: &[Piece]) -> String {
    let span = |piece: &Piece| {
        let class = match (piece.trained, piece.special) {
            (true, true) => " class=\"t s\"",
            (true, false) => " class=\"t\"",
            (false, true) => " class=\"s\"",
            (false, false) => "",
        };
        let ids = piece.ids.iter().map(u32::to_string).collect::<Vec<_>>().join(" ");
        let text = escaped(&piece.text).replace('\n', "⏎\n");
        format!("<span{class} data-ids=\"{ids}\" title=\"{ids}\">{text}</span>")
    };
    pieces.iter().map(span).collect()
}

pub(crate) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
        .replace('\0', "\u{fffd}")
}

//! A preview as text for a terminal or a file.

use super::{File, Piece, Preview, Row, histogram, token_name};

/// Width of a line of ids, in characters.
const WIDTH: usize = 100;

pub(super) fn render(preview: &Preview, colours: bool) -> String {
    let mut out =
        format!("model: {}; an answer ends with {}", preview.model.display(), token_name(&preview.end_of_turn));
    if let Some(end) = &preview.document_end {
        out += &format!(", a text with {}", token_name(end));
    }
    out += &format!("; at most {} tokens\n", preview.max_length);
    let marks = if colours { "green" } else { "between ⟦ and ⟧" };
    out += &format!("Trained tokens are {marks}; their ids have a *.\n");
    for file in &preview.files {
        out += &summary(file);
        for row in &file.shown {
            out += &shown(row, colours);
        }
    }
    out
}

fn summary(file: &File) -> String {
    let (path, rows, examples, (tokens, trained)) = (file.path.display(), file.rows, file.examples, file.tokens);
    let mut out = format!("\n{path}: {rows} rows, {examples} examples, {tokens} tokens, {trained} of them trained\n");
    for note in &file.notes {
        out += &format!("  - {note}\n");
    }
    let bins = histogram(&file.lengths);
    let most = bins.iter().map(|bin| bin.2).max().unwrap_or(1).max(1);
    let digits = bins.last().map_or(1, |bin| bin.1.to_string().len());
    out += "  lengths in tokens:\n";
    for (first, last, count) in bins {
        // At least one mark for a range that is not empty.
        let bar = "#".repeat((count * 40).div_ceil(most));
        out += format!("  {first:>digits$} - {last:>digits$} {bar} {count}\n").as_str();
    }
    out
}

fn shown(row: &Row, colours: bool) -> String {
    let mut out = format!("\nrow {}: {}\n", row.number, row.fate);
    for (index, pieces) in row.examples.iter().enumerate() {
        if row.examples.len() > 1 {
            out += &format!("  example {} of {}\n", index + 1, row.examples.len());
        }
        for line in marked(pieces, colours).split('\n') {
            out += format!("  {line}").trim_end();
            out += "\n";
        }
        out += &ids(pieces);
    }
    out
}

/// The text of the pieces, with marks around what is trained on. A line end is shown as ⏎ and ends the line.
fn marked(pieces: &[Piece], colours: bool) -> String {
    let (begin, end) = if colours { ("\u{1b}[32m", "\u{1b}[0m") } else { ("⟦", "⟧") };
    let mut out = String::new();
    for run in pieces.chunk_by(|a, b| a.trained == b.trained) {
        // Control characters could change the terminal.
        let text: String = run.iter().flat_map(|piece| piece.text.chars()).map(shown_char).collect();
        let text = text.replace('\n', "⏎\n");
        out += &if run[0].trained { format!("{begin}{text}{end}") } else { text };
    }
    out
}

fn shown_char(c: char) -> char {
    match c {
        '\n' | '\t' => c,
        c if c.is_control() => '\u{fffd}',
        c => c,
    }
}

/// The ids in lines of at most [`WIDTH`] characters; those that are trained on have a `*`.
fn ids(pieces: &[Piece]) -> String {
    let mut out = "  ids:".to_owned();
    let mut width = out.len();
    for piece in pieces {
        for id in &piece.ids {
            let word = format!(" {id}{}", if piece.trained { "*" } else { "" });
            if width + word.len() > WIDTH {
                out += "\n      ";
                width = 6;
            }
            width += word.len();
            out += &word;
        }
    }
    out + "\n"
}

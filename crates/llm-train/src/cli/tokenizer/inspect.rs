//! The command `tokenizer inspect`: how a text is cut.

use std::io::IsTerminal;
use std::path::PathBuf;

use clap::Args;
use llm_cli::HubOption;
use llm_data::{DocumentOptions, for_each_document};
use llm_model::write_atomic;

use super::{LoadedTokenizer, load};
use crate::preview::escaped;
use crate::{Error, Result};

/// The colours of neighbouring tokens: numbers of a terminal with 256 colours, and the same on a page.
const COLOURS: [(u8, &str); 4] = [(153, "#afd7ff"), (223, "#ffd7af"), (157, "#afffaf"), (225, "#ffd7ff")];

const STYLE: &str = "\
:root { color-scheme: light dark; } body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
pre { font: 15px/2 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; } pre span { color: #111; border-radius: 3px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; } .scroll { overflow-x: auto; max-height: 30rem; }
th, td { text-align: right; padding: 0.1rem 0.7rem; border-bottom: 1px solid #8885; } th:last-child, td:last-child { text-align: left; white-space: pre; }
h2 { overflow-wrap: anywhere; font-size: 1.1rem; }
";

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  llm-train tokenizer inspect --tokenizer runs/tokenizer --text \"Hello, world!\"\n  \
    llm-train tokenizer inspect --tokenizer runs/tokenizer --tokenizer openai-community/gpt2 --text Understanding\n  \
    llm-train tokenizer inspect --tokenizer runs/tokenizer README.md --html tokens.html"
)]
pub(in crate::cli) struct Inspect {
    /// Files; the first document of each is shown
    #[arg(value_name = "FILE", required_unless_present = "text", conflicts_with = "text")]
    files: Vec<PathBuf>,
    /// A text instead of files
    #[arg(long)]
    text: Option<String>,
    /// Folder of a tokenizer or a model, or org/name on the Hugging Face hub; may be repeated
    #[arg(long, required = true, value_name = "DIR")]
    pub(in crate::cli) tokenizer: Vec<PathBuf>,
    /// Show the first N tokens of each text
    #[arg(long, default_value_t = 100, value_name = "N")]
    tokens: usize,
    /// Page to write; must not exist
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    #[command(flatten)]
    pub(in crate::cli) hub: HubOption,
}

/// A text as a tokenizer cuts it.
struct Cut {
    title: String,
    text: String,
    /// The id, the token as it is spelled in the vocabulary, and its bytes in the text.
    tokens: Vec<(u32, String, std::ops::Range<usize>)>,
    /// The number of tokens that are not shown.
    more: usize,
}

/// Runs the command; returns the text to print.
pub(super) fn inspect(args: &Inspect) -> Result<String> {
    if let Some(path) = args.html.as_ref().filter(|path| path.exists()) {
        return Err(Error::BadRequest(format!("{}: exists; give another name", path.display())));
    }
    let tokenizers = load(&args.tokenizer)?;
    let mut cuts = Vec::new();
    for (name, text) in texts(args)? {
        for tokenizer in &tokenizers {
            cuts.push(Cut::of(tokenizer, &name, &text, args.tokens)?);
        }
    }
    let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let coloured = std::io::stdout().is_terminal() && !no_colour;
    let mut printed: String = cuts.iter().map(|cut| cut.printed(coloured)).collect();
    if let Some(path) = &args.html {
        write_atomic(path, page(&cuts).as_bytes())?;
        printed += &format!("Page: {}\n", path.display());
    }
    Ok(printed)
}

/// The texts with their names.
fn texts(args: &Inspect) -> Result<Vec<(String, String)>> {
    if let Some(text) = &args.text {
        return Ok(vec![(String::new(), text.clone())]);
    }
    let mut texts = Vec::new();
    for file in &args.files {
        let mut first = None;
        for_each_document(std::slice::from_ref(file), &DocumentOptions::default(), &mut |document| {
            first.get_or_insert(document.text);
            Ok(())
        })?;
        texts.extend(first.map(|text| (format!("{}: ", file.display()), text)));
    }
    Ok(texts)
}

impl Cut {
    fn of(loaded: &LoadedTokenizer, name: &str, text: &str, most: usize) -> Result<Self> {
        let all = loaded.tokenizer.encode_with_offsets(text)?;
        let (count, bytes) = (all.len(), text.len());
        let per_token = bytes as f64 / count.max(1) as f64;
        let title = format!("{name}{}: {count} tokens, {bytes} bytes, {per_token:.2} bytes per token", loaded.name);
        let tokens =
            all.into_iter().take(most).map(|(id, span)| (id, loaded.tokenizer.token(id).unwrap_or_default(), span));
        let tokens: Vec<_> = tokens.collect();
        Ok(Self { title, text: text.to_owned(), more: count - tokens.len(), tokens })
    }

    /// The shown text in parts that have one token each, or several that are within one character, with their tokens.
    fn parts(&self) -> Vec<(&str, usize)> {
        let (mut parts, mut at): (Vec<(&str, usize)>, usize) = (Vec::new(), 0);
        for (index, (_, _, span)) in self.tokens.iter().enumerate() {
            // What belongs to no token, such as blanks of WordPiece, is with the next token.
            let end = span.end.max(at);
            if end > at || parts.is_empty() {
                parts.push((&self.text[at..end], index));
                at = end;
            }
        }
        parts
    }

    fn printed(&self, coloured: bool) -> String {
        let mut text = format!("{}\n\n", self.title);
        let parts = self.parts();
        let shown = parts.iter().enumerate().map(|(at, (part, _))| match coloured {
            true => {
                format!("\x1b[30;48;5;{}m{}\x1b[0m", COLOURS[at % 4].0, printable(part).replace('\n', "⏎\x1b[0m\n"))
            }
            false => printable(part),
        });
        text += &shown.collect::<Vec<_>>().join(if coloured { "" } else { "|" });
        text += &format!("\n\n  {:>8}  {:>13}  token\n", "id", "bytes");
        for (id, token, span) in &self.tokens {
            text += &format!("  {id:>8}  {:>13}  {token:?}\n", format!("{}..{}", span.start, span.end));
        }
        if self.more > 0 {
            text += &format!("  and {} more; --tokens N shows more\n", self.more);
        }
        text + "\n"
    }

    fn html(&self) -> String {
        let part = |(at, (part, index)): (usize, &(&str, usize))| {
            let (id, token, _) = &self.tokens[*index];
            let (colour, text) = (COLOURS[at % 4].1, escaped(part).replace('\n', "⏎\n"));
            format!("<span style=\"background:{colour}\" title=\"{} · {id}\">{text}</span>", escaped(token))
        };
        let row = |(id, token, span): &(u32, String, std::ops::Range<usize>)| {
            format!("<tr><td>{id}</td><td>{}..{}</td><td>{}</td></tr>\n", span.start, span.end, escaped(token))
        };
        let more = if self.more > 0 { format!("<p>and {} more</p>\n", self.more) } else { String::new() };
        format!(
            "<section>\n<h2>{}</h2>\n<pre>{}</pre>\n{more}<div class=\"scroll\"><table>\n<tr><th>id</th><th>bytes</th><th>token</th></tr>\n{}\
             </table></div>\n</section>\n",
            escaped(&self.title),
            self.parts().iter().enumerate().map(part).collect::<String>(),
            self.tokens.iter().map(row).collect::<String>(),
        )
    }
}

/// A text without control characters, which could change the terminal; line ends stay.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

fn page(cuts: &[Cut]) -> String {
    let sections: String = cuts.iter().map(Cut::html).collect();
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n<title>Tokens</title>\n\
         <style>\n{STYLE}</style>\n</head>\n<body>\n<h1>Tokens</h1>\n{sections}</body>\n</html>\n"
    )
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use llm_tokenizer::{TrainConfig, train_bpe};

    use super::*;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        inspect: Inspect,
    }

    fn run(dir: &std::path::Path, arguments: &[&str]) -> Result<String> {
        let tokenizer = dir.join("tokenizer");
        let config = TrainConfig { vocab_size: 300, min_frequency: 2 };
        train_bpe(&config, ["the cat sat on the mat and the cat sat"].iter())?.save(&tokenizer)?;
        let words =
            ["inspect", "--tokenizer", tokenizer.to_str().unwrap()].into_iter().chain(arguments.iter().copied());
        inspect(&Program::parse_from(words).inspect)
    }

    #[test]
    fn a_text_is_shown_in_parts_with_the_ids_and_bytes_of_its_tokens() {
        let dir = tempfile::tempdir().unwrap();
        let text = run(dir.path(), &["--text", "the cat é"]).unwrap();
        assert!(text.contains(": 5 tokens, 10 bytes, 2.00 bytes per token"), "{text}");
        assert!(text.contains("\nthe| cat| |é\n"), "{text}");
        assert!(text.contains("          3..7  \"Ġcat\"") && text.contains("8..10"), "{text}");
        let two = run(dir.path(), &["--text", "the cat sat", "--tokens", "2"]).unwrap();
        assert!(two.contains("\nthe| cat\n") && two.contains("and 1 more"), "{two}");
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        let dir = tempfile::tempdir().unwrap();
        let text = run(dir.path(), &["--text", "the \u{1b}[2J cat\u{7}"]).unwrap();
        assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
    }

    #[test]
    fn a_page_escapes_the_text_and_is_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let (file, html) = (dir.path().join("page.md"), dir.path().join("tokens.html"));
        std::fs::write(&file, "the <b>cat</b>\nsat").unwrap();
        let arguments = [file.to_str().unwrap(), "--html", html.to_str().unwrap()];
        let text = run(dir.path(), &arguments).unwrap();
        assert!(text.contains("page.md: "), "{text}");
        let page = std::fs::read_to_string(&html).unwrap();
        assert!(!page.contains("<b>") && page.contains("&lt;") && page.contains("⏎"), "{page}");
        let error = run(dir.path(), &arguments).unwrap_err().to_string();
        assert!(error.ends_with("tokens.html: exists; give another name"), "{error}");
    }
}

//! The text of Markdown and HTML pages, as a reader sees it: without marks, bullets, numbers of lists and addresses of links.

use html2text::render::TrivialDecorator;
use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};

/// Lines are not wrapped.
const WIDTH: usize = 1 << 24;

/// The text of an HTML page; scripts, styles and the head are left out.
pub(super) fn html_to_text(html: &str) -> Result<String, String> {
    let config = html2text::config::with_decorator(TrivialDecorator::new()).raw_mode(true).allow_width_overflow();
    let text = config.string_from_read(html.as_bytes(), WIDTH).map_err(|error| format!("not HTML: {error}"))?;
    let mut lines = Lines::default();
    for line in text.lines() {
        match line.trim_end() {
            "" => lines.end(2),
            line => {
                lines.0.push_str(line);
                lines.end(1);
            }
        }
    }
    Ok(lines.0)
}

/// The text of a Markdown page (`CommonMark` with tables, footnotes and front matter, which is left out).
pub(super) fn markdown_to_text(markdown: &str) -> Result<String, String> {
    let options = Options::ENABLE_TABLES
        | Options::ENABLE_FOOTNOTES
        | Options::ENABLE_STRIKETHROUGH
        | Options::ENABLE_TASKLISTS
        | Options::ENABLE_YAML_STYLE_METADATA_BLOCKS
        | Options::ENABLE_PLUSES_DELIMITED_METADATA_BLOCKS;
    let mut lines = Lines::default();
    let (mut html, mut in_metadata) = (String::new(), false);
    for event in Parser::new_ext(markdown, options) {
        match event {
            Event::Start(Tag::MetadataBlock(_)) => in_metadata = true,
            Event::End(TagEnd::MetadataBlock(_)) => in_metadata = false,
            Event::Start(Tag::HtmlBlock) => html.clear(),
            Event::Html(part) => html.push_str(&part),
            Event::End(TagEnd::HtmlBlock) => {
                lines.0.push_str(html_to_text(&html)?.trim_end());
                lines.end(2);
            }
            Event::Text(text) | Event::Code(text) if !in_metadata => lines.0.push_str(&text),
            Event::InlineHtml(tag) if tag.to_lowercase().starts_with("<br") => lines.0.push('\n'),
            Event::End(TagEnd::TableCell) => lines.0.push('\t'),
            Event::SoftBreak
            | Event::HardBreak
            | Event::Start(Tag::List(_))
            | Event::End(TagEnd::Item | TagEnd::TableRow | TagEnd::TableHead) => lines.end(1),
            Event::End(
                TagEnd::Paragraph
                | TagEnd::Heading(_)
                | TagEnd::CodeBlock
                | TagEnd::List(_)
                | TagEnd::Table
                | TagEnd::FootnoteDefinition,
            ) => lines.end(2),
            _ => {}
        }
    }
    let end = lines.0.trim_end().len();
    lines.0.truncate(end);
    lines.0.push('\n');
    Ok(lines.0)
}

/// A text that grows by lines.
#[derive(Default)]
struct Lines(String);

impl Lines {
    /// Ends the line with at least `count` line ends. The start of the text needs none.
    fn end(&mut self, count: usize) {
        let text = self.0.trim_end_matches([' ', '\t', '\n']).len();
        let present = self.0[text..].matches('\n').count();
        self.0.truncate(text);
        if text > 0 {
            self.0.extend(std::iter::repeat_n('\n', present.max(count)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markdown_is_the_text_that_a_reader_sees() {
        let markdown = "---\ntitle: x\n---\n# A *title*\n\nSome **bold** text, a [link](https://a.b \"t\") and `code`.\nNext line.\n\n\
                        - one\n- two\n  1. inner\n\n> quoted\n\n```rust\nfn main() {}\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n\
                        ![alt](x.png)\n\n<div>raw <b>html</b></div>\n\nline<br>break &amp; &lt;end>\n\n---\n";
        let expected = "A title\n\nSome bold text, a link and code.\nNext line.\n\none\ntwo\ninner\n\nquoted\n\nfn main() {}\n\n\
                        a\tb\n1\t2\n\nalt\n\nraw html\n\nline\nbreak & <end>\n";
        assert_eq!(markdown_to_text(markdown).unwrap(), expected);
        assert_eq!(markdown_to_text("plain words\n").unwrap(), "plain words\n");
    }

    #[test]
    fn html_is_the_text_that_a_reader_sees() {
        let html = "<!doctype html><html><head><title>t</title><style>p {}</style><script>let x = 1 < 2;</script></head><body>\
                    <h1>A &amp; B</h1><p>One <b>bold</b>\n word, <a href=\"https://a.b\">a link</a>.</p><hr><ul><li>x</li><li>y</li></ul>\
                    <table><tr><td>1</td><td>2</td></tr></table><pre>a\n  b</pre><p>caf&eacute;</body></html>";
        let text = html_to_text(html).unwrap();
        for part in ["A & B\n", "One bold word, a link.\n", "x\ny\n", "a\n  b\n", "café"] {
            assert!(text.contains(part), "{part:?} is not in {text:?}");
        }
        for part in ["let x", "p {}", "https", "<", "---", "───"] {
            assert!(!text.contains(part), "{part:?} is in {text:?}");
        }
        let long = "word ".repeat(100_000);
        assert_eq!(html_to_text(&format!("<p>{long}</p>")).unwrap().lines().count(), 1);
    }
}

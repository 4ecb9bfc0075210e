//! Splits the source of a template into tokens, as jinja2 does with `trim_blocks` and `lstrip_blocks`.

use super::Problem;

/// A token of a template.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Token {
    /// Text outside of tags.
    Data(String),
    BlockBegin,
    BlockEnd,
    VariableBegin,
    VariableEnd,
    Name(String),
    Int(i128),
    Float(f64),
    Text(String),
    Operator(&'static str),
    End,
}

/// Longer operators first.
const OPERATORS: [&str; 27] = [
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}", ">", "<", "=", ".",
    ":", "|", ",", ";", "!",
];

/// The tokens, each with its line from 1.
pub(super) fn tokenize(source: &str) -> Result<Vec<(Token, u32)>, Problem> {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let source = source.strip_suffix('\n').unwrap_or(&source);
    let mut lexer = Lexer { source, at: 0, tokens: Vec::new(), at_line_start: true, line: 1, counted: 0 };
    while lexer.at < source.len() {
        lexer.step()?;
    }
    lexer.push(Token::End);
    Ok(lexer.tokens)
}

struct Lexer<'a> {
    source: &'a str,
    at: usize,
    tokens: Vec<(Token, u32)>,
    /// Whether the last tag ended with a line end.
    at_line_start: bool,
    /// The line of the position `counted`.
    line: u32,
    counted: usize,
}

impl<'a> Lexer<'a> {
    fn rest(&self) -> &'a str {
        &self.source[self.at..]
    }

    fn push(&mut self, token: Token) {
        let passed = &self.source[self.counted..self.at];
        self.line += u32::try_from(passed.matches('\n').count()).unwrap_or(0);
        self.counted = self.at;
        self.tokens.push((token, self.line));
    }

    fn problem(&mut self, message: &str) -> Problem {
        self.push(Token::End);
        Problem::new(format!("syntax error: {message}")).at_line(self.line)
    }

    /// Reads the text up to the next tag, and the tag.
    fn step(&mut self) -> Result<(), Problem> {
        let rest = self.rest();
        let starts = rest.match_indices('{').map(|(at, _)| at);
        let tag = starts.into_iter().find(|at| matches!(rest.as_bytes().get(at + 1), Some(b'{' | b'%' | b'#')));
        let Some(at) = tag else {
            self.data(rest);
            self.at = self.source.len();
            return Ok(());
        };
        let (kind, sign) = (rest.as_bytes()[at + 1], rest.as_bytes().get(at + 2).copied());
        self.data(self.stripped(&rest[..at], sign, kind == b'{'));
        self.at += at;
        let signed = usize::from(matches!(sign, Some(b'-' | b'+')));
        match kind {
            b'#' => self.comment(),
            b'%' if self.raw_begin(2 + signed).is_some() => self.raw(2 + signed),
            b'%' => self.tag(2 + signed, Token::BlockBegin),
            _ => self.tag(2 + signed, Token::VariableBegin),
        }
    }

    fn data(&mut self, text: &str) {
        if !text.is_empty() {
            self.push(Token::Data(text.to_owned()));
        }
    }

    /// The text before a tag, without the white space that the tag removes.
    fn stripped<'t>(&self, text: &'t str, sign: Option<u8>, variable: bool) -> &'t str {
        if sign == Some(b'-') {
            return text.trim_end_matches(super::text::is_space);
        }
        let line = text.rfind('\n').map_or(0, |at| at + 1);
        let own_line = (line > 0 || self.at_line_start) && text[line..].chars().all(super::text::is_space);
        if sign != Some(b'+') && !variable && own_line { &text[..line] } else { text }
    }

    /// Moves past a tag end of `length` bytes, and past the white space that the tag removes after it.
    fn close(&mut self, length: usize, strip: bool, trim: bool) {
        let start = self.at;
        self.at += length;
        if strip {
            self.at = self.source.len() - self.rest().trim_start_matches(super::text::is_space).len();
        } else if trim && self.rest().starts_with('\n') {
            self.at += 1;
        }
        self.at_line_start = self.source[start..self.at].ends_with('\n');
    }

    fn comment(&mut self) -> Result<(), Problem> {
        let Some(end) = self.rest()[2..].find("#}") else {
            return Err(self.problem("a comment has no end; add \"#}\""));
        };
        let sign = self.rest().as_bytes()[end + 1];
        self.at += 2 + end;
        self.close(2, sign == b'-' && end > 0, sign != b'+');
        Ok(())
    }

    /// The length of `raw %}` after the beginning of a tag.
    fn raw_begin(&self, skip: usize) -> Option<usize> {
        let inside = self.rest()[skip..].trim_start().strip_prefix("raw")?.trim_start();
        let after = inside.strip_prefix("-%}").map(str::trim_start).or_else(|| inside.strip_prefix("%}"))?;
        Some(self.rest().len() - after.len())
    }

    fn raw(&mut self, skip: usize) -> Result<(), Problem> {
        self.at += self.raw_begin(skip).unwrap_or(0);
        let rest = self.rest();
        for (at, _) in rest.match_indices("{%") {
            let sign = rest.as_bytes().get(at + 2).copied();
            let tag = rest[at + 2..].trim_start_matches(['-', '+']).trim_start();
            let Some(end) = tag.strip_prefix("endraw").map(str::trim_start) else { continue };
            let close = ["+%}", "-%}", "%}"].into_iter().find(|close| end.starts_with(close));
            let Some(close) = close else { continue };
            self.data(self.stripped(&rest[..at], sign, false));
            self.at = self.source.len() - end.len();
            self.close(close.len(), close == "-%}", close == "%}");
            return Ok(());
        }
        Err(self.problem("a raw block has no end; add {% endraw %}"))
    }

    /// Reads the tokens of a tag.
    fn tag(&mut self, skip: usize, begin: Token) -> Result<(), Problem> {
        let (block, end) = match begin {
            Token::BlockBegin => (true, Token::BlockEnd),
            _ => (false, Token::VariableEnd),
        };
        self.push(begin);
        self.at += skip;
        let mut open = Vec::new();
        loop {
            self.at = self.source.len() - self.rest().trim_start_matches(super::text::is_space).len();
            let rest = self.rest();
            let ends: &[&str] = if block { &["-%}", "+%}", "%}"] } else { &["-}}", "}}"] };
            if let Some(close) = ends.iter().find(|close| open.is_empty() && rest.starts_with(**close)) {
                self.push(end);
                self.close(close.len(), close.starts_with('-'), block && !close.starts_with('+'));
                return Ok(());
            }
            let Some(first) = rest.chars().next() else {
                return Err(self.problem("the last tag has no end"));
            };
            if first == '\'' || first == '"' {
                self.text(first)?;
            } else if first.is_ascii_digit() {
                self.number()?;
            } else if first == '_' || first.is_alphabetic() {
                let end = rest.find(|c: char| c != '_' && !c.is_alphanumeric()).unwrap_or(rest.len());
                self.push(Token::Name(rest[..end].to_owned()));
                self.at += end;
            } else if let Some(operator) = OPERATORS.into_iter().find(|operator| rest.starts_with(operator)) {
                match operator {
                    "(" | "[" | "{" => open.push(operator),
                    ")" | "]" | "}" if open.pop().is_none() => {
                        return Err(self.problem(&format!("unexpected \"{operator}\"")));
                    }
                    _ => {}
                }
                self.push(Token::Operator(operator));
                self.at += operator.len();
            } else {
                return Err(self.problem(&format!("unexpected character {first:?}")));
            }
        }
    }

    fn text(&mut self, quote: char) -> Result<(), Problem> {
        let rest = self.rest();
        let mut escaped = false;
        let end = rest[1..].find(|c| {
            let ends = c == quote && !escaped;
            escaped = c == '\\' && !escaped;
            ends
        });
        let Some(end) = end else {
            return Err(self.problem("a text has no end"));
        };
        let Some(text) = unescape(&rest[1..=end]) else {
            return Err(self.problem("a text contains an invalid escape"));
        };
        self.push(Token::Text(text));
        self.at += end + 2;
        Ok(())
    }

    fn number(&mut self) -> Result<(), Problem> {
        let rest = self.rest().as_bytes();
        let digits =
            |from: usize| rest[from..].iter().take_while(|byte| byte.is_ascii_digit() || **byte == b'_').count();
        let mut end = digits(0);
        let mut float = false;
        if rest.get(end) == Some(&b'.') && rest.get(end + 1).is_some_and(u8::is_ascii_digit) {
            end += 1 + digits(end + 1);
            float = true;
        }
        if matches!(rest.get(end), Some(b'e' | b'E')) {
            let sign = usize::from(matches!(rest.get(end + 1), Some(b'+' | b'-')));
            let exponent = digits(end + 1 + sign);
            if exponent > 0 {
                end += 1 + sign + exponent;
                float = true;
            }
        }
        let text = self.rest()[..end].replace('_', "");
        let token = match float {
            true => text.parse().ok().map(Token::Float),
            false => text.parse().ok().map(Token::Int),
        };
        let Some(token) = token else {
            return Err(self.problem(&format!("{text} is not a number")));
        };
        self.push(token);
        self.at += end;
        Ok(())
    }
}

/// The text of a string literal of Python.
fn unescape(literal: &str) -> Option<String> {
    let mut text = String::with_capacity(literal.len());
    let mut chars = literal.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            text.push(c);
            continue;
        }
        let escape = chars.next()?;
        let mut code = |length: usize| {
            let digits: String = chars.by_ref().take(length).collect();
            let value = u32::from_str_radix(&digits, 16).ok().filter(|_| digits.len() == length)?;
            char::from_u32(value)
        };
        match escape {
            '\n' => {}
            '\\' | '\'' | '"' => text.push(escape),
            'n' => text.push('\n'),
            't' => text.push('\t'),
            'r' => text.push('\r'),
            'a' => text.push('\u{7}'),
            'b' => text.push('\u{8}'),
            'f' => text.push('\u{c}'),
            'v' => text.push('\u{b}'),
            'x' => text.push(code(2)?),
            'u' => text.push(code(4)?),
            'U' => text.push(code(8)?),
            '0'..='7' => {
                let mut value = escape.to_digit(8)?;
                for _ in 0..2 {
                    let Some(digit) = chars.as_str().chars().next().and_then(|c| c.to_digit(8)) else { break };
                    chars.next();
                    value = value * 8 + digit;
                }
                text.push(char::from_u32(value)?);
            }
            // Python keeps an unknown escape as it is.
            other => text.extend(['\\', other]),
        }
    }
    Some(text)
}

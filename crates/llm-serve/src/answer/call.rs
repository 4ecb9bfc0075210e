//! Reads the call of a tool while its JSON is generated: `{"name": "f", "arguments": {…}}`.

use serde_json::Value;

/// What was read of a call.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum CallPart {
    /// The name of the function.
    Name(String),
    /// The next piece of the arguments, a JSON text.
    Arguments(String),
}

/// Reads one call of a known function. Its text is given in pieces.
#[derive(Debug, Default)]
pub(crate) struct CallReader {
    known: Vec<String>,
    text: String,
    state: State,
}

#[derive(Debug, Default, Clone, Copy, PartialEq)]
enum State {
    /// Before the arguments.
    #[default]
    Head,
    /// In the arguments, an object: how many brackets are open, whether a string is, and whether the next character is escaped.
    Arguments { depth: usize, string: bool, escaped: bool },
    /// After the arguments.
    End,
}

impl CallReader {
    /// A reader for calls of these functions.
    pub(crate) fn new(known: &[String]) -> Self {
        Self { known: known.to_vec(), ..Self::default() }
    }

    /// Appends a piece and returns what is new.
    pub(crate) fn push(&mut self, piece: &str) -> Vec<CallPart> {
        self.text.push_str(piece);
        match self.state {
            State::Head => match head(&self.text).filter(|(name, _)| self.known.contains(name)) {
                None => Vec::new(),
                Some((name, at)) => {
                    self.state = State::Arguments { depth: 0, string: false, escaped: false };
                    let rest = self.text[at..].to_owned();
                    let mut parts = vec![CallPart::Name(name)];
                    parts.extend(self.arguments(&rest));
                    parts
                }
            },
            _ => self.arguments(piece).into_iter().collect(),
        }
    }

    /// The end of the call: a call in another order of keys is read whole. None: the text is no call.
    pub(crate) fn finish(self) -> Result<Vec<CallPart>, String> {
        if self.state != State::Head {
            return Ok(Vec::new());
        }
        match whole(&self.text).filter(|(name, _)| self.known.contains(name)) {
            Some((name, arguments)) => Ok(vec![CallPart::Name(name), CallPart::Arguments(arguments)]),
            None => Err(self.text),
        }
    }

    /// Whether the name is known, so that the text is a call.
    pub(crate) fn is_call(&self) -> bool {
        self.state != State::Head
    }

    /// Whether the arguments are complete.
    pub(crate) fn is_complete(&self) -> bool {
        self.state == State::End
    }

    /// The part of a piece that belongs to the arguments.
    fn arguments(&mut self, piece: &str) -> Option<CallPart> {
        let State::Arguments { mut depth, mut string, mut escaped } = self.state else { return None };
        for (at, c) in piece.char_indices() {
            match c {
                _ if escaped => escaped = false,
                '\\' if string => escaped = true,
                '"' => string = !string,
                '{' | '[' if !string => depth += 1,
                '}' | ']' if !string => depth = depth.saturating_sub(1),
                _ => (),
            }
            if depth == 0 && !string {
                self.state = State::End;
                return Some(CallPart::Arguments(piece[..at + c.len_utf8()].to_owned()));
            }
        }
        self.state = State::Arguments { depth, string, escaped };
        (!piece.is_empty()).then(|| CallPart::Arguments(piece.to_owned()))
    }
}

/// The name of the function and the position of its arguments, if the text has come that far.
fn head(text: &str) -> Option<(String, usize)> {
    let rest = text.trim_start().strip_prefix('{')?.trim_start().strip_prefix("\"name\"")?;
    let rest = rest.trim_start().strip_prefix(':')?.trim_start();
    let mut names = serde_json::Deserializer::from_str(rest).into_iter::<String>();
    let name = names.next()?.ok()?;
    let rest = rest[names.byte_offset()..].trim_start().strip_prefix(',')?.trim_start();
    let rest = rest.strip_prefix("\"arguments\"").or_else(|| rest.strip_prefix("\"parameters\""))?;
    let rest = rest.trim_start().strip_prefix(':')?.trim_start();
    rest.starts_with('{').then(|| (name, text.len() - rest.len()))
}

/// The name and the arguments of a complete call.
fn whole(text: &str) -> Option<(String, String)> {
    let call: Value = serde_json::from_str(text.trim()).ok()?;
    let arguments = call.get("arguments").or_else(|| call.get("parameters"));
    let arguments = match arguments {
        None => "{}".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(object @ Value::Object(_)) => object.to_string(),
        Some(_) => return None,
    };
    Some((call.get("name")?.as_str()?.to_owned(), arguments))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The name and the arguments of a text in pieces of `size` characters.
    fn read(text: &str, size: usize) -> Option<(String, String)> {
        let mut reader = CallReader::new(&["f", "g", "éA"].map(str::to_owned));
        let characters: Vec<char> = text.chars().collect();
        let mut parts: Vec<CallPart> =
            characters.chunks(size).flat_map(|piece| reader.push(&piece.iter().collect::<String>())).collect();
        parts.extend(reader.finish().ok()?);
        let mut call = (String::new(), String::new());
        for part in parts {
            match part {
                CallPart::Name(name) => call.0 += &name,
                CallPart::Arguments(piece) => call.1 += &piece,
            }
        }
        Some(call)
    }

    #[test]
    fn a_call_is_read_the_same_in_pieces_of_any_size() {
        for (text, name, arguments) in [
            (r#"{"name": "f", "arguments": {"a": "}\"{", "b": [1, {}]}}"#, "f", r#"{"a": "}\"{", "b": [1, {}]}"#),
            ("\n{\"name\":\"é\\u0041\",\"parameters\":{}}\n", "éA", "{}"),
            (r#"{"arguments": {"x": 1}, "name": "g"}"#, "g", r#"{"x":1}"#),
            (r#"{"name": "g"}"#, "g", "{}"),
        ] {
            for size in 1..=text.len() {
                assert_eq!(read(text, size), Some((name.to_owned(), arguments.to_owned())), "{size}");
            }
        }
        assert_eq!(read("{\"x\": 1}", 3), None);
        assert_eq!(read(r#"{"name": "other", "arguments": {}}"#, 3), None, "no known function");
    }

    #[test]
    fn the_arguments_are_given_while_they_come() {
        let mut reader = CallReader::new(&["f".to_owned()]);
        assert_eq!(reader.push(r#"{"name": "f", "argu"#), []);
        assert_eq!(
            reader.push(r#"ments": {"a"#),
            [CallPart::Name("f".to_owned()), CallPart::Arguments("{\"a".to_owned())]
        );
        assert_eq!(reader.push("\": 1}}"), [CallPart::Arguments("\": 1}".to_owned())]);
        assert!(reader.is_complete() && reader.push("\n").is_empty());
    }
}

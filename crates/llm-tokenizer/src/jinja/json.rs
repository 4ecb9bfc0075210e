//! The filter `tojson`: `json.dumps(value, ensure_ascii=False)` of Python, with its keyword arguments.

use super::Problem;
use super::interpreter::Interpreter;
use super::python;
use super::text::{Char, Text};
use super::value::Value;

type Result<T> = std::result::Result<T, Problem>;

/// The arguments of `tojson`.
#[derive(Debug, Default)]
pub(super) struct Options {
    ensure_ascii: bool,
    /// The indentation of one level; one line if missing.
    indent: Option<Text>,
    /// Between items, and between key and value.
    separators: Option<(Text, Text)>,
    sort_keys: bool,
}

impl Options {
    pub(super) fn new([ensure_ascii, indent, separators, sort_keys]: [Option<Value>; 4]) -> Result<Self> {
        let is_true = |value: Option<Value>| value.is_some_and(|value| value.is_true());
        let indent = match indent {
            None | Some(Value::None) => None,
            Some(Value::Text(text)) => Some(text),
            Some(value) => {
                let spaces = value.int().filter(|spaces| *spaces <= 64);
                let spaces =
                    spaces.ok_or_else(|| Problem::new("tojson: indent must be a number up to 64 or a text"))?;
                Some(Text::template(&" ".repeat(usize::try_from(spaces).unwrap_or(0))))
            }
        };
        let separators = match separators {
            None | Some(Value::None) => None,
            Some(value) => match value.iterate()?.as_slice() {
                [Value::Text(item), Value::Text(key)] => Some((item.clone(), key.clone())),
                _ => return Err(Problem::new("tojson: separators must be two texts")),
            },
        };
        Ok(Self { ensure_ascii: is_true(ensure_ascii), indent, separators, sort_keys: is_true(sort_keys) })
    }
}

/// The value as JSON.
pub(super) fn dumps(value: &Value, options: &Options, interpreter: &Interpreter) -> Result<Text> {
    let item = if options.indent.is_some() { "," } else { ", " };
    let (item, key) = options.separators.clone().unwrap_or_else(|| (Text::template(item), Text::template(": ")));
    let mut writer = Writer { out: Vec::new(), item, key, options, interpreter };
    writer.value(value, 0)?;
    Ok(writer.out.into())
}

struct Writer<'a> {
    out: Vec<Char>,
    item: Text,
    key: Text,
    options: &'a Options,
    interpreter: &'a Interpreter,
}

impl Writer<'_> {
    fn push(&mut self, text: &str) {
        self.out.extend_from_slice(Text::template(text).chars());
    }

    fn line(&mut self, level: usize) -> Result<()> {
        if let Some(indent) = &self.options.indent {
            self.interpreter.charge(indent.chars().len() * level)?;
            self.out.extend_from_slice(Text::template("\n").chars());
            for _ in 0..level {
                self.out.extend_from_slice(indent.chars());
            }
        }
        Ok(())
    }

    fn value(&mut self, value: &Value, level: usize) -> Result<()> {
        self.interpreter.charge(1)?;
        match value {
            Value::None => self.push("null"),
            Value::Bool(value) => self.push(if *value { "true" } else { "false" }),
            Value::Int(value) => self.push(&value.to_string()),
            Value::Float(value) => self.push(&number(*value)),
            Value::Text(text) => self.text(text),
            Value::List(list) | Value::Tuple(list) => {
                self.push("[");
                for (index, item) in list.items.iter().enumerate() {
                    self.begin_item(index, level)?;
                    self.value(item, level + 1)?;
                }
                self.end(list.items.is_empty(), level)?;
                self.push("]");
            }
            Value::Dict(dict) => {
                let mut entries: Vec<&(Value, Value)> = dict.entries.iter().collect();
                if self.options.sort_keys {
                    let mut wrong = None;
                    entries.sort_by(|a, b| {
                        a.0.order(&b.0).unwrap_or_else(|problem| {
                            wrong = Some(problem);
                            std::cmp::Ordering::Equal
                        })
                    });
                    wrong.map_or(Ok(()), Err)?;
                }
                self.push("{");
                for (index, (key, item)) in entries.into_iter().enumerate() {
                    self.begin_item(index, level)?;
                    self.name(key)?;
                    self.out.extend_from_slice(self.key.chars());
                    self.value(item, level + 1)?;
                }
                self.end(dict.entries.is_empty(), level)?;
                self.push("}");
            }
            other => return Err(Problem::new(format!("tojson: a {} cannot be written as JSON", other.kind()))),
        }
        Ok(())
    }

    fn begin_item(&mut self, index: usize, level: usize) -> Result<()> {
        if index > 0 {
            self.out.extend_from_slice(self.item.chars());
        }
        self.line(level + 1)
    }

    fn end(&mut self, empty: bool, level: usize) -> Result<()> {
        if empty { Ok(()) } else { self.line(level) }
    }

    fn name(&mut self, key: &Value) -> Result<()> {
        let text = match key {
            Value::Text(text) => {
                self.text(text);
                return Ok(());
            }
            Value::None => "null".to_owned(),
            Value::Bool(value) => value.to_string(),
            Value::Int(value) => value.to_string(),
            Value::Float(value) => number(*value),
            other => return Err(Problem::new(format!("tojson: a {} cannot be a key", other.kind()))),
        };
        self.text(&Text::template(&text));
        Ok(())
    }

    fn text(&mut self, text: &Text) {
        self.push("\"");
        for c in text.chars() {
            let escaped = match c.char {
                '"' => "\\\"".to_owned(),
                '\\' => "\\\\".to_owned(),
                '\n' => "\\n".to_owned(),
                '\r' => "\\r".to_owned(),
                '\t' => "\\t".to_owned(),
                '\u{8}' => "\\b".to_owned(),
                '\u{c}' => "\\f".to_owned(),
                char if char < ' ' || (self.options.ensure_ascii && !(' '..='~').contains(&char)) => {
                    char.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")).collect()
                }
                _ => {
                    self.out.push(*c);
                    continue;
                }
            };
            self.out.extend(escaped.chars().map(|char| Char { char, origin: c.origin }));
        }
        self.push("\"");
    }
}

/// A float in JSON, with the names of Python for numbers that are not finite.
fn number(value: f64) -> String {
    match value {
        value if value.is_nan() => "NaN".to_owned(),
        f64::INFINITY => "Infinity".to_owned(),
        f64::NEG_INFINITY => "-Infinity".to_owned(),
        value => python::float(value),
    }
}

//! The attributes and items of values, and which methods they have.

use std::rc::Rc;

use super::{Result, Value};

/// The methods of a text.
const OF_TEXT: [&str; 39] = [
    "capitalize",
    "casefold",
    "center",
    "count",
    "endswith",
    "find",
    "format",
    "index",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "islower",
    "isnumeric",
    "isspace",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
    "upper",
    "zfill",
];

/// Whether values of this type have the method. Methods that change a value do not exist, as in the sandbox of transformers.
fn has_method(value: &Value, name: &str) -> bool {
    match value {
        Value::Text(_) => OF_TEXT.contains(&name),
        Value::Dict(_) => ["copy", "get", "items", "keys", "values"].contains(&name),
        Value::List(_) | Value::Tuple(_) => ["copy", "count", "index"].contains(&name),
        Value::Loop(_) => ["changed", "cycle"].contains(&name),
        _ => false,
    }
}

impl Value {
    /// `self.name`: a method, else an entry.
    pub(crate) fn attribute(&self, name: &str) -> Result<Self> {
        let missing = || Self::undefined(format!("a {} has no attribute \"{name}\"", self.kind()));
        if has_method(self, name) {
            return Ok(Self::Method(Rc::new((self.clone(), name.to_owned()))));
        }
        Ok(match self.defined()? {
            Self::Dict(dict) => dict.get_text(name).cloned().unwrap_or_else(missing),
            Self::Namespace(namespace) => namespace.get(name).unwrap_or_else(missing),
            Self::Loop(state) => state.attribute(name).unwrap_or_else(missing),
            _ => missing(),
        })
    }

    /// `self[key]`: an entry, else a method.
    pub(crate) fn item(&self, key: &Self) -> Result<Self> {
        let found = match (self.defined()?, key) {
            (Self::Dict(dict), _) => dict.get(key).cloned(),
            (Self::List(list) | Self::Tuple(list), Self::Int(_) | Self::Bool(_)) => {
                position(key, list.items.len()).map(|at| list.items[at].clone())
            }
            (Self::Text(text), Self::Int(_) | Self::Bool(_)) => {
                position(key, text.chars().len()).map(|at| Self::Text(text.chars()[at..=at].into()))
            }
            _ => None,
        };
        match (found, key) {
            (Some(found), _) => Ok(found),
            (None, Self::Text(name)) => self.attribute(&name.string()),
            (None, _) => Ok(Self::undefined(format!("a {} has no such item", self.kind()))),
        }
    }
}

/// The index of an item; negative numbers count from the end.
fn position(key: &Value, length: usize) -> Option<usize> {
    let (at, length) = (key.int()?, i128::try_from(length).ok()?);
    let at = if at < 0 { at + length } else { at };
    usize::try_from(at).ok().filter(|_| at < length)
}

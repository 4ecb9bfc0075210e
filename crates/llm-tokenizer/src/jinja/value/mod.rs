//! The values of a template, with the comparisons of Python.

mod attributes;
mod objects;
mod scope;

use std::cell::RefCell;
use std::cmp::Ordering;
use std::collections::HashMap;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use serde_json::Value as Json;

use super::Problem;
use super::ast::Macro;
use super::text::Text;
pub(crate) use objects::{Function, Loop, Namespace};
pub(crate) use scope::Scope;

type Result<T> = std::result::Result<T, Problem>;

/// Limit on lists inside lists, so that dropping a value cannot exhaust the stack.
const MAX_NESTING: u32 = 200;

/// A value.
#[derive(Debug, Clone)]
pub(crate) enum Value {
    /// A missing variable, attribute or item, with the message of the error if it is used.
    Undefined(Arc<str>),
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(Text),
    List(Rc<List>),
    Tuple(Rc<List>),
    /// The result of a filter such as `map`: it can be read once, has no length, and is always true.
    Generator(Rc<RefCell<Value>>),
    Dict(Rc<Dict>),
    Namespace(Rc<Namespace>),
    Loop(Rc<Loop>),
    Macro(Rc<Closure>),
    Function(Function),
    /// A method that is not called yet.
    Method(Rc<(Value, String)>),
}

#[derive(Debug)]
pub(crate) struct List {
    pub(super) items: Vec<Value>,
    depth: u32,
}

/// A dictionary, in the order of its keys.
#[derive(Debug)]
pub(crate) struct Dict {
    pub(super) entries: Vec<(Value, Value)>,
    index: HashMap<String, usize>,
    depth: u32,
}

/// A macro with the scope where it was defined.
#[derive(Debug)]
pub(crate) struct Closure {
    pub(super) decl: Arc<Macro>,
    pub(super) scope: Weak<Scope>,
}

impl Value {
    /// A JSON value; its texts and keys have this origin.
    pub(crate) fn from_json(json: &Json, origin: u32) -> Result<Self> {
        Ok(match json {
            Json::Null => Self::None,
            Json::Bool(value) => Self::Bool(*value),
            Json::Number(number) => match (number.as_i64(), number.as_u64()) {
                (Some(int), _) => Self::Int(int.into()),
                (_, Some(int)) => Self::Int(int.into()),
                _ => Self::Float(number.as_f64().unwrap_or(f64::NAN)),
            },
            Json::String(text) => Self::Text(Text::new(text, origin)),
            Json::Array(items) => {
                Self::list(items.iter().map(|item| Self::from_json(item, origin)).collect::<Result<_>>()?)?
            }
            Json::Object(map) => {
                let entries = map
                    .iter()
                    .map(|(key, value)| Ok((Self::Text(Text::new(key, origin)), Self::from_json(value, origin)?)));
                Self::dict(entries.collect::<Result<_>>()?)?
            }
        })
    }

    pub(super) fn undefined(message: impl Into<Arc<str>>) -> Self {
        Self::Undefined(message.into())
    }

    pub(super) fn text(text: &str) -> Self {
        Self::Text(Text::template(text))
    }

    pub(crate) fn list(items: Vec<Value>) -> Result<Self> {
        let depth = nesting(items.iter())?;
        Ok(Self::List(Rc::new(List { items, depth })))
    }

    pub(super) fn tuple(items: Vec<Value>) -> Result<Self> {
        let depth = nesting(items.iter())?;
        Ok(Self::Tuple(Rc::new(List { items, depth })))
    }

    pub(super) fn generator(items: Vec<Value>) -> Result<Self> {
        Ok(Self::Generator(Rc::new(RefCell::new(Self::list(items)?))))
    }

    /// A dictionary; a later value of a key replaces the earlier one.
    pub(crate) fn dict(pairs: Vec<(Value, Value)>) -> Result<Self> {
        let depth = nesting(pairs.iter().map(|(_, value)| value))?;
        let mut entries: Vec<(Value, Value)> = Vec::with_capacity(pairs.len());
        let mut index: HashMap<String, usize> = HashMap::new();
        for (key, value) in pairs {
            match index.entry(key.hashed()?) {
                std::collections::hash_map::Entry::Occupied(at) => entries[*at.get()].1 = value,
                std::collections::hash_map::Entry::Vacant(at) => {
                    at.insert(entries.len());
                    entries.push((key, value));
                }
            }
        }
        Ok(Self::Dict(Rc::new(Dict { entries, index, depth })))
    }

    pub(super) fn namespace(entries: Vec<(String, Value)>) -> Result<Self> {
        Ok(Self::Namespace(Rc::new(Namespace::new(entries)?)))
    }

    /// The name of the type in Python, for messages.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Undefined(_) => "undefined",
            Self::None => "None",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Float(_) => "float",
            Self::Text(_) => "str",
            Self::List(_) => "list",
            Self::Tuple(_) => "tuple",
            Self::Generator(_) => "generator",
            Self::Dict(_) => "dict",
            Self::Namespace(_) => "namespace",
            Self::Loop(_) => "loop",
            Self::Macro(_) => "macro",
            Self::Function(_) | Self::Method(_) => "function",
        }
    }

    /// The value as a key of a dictionary: equal values have the same text.
    fn hashed(&self) -> Result<String> {
        Ok(match self {
            Self::Undefined(_) => "u".to_owned(),
            Self::None => "n".to_owned(),
            Self::Bool(value) => format!("i{}", i128::from(*value)),
            Self::Int(value) => format!("i{value}"),
            Self::Float(value) if value.fract() == 0.0 => format!("i{value}"),
            Self::Float(value) => format!("f{value}"),
            Self::Text(text) => format!("s{}", text.string()),
            Self::Tuple(list) => {
                let items = list.items.iter().map(|item| item.hashed().map(|key| format!("{}:{key}", key.len())));
                format!("t{}", items.collect::<Result<String>>()?)
            }
            other => return Err(Problem::new(format!("a {} cannot be the key of a dictionary", other.kind()))),
        })
    }

    pub(super) fn is_true(&self) -> bool {
        match self {
            Self::Undefined(_) | Self::None => false,
            Self::Bool(value) => *value,
            Self::Int(value) => *value != 0,
            Self::Float(value) => *value != 0.0,
            Self::Text(text) => !text.chars().is_empty(),
            Self::List(list) | Self::Tuple(list) => !list.items.is_empty(),
            Self::Dict(dict) => !dict.entries.is_empty(),
            _ => true,
        }
    }

    /// The value as a number, if it is one. True is 1.
    pub(super) fn int(&self) -> Option<i128> {
        match self {
            Self::Bool(value) => Some(i128::from(*value)),
            Self::Int(value) => Some(*value),
            _ => None,
        }
    }

    #[allow(clippy::cast_precision_loss, reason = "as in Python")]
    pub(super) fn float(&self) -> Option<f64> {
        match self {
            Self::Float(value) => Some(*value),
            other => other.int().map(|value| value as f64),
        }
    }

    /// The error of using an undefined value, if it is one.
    pub(super) fn defined(&self) -> Result<&Self> {
        match self {
            Self::Undefined(message) => Err(Problem::new(message.to_string())),
            _ => Ok(self),
        }
    }

    pub(super) fn equals(&self, other: &Self) -> bool {
        let all = |a: &[Value], b: &[Value]| a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.equals(b));
        match (self, other) {
            (Self::Undefined(_), Self::Undefined(_)) | (Self::None, Self::None) => true,
            (Self::Text(a), Self::Text(b)) => a == b,
            (Self::List(a), Self::List(b)) | (Self::Tuple(a), Self::Tuple(b)) => all(&a.items, &b.items),
            (Self::Dict(a), Self::Dict(b)) => {
                a.entries.len() == b.entries.len()
                    && a.entries.iter().all(|(key, value)| b.get(key).is_some_and(|other| value.equals(other)))
            }
            (Self::Namespace(a), Self::Namespace(b)) => Rc::ptr_eq(a, b),
            (Self::Macro(a), Self::Macro(b)) => Rc::ptr_eq(a, b),
            (a, b) => match (a.int(), b.int()) {
                (Some(a), Some(b)) => a == b,
                _ => a.float().zip(b.float()).is_some_and(|(a, b)| a.total_cmp(&b) == Ordering::Equal || a == b),
            },
        }
    }

    /// The order of two values of the same kind.
    pub(super) fn order(&self, other: &Self) -> Result<Ordering> {
        match (self.defined()?, other.defined()?) {
            (Self::Text(a), Self::Text(b)) => return Ok(a.order(b)),
            (Self::List(a), Self::List(b)) | (Self::Tuple(a), Self::Tuple(b)) => {
                for (a, b) in a.items.iter().zip(&b.items) {
                    if !a.equals(b) {
                        return a.order(b);
                    }
                }
                return Ok(a.items.len().cmp(&b.items.len()));
            }
            (a, b) => {
                if let (Some(a), Some(b)) = (a.int(), b.int()) {
                    return Ok(a.cmp(&b));
                }
                if let Some(order) = a.float().zip(b.float()).and_then(|(a, b)| a.partial_cmp(&b)) {
                    return Ok(order);
                }
            }
        }
        Err(Problem::new(format!("{} and {} cannot be compared", self.kind(), other.kind())))
    }

    /// `item in self`
    pub(super) fn contains(&self, item: &Self) -> Result<bool> {
        match (self, item) {
            (Self::Text(text), Self::Text(part)) => Ok(super::text::find(text.chars(), part.chars(), 0).is_some()),
            (Self::List(list) | Self::Tuple(list), _) => Ok(list.items.iter().any(|other| other.equals(item))),
            (Self::Dict(dict), _) => Ok(dict.index.contains_key(&item.hashed()?)),
            (Self::Generator(_), _) => Ok(self.iterate()?.iter().any(|other| other.equals(item))),
            (Self::Undefined(_), _) => Ok(false),
            _ => Err(Problem::new(format!("a {} cannot be searched for a {}", self.kind(), item.kind()))),
        }
    }

    /// The items of a list, the keys of a dictionary, the characters of a text.
    pub(super) fn iterate(&self) -> Result<Vec<Value>> {
        match self {
            Self::Undefined(_) => Ok(Vec::new()),
            Self::List(list) | Self::Tuple(list) => Ok(list.items.clone()),
            Self::Dict(dict) => Ok(dict.entries.iter().map(|(key, _)| key.clone()).collect()),
            Self::Text(text) => Ok(text.chars().iter().map(|c| Self::Text(std::slice::from_ref(c).into())).collect()),
            Self::Generator(items) => items.replace(Self::undefined("")).iterate(),
            other => Err(Problem::new(format!("a {} is not a list", other.kind()))),
        }
    }

    pub(super) fn length(&self) -> Result<usize> {
        match self {
            Self::Undefined(_) => Ok(0),
            Self::Text(text) => Ok(text.chars().len()),
            Self::List(list) | Self::Tuple(list) => Ok(list.items.len()),
            Self::Dict(dict) => Ok(dict.entries.len()),
            Self::Loop(state) => Ok(state.items.items.len()),
            other => Err(Problem::new(format!("a {} has no length", other.kind()))),
        }
    }
}

/// The nesting of a container of these values.
pub(super) fn nesting<'a>(values: impl Iterator<Item = &'a Value>) -> Result<u32> {
    let depth = values.map(|value| match value {
        Value::List(list) | Value::Tuple(list) => list.depth,
        Value::Dict(dict) => dict.depth,
        Value::Namespace(namespace) => namespace.depth(),
        Value::Loop(state) => state.items.depth,
        Value::Generator(items) => nesting(std::iter::once(&*items.borrow())).unwrap_or(MAX_NESTING),
        Value::Method(method) => nesting(std::iter::once(&method.0)).unwrap_or(MAX_NESTING),
        _ => 0,
    });
    let depth = depth.max().unwrap_or(0) + 1;
    if depth > MAX_NESTING {
        return Err(Problem::new(format!("more than {MAX_NESTING} lists inside each other")));
    }
    Ok(depth)
}

impl Dict {
    pub(super) fn get(&self, key: &Value) -> Option<&Value> {
        self.index.get(&key.hashed().ok()?).map(|at| &self.entries[*at].1)
    }

    pub(super) fn get_text(&self, key: &str) -> Option<&Value> {
        self.index.get(&format!("s{key}")).map(|at| &self.entries[*at].1)
    }
}

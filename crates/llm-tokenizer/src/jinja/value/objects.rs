//! Namespaces, the variable `loop`, and the names of the functions.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use super::{List, Result, Value, nesting};
use crate::jinja::Problem;

/// The result of `namespace(..)`: a value that can be changed.
#[derive(Debug)]
pub(crate) struct Namespace {
    entries: RefCell<Vec<(String, Value)>>,
    depth: Cell<u32>,
}

/// The variable `loop`.
#[derive(Debug)]
pub(crate) struct Loop {
    pub(crate) items: Rc<List>,
    pub(crate) index: usize,
    pub(crate) depth: usize,
    /// The last arguments of `loop.changed`, shared by all rounds.
    pub(crate) changed: Rc<RefCell<Option<Value>>>,
}

impl Namespace {
    pub(crate) fn new(entries: Vec<(String, Value)>) -> Result<Self> {
        let depth = Cell::new(nesting(entries.iter().map(|(_, value)| value))?);
        Ok(Self { entries: RefCell::new(entries), depth })
    }

    /// The nesting of its values.
    pub(crate) fn depth(&self) -> u32 {
        self.depth.get()
    }

    pub(crate) fn get(&self, name: &str) -> Option<Value> {
        self.entries.borrow().iter().find(|(key, _)| key == name).map(|(_, value)| value.clone())
    }

    /// Sets an attribute. An error for names that begin with an underscore, as in transformers.
    pub(crate) fn set(&self, name: &str, value: Value) -> Result<()> {
        if name.starts_with('_') {
            return Err(Problem::new(format!("a namespace cannot have the attribute \"{name}\"")));
        }
        self.depth.set(self.depth.get().max(nesting(std::iter::once(&value))?));
        let mut entries = self.entries.borrow_mut();
        match entries.iter_mut().find(|(key, _)| key == name) {
            Some((_, old)) => *old = value,
            None => entries.push((name.to_owned(), value)),
        }
        Ok(())
    }
}

impl Loop {
    pub(crate) fn attribute(&self, name: &str) -> Option<Value> {
        let (items, index) = (&self.items.items, self.index);
        let int = |value: usize| i128::try_from(value).ok().map(Value::Int);
        let item = |at: Option<usize>, what: &str| {
            let item = at.and_then(|at| items.get(at)).cloned();
            Some(item.unwrap_or_else(|| Value::undefined(format!("there is no {what} item"))))
        };
        match name {
            "index" => int(index + 1),
            "index0" => int(index),
            "revindex" => int(items.len() - index),
            "revindex0" => int(items.len() - index - 1),
            "first" => Some(Value::Bool(index == 0)),
            "last" => Some(Value::Bool(index + 1 == items.len())),
            "length" => int(items.len()),
            "depth" => int(self.depth + 1),
            "depth0" => int(self.depth),
            "previtem" => item(index.checked_sub(1), "previous"),
            "nextitem" => item(index.checked_add(1), "next"),
            _ => None,
        }
    }
}

/// A function that every template has.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Function {
    Range,
    Dict,
    Namespace,
    RaiseException,
    StrftimeNow,
}

impl Function {
    /// The function of this name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        match name {
            "range" => Some(Self::Range),
            "dict" => Some(Self::Dict),
            "namespace" => Some(Self::Namespace),
            "raise_exception" => Some(Self::RaiseException),
            "strftime_now" => Some(Self::StrftimeNow),
            _ => None,
        }
    }
}

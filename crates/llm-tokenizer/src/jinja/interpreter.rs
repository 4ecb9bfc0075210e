//! The state of one rendering, and the arguments of a call.

use std::cell::Cell;

use chrono::NaiveDateTime;

use super::Problem;
use super::value::Value;

type Result<T> = std::result::Result<T, Problem>;

/// The state of one rendering.
#[derive(Debug)]
pub(super) struct Interpreter {
    /// The remaining steps; a step is a node of the template or four characters.
    fuel: Cell<u64>,
    /// The number of calls inside each other.
    pub(super) calls: Cell<u32>,
    /// The time for `strftime_now`.
    pub(super) now: NaiveDateTime,
}

impl Interpreter {
    pub(super) fn new(fuel: u64, now: NaiveDateTime) -> Self {
        Self { fuel: Cell::new(fuel), calls: Cell::new(0), now }
    }

    /// Counts the work on this many nodes or characters. An error if the template has used all its steps.
    pub(super) fn charge(&self, units: usize) -> Result<()> {
        let left = self.fuel.get().checked_sub(1 + units as u64 / 4);
        let left = left.ok_or_else(|| Problem::new("the template did not end after the allowed number of steps"))?;
        self.fuel.set(left);
        Ok(())
    }

    /// Counts the work on a new value.
    pub(super) fn charged(&self, value: Value) -> Result<Value> {
        self.charge(match &value {
            Value::Text(text) => text.chars().len(),
            Value::List(list) | Value::Tuple(list) => 4 * list.items.len(),
            _ => 0,
        })?;
        Ok(value)
    }
}

/// The arguments of a call.
#[derive(Debug, Default)]
pub(super) struct Args {
    pub(super) positional: Vec<Value>,
    pub(super) named: Vec<(String, Value)>,
}

impl Args {
    /// The arguments in the order of `names`. An error if there is another one.
    pub(super) fn bind<const N: usize>(self, what: &str, names: [&str; N]) -> Result<[Option<Value>; N]> {
        let mut values = [const { None }; N];
        if self.positional.len() > N {
            return Err(Problem::new(format!("{what} takes at most {N} arguments")));
        }
        for (slot, value) in values.iter_mut().zip(self.positional) {
            *slot = Some(value);
        }
        for (name, value) in self.named {
            match names.iter().position(|known| *known == name) {
                Some(at) if values[at].is_none() => values[at] = Some(value),
                _ => return Err(Problem::new(format!("{what} takes no argument \"{name}\""))),
            }
        }
        Ok(values)
    }
}

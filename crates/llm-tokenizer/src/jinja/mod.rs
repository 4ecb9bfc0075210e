//! Renders Jinja templates exactly as `transformers` does, and knows where each character of the result comes from.
//!
//! The language is that of jinja2 with the values of Python: `None` is printed as `None`, a dictionary as Python prints it, a text
//! has the methods of `str`. In a chat, the origin of each character tells what the template wrote and what a message said, so
//! that no text of a user becomes a control token and the parts of the assistant are known. That is why a template is not rendered
//! by a general crate: its texts have no origin, and its values are printed differently.
//!
//! Reference: jinja2's `ImmutableSandboxedEnvironment` with `trim_blocks`, `lstrip_blocks`, the loop controls and the functions and
//! filters of `transformers.utils.chat_template_utils`.
//!
//! - `lexer.rs`, `parser.rs`, `arguments.rs`, `statements.rs`: source to syntax tree (`ast.rs`)
//! - `text.rs`, `value/`: texts, values and variables; `operators.rs`, `python.rs`, `json.rs`: what Python does with them
//! - `interpreter.rs`: the state of a rendering; `eval.rs`, `exec.rs`: expressions and statements
//! - `names.rs`: the variables that a template needs
//! - `filters.rs`, `lists.rs`, `checks.rs`, `methods.rs`, `functions.rs`: filters, tests, methods and functions by name

mod arguments;
mod ast;
mod checks;
mod eval;
mod exec;
mod filters;
mod functions;
mod interpreter;
mod json;
mod lexer;
mod lists;
mod methods;
mod names;
mod operators;
mod parser;
mod python;
mod statements;
mod text;
mod value;

use chrono::NaiveDateTime;

pub(crate) use text::{Char, GENERATION, TEMPLATE, string};
pub(crate) use value::Value;

/// Limit on the steps of a template with short variables: about one second of work, and 100 times the steps of a long conversation.
const FUEL: u64 = 5_000_000;
/// Additional steps for each character of the variables.
const FUEL_PER_CHAR: u64 = 8;

/// What is wrong with a template, or what it raised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    message: String,
    /// The line of the template, from 1.
    line: Option<u32>,
}

impl Problem {
    fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), line: None }
    }

    /// The problem with its line, unless an inner statement has set it.
    fn at_line(mut self, line: u32) -> Self {
        self.line.get_or_insert(line);
        self
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let message = self.message.trim().replace('\n', " ");
        match self.line {
            Some(line) => write!(f, "{message} (line {line})"),
            None => write!(f, "{message}"),
        }
    }
}

/// A parsed template.
#[derive(Debug)]
pub(crate) struct Template {
    body: Vec<ast::Statement>,
}

impl Template {
    /// Parses a template.
    pub(crate) fn parse(source: &str) -> Result<Self, Problem> {
        Ok(Self { body: parser::parse(source)? })
    }

    /// The text of the template with these variables; `size` is their number of characters. Each character has the origin of the
    /// variable that it comes from, and [`GENERATION`] inside of `{% generation %}`.
    pub(crate) fn render(
        &self,
        variables: Vec<(String, Value)>,
        size: usize,
        now: NaiveDateTime,
    ) -> Result<Vec<Char>, Problem> {
        let interpreter = interpreter::Interpreter::new(FUEL + FUEL_PER_CHAR * size as u64, now);
        let mut out = Vec::new();
        interpreter.run(&self.body, &value::Scope::root(variables), &mut out)?;
        Ok(out)
    }
}

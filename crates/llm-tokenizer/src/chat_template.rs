//! A chat template: Jinja, as `transformers` runs it.

use std::sync::Arc;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, ErrorKind, Value};

use crate::{Error, Result};

/// How many steps a template may take, of which each 64 bytes that it writes are one: a second's work, and a hundred times that
/// of a long conversation.
const FUEL: u64 = 5_000_000;

/// A chat template, parsed once.
#[derive(Clone)]
pub(crate) struct ChatTemplate {
    pub(crate) source: String,
    /// What the parser said, if it failed: a model whose template we cannot read is still good for plain text.
    environment: std::result::Result<Arc<Environment<'static>>, String>,
}

impl ChatTemplate {
    pub(crate) fn new(source: &str) -> Self {
        let environment = parse(source).map(Arc::new).map_err(|error| error.to_string());
        Self { source: source.to_owned(), environment }
    }

    pub(crate) fn render(&self, context: Value) -> Result<String> {
        let environment = self.environment.as_ref().map_err(|cause| Error::Template { cause: cause.clone() })?;
        let rendered = environment.get_template("chat").and_then(|template| template.render(context));
        rendered.map_err(|error| Error::Template { cause: error.to_string() })
    }
}

/// The environment that `transformers` gives a chat template, with the template "chat" in it.
fn parse(source: &str) -> std::result::Result<Environment<'static>, minijinja::Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_fuel(Some(FUEL));
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function("raise_exception", |message: String| -> std::result::Result<Value, _> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_template_owned("chat", source.to_owned())?;
    Ok(environment)
}

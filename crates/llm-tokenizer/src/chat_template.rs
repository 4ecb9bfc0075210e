//! A Jinja chat template, rendered as in `transformers`.

use std::sync::Arc;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, ErrorKind, Value};

use crate::{Error, Result};

/// Limit on the steps of a template (minijinja's fuel; each 64 bytes of output also cost one). About one second of work, and 100
/// times the steps of a long conversation.
const FUEL: u64 = 5_000_000;

/// A chat template, parsed once.
#[derive(Clone)]
pub(crate) struct ChatTemplate {
    pub(crate) source: String,
    /// The parsed template, or the error of the parser. A model with an unsupported template can still be used for plain text.
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

/// The Jinja environment of `transformers`, with the template under the name "chat".
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

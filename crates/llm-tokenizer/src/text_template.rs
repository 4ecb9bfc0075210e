//! Texts with variables, in the language of chat templates.

use std::collections::BTreeSet;
use std::sync::Arc;

use chrono::Local;
use serde_json::{Map, Value as Json};

use crate::jinja::{Problem, TEMPLATE, Template, Value, string};
use crate::{Error, Result};

/// A text with variables (`Translate {{ text }}`), in the language of chat templates: Jinja as in transformers.
///
/// ```
/// use llm_tokenizer::TextTemplate;
///
/// let template = TextTemplate::new("{% if polite %}Please translate{% else %}Translate{% endif %}: {{ text }}")?;
/// assert_eq!(template.names().iter().collect::<Vec<_>>(), ["polite", "text"]);
/// let variables = serde_json::json!({"polite": true, "text": "the cat"});
/// assert_eq!(template.render(variables.as_object().unwrap())?, "Please translate: the cat");
/// assert!(template.render(&serde_json::Map::new()).is_err(), "a variable is missing");
/// # Ok::<(), llm_tokenizer::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct TextTemplate {
    template: Arc<Template>,
    names: BTreeSet<String>,
}

impl TextTemplate {
    /// Parses a template.
    pub fn new(source: &str) -> Result<Self> {
        let template = Template::parse(source).map_err(wrong)?;
        let names = template.free_names();
        Ok(Self { template: Arc::new(template), names })
    }

    /// The variables that the template reads and does not set itself.
    pub fn names(&self) -> &BTreeSet<String> {
        &self.names
    }

    /// The text with these variables. An error if one of [`Self::names`] is missing, or if the template raises one.
    pub fn render(&self, variables: &Map<String, Json>) -> Result<String> {
        if let Some(name) = self.names.iter().find(|name| !variables.contains_key(*name)) {
            return Err(Error::TextTemplate { cause: format!("the variable \"{name}\" is not set") });
        }
        let size = variables.values().map(|value| value.to_string().len()).sum();
        let values = variables.iter().map(|(name, value)| Ok((name.clone(), Value::from_json(value, TEMPLATE)?)));
        let values = values.collect::<std::result::Result<_, Problem>>().map_err(wrong)?;
        Ok(string(&self.template.render(values, size, Local::now().naive_local()).map_err(wrong)?))
    }
}

fn wrong(problem: Problem) -> Error {
    Error::TextTemplate { cause: problem.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(source: &str) -> Vec<String> {
        TextTemplate::new(source).unwrap().names().iter().cloned().collect()
    }

    #[test]
    fn the_variables_are_those_that_the_template_does_not_set() {
        assert_eq!(
            names("{{ a.b[c] | default(d) }} {% if e is defined %}{{ range(3) }}{% endif %}"),
            ["a", "c", "d", "e"]
        );
        assert_eq!(
            names("{% for x, y in z if w %}{{ loop.index }}{{ x ~ y }}{% else %}{{ v }}{% endfor %}"),
            ["v", "w", "z"]
        );
        assert_eq!(names("{% set n = namespace(i=k) %}{% set n.i = 2 %}{{ n.i }}"), ["k"]);
        assert_eq!(names("{% macro m(p, q=r) %}{{ p }}{{ q }}{% endmacro %}{{ m(s, q=t) }}"), ["r", "s", "t"]);
        assert_eq!(
            names("{{ a if b else c }} {{ [d, {'x': e}] }} {{ f[g:h] }} {{ not i and -j < k }}").concat(),
            "abcdefghijk"
        );
        assert_eq!(names("{{ 'plain' }} text"), Vec::<String>::new());
    }

    #[test]
    fn errors_name_the_template() {
        let error = TextTemplate::new("a\n{{ b").unwrap_err();
        assert!(error.to_string().starts_with("template: ") && error.is_callers_fault(), "{error}");
        let error = TextTemplate::new("{{ b }}").unwrap().render(&Map::new()).unwrap_err();
        assert_eq!(error.to_string(), "template: the variable \"b\" is not set");
    }
}

//! Prompt files: TOML with Jinja texts.

use std::path::Path;

use llm_cli::Failure;
use llm_tokenizer::TextTemplate;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::reasoning::Think;
use super::shots::Shot;
use crate::failure::io_failure;

/// The variable with the text of the user.
const INPUT: &str = "input";

/// The keys of a prompt file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Keys {
    /// The text of the message, with variables.
    prompt: String,
    /// The text of the system message, with variables.
    system: Option<String>,
    /// A plain text to continue, without the chat template.
    #[serde(default)]
    pub(super) raw: bool,
    pub(super) think: Option<Think>,
    /// The regular expression of the answer.
    pub(super) answer: Option<String>,
    #[serde(default)]
    pub(super) shots: Vec<Shot>,
    pub(super) shot_template: Option<String>,
    /// Defaults of the variables.
    #[serde(default)]
    variables: Map<String, Value>,
    #[serde(default)]
    pub(super) sampling: Map<String, Value>,
}

/// A prompt file with values for its variables.
#[derive(Debug)]
pub(super) struct PromptFile {
    /// The file, for messages.
    pub(super) name: String,
    pub(super) settings: Keys,
    prompt: TextTemplate,
    system: Option<TextTemplate>,
    variables: Map<String, Value>,
}

impl PromptFile {
    /// Reads and checks a file. An error if a value of `given` is for an unknown variable, or a variable has no value.
    pub(super) fn read(path: &Path, given: &[(String, String)]) -> Result<Self, Failure> {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|e| io_failure(&name, &e))?;
        let wrong = |message: String| Failure::input(format!("{name}: {message}"));
        let settings: Keys = toml::from_str(&text).map_err(|e| wrong(e.to_string()))?;
        let template =
            |key: &str, source: &str| TextTemplate::new(source).map_err(|e| wrong(format!("\"{key}\": {e}")));
        let prompt = template("prompt", &settings.prompt)?;
        let system = settings.system.as_deref().map(|source| template("system", source)).transpose()?;
        if system.as_ref().is_some_and(|system| system.names().contains(INPUT)) {
            return Err(wrong(format!("\"system\" has the variable \"{INPUT}\", which only \"prompt\" can have")));
        }
        let used = || prompt.names().iter().chain(system.iter().flat_map(TextTemplate::names));
        let mut variables = settings.variables.clone();
        for (key, value) in given {
            if key == INPUT || !(variables.contains_key(key) || used().any(|name| name == key)) {
                let mut known: Vec<&String> = used().chain(variables.keys()).filter(|name| *name != INPUT).collect();
                known.sort_unstable();
                known.dedup();
                let known = known.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(", ");
                return Err(wrong(format!("--var {key}: there is no such variable; it must be one of: {known}")));
            }
            // A value has the type of its default.
            let value = match variables.get(key) {
                Some(Value::Number(_) | Value::Bool(_)) => serde_json::from_str(value)
                    .map_err(|_| wrong(format!("--var {key} is {value:?}; it must be like {}", variables[key])))?,
                _ => Value::from(value.as_str()),
            };
            variables.insert(key.clone(), value);
        }
        if let Some(missing) = used().find(|name| *name != INPUT && !variables.contains_key(*name)) {
            return Err(wrong(format!("the variable \"{missing}\" has no value; add --var {missing}=VALUE")));
        }
        Ok(Self { name, settings, prompt, system, variables })
    }

    /// Whether the prompt has the text of the user.
    pub(super) fn needs_input(&self) -> bool {
        self.prompt.names().contains(INPUT)
    }

    /// The system message.
    pub(super) fn system(&self) -> Result<Option<String>, Failure> {
        self.system.as_ref().map(|system| self.render(system, &self.variables)).transpose()
    }

    /// The prompt for a text of the user.
    pub(super) fn prompt(&self, input: &str) -> Result<String, Failure> {
        let mut variables = self.variables.clone();
        variables.insert(INPUT.to_owned(), input.into());
        self.render(&self.prompt, &variables)
    }

    fn render(&self, template: &TextTemplate, variables: &Map<String, Value>) -> Result<String, Failure> {
        template.render(variables).map_err(|e| Failure::input(format!("{}: {e}", self.name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, given: &[(&str, &str)]) -> Result<PromptFile, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.toml");
        std::fs::write(&path, text).unwrap();
        let given: Vec<_> = given.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        PromptFile::read(&path, &given).map_err(|failure| failure.to_string())
    }

    const FILE: &str = r#"
        system = "Answer in {{ language }}."
        prompt = "{% if n > 1 %}{{ n }} words{% else %}One word{% endif %}: {{ input }}"
        think = "hidden"
        [variables]
        n = 3
        [sampling]
        temperature = 0
    "#;

    #[test]
    fn a_prompt_file_has_texts_with_variables() {
        let file = read(FILE, &[("language", "French")]).unwrap();
        assert_eq!(file.system().unwrap().as_deref(), Some("Answer in French."));
        assert_eq!(file.prompt("the {{ n }}").unwrap(), "3 words: the {{ n }}", "the text of the user is no template");
        assert!(file.needs_input() && file.settings.think == Some(Think::Hidden));
        let file = read(FILE, &[("language", "French"), ("n", "1")]).unwrap();
        assert_eq!(file.prompt("x").unwrap(), "One word: x");
    }

    #[test]
    fn a_wrong_variable_or_key_is_an_error() {
        for (text, given, expected) in [
            (FILE, &[][..], "the variable \"language\" has no value; add --var language=VALUE"),
            (FILE, &[("lang", "x")], "--var lang: there is no such variable; it must be one of: language, n"),
            (FILE, &[("input", "x")], "--var input: there is no such variable"),
            (FILE, &[("n", "many")], "--var n is \"many\"; it must be like 3"),
            ("prompt = \"{{ a\"", &[], "\"prompt\": template: "),
            ("prompt = \"a\"\nsytem = \"b\"", &[], "unknown field `sytem`"),
            ("system = \"a\"", &[], "missing field `prompt`"),
            ("prompt = \"a\"\nsystem = \"{{ input }}\"", &[], "which only \"prompt\" can have"),
        ] {
            let error = read(text, given).unwrap_err();
            assert!(error.contains("p.toml: ") && error.contains(expected), "{error}");
        }
    }
}

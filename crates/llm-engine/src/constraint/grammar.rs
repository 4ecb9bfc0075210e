//! The grammar of a constraint, after checks that bound what the compiler gets.

use llguidance::JsonCompileOptions;
use llguidance::api::TopLevelGrammar;
use serde_json::{Value, json};

use super::problem;
use crate::{Constraint, Result};

/// Limits of the constraints of callers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConstraintLimits {
    /// Maximum number of bytes of a regular expression, of a grammar, of all strings of a choice, of a schema as JSON.
    pub bytes: usize,
    /// Maximum depth of a schema, and of the brackets of a regular expression or a grammar.
    pub depth: usize,
    /// Number of compiled constraints that are kept.
    pub cached: usize,
}

impl Default for ConstraintLimits {
    fn default() -> Self {
        Self { bytes: 1 << 18, depth: 64, cached: 64 }
    }
}

/// White space between the parts of JSON: bounded, because a model can go on with blanks for ever.
const WHITE_SPACE: &str = r"[\x20\x0A\x0D\x09]{1,20}";

impl ConstraintLimits {
    /// Checks size and depth.
    pub fn check(&self, constraint: &Constraint) -> Result<()> {
        let (bytes, depth) = match constraint {
            Constraint::JsonObject => return Ok(()),
            Constraint::JsonSchema(schema) => self.measure(schema, 1),
            Constraint::Regex(text) | Constraint::Grammar(text) => (text.len(), bracket_depth(text)),
            Constraint::Choice(texts) => (texts.iter().map(String::len).sum(), 1),
        };
        if depth > self.depth {
            return Err(problem(format!("it is nested more than {} levels deep; use fewer levels", self.depth)));
        }
        if bytes > self.bytes {
            return Err(problem(format!("it has more than {} bytes; use a shorter one", self.bytes)));
        }
        Ok(())
    }

    /// About the bytes of a schema as JSON and its depth, up to the limit: a deeper part is not visited.
    fn measure(&self, value: &Value, depth: usize) -> (usize, usize) {
        let parts: Vec<(usize, &Value)> = match value {
            Value::Array(items) => items.iter().map(|item| (1, item)).collect(),
            Value::Object(fields) => fields.iter().map(|(key, field)| (key.len() + 4, field)).collect(),
            Value::String(text) => return (text.len() + 2, depth),
            _ => return (4, depth),
        };
        let mut total = (2, depth);
        for (bytes, part) in parts {
            let (more, deepest) = if depth > self.depth { (0, depth) } else { self.measure(part, depth + 1) };
            total = (total.0 + bytes + more, total.1.max(deepest));
        }
        total
    }
}

/// The deepest nesting of brackets. Brackets in strings and classes count too, which errs on the safe side.
fn bracket_depth(text: &str) -> usize {
    let (mut depth, mut deepest) = (0usize, 0);
    for byte in text.bytes() {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

/// The grammar of a checked constraint.
pub fn of(constraint: &Constraint) -> Result<TopLevelGrammar> {
    match constraint {
        Constraint::JsonObject => json_schema(&json!({"type": "object"})),
        Constraint::JsonSchema(schema) => json_schema(schema),
        Constraint::Regex(pattern) => Ok(TopLevelGrammar::from_regex(pattern)),
        Constraint::Choice(texts) if texts.is_empty() => {
            Err(problem("choice: the list is empty; give at least one string"))
        }
        Constraint::Choice(texts) if texts.iter().all(String::is_empty) => {
            Err(problem("choice: all strings are empty; give one with text"))
        }
        Constraint::Choice(texts) => {
            let texts: Vec<String> = texts.iter().map(|text| Value::from(text.as_str()).to_string()).collect();
            Ok(TopLevelGrammar::from_lark(format!("start: {}", texts.join(" | "))))
        }
        Constraint::Grammar(text) if text.trim().is_empty() => Err(problem("the grammar is empty")),
        Constraint::Grammar(text) => Ok(TopLevelGrammar::from_lark(text.clone())),
    }
}

fn json_schema(schema: &Value) -> Result<TopLevelGrammar> {
    let mut schema = match schema {
        Value::Bool(true) => json!({}),
        Value::Object(_) => schema.clone(),
        _ => return Err(problem("a JSON schema must be an object or true")),
    };
    if schema.get("x-guidance").is_some() {
        return Err(problem("keywords that are not supported: [\"x-guidance\"]"));
    }
    refuse_ambiguous(&schema)?;
    bound_formats(&mut schema);
    let options =
        JsonCompileOptions { whitespace_pattern: Some(WHITE_SPACE.to_owned()), ..JsonCompileOptions::default() };
    options.apply_to(&mut schema);
    Ok(TopLevelGrammar::from_json_schema(schema))
}

/// Refuses what the compiler would read in another way than the specification: references below another `$id`.
fn refuse_ambiguous(schema: &Value) -> Result<()> {
    let has = |key: &str| contains_key(schema, key, true);
    if has("$ref") && contains_key(schema, "$id", false) {
        return Err(problem("\"$ref\" together with \"$id\" of a part is not supported; use \"#/$defs/NAME\" only"));
    }
    Ok(())
}

/// Adds the maximum lengths of formats (RFC 5321, 4.5.3.1: 64 bytes before the `@`; RFC 1035, 2.3.4: 253 of a host name), which the
/// expressions of the compiler do not have.
fn bound_formats(schema: &mut Value) {
    match schema {
        Value::Array(items) => items.iter_mut().for_each(bound_formats),
        Value::Object(fields) => {
            let longest = match fields.get("format").and_then(Value::as_str) {
                Some("email") => Some(64),
                Some("hostname") => Some(253),
                _ => None,
            };
            let known = fields.get("maxLength").and_then(Value::as_u64).unwrap_or(u64::MAX);
            if let Some(longest) = longest {
                fields.insert("maxLength".to_owned(), known.min(longest).into());
            }
            let is_data = |key: &str| matches!(key, "const" | "enum" | "default" | "examples");
            fields.iter_mut().filter(|(key, _)| !is_data(key)).for_each(|(_, field)| bound_formats(field));
        }
        _ => {}
    }
}

/// Whether an object of the value has this key; `root`: the outermost object counts.
fn contains_key(value: &Value, key: &str, root: bool) -> bool {
    match value {
        Value::Array(items) => items.iter().any(|item| contains_key(item, key, true)),
        Value::Object(fields) => {
            root && fields.contains_key(key) || fields.values().any(|field| contains_key(field, key, true))
        }
        _ => false,
    }
}

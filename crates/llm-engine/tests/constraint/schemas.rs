//! A thousand schemas: valid outputs, or a refusal that says why.

use std::collections::BTreeMap;
use std::path::Path;

use llm_engine::{Constraint, Engine, FinishReason, SubmitError};
use serde_json::Value;

use crate::random::{Random, schema};
use crate::{engine, receive, submit, tokenizer};

/// What came of the schemas.
#[derive(Debug, Default)]
struct Outcome {
    valid: usize,
    cut: usize,
    /// With a number that the validator, which computes in f64, does not know exactly.
    large: usize,
    refused: BTreeMap<String, usize>,
    invalid: Vec<String>,
}

impl Outcome {
    fn refusals(&self) -> usize {
        self.refused.values().sum()
    }
}

fn run(engine: &Engine, schemas: &[Value]) -> Outcome {
    const AT_ONCE: usize = 32;
    let mut outcome = Outcome::default();
    for (number, schemas) in schemas.chunks(AT_ONCE).enumerate() {
        let mut running = Vec::new();
        for (at, schema) in schemas.iter().enumerate() {
            let seed = (number * AT_ONCE + at) as u64;
            match submit(engine, Constraint::JsonSchema(schema.clone()), seed, 300) {
                Ok(generation) => running.push((schema, generation)),
                Err(SubmitError::Invalid(error)) => {
                    let error = error.to_string();
                    assert!(error.starts_with("constraint: ") && !error.contains("panic"), "{error}");
                    let cause = error.split(['[', '(', '"', '/', '\'']).next().unwrap_or_default().to_owned();
                    *outcome.refused.entry(cause).or_default() += 1;
                }
                Err(error) => panic!("{error:?}"),
            }
        }
        for (schema, generation) in running {
            let (text, end) = receive(generation);
            let validator = jsonschema::options().should_validate_formats(true).build(schema);
            match (end, serde_json::from_str::<Value>(&text), validator) {
                (FinishReason::Length, ..) => outcome.cut += 1,
                _ if has_large_number(&text) => outcome.large += 1,
                (_, Ok(value), Ok(validator)) if validator.is_valid(&value) => outcome.valid += 1,
                (_, value, validator) => {
                    let value = value.map(|_| ()).map_err(|error| error.to_string());
                    let cause = validator.err().map(|error| error.to_string());
                    outcome.invalid.push(format!("{schema}\n  wrote {text}\n  {value:?} {cause:?}"));
                }
            }
        }
    }
    outcome
}

/// Whether there are 16 digits or more in a row, or an exponent of three.
fn has_large_number(text: &str) -> bool {
    let digits = text.split(|c: char| !c.is_ascii_digit()).any(|digits| digits.len() > 15);
    let exponents = text.split(['e', 'E']).skip(1).map(|rest| rest.trim_start_matches(['+', '-', '0']));
    digits || exponents.map(|rest| rest.bytes().take_while(u8::is_ascii_digit).count()).any(|count| count > 2)
}

#[test]
fn a_thousand_random_schemas_are_obeyed_or_refused() {
    let engine = engine(tokenizer());
    let mut random = Random(5);
    let schemas: Vec<Value> = (0..1000).map(|_| schema(&mut random)).collect();
    let outcome = run(&engine, &schemas);
    println!("{} valid, {} cut, {} large, refused {:?}", outcome.valid, outcome.cut, outcome.large, outcome.refused);
    assert!(outcome.invalid.is_empty(), "{} invalid:\n{}", outcome.invalid.len(), outcome.invalid.join("\n"));
    // The test is worth something only if most schemas are written to the end.
    assert!(outcome.valid > 500 && outcome.large < 50 && outcome.refusals() > 20, "{outcome:?}");
}

#[test]
fn the_schemas_of_the_test_suite_are_obeyed_or_refused() {
    let Some(folder) = std::env::var_os("JSON_SCHEMA_TEST_SUITE") else {
        eprintln!("skipped: JSON_SCHEMA_TEST_SUITE is not set");
        return;
    };
    let mut schemas = Vec::new();
    let mut folders = vec![Path::new(&folder).to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "json") {
                let groups: Vec<Value> = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
                schemas.extend(groups.into_iter().map(|group| group["schema"].clone()));
            }
        }
    }
    assert!(schemas.len() > 300, "{} schemas", schemas.len());
    let outcome = run(&engine(tokenizer()), &schemas);
    let Outcome { valid, cut, large, refused, .. } = &outcome;
    println!("{} schemas: {valid} valid, {cut} cut, {large} large, refused {refused:?}", schemas.len());
    assert!(outcome.invalid.is_empty(), "{} invalid:\n{}", outcome.invalid.len(), outcome.invalid.join("\n"));
    assert!(outcome.valid > 100);
}

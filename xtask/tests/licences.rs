//! Every dependency has a licence that `deny.toml` allows. cargo-deny checks more, but is not installed everywhere.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// Whether an SPDX expression without nested brackets is met: one alternative whose parts are all allowed.
fn is_allowed(expression: &str, allowed: &[String]) -> bool {
    let known = |licence: &str| allowed.iter().any(|allowed| allowed == licence.trim());
    let all_of = |part: &str| part.split(" AND ").all(known);
    match expression.split_once(") AND ") {
        Some((alternatives, rest)) => is_allowed(alternatives.trim_start_matches('('), allowed) && all_of(rest),
        None => expression.replace('/', " OR ").split(" OR ").any(all_of),
    }
}

#[test]
fn every_dependency_has_an_allowed_licence() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let deny: toml::Table = std::fs::read_to_string(root.join("deny.toml")).unwrap().parse().unwrap();
    let allowed: Vec<String> = deny["licenses"]["allow"].clone().try_into().unwrap();
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let output = Command::new(cargo).args(["metadata", "--format-version=1", "--locked"]).current_dir(&root).output();
    let metadata: Value = serde_json::from_slice(&output.unwrap().stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    assert!(packages.len() > 100, "{} packages", packages.len());
    for package in packages {
        let licence = package["license"].as_str().unwrap_or("none");
        assert!(
            is_allowed(licence, &allowed),
            "{}: the licence is {licence}; deny.toml allows {allowed:?}",
            package["name"]
        );
    }
}

#[test]
fn an_expression_is_met_by_one_allowed_alternative() {
    let allowed = ["MIT".to_owned(), "Zlib".to_owned()];
    for (expression, expected) in [
        ("MIT", true),
        ("GPL-3.0 OR MIT", true),
        ("Unlicense/MIT", true),
        ("(MIT OR Apache-2.0) AND Zlib", true),
        ("MIT AND Zlib", true),
        ("GPL-3.0", false),
        ("MIT AND GPL-3.0", false),
        ("(GPL-3.0 OR Apache-2.0) AND Zlib", false),
        ("(MIT OR Apache-2.0) AND Unicode-3.0", false),
    ] {
        assert_eq!(is_allowed(expression, &allowed), expected, "{expression}");
    }
}

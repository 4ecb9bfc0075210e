//! The crate graph is the one that `docs/architecture.md` describes, libraries do not depend on what belongs to programs, and source
//! files are short.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Crates of programs: they have a command line parser, progress bars and an allocator.
const PROGRAMS: [&str; 4] = ["llm-cli", "llm-infer", "llm-serve", "xtask"];
const OF_PROGRAMS: [&str; 6] = ["axum", "clap", "ctrlc", "indicatif", "libmimalloc-sys", "mimalloc"];

fn cargo(arguments: &[&str]) -> String {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let output = Command::new(cargo).args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
    assert!(output.status.success(), "cargo {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The layer of each crate, from the table of the page: the first two cells of its rows.
fn layers() -> BTreeMap<String, u32> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/architecture.md");
    let page = std::fs::read_to_string(page).unwrap();
    let row = |line: &str| {
        let mut cells = line.strip_prefix('|')?.split('|').map(str::trim);
        let layer = cells.next()?.parse().ok()?;
        let name = cells.next()?.split('`').nth(1)?;
        Some((name.to_owned(), layer))
    };
    page.lines().filter_map(row).collect()
}

/// Each crate of the workspace with the crates of the workspace that it depends on, without those of its tests.
fn graph() -> BTreeMap<String, Vec<String>> {
    let metadata: Value = serde_json::from_str(&cargo(&["metadata", "--no-deps", "--format-version=1"])).unwrap();
    let name = |package: &Value| package["name"].as_str().unwrap().to_owned();
    let dependencies = |package: &Value| {
        let all = package["dependencies"].as_array().unwrap().iter();
        all.filter(|d| d["kind"].is_null() && d["path"].is_string()).map(name).collect()
    };
    metadata["packages"].as_array().unwrap().iter().map(|p| (name(p), dependencies(p))).collect()
}

#[test]
fn every_crate_depends_only_on_crates_of_lower_layers() {
    let (layers, graph) = (layers(), graph());
    for (name, dependencies) in graph.iter().filter(|(name, _)| *name != "xtask") {
        let layer = layers.get(name).unwrap_or_else(|| panic!("docs/architecture.md has no row for {name}"));
        for dependency in dependencies {
            let below = layers[dependency];
            assert!(below < *layer, "{name} (layer {layer}) depends on {dependency} (layer {below})");
        }
    }
    for name in layers.keys() {
        assert!(graph.contains_key(name), "docs/architecture.md has a row for {name}, which does not exist");
    }
}

#[test]
fn libraries_do_not_depend_on_crates_for_programs() {
    for name in graph().keys().filter(|name| !PROGRAMS.contains(&name.as_str())) {
        let tree = cargo(&["tree", "-p", name, "--no-default-features", "-e", "normal", "--prefix", "none"]);
        let found = tree.lines().find(|line| OF_PROGRAMS.contains(&line.split(' ').next().unwrap_or_default()));
        assert_eq!(found, None, "{name}");
    }
}

/// The Rust files in a folder and its subfolders, with the number of their lines.
fn lines(folder: &Path, found: &mut Vec<(PathBuf, usize)>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("target") {
            lines(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let count = std::fs::read_to_string(&path).unwrap().lines().count();
            found.push((path, count));
        }
    }
}

#[test]
fn source_files_have_at_most_400_lines() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut found = Vec::new();
    ["crates", "xtask", "fuzz"].iter().for_each(|folder| lines(&root.join(folder), &mut found));
    assert!(found.len() > 300, "{} files", found.len());
    found.retain(|(_, count)| *count > 400);
    assert_eq!(found, [], "docs/style.md: split these files");
}

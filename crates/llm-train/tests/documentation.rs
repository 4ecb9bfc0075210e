//! The programs accept all commands in the README and the documentation.

use std::path::Path;

use clap::Parser;

/// The commands in the `sh` blocks of a page, with continued lines joined.
fn commands(page: &str) -> Vec<String> {
    let mut lines = Vec::new();
    for block in page.split("```sh\n").skip(1) {
        let block = block.split("```").next().unwrap_or_default().replace("\\\n", " ");
        lines.extend(block.lines().map(str::to_owned));
    }
    lines
}

#[test]
fn the_documented_commands_are_accepted() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut pages = vec![root.join("README.md")];
    for folder in ["docs", "docs/how-to"] {
        pages.extend(std::fs::read_dir(root.join(folder)).unwrap().map(|entry| entry.unwrap().path()));
    }
    let mut accepted = 0;
    for page in pages.iter().filter(|page| page.extension().is_some_and(|e| e == "md")) {
        for command in commands(&std::fs::read_to_string(page).unwrap()) {
            let Some((program, arguments)) =
                command.strip_prefix("cargo run --release -p ").and_then(|rest| rest.split_once(" -- "))
            else {
                continue;
            };
            let arguments = shlex::split(arguments).unwrap_or_else(|| panic!("{command}: unbalanced quotes"));
            let words = std::iter::once(program.to_owned()).chain(arguments.into_iter().filter(|w| w != "--help"));
            let error = match program {
                "llm-train" if command.contains("COMMAND") => None,
                "llm-train" => llm_train::cli::Arguments::try_parse_from(words).err(),
                "llm-infer" => llm_infer::cli::Arguments::try_parse_from(words).err(),
                "llm-eval --example exact_answer" => None,
                _ => panic!("{command}: no such program"),
            };
            assert!(error.is_none(), "{}: {command}\n{}", page.display(), error.unwrap());
            accepted += 1;
        }
    }
    assert!(accepted > 10, "only {accepted} commands were found");
}

/// `a/{b,c}.rs` as `a/b.rs` and `a/c.rs`.
fn alternatives(path: &str) -> Vec<String> {
    let parts = path.split_once('{').and_then(|(start, rest)| Some((start, rest.split_once('}')?)));
    match parts {
        Some((start, (names, end))) => names.split(',').map(|name| format!("{start}{name}{end}")).collect(),
        None => vec![path.to_owned()],
    }
}

/// The table "where" of a page names files and folders: from the root, from `crates/`, or, after another path of the same row, from
/// the sources of that crate or from that folder.
#[test]
fn the_files_in_the_tables_of_places_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut found = 0;
    for page in ["docs/architecture.md", "CONTRIBUTING.md"] {
        let text = std::fs::read_to_string(root.join(page)).unwrap();
        let table = text.split("| what | where |").nth(1).unwrap().split("\n\n").next().unwrap();
        for row in table.lines() {
            let mut bases = vec![root.clone(), root.join("crates")];
            let code = row.split('`').skip(1).step_by(2);
            let is_path = |word: &&str| (word.contains(".rs") || word.contains('/')) && !word.contains([' ', '*']);
            for path in code.filter(is_path).flat_map(alternatives).filter(|path| !path.contains("NAME")) {
                let place = bases.iter().map(|base| base.join(&path)).find(|place| place.exists());
                let place = place.unwrap_or_else(|| panic!("{page}: {path} does not exist: {row}"));
                let sources = place.ancestors().find(|folder| folder.ends_with("src"));
                let folder = if place.is_dir() { place.clone() } else { place.parent().unwrap().to_owned() };
                bases.extend(sources.map(Path::to_owned).into_iter().chain([folder]));
                found += 1;
            }
        }
    }
    assert!(found > 60, "only {found} paths were found");
}

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
    pages.extend(std::fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path()));
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
                _ => panic!("{command}: no such program"),
            };
            assert!(error.is_none(), "{}: {command}\n{}", page.display(), error.unwrap());
            accepted += 1;
        }
    }
    assert!(accepted > 10, "only {accepted} commands were found");
}

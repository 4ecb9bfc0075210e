//! `cargo xtask dependent-check`: builds and runs a project outside of this workspace that depends on its libraries, with the lines
//! that `README.md` tells their users to write. The program is `examples/chat.rs` of `llm-engine`, the example to copy.

use std::path::Path;
use std::process::Command;

const README: &str = include_str!("../../README.md");
const PROGRAM: &str = include_str!("../../crates/llm-engine/examples/chat.rs");
/// The crates that the program uses.
const CRATES: [&str; 3] = ["llm-engine", "llm-model", "llm-tokenizer"];

/// Runs the check with a debug build. Its build files are in `target/dependent`.
pub fn check() -> Result<(), String> {
    let folder = tempfile::tempdir().map_err(|error| format!("temporary folder: {error}"))?;
    write_project(folder.path()).map_err(|error| format!("{}: {error}", folder.path().display()))?;
    eprintln!("xtask: dependent-check (cargo run, in a project of its own)");
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/dependent");
    let output = cargo(folder.path(), &["run"]).env("CARGO_TARGET_DIR", target).output();
    let output = output.map_err(|error| format!("cargo: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    eprint!("{}{text}", String::from_utf8_lossy(&output.stderr));
    match output.status.success() && text.contains("new tokens]") {
        true => Ok(()),
        false => Err("dependent-check failed; see the output above".to_owned()),
    }
}

fn cargo(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned()));
    command.args(arguments).current_dir(folder);
    command
}

/// The lines of `README.md` for the `Cargo.toml` of a user of the libraries.
fn profile_lines() -> &'static str {
    let blocks = README.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next());
    blocks.into_iter().find(|block| block.contains("[profile.")).unwrap_or_default()
}

/// Writes the project. It has the versions of the dependencies of this workspace.
fn write_project(folder: &Path) -> std::io::Result<()> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize()?;
    let dependency =
        |name: &str| format!("{name} = {{ path = \"{}\" }}\n", workspace.join("crates").join(name).display());
    let dependencies: String = CRATES.into_iter().map(dependency).collect();
    let package = "[package]\nname = \"dependent\"\nversion = \"0.1.0\"\nedition = \"2024\"\n";
    let manifest = format!("{package}\n[dependencies]\n{dependencies}\n{}", profile_lines());
    std::fs::write(folder.join("Cargo.toml"), manifest)?;
    std::fs::copy(workspace.join("Cargo.lock"), folder.join("Cargo.lock"))?;
    std::fs::create_dir(folder.join("src"))?;
    std::fs::write(folder.join("src/main.rs"), PROGRAM)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nothing is built: cargo accepts the manifest, and finds the libraries with all of their dependencies.
    #[test]
    fn the_libraries_can_be_dependencies_of_a_project_outside_of_the_workspace() {
        assert!(profile_lines().contains("opt-level = 3"), "README.md");
        let folder = tempfile::tempdir().unwrap();
        write_project(folder.path()).unwrap();
        let output = cargo(folder.path(), &["metadata", "--offline", "--format-version=1"]).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() && errors.contains("--offline") {
            return eprintln!("skipped: a dependency is not on this machine, and the test does not use the network");
        }
        assert!(output.status.success() && !errors.contains("warning"), "{errors}");
        let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let names: Vec<&str> =
            metadata["packages"].as_array().unwrap().iter().filter_map(|p| p["name"].as_str()).collect();
        assert!(CRATES.iter().chain(&["dependent", "candle-core"]).all(|name| names.contains(name)), "{names:?}");
    }
}

//! Roles by name: system messages, built in or from a file of the user.

use std::collections::BTreeMap;
use std::path::Path;

use llm_cli::Failure;

use crate::failure::io_failure;

/// The built-in roles.
const BUILT_IN: &str = include_str!("roles.toml");

/// The system message of a role, from `file` if that has it.
pub(super) fn role(name: &str, file: Option<&Path>) -> Result<String, Failure> {
    let mut roles = parse(BUILT_IN, "roles")?;
    if let Some(path) = file {
        let text = std::fs::read_to_string(path).map_err(|e| io_failure(path.display(), &e))?;
        roles.extend(parse(&text, &path.display().to_string())?);
    }
    let names = || roles.keys().cloned().collect::<Vec<_>>().join(", ");
    roles.get(name).cloned().ok_or_else(|| {
        Failure::input(format!("--role is {name:?}; it must be one of {}; --roles FILE adds others", names()))
    })
}

fn parse(text: &str, origin: &str) -> Result<BTreeMap<String, String>, Failure> {
    toml::from_str(text).map_err(|e| {
        Failure::input(format!("{origin}: not a list of roles ({}); write NAME = \"system message\"", e.message()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_is_built_in_or_from_a_file_which_wins() {
        assert!(role("teacher", None).unwrap().contains("teacher"));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("roles.toml");
        std::fs::write(&path, "teacher = \"Be strict.\"\npirate = \"Arr.\"\n").unwrap();
        assert_eq!(role("teacher", Some(&path)).unwrap(), "Be strict.");
        assert_eq!(role("pirate", Some(&path)).unwrap(), "Arr.");
        let error = role("pirat", None).unwrap_err().to_string();
        assert!(error.contains("assistant, editor, expert") && error.contains("--roles"), "{error}");
        std::fs::write(&path, "pirate = 3\n").unwrap();
        assert!(role("pirate", Some(&path)).unwrap_err().to_string().contains("NAME = \"system message\""));
    }
}

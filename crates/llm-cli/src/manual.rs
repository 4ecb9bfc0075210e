//! Shell completions and manual pages, generated from the definition of the command line.

use std::path::Path;

use clap::Command;
use clap_complete::Shell;

/// The completion script of a program for a shell.
pub fn completions(mut command: Command, shell: Shell) -> String {
    let (name, mut script) = (command.get_name().to_owned(), Vec::new());
    clap_complete::generate(shell, &mut command, name, &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

/// Writes a manual page for the program and one for each of its commands into a folder; returns a message for the user.
pub fn write_man_pages(command: Command, dir: &Path) -> std::io::Result<String> {
    std::fs::create_dir_all(dir)?;
    clap_mangen::generate_to(command, dir)?;
    Ok(format!("{}: manual pages written; read one with `man {0}/NAME.1`\n", dir.display()))
}

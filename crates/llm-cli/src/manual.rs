//! Shell completions and manual pages, generated from the definition of the command line.

use std::path::Path;

use clap::Command;
use clap_complete::Shell;

use crate::{Failure, print};

/// Prints the completion script of a program for a shell on standard output.
pub fn print_completions(mut command: Command, shell: Shell) -> Result<(), Failure> {
    let (name, mut script) = (command.get_name().to_owned(), Vec::new());
    clap_complete::generate(shell, &mut command, name, &mut script);
    print(&String::from_utf8_lossy(&script))
}

/// Writes a manual page for the program and one for each of its commands into a folder.
pub fn write_man_pages(command: Command, dir: &Path) -> Result<(), Failure> {
    let written = std::fs::create_dir_all(dir).and_then(|()| clap_mangen::generate_to(command, dir));
    written.map_err(|e| Failure::input(format!("{}: {e}", dir.display())))?;
    print(&format!("{}: man pages written; read one with `man {0}/NAME.1`\n", dir.display()))
}

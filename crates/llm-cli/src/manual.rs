//! The commands `completions` and `man` of both programs: shell completions and manual pages, generated from the command line.

use std::path::{Path, PathBuf};

use clap::{CommandFactory, Subcommand};
use clap_complete::Shell;

use crate::Failure;
use crate::arguments::command;

/// Commands that describe the command line of a program.
#[derive(Debug, Subcommand)]
pub enum ShellCommand {
    /// Print a completion script for a shell
    #[command(after_help = "Example, for bash: put its output into ~/.local/share/bash-completion/completions/PROGRAM")]
    Completions {
        /// Shell that will load the script
        shell: Shell,
    },
    /// Write manual pages, one for each command
    #[command(after_help = "Example: write them to man/, then read one with `man man/PROGRAM.1`")]
    Man {
        /// Output folder
        #[arg(long, default_value = "man", value_name = "DIR")]
        out: PathBuf,
    },
}

impl ShellCommand {
    /// Runs the command for the program with the arguments `A`.
    pub fn run<A: CommandFactory>(&self) -> Result<(), Failure> {
        let mut command = command::<A>();
        match self {
            Self::Completions { shell } => {
                let (name, mut script) = (command.get_name().to_owned(), Vec::new());
                clap_complete::generate(*shell, &mut command, name, &mut script);
                crate::print(&String::from_utf8_lossy(&script))
            }
            Self::Man { out } => match write_pages(command, out) {
                Ok(()) => {
                    crate::print(&format!("{}: manual pages written; read one with `man {0}/NAME.1`\n", out.display()))
                }
                Err(error) => Err(Failure::internal(format!("{}: {error}", out.display()))),
            },
        }
    }
}

fn write_pages(command: clap::Command, dir: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(dir)?;
    clap_mangen::generate_to(command, dir)
}

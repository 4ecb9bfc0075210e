//! Command line arguments, with errors of one line.

use std::ffi::OsString;

use clap::builder::StyledStr;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, Command, CommandFactory, Parser};

/// Parses the arguments of the program. Prints help or the version if they are asked for and exits with code 0; prints an error
/// as one line on standard error and exits with code 2.
pub fn parse_arguments<A: Parser>() -> A {
    parse_from(std::env::args_os()).unwrap_or_else(|stop| match stop {
        Stop::Shown(text) => text.exit(),
        Stop::Error(message) => {
            eprintln!("{message}");
            std::process::exit(2)
        }
    })
}

/// Why there are no arguments.
#[derive(Debug)]
enum Stop {
    /// Help or the version, which clap prints.
    Shown(clap::Error),
    /// One line.
    Error(String),
}

fn parse_from<A: Parser>(arguments: impl IntoIterator<Item = OsString>) -> Result<A, Stop> {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let mut command = command::<A>();
    let parsed = command
        .try_get_matches_from_mut(&arguments)
        .and_then(|mut matches| A::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut command)));
    parsed.map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Stop::Shown(error),
        _ => Stop::Error(one_line(&error, &arguments, &command)),
    })
}

/// The command line of a program. Required options are marked and come first in help. Options take values such as `-1`, so that
/// the error names the value and not an unknown option.
pub(crate) fn command<A: CommandFactory>() -> Command {
    prepared(A::command())
}

fn prepared(command: Command) -> Command {
    let mut at = 0;
    let command = command.mut_args(|argument| {
        at += 1;
        let argument = match argument.get_action().takes_values() {
            true => argument.allow_negative_numbers(true),
            false => argument,
        };
        match argument.is_required_set() {
            true => marked_as_required(argument).display_order(at),
            false => argument.display_order(100 + at), // `--help` has 999
        }
    });
    command.mut_subcommands(prepared)
}

fn marked_as_required(argument: Arg) -> Arg {
    match argument.get_help().map(StyledStr::to_string) {
        Some(help) => argument.help(format!("{help} [required]")),
        None => argument,
    }
}

/// `error: WHAT; did you mean 'X'?; see 'PROGRAM COMMAND --help'`.
fn one_line(error: &clap::Error, arguments: &[OsString], program: &Command) -> String {
    let text = error.render().to_string();
    let (path, command) = named_command(arguments, program);
    let what = match error.kind() {
        ErrorKind::MissingSubcommand | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let names: Vec<&str> = command.get_subcommands().map(Command::get_name).filter(|&n| n != "help").collect();
            format!("error: a command is missing; give one of {}", names.join(", "))
        }
        // The first paragraph says what is wrong; tips and the usage follow.
        _ => plain(&joined(text.split("\n\n").next().unwrap_or_default())),
    };
    let has_recipe = command.get_arguments().any(|argument| argument.get_long() == Some("set"));
    let tip = match suggestion(error) {
        Some(name) => format!("; did you mean '{name}'?"),
        None if error.kind() == ErrorKind::UnknownArgument && has_recipe => {
            "; set a key of the recipe with --set KEY=VALUE".to_owned()
        }
        None => String::new(),
    };
    format!("{what}{tip}; see '{path} --help'")
}

/// The command that the arguments name: its name with those of the commands above it.
fn named_command<'a>(arguments: &[OsString], program: &'a Command) -> (String, &'a Command) {
    let (mut path, mut command) = (program.get_name().to_owned(), program);
    for next in arguments.iter().skip(1) {
        if let Some(next) = command.find_subcommand(next) {
            path = format!("{path} {}", next.get_name());
            command = next;
        }
    }
    (path, command)
}

/// Of the known names that clap suggests for an unknown one, the nearest, if less than a third of its letters differ.
fn suggestion(error: &clap::Error) -> Option<String> {
    let names = |kind| match error.get(kind)? {
        ContextValue::String(name) => Some(vec![name.clone()]),
        ContextValue::Strings(names) => Some(names.clone()),
        ContextValue::StyledStr(name) => Some(vec![StyledStr::to_string(name)]),
        _ => None,
    };
    let pairs = [
        (ContextKind::InvalidArg, ContextKind::SuggestedArg),
        (ContextKind::InvalidSubcommand, ContextKind::SuggestedSubcommand),
        (ContextKind::InvalidValue, ContextKind::SuggestedValue),
    ];
    let (unknown, known) = pairs.into_iter().find_map(|(is, suggested)| Some((names(is)?, names(suggested)?)))?;
    let unknown = unknown.first()?.split('=').next()?;
    let distance = |name: &String| strsim::damerau_levenshtein(unknown, name);
    let nearest = known.into_iter().min_by_key(distance)?;
    (3 * distance(&nearest) < nearest.chars().count()).then_some(nearest)
}

/// The standard library's reasons why a text is not a number, in other words.
fn plain(message: &str) -> String {
    [
        ("invalid digit found in string", "it must be a whole number of at least 0"),
        ("cannot parse integer from empty string", "it must be a whole number of at least 0"),
        ("number too large to fit in target type", "it is too large"),
        ("invalid float literal", "it must be a number"),
    ]
    .iter()
    .fold(message.to_owned(), |message, (from, to)| message.replace(from, to))
}

fn joined(text: &str) -> String {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use clap::{Args, Subcommand};

    use super::*;

    /// Trains.
    #[derive(Debug, Parser)]
    #[command(name = "prog", version)]
    struct Arguments {
        /// Threads
        #[arg(long, global = true)]
        threads: Option<usize>,
        #[command(subcommand)]
        command: Commands,
    }

    #[derive(Debug, Subcommand)]
    enum Commands {
        /// A tokenizer
        #[command(subcommand)]
        Tokenizer(Tokenizer),
        /// Text
        Generate(Generate),
        /// Shards
        Prepare,
        /// A text that is similar to others
        Prefer,
        /// Alignment
        Ppo,
    }

    #[derive(Debug, Subcommand)]
    enum Tokenizer {
        /// Trains one
        Train(Train),
    }

    #[derive(Debug, Args)]
    struct Train {
        #[arg(long, required = true, num_args = 1..)]
        input: Vec<String>,
        #[arg(long)]
        out: String,
        #[arg(long, default_value_t = 7)]
        vocab_size: usize,
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=9))]
        seeds: u64,
        #[arg(long = "set", value_name = "KEY=VALUE", value_parser = crate::key_value)]
        set: Vec<(String, String)>,
    }

    #[derive(Debug, Args)]
    struct Generate {
        /// The temperature
        #[arg(long, default_value_t = 0.)]
        temperature: f64,
        /// The model
        #[arg(long)]
        model: String,
    }

    fn parsed(line: &str) -> Result<Arguments, Stop> {
        parse_from(line.split_whitespace().map(OsString::from))
    }

    fn message(line: &str) -> String {
        match parsed(line) {
            Err(Stop::Error(message)) => message,
            other => panic!("{line}: {other:?}"),
        }
    }

    const SEE: &str = "; see 'prog tokenizer train --help'";

    #[test]
    fn an_invalid_value_is_named_with_its_option() {
        let not_whole = "it must be a whole number of at least 0";
        for (option, value, reason) in [
            ("--vocab-size <VOCAB_SIZE>", "abc", not_whole),
            ("--vocab-size <VOCAB_SIZE>", "1.5", not_whole),
            ("--vocab-size <VOCAB_SIZE>", "99999999999999999999999", "it is too large"),
            ("--seeds <SEEDS>", "0", "0 is not in 1..=9"),
            ("--set <KEY=VALUE>", "steps", "expected KEY=VALUE"),
            ("--threads <THREADS>", "x", not_whole),
        ] {
            let name = option.split(' ').next().unwrap();
            let found = message(&format!("prog tokenizer train --input a --out b {name} {value}"));
            assert_eq!(found, format!("error: invalid value '{value}' for '{option}': {reason}{SEE}"));
        }
    }

    #[test]
    fn a_negative_number_is_a_value_and_not_an_unknown_option() {
        for (name, value) in [("--vocab-size", "-5"), ("--vocab-size=-5", ""), ("--seeds", "-1"), ("--threads", "-1")] {
            let found = message(&format!("prog tokenizer train --input a --out b {name} {value}"));
            assert!(found.starts_with("error: invalid value '-") && found.ends_with(SEE), "{found}");
        }
        let Commands::Generate(args) = parsed("prog generate --model m --temperature -1").unwrap().command else {
            panic!()
        };
        assert_eq!(args.temperature, -1.);
    }

    #[test]
    fn an_unknown_option_is_named_with_the_nearest_known_one() {
        assert_eq!(
            message("prog tokenizer train --input a --out b --vocab-siz 5"),
            format!("error: unexpected argument '--vocab-siz' found; did you mean '--vocab-size'?{SEE}")
        );
        assert_eq!(
            message("prog tokenizer train --input a --out b --zzz"),
            format!("error: unexpected argument '--zzz' found; set a key of the recipe with --set KEY=VALUE{SEE}")
        );
        assert_eq!(
            message("prog tokenisers"),
            "error: unrecognized subcommand 'tokenisers'; did you mean 'tokenizer'?; see 'prog --help'"
        );
        assert_eq!(
            message("prog prepaer"),
            "error: unrecognized subcommand 'prepaer'; did you mean 'prepare'?; see 'prog --help'"
        );
        // Another word of the same length is not a typing error.
        for other in ["operate", "dpo"] {
            assert_eq!(
                message(&format!("prog {other}")),
                format!("error: unrecognized subcommand '{other}'; see 'prog --help'")
            );
        }
    }

    #[test]
    fn all_missing_options_are_named() {
        let found = message("prog tokenizer train");
        let expected = "error: the following required arguments were not provided: --input <INPUT>... --out <OUT>";
        assert_eq!(found, format!("{expected}{SEE}"));
    }

    #[test]
    fn a_missing_command_names_the_commands() {
        assert_eq!(
            message("prog"),
            "error: a command is missing; give one of tokenizer, generate, prepare, prefer, ppo; see 'prog --help'"
        );
        let expected = "error: a command is missing; give one of train; see 'prog tokenizer --help'";
        assert_eq!(message("prog tokenizer"), expected);
        assert_eq!(message("prog tokenizer --threads 2"), expected);
    }

    #[test]
    fn help_and_version_are_shown_and_are_no_errors() {
        for (line, content) in [
            ("prog --help", "Usage: prog [OPTIONS] <COMMAND>"),
            ("prog tokenizer train --help", "Usage: prog tokenizer train [OPTIONS] --input <INPUT>... --out <OUT>"),
            ("prog help", "Commands:"),
            ("prog --version", "prog "),
        ] {
            let Err(Stop::Shown(shown)) = parsed(line) else { panic!("{line}") };
            assert!(shown.render().to_string().contains(content), "{line}: {}", shown.render());
            assert_eq!(shown.exit_code(), 0);
        }
    }

    #[test]
    fn required_options_are_marked_and_come_first_in_help() {
        let Err(Stop::Shown(shown)) = parsed("prog generate --help") else { panic!() };
        let text = shown.render().to_string();
        let line = |name: &str| text.lines().position(|line| line.contains(name)).unwrap();
        assert!(line("--model") < line("--temperature") && line("--temperature") < line("--help"), "{text}");
        assert!(text.contains("The model [required]"), "{text}");
    }
}

//! `cargo xtask prepare-data`: the steps from a set of the catalogue to token shards, from a recipe. A finished step is skipped.
//!
//! `steps.toml` in the output folder has the command of each step that was begun, and whether it is finished.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;
use llm_cli::Failure;
use serde::{Deserialize, Serialize};

use super::{FetchData, fetch_data};

/// The recipes that ship, by name.
const BUILT_IN: [(&str, &str); 4] = [
    ("tinyshakespeare", include_str!("../../data/tinyshakespeare.toml")),
    ("tinystories", include_str!("../../data/tinystories.toml")),
    ("wikitext-103", include_str!("../../data/wikitext-103.toml")),
    ("fineweb-edu", include_str!("../../data/fineweb-edu.toml")),
];
const STATE: &str = "steps.toml";

#[derive(Debug, Args)]
#[allow(clippy::doc_markdown, reason = "help texts have no backticks")]
#[command(
    after_help = "Examples:\n  cargo xtask prepare-data tinyshakespeare\n  cargo xtask prepare-data my-recipe.toml --out runs/my-data\n\n\
    LLM_TRAIN: path of the program llm-train [default: it is built by cargo in release mode]"
)]
pub(crate) struct PrepareData {
    /// A recipe: tinyshakespeare, tinystories, wikitext-103, fineweb-edu, or a TOML file
    #[arg(value_name = "NAME|RECIPE.toml")]
    recipe: String,
    /// Folder to write; an interrupted preparation in it goes on [default: data/prepared/NAME]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Folder of the data, as for fetch-data
    #[arg(long, value_name = "DIR", default_value = "data")]
    data: PathBuf,
    /// Fetch from a copy of the data folder, as for fetch-data
    #[arg(long, value_name = "URL|file://DIR")]
    mirror: Option<String>,
}

/// A recipe.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Recipe {
    /// The set of the catalogue to fetch; none: the steps name files of their own.
    set: Option<String>,
    steps: Vec<Step>,
}

/// A command of llm-train.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Step {
    /// The folder that it writes, in the output folder.
    out: String,
    /// Its words; `{data}` is the folder of the set, `{out}` the output folder.
    command: String,
}

/// What was done in an output folder.
#[derive(Debug, Default, Serialize, Deserialize)]
struct State {
    #[serde(default)]
    finished: Vec<Step>,
    /// The step that was begun last.
    begun: Option<Step>,
}

/// Runs the command.
pub(crate) fn prepare_data(args: &PrepareData) -> Result<(), Failure> {
    let (name, recipe) = read(&args.recipe)?;
    let out = args.out.clone().unwrap_or_else(|| args.data.join("prepared").join(&name));
    let data = args.data.join(recipe.set.as_deref().unwrap_or_default());
    let steps = recipe.steps.iter().map(|step| Ok((step.clone(), words(step, &data, &out)?)));
    let steps = steps.collect::<Result<Vec<_>, Failure>>()?;
    let mut state = State::read(&out)?;
    state.check(&recipe.steps, &out)?;
    let left = steps.iter().filter(|(step, _)| !state.has(step, &out)).count();
    if left > 0
        && let Some(set) = &recipe.set
    {
        fetch_data(&FetchData::one(set, &args.data, args.mirror.clone()))?;
    }
    for (step, words) in &steps {
        let folder = out.join(&step.out);
        if state.has(step, &out) {
            llm_cli::print(&format!("{}: finished before\n", folder.display()))?;
            continue;
        }
        state.begin(step, &out)?;
        run(words)?;
        if !folder.exists() {
            return Err(Failure::input(format!(
                "{name}: `{}` did not write {}; correct \"out\"",
                step.command,
                folder.display()
            )));
        }
        state.finish(&out)?;
    }
    llm_cli::print(&format!("{}: done\n", out.display()))
}

/// The name of a recipe, and its content.
fn read(name: &str) -> Result<(String, Recipe), Failure> {
    let built_in = BUILT_IN.iter().find(|(known, _)| *known == name).map(|(_, text)| (*text).to_owned());
    let text = match built_in {
        Some(text) => text,
        None => fs::read_to_string(name).map_err(|error| {
            let names: Vec<&str> = BUILT_IN.iter().map(|(name, _)| *name).collect();
            let (error, names) = (llm_files::error_text(&error), names.join(", "));
            Failure::input(format!("{name}: {error}; give a recipe file, or one of {names}"))
        })?,
    };
    let wrong = |message: String| Failure::input(format!("{name}: {message}"));
    let recipe: Recipe = toml::from_str(&text).map_err(|error| wrong(error.message().to_owned()))?;
    for (at, step) in recipe.steps.iter().enumerate() {
        let is_name = !step.out.is_empty() && !step.out.starts_with('.') && !step.out.contains(['/', '\\']);
        if !is_name || step.out == STATE {
            return Err(wrong(format!("steps[{at}]: \"out\" is {:?}; it must be the name of a folder", step.out)));
        }
        if recipe.steps[..at].iter().any(|earlier| earlier.out == step.out) {
            return Err(wrong(format!("steps[{at}]: \"out\" is {:?}, as of an earlier step", step.out)));
        }
        if !step.command.contains(&format!("{{out}}/{}", step.out)) {
            return Err(wrong(format!("steps[{at}]: \"command\" must write {{out}}/{}", step.out)));
        }
    }
    let stem = Path::new(name).file_stem().unwrap_or_default().to_string_lossy().into_owned();
    Ok((stem, recipe))
}

/// The arguments of a step.
fn words(step: &Step, data: &Path, out: &Path) -> Result<Vec<String>, Failure> {
    let words = shlex::split(&step.command);
    let words = words.ok_or_else(|| Failure::input(format!("`{}`: a quote is not closed", step.command)))?;
    let (data, out) = (data.display().to_string(), out.display().to_string());
    Ok(words.into_iter().map(|word| word.replace("{data}", &data).replace("{out}", &out)).collect())
}

/// Runs llm-train.
fn run(words: &[String]) -> Result<(), Failure> {
    let mut command = match std::env::var_os("LLM_TRAIN") {
        Some(program) => Command::new(program),
        None => {
            let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
            cargo.args(["run", "--release", "--quiet", "--package", "llm-train", "--"]);
            cargo
        }
    };
    let shown = shlex::try_join(words.iter().map(String::as_str)).unwrap_or_else(|_| words.join(" "));
    llm_cli::print(&format!("llm-train {shown}\n"))?;
    let status = command.args(words).status();
    let status = status.map_err(|error| Failure::internal(format!("llm-train: {}", llm_files::error_text(&error))))?;
    match status.success() {
        true => Ok(()),
        false => Err(Failure::internal(format!(
            "`llm-train {shown}` has failed ({status}); the next call goes on with this step"
        ))),
    }
}

impl State {
    fn read(out: &Path) -> Result<Self, Failure> {
        let path = out.join(STATE);
        match fs::read_to_string(&path) {
            Ok(text) => toml::from_str(&text).map_err(|error| Failure::input(format!("{}: {error}", path.display()))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(Failure::internal(format!("{}: {}", path.display(), llm_files::error_text(&error)))),
        }
    }

    fn write(&self, out: &Path) -> Result<(), Failure> {
        let failed = |error: String| Failure::internal(format!("{}: {error}", out.join(STATE).display()));
        let text = toml::to_string(self).map_err(|error| failed(error.to_string()))?;
        let write = llm_files::write_atomic(out.join(STATE), |file| file.write_all(text.as_bytes()));
        write.map_err(|error| failed(llm_files::error_text(&error)))
    }

    /// An error if the recipe differs from what was done, or if a folder of a step is not ours.
    fn check(&self, steps: &[Step], out: &Path) -> Result<(), Failure> {
        // A step that runs makes what follows it stale.
        let first = steps.iter().position(|step| !self.has(step, out)).unwrap_or(steps.len());
        for (at, step) in steps.iter().enumerate().skip(first) {
            let folder = out.join(&step.out);
            let half_done = at == first && self.begun.as_ref() == Some(step);
            if folder.exists() && !half_done {
                let folder = folder.display();
                return Err(Failure::input(format!(
                    "{folder}: is of another recipe, or of a step before it that runs anew; delete it, or choose another --out"
                )));
            }
        }
        Ok(())
    }

    fn has(&self, step: &Step, out: &Path) -> bool {
        self.finished.contains(step) && out.join(&step.out).exists()
    }

    /// Records the start of a step and deletes what an interrupted start of it has left.
    fn begin(&mut self, step: &Step, out: &Path) -> Result<(), Failure> {
        let folder = out.join(&step.out);
        if self.begun.as_ref() == Some(step) && folder.exists() {
            let removed = if folder.is_dir() { fs::remove_dir_all(&folder) } else { fs::remove_file(&folder) };
            removed.map_err(|error| Failure::internal(format!("{}: {error}", folder.display())))?;
        }
        self.finished.retain(|finished| finished.out != step.out);
        self.begun = Some(step.clone());
        self.write(out)
    }

    fn finish(&mut self, out: &Path) -> Result<(), Failure> {
        self.finished.extend(self.begun.take());
        self.write(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_recipes_are_valid() {
        let catalogue = super::super::catalogue::Catalogue::read().unwrap();
        for (name, _) in BUILT_IN {
            let (stem, recipe) = read(name).unwrap();
            assert_eq!((stem.as_str(), recipe.set.as_deref()), (name, Some(name)));
            assert!(catalogue.find(name).is_ok() && recipe.steps.len() > 1);
            for step in &recipe.steps {
                let words = words(step, Path::new("data/x"), Path::new("my out")).unwrap();
                assert!(words.contains(&format!("my out/{}", step.out)), "{words:?}");
            }
        }
    }

    #[test]
    fn a_step_that_writes_elsewhere_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.toml");
        for (steps, part) in [
            ("[[steps]]\nout = \"../a\"\ncommand = \"prepare --out {out}/../a\"", "the name of a folder"),
            ("[[steps]]\nout = \"a\"\ncommand = \"prepare --out b\"", "must write {out}/a"),
            ("[[steps]]\nout = \"a\"\nrun = \"prepare\"", "unknown field"),
        ] {
            fs::write(&path, steps).unwrap();
            let failure = format!("{:?}", read(path.to_str().unwrap()).unwrap_err());
            assert!(failure.contains(part), "{failure}");
        }
    }
}

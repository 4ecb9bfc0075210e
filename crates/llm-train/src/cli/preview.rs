//! The command `preview`, and the options of the stages that read rows.

use std::io::IsTerminal;
use std::path::PathBuf;

use clap::Args;
use llm_cli::{HubOption, key_value};

use crate::recipes::FinetuneRecipe;
use crate::{Error, read_recipe};

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  llm-train preview --model runs/base --data chats.jsonl --html preview.html")]
pub(super) struct Preview {
    /// Folder of the model, or org/name on the Hugging Face hub; only its tokenizer and config.json are read
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// Data files or folders, as for `finetune`; may be repeated
    #[arg(long, required = true, num_args = 1.., value_name = "PATH")]
    data: Vec<PathBuf>,
    /// HTML page to write; must not exist
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Rows of each file to show
    #[arg(long, default_value_t = 20, value_name = "N")]
    rows: usize,
    /// Recipe of fine-tuning: a TOML file, or a name that `llm-train recipe` lists
    #[arg(long, default_value = "finetune", value_name = "NAME|FILE")]
    recipe: String,
    /// Override a key of the recipe, such as `max_length=1024`; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = key_value)]
    set: Vec<(String, String)>,
    #[command(flatten)]
    strict: Rows,
    #[command(flatten)]
    pub hub: HubOption,
}

/// Options of the stages that read rows of data.
#[derive(Debug, Args)]
pub(super) struct Rows {
    /// Refuse data with a row that cannot be read [default: leave the row out, with a warning]; the same as `--set data.strict=true`
    #[arg(long)]
    pub strict: bool,
}

impl Rows {
    /// The option as an override of the recipe.
    pub fn set(&self) -> Option<(String, String)> {
        self.strict.then(|| ("data.strict".to_owned(), "true".to_owned()))
    }
}

/// Prints a preview of data, and writes it as HTML.
pub(super) fn preview(args: &Preview) -> Result<String, Error> {
    let mut set = args.set.clone();
    set.extend(args.strict.set());
    let recipe: FinetuneRecipe = read_recipe(&args.recipe, &set)?;
    let preview = crate::preview::preview(&recipe, &args.model, &args.data, args.rows)?;
    let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let mut text = preview.text(std::io::stdout().is_terminal() && !no_colour);
    if let Some(path) = &args.html {
        preview.write_html(path)?;
        text += &format!("\nPage: {}\n", path.display());
    }
    Ok(text)
}

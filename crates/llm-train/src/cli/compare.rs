//! The command `compare`.

use candle_core::Device;
use clap::Args;
use llm_cli::{DeviceOption, HubOption, key_value};

use super::preview::Rows;
use crate::compare::{CompareInputs, CompareRecipe, compare};
use crate::{Error, Recipe, read_recipe};

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  llm-train compare --model runs/chat --model runs/aligned --data prompts.jsonl --reward runs/reward\n  \
                  llm-train compare --model runs/chat --model runs/aligned --data prompts.jsonl --feedback votes.sqlite"
)]
pub(super) struct Compare {
    #[command(flatten)]
    pub inputs: CompareInputs,
    /// Recipe: a TOML file, or a name that `llm-train recipe` lists [default: compare]
    #[arg(long, value_name = "NAME|FILE")]
    recipe: Option<String>,
    /// Override a key of the recipe, such as `temperature=1`; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = key_value)]
    set: Vec<(String, String)>,
    #[command(flatten)]
    rows: Rows,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    pub device: DeviceOption,
    #[command(flatten)]
    pub hub: HubOption,
}

/// Compares two models; returns the result to print.
pub(super) fn run(args: &Compare, device: &Device) -> Result<String, Error> {
    let mut set = args.set.clone();
    set.extend(args.rows.set());
    let recipe: CompareRecipe = read_recipe(args.recipe.as_deref().unwrap_or(CompareRecipe::STAGE), &set)?;
    let result = compare(&recipe, &args.inputs, device)?;
    match args.json {
        true => {
            serde_json::to_string(&result).map(|json| json + "\n").map_err(|e| Error::Internal(format!("compare: {e}")))
        }
        false => Ok(result.to_string()),
    }
}

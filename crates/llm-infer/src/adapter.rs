//! The option `--adapter`.

use std::path::Path;

use llm_cli::Failure;
use llm_model::Model;

use crate::failure::input;

/// Loads and activates the adapter of a folder, if one is given.
pub(crate) fn with_adapter(mut model: Model, adapter: Option<&Path>) -> Result<Model, Failure> {
    if let Some(dir) = adapter {
        model.load_adapter(ADAPTER, dir).map_err(input)?;
        model.use_adapter(Some(ADAPTER)).map_err(input)?;
    }
    Ok(model)
}

const ADAPTER: &str = "default";

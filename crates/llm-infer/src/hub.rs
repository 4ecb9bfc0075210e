//! Names on the Hugging Face hub in the options of the commands.

use llm_cli::Failure;
use llm_hub::Wanted;

use crate::args::Command;
use crate::generation_args::GenerationArgs;

impl Command {
    /// Replaces names on the hub by folders in its cache.
    pub(crate) fn resolve_names(&mut self) -> Result<(), Failure> {
        match self {
            Self::Generate(args) => args.generation.resolve_names(),
            Self::Chat(args) => args.generation.resolve_names(),
            Self::Temperature(args) => args.generation.resolve_names(),
            Self::Serve(args) => {
                args.hub.resolve(&mut args.model, Wanted::Model)?;
                args.draft.as_mut().map_or(Ok(()), |draft| args.hub.resolve(draft, Wanted::Model))
            }
            Self::Convert(args) => args.hub.resolve(&mut args.model, Wanted::Model),
            Self::Merge(args) => {
                args.hub.resolve(&mut args.model, Wanted::Model)?;
                args.hub.resolve(&mut args.adapter, Wanted::Adapter)
            }
            Self::Logits(args) => {
                args.hub.resolve(&mut args.model, Wanted::Model)?;
                args.adapter.as_mut().map_or(Ok(()), |adapter| args.hub.resolve(adapter, Wanted::Adapter))
            }
            Self::Attention(args) => {
                args.hub.resolve(&mut args.model, Wanted::Model)?;
                args.adapter.as_mut().map_or(Ok(()), |adapter| args.hub.resolve(adapter, Wanted::Adapter))
            }
            Self::Bench(args) => args.model.as_mut().map_or(Ok(()), |model| args.hub.resolve(model, Wanted::Model)),
            Self::Shell(_) => Ok(()),
        }
    }
}

impl GenerationArgs {
    fn resolve_names(&mut self) -> Result<(), Failure> {
        self.hub.resolve(&mut self.model, Wanted::Model)?;
        self.adapter.as_mut().map_or(Ok(()), |adapter| self.hub.resolve(adapter, Wanted::Adapter))
    }
}

//! What all requests share.

use llm_engine::{Engine, Generation, ModelInfo, Pooling, Request};
use tokio::sync::watch;

use crate::error::{ApiError, Result};
use crate::limits::Limits;
use crate::metrics::Metrics;
use crate::options::ServeOptions;
use crate::vocabulary::Vocabulary;
use crate::work::Work;

/// The engine and what the server knows of its model.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) engine: Engine,
    pub(crate) info: ModelInfo,
    pub(crate) options: ServeOptions,
    pub(crate) vocabulary: Vocabulary,
    pub(crate) metrics: Metrics,
    pub(crate) work: Work,
    /// When the server started, in seconds since 1970.
    pub(crate) created: u64,
    pub(crate) fingerprint: String,
    /// The template of the model writes `<think>`.
    pub(crate) thinks: bool,
    /// The template of the model writes calls as `<tool_call>…</tool_call>`.
    pub(crate) tool_tags: bool,
    /// How the hidden states of a text become its embedding.
    pub(crate) pooling: Pooling,
    /// The server listens for this machine only.
    pub(crate) loopback: bool,
    /// False once the server shuts down.
    pub(crate) ready: watch::Receiver<bool>,
}

/// A model that a request asks for.
#[derive(Debug, Clone)]
pub(crate) struct Selected {
    pub(crate) name: String,
    pub(crate) adapter: Option<String>,
}

impl App {
    pub(crate) fn new(engine: Engine, options: ServeOptions, loopback: bool, ready: watch::Receiver<bool>) -> Self {
        let tokenizer = engine.tokenizer();
        let template = tokenizer.config().get("chat_template").map(ToString::to_string).unwrap_or_default();
        Self {
            info: engine.model_info(),
            vocabulary: Vocabulary::new(tokenizer),
            metrics: Metrics::new(engine.clone()),
            work: Work::new(options.max_pending),
            created: crate::ids::now(),
            fingerprint: format!("llm-{}-{}", env!("CARGO_PKG_VERSION"), tokenizer.fingerprint()),
            thinks: template.contains("<think>"),
            tool_tags: template.contains("<tool_call>"),
            // A causal model has seen the whole text at its last token.
            pooling: Pooling::Last,
            loopback,
            ready,
            options,
            engine,
        }
    }

    /// The limits of connections and bodies.
    pub(crate) fn limits(&self) -> Limits {
        Limits::from(&self.options)
    }

    /// The model of this name; without a name the base model.
    pub(crate) fn select(&self, name: Option<&str>) -> Result<Selected> {
        let base = &self.options.name;
        match name {
            None => Ok(Selected { name: base.clone(), adapter: None }),
            Some(name) if name == base => Ok(Selected { name: base.clone(), adapter: None }),
            Some(name) if self.info.adapters.iter().any(|adapter| adapter == name) => {
                Ok(Selected { name: name.to_owned(), adapter: Some(name.to_owned()) })
            }
            Some(name) => {
                let known: Vec<&str> = std::iter::once(base).chain(&self.info.adapters).map(String::as_str).collect();
                let message = format!("there is no model {name:?}; the models are {}", known.join(", "));
                let error = ApiError::new(axum::http::StatusCode::NOT_FOUND, message).with_param("model");
                Err(error.with_code("model_not_found"))
            }
        }
    }

    /// Submits a request to the engine.
    pub(crate) fn submit(&self, request: Request) -> Result<Generation> {
        self.metrics.observe_prompt(request.prompt.len());
        self.engine.submit(request).map_err(ApiError::from)
    }
}

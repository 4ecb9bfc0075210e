//! `/tokenize`, `/detokenize`, `/tokenizer_info` and `/apply-template`.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;

use super::json;
use crate::app::App;
use crate::body::read;
use crate::error::{ApiError, Result};
use crate::prepare::chat::{Prompt, conversation, encode};
use crate::wire::json::parse;
use crate::wire::text::{DetokenizeRequest, DetokenizeResponse, TemplateResponse, TokenizeRequest, TokenizeResponse};

/// The token ids of a text or a conversation. Unlike in requests for answers, the text of special tokens becomes these tokens.
#[utoipa::path(post, path = "/tokenize", request_body = TokenizeRequest,
    responses((status = 200, description = "Token ids", body = TokenizeResponse)))]
pub(super) async fn tokenize(State(app): State<Arc<App>>, headers: HeaderMap, body: Body) -> Result<Response> {
    let body = read(&headers, body, app.limits()).await?;
    let shared = Arc::clone(&app);
    json(&app.work.run(move || tokens(&shared, parse(&body)?)).await?)
}

fn tokens(app: &App, request: TokenizeRequest) -> Result<TokenizeResponse> {
    let with_texts = request.return_token_strs.unwrap_or(false);
    let tokenizer = app.engine.tokenizer();
    let text = request.prompt.as_ref().or(request.content.as_ref());
    let tokens = match (text, request.messages.is_some()) {
        (Some(text), false) => {
            let add_special = request.add_special_tokens.unwrap_or(request.prompt.is_some());
            let bos = tokenizer.bos_id().filter(|_| add_special && tokenizer.adds_bos());
            let ids = tokenizer.encode_with_special(text).map_err(|error| ApiError::of(error, "prompt"))?;
            bos.into_iter().chain(ids).collect()
        }
        (None, true) => template(app, request)?.0,
        _ => return Err(ApiError::invalid("prompt", "give either \"prompt\" or \"messages\"")),
    };
    let texts = with_texts.then(|| tokens.iter().map(|id| app.vocabulary.text(*id)).collect());
    Ok(TokenizeResponse { count: tokens.len(), max_model_len: app.info.context_length, tokens, token_strs: texts })
}

/// The ids and the text of the conversation of a request.
fn template(app: &App, request: TokenizeRequest) -> Result<(Vec<u32>, String)> {
    let (tools, variables) = (request.tools.unwrap_or_default(), request.chat_template_kwargs);
    let open = request.continue_final_message.unwrap_or(false);
    let prompt = Prompt {
        conversation: conversation(request.messages.unwrap_or_default(), tools, variables)?,
        generation_prompt: request.add_generation_prompt.unwrap_or(!open),
        open,
    };
    encode(app, &prompt)
}

/// The text of token ids, with special tokens.
#[utoipa::path(post, path = "/detokenize", request_body = DetokenizeRequest,
    responses((status = 200, description = "The text", body = DetokenizeResponse)))]
pub(super) async fn detokenize(State(app): State<Arc<App>>, headers: HeaderMap, body: Body) -> Result<Response> {
    let body = read(&headers, body, app.limits()).await?;
    let shared = Arc::clone(&app);
    let text = app.work.run(move || {
        let request: DetokenizeRequest = parse(&body)?;
        let size = shared.info.vocab_size;
        match request.tokens.iter().find(|id| **id as usize >= size) {
            Some(id) => {
                Err(ApiError::invalid("tokens", format!("{id} is not a token id; it must be less than {size}")))
            }
            None => shared.vocabulary.decode(shared.engine.tokenizer(), &request.tokens),
        }
    });
    let text = text.await?;
    json(&DetokenizeResponse { content: text.clone(), prompt: text })
}

/// The settings of the tokenizer, as in `tokenizer_config.json`.
#[utoipa::path(get, path = "/tokenizer_info", responses((status = 200, description = "The settings", body = Object)))]
pub(super) async fn tokenizer_info(State(app): State<Arc<App>>) -> Result<Response> {
    let mut config = app.engine.tokenizer().config().clone();
    for (_, value) in config.iter_mut().filter(|(key, _)| key.ends_with("_token")) {
        // Older files write a token as an object.
        if let Some(text) = value.get("content").cloned() {
            *value = text;
        }
    }
    json(&config)
}

/// A conversation as the model sees it.
#[utoipa::path(post, path = "/apply-template", request_body = TokenizeRequest,
    responses((status = 200, description = "The text and its token ids", body = TemplateResponse)))]
pub(super) async fn apply_template(State(app): State<Arc<App>>, headers: HeaderMap, body: Body) -> Result<Response> {
    let body = read(&headers, body, app.limits()).await?;
    let shared = Arc::clone(&app);
    let (tokens, prompt) = app.work.run(move || template(&shared, parse(&body)?)).await?;
    json(&TemplateResponse { count: tokens.len(), prompt, tokens })
}

//! `/openapi.json`.

use std::sync::OnceLock;

use axum::response::Response;
use serde_json::{Value, json};
use utoipa::OpenApi;

use super::{answers, embeddings, json as response, state, texts};
use crate::error::{ApiError, Result};
use crate::wire::sampling::SamplingFields;

/// The API of the server.
#[derive(OpenApi)]
#[openapi(
    paths(
        answers::chat,
        answers::completions,
        embeddings::embeddings,
        embeddings::score,
        embeddings::rerank,
        state::health,
        state::ready,
        state::metrics,
        state::models,
        state::model,
        texts::tokenize,
        texts::detokenize,
        texts::tokenizer_info,
        texts::apply_template
    ),
    components(schemas(SamplingFields))
)]
struct Api;

/// The description of the API.
pub(super) async fn description() -> Result<Response> {
    static DESCRIPTION: OnceLock<Value> = OnceLock::new();
    if let Some(description) = DESCRIPTION.get() {
        return response(description);
    }
    let description = describe().map_err(ApiError::internal)?;
    response(DESCRIPTION.get_or_init(|| description))
}

fn describe() -> serde_json::Result<Value> {
    let mut api = serde_json::to_value(Api::openapi())?;
    let schemas = &mut api["components"]["schemas"];
    // Sampling is part of both requests.
    let sampling = schemas["SamplingFields"]["properties"].clone();
    for request in ["ChatRequest", "CompletionRequest"] {
        if let (Value::Object(keys), Value::Object(more)) = (&mut schemas[request]["properties"], &sampling) {
            keys.extend(more.clone());
        }
    }
    if let Value::Object(schemas) = schemas {
        schemas.remove("SamplingFields");
    }
    let nullable = json!({"type": ["string", "null"]});
    schemas["Error"] = json!({
        "type": "object",
        "required": ["error"],
        "properties": {"error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {"message": {"type": "string"}, "type": {"type": "string"}, "param": nullable, "code": nullable},
        }},
    });
    let error = |description: &str| {
        let schema = json!({"$ref": "#/components/schemas/Error"});
        json!({"description": description, "content": {"application/json": {"schema": schema}}})
    };
    let errors = [
        ("400", "The request is wrong"),
        ("401", "The API key is missing or wrong"),
        ("403", "The host or the page is not accepted"),
        ("404", "There is no such model or path"),
        ("405", "The path has another method"),
        ("408", "The body took too long"),
        ("413", "The body is too large"),
        ("429", "The server is busy; Retry-After says when to try again"),
        ("500", "The server failed"),
        ("503", "The server shuts down"),
    ];
    if let Value::Object(paths) = &mut api["paths"] {
        for operation in paths.values_mut().filter_map(Value::as_object_mut).flat_map(|path| path.values_mut()) {
            for (status, description) in errors {
                operation["responses"][status] = error(description);
            }
        }
    }
    Ok(api)
}

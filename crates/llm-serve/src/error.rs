//! Errors of requests: an HTTP status and the error object of the OpenAI API.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use llm_engine::{Error, SubmitError};
use serde_json::json;

/// The key of a request for a setting of the engine.
fn key(setting: &'static str) -> &'static str {
    match setting {
        "banned_ids" => "banned_token_ids",
        "allowed_ids" => "allowed_token_ids",
        "stop_ids" => "stop_token_ids",
        "choices" => "n",
        name => name,
    }
}

/// An error that is sent to the client: `{"error": {"message", "type", "param", "code"}}`, always with all four keys.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    message: String,
    /// The key of the request that is wrong.
    param: Option<String>,
    /// A word for programs, such as `model_not_found`.
    code: Option<&'static str>,
    /// Seconds after which the client should try again.
    retry_after: Option<u64>,
}

/// The result of the functions of this crate that answer a request.
pub(crate) type Result<T> = std::result::Result<T, ApiError>;

impl ApiError {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), param: None, code: None, retry_after: None }
    }

    /// A request that cannot be answered; `param` is the key that is wrong.
    pub(crate) fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        let error = Self::new(StatusCode::BAD_REQUEST, message);
        Self { param: Some(param.into()).filter(|param| !param.is_empty()), ..error }
    }

    /// An error of this program or of the machine; the message does not leave the machine.
    pub(crate) fn internal(cause: impl std::fmt::Display) -> Self {
        tracing::error!("a request failed: {cause}");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "the server could not answer the request; its log says why")
    }

    /// A prompt that the model cannot take.
    pub(crate) fn too_long(param: &str, tokens: usize, context_length: usize) -> Self {
        let message = format!(
            "the prompt has {tokens} tokens; it must be shorter than the context length of {context_length} tokens; shorten \
             it or set \"truncate_prompt_tokens\""
        );
        Self::invalid(param, message).with_code("context_length_exceeded")
    }

    /// An error of the engine or the tokenizer; `param` is the key of the request that is wrong, if the caller can fix it.
    pub(crate) fn of(error: impl Into<Error>, param: &str) -> Self {
        let error = error.into();
        match &error {
            Error::ShutDown => Self::shutting_down(),
            Error::PromptTooLong { tokens, context_length } => Self::too_long(param, *tokens, *context_length),
            Error::InvalidOption { name, .. }
            | Error::TokenOutsideVocabulary { name, .. }
            | Error::EmptyText { name }
            | Error::InvalidRequest { field: name, .. } => Self::invalid(key(name), error.to_string()),
            Error::NoTokenAllowed => Self::invalid("allowed_token_ids", error.to_string()),
            Error::SamplerTwice { .. } => Self::invalid("samplers", error.to_string()),
            _ if error.is_callers_fault() => Self::invalid(param, error.to_string()),
            _ => Self::internal(error),
        }
    }

    /// Too many requests wait.
    pub(crate) fn busy(retry_after: std::time::Duration) -> Self {
        let seconds = (retry_after.as_secs_f64().ceil() as u64).max(1);
        let message = format!("the server is busy; try again in {seconds} s");
        let error = Self::new(StatusCode::TOO_MANY_REQUESTS, message).with_code("rate_limit_exceeded");
        Self { retry_after: Some(seconds), ..error }
    }

    /// The server ends.
    pub(crate) fn shutting_down() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "the server shuts down; use another one").with_code("shutting_down")
    }

    pub(crate) fn with_code(self, code: &'static str) -> Self {
        Self { code: Some(code), ..self }
    }

    pub(crate) fn with_param(self, param: &str) -> Self {
        Self { param: Some(param.to_owned()), ..self }
    }

    /// The word of `type`.
    fn kind(&self) -> &'static str {
        match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::FORBIDDEN => "permission_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        }
    }

    /// The error object.
    pub(crate) fn body(&self) -> serde_json::Value {
        json!({"error": {"message": self.message, "type": self.kind(), "param": self.param, "code": self.code}})
    }
}

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> Self {
        match error {
            SubmitError::Invalid(error) => Self::of(error, ""),
            SubmitError::Busy { retry_after } => Self::busy(retry_after),
            SubmitError::ShuttingDown => Self::shutting_down(),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, axum::Json(self.body())).into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

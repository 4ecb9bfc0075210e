//! The chat page: one embedded file.

use axum::http::header;
use axum::response::{IntoResponse, Response};

const PAGE: &str = include_str!("../../assets/chat.html");

/// The page. Its script and style have a new nonce each time, so that no other script can run in it.
pub(super) async fn page() -> Response {
    let nonce = format!("{:016x}{:016x}", crate::ids::random(), crate::ids::random());
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    let page = PAGE.replace("NONCE", &nonce);
    (headers, [(header::CONTENT_SECURITY_POLICY, policy)], page).into_response()
}

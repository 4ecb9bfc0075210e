//! What every request must pass: the name of the host, the origin, the API key.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use subtle::ConstantTimeEq;

use crate::app::App;
use crate::error::{ApiError, Result};

/// Paths that need no key: they show nothing of the model.
const OPEN: [&str; 3] = ["/", "/health", "/ready"];

/// Checks a request, and adds an id to its response.
pub(crate) async fn guard(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let response = match check(&app, request.uri(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    };
    let status = response.status();
    if status.is_client_error() || status.is_server_error() {
        app.metrics.reject(status);
    }
    let mut response = response;
    if let Ok(id) = HeaderValue::from_str(&crate::ids::id("req_")) {
        response.headers_mut().insert("x-request-id", id);
    }
    response
}

/// Checks the name of the host and the page that asks. `hosts` are accepted besides loopback names while the server listens for this
/// machine only (`loopback`).
pub(crate) fn check_host(loopback: bool, hosts: &[String], uri: &Uri, headers: &HeaderMap) -> Result<()> {
    let host = headers.get(header::HOST).map(|value| value.to_str().unwrap_or_default());
    let host = host.or_else(|| uri.authority().map(Authority::as_str));
    if loopback
        && let Some(host) = host
        && !is_local(host_name(host), hosts)
    {
        let message = format!(
            "the host {host:?} is not accepted, because the server listens for this machine only; add it with --allow-host"
        );
        return Err(ApiError::new(StatusCode::FORBIDDEN, message));
    }
    // A browser names the page that sends a request. Pages of other sites are refused, and no header lets them read answers (CORS).
    if let Some(origin) = headers.get(header::ORIGIN) {
        let origin = origin.to_str().unwrap_or_default();
        if origin.split_once("://").map(|(_, origin)| origin) != host {
            let message = format!("requests of the page {origin:?} are not accepted; use the page of this server");
            return Err(ApiError::new(StatusCode::FORBIDDEN, message));
        }
    }
    Ok(())
}

/// The key in `Authorization: Bearer KEY`.
pub(crate) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, key) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(key.trim())
}

fn check(app: &App, uri: &Uri, headers: &HeaderMap) -> Result<()> {
    check_host(app.loopback, &app.options.hosts, uri, headers)?;
    if app.options.api_keys.is_empty() || OPEN.contains(&uri.path()) {
        return Ok(());
    }
    let Some(given) = bearer(headers) else {
        let error =
            ApiError::new(StatusCode::UNAUTHORIZED, "the API key is missing; send \"Authorization: Bearer KEY\"");
        return Err(error.with_code("invalid_api_key"));
    };
    match is_key(given, &app.options.api_keys) {
        true => Ok(()),
        false => Err(ApiError::new(StatusCode::UNAUTHORIZED, "the API key is wrong").with_code("invalid_api_key")),
    }
}

/// Compares with every key, in a time that does not depend on where they differ.
fn is_key(given: &str, keys: &[String]) -> bool {
    keys.iter().fold(false, |found, key| found | bool::from(key.as_bytes().ct_eq(given.as_bytes())))
}

/// The name in `name:port`.
fn host_name(host: &str) -> &str {
    match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    }
}

fn is_local(name: &str, hosts: &[String]) -> bool {
    let is_loopback = name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    let is_name = |known: &str| name.eq_ignore_ascii_case(known);
    is_loopback || is_name("localhost") || hosts.iter().any(|host| is_name(host))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_names_are_local() {
        let hosts = ["box.lan".to_owned()];
        for host in ["localhost:80", "127.0.0.1:80", "127.0.0.9", "[::1]:80", "LOCALHOST", "Box.lan:1"] {
            assert!(is_local(host_name(host), &hosts), "{host}");
        }
        for host in ["evil.com:80", "localhost.evil.com", "10.0.0.1:80", "[::2]:80", ""] {
            assert!(!is_local(host_name(host), &hosts), "{host}");
        }
    }

    #[test]
    fn any_of_the_keys_opens() {
        let keys = ["abc".to_owned(), "defg".to_owned()];
        assert!(is_key("abc", &keys) && is_key("defg", &keys));
        assert!(!is_key("ab", &keys) && !is_key("", &keys) && !is_key("abcd", &keys));
    }
}

//! Requests over HTTP: redirects, statuses, and what the errors of a connection mean.

use std::time::{Duration, SystemTime};

use ureq::http::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONTENT_RANGE, ETAG, IF_RANGE, LINK, LOCATION, RANGE, RETRY_AFTER,
};
use ureq::http::{HeaderMap, Response, Uri};
use ureq::{Agent, Body};

use super::source::{Answer, Reply};
use super::{Download, Failed, Patience};
use crate::Error;

const MAX_REDIRECTS: usize = 10;
const MAX_PAGE_BYTES: u64 = 64 << 20;
const COMMIT: &str = "x-repo-commit";
const LINKED_ETAG: &str = "x-linked-etag";

/// Why a try failed, and what to do before the next one.
#[derive(Debug)]
pub(super) struct Again {
    pub reason: String,
    /// The wait that the server asks for.
    pub after: Option<Duration>,
    /// Whether there is no connection to the server at all.
    pub no_connection: bool,
}

impl Again {
    pub fn after_a_wait(reason: String) -> Self {
        Self { reason, after: None, no_connection: false }
    }
}

/// A page of the hub's interface.
pub(crate) struct Page {
    pub text: String,
    /// URL of the next page.
    pub next: Option<String>,
}

/// The connections. Redirects are followed by [`get`], which leaves the token out for other servers.
pub(super) fn agent(patience: &Patience) -> Agent {
    Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .tls_config(super::tls::config())
        .timeout_connect(Some(patience.silence))
        .timeout_per_read(Some(patience.silence))
        .timeout_per_write(Some(patience.silence))
        .user_agent(concat!("llm-hub/", env!("CARGO_PKG_VERSION")))
        .build()
        .into()
}

/// Asks for the bytes of a file from `from` on.
pub(super) fn open(
    agent: &Agent,
    download: &Download,
    from: u64,
    etag: Option<&str>,
    patience: &Patience,
) -> Result<Reply, Failed> {
    let mut headers = Vec::new();
    if from > 0 {
        headers.push((RANGE.as_str(), format!("bytes={from}-")));
        headers.extend(etag.map(|etag| (IF_RANGE.as_str(), etag.to_owned())));
    }
    let got = get(agent, download.url, &headers, download.token, patience)?;
    let text = |name: &str| got.response.headers().get(name)?.to_str().ok().map(str::to_owned);
    let etag = text(ETAG.as_str());
    let range = text(CONTENT_RANGE.as_str());
    let (start, total) = match got.response.status().as_u16() {
        200 => (0, got.response.body().content_length()),
        206 => {
            let range = range.as_deref().and_then(content_range);
            let (start, total) = range.ok_or_else(|| answer(download.url, "206 without a valid Content-Range"))?;
            let length = got.response.body().content_length();
            (start, total.or_else(|| length.map(|length| start + length)))
        }
        416 if from > 0 => {
            let total = range.as_deref().and_then(|range| range.strip_prefix("bytes */")?.trim().parse().ok());
            return Ok(Reply::NothingLeft { total });
        }
        _ => return Err(refused(download.url, &got.response)),
    };
    let Got { response, commit, linked_sha256: sha256 } = got;
    let body = Box::new(response.into_body().into_reader());
    Ok(Reply::Body(Answer { start, total, etag, commit, sha256, body }))
}

/// Reads a page.
pub(super) fn page(agent: &Agent, url: &str, token: Option<&str>, patience: &Patience) -> Result<Page, Failed> {
    let mut response = get(agent, url, &[], token, patience)?.response;
    if response.status() != 200 {
        return Err(refused(url, &response));
    }
    let next = response.headers().get(LINK).and_then(|link| next_page(link.to_str().ok()?));
    match response.body_mut().with_config().limit(MAX_PAGE_BYTES).read_to_string() {
        Ok(text) => Ok(Page { text, next }),
        Err(error) => Err(connection_error(url, error, patience)),
    }
}

/// The final response, and what the hub said on the way to it.
struct Got {
    response: Response<Body>,
    commit: Option<String>,
    linked_sha256: Option<String>,
}

/// A request and its redirects. The token goes to the server of `url` only.
fn get(
    agent: &Agent,
    url: &str,
    headers: &[(&str, String)],
    token: Option<&str>,
    patience: &Patience,
) -> Result<Got, Failed> {
    let bad = |url: &str, message: &str| Error::Url { url: url.to_owned(), message: message.to_owned() };
    let first: Uri = url.parse().map_err(|_| bad(url, "is not a URL; it must be https://, http:// or file://"))?;
    if !["http", "https"].contains(&first.scheme_str().unwrap_or_default()) {
        return Err(bad(url, "must begin with https://, http:// or file://").into());
    }
    let (mut uri, mut commit, mut linked_sha256) = (first.clone(), None, None);
    for _ in 0..=MAX_REDIRECTS {
        // Compressed bytes have another length and checksum than the file.
        let mut request = agent.get(uri.clone()).header(ACCEPT_ENCODING, "identity");
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        let same_server = uri.scheme() == first.scheme() && uri.authority() == first.authority();
        if let Some(token) = token.filter(|_| same_server) {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        let response = request.call().map_err(|error| connection_error(url, error, patience))?;
        let text = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
        commit = commit.or_else(|| text(COMMIT).map(str::to_owned));
        linked_sha256 = linked_sha256.or_else(|| text(LINKED_ETAG).and_then(sha256_of));
        if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
            return Ok(Got { response, commit, linked_sha256 });
        }
        let location = text(LOCATION.as_str()).ok_or_else(|| answer(url, "redirect without a Location"))?;
        uri = join(&uri, location).ok_or_else(|| bad(location, &format!("is a wrong redirect of {url}")))?;
    }
    Err(answer(url, "more than 10 redirects").into())
}

fn answer(url: &str, message: &str) -> Error {
    Error::Answer { url: url.to_owned(), message: message.to_owned() }
}

/// The address that a redirect of `base` leads to.
fn join(base: &Uri, location: &str) -> Option<Uri> {
    let (scheme, authority) = (base.scheme_str()?, base.authority()?);
    let joined = match location {
        _ if location.contains("://") => location.to_owned(),
        _ if location.starts_with("//") => format!("{scheme}:{location}"),
        _ if location.starts_with('/') => format!("{scheme}://{authority}{location}"),
        _ => {
            let folder = base.path().rsplit_once('/').map_or("", |(folder, _)| folder);
            format!("{scheme}://{authority}{folder}/{location}")
        }
    };
    joined.parse().ok().filter(|uri: &Uri| matches!(uri.scheme_str(), Some("http" | "https")))
}

/// A status that is not a success.
fn refused(url: &str, response: &Response<Body>) -> Failed {
    let status = response.status().as_u16();
    if matches!(status, 408 | 429 | 500 | 502 | 503 | 504) {
        let reason = format!("the server answered {status}");
        let after = asked_wait(response.headers(), SystemTime::now());
        return Failed::Again(Again { reason, after, no_connection: false });
    }
    let advice = match status {
        401 | 403 => "set HF_TOKEN to a token with access, and accept the conditions on the page of the repository",
        404 | 410 => "check the name, the revision and the file; a private repository needs HF_TOKEN",
        _ => "check the address",
    };
    Error::Status { url: url.to_owned(), status, advice: advice.to_owned() }.into()
}

/// The wait that a server asks for: `Retry-After` in seconds or as a date, or `t=` in the hub's `RateLimit`.
fn asked_wait(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    if let Some(after) = text(RETRY_AFTER.as_str()) {
        if let Ok(seconds) = after.parse() {
            return Some(Duration::from_secs(seconds));
        }
        let date = httpdate::parse_http_date(after).ok()?;
        return Some(date.duration_since(now).unwrap_or_default());
    }
    let seconds = text("ratelimit")?.split(';').find_map(|item| item.trim().strip_prefix("t="))?;
    seconds.parse().ok().map(Duration::from_secs)
}

/// An error of a request.
fn connection_error(url: &str, error: ureq::Error, patience: &Patience) -> Failed {
    use std::io::ErrorKind;
    let again = |reason: String, no_connection: bool| Failed::Again(Again { reason, after: None, no_connection });
    match error {
        ureq::Error::Timeout(ureq::Timeout::Connect | ureq::Timeout::Resolve) => {
            again("no connection".to_owned(), true)
        }
        ureq::Error::Timeout(_) => again(silent(patience), false),
        ureq::Error::HostNotFound => again("the name of the server is not known".to_owned(), true),
        ureq::Error::ConnectionFailed => again("no connection".to_owned(), true),
        // rustls wraps its errors of the handshake so.
        ureq::Error::Io(error) if error.kind() == ErrorKind::InvalidData => again(untrusted(&error), true),
        ureq::Error::Io(error) => {
            let unreachable = matches!(
                error.kind(),
                ErrorKind::ConnectionRefused | ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable
            );
            // The resolver's errors have no kind of their own.
            let unresolved = error.to_string().contains("lookup address");
            again(error.to_string(), unreachable || unresolved)
        }
        ureq::Error::BadUri(_) | ureq::Error::Http(_) => {
            Error::Url { url: url.to_owned(), message: format!("{error}; check the address") }.into()
        }
        error @ (ureq::Error::Rustls(_) | ureq::Error::Tls(_)) => again(untrusted(&error), true),
        error @ ureq::Error::ConnectProxyFailed(_) => again(error.to_string(), true),
        error => again(error.to_string(), false),
    }
}

/// The text of an error of TLS.
fn untrusted(error: &impl std::fmt::Display) -> String {
    format!("{error}; a server with a root certificate of its own needs SSL_CERT_FILE")
}

/// An error while a body is read.
pub(super) fn interrupted(error: std::io::Error, patience: &Patience) -> Again {
    let silent_for =
        error.get_ref().and_then(|inner| inner.downcast_ref()).is_some_and(|e| matches!(e, ureq::Error::Timeout(_)));
    let timed_out = silent_for || matches!(error.kind(), std::io::ErrorKind::TimedOut | std::io::ErrorKind::WouldBlock);
    Again::after_a_wait(if timed_out { silent(patience) } else { format!("the connection was cut ({error})") })
}

fn silent(patience: &Patience) -> String {
    format!("the server sent nothing for {:.0?}", patience.silence)
}

/// First byte and total length of `bytes FIRST-LAST/TOTAL`; a total of `*` is unknown.
fn content_range(value: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = value.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.trim().split_once('-')?;
    let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    let total = if total.trim() == "*" { None } else { Some(total.trim().parse().ok()?) };
    (first <= last && total.is_none_or(|total| last < total)).then_some((first, total))
}

/// The sha256 that is the etag of a large file of the hub; small files have a git hash of 40 digits.
fn sha256_of(etag: &str) -> Option<String> {
    let etag = etag.trim_start_matches("W/").trim_matches('"');
    (etag.len() == 64 && etag.bytes().all(|byte| byte.is_ascii_hexdigit())).then(|| etag.to_lowercase())
}

/// The URL of `rel="next"` in a header `Link` (RFC 8288).
fn next_page(link: &str) -> Option<String> {
    link.split(',').find_map(|link| {
        let (url, parameters) = link.split_once(';')?;
        let url = url.trim().strip_prefix('<')?.strip_suffix('>')?;
        parameters.contains("rel=\"next\"").then(|| url.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_content_range_has_a_start_and_a_total() {
        assert_eq!(content_range("bytes 5-9/10"), Some((5, Some(10))));
        assert_eq!(content_range("bytes 5-9/*"), Some((5, None)));
        for wrong in ["bytes */10", "bytes 9-5/10", "bytes 5-10/10", "5-9/10", "bytes a-b/c"] {
            assert_eq!(content_range(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_redirect_is_resolved_against_its_page() {
        let base: Uri = "https://hub.co/a/b?c=d".parse().unwrap();
        let joined = |location: &str| join(&base, location).map(|uri| uri.to_string());
        assert_eq!(joined("https://cdn.co/x?y").as_deref(), Some("https://cdn.co/x?y"));
        assert_eq!(joined("//cdn.co/x").as_deref(), Some("https://cdn.co/x"));
        assert_eq!(joined("/x/y").as_deref(), Some("https://hub.co/x/y"));
        assert_eq!(joined("x").as_deref(), Some("https://hub.co/a/x"));
        assert_eq!(joined("file:///etc/passwd"), None);
    }

    #[test]
    fn a_server_asks_to_wait_in_seconds_or_until_a_date() {
        let wait = |name: &'static str, value: &str| {
            let headers = HeaderMap::from_iter([(name.parse().unwrap(), value.parse().unwrap())]);
            asked_wait(&headers, httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap())
        };
        assert_eq!(wait("retry-after", "7"), Some(Duration::from_secs(7)));
        assert_eq!(wait("retry-after", "Sun, 06 Nov 1994 08:50:07 GMT"), Some(Duration::from_secs(30)));
        assert_eq!(wait("retry-after", "Sun, 06 Nov 1994 08:00:00 GMT"), Some(Duration::ZERO));
        assert_eq!(wait("ratelimit", "\"api\";r=0;t=55"), Some(Duration::from_secs(55)));
        assert_eq!(wait("retry-after", "soon"), None);
    }

    #[test]
    fn only_the_next_page_of_a_link_counts() {
        let link = "<https://h/a?cursor=1>; rel=\"prev\", <https://h/a?cursor=3>; rel=\"next\"";
        assert_eq!(next_page(link).as_deref(), Some("https://h/a?cursor=3"));
        assert_eq!(next_page("<https://h/a>; rel=\"last\""), None);
    }

    #[test]
    fn a_git_hash_is_not_a_sha256() {
        assert_eq!(sha256_of(&format!("\"{}\"", "A".repeat(64))), Some("a".repeat(64)));
        assert_eq!(sha256_of(&format!("\"{}\"", "a".repeat(40))), None);
    }
}

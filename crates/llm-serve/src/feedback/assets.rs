//! The files of the pages, which are part of the program, and their policy: a page loads only from its own server.

use axum::http::header;
use axum::response::{IntoResponse, Response};

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; \
                      form-action 'none'; frame-ancestors 'none'";

/// A file of a page.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asset {
    kind: &'static str,
    text: &'static str,
}

/// Types of files.
const HTML: &str = "text/html; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

pub(super) const RANK_PAGE: Asset = Asset { kind: HTML, text: include_str!("../../assets/feedback/index.html") };
pub(super) const ARENA_PAGE: Asset = Asset { kind: HTML, text: include_str!("../../assets/feedback/arena.html") };
pub(super) const REPORT_PAGE: Asset = Asset { kind: HTML, text: include_str!("../../assets/feedback/report.html") };
pub(super) const REPORT_SCRIPT: Asset = Asset { kind: SCRIPT, text: include_str!("../../assets/feedback/report.js") };
pub(super) const STYLE_SHEET: Asset = Asset { kind: STYLE, text: include_str!("../../assets/feedback/feedback.css") };
pub(super) const COMMON_SCRIPT: Asset = Asset { kind: SCRIPT, text: include_str!("../../assets/feedback/common.js") };
pub(super) const RANK_SCRIPT: Asset = Asset { kind: SCRIPT, text: include_str!("../../assets/feedback/rank.js") };
pub(super) const DRAG_SCRIPT: Asset = Asset { kind: SCRIPT, text: include_str!("../../assets/feedback/drag.js") };
pub(super) const ARENA_SCRIPT: Asset = Asset { kind: SCRIPT, text: include_str!("../../assets/feedback/arena.js") };

impl IntoResponse for Asset {
    fn into_response(self) -> Response {
        let headers = [
            (header::CONTENT_TYPE, self.kind),
            (header::CONTENT_SECURITY_POLICY, POLICY),
            (header::CACHE_CONTROL, "no-store"),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (header::REFERRER_POLICY, "no-referrer"),
        ];
        (headers, self.text).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pages_are_small_and_name_no_other_server() {
        let all = [
            RANK_PAGE,
            ARENA_PAGE,
            REPORT_PAGE,
            REPORT_SCRIPT,
            STYLE_SHEET,
            COMMON_SCRIPT,
            RANK_SCRIPT,
            DRAG_SCRIPT,
            ARENA_SCRIPT,
        ];
        let bytes: usize = all.iter().map(|asset| asset.text.len()).sum();
        assert!(bytes <= 60 << 10, "{bytes} bytes");
        for asset in all {
            assert!(!asset.text.contains("://"), "{}", asset.text.split("://").next().unwrap_or_default());
            assert!(!asset.text.contains("innerHTML") && !asset.text.contains(" style="), "{}", asset.text);
        }
    }
}

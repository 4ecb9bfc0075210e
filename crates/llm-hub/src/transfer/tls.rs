//! The certificates that servers are checked against.

use std::path::Path;

use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};

/// The roots of Mozilla, or those of the file that `SSL_CERT_FILE` names, for servers and proxies with a root of their own.
pub(super) fn config() -> TlsConfig {
    let file = std::env::var_os("SSL_CERT_FILE").filter(|path| !path.is_empty());
    let roots = file.and_then(|path| match read(path.as_ref()) {
        Ok(certificates) => Some(RootCerts::new_with_certs(&certificates)),
        Err(message) => {
            let path = path.display();
            tracing::warn!("SSL_CERT_FILE {path}: {message}; the built-in certificates are used");
            None
        }
    });
    TlsConfig::builder().root_certs(roots.unwrap_or(RootCerts::WebPki)).build()
}

/// The certificates of a PEM file.
fn read(path: &Path) -> Result<Vec<Certificate<'static>>, String> {
    let text = std::fs::read(path).map_err(|error| llm_files::error_text(&error))?;
    let items = parse_pem(&text).collect::<Result<Vec<_>, _>>().map_err(|error| error.to_string())?;
    let certificate = |item| match item {
        PemItem::Certificate(certificate) => Some(certificate),
        _ => None,
    };
    let all: Vec<_> = items.into_iter().filter_map(certificate).collect();
    if all.is_empty() { Err("has no certificate".to_owned()) } else { Ok(all) }
}

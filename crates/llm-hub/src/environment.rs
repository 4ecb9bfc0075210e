//! The settings of the hub in the environment, as `huggingface_hub` reads them.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::{Client, Patience};

/// The address of the hub, the token, and the cache.
#[derive(Debug, Clone)]
pub struct Hub {
    /// Address without a `/` at the end (`HF_ENDPOINT`, default `https://huggingface.co`).
    pub endpoint: String,
    /// Token for private repositories (`HF_TOKEN`, or the file `token` of `HF_HOME` that `hf auth login` writes).
    pub token: Option<String>,
    /// Folder of the cache (`HF_HUB_CACHE`, default `hub` in `HF_HOME`; `HF_HOME` is `~/.cache/huggingface` by default).
    pub cache: PathBuf,
    /// Whether nothing may be fetched (`HF_HUB_OFFLINE=1`).
    pub offline: bool,
    /// The connections.
    pub client: Client,
}

impl Hub {
    /// The settings of this process.
    pub fn from_env() -> Self {
        Self::new(|name| std::env::var_os(name), std::env::home_dir().unwrap_or_default())
    }

    /// The settings of the environment `variable` of a user with the folder `home`.
    fn new(variable: impl Fn(&str) -> Option<OsString>, home: PathBuf) -> Self {
        let text = |name: &str| variable(name)?.into_string().ok().map(|text| text.trim().to_owned());
        let set = |name: &str| text(name).filter(|text| !text.is_empty());
        let path = |name: &str| set(name).map(|path| expand(&path, &home));
        let caches = path("XDG_CACHE_HOME").unwrap_or_else(|| home.join(".cache"));
        let hf_home = path("HF_HOME").unwrap_or_else(|| caches.join("huggingface"));
        let cache =
            path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE")).unwrap_or_else(|| hf_home.join("hub"));
        let token_file = path("HF_TOKEN_PATH").unwrap_or_else(|| hf_home.join("token"));
        let saved = || std::fs::read_to_string(token_file).ok().map(|text| text.trim().to_owned());
        let token = set("HF_TOKEN").or_else(|| set("HUGGING_FACE_HUB_TOKEN")).or_else(saved);
        let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned());
        let is_true = |text: String| ["1", "ON", "YES", "TRUE"].contains(&text.to_uppercase().as_str());
        Self {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            token: token.filter(|token| !token.is_empty()),
            cache,
            offline: set("HF_HUB_OFFLINE").is_some_and(is_true),
            client: Client::new(Patience::default()),
        }
    }
}

/// A path whose `~` is the home folder.
fn expand(path: &str, home: &Path) -> PathBuf {
    match path.strip_prefix('~') {
        Some("") => home.to_owned(),
        Some(rest) if rest.starts_with('/') => home.join(&rest[1..]),
        _ => path.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub(variables: &[(&str, &str)], home: &Path) -> Hub {
        let get = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| OsString::from(value));
        Hub::new(get, home.to_owned())
    }

    #[test]
    fn the_defaults_are_those_of_huggingface_hub() {
        let hub = hub(&[], Path::new("/home/a"));
        assert_eq!((hub.endpoint.as_str(), hub.token.as_deref(), hub.offline), ("https://huggingface.co", None, false));
        assert_eq!(hub.cache, Path::new("/home/a/.cache/huggingface/hub"));
    }

    #[test]
    fn variables_replace_the_defaults() {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("token"), "hf_file\n").unwrap();
        let (at, dir) = (home.path(), home.path().to_str().unwrap());
        let with_home = hub(&[("HF_HOME", dir), ("HF_ENDPOINT", "http://localhost:9/"), ("HF_HUB_OFFLINE", "yes")], at);
        assert_eq!(with_home.cache, at.join("hub"));
        assert_eq!((with_home.endpoint.as_str(), with_home.offline), ("http://localhost:9", true));
        assert_eq!(with_home.token.as_deref(), Some("hf_file"));
        let more = hub(
            &[("HF_HOME", dir), ("HF_TOKEN", " hf_variable "), ("HF_HUB_CACHE", "~/c"), ("HF_HUB_OFFLINE", "0")],
            at,
        );
        assert_eq!((more.token.as_deref(), more.offline), (Some("hf_variable"), false));
        assert_eq!(more.cache, at.join("c"));
        assert_eq!(hub(&[("XDG_CACHE_HOME", "/x")], at).cache, Path::new("/x/huggingface/hub"));
    }
}

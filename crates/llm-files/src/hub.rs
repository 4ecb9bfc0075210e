//! Paths that are names on the Hugging Face hub, and paths of its cache.

use std::path::{Component, Path};

/// Advice for the error about a folder that does not exist: a path such as `owner/name` may be a name on the Hugging Face hub.
/// Empty for other paths, and if the folder `owner` exists.
pub fn hub_hint(path: &Path) -> String {
    let parts: Vec<_> = path.components().collect();
    let [Component::Normal(owner), Component::Normal(name)] = parts[..] else { return String::new() };
    if Path::new(owner).exists() {
        return String::new();
    }
    let (path, name) = (path.display(), name.display());
    format!("; if it is a model on the Hugging Face hub, download it first: hf download {path} --local-dir {name}")
}

/// The name `org/name@commit` of a folder in the cache of `huggingface_hub`: `models--org--name/snapshots/COMMIT`. `None` for other paths.
///
/// ```
/// let path = std::path::Path::new("/home/a/.cache/huggingface/hub/models--org--name/snapshots/0f3c/");
/// assert_eq!(llm_files::hub_name(path).as_deref(), Some("org/name@0f3c"));
/// ```
pub fn hub_name(path: &Path) -> Option<String> {
    let mut parts = path.components().rev().map(|part| part.as_os_str().to_str());
    let (commit, snapshots, folder) = (parts.next()??, parts.next()??, parts.next()??);
    let (org, name) = folder.strip_prefix("models--")?.split_once("--")?;
    (snapshots == "snapshots").then(|| format!("{org}/{name}@{commit}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_path_that_can_be_a_name_on_the_hub_gets_the_hint() {
        let hint = hub_hint(Path::new("org/model-1"));
        assert!(hint.ends_with("hf download org/model-1 --local-dir model-1"), "{hint}");
        for path in ["model", "/org/model", "../org", "a/b/c", "src/model"] {
            assert_eq!(hub_hint(Path::new(path)), "", "{path}"); // tests run in the folder of the crate, which has `src`
        }
    }

    #[test]
    fn only_a_snapshot_of_the_cache_has_a_name() {
        for path in
            ["models--org--name/refs/main", "models--org--name", "snapshots/a", "org/name", "/", "a/snapshots/b"]
        {
            assert_eq!(hub_name(Path::new(path)), None, "{path}");
        }
    }
}

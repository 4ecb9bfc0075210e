//! Names on the hub, and their URLs.

use std::path::Path;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// Characters of a path segment that need no `%XX` (RFC 3986, section 2.3).
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// What a repository has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RepoKind {
    /// A model: `https://huggingface.co/org/name`.
    Model,
    /// A dataset: `https://huggingface.co/datasets/org/name`.
    Dataset,
}

/// A repository at a revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repo {
    /// What it has.
    pub kind: RepoKind,
    /// `org/name`.
    pub name: String,
    /// A branch, a tag or a commit.
    pub revision: String,
}

impl Repo {
    /// Parses `org/name` or `org/name@revision`; the default revision is `main`. `None` if the text cannot be such a name.
    pub fn parse(kind: RepoKind, text: &str) -> Option<Self> {
        let (name, revision) = text.split_once('@').unwrap_or((text, "main"));
        let (org, model) = name.split_once('/')?;
        let is_file = Path::new(model).extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"));
        let revision_is_valid = !revision.is_empty()
            && !revision.contains("..")
            && revision.bytes().all(|byte| byte.is_ascii_graphic() && !br"\?*[]~^:".contains(&byte));
        (is_part(org) && is_part(model) && !is_file && revision_is_valid).then(|| Self {
            kind,
            name: name.to_owned(),
            revision: revision.to_owned(),
        })
    }

    /// The model that a path may name: not a path that exists, and without `@revision` not one in a folder that exists.
    pub(crate) fn of_path(path: &Path) -> Option<Self> {
        let repo = Self::parse(RepoKind::Model, path.to_str()?)?;
        let in_folder = path.parent().is_some_and(Path::exists) && !path.to_str()?.contains('@');
        (!path.exists() && !in_folder).then_some(repo)
    }

    /// Whether the revision is a commit, so that its files never change.
    pub(crate) fn is_commit(&self) -> bool {
        self.revision.len() == 40 && self.revision.bytes().all(|byte| byte.is_ascii_hexdigit())
    }

    /// The URL of a file: `ENDPOINT/org/name/resolve/REVISION/PATH`, `ENDPOINT/datasets/org/name/...` for a dataset.
    pub fn file_url(&self, endpoint: &str, revision: &str, path: &str) -> String {
        let prefix = if self.kind == RepoKind::Dataset { "datasets/" } else { "" };
        let (name, revision) = (&self.name, encode_segment(revision));
        format!("{endpoint}/{prefix}{name}/resolve/{revision}/{}", encode_path(path))
    }

    /// The URL of the interface for this repository: `ENDPOINT/api/models/org/name` or `ENDPOINT/api/datasets/org/name`.
    pub(crate) fn api_url(&self, endpoint: &str) -> String {
        let kind = if self.kind == RepoKind::Dataset { "datasets" } else { "models" };
        format!("{endpoint}/api/{kind}/{}", self.name)
    }

    /// The folder in the cache: `models--org--name`.
    pub(crate) fn folder(&self) -> String {
        let kind = if self.kind == RepoKind::Dataset { "datasets" } else { "models" };
        format!("{kind}--{}", self.name.replace('/', "--"))
    }
}

/// Whether this is one half of a name on the hub. `--` separates the halves in the cache.
fn is_part(part: &str) -> bool {
    let valid = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=96).contains(&part.len())
        && part.bytes().all(valid)
        && !part.starts_with(['.', '-'])
        && !part.ends_with(['.', '-'])
        && !part.contains("--")
        && !part.contains("..")
}

/// A revision or file name for a URL; a `/` becomes `%2F`.
pub(crate) fn encode_segment(text: &str) -> String {
    utf8_percent_encode(text, SEGMENT).to_string()
}

/// A path with `/` for a URL.
pub fn encode_path(path: &str) -> String {
    path.split('/').map(encode_segment).collect::<Vec<_>>().join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_an_organisation_and_an_optional_revision() {
        let repo = |text: &str| Repo::parse(RepoKind::Model, text).map(|repo| (repo.name, repo.revision));
        let pair = |name: &str, revision: &str| Some((name.to_owned(), revision.to_owned()));
        assert_eq!(repo("HuggingFaceTB/SmolLM2-135M"), pair("HuggingFaceTB/SmolLM2-135M", "main"));
        assert_eq!(repo("EleutherAI/pythia-70m@step3000"), pair("EleutherAI/pythia-70m", "step3000"));
        assert_eq!(repo("a/b@refs/pr/1"), pair("a/b", "refs/pr/1"));
        for path in
            ["gpt2", "/a/b", "./a", "../a", "a/b/c", "a/b.gguf", "a//b", "a/b@", "a/b@..", "a b/c", "a--b/c", ""]
        {
            assert_eq!(repo(path), None, "{path}");
        }
    }

    #[test]
    fn an_existing_folder_or_its_neighbour_is_not_a_name() {
        // Tests run in the folder of the crate, which has `src` and no `org`.
        assert_eq!(Repo::of_path(Path::new("src/name.rs")), None);
        assert_eq!(Repo::of_path(Path::new("src/model")), None);
        assert!(Repo::of_path(Path::new("src/model@main")).is_some());
        assert!(Repo::of_path(Path::new("org/model")).is_some());
    }

    #[test]
    fn urls_have_the_forms_of_the_hub() {
        let hub = "https://huggingface.co";
        let model = Repo::parse(RepoKind::Model, "a/b").unwrap();
        assert_eq!(
            model.file_url(hub, "main", "x y/config.json"),
            "https://huggingface.co/a/b/resolve/main/x%20y/config.json"
        );
        assert_eq!(model.api_url(hub), "https://huggingface.co/api/models/a/b");
        let data = Repo::parse(RepoKind::Dataset, "a/b").unwrap();
        let url = data.file_url(hub, "refs/convert/parquet", "c/0.parquet");
        assert_eq!(url, "https://huggingface.co/datasets/a/b/resolve/refs%2Fconvert%2Fparquet/c/0.parquet");
        assert_eq!(data.folder(), "datasets--a--b");
    }
}

//! `org/name` of a hub in the cache of `huggingface_hub`, from a loopback hub.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

mod server;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use llm_hub::{Client, Error, Hub, Repo, RepoKind, Wanted};
use serde_json::json;
use server::{Server, bytes, head, patience, serve, sha256};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// The files of `org/model`; those of over 1,000 bytes are in the large file storage.
type Files = BTreeMap<&'static str, Vec<u8>>;

/// A hub with one repository, that forwards large files to another path.
struct Fake {
    server: Server,
    dir: tempfile::TempDir,
    /// The commit and its files.
    state: Arc<Mutex<(String, Files)>>,
}

fn is_large(content: &[u8]) -> bool {
    content.len() > 1000
}

fn etag(content: &[u8]) -> String {
    let sum = sha256(content);
    if is_large(content) { sum } else { sum[..40].to_owned() }
}

impl Fake {
    fn new(files: &[(&'static str, &[u8])]) -> Self {
        let files: Files = files.iter().map(|(name, content)| (*name, content.to_vec())).collect();
        let state = Arc::new(Mutex::new((COMMIT.to_owned(), files)));
        let shared = Arc::clone(&state);
        let server = Server::start(move |_, request, stream| {
            let (commit, files) = shared.lock().unwrap().clone();
            let path = request.path.as_str();
            if path.starts_with("/api/models/org/model/revision/main") {
                let siblings: Vec<_> = files.iter().map(|(name, content)| sibling(name, content)).collect();
                return json_reply(stream, &json!({ "id": "org/model", "sha": commit, "siblings": siblings }));
            }
            if let Some(sum) = path.strip_prefix("/cdn/") {
                let content = files.values().find(|content| sha256(content) == sum).unwrap();
                return serve(request, stream, content, "\"of the cdn\"");
            }
            let file = path.strip_prefix("/org/model/resolve/").and_then(|path| path.split_once('/'));
            match file.and_then(|(revision, name)| Some((files.get(name)?, [&*commit, "main"].contains(&revision)))) {
                Some((content, true)) => resolve_reply(request, stream, content, &commit),
                _ => head(stream, 404, &[("Content-Length", "0"), ("X-Error-Code", "RepoNotFound")]),
            }
        });
        Self { server, dir: tempfile::tempdir().unwrap(), state }
    }

    fn hub(&self) -> Hub {
        let (endpoint, cache) = (self.server.url.clone(), self.dir.path().join("hub"));
        Hub { endpoint, token: None, cache, offline: false, client: Client::new(patience()) }
    }

    fn resolve(&self, wanted: Wanted) -> Result<PathBuf, Error> {
        self.hub().resolve(Path::new("org/model"), wanted, &mut |_, _| {})
    }

    /// Paths of the files that were asked for since the last call.
    fn fetched(&self, seen: usize) -> Vec<String> {
        let requests = self.server.requests();
        let paths = requests[seen..].iter().filter_map(|request| request.path.strip_prefix("/org/model/resolve/"));
        paths.map(|path| path.split_once('/').unwrap().1.to_owned()).collect()
    }
}

fn sibling(name: &str, content: &[u8]) -> serde_json::Value {
    let mut file = json!({ "rfilename": name, "size": content.len(), "blobId": "f".repeat(40) });
    match is_large(content) {
        true => file["lfs"] = json!({ "sha256": sha256(content), "size": content.len(), "pointerSize": 133 }),
        false => file["blobId"] = etag(content).into(),
    }
    file
}

fn json_reply(stream: &mut std::net::TcpStream, value: &serde_json::Value) -> std::io::Result<()> {
    let text = value.to_string();
    head(stream, 200, &[("Content-Type", "application/json"), ("Content-Length", &text.len().to_string())])?;
    stream.write_all(text.as_bytes())
}

/// The answer for a file: its content, or a redirect if it is large.
fn resolve_reply(
    request: &server::Request,
    stream: &mut std::net::TcpStream,
    content: &[u8],
    commit: &str,
) -> std::io::Result<()> {
    let (quoted, length) = (format!("\"{}\"", etag(content)), content.len().to_string());
    if is_large(content) {
        // Another server for `huggingface_hub`, which follows redirects of the hub itself.
        let port = request.header("host").unwrap().rsplit_once(':').unwrap().1;
        let to = format!("http://localhost:{port}/cdn/{}", sha256(content));
        let linked = [("X-Linked-Etag", &*quoted), ("X-Linked-Size", &*length)];
        return head(
            stream,
            302,
            &[&[("Location", &*to), ("X-Repo-Commit", commit), ("Content-Length", "0")], &linked[..]].concat(),
        );
    }
    head(stream, 200, &[("ETag", &quoted), ("X-Repo-Commit", commit), ("Content-Length", &length)])?;
    if request.method == "HEAD" { Ok(()) } else { stream.write_all(content) }
}

fn sharded() -> Fake {
    let index =
        json!({ "weight_map": { "a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors" } }).to_string();
    Fake::new(&[
        ("README.md", b"about"),
        ("config.json", b"{}"),
        ("generation_config.json", b"{ }"),
        ("tokenizer.json", &bytes(3000, 1)),
        ("tokenizer_config.json", b"{  }"),
        ("chat_template.jinja", b"{{ messages }}"),
        ("additional_chat_templates/tool.jinja", b"{{ tools }}"),
        ("model.safetensors.index.json", index.as_bytes()),
        ("model-1-of-2.safetensors", &bytes(5000, 2)),
        ("model-2-of-2.safetensors", &bytes(6000, 3)),
        ("model-2-of-3.safetensors", &bytes(6000, 4)),
        ("pytorch_model.bin", &bytes(7000, 5)),
        ("onnx/model.onnx", &bytes(7000, 6)),
    ])
}

#[test]
fn a_model_is_its_configuration_tokenizer_and_the_shards_of_its_index() {
    let fake = sharded();
    let dir = fake.resolve(Wanted::Model).unwrap();
    let cache = fake.dir.path().join("hub/models--org--model");
    assert_eq!(dir, cache.join("snapshots").join(COMMIT));
    let expected = [
        "additional_chat_templates/tool.jinja",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model-1-of-2.safetensors",
        "model-2-of-2.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    assert_eq!(llm_files::list_files(&dir).unwrap(), expected);
    assert_eq!(std::fs::read_to_string(cache.join("refs/main")).unwrap(), COMMIT);
    assert_eq!(std::fs::read(dir.join("model-2-of-2.safetensors")).unwrap(), bytes(6000, 3));
    assert_eq!(std::fs::read_to_string(dir.join("additional_chat_templates/tool.jinja")).unwrap(), "{{ tools }}");
    #[cfg(unix)]
    {
        let link = std::fs::read_link(dir.join("tokenizer.json")).unwrap();
        assert_eq!(link, Path::new("../../blobs").join(sha256(&bytes(3000, 1))));
        let link = std::fs::read_link(dir.join("additional_chat_templates/tool.jinja")).unwrap();
        assert_eq!(link, Path::new("../../../blobs").join(etag(b"{{ tools }}")));
        assert_eq!(std::fs::read_dir(cache.join("blobs")).unwrap().count(), 9);
    }

    // The second time only the commit of the branch is asked for.
    let seen = fake.server.requests().len();
    assert_eq!(fake.resolve(Wanted::Model).unwrap(), dir);
    assert_eq!(fake.server.requests().len(), seen + 1);
}

#[test]
fn only_what_is_wanted_is_fetched() {
    let fake = sharded();
    fake.resolve(Wanted::Config).unwrap();
    assert_eq!(fake.fetched(0), ["config.json"]);
    let seen = fake.server.requests().len();
    fake.resolve(Wanted::Tokenizer).unwrap();
    assert_eq!(
        fake.fetched(seen),
        ["additional_chat_templates/tool.jinja", "chat_template.jinja", "tokenizer.json", "tokenizer_config.json"]
    );
    let fake =
        Fake::new(&[("adapter_config.json", b"{}"), ("adapter_model.safetensors", &bytes(2000, 1)), ("x.bin", b"")]);
    fake.resolve(Wanted::Adapter).unwrap();
    assert_eq!(fake.fetched(0), ["adapter_config.json", "adapter_model.safetensors"]);
}

#[test]
fn a_new_commit_shares_the_files_that_did_not_change() {
    let fake = Fake::new(&[("config.json", b"{}"), ("model.safetensors", &bytes(5000, 1))]);
    let old = fake.resolve(Wanted::Model).unwrap();
    {
        let mut state = fake.state.lock().unwrap();
        state.0 = "f".repeat(40);
        state.1.insert("config.json", b"{ }".to_vec());
    }
    let seen = fake.server.requests().len();
    let new = fake.resolve(Wanted::Model).unwrap();
    assert_eq!(fake.fetched(seen), ["config.json"]);
    assert_ne!(new, old);
    assert_eq!(std::fs::read_to_string(old.join("config.json")).unwrap(), "{}");
    assert_eq!(std::fs::read_to_string(new.join("config.json")).unwrap(), "{ }");
    assert_eq!(std::fs::read(new.join("model.safetensors")).unwrap(), bytes(5000, 1));

    // A commit never changes: nothing is asked.
    let seen = fake.server.requests().len();
    let pinned = format!("org/model@{COMMIT}");
    assert_eq!(fake.hub().resolve(Path::new(&pinned), Wanted::Model, &mut |_, _| {}).unwrap(), old);
    assert_eq!(fake.server.requests().len(), seen);
}

#[test]
fn without_a_network_the_cache_serves_or_one_line_says_what_to_do() {
    let fake = Fake::new(&[("config.json", b"{}"), ("model.safetensors", &bytes(5000, 1))]);
    let offline = Hub { offline: true, ..fake.hub() };
    let unreachable = Hub { endpoint: "http://no-such-host.invalid".to_owned(), ..fake.hub() };
    for hub in [&offline, &unreachable] {
        let error = hub.resolve(Path::new("org/model"), Wanted::Model, &mut |_, _| {}).unwrap_err();
        let message = error.to_string();
        assert!(error.is_callers_fault() && !message.contains('\n'), "{message}");
        assert!(message.starts_with("org/model: no such folder here, not complete in the cache "), "{message}");
        assert!(message.contains("hf download org/model --local-dir model"), "{message}");
    }
    let dir = fake.resolve(Wanted::Model).unwrap();
    let seen = fake.server.requests().len();
    for hub in [&offline, &unreachable] {
        assert_eq!(hub.resolve(Path::new("org/model"), Wanted::Model, &mut |_, _| {}).unwrap(), dir);
    }
    assert_eq!(fake.server.requests().len(), seen);
    std::fs::remove_file(dir.join("model.safetensors")).unwrap();
    assert!(offline.resolve(Path::new("org/model"), Wanted::Model, &mut |_, _| {}).is_err());
    assert!(offline.resolve(Path::new("org/model"), Wanted::Config, &mut |_, _| {}).is_ok());
}

#[test]
fn a_local_folder_wins_over_the_hub() {
    let hub = Hub { endpoint: "http://no-such-host.invalid".to_owned(), ..Fake::new(&[]).hub() };
    // Tests run in the folder of the crate.
    for path in ["src/transfer", "src/none", "Cargo.toml", "/a/b"] {
        assert_eq!(hub.resolve(Path::new(path), Wanted::Model, &mut |_, _| {}).unwrap(), Path::new(path));
    }
}

#[test]
fn a_repository_that_cannot_serve_says_why() {
    let message = |files: &[(&'static str, &[u8])], wanted| Fake::new(files).resolve(wanted).unwrap_err().to_string();
    let old = message(&[("config.json", b"{}"), ("pytorch_model.bin", b"")], Wanted::Model);
    assert!(old.contains("has no model.safetensors at revision main; it has pytorch_model.bin"), "{old}");
    let adapter = message(&[("adapter_config.json", b"{}")], Wanted::Model);
    assert!(adapter.contains("it is an adapter: give its base with --model"), "{adapter}");
    let gguf = message(&[("model-q4_0.gguf", b"")], Wanted::Model);
    assert!(gguf.contains("it has model-q4_0.gguf"), "{gguf}");
    let missing = Fake::new(&[]).hub().resolve(Path::new("org/other"), Wanted::Model, &mut |_, _| {}).unwrap_err();
    assert!(missing.is_callers_fault() && missing.to_string().contains("check the name"), "{missing}");
}

#[test]
fn the_tree_of_a_dataset_is_read_page_by_page() {
    let server = Server::start(|_, request, stream| {
        let (file, link) = match request.path.as_str() {
            "/api/datasets/org/data/tree/main/sub%20set?recursive=true" => {
                let next = format!("http://{}/next", request.header("host").unwrap());
                (
                    json!({ "type": "file", "path": "sub set/a", "oid": "a".repeat(40), "size": 5 }),
                    format!("<{next}>; rel=\"next\""),
                )
            }
            "/next" => {
                let lfs = json!({ "oid": "b".repeat(64), "size": 9, "pointerSize": 130 });
                (
                    json!({ "type": "file", "path": "sub set/b", "oid": "c".repeat(40), "size": 9, "lfs": lfs }),
                    String::new(),
                )
            }
            other => panic!("{other}"),
        };
        let text =
            json!([{ "type": "directory", "path": "sub set", "oid": "d".repeat(40), "size": 0 }, file]).to_string();
        head(stream, 200, &[("Content-Length", &text.len().to_string()), ("Link", &link)])?;
        stream.write_all(text.as_bytes())
    });
    let hub = Hub { endpoint: server.url.clone(), ..Fake::new(&[]).hub() };
    let repo = Repo::parse(RepoKind::Dataset, "org/data").unwrap();
    let files = hub.tree(&repo, "sub set").unwrap();
    let shown: Vec<_> = files.iter().map(|file| (file.path.as_str(), file.length, file.sha256.is_some())).collect();
    assert_eq!(shown, [("sub set/a", 5, false), ("sub set/b", 9, true)]);
}

/// Runs a script of `huggingface_hub` on the cache of a hub; `None` if no Python is named.
fn python(fake: &Fake, script: &str, endpoint: &str) -> Option<String> {
    let Some(python) = std::env::var_os("LLM_HUB_PYTHON") else {
        eprintln!("skipped: set LLM_HUB_PYTHON to a Python with huggingface_hub");
        return None;
    };
    let home = fake.dir.path();
    let output = Command::new(python)
        .args(["-c", script])
        .env("HF_ENDPOINT", endpoint)
        .env("HF_HOME", home)
        .env("HF_HUB_DISABLE_XET", "1")
        .env_remove("HF_HUB_CACHE")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8(output.stdout).unwrap().trim().to_owned())
}

#[test]
fn python_finds_what_we_fetch() {
    let fake = sharded();
    let dir = fake.resolve(Wanted::Model).unwrap();
    let script = "
from huggingface_hub import hf_hub_download, scan_cache_dir, snapshot_download
print(hf_hub_download('org/model', 'model-1-of-2.safetensors', local_files_only=True))
print(hf_hub_download('org/model', 'additional_chat_templates/tool.jinja', local_files_only=True))
print(snapshot_download('org/model', local_files_only=True))
info = scan_cache_dir()
print(len(info.warnings), [(r.repo_id, r.nb_files) for r in info.repos])";
    let Some(output) = python(&fake, script, "http://no-such-host.invalid") else { return };
    let lines: Vec<&str> = output.lines().collect();
    let shown = dir.display();
    assert_eq!(lines[0], format!("{shown}/model-1-of-2.safetensors"));
    assert_eq!(lines[1], format!("{shown}/additional_chat_templates/tool.jinja"));
    assert_eq!(lines[2], shown.to_string());
    assert_eq!(lines[3], "0 [('org/model', 9)]");
}

#[test]
fn we_find_what_python_fetched() {
    let fake = sharded();
    let script = "
from huggingface_hub import hf_hub_download
for name in ['config.json', 'tokenizer.json', 'model.safetensors.index.json', 'model-1-of-2.safetensors', 'model-2-of-2.safetensors']:
    path = hf_hub_download('org/model', name)
print(path)";
    let Some(output) = python(&fake, script, &fake.server.url) else { return };
    let offline = Hub { offline: true, ..fake.hub() };
    let dir = offline.resolve(Path::new("org/model"), Wanted::Model, &mut |_, _| {}).unwrap();
    assert_eq!(output, dir.join("model-2-of-2.safetensors").display().to_string());
    let seen = fake.server.requests().len();
    assert_eq!(fake.resolve(Wanted::Model).unwrap(), dir);
    let mut rest = fake.fetched(seen);
    rest.sort();
    assert_eq!(
        rest,
        [
            "additional_chat_templates/tool.jinja",
            "chat_template.jinja",
            "generation_config.json",
            "tokenizer_config.json"
        ]
    );
}

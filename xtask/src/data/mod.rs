//! `cargo xtask fetch-data` and `prepare-data`: fetch datasets and models of the catalogue, with a lock file, and make token shards.

mod catalogue;
mod list;
mod lock;
mod plan;
mod prepare;

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use clap::Args;
use llm_cli::{Failure, TransferProgress};
use llm_hub::{Download, Hub, size_text};

use catalogue::Catalogue;
use lock::{LockFile, Locked};
use plan::{Item, Mirror, failure, plan};
pub(crate) use prepare::{PrepareData, prepare_data};

/// Files that are fetched at once.
const AT_ONCE: usize = 4;

#[derive(Debug, Args)]
#[allow(clippy::doc_markdown, reason = "help texts have no backticks")]
#[command(
    after_help = "Examples:\n  cargo xtask fetch-data --list\n  cargo xtask fetch-data tinyshakespeare gsm8k\n  \
    cargo xtask fetch-data blimp --mirror file:///media/usb/data\n\n\
    Hugging Face: HF_ENDPOINT (another address), HF_TOKEN (private or limited sets), HF_HUB_OFFLINE=1 (with --mirror file:// only)"
)]
pub(crate) struct FetchData {
    /// Sets to fetch; --list shows them
    #[arg(value_name = "NAME", required_unless_present = "list")]
    names: Vec<String>,
    /// List the sets: purpose, name, size, licence, and what is already there
    #[arg(long)]
    list: bool,
    /// Folder of the data: each set has a folder in it, and fetch.lock their checksums
    #[arg(long, value_name = "DIR", default_value = "data")]
    to: PathBuf,
    /// Fetch from a copy of such a folder: a URL, or file://DIR for a local one (no network is needed)
    #[arg(long, value_name = "URL|file://DIR")]
    mirror: Option<String>,
}

impl FetchData {
    /// One set.
    fn one(name: &str, to: &Path, mirror: Option<String>) -> Self {
        Self { names: vec![name.to_owned()], list: false, to: to.to_owned(), mirror }
    }
}

/// Runs the command.
pub(crate) fn fetch_data(args: &FetchData) -> Result<(), Failure> {
    let (catalogue, mut lock) = (Catalogue::read()?, LockFile::read(&args.to)?);
    if args.list {
        return llm_cli::print(&list::table(&catalogue, &lock, &args.to));
    }
    let hub = Hub::from_env();
    let is_local = args.mirror.as_ref().is_some_and(|mirror| mirror.starts_with("file://"));
    let sets = args.names.iter().map(|name| catalogue.find(name)).collect::<Result<Vec<_>, _>>()?;
    let is_there = |name: &str| {
        let files = lock.of(name);
        !files.is_empty() && files.iter().all(|file| file.in_folder(&args.to).exists())
    };
    if let Some(set) = sets.iter().find(|set| hub.offline && !is_local && !is_there(&set.name)) {
        let message = "is to be fetched, and HF_HUB_OFFLINE is set; unset it, or give --mirror file://DIR";
        return Err(Failure::input(format!("{}: {message}", set.name)));
    }
    let mirror = args.mirror.as_ref().map(|url| Mirror::open(url, &hub.client)).transpose()?;
    for set in sets {
        let items = plan(set, &lock, mirror.as_ref(), &hub)?;
        let fetched = fetch_all(&items, &args.to, &hub)?;
        let bytes = fetched.iter().map(|file| file.bytes).sum();
        // Another process may have added a set meanwhile.
        lock = LockFile::read(&args.to)?;
        if lock.of(&set.name).is_empty() {
            lock.add(&args.to, fetched)?;
        }
        let (dir, count, size) = (args.to.join(&set.name), items.len(), size_text(bytes));
        let files = if count == 1 { "file" } else { "files" };
        llm_cli::print(&format!("{}: {count} {files}, {size}; licence: {}\n", dir.display(), set.licence))?;
    }
    Ok(())
}

/// Fetches files, several at once. After an error no new transfer begins.
fn fetch_all(items: &[Item], dir: &Path, hub: &Hub) -> Result<Vec<Locked>, Failure> {
    let (next, results) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        while let Some((at, item)) = Some(next.fetch_add(1, Relaxed)).and_then(|at| Some((at, items.get(at)?))) {
            let result = fetch(item, dir, hub);
            if result.is_err() {
                next.store(items.len(), Relaxed);
            }
            match results.lock() {
                Ok(mut results) => results.push((at, result)),
                Err(_) => return,
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE.min(items.len()) {
            scope.spawn(work);
        }
    });
    let mut results = results.into_inner().map_err(|_| Failure::internal("a thread of the transfer has failed"))?;
    results.sort_by_key(|(at, _)| *at);
    results.into_iter().map(|(_, result)| result).collect()
}

fn fetch(item: &Item, dir: &Path, hub: &Hub) -> Result<Locked, Failure> {
    let to = item.in_folder(dir);
    let token = hub.token.as_deref().filter(|_| item.url.starts_with(&format!("{}/", hub.endpoint)));
    let (length, sha256) = (item.bytes, item.sha256.as_deref());
    let download = Download { url: &item.url, to: &to, token, length, sha256, lock: None };
    let mut progress = TransferProgress::new(&format!("{}/{}", item.set, item.path));
    let fetched = hub.client.fetch(&download, &mut |event| progress.show(event));
    progress.finish();
    let fetched = fetched.map_err(|error| match &error {
        llm_hub::Error::Sha256 { .. } | llm_hub::Error::Length { .. } if item.locked => {
            let (lock, set) = (dir.join(lock::NAME), &item.set);
            Failure::of(
                format!(
                    "{error}; {} has it from the first fetch: to accept the change, delete the entries of {set} there",
                    lock.display()
                ),
                error.is_callers_fault(),
            )
        }
        llm_hub::Error::Status { status: 404 | 410, .. } => {
            Failure::input(format!("{error}; the file may have moved: correct xtask/data/catalogue.toml"))
        }
        _ => failure(error),
    })?;
    Ok(Locked {
        set: item.set.clone(),
        path: item.path.clone(),
        url: item.pinned(fetched.commit.as_deref()),
        bytes: fetched.length,
        sha256: fetched.sha256,
    })
}

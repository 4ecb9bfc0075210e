//! Files from the network: transfers that resume and check, and models of the Hugging Face hub in the cache of `huggingface_hub`.
//!
//! [`Client::fetch`] fetches one file, over HTTP or from a local folder (`file://`):
//!
//! ```
//! use llm_hub::{Client, Download, Patience};
//!
//! let dir = tempfile::tempdir()?;
//! std::fs::write(dir.path().join("origin.txt"), "To be")?;
//! let (url, to) = (format!("file://{}/origin.txt", dir.path().display()), dir.path().join("copies/text.txt"));
//! let fetched = Client::new(Patience::default()).fetch(&Download::new(&url, &to), &mut |_| {})?;
//! assert_eq!((fetched.length, std::fs::read_to_string(&to)?.as_str()), (5, "To be"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! [`Hub::resolve`] turns `org/name[@revision]` into a folder with the files that a model, a tokenizer or an adapter needs: those that
//! are missing are fetched. Paths of existing files and folders are returned as they are.
//!
//! This crate shows nothing: the functions tell an observer what happens. All functions that can fail return [`Error`].
//! Where to look next: `llm_cli::HubOption`, the option `--offline` with progress bars.
//!
//! `examples/fetch.rs` is an example to copy: a program that fetches a URL.

mod cache;
mod environment;
mod error;
mod name;
mod repository;
mod resolve;
mod transfer;

pub use environment::Hub;
pub use error::{Error, size_text};
pub use name::{Repo, RepoKind, encode_path};
pub use repository::RepoFile;
pub use resolve::Wanted;
pub use transfer::{Client, Download, Event, Fetched, Patience, local_path};

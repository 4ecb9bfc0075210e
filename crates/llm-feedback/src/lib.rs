//! Human preferences: a database of judgements, their quality and formats, and a simulated annotator.
//!
//! - [`store::Store`]: a database of prompts with answers, of annotators and of their judgements;
//! - [`report`]: agreement, biases, and the strengths of checkpoints;
//! - [`exchange`]: files of judgements for training and for other programs;
//! - [`Annotator`]: a simulated annotator.
//!
//! ```
//! use llm_data::ChatMessage;
//! use llm_feedback::exchange::{Format, export};
//! use llm_feedback::report::{ReportOptions, report};
//! use llm_feedback::store::{Grades, Judgement, Kind, NewAnswer, NewItem, Policy, Store, now};
//!
//! # let dir = tempfile::tempdir()?;
//! # let path = dir.path().join("votes.sqlite");
//! let store = Store::open(&path)?;
//! store.add_items(&[NewItem {
//!     id: "1".to_owned(),
//!     prompt: vec![ChatMessage::user("How do I sleep well?")],
//!     source: "example".to_owned(),
//!     gold_order: None,
//!     answers: vec![NewAnswer::text("a", "Keep regular hours."), NewAnswer::text("b", "Drink coffee.")],
//! }])?;
//! let (ann, policy) = (store.annotator("ann")?, Policy::default());
//! while let Some(task) = store.next(ann, &policy, now())? {
//!     let judgement = Judgement {
//!         id: format!("ann-{}", task.item), // a UUID made by the client
//!         item: task.item,
//!         annotator: ann,
//!         kind: Kind::Rank { ranks: [("a".to_owned(), 1), ("b".to_owned(), 2)].into() },
//!         shown: task.answers.iter().map(|answer| answer.id.clone()).collect(),
//!         grades: Grades::new(),
//!         reason: None,
//!         started: now(),
//!         ms_visible: 4000,
//!         repeat_of: None,
//!         guideline_version: None,
//!     };
//!     store.judge(&judgement, now())?; // on the disk
//! }
//! println!("{}", report(&store, &ReportOptions::default())?);
//! let (pairs, _) = export(&store, Format::Trl)?;
//! assert!(pairs.contains(r#""chosen":[{"role":"assistant","content":"Keep regular hours."}]"#));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! An [`Annotator`] ranks answers of known utility, with noise (Bradley and Terry 1952; Plackett 1975 for more than two
//! answers) and biases for length and position. [`Annotator::noise_ceiling`] is the highest accuracy that any predictor of such an
//! annotator can reach; compare the accuracy of a reward model with it.
//!
//! ```
//! use llm_feedback::Annotator;
//!
//! let utilities = vec![2.0, 0.5, 1.0];
//! let careful = Annotator { beta: 50., ..Annotator::default() };
//! assert_eq!(careful.rank("question 1", &utilities, &["a", "b", "c"])?, [0, 2, 1]);
//!
//! let noisy = Annotator { beta: 1., ..Annotator::default() };
//! let ceiling = noisy.noise_ceiling(&[(utilities, vec!["a", "b", "c"])]); // about 3 of 4 pairs can be predicted
//! assert!(ceiling > 0.7 && ceiling < 0.8);
//! # Ok::<(), llm_feedback::Error>(())
//! ```
//!
//! This crate does not depend on the model crates. Where to look next: `llm_data::Ranking` is the stored form of a ranking;
//! the reward recipe of `llm-train` trains on rankings.
//!
//! `examples/annotators.rs` is an example to copy: annotators with noise and bias.

mod agreement;
mod annotator;
mod error;
pub mod exchange;
pub mod report;
pub mod store;

pub use agreement::agreement;
pub use annotator::{Annotator, preference_probability};
pub use error::Error;

/// The result of every fallible function of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

//! The arena: two models answer a prompt of a person, who says which answer is better before it is known who wrote it.
//!
//! A battle is an item of the database with two answers, `left` and `right`; its vote is a judgement of it. Nothing of a battle is
//! in memory only, so a program that was killed goes on with it.

mod fight;
mod routes;
mod votes;

use llm_engine::{Engine, TextOptions};

pub(super) use routes::routes;

/// The source of the items of the arena.
const SOURCE: &str = "arena";
/// The answers of an item of the arena, in the order in which they are shown.
const SIDES: [&str; 2] = ["left", "right"];
/// The event after which the vote on an item cannot change.
const REVEALED: &str = "revealed";

/// A model of the arena.
#[derive(Debug, Clone)]
pub struct ArenaModel {
    /// The name that the person sees after the vote, and the `checkpoint` of its answers.
    pub name: String,
    /// The engine that answers.
    pub engine: Engine,
    /// How it answers.
    pub options: TextOptions,
}

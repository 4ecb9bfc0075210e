//! Data for language models: the built-in world, readers and shards.

mod conversation;
pub mod world;

pub use conversation::{Conversation, Message, Role};

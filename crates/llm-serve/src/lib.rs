//! A server of the OpenAI API for a model of this workspace.
#![allow(dead_code)]

mod error;
mod ids;
mod wire;

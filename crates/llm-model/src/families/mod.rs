//! One file for each family of models: how its `config.json` and tensor names map to the one decoder.

pub mod llama;

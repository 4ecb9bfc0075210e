//! Any bytes as a safetensors file: its tensors, or an error.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    llm_fuzz::with_file("model.safetensors", bytes, |dir| {
        let _ = llm_model::read_safetensors(&dir.join("model.safetensors"));
    });
});

//! Puts what the fuzzer made where a loader looks for it.

use std::path::Path;

/// Writes `bytes` as `name` into a folder of its own and runs `load` on that folder.
pub fn with_file(name: &str, bytes: &[u8], load: impl FnOnce(&Path)) {
    let dir = tempfile::tempdir().expect("a place for temporary files");
    std::fs::write(dir.path().join(name), bytes).expect("room for a small file");
    load(dir.path());
}

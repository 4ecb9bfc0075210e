//! Writes a file atomically, finds a change by checksums, and excludes a second process by a lock.
//!
//! ```sh
//! cargo run -p llm-files --example atomic_write
//! ```

use std::error::Error;

use llm_files::{Lock, verify_checksums, write_atomic, write_checksums};

fn main() -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let notes = dir.path().join("notes.txt");

    // Readers see the old content or the new content, never a part of it.
    write_atomic(&notes, |out| writeln!(out, "step 1"))?;
    write_atomic(&notes, |out| writeln!(out, "step 2"))?;
    print!("{}", std::fs::read_to_string(&notes)?);

    write_checksums(dir.path(), "checksums.txt")?;
    verify_checksums(dir.path(), "checksums.txt")?;
    std::fs::write(&notes, "step 3\n")?;
    match verify_checksums(dir.path(), "checksums.txt") {
        Ok(()) => return Err("the change was not found".into()),
        Err(error) => println!("{error}"),
    }

    let path = dir.path().join("lock");
    let held = Lock::try_acquire(&path)?;
    println!("first lock: {}, second lock: {}", held.is_some(), Lock::try_acquire(&path)?.is_some());
    Ok(())
}

#[test]
fn runs() -> Result<(), Box<dyn Error>> {
    main()
}

//! Fetches a URL to a file and prints what happens: `cargo run -p llm-hub --example fetch -- URL FILE`.

use std::error::Error;
use std::path::Path;

use llm_hub::{Client, Download, Event, Patience, size_text};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [url, file] = &arguments[..] else { return Err("give a URL and a file".into()) };
    println!("{}", fetch(url, Path::new(file))?);
    Ok(())
}

fn fetch(url: &str, to: &Path) -> Result<String, llm_hub::Error> {
    let mut observe = |event: Event| match event {
        Event::Bytes { .. } => {}
        Event::Wait { reason, wait } => eprintln!("{reason}; goes on in {wait:?}"),
    };
    let fetched = Client::new(Patience::default()).fetch(&Download::new(url, to), &mut observe)?;
    Ok(format!("{}: {}, sha256 {}", to.display(), size_text(fetched.length), fetched.sha256))
}

#[test]
fn a_local_file_is_fetched() -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    std::fs::write(dir.path().join("a.txt"), "abc")?;
    let line = fetch(&format!("file://{}/a.txt", dir.path().display()), &dir.path().join("b.txt"))?;
    // The sha256 of "abc" from FIPS 180-2, appendix B.1.
    assert!(
        line.ends_with("b.txt: 3 B, sha256 ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
        "{line}"
    );
    Ok(())
}

//! Text without blanks: training takes seconds, and memory in proportion to the text.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use std::path::Path;
use std::time::Instant;

use llm_tokenizer::{Kind, Split, TrainSettings, Trainer};
use peak_alloc::PeakAlloc;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Pseudo-random numbers (Knuth's multiplier).
fn numbers() -> impl Iterator<Item = usize> {
    let mut state = 1u64;
    std::iter::repeat_with(move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize
    })
}

#[test]
fn three_megabytes_without_a_blank_take_seconds_and_little_memory() {
    const SIZE: usize = 3_000_000;
    let symbols = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let base64: String = numbers().take(SIZE).map(|n| symbols[n % 64] as char).collect();
    let thai: String = numbers().take(SIZE / 3).filter_map(|n| char::from_u32(0xe01 + n as u32 % 46)).collect();
    for (name, text) in [("a letter", "a".repeat(SIZE)), ("base64", base64), ("Thai", thai)] {
        let (begin, start) = (Instant::now(), MEMORY.current_usage());
        MEMORY.reset_peak_usage();
        let settings =
            TrainSettings { kind: Kind::Bpe, split: Split::Gpt2, vocab_size: 4096, ..TrainSettings::default() };
        let mut trainer = Trainer::new(&settings).unwrap();
        trainer.add(text.as_str(), &Path::new("long.txt").into());
        let (tokenizer, report) = trainer.finish().unwrap();
        let memory = (MEMORY.peak_usage() - start) as f64 / text.len() as f64;
        eprintln!("{name}: {:?}, memory {memory:.1} times the text, {report:?}", begin.elapsed());
        // Of base64 nearly all pieces and pairs are different, and the table of pairs is most of the memory.
        let limit = if name == "base64" { 32. } else { 20. };
        assert!(memory < limit, "{name}: {memory} times the text");
        // Without the caps one letter takes more than 280 seconds.
        assert!(begin.elapsed().as_secs() < 60, "{name}: {:?}", begin.elapsed());
        let longest = report.longest.unwrap();
        assert_eq!((&*longest.source, longest.bytes > 5), (Path::new("long.txt"), true), "{name}");
        assert_eq!(tokenizer.decode(&tokenizer.encode(&text[..3000]).unwrap()).unwrap(), text[..3000]);
    }
}

//! Mutates files to test loaders against damaged and malicious input.

use std::fs;
use std::path::Path;

use peak_alloc::PeakAlloc;
use rand::seq::IndexedRandom;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Measures the memory of the whole process, so each test program has one test only.
#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

const FILES: u64 = 10_000;

/// Opens 10,000 mutations of the file `path`; only its first `head` bytes are changed. Calls `use_it` with every tenth value
/// that opens.
///
/// Each mutation must give an error or a value, and use at most a small multiple of the memory for the original file.
pub fn check<T, E: std::fmt::Display>(path: &Path, head: usize, open: impl Fn() -> Result<T, E>, use_it: impl Fn(T)) {
    let original = fs::read(path).unwrap();
    let name = path.display();
    let counted = || {
        ALLOCATOR.reset_peak_usage();
        let before = ALLOCATOR.current_usage();
        let result = open();
        (result, ALLOCATOR.peak_usage().saturating_sub(before))
    };
    open().map_err(|e| e.to_string()).unwrap();
    let whole = counted().1;
    let (mut refused, mut largest) = (0, 0.);
    for seed in 0..FILES {
        let bytes = mutated(&original, head, &mut ChaCha8Rng::seed_from_u64(seed));
        fs::write(path, &bytes).unwrap();
        let (result, taken) = counted();
        largest = f64::max(largest, taken as f64 / whole as f64);
        assert!(taken < 4 * whole + 8 * bytes.len(), "{name} {seed}: {taken} bytes for a file of {}", bytes.len());
        match result {
            Err(error) => {
                refused += 1;
                assert!(!error.to_string().is_empty());
            }
            Ok(opened) if seed % 10 == 0 => use_it(opened),
            Ok(_) => {}
        }
    }
    println!("{name}: {refused} of {FILES} are errors; at most {largest:.1} times the memory of the original file");
    assert!(refused > FILES / 4, "{name}: only {refused} of {FILES} mutations are errors");
    fs::write(path, original).unwrap();
}

/// A temporary folder, in `/dev/shm` if that exists, because many files are written.
pub fn folder() -> tempfile::TempDir {
    let shm = Path::new("/dev/shm");
    if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() }.unwrap()
}

/// A number near a power of two or near 2^64, likely to break index arithmetic.
fn extreme_number(rng: &mut impl Rng) -> u64 {
    let powers = [0, 1, 8, 15, 16, 31, 32, 33, 48, 62, 63];
    let near = powers.choose(rng).map_or(0, |power| 1u64 << power);
    near.wrapping_add(rng.random_range(0..4)).wrapping_sub(2)
}

/// Applies one to three random changes to the first `head` bytes.
fn mutated(original: &[u8], head: usize, rng: &mut ChaCha8Rng) -> Vec<u8> {
    let mut bytes = original.to_vec();
    for _ in 0..rng.random_range(1..4) {
        let head = head.min(bytes.len());
        if head < 16 {
            return bytes;
        }
        let at = rng.random_range(0..head);
        match rng.random_range(0..7) {
            0 => bytes.truncate(rng.random_range(0..bytes.len())),
            1 => bytes[at] ^= 1 << rng.random_range(0..8),
            2 => bytes[at] = rng.random(),
            3 => {
                let at = at.min(head - 8);
                bytes[at..at + 8].copy_from_slice(&extreme_number(rng).to_le_bytes());
            }
            4 => {
                let at = at.min(head - 4);
                bytes[at..at + 4].copy_from_slice(&(extreme_number(rng) as u32).to_le_bytes());
            }
            // Replace a number in text.
            5 => {
                let digits: Vec<usize> = (0..head).filter(|i| bytes[*i].is_ascii_digit()).collect();
                if let Some(&at) = digits.choose(rng) {
                    let end = (at..bytes.len()).find(|i| !bytes[*i].is_ascii_digit()).unwrap_or(bytes.len());
                    let number = match rng.random_range(0..6) {
                        0 => "-1".to_owned(),
                        1 => "1e309".to_owned(),
                        2 => "null".to_owned(),
                        3 => "[".repeat(200),
                        _ => extreme_number(rng).to_string(),
                    };
                    bytes.splice(at..end, number.into_bytes());
                }
            }
            // Duplicate or delete a range.
            _ => {
                let end = (at + rng.random_range(1..64)).min(bytes.len());
                let part = if rng.random() { bytes[at..end].repeat(2) } else { Vec::new() };
                bytes.splice(at..end, part);
            }
        }
    }
    bytes
}

use std::collections::BTreeSet;
use std::fs;

use rand::seq::{IndexedRandom, SliceRandom};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;

use super::*;

/// Random words, so that two texts have hardly an n-gram in common.
fn words(random: &mut ChaCha8Rng, count: usize) -> Vec<String> {
    (0..count).map(|_| letters(random)).collect()
}

fn letters(random: &mut ChaCha8Rng) -> String {
    (0..4).map(|_| char::from(*b"abcdefghijklmnop".choose(random).unwrap_or(&b'x'))).collect()
}

/// A text with one word in 20 changed.
fn edited(random: &mut ChaCha8Rng, words: &[String]) -> Vec<String> {
    let mut copy = words.to_vec();
    for at in (0..copy.len()).step_by(20) {
        let at = (at + random.random_range(0..20)).min(copy.len() - 1);
        copy[at] = format!("changed{}", letters(random));
    }
    copy
}

fn write(path: &Path, texts: &[String]) {
    let rows: String = texts.iter().map(|text| serde_json::json!({"text": text}).to_string() + "\n").collect();
    fs::write(path, rows).unwrap();
}

fn recipe(text: &str) -> CleanRecipe {
    toml::from_str(text).unwrap()
}

fn near(settings: &str) -> CleanRecipe {
    recipe(&format!("[[steps]]\nname = \"near_duplicates\"\n{settings}"))
}

/// Cleans with this number of threads; returns the report and the rows of the result.
fn run(paths: &[PathBuf], recipe: &CleanRecipe, threads: usize) -> (CleanReport, Vec<Value>) {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    let report = pool.install(|| clean(paths, recipe, Some(&out), &CleanOptions::default(), &mut |_| ())).unwrap();
    let text = fs::read_to_string(out.join("text/part-00000.jsonl")).unwrap();
    (report, text.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

fn near_of(report: &CleanReport) -> &NearReport {
    report.steps.iter().find_map(|step| step.near.as_ref()).unwrap()
}

#[test]
fn planted_near_copies_are_found_and_other_documents_are_kept() {
    let mut random = ChaCha8Rng::seed_from_u64(3);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.jsonl");
    let originals: Vec<Vec<String>> = (0..1000).map(|_| words(&mut random, 120)).collect();
    let mut texts: Vec<(bool, String)> = originals.iter().map(|words| (false, words.join(" "))).collect();
    texts.extend(originals.iter().take(500).map(|words| (true, edited(&mut random, words).join(" "))));
    write(&path, &texts.iter().map(|(_, text)| text.clone()).collect::<Vec<_>>());
    let (report, kept) = run(&[path], &near(""), 2);
    let kept: BTreeSet<u64> = kept.iter().map(|row| row["row"].as_u64().unwrap()).collect();
    let removed = |planted: bool| {
        texts.iter().enumerate().filter(|(i, (copy, _))| *copy == planted && !kept.contains(&(*i as u64 + 1))).count()
    };
    let (found, wrong) = (removed(true), removed(false));
    assert!(found >= 475, "{found} of 500 copies are found"); // 95 %
    assert_eq!(wrong, 0, "of 1,000 other documents"); // under 1 % is asked for
    assert_eq!(report.documents + found as u64, 1500);
}

/// The public report on clusters that grow over all books of a language (marin#6854).
#[test]
fn different_books_of_one_language_are_all_kept() {
    let mut random = ChaCha8Rng::seed_from_u64(4);
    let dir = tempfile::tempdir().unwrap();
    // 100 KB in few words, each rarer than the one before, as in a language.
    let vocabulary: Vec<String> = (0..2000).map(|_| letters(&mut random) + &letters(&mut random)[..2]).collect();
    let word = |random: &mut ChaCha8Rng| {
        let uniform: f64 = random.random();
        vocabulary[((2000_f64.powf(uniform)) as usize).min(1999)].clone()
    };
    for book in 0..200 {
        let text: Vec<String> = (0..14_500).map(|_| word(&mut random)).collect();
        fs::write(dir.path().join(format!("{book:03}.txt")), text.join(" ")).unwrap();
    }
    let (report, kept) = run(&[dir.path().to_owned()], &near(""), 2);
    assert!(report.read.bytes / 200 > 95_000, "{} bytes", report.read.bytes / 200);
    assert_eq!((kept.len(), report.steps[0].removed_documents()), (200, 0));
}

/// The public report on a template (marin#6851).
#[test]
fn letters_from_one_template_are_kept_and_their_group_is_reported() {
    let mut random = ChaCha8Rng::seed_from_u64(5);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("letters.jsonl");
    let parts = [
        "Thank you for your kind letter about the matter that is now before us which concerns",
        "We have read it with great care and we will send you our full answer within",
        "Please fill in the form that we enclose and take it to the office that serves",
    ];
    let letter = |random: &mut ChaCha8Rng| {
        parts.iter().map(|part| format!("{part} {}", words(random, 4).join(" "))).collect::<Vec<_>>().join(". ")
    };
    let letters: Vec<String> = (0..500).map(|_| letter(&mut random)).collect();
    let sets: Vec<Vec<u64>> = letters.iter().map(|text| minhash::shingles(text, 5)).collect();
    let similarity = minhash::jaccard(&sets[0], &sets[1]);
    assert!((0.4..0.5).contains(&similarity), "{similarity}");
    write(&path, &letters);
    let (report, kept) = run(&[path], &near(""), 2);
    assert_eq!((kept.len(), near_of(&report).clusters), (500, 0));
    assert!(near_of(&report).largest_candidates > 400, "{:?}", near_of(&report));
    assert!(report.to_string().contains("0 clusters; the largest group of candidates has"), "{report}");
}

/// The public report on clusters of which none, or all, were kept (text-dedup#129, datatrove#107).
#[test]
fn of_three_copies_the_first_is_kept_for_any_threads_and_order_of_files() {
    let mut random = ChaCha8Rng::seed_from_u64(6);
    let dir = tempfile::tempdir().unwrap();
    let originals: Vec<Vec<String>> = (0..1000).map(|_| words(&mut random, 60)).collect();
    // Copies of one text in different rows of three files; in each file the rows are in another order.
    let mut paths = Vec::new();
    for copy in 0..3 {
        let mut texts: Vec<String> = originals
            .iter()
            .map(|words| if copy == 0 { words.join(" ") } else { edited(&mut random, words).join(" ") })
            .collect();
        texts.shuffle(&mut random);
        paths.push(dir.path().join(format!("{copy}.jsonl")));
        write(&paths[copy], &texts);
    }
    // Enough bands that the probability to miss one of 2,000 copies is under 1e-6; no more than the similarity must be 0.5.
    let recipe = near("bands = 100\nrows = 3\nmax_removed = 0.7");
    let (report, kept) = run(&paths, &recipe, 1);
    assert_eq!(kept.len(), 1000);
    assert!(kept.iter().all(|row| row["source"].as_str().unwrap().ends_with("0.jsonl")), "the first of each");
    assert_eq!((report.documents, near_of(&report).clusters, near_of(&report).largest[0].documents), (1000, 1000, 3));
    assert_eq!(report.files.values().map(|file| file.removed).collect::<Vec<_>>(), [0, 1000, 1000]);
    let (two_threads, same) = run(&paths, &recipe, 2);
    assert_eq!((&report, &kept), (&two_threads, &same));
    paths.reverse();
    let (reversed, same) = run(&paths, &recipe, 2);
    assert_eq!((&report, &kept), (&reversed, &same));
}

#[test]
fn more_than_half_is_an_error_that_a_dry_run_and_a_limit_avoid() {
    let dir = tempfile::tempdir().unwrap();
    let (path, out) = (dir.path().join("a.jsonl"), dir.path().join("out"));
    let text = |i: usize| format!("The same {} words again and again in this rather short text", i / 3);
    write(&path, &(0..9).map(text).collect::<Vec<_>>());
    let (recipe, mut options) = (near(""), CleanOptions::default());
    let paths = [path];
    let error = clean(&paths, &recipe, Some(&out), &options, &mut |_| ()).unwrap_err();
    // Numbers are one word, so all nine are copies.
    assert!(error.is_callers_fault() && error.to_string().contains("would remove 8 of 9 documents"), "{error}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is written");
    let report = clean(&paths, &recipe, None, &options, &mut |_| ()).unwrap();
    assert_eq!((report.documents, near_of(&report).largest[0].documents), (1, 9));
    assert!(
        report.to_string().contains("9 documents: ") && report.to_string().contains("a.jsonl:1 is kept"),
        "{report}"
    );
    options.max_removed = Some(1.);
    clean(&paths, &recipe, Some(&out), &options, &mut |_| ()).unwrap();
    let error = clean(&paths, &recipe, Some(&out), &options, &mut |_| ()).unwrap_err().to_string();
    assert!(error.ends_with("out: already exists; choose another --out"), "{error}");
}

#[test]
fn steps_are_applied_in_order_and_removed_documents_are_written_with_the_reason() {
    let mut random = ChaCha8Rng::seed_from_u64(7);
    let dir = tempfile::tempdir().unwrap();
    let (path, out) = (dir.path().join("a.jsonl"), dir.path().join("out"));
    let texts: Vec<Vec<String>> = (0..4).map(|_| words(&mut random, 60)).collect();
    let leaked = "one two three four five six seven eight nine ten eleven twelve thirteen";
    write(
        &path,
        &[
            texts[0].join(" "),
            texts[0].join("  \u{0}"),
            texts[1].join(" "),
            edited(&mut random, &texts[1][..40]).join(" ") + " " + &texts[1][40..].join(" "),
            format!("{} {leaked}", texts[2].join(" ")),
            format!("{} mail me@here.org", texts[3].join(" ")),
        ],
    );
    let task = dir.path().join("counting.jsonl");
    fs::write(&task, serde_json::json!({"text": leaked}).to_string()).unwrap();
    let recipe = recipe(
        "[[steps]]\nname = \"unicode\"\n[[steps]]\nname = \"exact_duplicates\"\n[[steps]]\nname = \"near_duplicates\"\nbands = 100\n\
         rows = 3\n[[steps]]\nname = \"decontamination\"\n[[steps]]\nname = \"addresses\"",
    );
    let options = CleanOptions { evaluation: vec![task], ..CleanOptions::default() };
    let report = clean(&[path], &recipe, Some(&out), &options, &mut |_| ()).unwrap();
    let counts: Vec<(u64, u64, u64)> =
        report.steps.iter().map(|step| (step.documents, step.changed, step.removed_documents())).collect();
    assert_eq!(counts, [(6, 1, 0), (6, 0, 1), (5, 0, 1), (4, 0, 1), (3, 1, 0)]);
    let read = |name: &str| fs::read_to_string(out.join(name)).unwrap();
    let rows: Vec<Value> =
        read("text/part-00000.jsonl").lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows.iter().map(|row| row["row"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 3, 6]);
    assert!(rows[2]["text"].as_str().unwrap().ends_with("mail email@example.com"));
    let excluded: Vec<Value> = read("excluded.jsonl").lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let mut reasons: Vec<String> = excluded
        .iter()
        .map(|row| format!("{} {} {}", row["row"], row["step"].as_str().unwrap(), row["reason"].as_str().unwrap()))
        .collect();
    reasons.sort();
    assert_eq!(reasons, ["2 exact_duplicates copy", "4 near_duplicates near copy", "5 decontamination counting"]);
    let details: String = excluded.iter().map(|row| row["detail"].to_string()).collect();
    assert!(details.contains("a.jsonl:1") && details.contains("a.jsonl:3") && details.contains(leaked), "{details}");
    let written: Value = serde_json::from_str(&read("report.json")).unwrap();
    assert_eq!(written["documents"], 3);
}

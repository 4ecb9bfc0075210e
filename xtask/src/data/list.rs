//! The table of `cargo xtask fetch-data --list`.

use std::path::Path;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use llm_hub::size_text;

use super::catalogue::{Catalogue, File, Set};
use super::lock::LockFile;

/// The sets by purpose: name, size, licence, what is there, description.
pub(crate) fn table(catalogue: &Catalogue, lock: &LockFile, dir: &Path) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.add_row(["name", "size", "here", "licence", "content"]);
    let mut purpose = None;
    for set in &catalogue.sets {
        if purpose != Some(set.purpose) {
            purpose = Some(set.purpose);
            table.add_row([format!("\n{}", set.purpose)]);
        }
        let here = here(set, lock, dir);
        table.add_row([format!("  {}", set.name), size_text(set.bytes), here, set.licence.clone(), set.about.clone()]);
    }
    if let Some(column) = table.column_mut(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let text = table.to_string();
    let lines: Vec<&str> = text.lines().map(|line| line.strip_prefix(' ').unwrap_or(line).trim_end()).collect();
    let folder = dir.display();
    format!("{}\n\nhere: what {folder} has. Fetch with: cargo xtask fetch-data NAME --to {folder}\n", lines.join("\n"))
}

/// What a data folder has of a set: `yes`, the part of its bytes that has arrived, or nothing.
fn here(set: &Set, lock: &LockFile, dir: &Path) -> String {
    let length = |path: &Path| std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file).map(|file| file.len());
    let locked = lock.of(&set.name);
    if !locked.is_empty() && locked.iter().all(|file| length(&file.in_folder(dir)) == Some(file.bytes)) {
        return "yes".to_owned();
    }
    let folder = dir.join(&set.name);
    let paths = llm_files::list_files(&folder).unwrap_or_default();
    let ours = |path: &str| set.files.iter().map(File::path).any(|pattern| super::catalogue::matches(pattern, path));
    let found = paths.iter().filter(|path| ours(path.trim_end_matches(".part")));
    match found.filter_map(|path| length(&folder.join(path))).sum::<u64>() {
        0 => String::new(),
        bytes => format!("{:.0} %", (100. * bytes as f64 / set.bytes as f64).clamp(1., 99.)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_there_in_whole_in_part_or_not() {
        let catalogue = Catalogue::read().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let set = catalogue.find("gsm8k").unwrap();
        assert_eq!(here(set, &LockFile::default(), dir.path()), "");
        std::fs::create_dir(dir.path().join("gsm8k")).unwrap();
        std::fs::write(dir.path().join("gsm8k/train.jsonl.part"), vec![0; set.bytes as usize / 2]).unwrap();
        assert_eq!(here(set, &LockFile::default(), dir.path()), "50 %");
        let text = table(&catalogue, &LockFile::default(), dir.path());
        assert!(
            text.lines().any(|line| line.starts_with("  gsm8k") && line.contains("4.9 MB") && line.contains("50 %")),
            "{text}"
        );
        assert!(text.lines().any(|line| line == "Evaluation"), "{text}");
    }
}

//! What was read, and what was left out or changed.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

/// What a file or document has that is left out or changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Problem {
    /// A document of white space only.
    Empty,
    /// A row whose text is null.
    Null,
    /// A row whose text is no string, or is missing.
    NotText,
    /// A row or document that cannot be read: no JSON, no UTF-8, another number of columns.
    Broken,
    /// A compressed file that is cut or damaged; the documents before the cut are read.
    Cut,
    /// A file that starts with a byte order mark, which is removed.
    ByteOrderMark,
    /// A document with `\r\n`, which becomes `\n`.
    CrLf,
    /// A file of a folder whose kind is not known; it is not read.
    UnknownFile,
}

/// What was read, and what was left out or changed. [`Display`](fmt::Display) is one line for each kind of problem that occurs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ReadReport {
    /// Documents, without those left out.
    pub documents: u64,
    /// Bytes of their text.
    pub bytes: u64,
    /// Documents left out because they are empty.
    pub empty: u64,
    /// Rows left out because their text is null.
    pub null: u64,
    /// Rows left out because their text is missing or no string.
    pub not_text: u64,
    /// Rows and documents left out because they cannot be read.
    pub broken: u64,
    /// Compressed files that are cut or damaged.
    pub cut: u64,
    /// Files with a byte order mark.
    pub with_bom: u64,
    /// Documents with `\r\n`.
    pub with_crlf: u64,
    /// Files of folders that are not read because their kind is not known.
    pub unknown_files: u64,
    /// The first places of each problem, and its reason where there is one.
    pub first: BTreeMap<Problem, Vec<String>>,
}

impl ReadReport {
    /// Number of places in `first` for each problem.
    const SHOWN: usize = 3;

    pub(super) fn add(&mut self, problem: Problem, place: impl FnOnce() -> String) {
        *self.count_mut(problem) += 1;
        let first = self.first.entry(problem).or_default();
        if first.len() < Self::SHOWN {
            first.push(place());
        }
    }

    fn count_mut(&mut self, problem: Problem) -> &mut u64 {
        match problem {
            Problem::Empty => &mut self.empty,
            Problem::Null => &mut self.null,
            Problem::NotText => &mut self.not_text,
            Problem::Broken => &mut self.broken,
            Problem::Cut => &mut self.cut,
            Problem::ByteOrderMark => &mut self.with_bom,
            Problem::CrLf => &mut self.with_crlf,
            Problem::UnknownFile => &mut self.unknown_files,
        }
    }

    /// One line for each kind of problem that occurs.
    pub fn lines(&self) -> Vec<String> {
        let counted = [
            (Problem::Empty, self.empty, "empty documents are left out"),
            (Problem::Null, self.null, "rows without text (null) are left out"),
            (Problem::NotText, self.not_text, "rows whose \"text\" is missing or no string are left out"),
            (Problem::Broken, self.broken, "rows or documents that cannot be read are left out"),
            (Problem::Cut, self.cut, "compressed files are cut or damaged"),
            (Problem::ByteOrderMark, self.with_bom, "byte order marks are removed"),
            (Problem::CrLf, self.with_crlf, "documents have \\r\\n, replaced by \\n"),
            (Problem::UnknownFile, self.unknown_files, "files of an unknown kind are not read"),
        ];
        let occurring = counted.into_iter().filter(|(_, count, _)| *count > 0);
        occurring
            .map(|(problem, count, what)| {
                let first = self.first.get(&problem).map_or(&[][..], Vec::as_slice);
                let more = if count > first.len() as u64 { "; …" } else { "" };
                format!("{count} {what}: {}{more}", first.join("; "))
            })
            .collect()
    }
}

impl fmt::Display for ReadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.lines().join("\n"))
    }
}

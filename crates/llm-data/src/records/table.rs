//! Records of CSV and TSV files. The first row has the names of the columns.

use std::path::Path;

use csv::{ByteRecord, ReaderBuilder, Terminator};
use serde_json::{Map, Value};

use super::{Each, Limit, text_of_record};
use crate::error::Place;
use crate::source;
use crate::{Error, Result};

/// Columns that are no text: a cell that is JSON is read as such.
const JSON_COLUMNS: [&str; 16] = [
    "messages",
    "conversations",
    "prompt",
    "completion",
    "chosen",
    "rejected",
    "history",
    "tools",
    "documents",
    "chat_template_kwargs",
    "answers",
    "order",
    "ranks",
    "margin",
    "train",
    "weight",
];

/// Calls `each` with every row of a CSV file with this delimiter. Empty cells are null.
pub(super) fn for_each(path: &Path, delimiter: u8, limit: Limit, each: &mut Each) -> Result<()> {
    let broken = |e: csv::Error| Error::unusable(path, format!("not CSV: {e}"));
    let mut builder = ReaderBuilder::new();
    // With the default end of records, the line numbers of a file with "\r\n" are those of the line before.
    builder.delimiter(delimiter).flexible(true).has_headers(false).terminator(Terminator::Any(b'\n'));
    let mut reader = builder.from_reader(source::open(path)?);
    let (mut record, mut columns) = (ByteRecord::new(), Vec::new());
    while reader.read_byte_record(&mut record).map_err(broken)? {
        if record.len() == 1 && without_line_end(&record[0]).is_empty() {
            continue;
        }
        let line = record.position().map_or(1, csv::Position::line);
        let place = Place::line(path, usize::try_from(line).unwrap_or(usize::MAX));
        if columns.is_empty() {
            columns = header(&record).map_err(|message| Error::Record { place, message })?;
        } else {
            each(place, limit.check(record.as_slice().len()).and_then(|()| row(&columns, &record)))?;
        }
    }
    Ok(())
}

/// The last cell of a row without the first half of "\r\n".
fn without_line_end(cell: &[u8]) -> &[u8] {
    cell.strip_suffix(b"\r").unwrap_or(cell)
}

fn header(record: &ByteRecord) -> Result<Vec<String>, String> {
    let names = record.iter().map(|name| Ok(text_of_record(name)?.trim().to_owned()));
    let names = names.collect::<Result<Vec<String>, String>>()?;
    match names.iter().enumerate().find(|(index, name)| names[..*index].contains(name)) {
        Some((_, twice)) => {
            Err(format!("two columns are called {twice:?}; each name must occur once in the first row"))
        }
        None => Ok(names),
    }
}

fn row(columns: &[String], record: &ByteRecord) -> Result<Value, String> {
    if record.len() != columns.len() {
        return Err(format!(
            "the row has {} values for {} columns; put a value with a delimiter, a quote or a line end in quotes",
            record.len(),
            columns.len()
        ));
    }
    let mut object = Map::new();
    for (index, (name, cell)) in columns.iter().zip(record).enumerate() {
        let cell = if index + 1 == columns.len() { without_line_end(cell) } else { cell };
        let text = text_of_record(cell).map_err(|wrong| format!("{name:?}: {wrong}"))?;
        object.insert(name.clone(), value(name, text));
    }
    Ok(Value::Object(object))
}

fn value(column: &str, text: &str) -> Value {
    // A prompt can be a text that looks like JSON, such as a number; only lists of messages are not text there.
    let is_text = ["prompt", "completion", "chosen", "rejected"].contains(&column) && !text.trim().starts_with("[{");
    match JSON_COLUMNS.contains(&column) && !is_text {
        _ if text.is_empty() => Value::Null,
        true => serde_json::from_str(text).unwrap_or_else(|_| text.into()),
        false => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::read_as;

    #[test]
    fn cells_with_quotes_line_ends_and_json_are_read() {
        let content = "\u{feff}prompt,completion,messages,weight\r\n\"a, \"\"b\"\"\nc\",4,\"[{\"\"role\"\": \"\"user\"\"}]\",1\nd,,,\n";
        let rows = read_as("data.csv", content.as_bytes()).unwrap();
        let first = json!({"prompt": "a, \"b\"\nc", "completion": "4", "messages": [{"role": "user"}], "weight": 1});
        let second = json!({"prompt": "d", "completion": null, "messages": null, "weight": null});
        assert_eq!(rows, [(2, Ok(first.clone())), (4, Ok(second.clone()))]);
        let tabs = content.replace(',', "\t").replace("a\t ", "a, ");
        assert_eq!(read_as("data.tsv", tabs.as_bytes()).unwrap(), [(2, Ok(first)), (4, Ok(second))]);
    }

    #[test]
    fn broken_rows_are_named_and_skipped() {
        let rows = read_as("data.csv", b"a,b\n1,2\n1,2,3\n\xff,2\n1,\0\n3,4\n").unwrap();
        let wrong = |index: usize| rows[index].1.as_ref().unwrap_err().as_str();
        assert_eq!((rows.len(), rows[1].0), (5, 3));
        assert!(wrong(1).starts_with("the row has 3 values for 2 columns"), "{}", wrong(1));
        assert!(wrong(2).starts_with("\"a\": byte 1 is not UTF-8"), "{}", wrong(2));
        assert!(wrong(3).starts_with("\"b\": byte 1 is NUL"), "{}", wrong(3));
        assert_eq!(rows[4], (6, Ok(json!({"a": "3", "b": "4"}))));
        let twice = read_as("data.csv", b"a,a\n1,2\n").unwrap_err().to_string();
        assert!(twice.contains("data.csv line 1: two columns are called \"a\""), "{twice}");
    }
}

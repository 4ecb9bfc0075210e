//! Records of Apache Parquet files.

use std::fs::File;
use std::path::Path;

use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row};
use parquet::schema::types::Type;
use serde_json::Value;

use super::Each;
use crate::error::Place;
use crate::{Error, Result};

/// Calls `each` with every row of a Parquet file. `column`: read only this one, if the file has it.
pub(super) fn for_each(path: &Path, column: Option<&str>, each: &mut Each) -> Result<()> {
    let file = File::open(path).map_err(Error::io(path))?;
    let unusable = |e: ParquetError| Error::unusable(path, message(&e));
    let reader = SerializedFileReader::new(file).map_err(unusable)?;
    let root = reader.metadata().file_metadata().schema();
    let field = root.get_fields().iter().find(|field| Some(field.name()) == column).cloned();
    let one = |field| Type::group_type_builder(root.name()).with_fields(vec![field]).build();
    let projection = field.map(one).transpose().map_err(unusable)?;
    for (index, row) in reader.get_row_iter(projection).map_err(unusable)?.enumerate() {
        let row = row.map_err(unusable)?;
        each(Place::row(path, index + 1), Ok(object(row)))?;
    }
    Ok(())
}

fn message(error: &ParquetError) -> String {
    let text = error.to_string();
    let text = text.trim_start_matches("Parquet error: ");
    // The codecs that this build reads are snappy, gzip and none.
    match text.to_lowercase().contains("codec") || text.contains("feature") {
        true => {
            format!("its pages are compressed in an unsupported way ({text}); write it with compression=\"snappy\"")
        }
        false => format!("not a Parquet file, or a damaged one: {text}"),
    }
}

fn object(row: Row) -> Value {
    Value::Object(row.into_columns().into_iter().map(|(name, field)| (name, value(field))).collect())
}

fn value(field: Field) -> Value {
    match field {
        Field::Null => Value::Null,
        Field::Bool(x) => x.into(),
        Field::Byte(x) => x.into(),
        Field::Short(x) => x.into(),
        Field::Int(x) | Field::Date(x) | Field::TimeMillis(x) => x.into(),
        Field::Long(x) | Field::TimeMicros(x) | Field::TimestampMillis(x) | Field::TimestampMicros(x) => x.into(),
        Field::UByte(x) => x.into(),
        Field::UShort(x) => x.into(),
        Field::UInt(x) => x.into(),
        Field::ULong(x) => x.into(),
        Field::Float16(x) => f32::from(x).into(),
        Field::Float(x) => x.into(),
        Field::Double(x) => x.into(),
        Field::Str(text) => text.into(),
        Field::Bytes(bytes) => String::from_utf8_lossy(bytes.data()).into(),
        Field::Group(row) => object(row),
        Field::ListInternal(list) => list.elements().iter().cloned().map(value).collect(),
        Field::MapInternal(map) => {
            let entries = map.entries().iter().cloned();
            let key = |key: Field| match value(key) {
                Value::String(text) => text,
                other => other.to_string(),
            };
            Value::Object(entries.map(|(name, field)| (key(name), value(field))).collect())
        }
        other @ Field::Decimal(_) => other.to_string().into(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::super::{Limit, for_each_valid_record};
    use super::*;

    fn golden(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
    }

    fn read(name: &str) -> Result<Vec<Value>> {
        let mut rows = Vec::new();
        for_each_valid_record(&golden(name), Limit::Rows, &mut |_, value| {
            rows.push(value);
            Ok(())
        })?;
        Ok(rows)
    }

    /// The files are written by pyarrow (`tests/golden/make_rows.py`).
    #[test]
    fn rows_of_pyarrow_are_those_of_the_jsonl_file() {
        let expected = read("rows.jsonl").unwrap();
        assert_eq!((expected.len(), expected[0]["messages"].as_array().map(Vec::len)), (3, Some(4)));
        for name in ["rows-snappy.parquet", "rows-gzip.parquet", "rows-none.parquet", "rows.jsonl.zst"] {
            assert_eq!(read(name).unwrap(), expected, "{name}");
        }
    }

    #[test]
    fn other_compressions_and_damaged_files_are_named_with_the_fix() {
        let error = read("rows-zstd.parquet").unwrap_err().to_string();
        assert!(error.contains("rows-zstd.parquet: its pages") && error.contains("compression=\"snappy\""), "{error}");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cut.parquet");
        let bytes = std::fs::read(golden("rows-none.parquet")).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        let error = for_each(&path, None, &mut |_, _| Ok(())).unwrap_err().to_string();
        assert!(error.contains("cut.parquet: not a Parquet file, or a damaged one"), "{error}");
    }
}

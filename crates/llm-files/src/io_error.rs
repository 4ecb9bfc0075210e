//! What an I/O error means: the caller's fault or the machine's, and its text for a person.

use std::io::{Error, ErrorKind};

/// Whether the caller can fix an I/O error by another request: a missing file, a folder in the place of a file, an existing
/// output, damaged content. Other errors are the machine's: a full disk, no permission, a device error.
///
/// ```
/// use std::io::{Error, ErrorKind};
///
/// assert!(llm_files::is_callers_fault(&Error::from(ErrorKind::NotFound)));
/// assert!(!llm_files::is_callers_fault(&Error::from(ErrorKind::StorageFull)));
/// ```
pub fn is_callers_fault(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::AlreadyExists
            | ErrorKind::DirectoryNotEmpty
            | ErrorKind::InvalidData
            | ErrorKind::InvalidFilename
            | ErrorKind::InvalidInput
            | ErrorKind::IsADirectory
            | ErrorKind::NotADirectory
            | ErrorKind::NotFound
            | ErrorKind::UnexpectedEof
    )
}

/// The text of an I/O error for a person. A full disk and an exceeded quota are named.
pub fn error_text(error: &Error) -> String {
    match error.kind() {
        ErrorKind::StorageFull => format!("disk full ({error}); free some space and try again"),
        ErrorKind::QuotaExceeded => format!("disk quota exceeded ({error}); free some space and try again"),
        ErrorKind::NotFound => "no such file or folder".to_owned(),
        ErrorKind::IsADirectory => "is a folder; give a file".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(unix)]
    fn a_folder_in_the_place_of_a_file_is_named() {
        let error = std::fs::read_to_string("src").unwrap_err(); // tests run in the folder of the crate
        assert!(is_callers_fault(&error));
        assert_eq!(error_text(&error), "is a folder; give a file");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_full_device_is_named_and_not_the_callers_fault() {
        let error = std::fs::write("/dev/full", "x").unwrap_err();
        assert!(!is_callers_fault(&error));
        assert!(error_text(&error).starts_with("disk full ("), "{}", error_text(&error));
    }

    #[test]
    fn errors_of_the_machine_are_not_the_callers_fault() {
        for (kind, callers) in [
            (ErrorKind::StorageFull, false),
            (ErrorKind::QuotaExceeded, false),
            (ErrorKind::PermissionDenied, false),
            (ErrorKind::ReadOnlyFilesystem, false),
            (ErrorKind::Interrupted, false),
            (ErrorKind::NotFound, true),
            (ErrorKind::NotADirectory, true),
            (ErrorKind::AlreadyExists, true),
        ] {
            assert_eq!(is_callers_fault(&Error::from(kind)), callers, "{kind:?}");
        }
    }
}

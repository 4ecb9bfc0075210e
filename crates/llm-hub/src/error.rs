//! Errors of transfers and of the cache.

use std::path::PathBuf;

/// A file could not be fetched or found. The message names the URL or the file, the problem and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or written.
    #[error("{}: {}", path.display(), llm_files::error_text(source))]
    Io {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// A URL is not one that can be fetched.
    #[error("{url}: {message}")]
    Url {
        /// The URL.
        url: String,
        /// What is wrong with it, and the fix.
        message: String,
    },
    /// The server refused the request.
    #[error("{url}: the server answered {status}; {advice}")]
    Status {
        /// The URL that was asked for.
        url: String,
        /// The HTTP status.
        status: u16,
        /// What to do.
        advice: String,
    },
    /// There is no connection to the server.
    #[error(
        "{url}: cannot be reached ({message}); check the network, the proxy (HTTPS_PROXY) and the address (HF_ENDPOINT)"
    )]
    Unreachable {
        /// The URL.
        url: String,
        /// The error of the connection.
        message: String,
    },
    /// Every try failed. What has arrived is kept, so that the next call goes on with it.
    #[error(
        "{url}: {message} ({tries} tries without progress); run the command again, it goes on after the bytes that have arrived"
    )]
    GaveUp {
        /// The URL.
        url: String,
        /// Why the last try failed.
        message: String,
        /// Number of tries without progress.
        tries: u32,
    },
    /// The length differs from the expected one.
    #[error(
        "{url}: has {found} bytes, {expected} were expected; the file on the server has changed, or the expectation is wrong"
    )]
    Length {
        /// The URL.
        url: String,
        /// The expected length in bytes.
        expected: u64,
        /// The length that the server has or sent.
        found: u64,
    },
    /// The content differs from the expected one.
    #[error(
        "{url}: has sha256 {found}, {expected} was expected; the file on the server has changed, or the expectation is wrong"
    )]
    Sha256 {
        /// The URL.
        url: String,
        /// The expected checksum.
        expected: String,
        /// The checksum of what was fetched.
        found: String,
    },
    /// A file that is already there differs from the expected one.
    #[error("{}: {message}; delete it to fetch it again", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
        /// How it differs.
        message: String,
    },
    /// The disk has too little space.
    #[error("{}: {} are needed, {} are free on this disk; free some space, or choose another folder", path.display(), size_text(*needed), size_text(*free))]
    DiskSpace {
        /// The file to be written.
        path: PathBuf,
        /// The bytes that are still to be written.
        needed: u64,
        /// The bytes that are free.
        free: u64,
    },
    /// The hub answered with something that is not understood.
    #[error("{url}: {message}; check that HF_ENDPOINT is the address of a Hugging Face hub")]
    Answer {
        /// The URL.
        url: String,
        /// What is wrong with the answer.
        message: String,
    },
    /// A repository does not have what is needed.
    #[error("{name}: {message}")]
    Repository {
        /// The name, `org/name` or `org/name@revision`.
        name: String,
        /// What is missing, and the fix.
        message: String,
    },
}

impl Error {
    /// Whether the caller can fix it: a wrong name, a missing permission, a file that is not there. Other errors come from the network,
    /// the server or the machine.
    pub fn is_callers_fault(&self) -> bool {
        match self {
            Self::Io { source, .. } => llm_files::is_callers_fault(source),
            Self::Url { .. } | Self::Changed { .. } | Self::Repository { .. } => true,
            Self::Status { status, .. } => *status < 500 && *status != 429,
            Self::Unreachable { .. }
            | Self::GaveUp { .. }
            | Self::Length { .. }
            | Self::Sha256 { .. }
            | Self::DiskSpace { .. }
            | Self::Answer { .. } => false,
        }
    }

    /// Whether the server could not be asked: a copy that was fetched earlier may serve.
    pub(crate) fn is_of_the_connection(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::GaveUp { .. })
    }

    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}

/// A number of bytes for a person: `812 B`, `1.3 kB`, `2.2 GB` (powers of 1000).
pub fn size_text(bytes: u64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 999.5 && unit + 1 < units.len() {
        value /= 1000.;
        unit += 1;
    }
    if unit == 0 || value >= 99.95 {
        format!("{value:.0} {}", units[unit])
    } else {
        format!("{value:.1} {}", units[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::size_text;

    #[test]
    fn a_size_has_three_digits_and_a_unit() {
        let sizes = [(0, "0 B"), (999, "999 B"), (1_000, "1.0 kB"), (1_115_394, "1.1 MB"), (999_960, "1.0 MB")];
        for (bytes, text) in sizes {
            assert_eq!(size_text(bytes), text);
        }
        assert_eq!(size_text(538_090_408), "538 MB");
        assert_eq!(size_text(28_500_000_000), "28.5 GB");
    }
}

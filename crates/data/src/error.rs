//! What can go wrong, always with the culprit and, where there is one, the fix; each message is one line.

use std::path::{Path, PathBuf};

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of this crate. Messages are single lines that name the file or argument and say what would mend it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder is missing, unreadable, damaged or holds something else than expected.
    #[error("{}: {reason}", path.display())]
    File {
        /// The culprit.
        path: PathBuf,
        /// What is wrong with it and what to do.
        reason: String,
    },
    /// One line of a text file is wrong.
    #[error("{}:{line}: {reason}", path.display())]
    Line {
        /// The text file.
        path: PathBuf,
        /// Line number, counted from 1.
        line: usize,
        /// What is wrong with it and what to do.
        reason: String,
    },
    /// One entry of an archive breaks a rule; nothing was imported.
    #[error("{}: entry {entry:?}: {reason}; nothing was imported", archive.display())]
    Archive {
        /// The archive.
        archive: PathBuf,
        /// Name of the entry as the archive spells it.
        entry: String,
        /// Which rule it breaks.
        reason: String,
    },
    /// An argument is out of its range.
    #[error("{name}: {reason}")]
    Param {
        /// The argument.
        name: &'static str,
        /// What was expected and what came.
        reason: String,
    },
    /// A sample index beyond the dataset's end.
    #[error("sample {index} was asked for, but the dataset has {count}")]
    Index {
        /// The index asked for.
        index: usize,
        /// Number of samples.
        count: usize,
    },
    /// The loader's worker thread ended without an answer.
    #[error("a loader thread ended early; start the loader again with workers = 0 to see the cause")]
    LoaderStopped,
}

impl Error {
    /// An error about a file or folder.
    pub(crate) fn file(path: impl AsRef<Path>, reason: impl Into<String>) -> Self {
        Self::File { path: path.as_ref().to_path_buf(), reason: one_line(reason.into()) }
    }

    /// The same error about a file that is better known as part of `known` than of `passing`.
    pub(crate) fn moved(mut self, passing: &Path, known: &Path) -> Self {
        if let Self::File { path, reason } | Self::Line { path, reason, .. } = &mut self {
            if let Ok(rest) = path.strip_prefix(passing) {
                *path = known.join(rest);
            }
            *reason = reason.replace(&passing.display().to_string(), &known.display().to_string());
        }
        self
    }

    /// An error about a line (counted from 1) of a text file.
    pub(crate) fn line(path: impl AsRef<Path>, line: usize, reason: impl Into<String>) -> Self {
        Self::Line { path: path.as_ref().to_path_buf(), line, reason: one_line(reason.into()) }
    }

    /// An error about an argument.
    pub(crate) fn param(name: &'static str, reason: impl Into<String>) -> Self {
        Self::Param { name, reason: reason.into() }
    }

    /// An error about an archive's entry.
    pub(crate) fn archive(archive: &Path, entry: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Archive { archive: archive.to_path_buf(), entry: entry.into(), reason: one_line(reason.into()) }
    }
}

/// Decoders and parsers report over several lines; ours are one.
fn one_line(text: String) -> String {
    if !text.contains('\n') {
        return text;
    }
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ")
}

//! Errors of this crate.

use std::path::{Path, PathBuf};

/// The result of a fallible call of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong between a file of samples and a table of scores.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A line of a data file is not what its format says.
    #[error("{path}, line {line}: {what}")]
    Data {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The field, what it is, and what was expected.
        what: String,
    },
    /// A file of prompts is not what it should be, or lacks one.
    #[error("{path}: {what}")]
    Prompts {
        /// The file.
        path: PathBuf,
        /// The task, what is wrong, and what was expected.
        what: String,
    },
    /// A file of results cannot be continued or read.
    #[error("{path}: {what}")]
    Results {
        /// The file.
        path: PathBuf,
        /// Why, and what to do.
        what: String,
    },
    /// The request cannot be carried out as asked.
    #[error("{0}")]
    Request(String),
    /// From the engine.
    #[error(transparent)]
    Engine(#[from] speedread_engine::Error),
}

impl Error {
    /// Whether the caller's wish to stop is the reason.
    pub fn is_cancelled(&self) -> bool {
        use speedread_engine::Error as Engine;
        matches!(self, Error::Engine(Engine::Cancelled | Engine::Attention(speedread_attention::Error::Cancelled)))
    }

    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.to_owned();
        move |source| Error::Io { path, source }
    }
}

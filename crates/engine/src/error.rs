//! Errors of this crate.

/// The result of a fallible call of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong between a model's files and its answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or written; says which.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: std::path::PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A model file breaks its format; says where and how.
    #[error("{path}: {what}")]
    Format {
        /// The file.
        path: std::path::PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The model is of a kind this engine does not run.
    #[error("{0}")]
    Unsupported(String),
    /// The request cannot be carried out as asked.
    #[error("{0}")]
    Request(String),
    /// A model could not be downloaded.
    #[error("could not fetch {model}: {what}")]
    Fetch {
        /// Its name.
        model: String,
        /// Why, for each of its sources.
        what: String,
    },
    /// From the attention crate.
    #[error(transparent)]
    Attention(#[from] speedread_attention::Error),
    /// From a CUDA device.
    #[error(transparent)]
    Cuda(#[from] speedread_cuda::Error),
    /// The caller asked to stop.
    #[error("interrupted")]
    Cancelled,
}

//! Errors of this crate.

/// What can be wrong with a call.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Shapes of the arguments do not fit together, or a slice is too short for its shape.
    #[error("{0}")]
    Shape(String),
    /// A pattern's numbers make no sense.
    #[error("{0}")]
    Pattern(String),
    /// A pattern file cannot be used.
    #[error("{}: {what}", path.display())]
    File {
        /// The file.
        path: std::path::PathBuf,
        /// What is wrong, and where in it.
        what: String,
    },
    /// The device, or a call to its driver, failed.
    #[error(transparent)]
    Cuda(#[from] speedread_cuda::Error),
    /// The caller asked to stop (see `Options::cancel`).
    #[error("interrupted")]
    Cancelled,
}

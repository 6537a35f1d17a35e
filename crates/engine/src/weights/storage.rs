//! The bytes behind weights.
use std::fs::File;
use std::path::Path;

use crate::{Error, Result};

/// Immutable bytes: a file mapped into memory, or owned.
#[derive(Debug)]
pub(crate) enum Storage {
    Mapped(memmap2::Mmap),
    Owned(Vec<u8>),
}

impl Storage {
    /// Maps a file.
    pub(crate) fn map(path: &Path) -> Result<Self> {
        let io = |source| Error::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(io)?;
        let kind = file.metadata().map_err(io)?;
        if !kind.is_file() {
            return Err(Error::Format { path: path.to_owned(), what: "not a regular file".into() });
        }
        if kind.len() == 0 {
            // Some systems refuse to map nothing.
            return Ok(Storage::Owned(Vec::new()));
        }
        // SAFETY: the map is only read. It stays sound as long as nobody shortens or rewrites the file while it is in
        // use, which no engine that maps its weights can rule out; model files are written once and then kept.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(io)?;
        Ok(Storage::Mapped(map))
    }

    /// All bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Storage::Mapped(map) => map,
            Storage::Owned(bytes) => bytes,
        }
    }
}

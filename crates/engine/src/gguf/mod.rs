//! GGUF files, versions 2 and 3: typed metadata, the tensor table, and the memory-mapped data behind it.
//!
//! A file is, in little-endian byte order: the magic `GGUF`, a version, two counts, the metadata (key, type, value),
//! the tensor table (name, dimensions, type, offset), and, from the next multiple of `general.alignment` on, the data.
//! The format is that of the ggml project (`docs/gguf.md` there).
//!
//! Nothing in a file is trusted: every size is checked in 64-bit arithmetic against what the file still holds before
//! anything is allocated, so a hostile file costs at most a small multiple of its own length and ends in an error.
mod metadata;
mod parse;
mod reader;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use metadata::{Array, Metadata, Value};

use crate::quant::DType;
use crate::weights::Storage;
use crate::{Error, Result};

/// One row of a file's tensor table. The data it points at lies within the file: that is checked on opening.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// The tensor's name, unique in its file.
    pub name: String,
    /// Dimensions, outermost first: `[rows, columns]` of a matrix (the file stores them the other way round).
    pub shape: Vec<usize>,
    /// How the elements are stored.
    pub dtype: DType,
    /// Where the data starts, in bytes from the start of the file.
    pub offset: usize,
    /// How many bytes the data takes.
    pub len: usize,
}

/// An opened GGUF file.
#[derive(Debug)]
pub struct GgufFile {
    /// What the file says about its model, in file order.
    pub metadata: Metadata,
    path: PathBuf,
    version: u32,
    tensors: Vec<TensorInfo>,
    by_name: HashMap<String, usize>,
    storage: Arc<Storage>,
}

impl GgufFile {
    /// Maps the file into memory and reads its metadata and tensor table.
    pub fn open(path: &Path) -> Result<Self> {
        Self::parse(path.to_owned(), Storage::map(path)?)
    }

    /// Reads a file that is already in memory; errors call it `<memory>`.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self> {
        Self::parse(PathBuf::from("<memory>"), Storage::Owned(bytes))
    }

    fn parse(path: PathBuf, storage: Storage) -> Result<Self> {
        let header =
            parse::header(&path, storage.bytes()).map_err(|what| Error::Format { path: path.clone(), what })?;
        let by_name = header.tensors.iter().enumerate().map(|(i, t)| (t.name.clone(), i)).collect();
        Ok(Self {
            metadata: header.metadata,
            path,
            version: header.version,
            tensors: header.tensors,
            by_name,
            storage: Arc::new(storage),
        })
    }

    /// The file this was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The version of the format: 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The tensor table, in file order.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The entry of one tensor.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).map(|&i| &self.tensors[i])
    }

    /// The bytes of the whole file, shared.
    pub(crate) fn storage(&self) -> &Arc<Storage> {
        &self.storage
    }
}

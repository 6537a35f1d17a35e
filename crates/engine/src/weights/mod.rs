//! A model's weights: named tensors of a GGUF file or of a Hugging Face folder.
mod matrix;
mod safetensors;
mod storage;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use matrix::Matrix;
pub(crate) use storage::Storage;

use crate::gguf::GgufFile;
use crate::quant::DType;
use crate::{Error, Result};

/// Where a tensor is and what it is. Opening has checked that its data is all there.
#[derive(Debug, Clone)]
struct Tensor {
    storage: Arc<Storage>,
    /// The file, for messages.
    file: Arc<Path>,
    offset: usize,
    /// Outermost first.
    shape: Vec<usize>,
    /// Or the name of a type that is not read.
    dtype: Result<DType, String>,
}

/// The named tensors of a model. Data stays in the mapped files until it is used.
#[derive(Debug, Clone)]
pub struct Weights {
    source: PathBuf,
    tensors: BTreeMap<String, Tensor>,
}

impl Weights {
    /// The tensors of a GGUF file.
    pub fn open_gguf(gguf: &GgufFile) -> Self {
        let file: Arc<Path> = gguf.path().into();
        let tensors = gguf.tensors().iter().map(|t| {
            let tensor = Tensor {
                storage: Arc::clone(gguf.storage()),
                file: Arc::clone(&file),
                offset: t.offset,
                shape: t.shape.clone(),
                dtype: Ok(t.dtype),
            };
            (t.name.clone(), tensor)
        });
        Self { source: gguf.path().to_owned(), tensors: tensors.collect() }
    }

    /// The tensors of a Hugging Face folder: of `model.safetensors`, or of the files that
    /// `model.safetensors.index.json` names.
    pub fn open_safetensors(folder: &Path) -> Result<Self> {
        Ok(Self { source: folder.to_owned(), tensors: safetensors::open(folder)? })
    }

    /// Where the weights come from, for messages.
    pub fn source(&self) -> &Path {
        &self.source
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// All names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Elements of all tensors together.
    pub fn elements(&self) -> u64 {
        let of = |tensor: &Tensor| tensor.shape.iter().fold(1u64, |all, &dim| all.saturating_mul(dim as u64));
        self.tensors.values().map(of).fold(0, u64::saturating_add)
    }

    /// The dimensions of a tensor, outermost first.
    pub fn shape(&self, name: &str) -> Result<&[usize]> {
        Ok(&self.tensor(name)?.shape)
    }

    /// A tensor of two dimensions.
    pub fn matrix(&self, name: &str) -> Result<Matrix> {
        let tensor = self.tensor(name)?;
        match tensor.shape[..] {
            [rows, columns] => tensor.rows(name, rows, columns),
            _ => Err(tensor.wrong_shape(name, "a matrix")),
        }
    }

    /// A matrix that must have these dimensions.
    pub fn matrix_of(&self, name: &str, rows: usize, columns: usize) -> Result<Matrix> {
        let tensor = self.tensor(name)?;
        if tensor.shape != [rows, columns] {
            return Err(tensor.wrong_shape(name, &format!("of shape {:?}", [rows, columns])));
        }
        tensor.rows(name, rows, columns)
    }

    /// A tensor of one dimension, as floats.
    pub fn vector(&self, name: &str) -> Result<Vec<f32>> {
        let tensor = self.tensor(name)?;
        let [len] = tensor.shape[..] else { return Err(tensor.wrong_shape(name, "a vector")) };
        let row = tensor.rows(name, 1, len)?;
        let mut values = vec![0.0; len];
        row.dequantize_rows(0..1, &mut values);
        Ok(values)
    }

    /// A vector that must have this length.
    pub fn vector_of(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        let tensor = self.tensor(name)?;
        if tensor.shape != [len] {
            return Err(tensor.wrong_shape(name, &format!("of shape {:?}", [len])));
        }
        self.vector(name)
    }

    fn tensor(&self, name: &str) -> Result<&Tensor> {
        let missing = || Error::Format { path: self.source.clone(), what: format!("tensor `{name}` is missing") };
        self.tensors.get(name).ok_or_else(missing)
    }
}

impl Tensor {
    /// The tensor as so many rows.
    fn rows(&self, name: &str, rows: usize, columns: usize) -> Result<Matrix> {
        let dtype = self.dtype.as_ref().map_err(|dtype| {
            self.error(format!("tensor `{name}` holds {dtype}, but weights must be F32, F16 or BF16 in safetensors"))
        })?;
        if rows == 0 || columns == 0 {
            return Err(self.error(format!("tensor `{name}` is empty: its shape is {:?}", self.shape)));
        }
        Ok(Matrix::new(Arc::clone(&self.storage), self.offset, rows, columns, *dtype))
    }

    fn wrong_shape(&self, name: &str, expected: &str) -> Error {
        self.error(format!("tensor `{name}` should be {expected}, but has the shape {:?}", self.shape))
    }

    fn error(&self, what: String) -> Error {
        Error::Format { path: self.file.to_path_buf(), what }
    }
}

//! A model's weights: named tensors of a GGUF file or of a Hugging Face folder.
mod matrix;
mod storage;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use matrix::Matrix;
pub(crate) use storage::Storage;

use crate::gguf::GgufFile;
use crate::quant::DType;
use crate::{Error, Result};

/// Where a tensor is and what it is.
#[derive(Debug, Clone)]
struct Tensor {
    storage: Arc<Storage>,
    offset: usize,
    /// Outermost first.
    shape: Vec<usize>,
    dtype: DType,
}

/// The named tensors of a model. Data stays in the mapped files until it is used.
#[derive(Debug, Clone)]
pub struct Weights {
    source: PathBuf,
    tensors: BTreeMap<String, Tensor>,
}

impl Weights {
    /// The tensors of a GGUF file.
    pub fn open_gguf(file: &GgufFile) -> Self {
        let tensors = file.tensors().iter().map(|t| {
            let tensor = Tensor {
                storage: Arc::clone(file.storage()),
                offset: t.offset,
                shape: t.shape.clone(),
                dtype: t.dtype,
            };
            (t.name.clone(), tensor)
        });
        Self { source: file.path().to_owned(), tensors: tensors.collect() }
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

    /// The dimensions of a tensor, outermost first.
    pub fn shape(&self, name: &str) -> Result<&[usize]> {
        Ok(&self.tensor(name)?.shape)
    }

    /// A tensor of two dimensions.
    pub fn matrix(&self, name: &str) -> Result<Matrix> {
        let tensor = self.tensor(name)?;
        let &[rows, columns] = tensor.shape.as_slice() else {
            return Err(self.wrong_shape(name, "a matrix", &tensor.shape));
        };
        Ok(Matrix::new(Arc::clone(&tensor.storage), tensor.offset, rows, columns, tensor.dtype))
    }

    /// A matrix that must have these dimensions.
    pub fn matrix_of(&self, name: &str, rows: usize, columns: usize) -> Result<Matrix> {
        let matrix = self.matrix(name)?;
        if (matrix.rows(), matrix.cols()) != (rows, columns) {
            let shape = [matrix.rows(), matrix.cols()];
            return Err(self.wrong_shape(name, &format!("of shape {:?}", [rows, columns]), &shape));
        }
        Ok(matrix)
    }

    /// A tensor of one dimension, as floats.
    pub fn vector(&self, name: &str) -> Result<Vec<f32>> {
        let tensor = self.tensor(name)?;
        let &[len] = tensor.shape.as_slice() else {
            return Err(self.wrong_shape(name, "a vector", &tensor.shape));
        };
        let mut values = vec![0.0; len];
        Matrix::new(Arc::clone(&tensor.storage), tensor.offset, 1, len, tensor.dtype)
            .dequantize_rows(0..1, &mut values);
        Ok(values)
    }

    /// A vector that must have this length.
    pub fn vector_of(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        let vector = self.vector(name)?;
        if vector.len() != len {
            return Err(self.wrong_shape(name, &format!("of length {len}"), &[vector.len()]));
        }
        Ok(vector)
    }

    fn tensor(&self, name: &str) -> Result<&Tensor> {
        self.tensors.get(name).ok_or_else(|| self.error(format!("tensor `{name}` is missing")))
    }

    fn wrong_shape(&self, name: &str, expected: &str, shape: &[usize]) -> Error {
        self.error(format!("tensor `{name}` should be {expected}, but has the shape {shape:?}"))
    }

    fn error(&self, what: String) -> Error {
        Error::Format { path: self.source.clone(), what }
    }
}

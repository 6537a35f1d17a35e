//! A weight matrix as it is stored.
use std::ops::Range;
use std::sync::Arc;

use half::bf16;
use rayon::prelude::*;

use super::storage::Storage;
use crate::quant::{self, Activations, DType, Isa};

/// A row-major matrix that stays as it is stored, in a mapped file or in memory of its own. A row is an output, a column
/// an input. Clones and slices share the bytes.
#[derive(Debug, Clone)]
pub struct Matrix {
    storage: Arc<Storage>,
    /// Where the first row starts in `storage`.
    offset: usize,
    rows: usize,
    columns: usize,
    row_bytes: usize,
    dtype: DType,
}

/// Weights that a thread takes at a time: large enough to hide the cost of handing out work, small enough to balance.
const TASK_BYTES: usize = 64 << 10;

impl Matrix {
    /// `rows * columns` elements at `offset` of `storage`, which must hold them.
    pub(super) fn new(storage: Arc<Storage>, offset: usize, rows: usize, columns: usize, dtype: DType) -> Self {
        let row_bytes = dtype.row_len(columns as u64).expect("rows are whole blocks: checked on opening") as usize;
        assert!(offset + rows * row_bytes <= storage.bytes().len(), "a matrix lies within its storage");
        Self { storage, offset, rows, columns, row_bytes, dtype }
    }

    /// A matrix of its own.
    ///
    /// # Panics
    /// If `values.len()` is not `rows * columns`.
    pub fn from_f32(rows: usize, columns: usize, values: Vec<f32>) -> Self {
        assert_eq!(values.len(), rows * columns, "{rows} x {columns} values");
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Self::new(Arc::new(Storage::Owned(bytes)), 0, rows, columns, DType::F32)
    }

    /// A matrix of its own, in bf16.
    ///
    /// # Panics
    /// If `values.len()` is not `rows * columns`.
    pub(crate) fn from_bf16(rows: usize, columns: usize, values: &[bf16]) -> Self {
        assert_eq!(values.len(), rows * columns, "{rows} x {columns} values");
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Self::new(Arc::new(Storage::Owned(bytes)), 0, rows, columns, DType::BF16)
    }

    /// The number of outputs.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The number of inputs.
    pub fn cols(&self) -> usize {
        self.columns
    }

    /// How the elements are stored.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The bytes it takes.
    pub fn bytes_len(&self) -> u64 {
        self.bytes().len() as u64
    }

    /// The rows as stored.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.storage.bytes()[self.offset..][..self.rows * self.row_bytes]
    }

    /// Some of the rows, sharing the bytes.
    ///
    /// # Panics
    /// If the range is not within the rows.
    pub fn slice_rows(&self, rows: Range<usize>) -> Self {
        assert!(rows.start <= rows.end && rows.end <= self.rows, "rows {rows:?} of {}", self.rows);
        Self { offset: self.offset + rows.start * self.row_bytes, rows: rows.len(), ..self.clone() }
    }

    /// A copy with the rows in another order: row `i` of the result is row `source(i)` of this one.
    ///
    /// # Panics
    /// If `source` returns a row that is not there.
    pub fn permute_rows(&self, source: impl Fn(usize) -> usize) -> Self {
        let bytes = self.bytes();
        let permuted: Vec<u8> = (0..self.rows)
            .flat_map(|row| bytes[source(row) * self.row_bytes..][..self.row_bytes].iter().copied())
            .collect();
        Self { storage: Arc::new(Storage::Owned(permuted)), offset: 0, ..self.clone() }
    }

    /// Some of the rows as floats, one after another. Runs on the calling thread only: share rows out to use several.
    ///
    /// # Panics
    /// If the range is not within the rows, or `out` has not `rows.len() * cols` elements.
    pub fn dequantize_rows(&self, rows: Range<usize>, out: &mut [f32]) {
        quant::dequantize(self.dtype, self.slice_rows(rows).bytes(), out);
    }

    /// `out = self * x`, on all threads of the current rayon pool. Block formats round `x` to 8 bits first, see
    /// [`Activations`]; floats compute in f32.
    ///
    /// # Panics
    /// If `x` or `out` has the wrong length.
    pub fn matvec(&self, x: &[f32], out: &mut [f32]) {
        assert_eq!((x.len(), out.len()), (self.columns, self.rows), "vector lengths of a matrix-vector product");
        let isa = Isa::detect();
        if self.dtype.is_float() {
            self.share_rows(out, |weights, out| quant::dot_float_rows(isa, self.dtype, weights, x, out));
        } else {
            let x = Activations::quantize(x);
            self.share_rows(out, |weights, out| quant::dot_rows(isa, self.dtype, weights, &x, out));
        }
    }

    /// Splits rows into tasks.
    fn share_rows(&self, out: &mut [f32], task: impl Fn(&[u8], &mut [f32]) + Sync) {
        if self.row_bytes == 0 {
            return out.fill(0.0);
        }
        let rows = (TASK_BYTES / self.row_bytes).max(1);
        let weights = self.bytes().par_chunks(rows * self.row_bytes);
        weights.zip(out.par_chunks_mut(rows)).for_each(|(weights, out)| task(weights, out));
    }
}

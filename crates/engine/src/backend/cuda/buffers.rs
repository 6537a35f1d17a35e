//! What the decoder keeps on the device: rows of activations, weight matrices, norm weights.

use std::ops::Range;

use half::bf16;
use rayon::prelude::*;
use speedread_cuda::{Buffer, Error as CudaError, Stream, View, ViewMut};

use crate::backend::Role;
use crate::backend::cpu::gemm::bf16::round;
use crate::weights::Matrix;
use crate::{Error, Result};

/// Bytes of a piece of a matrix on its way to the device.
const PIECE_BYTES: usize = 32 << 20;

/// Rows of activations.
#[derive(Debug)]
pub struct CudaBuffer {
    pub(super) data: Data,
    pub(super) columns: usize,
}

#[derive(Debug)]
pub(super) enum Data {
    F32(Buffer<f32>),
    Bf16(Buffer<bf16>),
}

/// An operation was given a buffer that it is not made for: a fault of the decoder.
fn wrong_role(needed: &str, given: &str, len: usize, columns: usize) -> CudaError {
    CudaError::Size(format!("this operation needs {needed}, and was given {given}: {len} numbers in rows of {columns}"))
}

impl CudaBuffer {
    pub(super) fn new(stream: &Stream, rows: usize, columns: usize, role: Role) -> Result<Self> {
        let too_large = || Error::Request(format!("a buffer of {rows} x {columns} numbers is too large"));
        let len = rows.checked_mul(columns).ok_or_else(too_large)?;
        let data = match role {
            Role::Residual => Data::F32(stream.alloc(len)?),
            Role::Activations => Data::Bf16(stream.alloc(len)?),
        };
        Ok(Self { data, columns })
    }

    fn range(&self, rows: Range<usize>) -> Range<usize> {
        rows.start * self.columns..rows.end * self.columns
    }

    pub(super) fn f32(&self, rows: Range<usize>) -> Result<View<'_, f32>, CudaError> {
        let range = self.range(rows);
        match &self.data {
            Data::F32(data) => data.view().slice(range),
            Data::Bf16(data) => Err(wrong_role("the residual stream", "activations", data.len(), self.columns)),
        }
    }

    pub(super) fn f32_mut(&mut self, rows: Range<usize>) -> Result<ViewMut<'_, f32>, CudaError> {
        let range = self.range(rows);
        match &mut self.data {
            Data::F32(data) => data.view_mut().slice(range),
            Data::Bf16(data) => Err(wrong_role("the residual stream", "activations", data.len(), self.columns)),
        }
    }

    pub(super) fn bf16(&self, rows: Range<usize>) -> Result<View<'_, bf16>, CudaError> {
        let range = self.range(rows);
        match &self.data {
            Data::Bf16(data) => data.view().slice(range),
            Data::F32(data) => Err(wrong_role("activations", "the residual stream", data.len(), self.columns)),
        }
    }

    pub(super) fn bf16_mut(&mut self, rows: Range<usize>) -> Result<ViewMut<'_, bf16>, CudaError> {
        let range = self.range(rows);
        match &mut self.data {
            Data::Bf16(data) => data.view_mut().slice(range),
            Data::F32(data) => Err(wrong_role("activations", "the residual stream", data.len(), self.columns)),
        }
    }

    /// Exchanges the memory of the whole buffer for another of the same size.
    pub(super) fn swap(&mut self, other: &mut Buffer<bf16>) -> Result<(), CudaError> {
        match &mut self.data {
            Data::Bf16(data) if data.len() == other.len() => {
                std::mem::swap(data, other);
                Ok(())
            }
            Data::Bf16(data) => {
                Err(wrong_role(&format!("{} activations", other.len()), "others", data.len(), self.columns))
            }
            Data::F32(data) => Err(wrong_role("activations", "the residual stream", data.len(), self.columns)),
        }
    }

    /// Elements.
    pub(super) fn len(&self) -> usize {
        match &self.data {
            Data::F32(data) => data.len(),
            Data::Bf16(data) => data.len(),
        }
    }
}

/// A matrix in bf16 with its bias.
#[derive(Debug)]
pub struct CudaLinear {
    pub(super) weight: Buffer<bf16>,
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) bias: Option<Bias>,
}

/// A bias in the types of the outputs that it may be added to.
#[derive(Debug)]
pub(super) struct Bias {
    pub f32: Buffer<f32>,
    pub bf16: Buffer<bf16>,
}

impl Bias {
    pub fn new(stream: &Stream, values: &[f32]) -> Result<Self> {
        let mut rounded = vec![bf16::ZERO; values.len()];
        round(values, &mut rounded);
        Ok(Self { f32: stream.upload(values)?, bf16: stream.upload(&rounded)? })
    }
}

impl CudaLinear {
    /// Room for a matrix, and its bias.
    pub(super) fn new(stream: &Stream, rows: usize, columns: usize, bias: Option<&[f32]>) -> Result<Self> {
        let weight = stream.alloc(rows * columns)?;
        Ok(Self { weight, rows, columns, bias: bias.map(|bias| Bias::new(stream, bias)).transpose()? })
    }

    /// Rounds a matrix to bf16, a piece at a time on all cores, and copies it.
    pub(super) fn upload(stream: &Stream, matrix: &Matrix, bias: Option<&[f32]>) -> Result<Self> {
        let (rows, columns) = (matrix.rows(), matrix.cols());
        let mut linear = Self::new(stream, rows, columns, bias)?;
        let step = (PIECE_BYTES / 2 / columns).clamp(1, rows);
        let mut piece = vec![bf16::ZERO; step * columns];
        for first in (0..rows).step_by(step) {
            let count = step.min(rows - first);
            let piece = &mut piece[..count * columns];
            piece.par_chunks_exact_mut(columns).enumerate().for_each_init(
                || vec![0f32; columns],
                |wide, (row, out)| {
                    matrix.dequantize_rows(first + row..first + row + 1, wide);
                    round(wide, out);
                },
            );
            stream.write(piece, linear.weight.view_mut().slice(first * columns..(first + count) * columns)?)?;
        }
        Ok(linear)
    }
}

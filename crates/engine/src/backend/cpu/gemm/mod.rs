//! The linear layers of prefill on CPU: `out = x Wᵀ`, for weights that stay quantised in memory.
//!
//! ```text
//! x f32 [n, k]  --round, pack once-->  strips of 32 rows  --+
//!                                                           +--> 32 x 32 blocks of out, f32
//! W quantised   --dequantise once--->  panels of 32 rows  --+
//! ```
//!
//! A task owns a group of panels: it dequantises them into a private buffer, then streams every strip of `x` past that buffer, in
//! blocks along k chosen so that the operand in use stays in the first cache and the group in the second. Each weight is thus
//! dequantised once per call however long the prompt is (once per some thousand rows for very long ones, to bound the packed copy
//! of `x`), and no full dequantised matrix ever exists.
//!
//! Two kernels multiply packed bf16 blocks: `amx` (tile matrix unit of recent Xeons) and `avx512_bf16` (dot-product instruction, also
//! Zen 4 and later). Their sums of a row depend neither on other rows nor on the number of threads, to the last bit. Where there is
//! neither, or where the caller asks for [`Precision::F32`], the blocks are multiplied in f32 by the `gemm` crate.
//! [`Precision::kernel`] says which one runs.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx512_bf16;
pub mod bf16;
#[cfg(target_arch = "x86_64")]
mod blocks;
mod kernel;
#[cfg(target_arch = "x86_64")]
mod pack;
mod scratch;
mod single;
mod tasks;
#[cfg(test)]
mod tests;

use std::ops::Range;

pub use kernel::{Kernel, Precision};
pub use scratch::Scratch;

/// A weight matrix that can be read in f32, a few rows at a time. Rows are outputs, columns inputs.
pub trait WeightRows: Sync {
    /// Number of outputs.
    fn rows(&self) -> usize;
    /// Number of inputs.
    fn cols(&self) -> usize;
    /// Writes the rows of that range to `out`, row-major, `rows.len() * cols()` values. Called from many threads at once.
    fn dequantize_rows(&self, rows: Range<usize>, out: &mut [f32]);
}

/// What a product is added to.
#[derive(Clone, Copy, Debug)]
pub enum Start<'a> {
    /// Nothing: `out = x Wᵀ`.
    Zero,
    /// One value per output: `out = x Wᵀ + bias`.
    Bias(&'a [f32]),
    /// What `out` holds: `out += x Wᵀ`, as a residual connection needs.
    Accumulate,
}

/// One weight matrix to multiply with, and where its product goes.
pub struct Linear<'a> {
    weights: &'a dyn WeightRows,
    start: Start<'a>,
    out: &'a mut [f32],
    stride: usize,
}

impl<'a> Linear<'a> {
    /// `out` is `[n, weights.rows()]`, contiguous.
    pub fn new(weights: &'a dyn WeightRows, start: Start<'a>, out: &'a mut [f32]) -> Self {
        let stride = weights.rows();
        Self { weights, start, out, stride }
    }

    /// The same with rows of `out` that start `stride` values apart: the product fills some columns of a wider matrix.
    pub fn with_stride(mut self, stride: usize) -> Self {
        self.stride = stride;
        self
    }

    fn check(&self, n: usize, k: usize) {
        let m = self.weights.rows();
        assert_eq!(self.weights.cols(), k, "the weights have {} inputs, x has {k} columns", self.weights.cols());
        assert!(self.stride >= m, "rows of the output overlap: stride {}, {m} columns", self.stride);
        let needed = (n - 1).checked_mul(self.stride).and_then(|start| start.checked_add(m));
        assert!(
            needed.is_some_and(|needed| needed <= self.out.len()),
            "the output has {} values, too few for {n} rows of {m} at stride {}",
            self.out.len(),
            self.stride
        );
        if let Start::Bias(bias) = self.start {
            assert_eq!(bias.len(), m, "the bias has {} values for {m} outputs", bias.len());
        }
    }
}

/// Multiplies `x`, `[n, k]` row-major, with one or several weight matrices, in parallel on the current rayon pool.
///
/// Several matrices at once (query, key and value; gate and up) share the packed copy of `x` and one parallel region.
///
/// # Panics
///
/// When a shape does not fit: a mistake of the caller, never of a file.
pub fn matmul(x: &[f32], n: usize, linears: &mut [Linear<'_>], precision: Precision, scratch: &mut Scratch) {
    matmul_with(precision.kernel(), x, n, linears, scratch);
}

/// [`matmul`] by a kernel of the caller's choice, which this machine must have (see [`Kernel::available`]).
///
/// # Panics
///
/// As [`matmul`], and when the kernel is not available.
pub fn matmul_with(kernel: Kernel, x: &[f32], n: usize, linears: &mut [Linear<'_>], scratch: &mut Scratch) {
    assert!(kernel.is_available(), "this machine has no {kernel}");
    if n == 0 || linears.is_empty() {
        return;
    }
    assert_eq!(x.len() % n, 0, "x has {} values, not a multiple of its {n} rows", x.len());
    let k = x.len() / n;
    for linear in linears.iter() {
        linear.check(n, k);
    }
    match kernel {
        #[cfg(target_arch = "x86_64")]
        Kernel::AmxBf16 | Kernel::Avx512Bf16 if k > 0 => blocks::matmul(kernel, x, n, k, linears, scratch),
        _ => single::matmul(x, n, k, linears, scratch),
    }
}

/// The part of an output that tasks write to from several threads, each its own rows and columns.
#[derive(Clone, Copy)]
struct SharedOut {
    data: *mut f32,
    stride: usize,
}

// SAFETY: tasks of one call write disjoint blocks (`tasks` cuts rows and columns without overlap), and the borrow of the output
// outlives the call.
unsafe impl Send for SharedOut {}
// SAFETY: as above.
unsafe impl Sync for SharedOut {}

impl SharedOut {
    fn new(linear: &mut Linear<'_>) -> Self {
        Self { data: linear.out.as_mut_ptr(), stride: linear.stride }
    }

    /// # Safety
    ///
    /// `row` and `column` lie inside the output that this was made from.
    unsafe fn at(self, row: usize, column: usize) -> *mut f32 {
        // SAFETY: inside one allocation, by the caller's promise.
        unsafe { self.data.add(row * self.stride + column) }
    }

    /// An address and the stride of rows, to prefetch from and never to read or write: it may lie past the end.
    #[cfg(target_arch = "x86_64")]
    fn near(self, row: usize, column: usize) -> (*const f32, usize) {
        (self.data.wrapping_add(row.wrapping_mul(self.stride).wrapping_add(column)), self.stride)
    }
}

//! Borrowed strided views of `[rows, heads, dim]` tensors.

use crate::Error;

/// Element types of the key/value cache.
pub trait Element: Copy + Send + Sync + 'static {
    /// Widens to f32.
    fn to_f32(self) -> f32;
}
impl Element for f32 {
    fn to_f32(self) -> f32 {
        self
    }
}
impl Element for half::f16 {
    fn to_f32(self) -> f32 {
        half::f16::to_f32(self)
    }
}
impl Element for half::bf16 {
    fn to_f32(self) -> f32 {
        half::bf16::to_f32(self)
    }
}

/// A read-only view of a `[rows, heads, dim]` tensor; the last dimension is contiguous. Strides are in elements.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a, T> {
    data: &'a [T],
    pub(crate) rows: usize,
    pub(crate) heads: usize,
    pub(crate) dim: usize,
    row_stride: usize,
    head_stride: usize,
}

impl<'a, T> Rows<'a, T> {
    /// A view with explicit strides.
    pub fn new(
        data: &'a [T],
        rows: usize,
        heads: usize,
        dim: usize,
        row_stride: usize,
        head_stride: usize,
    ) -> Result<Self, Error> {
        check(data.len(), rows, heads, dim, row_stride, head_stride)?;
        Ok(Self { data, rows, heads, dim, row_stride, head_stride })
    }
    /// A view of `[rows, heads, dim]` without gaps.
    pub fn contiguous(data: &'a [T], rows: usize, heads: usize, dim: usize) -> Result<Self, Error> {
        Self::new(data, rows, heads, dim, heads * dim, dim)
    }
    /// Row `row` of head `head`: `dim` elements.
    #[inline]
    pub fn row(&self, row: usize, head: usize) -> &'a [T] {
        let at = row * self.row_stride + head * self.head_stride;
        &self.data[at..at + self.dim]
    }
    /// Number of rows (tokens).
    pub fn rows(&self) -> usize {
        self.rows
    }
    /// Number of heads.
    pub fn heads(&self) -> usize {
        self.heads
    }
    /// Elements of one head's row.
    pub fn dim(&self) -> usize {
        self.dim
    }
}

/// A mutable view of a `[rows, heads, dim]` tensor; the last dimension is contiguous.
#[derive(Debug)]
pub struct RowsMut<'a, T> {
    pub(crate) data: &'a mut [T],
    pub(crate) rows: usize,
    pub(crate) heads: usize,
    pub(crate) dim: usize,
    pub(crate) row_stride: usize,
    pub(crate) head_stride: usize,
}

impl<'a, T> RowsMut<'a, T> {
    /// A view with explicit strides. Rows of different `(row, head)` must not overlap.
    pub fn new(
        data: &'a mut [T],
        rows: usize,
        heads: usize,
        dim: usize,
        row_stride: usize,
        head_stride: usize,
    ) -> Result<Self, Error> {
        check(data.len(), rows, heads, dim, row_stride, head_stride)?;
        Ok(Self { data, rows, heads, dim, row_stride, head_stride })
    }
    /// A view of `[rows, heads, dim]` without gaps.
    pub fn contiguous(data: &'a mut [T], rows: usize, heads: usize, dim: usize) -> Result<Self, Error> {
        Self::new(data, rows, heads, dim, heads * dim, dim)
    }
}

fn check(
    len: usize,
    rows: usize,
    heads: usize,
    dim: usize,
    row_stride: usize,
    head_stride: usize,
) -> Result<(), Error> {
    if rows == 0 || heads == 0 || dim == 0 {
        return Err(Error::Shape(format!("a view of {rows} rows x {heads} heads x {dim} is empty")));
    }
    let needed = (rows - 1) * row_stride + (heads - 1) * head_stride + dim;
    if len < needed {
        return Err(Error::Shape(format!(
            "a view of {rows} rows x {heads} heads x {dim} (strides {row_stride}, {head_stride}) needs {needed} elements, the slice has {len}"
        )));
    }
    Ok(())
}

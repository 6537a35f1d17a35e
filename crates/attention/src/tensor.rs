//! Borrowed strided views of `[rows, heads, dim]` tensors.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::Error;

/// Element types of the key/value cache.
pub trait Element: Copy + Send + Sync + 'static {
    /// The value as f32, exactly.
    fn to_f32(self) -> f32;
    /// Converts a row; both slices have the same length.
    fn widen(from: &[Self], to: &mut [f32]);
    /// What the bits mean, for vector loads.
    #[doc(hidden)]
    const FORMAT: Format;
}

/// Formats of cache elements.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    F32,
    F16,
    Bf16,
}

impl Element for f32 {
    const FORMAT: Format = Format::F32;
    fn to_f32(self) -> f32 {
        self
    }
    #[inline]
    fn widen(from: &[f32], to: &mut [f32]) {
        to.copy_from_slice(from);
    }
}

impl Element for f16 {
    const FORMAT: Format = Format::F16;
    fn to_f32(self) -> f32 {
        f16::to_f32(self)
    }
    #[inline]
    fn widen(from: &[f16], to: &mut [f32]) {
        from.convert_to_f32_slice(to);
    }
}

impl Element for bf16 {
    const FORMAT: Format = Format::Bf16;
    fn to_f32(self) -> f32 {
        bf16::to_f32(self)
    }
    #[inline]
    fn widen(from: &[bf16], to: &mut [f32]) {
        for (to, from) in to.iter_mut().zip(from) {
            *to = f32::from_bits((from.to_bits() as u32) << 16);
        }
    }
}

/// A read-only view of a `[rows, heads, dim]` tensor; the last dimension is contiguous. Strides are in elements.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a, T> {
    data: &'a [T],
    pub(crate) rows: usize,
    pub(crate) heads: usize,
    pub(crate) dim: usize,
    pub(crate) row_stride: usize,
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
    ///
    /// # Errors
    /// [`Error::Shape`] when a dimension is zero or the slice is too short.
    pub fn contiguous(data: &'a [T], rows: usize, heads: usize, dim: usize) -> Result<Self, Error> {
        Self::new(data, rows, heads, dim, heads * dim, dim)
    }
    /// Row `row` of head `head`: `dim` elements.
    #[inline]
    pub fn row(&self, row: usize, head: usize) -> &'a [T] {
        let at = row * self.row_stride + head * self.head_stride;
        &self.data[at..at + self.dim]
    }
    /// The last `count` rows, or all if there are fewer; `count` is at least 1.
    pub fn tail(self, count: usize) -> Self {
        let rows = self.rows.min(count.max(1));
        Self { data: &self.data[(self.rows - rows) * self.row_stride..], rows, ..self }
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
    /// A view with explicit strides, in elements.
    ///
    /// # Errors
    /// [`Error::Shape`] when a dimension is zero, the slice is too short, or rows of different `(row, head)` would overlap.
    pub fn new(
        data: &'a mut [T],
        rows: usize,
        heads: usize,
        dim: usize,
        row_stride: usize,
        head_stride: usize,
    ) -> Result<Self, Error> {
        check(data.len(), rows, heads, dim, row_stride, head_stride)?;
        if overlaps(rows, heads, dim, row_stride, head_stride) {
            return Err(Error::Shape(format!(
                "rows of a mutable view of {rows} rows x {heads} heads x {dim} overlap with strides {row_stride} and {head_stride}"
            )));
        }
        Ok(Self { data, rows, heads, dim, row_stride, head_stride })
    }
    /// A view of `[rows, heads, dim]` without gaps.
    ///
    /// # Errors
    /// [`Error::Shape`] when a dimension is zero or the slice is too short.
    pub fn contiguous(data: &'a mut [T], rows: usize, heads: usize, dim: usize) -> Result<Self, Error> {
        Self::new(data, rows, heads, dim, heads * dim, dim)
    }
    /// Row `row` of head `head`: `dim` elements.
    pub fn row_mut(&mut self, row: usize, head: usize) -> &mut [T] {
        let at = row * self.row_stride + head * self.head_stride;
        &mut self.data[at..at + self.dim]
    }
}

pub(crate) fn check(
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
    let last = |count: usize, stride: usize| (count - 1).checked_mul(stride);
    let needed = last(rows, row_stride)
        .zip(last(heads, head_stride))
        .and_then(|(r, h)| r.checked_add(h)?.checked_add(dim))
        .filter(|&needed| needed <= len);
    needed.map(|_| ()).ok_or_else(|| {
        Error::Shape(format!(
            "a view of {rows} rows x {heads} heads x {dim} (strides {row_stride} and {head_stride}) reaches past its slice of {len} \
             elements"
        ))
    })
}

/// Whether `(row, head)` rows of `dim` elements can overlap: they cannot when one dimension's steps clear the whole of the other's.
pub(crate) fn overlaps(rows: usize, heads: usize, dim: usize, row_stride: usize, head_stride: usize) -> bool {
    let clears = |outer: (usize, usize), inner: (usize, usize)| {
        (inner.0 == 1 || inner.1 >= dim) && (outer.0 == 1 || outer.1 >= (inner.0 - 1) * inner.1 + dim)
    };
    let (row, head) = ((rows, row_stride), (heads, head_stride));
    !clears(row, head) && !clears(head, row)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_check_their_slice() {
        let data = [0f32; 24];
        assert!(Rows::contiguous(&data, 2, 3, 4).is_ok());
        assert!(Rows::contiguous(&data, 3, 3, 4).is_err());
        assert!(Rows::contiguous(&data, 0, 3, 4).is_err());
        assert!(Rows::new(&data, 2, 3, 4, usize::MAX, 4).is_err());
        assert_eq!(Rows::new(&data, 2, 3, 4, 4, 8).unwrap().heads(), 3);
        let numbers: Vec<f32> = (0..24).map(|x| x as f32).collect();
        let tail = Rows::contiguous(&numbers, 4, 2, 3).unwrap().tail(2);
        assert_eq!((tail.rows(), tail.row(0, 1), tail.row(1, 0)), (2, &numbers[15..18], &numbers[18..21]));
        assert_eq!(tail.tail(5).rows(), 2);
    }

    #[test]
    fn mutable_views_refuse_overlap() {
        let mut data = [0f32; 24];
        assert!(RowsMut::new(&mut data, 2, 3, 4, 4, 8).is_ok());
        assert!(RowsMut::new(&mut data, 2, 3, 4, 12, 4).is_ok());
        assert!(RowsMut::new(&mut data, 2, 3, 4, 4, 4).is_err());
        assert!(RowsMut::new(&mut data, 2, 3, 4, 0, 4).is_err());
        assert!(RowsMut::new(&mut data, 1, 3, 4, 0, 4).is_ok());
    }
}

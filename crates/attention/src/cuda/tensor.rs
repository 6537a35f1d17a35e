//! Strided views of `[rows, heads, dim]` tensors in device memory.

use std::marker::PhantomData;
use std::ops::Range;

use half::{bf16, f16};
use speedread_cuda::{Tensor, TensorElement, TensorMap, View, ViewMut};

use crate::tensor::{check, overlaps};
use crate::{Element, Error};

/// Element types of the CUDA kernels.
pub trait AttentionElement: Element + TensorElement {
    /// The nearest value.
    fn round(x: f32) -> Self;
    /// The type's name in kernel names.
    const NAME: &'static str;
}
impl AttentionElement for bf16 {
    fn round(x: f32) -> Self {
        bf16::from_f32(x)
    }
    const NAME: &'static str = "bf16";
}
impl AttentionElement for f16 {
    fn round(x: f32) -> Self {
        f16::from_f32(x)
    }
    const NAME: &'static str = "f16";
}

/// A read-only view of a `[rows, heads, dim]` tensor on the device; the last dimension is contiguous. Strides are in elements.
#[derive(Debug, Clone, Copy)]
pub struct DeviceRows<'a, T> {
    data: View<'a, T>,
    pub(crate) tensor: Tensor,
}

impl<'a, T: AttentionElement> DeviceRows<'a, T> {
    /// A view with explicit strides.
    ///
    /// # Errors
    /// [`Error::Shape`] when a dimension is zero or the view is too short.
    pub fn new(
        data: View<'a, T>,
        rows: usize,
        heads: usize,
        dim: usize,
        row_stride: usize,
        head_stride: usize,
    ) -> Result<Self, Error> {
        check(data.len(), rows, heads, dim, row_stride, head_stride)?;
        let tensor = Tensor { address: data.address(), rows, heads, dim, row_stride, head_stride };
        Ok(Self { data, tensor })
    }
    /// A view of `[rows, heads, dim]` without gaps.
    ///
    /// # Errors
    /// As for [`DeviceRows::new`].
    pub fn contiguous(data: View<'a, T>, rows: usize, heads: usize, dim: usize) -> Result<Self, Error> {
        Self::new(data, rows, heads, dim, heads * dim, dim)
    }
    /// The last `count` rows, or all if there are fewer; `count` is at least 1.
    pub fn tail(self, count: usize) -> Self {
        let rows = self.tensor.rows.min(count.max(1));
        let skipped = (self.tensor.rows - rows) * self.tensor.row_stride * size_of::<T>();
        Self { tensor: Tensor { address: self.tensor.address + skipped as u64, rows, ..self.tensor }, ..self }
    }
    /// The rows `rows`, of every head.
    ///
    /// # Errors
    /// [`Error::Shape`] when there are no such rows, or the range is empty.
    pub fn slice_rows(self, rows: Range<usize>) -> Result<Self, Error> {
        Ok(Self { tensor: slice_rows::<T>(&self.tensor, rows)?, ..self })
    }
    /// The memory from the first row of a head to its last, with what lies between its rows; not of a [`tail`](Self::tail).
    ///
    /// # Errors
    /// [`Error::Cuda`] when there is no such head.
    pub fn head(&self, head: usize) -> Result<View<'a, T>, Error> {
        let Tensor { rows, dim, row_stride, head_stride, .. } = self.tensor;
        let first = head * head_stride;
        Ok(self.data.slice(first..first + (rows - 1) * row_stride + dim)?)
    }
    /// The memory viewed; [`tail`](Self::tail) does not shorten it.
    pub fn data(&self) -> View<'a, T> {
        self.data
    }
    pub(crate) fn map(&self, box_rows: usize) -> Result<TensorMap, Error> {
        Ok(TensorMap::rows::<T>(self.tensor, box_rows)?)
    }
}

/// The rows `rows` of a tensor.
fn slice_rows<T>(tensor: &Tensor, rows: Range<usize>) -> Result<Tensor, Error> {
    if rows.start >= rows.end || rows.end > tensor.rows {
        return Err(Error::Shape(format!("rows {}..{} of {}: there must be some", rows.start, rows.end, tensor.rows)));
    }
    let address = tensor.address + (rows.start * tensor.row_stride * size_of::<T>()) as u64;
    Ok(Tensor { address, rows: rows.len(), ..*tensor })
}

/// What the bytes of quantised keys and values are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CodeType {
    /// Floats with 4 bits of exponent and 3 of mantissa, up to 448.
    E4m3,
    /// Whole numbers, -127 to 127.
    Int8,
}

impl CodeType {
    /// As kernels and options have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::E4m3 => "fp8",
            Self::Int8 => "int8",
        }
    }
}

impl std::fmt::Display for CodeType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A read-only view of a `[rows, heads, dim]` tensor in 8-bit codes on the device, each head's row with an f32 scale: the number that a code
/// stands for is the code's times its row's scale.
#[derive(Debug, Clone, Copy)]
pub struct CodedRows<'a> {
    pub(crate) codes: CodeType,
    pub(crate) tensor: Tensor,
    /// Address of the first row's scale.
    pub(crate) scales: u64,
    pub(crate) scale_head_stride: usize,
    of: PhantomData<&'a u8>,
}

impl<'a> CodedRows<'a> {
    /// A view with explicit strides: of the codes, and of the scales from a head to the next; from row to row scales have no gaps.
    ///
    /// # Errors
    /// [`Error::Shape`] when a dimension is zero or a view is too short.
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        (kind, codes): (CodeType, View<'a, u8>),
        scales: View<'a, f32>,
        rows: usize,
        heads: usize,
        dim: usize,
        row_stride: usize,
        head_stride: usize,
        scale_head_stride: usize,
    ) -> Result<Self, Error> {
        check(codes.len(), rows, heads, dim, row_stride, head_stride)?;
        check(scales.len(), rows, heads, 1, 1, scale_head_stride)?;
        let tensor = Tensor { address: codes.address(), rows, heads, dim, row_stride, head_stride };
        Ok(Self { codes: kind, tensor, scales: scales.address(), scale_head_stride, of: PhantomData })
    }
    /// The last `count` rows, or all if there are fewer; `count` is at least 1.
    pub fn tail(self, count: usize) -> Self {
        let rows = self.tensor.rows.min(count.max(1));
        let skipped = self.tensor.rows - rows;
        let address = self.tensor.address + (skipped * self.tensor.row_stride) as u64;
        let scales = self.scales + (skipped * size_of::<f32>()) as u64;
        Self { tensor: Tensor { address, rows, ..self.tensor }, scales, ..self }
    }
}

/// Keys and values as a decode step reads them.
#[derive(Debug, Clone, Copy)]
pub enum CachedRows<'a> {
    /// In the type of its queries.
    Bf16([DeviceRows<'a, half::bf16>; 2]),
    /// In codes of 8 bits.
    Coded([CodedRows<'a>; 2]),
}

impl CachedRows<'_> {
    /// The last `count` rows, or all if there are fewer; `count` is at least 1.
    pub fn tail(self, count: usize) -> Self {
        match self {
            Self::Bf16(rows) => Self::Bf16(rows.map(|rows| rows.tail(count))),
            Self::Coded(rows) => Self::Coded(rows.map(|rows| rows.tail(count))),
        }
    }
}

/// A mutable view of a `[rows, heads, dim]` tensor on the device; the last dimension is contiguous. Strides are in elements.
#[derive(Debug)]
pub struct DeviceRowsMut<'a, T> {
    _data: ViewMut<'a, T>,
    pub(crate) tensor: Tensor,
}

impl<'a, T: AttentionElement> DeviceRowsMut<'a, T> {
    /// A view with explicit strides.
    ///
    /// # Errors
    /// [`Error::Shape`] when a dimension is zero, the view is too short, or rows of different `(row, head)` would overlap.
    pub fn new(
        data: ViewMut<'a, T>,
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
        let tensor = Tensor { address: data.address(), rows, heads, dim, row_stride, head_stride };
        Ok(Self { _data: data, tensor })
    }
    /// A view of `[rows, heads, dim]` without gaps.
    ///
    /// # Errors
    /// As for [`DeviceRowsMut::new`].
    pub fn contiguous(data: ViewMut<'a, T>, rows: usize, heads: usize, dim: usize) -> Result<Self, Error> {
        Self::new(data, rows, heads, dim, heads * dim, dim)
    }
    /// The rows `rows`, of every head, for a shorter time.
    ///
    /// # Errors
    /// [`Error::Shape`] when there are no such rows, or the range is empty.
    pub fn slice_rows(&mut self, rows: Range<usize>) -> Result<DeviceRowsMut<'_, T>, Error> {
        Ok(DeviceRowsMut { tensor: slice_rows::<T>(&self.tensor, rows)?, _data: self._data.reborrow() })
    }
    pub(crate) fn map(&self, box_rows: usize) -> Result<TensorMap, Error> {
        Ok(TensorMap::rows::<T>(self.tensor, box_rows)?)
    }
}

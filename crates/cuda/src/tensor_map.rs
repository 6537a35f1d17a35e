//! TMA tensor maps: how the copy engine of Hopper and newer sees a tensor.

use cudarc::driver::sys;
use half::{bf16, f16};

use crate::error::Context;
use crate::{Error, KernelArg, Plain};

/// Element types the copy engine knows.
pub trait TensorElement: Plain {
    #[doc(hidden)]
    const TYPE: sys::CUtensorMapDataType;
}
impl TensorElement for bf16 {
    const TYPE: sys::CUtensorMapDataType = sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
}
impl TensorElement for f16 {
    const TYPE: sys::CUtensorMapDataType = sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
}

/// A `[rows, heads, dim]` tensor on the device, its last dimension contiguous. Strides are in elements.
#[derive(Debug, Clone, Copy)]
pub struct Tensor {
    /// Device address of the first element.
    pub address: u64,
    /// Rows (tokens).
    pub rows: usize,
    /// Heads.
    pub heads: usize,
    /// Elements of one head's row.
    pub dim: usize,
    /// Elements from a row to the next.
    pub row_stride: usize,
    /// Elements from a head to the next.
    pub head_stride: usize,
}

/// A tensor map, to pass to a kernel by value as `const __grid_constant__ CUtensorMap`.
#[derive(Debug, Clone, Copy)]
#[repr(transparent)]
pub struct TensorMap(sys::CUtensorMap);

// SAFETY: the driver's own structure.
unsafe impl KernelArg for TensorMap {}

impl TensorMap {
    /// A map of dimensions (dim, rows, heads) whose boxes are `box_rows` rows of 128 bytes of one head, in the 128-byte swizzle; places
    /// outside the tensor read as zero and are not written.
    ///
    /// # Errors
    /// [`Error::Size`] when the copy engine cannot take the tensor: addresses and strides must be multiples of 16 bytes, at most
    /// 256 rows a box, and fewer than 2^31 rows.
    pub fn rows<T: TensorElement>(tensor: Tensor, box_rows: usize) -> Result<Self, Error> {
        let Tensor { address, rows, heads, dim, row_stride, head_stride } = tensor;
        let bytes = |elements: usize| elements.checked_mul(size_of::<T>()).map(|bytes| bytes as u64);
        let strides = bytes(row_stride).zip(bytes(head_stride)).map(|(row, head)| [row, head]);
        let details =
            || format!("a tensor of {rows} rows x {heads} heads x {dim}, strides {row_stride} and {head_stride}");
        let aligned = |x: u64| x.is_multiple_of(16);
        let Some(strides) = strides.filter(|s| {
            aligned(address) && s.iter().all(|&s| aligned(s) && s < 1 << 40) && box_rows <= 256 && rows < 1 << 31
        }) else {
            return Err(Error::Size(format!(
                "{} at {address:#x} does not fit the copy engine: the address and the strides in bytes must be multiples of 16, and \
                 there must be fewer than 2^31 rows",
                details()
            )));
        };
        let dims = [dim as u64, rows as u64, heads as u64];
        let boxes = [(128 / size_of::<T>()) as u32, box_rows as u32, 1];
        let steps = [1u32; 3];
        let mut map = sys::CUtensorMap { opaque: [0; 16] };
        // SAFETY: the arrays have three dimensions and two strides; the call only encodes, it reads no device memory.
        unsafe {
            sys::cuTensorMapEncodeTiled(
                &mut map,
                T::TYPE,
                3,
                address as *mut _,
                dims.as_ptr(),
                strides.as_ptr(),
                boxes.as_ptr(),
                steps.as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        }
        .result()
        .during("cuTensorMapEncodeTiled", details)?;
        Ok(Self(map))
    }
}

//! Attention of a decode step on the device: one query row a head over the whole cache.

use speedread_cuda::{Buffer, Device, Error as CudaError, Function, KernelArg, Stream};

use super::attention::Attention;
use super::kernels::{HEAD_DIMS, dim_place};
use super::tensor::{AttentionElement, DeviceRows, DeviceRowsMut};
use crate::Error;

static IMAGE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/decode.fatbin"));

/// Query heads that a thread block takes: the rows of a matrix product.
const HEADS: usize = 16;
/// Keys that a thread block takes in a step.
const STEP_KEYS: usize = 64;
const THREADS: u32 = 128;
/// Thread blocks that a multiprocessor runs at a time; splits fill them once.
const BLOCKS: usize = 2;
/// Fewer keys than this are not worth a thread block of their own.
const LEAST_KEYS: usize = 256;

/// The kernels of one element type, by head dim: over a split, and over what the splits found.
#[derive(Debug, Clone)]
pub(super) struct DecodeKernels {
    split: [Function; 3],
    combine: [Function; 3],
}

impl DecodeKernels {
    pub(super) fn load(device: &Device, element: &str) -> Result<Self, Error> {
        let module = device.load(IMAGE)?;
        let functions = |name: &str| -> Result<[Function; 3], CudaError> {
            let function = |dim| module.function(&format!("{name}_{element}_d{dim}"), 0);
            Ok([function(HEAD_DIMS[0])?, function(HEAD_DIMS[1])?, function(HEAD_DIMS[2])?])
        };
        Ok(Self { split: functions("decode")?, combine: functions("combine")? })
    }
}

/// Device memory that decode steps use again and again; it grows and never shrinks.
#[derive(Debug)]
pub struct DecodeWorkspace {
    sums: Buffer<f32>,
    /// Pairs.
    scales: Buffer<f32>,
}

impl DecodeWorkspace {
    /// An empty workspace.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn new(stream: &Stream) -> Result<Self, Error> {
        Ok(Self { sums: stream.alloc(0)?, scales: stream.alloc(0)? })
    }

    fn grow(&mut self, stream: &Stream, places: usize, dim: usize) -> Result<(), Error> {
        if self.sums.len() < places * dim {
            self.sums = stream.alloc(places * dim)?;
        }
        if self.scales.len() < places * 2 {
            self.scales = stream.alloc(places * 2)?;
        }
        Ok(())
    }
}

/// Mirror of `DecodeParams` in `kernels/decode.cu`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct DecodeParams {
    q: u64,
    k: u64,
    v: u64,
    out: u64,
    sums: u64,
    scales: u64,
    q_head_stride: i64,
    out_head_stride: i64,
    k_row_stride: i64,
    k_head_stride: i64,
    v_row_stride: i64,
    v_head_stride: i64,
    len: i32,
    split_keys: i32,
    splits: i32,
    group: i32,
    scale_log2: f32,
}
// SAFETY: the same fields in the same order as the kernel's structure.
unsafe impl KernelArg for DecodeParams {}

/// Keys of a split, and splits, for `len` keys when `blocks` thread blocks run at a time and every split needs `each` of them.
fn splits(len: usize, blocks: usize, each: usize) -> (usize, usize) {
    let wanted = (blocks / each).clamp(1, len.div_ceil(LEAST_KEYS));
    let keys = len.div_ceil(wanted).next_multiple_of(STEP_KEYS);
    (keys, len.div_ceil(keys))
}

impl Attention {
    /// Queues attention of one query row over all keys: `q` and `out` `[1, query heads, dim]`, `k` and `v` `[keys, key heads, dim]`. `scale` is
    /// the softmax scale, by default 1/sqrt(dim). Addresses and strides must be multiples of 16 bytes.
    ///
    /// # Errors
    /// [`Error::Shape`] when shapes do not fit together or the head dim is not one of [`HEAD_DIMS`], [`Error::Cuda`].
    #[allow(clippy::too_many_arguments)]
    pub fn decode<T: AttentionElement>(
        &self,
        stream: &Stream,
        q: DeviceRows<'_, T>,
        k: DeviceRows<'_, T>,
        v: DeviceRows<'_, T>,
        scale: Option<f32>,
        work: &mut DecodeWorkspace,
        out: &mut DeviceRowsMut<'_, T>,
    ) -> Result<(), Error> {
        let (query, keys, values, output) = (&q.tensor, &k.tensor, &v.tensor, &out.tensor);
        let shape = |x: &speedread_cuda::Tensor| (x.rows, x.heads, x.dim);
        let (heads, kv_heads, dim, len) = (query.heads, keys.heads, query.dim, keys.rows);
        if query.rows != 1
            || shape(output) != shape(query)
            || shape(values) != shape(keys)
            || keys.dim != dim
            || !heads.is_multiple_of(kv_heads)
        {
            return Err(Error::Shape(format!(
                "queries of rows, heads, dim {:?} and an output of {:?} with keys of {:?} and values of {:?}: one query row, and query \
                 heads that share the key heads evenly, are needed",
                shape(query),
                shape(output),
                shape(keys),
                shape(values)
            )));
        }
        let element = size_of::<T>();
        let fits = |x: &speedread_cuda::Tensor| {
            [x.row_stride * element, x.head_stride * element].iter().all(|s| s.is_multiple_of(16))
                && x.address.is_multiple_of(16)
        };
        if ![query, keys, values, output].into_iter().all(fits) || len >= i32::MAX as usize - STEP_KEYS {
            return Err(Error::Shape(format!(
                "{len} keys of {dim}: addresses and strides must be multiples of 16 bytes, and positions must fit 31 bits"
            )));
        }
        let kernels = if T::NAME == "bf16" { &self.decode_bf16 } else { &self.decode_f16 };
        let place = dim_place(dim)?;
        let (split, combine) = (&kernels.split[place], &kernels.combine[place]);
        let scale = scale.unwrap_or(1.0 / (dim as f32).sqrt());
        if !(scale > 0.0 && scale.is_finite()) {
            return Err(Error::Shape(format!("softmax scale {scale}: it must be positive")));
        }

        let group = heads / kv_heads;
        let rounds = group.div_ceil(HEADS);
        let (split_keys, splits) = splits(len, self.multiprocessors as usize * BLOCKS, kv_heads * rounds);
        work.grow(stream, heads * splits, dim)?;
        let params = DecodeParams {
            q: query.address,
            k: keys.address,
            v: values.address,
            out: output.address,
            sums: work.sums.view().address(),
            scales: work.scales.view().address(),
            q_head_stride: query.head_stride as i64,
            out_head_stride: output.head_stride as i64,
            k_row_stride: keys.row_stride as i64,
            k_head_stride: keys.head_stride as i64,
            v_row_stride: values.row_stride as i64,
            v_head_stride: values.head_stride as i64,
            len: len as i32,
            split_keys: split_keys as i32,
            splits: splits as i32,
            group: group as i32,
            scale_log2: scale * std::f32::consts::LOG2_E,
        };
        let grid = [splits as u32, kv_heads as u32, rounds as u32];
        let over_keys = split.launch(stream).grid(grid).block(THREADS).arg(params);
        let together = combine.launch(stream).grid([heads as u32, 1, 1]).block(dim as u32).arg(params);
        // SAFETY: the kernels' one parameter. Shapes, strides and alignment were checked; every split holds a key; the workspace has a place
        // for every head and split.
        unsafe {
            over_keys.run()?;
            together.run()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_cover_the_keys_and_none_is_empty() {
        for len in [1, 63, 64, 65, 255, 256, 257, 1000, 4097, 131_072, 1 << 20] {
            for each in [1, 2, 8, 32, 500] {
                let (keys, count) = splits(len, 264, each);
                assert!(
                    keys.is_multiple_of(STEP_KEYS) && keys * count >= len && keys * (count - 1) < len,
                    "{len} {each}"
                );
                assert!(count * each <= 264.max(each), "{len} {each}: more than fit at a time");
            }
        }
        assert_eq!(splits(131_072, 264, 8), (4032, 33));
        assert_eq!(splits(300, 264, 8).1, 2);
    }
}

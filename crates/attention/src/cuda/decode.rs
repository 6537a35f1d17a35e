//! Attention of a decode step on the device: one query row a head over the whole cache.

use half::bf16;
use speedread_cuda::{Buffer, Device, Error as CudaError, Function, KernelArg, Stream, Tensor};

use super::attention::Attention;
use super::kernels::{HEAD_DIMS, dim_place};
use super::tensor::{AttentionElement, CodeType, CodedRows, DeviceRows, DeviceRowsMut};
use crate::Error;

static IMAGE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/decode.fatbin"));
static CODED_IMAGE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/decode_coded.fatbin"));

/// Query heads that a thread block takes: the rows of a matrix product.
const HEADS: usize = 16;
/// Keys that a thread block takes in a step.
const STEP_KEYS: usize = 64;
/// Warps of a thread block.
const WARPS: usize = 4;
const THREADS: u32 = 32 * WARPS as u32;
/// Thread blocks that a multiprocessor runs at a time; splits fill them once.
const BLOCKS: usize = 2;
/// The same where the cache is codes, as the kernels' launch bounds have it.
const CODED_BLOCKS: usize = 3;
/// Fewer keys than this are not worth a thread block of their own.
const LEAST_KEYS: usize = 256;

/// The kernels of one kind of cache, by head dim: over a split, and over what the splits found.
#[derive(Debug, Clone)]
pub(super) struct DecodeKernels {
    split: [Function; 3],
    combine: [Function; 3],
    /// Thread blocks of `split` that a multiprocessor runs at a time.
    blocks: usize,
}

impl DecodeKernels {
    /// Keys and values of the queries' own type.
    pub(super) fn load(device: &Device, element: &str) -> Result<Self, Error> {
        let module = device.load(IMAGE)?;
        let functions = |name: &str| by_dim(|dim| module.overlapping(&format!("{name}_{element}_d{dim}")));
        Ok(Self { split: functions("decode")?, combine: functions("combine")?, blocks: BLOCKS })
    }

    /// Keys and values in codes under bf16 queries, whose splits `bf16` puts together; by [`CodeType`].
    pub(super) fn load_coded(device: &Device, bf16: &Self) -> Result<[Self; 2], Error> {
        let module = device.load(CODED_IMAGE)?;
        let of = |codes: CodeType| {
            let split = by_dim(|dim| module.overlapping(&format!("decode_{}_d{dim}", codes.name())))?;
            Ok::<_, Error>(Self { split, combine: bf16.combine.clone(), blocks: CODED_BLOCKS })
        };
        Ok([of(CodeType::E4m3)?, of(CodeType::Int8)?])
    }
}

/// Bytes of shared memory where the warps of a thread block put the sums of `heads` query heads: `kSumsPitch` pairs a warp and head.
fn shared_bytes(heads: usize, dim: usize) -> u32 {
    (WARPS * heads * (dim / 2 + 4) * 2 * size_of::<f32>()) as u32
}

fn by_dim(function: impl Fn(usize) -> Result<Function, CudaError>) -> Result<[Function; 3], CudaError> {
    Ok([function(HEAD_DIMS[0])?, function(HEAD_DIMS[1])?, function(HEAD_DIMS[2])?])
}

/// Keys and values of one call, of whatever type.
struct Cached {
    keys: Tensor,
    values: Tensor,
    /// Bytes of an element.
    element: usize,
    /// Addresses of the scales of quantised keys and values, and elements from a head's to the next.
    scales: [u64; 2],
    scale_head_stride: usize,
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

    fn grow(&mut self, places: usize, dim: usize) -> Result<(), Error> {
        self.sums.grow(places * dim)?;
        Ok(self.scales.grow(places * 2)?)
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
    k_scales: u64,
    v_scales: u64,
    scale_head_stride: i64,
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
        let kernels = if T::NAME == "bf16" { &self.decode_bf16 } else { &self.decode_f16 };
        let (keys, values) = (k.tensor, v.tensor);
        let cached = Cached { keys, values, element: size_of::<T>(), scales: [0; 2], scale_head_stride: 0 };
        self.queue_decode(stream, kernels, (q.tensor, size_of::<T>()), &cached, scale, work, out.tensor)
    }

    /// [`decode`](Self::decode) over keys and values in 8-bit codes of one type, whose rows have the same strides.
    ///
    /// # Errors
    /// As for [`decode`](Self::decode).
    #[allow(clippy::too_many_arguments)]
    pub fn decode_coded(
        &self,
        stream: &Stream,
        q: DeviceRows<'_, bf16>,
        k: CodedRows<'_>,
        v: CodedRows<'_>,
        scale: Option<f32>,
        work: &mut DecodeWorkspace,
        out: &mut DeviceRowsMut<'_, bf16>,
    ) -> Result<(), Error> {
        if k.scale_head_stride != v.scale_head_stride {
            return Err(Error::Shape(format!(
                "scales of keys lie {} apart from head to head, those of values {}: they must be alike",
                k.scale_head_stride, v.scale_head_stride
            )));
        }
        if k.codes != v.codes {
            return Err(Error::Shape(format!("keys in {} and values in {}: they must be alike", k.codes, v.codes)));
        }
        let cached = Cached {
            keys: k.tensor,
            values: v.tensor,
            element: 1,
            scales: [k.scales, v.scales],
            scale_head_stride: k.scale_head_stride,
        };
        let kernels = &self.decode_coded[k.codes as usize];
        self.queue_decode(stream, kernels, (q.tensor, size_of::<bf16>()), &cached, scale, work, out.tensor)
    }

    /// Queues the kernels for a query and an output of elements of some bytes.
    #[allow(clippy::too_many_arguments)]
    fn queue_decode(
        &self,
        stream: &Stream,
        kernels: &DecodeKernels,
        (query, query_element): (Tensor, usize),
        cached: &Cached,
        scale: Option<f32>,
        work: &mut DecodeWorkspace,
        output: Tensor,
    ) -> Result<(), Error> {
        let (keys, values) = (&cached.keys, &cached.values);
        let shape = |x: &Tensor| (x.rows, x.heads, x.dim);
        let (heads, kv_heads, dim, len) = (query.heads, keys.heads, query.dim, keys.rows);
        if query.rows != 1
            || shape(&output) != shape(&query)
            || shape(values) != shape(keys)
            || keys.dim != dim
            || !heads.is_multiple_of(kv_heads)
        {
            return Err(Error::Shape(format!(
                "queries of rows, heads, dim {:?} and an output of {:?} with keys of {:?} and values of {:?}: one query row, and query \
                 heads that share the key heads evenly, are needed",
                shape(&query),
                shape(&output),
                shape(keys),
                shape(values)
            )));
        }
        let fits = |x: &Tensor, element: usize| {
            [x.row_stride * element, x.head_stride * element].iter().all(|s| s.is_multiple_of(16))
                && x.address.is_multiple_of(16)
        };
        let aligned = [&query, &output].into_iter().all(|x| fits(x, query_element))
            && [keys, values].into_iter().all(|x| fits(x, cached.element));
        if !aligned || len >= i32::MAX as usize - STEP_KEYS {
            return Err(Error::Shape(format!(
                "{len} keys of {dim}: addresses and strides must be multiples of 16 bytes, and positions must fit 31 bits"
            )));
        }
        let place = dim_place(dim)?;
        let (split, combine) = (&kernels.split[place], &kernels.combine[place]);
        let scale = scale.unwrap_or(1.0 / (dim as f32).sqrt());
        if !(scale > 0.0 && scale.is_finite()) {
            return Err(Error::Shape(format!("softmax scale {scale}: it must be positive")));
        }

        let group = heads / kv_heads;
        let rounds = group.div_ceil(HEADS);
        let (split_keys, splits) = splits(len, self.multiprocessors as usize * kernels.blocks, kv_heads * rounds);
        work.grow(heads * splits, dim)?;
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
            k_scales: cached.scales[0],
            v_scales: cached.scales[1],
            scale_head_stride: cached.scale_head_stride as i64,
        };
        let grid = [splits as u32, kv_heads as u32, rounds as u32];
        let over_keys = split.launch(stream).grid(grid).block(THREADS).overlap();
        let over_keys = over_keys.shared_bytes(shared_bytes(group.min(HEADS), dim)).arg(params);
        let together = combine.launch(stream).grid([heads as u32, 1, 1]).block(dim as u32).overlap().arg(params);
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

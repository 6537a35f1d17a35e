//! Attention of a decode step on the device: one query row a head over the whole cache, or rows of several sequences, each over its own.

use half::bf16;
use speedread_cuda::{Buffer, Device, Error as CudaError, Function, KernelArg, Stream, Tensor};

use super::attention::Attention;
use super::kernels::{HEAD_DIMS, dim_place};
use super::tensor::{AttentionElement, CachedRows, CodeType, CodedRows, DeviceRows, DeviceRowsMut};
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
/// Rows that the kernels for several take in one launch.
const ROWS: usize = 8;
/// Fewer keys than this are not worth a thread block of their own.
const LEAST_KEYS: usize = 256;

/// The kernels of one kind of cache, by head dim: over a split, and over what the splits found.
#[derive(Debug, Clone)]
pub(super) struct DecodeKernels {
    split: [Function; 3],
    combine: [Function; 3],
    /// The same for rows of several sequences.
    rows: Option<[[Function; 3]; 2]>,
    /// Thread blocks of `split` that a multiprocessor runs at a time.
    blocks: usize,
}

impl DecodeKernels {
    /// Keys and values of the queries' own type.
    pub(super) fn load(device: &Device, element: &str) -> Result<Self, Error> {
        let module = device.load(IMAGE)?;
        let functions = |name: &str| by_dim(|dim| module.overlapping(&format!("{name}_{element}_d{dim}")));
        let rows = match element {
            "bf16" => Some([functions("decode_rows")?, functions("combine_rows")?]),
            _ => None,
        };
        Ok(Self { split: functions("decode")?, combine: functions("combine")?, rows, blocks: BLOCKS })
    }

    /// Keys and values in codes under bf16 queries, whose splits `bf16` puts together; by [`CodeType`].
    pub(super) fn load_coded(device: &Device, bf16: &Self) -> Result<[Self; 2], Error> {
        let module = device.load(CODED_IMAGE)?;
        let of = |codes: CodeType| {
            let functions = |name: &str| by_dim(|dim| module.overlapping(&format!("{name}_{}_d{dim}", codes.name())));
            let (split, of_rows) = (functions("decode")?, functions("decode_rows")?);
            let rows = bf16.rows.clone().map(|[_, combine]| [of_rows, combine]);
            Ok::<_, Error>(Self { split, combine: bf16.combine.clone(), rows, blocks: CODED_BLOCKS })
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

/// A row of a decode step of several sequences: `q` and `out` are `[1, query heads, dim]`.
#[derive(Debug)]
pub struct DecodeRow<'a> {
    /// The query.
    pub q: DeviceRows<'a, bf16>,
    /// What it sees.
    pub cached: CachedRows<'a>,
    /// Where its output goes.
    pub out: DeviceRowsMut<'a, bf16>,
}

/// A row whose shapes were checked.
struct Checked<'k> {
    kernels: &'k DecodeKernels,
    /// Without places for what its splits find.
    params: DecodeParams,
    heads: usize,
    kv_heads: usize,
    dim: usize,
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

/// Mirror of `DecodeRows` there.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct RowsParams {
    rows: [DecodeParams; ROWS],
    rounds: i32,
}
// SAFETY: the same fields in the same order as the kernel's structure.
unsafe impl KernelArg for RowsParams {}

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
        let row = self.check_decode(kernels, (q.tensor, size_of::<T>()), &cached, scale, out.tensor)?;
        queue(stream, vec![row], work)
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
        queue(stream, vec![self.check_coded(q, [k, v], scale, out.tensor)?], work)
    }

    /// [`decode`](Self::decode) of a row of each of some sequences, eight in a launch: each as it would be alone.
    ///
    /// # Errors
    /// As for [`decode`](Self::decode), and when heads, dims or types of caches differ.
    pub fn decode_rows(
        &self,
        stream: &Stream,
        rows: Vec<DecodeRow<'_>>,
        scale: Option<f32>,
        work: &mut DecodeWorkspace,
    ) -> Result<(), Error> {
        let check = |DecodeRow { q, cached, out }: DecodeRow<'_>| match cached {
            CachedRows::Bf16([k, v]) => {
                let element = size_of::<bf16>();
                let cached = Cached { keys: k.tensor, values: v.tensor, element, scales: [0; 2], scale_head_stride: 0 };
                self.check_decode(&self.decode_bf16, (q.tensor, element), &cached, scale, out.tensor)
            }
            CachedRows::Coded(rows) => self.check_coded(q, rows, scale, out.tensor),
        };
        queue(stream, rows.into_iter().map(check).collect::<Result<_, _>>()?, work)
    }

    fn check_coded(
        &self,
        q: DeviceRows<'_, bf16>,
        [k, v]: [CodedRows<'_>; 2],
        scale: Option<f32>,
        output: Tensor,
    ) -> Result<Checked<'_>, Error> {
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
        self.check_decode(kernels, (q.tensor, size_of::<bf16>()), &cached, scale, output)
    }

    /// A row whose query and output are of elements of some bytes.
    fn check_decode<'k>(
        &self,
        kernels: &'k DecodeKernels,
        (query, query_element): (Tensor, usize),
        cached: &Cached,
        scale: Option<f32>,
        output: Tensor,
    ) -> Result<Checked<'k>, Error> {
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
        dim_place(dim)?;
        let scale = scale.unwrap_or(1.0 / (dim as f32).sqrt());
        if !(scale > 0.0 && scale.is_finite()) {
            return Err(Error::Shape(format!("softmax scale {scale}: it must be positive")));
        }

        let group = heads / kv_heads;
        let rounds = group.div_ceil(HEADS);
        let (split_keys, splits) = splits(len, self.multiprocessors as usize * kernels.blocks, kv_heads * rounds);
        let params = DecodeParams {
            q: query.address,
            k: keys.address,
            v: values.address,
            out: output.address,
            sums: 0,
            scales: 0,
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
        Ok(Checked { kernels, params, heads, kv_heads, dim })
    }
}

/// Queues the kernels for rows that are alike: one by its own kernels, more by those for several.
fn queue(stream: &Stream, mut rows: Vec<Checked<'_>>, work: &mut DecodeWorkspace) -> Result<(), Error> {
    let Some(&Checked { kernels, heads, kv_heads, dim, .. }) = rows.first() else { return Ok(()) };
    let alike = |row: &Checked<'_>| {
        std::ptr::eq(row.kernels, kernels) && (row.heads, row.kv_heads, row.dim) == (heads, kv_heads, dim)
    };
    if !rows.iter().all(alike) {
        return Err(Error::Shape("rows of a decode step with different heads, dims or types of caches".into()));
    }
    work.grow(rows.iter().map(|row| heads * row.params.splits as usize).sum(), dim)?;
    let mut before = 0;
    for Checked { params, .. } in &mut rows {
        params.sums = work.sums.view().slice(before * dim..work.sums.len())?.address();
        params.scales = work.scales.view().slice(before * 2..work.scales.len())?.address();
        before += heads * params.splits as usize;
    }

    let (place, group) = (dim_place(dim)?, heads / kv_heads);
    let (rounds, shared) = (group.div_ceil(HEADS), shared_bytes(group.min(HEADS), dim));
    if let [Checked { params, .. }] = rows[..] {
        let (split, combine) = (&kernels.split[place], &kernels.combine[place]);
        let grid = [params.splits as u32, kv_heads as u32, rounds as u32];
        let over_keys = split.launch(stream).grid(grid).block(THREADS).overlap().shared_bytes(shared).arg(params);
        let together = combine.launch(stream).grid([heads as u32, 1, 1]).block(dim as u32).overlap().arg(params);
        // SAFETY: the kernels' one parameter. Shapes, strides and alignment were checked; every split holds a key; the workspace has a place
        // for every head and split.
        unsafe {
            over_keys.run()?;
            together.run()?;
        }
        return Ok(());
    }
    let Some([split, combine]) = &kernels.rows else {
        return Err(Error::Shape("decode steps of several rows take queries in bf16".into()));
    };
    for rows in rows.chunks(ROWS) {
        let count = rows.len() as u32;
        let splits = rows.iter().map(|row| row.params.splits as u32).max().unwrap_or(0);
        // Those past the last are not looked at.
        let mut params = RowsParams { rows: [rows[0].params; ROWS], rounds: rounds as i32 };
        params.rows.iter_mut().zip(rows).for_each(|(to, row)| *to = row.params);
        let over_keys = split[place].launch(stream).grid([splits, kv_heads as u32, rounds as u32 * count]);
        let over_keys = over_keys.block(THREADS).overlap().shared_bytes(shared).arg(params);
        let together = combine[place].launch(stream).grid([heads as u32, count, 1]);
        let together = together.block(dim as u32).overlap().arg(params);
        // SAFETY: as above, for each of the rows that the grids' last index names.
        unsafe {
            over_keys.run()?;
            together.run()?;
        }
    }
    Ok(())
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

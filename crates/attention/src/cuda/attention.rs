//! The kernels of a device, and launching them.

use speedread_cuda::{Device, Error as CudaError, Function, KernelArg, Stream, Tensor, TensorMap, ViewMut};

use super::TILE;
use super::decode::DecodeKernels;
use super::index::{CallShape, IndexKernels, Workspace};
use super::plan::DevicePlan;
use super::tensor::{AttentionElement, DeviceRows, DeviceRowsMut};
use crate::{Error, HeadReport, Pattern};

/// Head dims the kernels are made for.
pub const HEAD_DIMS: [usize; 3] = [64, 96, 128];

static BF16: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/sm90_bf16_attention.fatbin"));
static F16: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/sm90_f16_attention.fatbin"));
static GATHER: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/gather_columns.fatbin"));

/// Threads of the attention kernel: two warpgroups of consumers and one that holds the producer.
const THREADS: u32 = 3 * 128;
/// All the shared memory a thread block can have: there is one block a multiprocessor.
const SHARED_BYTES: u32 = 227 << 10;
/// Rows of a box that a warpgroup of the attention kernel stores.
const STORED_ROWS: usize = 64;

/// The attention kernels, loaded on one device.
#[derive(Debug, Clone)]
pub struct Attention {
    pub(super) multiprocessors: u32,
    bf16: [Function; 3],
    f16: [Function; 3],
    gather: Function,
    index: IndexKernels,
    pub(super) decode_bf16: DecodeKernels,
    pub(super) decode_f16: DecodeKernels,
}

/// The function for a head dim.
pub(super) fn of_dim(functions: &[Function; 3], dim: usize) -> Result<&Function, Error> {
    let unknown = || Error::Shape(format!("head dim {dim}: the CUDA kernels are made for {HEAD_DIMS:?}"));
    HEAD_DIMS.iter().position(|&d| d == dim).map(|i| &functions[i]).ok_or_else(unknown)
}

/// Options of [`Attention::prefill`].
#[derive(Debug, Clone, Copy)]
pub struct DeviceOptions {
    /// Softmax scale; `None` = 1/sqrt(dim).
    pub scale: Option<f32>,
    /// Run a head dense where its pattern, index building included, would cost no less.
    pub dense_fallback: bool,
}

impl Default for DeviceOptions {
    fn default() -> Self {
        DeviceOptions { scale: None, dense_fallback: true }
    }
}

/// The lists of a call, by device address.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lists {
    pub shape: CallShape,
    pub items: u64,
    pub item_count: usize,
    pub offsets: u64,
    pub masks: u64,
    /// Key positions of the columns to gather, and key head of each tile of them.
    pub positions: u64,
    pub tile_heads: u64,
    pub column_tiles: usize,
    /// Where the gathered keys and values go.
    pub gathered_k: u64,
    pub gathered_v: u64,
}

/// Mirror of `AttentionParams` in `kernels/work.cuh`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct AttentionParams {
    items: u64,
    offsets: u64,
    columns: u64,
    lse: u64,
    counter: u64,
    item_count: i32,
    rows: i32,
    start: i32,
    group: i32,
    scale_log2: f32,
}
// SAFETY: the same fields in the same order as the kernel's structure.
unsafe impl KernelArg for AttentionParams {}

/// Mirror of `GatherParams` in `kernels/gather_columns.cu`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct GatherParams {
    k: u64,
    v: u64,
    to_k: u64,
    to_v: u64,
    positions: u64,
    heads: u64,
    k_strides: [i64; 2],
    v_strides: [i64; 2],
    chunks: i32,
}
// SAFETY: the same fields in the same order as the kernel's structure.
unsafe impl KernelArg for GatherParams {}

impl Attention {
    /// Loads the kernels.
    ///
    /// # Errors
    /// [`Error::Cuda`] when the device is not a Hopper (compute capability 9.0) or this build has no kernels.
    pub fn new(device: &Device) -> Result<Self, Error> {
        let (major, minor) = device.capability();
        if (major, minor) != (9, 0) {
            return Err(Error::Cuda(CudaError::NoDevice(format!(
                "{} has compute capability {major}.{minor}; the attention kernels are for 9.0 (Hopper)",
                device.name()
            ))));
        }
        let load = |image: &[u8], element: &str| -> Result<[Function; 3], Error> {
            let module = device.load(image)?;
            let function = |dim| module.function(&format!("sm90_{element}_attention_d{dim}"), SHARED_BYTES);
            Ok([function(HEAD_DIMS[0])?, function(HEAD_DIMS[1])?, function(HEAD_DIMS[2])?])
        };
        Ok(Self {
            multiprocessors: device.multiprocessors(),
            bf16: load(BF16, "bf16")?,
            f16: load(F16, "f16")?,
            gather: device.load(GATHER)?.function("gather_columns", 0)?,
            index: IndexKernels::new(device)?,
            decode_bf16: DecodeKernels::load(device, "bf16")?,
            decode_f16: DecodeKernels::load(device, "f16")?,
        })
    }

    /// Queues causal attention of `plan` on `stream`.
    ///
    /// Shapes: `q` and `out` `[rows, query heads, dim]`, `k` and `v` `[start + rows, key heads, dim]`, as the plan has them; `lse` (natural
    /// log-sum-exp) `[query heads][rows]`. `scale` is the softmax scale, by default 1/sqrt(dim). Addresses and strides must be multiples
    /// of 16 bytes.
    ///
    /// # Errors
    /// [`Error::Shape`] when shapes do not fit together or the head dim is not one of [`HEAD_DIMS`], [`Error::Cuda`].
    #[allow(clippy::too_many_arguments)]
    pub fn attend<T: AttentionElement>(
        &self,
        stream: &Stream,
        q: DeviceRows<'_, T>,
        k: DeviceRows<'_, T>,
        v: DeviceRows<'_, T>,
        plan: &DevicePlan,
        scale: Option<f32>,
        out: &mut DeviceRowsMut<'_, T>,
        lse: Option<ViewMut<'_, f32>>,
    ) -> Result<(), Error> {
        let dim = q.tensor.dim;
        let (rows, heads, kv_heads) = (plan.rows, plan.heads, plan.kv_heads);
        let shape = CallShape { rows, start: plan.start, heads, kv_heads, dim };
        let (function, scale) = self.check(&shape, q, k, v, scale, out, lse.as_ref())?;
        let gathered_rows = plan.gather.len();
        let mut gathered_k = stream.alloc::<T>(gathered_rows * dim)?;
        let mut gathered_v = stream.alloc::<T>(gathered_rows * dim)?;
        let lists = Lists {
            shape,
            items: plan.items.view().address(),
            item_count: plan.items.len(),
            offsets: plan.offsets.view().address(),
            masks: plan.columns.view().address(),
            positions: plan.gather.view().address(),
            tile_heads: plan.gather_heads.view().address(),
            column_tiles: plan.gather_heads.len(),
            gathered_k: gathered_k.view_mut().address(),
            gathered_v: gathered_v.view_mut().address(),
        };
        self.run(stream, function, q, k, v, &lists, scale, out, lse)
    }

    /// Queues causal attention with indexes built on the device: last queries' masses, choice of lines, gather, work list and attention,
    /// without waiting for any of it.
    ///
    /// Shapes as for [`Attention::attend`]; `k` may have more rows than `q`, which then is the end of the sequence. `patterns` has one entry
    /// a query head.
    ///
    /// # Errors
    /// As for [`Attention::attend`]; [`Error::Pattern`] for a pattern that makes no sense, or is block-sparse, whose indexes only the host
    /// builds.
    #[allow(clippy::too_many_arguments)]
    pub fn prefill<T: AttentionElement>(
        &self,
        stream: &Stream,
        q: DeviceRows<'_, T>,
        k: DeviceRows<'_, T>,
        v: DeviceRows<'_, T>,
        patterns: &[Pattern],
        options: &DeviceOptions,
        work: &mut Workspace,
        out: &mut DeviceRowsMut<'_, T>,
        lse: Option<ViewMut<'_, f32>>,
    ) -> Result<(), Error> {
        self.build_indexes(stream, q, k, patterns, options, work)?;
        self.attend_built(stream, q, k, v, work, options.scale, out, lse)
    }

    /// The first half of [`Attention::prefill`]: builds the indexes into `work`.
    ///
    /// # Errors
    /// As for [`Attention::prefill`].
    pub fn build_indexes<T: AttentionElement>(
        &self,
        stream: &Stream,
        q: DeviceRows<'_, T>,
        k: DeviceRows<'_, T>,
        patterns: &[Pattern],
        options: &DeviceOptions,
        work: &mut Workspace,
    ) -> Result<(), Error> {
        let (rows, dim) = (q.tensor.rows, q.tensor.dim);
        if dim != k.tensor.dim || rows > k.tensor.rows || !HEAD_DIMS.contains(&dim) {
            return Err(Error::Shape(format!(
                "{rows} query rows of {dim} for {} keys of {}: head dims must be equal and one of {HEAD_DIMS:?}, and there are no more \
                 queries than keys",
                k.tensor.rows, k.tensor.dim
            )));
        }
        let start = k.tensor.rows - rows;
        let shape = CallShape { rows, start, heads: q.tensor.heads, kv_heads: k.tensor.heads, dim };
        let scale = softmax_scale(options.scale, dim)?;
        self.index.build(stream, q, k, &shape, patterns, scale, options.dense_fallback, work)
    }

    /// The second half of [`Attention::prefill`]: attention over the indexes that [`Attention::build_indexes`] built into `work`.
    ///
    /// # Errors
    /// As for [`Attention::attend`], and when the indexes are of another shape.
    #[allow(clippy::too_many_arguments)]
    pub fn attend_built<T: AttentionElement>(
        &self,
        stream: &Stream,
        q: DeviceRows<'_, T>,
        k: DeviceRows<'_, T>,
        v: DeviceRows<'_, T>,
        work: &Workspace,
        scale: Option<f32>,
        out: &mut DeviceRowsMut<'_, T>,
        lse: Option<ViewMut<'_, f32>>,
    ) -> Result<(), Error> {
        let lists = work.lists()?;
        let (function, scale) = self.check(&lists.shape, q, k, v, scale, out, lse.as_ref())?;
        self.run(stream, function, q, k, v, &lists, scale, out, lse)
    }

    /// What the last [`Attention::prefill`] with `work` did, per query head: pattern (dense after a fallback) and key tiles. Waits for it.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn report(&self, stream: &Stream, work: &Workspace) -> Result<Vec<HeadReport>, Error> {
        work.snapshot(stream)?.read(stream)
    }

    /// The kernel for these tensors, and the softmax scale.
    #[allow(clippy::too_many_arguments)]
    fn check<T: AttentionElement>(
        &self,
        shape: &CallShape,
        q: DeviceRows<'_, T>,
        k: DeviceRows<'_, T>,
        v: DeviceRows<'_, T>,
        scale: Option<f32>,
        out: &DeviceRowsMut<'_, T>,
        lse: Option<&ViewMut<'_, f32>>,
    ) -> Result<(&Function, f32), Error> {
        let of = |x: &speedread_cuda::Tensor| (x.rows, x.heads, x.dim);
        let queries = (shape.rows, shape.heads, shape.dim);
        let keys = (shape.len(), shape.kv_heads, shape.dim);
        for (what, has, needs) in [
            ("queries", of(&q.tensor), queries),
            ("keys", of(&k.tensor), keys),
            ("values", of(&v.tensor), keys),
            ("output", of(&out.tensor), queries),
        ] {
            if has != needs {
                return Err(Error::Shape(format!("{what} of rows, heads, dim {has:?}; {needs:?} are needed")));
            }
        }
        let functions = if T::NAME == "bf16" { &self.bf16 } else { &self.f16 };
        let function = of_dim(functions, shape.dim)?;
        let wanted = shape.heads * shape.rows;
        if let Some(lse) = lse.filter(|lse| lse.len() != wanted) {
            return Err(Error::Shape(format!("the log-sum-exp has {} elements, {wanted} are needed", lse.len())));
        }
        Ok((function, softmax_scale(scale, shape.dim)?))
    }

    /// Queues the gather and the attention of ready lists.
    #[allow(clippy::too_many_arguments)]
    fn run<T: AttentionElement>(
        &self,
        stream: &Stream,
        function: &Function,
        q: DeviceRows<'_, T>,
        k: DeviceRows<'_, T>,
        v: DeviceRows<'_, T>,
        lists: &Lists,
        scale: f32,
        out: &mut DeviceRowsMut<'_, T>,
        lse: Option<ViewMut<'_, f32>>,
    ) -> Result<(), Error> {
        let shape = lists.shape;
        let (map_k, map_v) = (k.map(TILE.keys)?, v.map(TILE.keys)?);
        let (columns_k, columns_v) = if lists.column_tiles == 0 {
            // No item names a column tile; the kernel's maps have to be valid ones all the same.
            (map_k, map_v)
        } else {
            self.gather(stream, k, v, lists)?;
            let map = |address| {
                let (rows, dim) = (lists.column_tiles * TILE.keys, shape.dim);
                let gathered = Tensor { address, rows, heads: 1, dim, row_stride: dim, head_stride: dim };
                TensorMap::rows::<T>(gathered, TILE.keys)
            };
            (map(lists.gathered_k)?, map(lists.gathered_v)?)
        };
        let item_count = i32::try_from(lists.item_count)
            .map_err(|_| Error::Shape(format!("{} query tiles: they must fit 31 bits", lists.item_count)))?;
        let blocks = self.multiprocessors.min(item_count as u32);
        // Each thread block starts with the item of its own number; the counter says how many more were taken.
        let counter = stream.zeros::<i32>(1)?;
        let params = AttentionParams {
            items: lists.items,
            offsets: lists.offsets,
            columns: lists.masks,
            lse: lse.as_ref().map_or(0, ViewMut::address),
            counter: counter.view().address(),
            item_count,
            rows: shape.rows as i32,
            start: shape.start as i32,
            group: (shape.heads / shape.kv_heads) as i32,
            scale_log2: scale * std::f32::consts::LOG2_E,
        };
        let launch = function
            .launch(stream)
            .grid([blocks, 1, 1])
            .block(THREADS)
            .arg(q.map(TILE.queries)?)
            .arg(map_k)
            .arg(map_v)
            .arg(columns_k)
            .arg(columns_v)
            .arg(out.map(STORED_ROWS)?)
            .arg(params);
        // SAFETY: the parameters of the kernel, in its order. Shapes were checked, and items name rows below `rows`, heads below `heads`,
        // and list entries inside their lists; the copy engine keeps inside the tensors.
        unsafe { launch.run()? };
        Ok(())
    }

    /// Copies the columns of K and V into dense tiles.
    fn gather<T: AttentionElement>(
        &self,
        stream: &Stream,
        k: DeviceRows<'_, T>,
        v: DeviceRows<'_, T>,
        lists: &Lists,
    ) -> Result<(), Error> {
        // The tensor maps were made: addresses and strides are multiples of 16 bytes.
        let chunk = 16 / size_of::<T>();
        let strides =
            |x: DeviceRows<'_, T>| [(x.tensor.row_stride / chunk) as i64, (x.tensor.head_stride / chunk) as i64];
        let params = GatherParams {
            k: k.tensor.address,
            v: v.tensor.address,
            to_k: lists.gathered_k,
            to_v: lists.gathered_v,
            positions: lists.positions,
            heads: lists.tile_heads,
            k_strides: strides(k),
            v_strides: strides(v),
            chunks: (k.tensor.dim / chunk) as i32,
        };
        let launch = self.gather.launch(stream).grid([lists.column_tiles as u32, 1, 1]).block(256).arg(params);
        // SAFETY: the kernel's one parameter. Positions are below `start + rows`, which K and V have; the destinations hold 128 rows a tile.
        unsafe { launch.run()? };
        Ok(())
    }
}

fn softmax_scale(scale: Option<f32>, dim: usize) -> Result<f32, Error> {
    let scale = scale.unwrap_or(1.0 / (dim as f32).sqrt());
    if scale > 0.0 && scale.is_finite() {
        return Ok(scale);
    }
    Err(Error::Shape(format!("softmax scale {scale}: it must be positive")))
}

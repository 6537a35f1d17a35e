//! The kernels of a device, and launching them.

use speedread_cuda::{Device, Error as CudaError, Function, KernelArg, Stream, TensorMap, ViewMut};

use super::TILE;
use super::decode::DecodeKernels;
use super::plan::DevicePlan;
use super::tensor::{AttentionElement, DeviceRows, DeviceRowsMut};
use crate::Error;

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
    pub(super) decode_bf16: DecodeKernels,
    pub(super) decode_f16: DecodeKernels,
}

/// The function for a head dim.
pub(super) fn of_dim(functions: &[Function; 3], dim: usize) -> Result<&Function, Error> {
    let unknown = || Error::Shape(format!("head dim {dim}: the CUDA kernels are made for {HEAD_DIMS:?}"));
    HEAD_DIMS.iter().position(|&d| d == dim).map(|i| &functions[i]).ok_or_else(unknown)
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
        let shape = |x: &speedread_cuda::Tensor| (x.rows, x.heads, x.dim);
        let (queries, keys) = ((plan.rows, plan.heads, dim), (plan.start + plan.rows, plan.kv_heads, dim));
        for (what, has, needs) in [
            ("queries", shape(&q.tensor), queries),
            ("keys", shape(&k.tensor), keys),
            ("values", shape(&v.tensor), keys),
            ("output", shape(&out.tensor), queries),
        ] {
            if has != needs {
                return Err(Error::Shape(format!("{what} of rows, heads, dim {has:?}; the plan needs {needs:?}")));
            }
        }
        let function = of_dim(if T::NAME == "bf16" { &self.bf16 } else { &self.f16 }, dim)?;
        if let Some(lse) = lse.as_ref().filter(|lse| lse.len() != plan.heads * plan.rows) {
            return Err(Error::Shape(format!(
                "the log-sum-exp has {} elements, {} are needed",
                lse.len(),
                plan.heads * plan.rows
            )));
        }
        let scale = scale.unwrap_or(1.0 / (dim as f32).sqrt());
        if !(scale > 0.0 && scale.is_finite()) {
            return Err(Error::Shape(format!("softmax scale {scale}: it must be positive")));
        }

        let (map_k, map_v) = (k.map(TILE.keys)?, v.map(TILE.keys)?);
        let gathered_rows = plan.gather.len();
        let mut gathered_k = stream.alloc::<T>(gathered_rows * dim)?;
        let mut gathered_v = stream.alloc::<T>(gathered_rows * dim)?;
        let (columns_k, columns_v) = if gathered_rows == 0 {
            // No item names a column tile; the kernel's maps have to be valid ones all the same.
            (map_k, map_v)
        } else {
            self.gather(stream, k, v, plan, gathered_k.view_mut(), gathered_v.view_mut())?;
            let map =
                |of| -> Result<TensorMap, Error> { DeviceRows::contiguous(of, gathered_rows, 1, dim)?.map(TILE.keys) };
            (map(gathered_k.view())?, map(gathered_v.view())?)
        };

        let item_count = plan.items.len() as i32;
        let blocks = self.multiprocessors.min(item_count as u32);
        // Each thread block starts with the item of its own number; the counter says how many more were taken.
        let counter = stream.zeros::<i32>(1)?;
        let params = AttentionParams {
            items: plan.items.view().address(),
            offsets: plan.offsets.view().address(),
            columns: plan.columns.view().address(),
            lse: lse.as_ref().map_or(0, ViewMut::address),
            counter: counter.view().address(),
            item_count,
            rows: plan.rows as i32,
            start: plan.start as i32,
            group: (plan.heads / plan.kv_heads) as i32,
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
        // SAFETY: the parameters of the kernel, in its order. Shapes were checked against the plan, whose items name rows below `rows`,
        // heads below `heads`, and list entries inside its lists; the copy engine keeps inside the tensors.
        unsafe { launch.run()? };
        Ok(())
    }

    /// Copies the plan's columns of K and V into dense tiles.
    fn gather<T: AttentionElement>(
        &self,
        stream: &Stream,
        k: DeviceRows<'_, T>,
        v: DeviceRows<'_, T>,
        plan: &DevicePlan,
        to_k: ViewMut<'_, T>,
        to_v: ViewMut<'_, T>,
    ) -> Result<(), Error> {
        // The tensor maps were made: addresses and strides are multiples of 16 bytes.
        let chunk = 16 / size_of::<T>();
        let strides =
            |x: DeviceRows<'_, T>| [(x.tensor.row_stride / chunk) as i64, (x.tensor.head_stride / chunk) as i64];
        let params = GatherParams {
            k: k.tensor.address,
            v: v.tensor.address,
            to_k: to_k.address(),
            to_v: to_v.address(),
            positions: plan.gather.view().address(),
            heads: plan.gather_heads.view().address(),
            k_strides: strides(k),
            v_strides: strides(v),
            chunks: (k.tensor.dim / chunk) as i32,
        };
        let launch = self.gather.launch(stream).grid([plan.gather_heads.len() as u32, 1, 1]).block(256).arg(params);
        // SAFETY: the kernel's one parameter. The plan's positions are below `start + rows`, which K and V have; the destinations hold 128
        // rows a tile.
        unsafe { launch.run()? };
        Ok(())
    }
}

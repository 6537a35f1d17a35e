//! The attention kernels, a set for each kind of device, and launching them.

use std::fmt;
use std::str::FromStr;

use speedread_cuda::{Device, Error as CudaError, Function, KernelArg, Launch, Stream, Tensor, TensorMap, ViewMut};

use super::TILE;
use super::attention::Lists;
use super::tensor::{AttentionElement, DeviceRows, DeviceRowsMut};
use crate::Error;

/// Head dims the kernels are made for.
pub const HEAD_DIMS: [usize; 3] = [64, 96, 128];

static SM90_BF16: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/sm90_bf16_attention.fatbin"));
static SM90_F16: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/sm90_f16_attention.fatbin"));
static PORTABLE_BF16: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/bf16_attention.fatbin"));
static PORTABLE_F16: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/f16_attention.fatbin"));

/// Which kernels run: attention, and the last queries' masses that indexes are chosen by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KernelKind {
    /// Products of warpgroups, tiles by the bulk copy engine: compute capability 9.0 (Hopper) alone.
    Sm90,
    /// Products of warps, tiles by asynchronous copies: compute capability 8.0 (Ampere) and newer.
    Portable,
}

impl KernelKind {
    /// The fastest kernels for `device`.
    ///
    /// # Errors
    /// [`Error::Cuda`] when there is none.
    pub fn of(device: &Device) -> Result<Self, Error> {
        let kind = if Self::Sm90.runs_on(device) { Self::Sm90 } else { Self::Portable };
        kind.require(device)?;
        Ok(kind)
    }

    fn runs_on(self, device: &Device) -> bool {
        match self {
            Self::Sm90 => device.capability() == (9, 0),
            Self::Portable => device.capability() >= (8, 0),
        }
    }

    fn require(self, device: &Device) -> Result<(), Error> {
        if self.runs_on(device) {
            return Ok(());
        }
        let (major, minor) = device.capability();
        let needs = match self {
            Self::Sm90 => "9.0 (Hopper)",
            Self::Portable => "8.0 (Ampere) or newer",
        };
        Err(Error::Cuda(CudaError::NoDevice(format!(
            "{} has compute capability {major}.{minor}; the {self} attention kernel is for {needs}",
            device.name()
        ))))
    }

    fn images(self) -> (&'static [u8], &'static [u8]) {
        match self {
            Self::Sm90 => (SM90_BF16, SM90_F16),
            Self::Portable => (PORTABLE_BF16, PORTABLE_F16),
        }
    }

    fn function_name(self, element: &str, dim: usize) -> String {
        match self {
            Self::Sm90 => format!("sm90_{element}_attention_d{dim}"),
            Self::Portable => format!("{element}_attention_d{dim}"),
        }
    }

    /// Threads of a block: two warpgroups of consumers and one that holds the producer; or four warps.
    fn threads(self) -> u32 {
        match self {
            Self::Sm90 => 3 * 128,
            Self::Portable => 4 * 32,
        }
    }

    /// Thread blocks that share a multiprocessor, as `Tiles` of the kernel has it.
    fn blocks(self, dim: usize) -> u32 {
        match self {
            Self::Sm90 => 1,
            Self::Portable => 2 + u32::from(dim == 64),
        }
    }

    /// Shared memory of a thread block.
    fn shared_bytes(self, dim: usize) -> u32 {
        match self {
            // All that a block can have.
            Self::Sm90 => 227 << 10,
            // `Shared` of the kernel: the queries, three halves of key tiles, and notes.
            Self::Portable => 2 * (TILE.queries + 3 * (TILE.keys / 2)) as u32 * dim as u32 + 128,
        }
    }
}

impl fmt::Display for KernelKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sm90 => "sm90",
            Self::Portable => "portable",
        })
    }
}

impl FromStr for KernelKind {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        [Self::Sm90, Self::Portable]
            .into_iter()
            .find(|kind| kind.to_string() == text)
            .ok_or_else(|| Error::Shape(format!("attention kernel {text:?}: there are sm90 and portable")))
    }
}

/// Place of a head dim among [`HEAD_DIMS`].
pub(super) fn dim_place(dim: usize) -> Result<usize, Error> {
    HEAD_DIMS
        .iter()
        .position(|&d| d == dim)
        .ok_or_else(|| Error::Shape(format!("head dim {dim}: the CUDA kernels are made for {HEAD_DIMS:?}")))
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

/// Mirror of `Tensor` in `kernels/portable/tensor.cuh`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct PortableTensor {
    data: u64,
    row_stride: i64,
    head_stride: i64,
}

impl From<Tensor> for PortableTensor {
    fn from(tensor: Tensor) -> Self {
        let Tensor { address, row_stride, head_stride, .. } = tensor;
        Self { data: address, row_stride: row_stride as i64, head_stride: head_stride as i64 }
    }
}

/// Mirror of `Tensors` in `kernels/portable/attention.cuh`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct PortableTensors {
    q: PortableTensor,
    k: PortableTensor,
    v: PortableTensor,
    columns_k: u64,
    columns_v: u64,
    out: PortableTensor,
}
// SAFETY: the same fields in the same order as the kernel's structure.
unsafe impl KernelArg for PortableTensors {}

const _: () = assert!(size_of::<AttentionParams>() == 64 && size_of::<PortableTensors>() == 112);

/// Rows of a box that a warpgroup of the Hopper kernel stores.
const STORED_ROWS: usize = 64;

/// The attention kernels of one kind, loaded on one device.
#[derive(Debug, Clone)]
pub(super) struct AttentionKernels {
    pub kind: KernelKind,
    multiprocessors: u32,
    bf16: [Function; 3],
    f16: [Function; 3],
}

impl AttentionKernels {
    pub fn new(device: &Device, kind: KernelKind) -> Result<Self, Error> {
        kind.require(device)?;
        let load = |image: &[u8], element: &str| -> Result<[Function; 3], Error> {
            let module = device.load(image)?;
            let function = |dim| module.function(&kind.function_name(element, dim), kind.shared_bytes(dim));
            Ok([function(HEAD_DIMS[0])?, function(HEAD_DIMS[1])?, function(HEAD_DIMS[2])?])
        };
        let (bf16, f16) = kind.images();
        Ok(Self { kind, multiprocessors: device.multiprocessors(), bf16: load(bf16, "bf16")?, f16: load(f16, "f16")? })
    }

    /// Queues the attention of ready lists, whose columns are gathered. Shapes and alignment have been checked.
    #[allow(clippy::too_many_arguments)]
    pub fn run<T: AttentionElement>(
        &self,
        stream: &Stream,
        q: DeviceRows<'_, T>,
        k: DeviceRows<'_, T>,
        v: DeviceRows<'_, T>,
        lists: &Lists,
        scale: f32,
        out: &mut DeviceRowsMut<'_, T>,
        lse: Option<ViewMut<'_, f32>>,
    ) -> Result<(), Error> {
        let shape = lists.shape;
        let functions = if T::NAME == "bf16" { &self.bf16 } else { &self.f16 };
        let function = &functions[dim_place(shape.dim)?];
        let item_count = i32::try_from(lists.item_count)
            .map_err(|_| Error::Shape(format!("{} query tiles: they must fit 31 bits", lists.item_count)))?;
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
        let blocks = (self.multiprocessors * self.kind.blocks(shape.dim)).min(item_count as u32);
        let launch = function.launch(stream).grid([blocks, 1, 1]).block(self.kind.threads());
        let launch = match self.kind {
            KernelKind::Sm90 => sm90_args(launch, q, k, v, lists, out)?,
            KernelKind::Portable => launch.arg(PortableTensors {
                q: q.tensor.into(),
                k: k.tensor.into(),
                v: v.tensor.into(),
                columns_k: lists.gathered_k,
                columns_v: lists.gathered_v,
                out: out.tensor.into(),
            }),
        };
        // SAFETY: the parameters of the kernel, in its order. Shapes were checked, and items name rows below `rows`, heads below `heads`,
        // and list entries inside their lists; the copy engine and the portable kernel's copies keep inside the tensors.
        unsafe { launch.arg(params).run()? };
        Ok(())
    }
}

/// Adds the tensors as the Hopper kernel takes them.
fn sm90_args<'a, T: AttentionElement>(
    launch: Launch<'a>,
    q: DeviceRows<'_, T>,
    k: DeviceRows<'_, T>,
    v: DeviceRows<'_, T>,
    lists: &Lists,
    out: &DeviceRowsMut<'_, T>,
) -> Result<Launch<'a>, Error> {
    let (map_k, map_v) = (k.map(TILE.keys)?, v.map(TILE.keys)?);
    let (columns_k, columns_v) = if lists.column_tiles == 0 {
        // No item names a column tile; the kernel's maps have to be valid ones all the same.
        (map_k, map_v)
    } else {
        let map = |address| {
            let (rows, dim) = (lists.column_tiles * TILE.keys, lists.shape.dim);
            TensorMap::rows::<T>(Tensor { address, rows, heads: 1, dim, row_stride: dim, head_stride: dim }, TILE.keys)
        };
        (map(lists.gathered_k)?, map(lists.gathered_v)?)
    };
    let map_q = q.map(TILE.queries)?;
    let map_out = out.map(STORED_ROWS)?;
    Ok(launch.arg(map_q).arg(map_k).arg(map_v).arg(columns_k).arg(columns_v).arg(map_out))
}

//! The two launches over the scores of the last queries, which find where their attention mass lies; for each kind of device.

use speedread_cuda::{Device, Function, KernelArg, Launch, Stream, TensorMap};

use super::layout::{CallShape, Layout, SCORED_HEADS};
use super::workspace::Workspace;
use crate::Error;
use crate::cuda::kernels::{HEAD_DIMS, KernelKind, PortableTensor, dim_place};
use crate::cuda::tensor::{AttentionElement, DeviceRows};
use crate::estimate::LAST_QUERIES;

static SM90_BF16: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/sm90_bf16_last_queries.fatbin"));
static SM90_F16: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/sm90_f16_last_queries.fatbin"));
static PORTABLE_BF16: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/bf16_last_queries.fatbin"));
static PORTABLE_F16: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/f16_last_queries.fatbin"));

/// Threads that share a head's scores.
const GROUP_THREADS: u32 = 128;
/// Floats of a row of weights in shared memory, as `kernels/masses.cuh` has it.
const WEIGHT_PITCH: usize = 72;
/// Heads of a thread block of the portable kernels, and slots for key tiles, as `kernels/portable/last_queries.cuh` has them.
const PORTABLE_HEADS: usize = 2;
const PORTABLE_SLOTS: usize = 2;

/// A launch over the scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pass {
    /// Normalisers of the rows.
    Rows,
    /// Sums of columns and diagonals.
    Lines,
}

/// The kernels of both launches, by head dim.
#[derive(Debug, Clone)]
struct Passes {
    rows: [Function; 3],
    lines: [Function; 3],
}

/// The kernels over the last queries' scores, loaded on one device.
#[derive(Debug, Clone)]
pub(super) struct ScoreKernels {
    kind: KernelKind,
    bf16: Passes,
    f16: Passes,
}

/// Mirror of `LastQueriesParams` in `kernels/index.cuh`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct LastQueriesParams {
    tasks: u64,
    heads: u64,
    partials: u64,
    columns: u64,
    diagonals: u64,
    pitch: i64,
    rows: i32,
    len: i32,
    chunk_tiles: i32,
    stages: i32,
    scale_log2: f32,
}
// SAFETY: the same fields in the same order as the kernel's structure.
unsafe impl KernelArg for LastQueriesParams {}

/// Mirror of `ScoreTensors` in `kernels/portable/last_queries.cuh`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct ScoreTensors {
    q: PortableTensor,
    k: PortableTensor,
}
// SAFETY: the same fields in the same order as the kernel's structure.
unsafe impl KernelArg for ScoreTensors {}

const _: () = assert!(size_of::<LastQueriesParams>() == 72 && size_of::<ScoreTensors>() == 48);

/// Stages of the Hopper kernels' ring of key tiles, for thread blocks of this many heads: small blocks share a multiprocessor.
fn stages(heads: usize) -> usize {
    if heads > 2 { 4 } else { 2 }
}

/// Heads of a thread block, where the largest task has `heads`.
fn block_heads(kind: KernelKind, heads: usize) -> usize {
    match kind {
        KernelKind::Sm90 => heads,
        KernelKind::Portable => heads.min(PORTABLE_HEADS),
    }
}

/// Shared memory of a thread block of `heads` heads.
fn shared_bytes(kind: KernelKind, pass: Pass, dim: usize, heads: usize) -> u32 {
    let weights = LAST_QUERIES * WEIGHT_PITCH * size_of::<f32>();
    let bytes = match (kind, pass) {
        (KernelKind::Sm90, _) => {
            let tile = dim.div_ceil(64) * 64 * 128;
            // The kernel rounds its base up to 1024.
            1024 + stages(heads) * tile + heads * (tile + weights)
        }
        (KernelKind::Portable, Pass::Rows) => PORTABLE_SLOTS * LAST_QUERIES * 2 * dim,
        (KernelKind::Portable, Pass::Lines) => PORTABLE_SLOTS * LAST_QUERIES * 2 * dim + heads * weights,
    };
    bytes as u32
}

impl ScoreKernels {
    /// Those of `kind`, which runs on `device`.
    pub(super) fn new(device: &Device, kind: KernelKind) -> Result<Self, Error> {
        let (prefix, bf16, f16) = match kind {
            KernelKind::Sm90 => ("sm90_", SM90_BF16, SM90_F16),
            KernelKind::Portable => ("", PORTABLE_BF16, PORTABLE_F16),
        };
        let passes = |image: &[u8], element: &str| -> Result<Passes, Error> {
            let module = device.load(image)?;
            let load = |pass: Pass, name: &str| -> Result<[Function; 3], Error> {
                let function = |dim: usize| {
                    let most = shared_bytes(kind, pass, dim, block_heads(kind, SCORED_HEADS));
                    module.function(&format!("{prefix}{element}_{name}_d{dim}"), most)
                };
                Ok([function(HEAD_DIMS[0])?, function(HEAD_DIMS[1])?, function(HEAD_DIMS[2])?])
            };
            Ok(Passes { rows: load(Pass::Rows, "row_sums")?, lines: load(Pass::Lines, "line_sums")? })
        };
        Ok(Self { kind, bf16: passes(bf16, "bf16")?, f16: passes(f16, "f16")? })
    }

    /// Queues the sums of the last queries' attention mass; there are score tasks, and Q and K are aligned to 16 bytes.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn sum<T: AttentionElement>(
        &self,
        stream: &Stream,
        q: DeviceRows<'_, T>,
        k: DeviceRows<'_, T>,
        shape: &CallShape,
        scale: f32,
        layout: &Layout,
        work: &mut Workspace,
    ) -> Result<(), Error> {
        let at = dim_place(shape.dim)?;
        if let Some(diagonals) = work.diagonals.buffer_mut() {
            // Runs of keys add what they share.
            stream.fill(diagonals.view_mut().slice(0..layout.slots.len() * layout.pitch)?, 0)?;
        }
        let heads = layout.score_heads();
        let params = LastQueriesParams {
            tasks: work.score_tasks.address(),
            heads: work.slots.address(),
            partials: work.partials.address(),
            columns: work.columns.address(),
            diagonals: work.diagonals.address(),
            pitch: layout.pitch as i64,
            rows: shape.rows as i32,
            len: shape.len() as i32,
            chunk_tiles: layout.chunk_tiles as i32,
            stages: stages(heads) as i32,
            scale_log2: scale * std::f32::consts::LOG2_E,
        };
        let passes = if T::NAME == "bf16" { &self.bf16 } else { &self.f16 };
        for (pass, function) in [(Pass::Rows, &passes.rows[at]), (Pass::Lines, &passes.lines[at])] {
            let launch = self.tensors(self.shape(function.launch(stream), pass, shape, layout), q, k)?;
            // SAFETY: the parameters of both kernels, in their order; the workspace has the room that the layout says, and the copies keep
            // inside the tensors.
            unsafe { launch.arg(params).run()? };
        }
        Ok(())
    }

    /// Grid, block and shared memory of a pass.
    fn shape<'a>(&self, launch: Launch<'a>, pass: Pass, shape: &CallShape, layout: &Layout) -> Launch<'a> {
        let most = layout.score_heads();
        let heads = block_heads(self.kind, most);
        let producer = match self.kind {
            KernelKind::Sm90 => 32,
            KernelKind::Portable => 0,
        };
        launch
            .grid([layout.chunks as u32, layout.score_tasks.len() as u32, most.div_ceil(heads) as u32])
            .block(GROUP_THREADS * heads as u32 + producer)
            .shared_bytes(shared_bytes(self.kind, pass, shape.dim, heads))
    }

    /// Adds the tensors as the kernels of the kind take them.
    fn tensors<'a, T: AttentionElement>(
        &self,
        launch: Launch<'a>,
        q: DeviceRows<'_, T>,
        k: DeviceRows<'_, T>,
    ) -> Result<Launch<'a>, Error> {
        Ok(match self.kind {
            KernelKind::Sm90 => {
                // A box is a tile of keys, or the last queries.
                let (map_q, map_k): (TensorMap, TensorMap) = (q.map(LAST_QUERIES)?, k.map(LAST_QUERIES)?);
                launch.arg(map_q).arg(map_k)
            }
            KernelKind::Portable => launch.arg(ScoreTensors { q: q.tensor.into(), k: k.tensor.into() }),
        })
    }
}

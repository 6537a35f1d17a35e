//! The kernels of index building, and launching them.

use speedread_cuda::{Device, Function, KernelArg, Stream, TensorMap};

use super::blocks::BlockKernels;
use super::layout::{CallShape, Layout, SCORED_HEADS};
use super::workspace::Workspace;
use crate::cuda::kernels::{HEAD_DIMS, KernelKind, dim_place};
use crate::cuda::tensor::{AttentionElement, DeviceRows};
use crate::estimate::LAST_QUERIES;
use crate::{Error, Pattern};

static BF16: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/sm90_bf16_last_queries.fatbin"));
static F16: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/sm90_f16_last_queries.fatbin"));
static GAINS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/window_gains.fatbin"));
static CHOOSE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/choose_lines.fatbin"));
static WORK: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/work_list.fatbin"));

/// Offsets of a thread block of `window_gains`.
const GAIN_OFFSETS: usize = 1024;
const GAIN_THREADS: u32 = 256;
/// Threads of a block of `choose_lines`.
const CHOOSERS: u32 = 1024;
/// Its shared memory: `Candidates` of `kernels/top.cuh`, keys and entries.
const CANDIDATE_BYTES: u32 = 10 * 1024 * 8;
/// Warps, and so items, of a block of `work_list`.
const WORK_WARPS: usize = 8;
/// Floats of a row of weights in shared memory, as `kernels/sm90/last_queries.cuh` has it.
const WEIGHT_PITCH: usize = 72;

/// The two launches over the last queries' scores, by head dim.
#[derive(Debug, Clone)]
struct Scores {
    row_sums: [Function; 3],
    line_sums: [Function; 3],
}

/// The kernels of index building, loaded on one device.
#[derive(Debug, Clone)]
pub(in crate::cuda) struct IndexKernels {
    /// For bf16 and f16, on Hopper: they take its products and copy engine.
    scores: Option<[Scores; 2]>,
    gains: Function,
    choose: Function,
    blocks: BlockKernels,
    work: Function,
}

/// Mirror of `LastQueriesParams` in `kernels/index.cuh`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct LastQueriesParams {
    pub(super) tasks: u64,
    pub(super) heads: u64,
    pub(super) partials: u64,
    pub(super) columns: u64,
    pub(super) diagonals: u64,
    pub(super) pitch: i64,
    pub(super) rows: i32,
    pub(super) len: i32,
    pub(super) chunk_tiles: i32,
    pub(super) stages: i32,
    pub(super) scale_log2: f32,
}
// SAFETY: the same fields in the same order as the kernel's structure.
unsafe impl KernelArg for LastQueriesParams {}

/// Mirror of `IndexParams` in `kernels/index.cuh`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct IndexParams {
    pub(super) heads: u64,
    pub(super) slot_heads: u64,
    pub(super) states: u64,
    pub(super) columns: u64,
    pub(super) diagonals: u64,
    pub(super) gains: u64,
    pub(super) best: u64,
    pub(super) offsets: u64,
    pub(super) positions: u64,
    pub(super) masks: u64,
    pub(super) items: u64,
    pub(super) pitch: i64,
    pub(super) runs: i64,
    pub(super) head_count: i32,
    pub(super) rows: i32,
    pub(super) start: i32,
    pub(super) len: i32,
    pub(super) query_tiles: i32,
    pub(super) dense_list: i32,
    pub(super) fallback: i32,
}
// SAFETY: the same fields in the same order as the kernel's structure.
unsafe impl KernelArg for IndexParams {}

const _: () = assert!(size_of::<LastQueriesParams>() == 72 && size_of::<IndexParams>() == 136);

/// Stages of the ring of key tiles, for thread blocks of this many warpgroups: small blocks share a multiprocessor.
fn stages(groups: usize) -> usize {
    if groups > 2 { 4 } else { 2 }
}

/// Shared memory of a thread block of the scores.
fn score_bytes(dim: usize, groups: usize) -> u32 {
    let tile = dim.div_ceil(64) * 64 * 128;
    let weights = LAST_QUERIES * WEIGHT_PITCH * size_of::<f32>();
    // The kernel rounds its base up to 1024.
    (1024 + stages(groups) * tile + groups * (tile + weights)) as u32
}

impl IndexKernels {
    pub(in crate::cuda) fn new(device: &Device) -> Result<Self, Error> {
        let scores = |image: &[u8], element: &str| -> Result<Scores, Error> {
            let module = device.load(image)?;
            let load = |pass: &str| -> Result<[Function; 3], Error> {
                let function = |dim: usize| {
                    module.function(&format!("sm90_{element}_{pass}_d{dim}"), score_bytes(dim, SCORED_HEADS))
                };
                Ok([function(HEAD_DIMS[0])?, function(HEAD_DIMS[1])?, function(HEAD_DIMS[2])?])
            };
            Ok(Scores { row_sums: load("row_sums")?, line_sums: load("line_sums")? })
        };
        let has_scores = KernelKind::of(device)? == KernelKind::Sm90;
        Ok(Self {
            scores: if has_scores { Some([scores(BF16, "bf16")?, scores(F16, "f16")?]) } else { None },
            gains: device.load(GAINS)?.function("window_gains", 0)?,
            choose: device.load(CHOOSE)?.function("choose_lines", CANDIDATE_BYTES)?,
            blocks: BlockKernels::new(device)?,
            work: device.load(WORK)?.function("work_list", 0)?,
        })
    }

    /// Queues the building of all lists of a call; `work` then has its layout. Q and K are of `shape`, the head dim is one of
    /// [`HEAD_DIMS`], and `fallback` lets heads run dense that sparse attention would not make cheaper.
    #[allow(clippy::too_many_arguments)]
    pub(in crate::cuda) fn build<T: AttentionElement>(
        &self,
        stream: &Stream,
        q: DeviceRows<'_, T>,
        k: DeviceRows<'_, T>,
        shape: &CallShape,
        patterns: &[Pattern],
        scale: f32,
        fallback: bool,
        work: &mut Workspace,
    ) -> Result<(), Error> {
        let layout = Layout::new(shape, patterns, fallback)?;
        let scores = match &self.scores {
            _ if layout.score_tasks.is_empty() => None,
            Some([bf16, f16]) => Some(if T::NAME == "bf16" { bf16 } else { f16 }),
            None => {
                return Err(Error::Pattern(
                    "vertical-slash patterns: only devices of compute capability 9.0 build their indexes; build them on the host".into(),
                ));
            }
        };
        work.prepare(stream, layout.clone(), shape.dim)?;
        if let Some(scores) = scores {
            scores.sum(stream, q, k, shape, scale, &layout, work)?;
        }
        self.blocks.build(stream, q, k, shape, &layout, work)?;
        let params = IndexParams {
            heads: work.heads.address(),
            slot_heads: work.slots.address(),
            states: work.states.address(),
            columns: work.columns.address(),
            diagonals: work.diagonals.address(),
            gains: work.gains.address(),
            best: work.best.address(),
            offsets: work.offsets.address(),
            positions: work.positions.address(),
            masks: work.masks.address(),
            items: work.items.address(),
            pitch: layout.pitch as i64,
            runs: layout.runs as i64,
            head_count: shape.heads as i32,
            rows: shape.rows as i32,
            start: shape.start as i32,
            len: shape.len() as i32,
            query_tiles: shape.query_tiles() as i32,
            dense_list: layout.dense_list as i32,
            fallback: i32::from(fallback),
        };
        if layout.has_gains {
            let grid = [shape.len().div_ceil(GAIN_OFFSETS) as u32, layout.slots.len() as u32, 1];
            let launch = self.gains.launch(stream).grid(grid).block(GAIN_THREADS).arg(params);
            // SAFETY: the kernel's one parameter; the workspace has the room that the layout says.
            unsafe { launch.run()? };
        }
        let launch = self.choose.launch(stream).grid([shape.heads as u32 + 1, 1, 1]);
        let launch = launch.block(CHOOSERS).shared_bytes(CANDIDATE_BYTES).arg(params);
        // SAFETY: as above.
        unsafe { launch.run()? };
        let items = shape.heads * shape.query_tiles();
        let grid = [items.div_ceil(WORK_WARPS) as u32, 1, 1];
        let launch = self.work.launch(stream).grid(grid).block(32 * WORK_WARPS as u32).arg(params);
        // SAFETY: as above.
        unsafe { launch.run()? };
        Ok(())
    }
}

impl Scores {
    /// Queues the sums of the last queries' attention mass.
    #[allow(clippy::too_many_arguments)]
    fn sum<T: AttentionElement>(
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
        let groups = layout.score_groups();
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
            stages: stages(groups) as i32,
            scale_log2: scale * std::f32::consts::LOG2_E,
        };
        // A box is a tile of keys, or the last queries.
        let (map_q, map_k): (TensorMap, TensorMap) = (q.map(LAST_QUERIES)?, k.map(LAST_QUERIES)?);
        for function in [&self.row_sums[at], &self.line_sums[at]] {
            let launch = function
                .launch(stream)
                .grid([layout.chunks as u32, layout.score_tasks.len() as u32, 1])
                .block(128 * groups as u32 + 32)
                .shared_bytes(score_bytes(shape.dim, groups))
                .arg(map_q)
                .arg(map_k)
                .arg(params);
            // SAFETY: the parameters of both kernels, in their order; the workspace has the room that the layout says, and the copy engine
            // keeps inside the tensors.
            unsafe { launch.run()? };
        }
        Ok(())
    }
}

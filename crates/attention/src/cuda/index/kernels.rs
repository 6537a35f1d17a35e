//! The kernels of index building, and launching them.

use speedread_cuda::{Device, Function, KernelArg, Stream};

use super::blocks::BlockKernels;
use super::layout::{CallShape, Layout};
use super::scores::ScoreKernels;
use super::workspace::Workspace;
use crate::cuda::kernels::KernelKind;
use crate::cuda::tensor::{AttentionElement, DeviceRows};
use crate::{Error, Pattern};

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

/// The kernels of index building, loaded on one device.
#[derive(Debug, Clone)]
pub(in crate::cuda) struct IndexKernels {
    scores: ScoreKernels,
    gains: Function,
    choose: Function,
    blocks: BlockKernels,
    work: Function,
}

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
    pub(super) block_counts: u64,
    pub(super) pitch: i64,
    pub(super) runs: i64,
    pub(super) head_count: i32,
    pub(super) rows: i32,
    pub(super) start: i32,
    pub(super) len: i32,
    pub(super) query_tiles: i32,
    pub(super) dense_list: i32,
    pub(super) fallback: i32,
    pub(super) block_tiles: i32,
}
// SAFETY: the same fields in the same order as the kernel's structure.
unsafe impl KernelArg for IndexParams {}

const _: () = assert!(size_of::<IndexParams>() == 144);

impl IndexKernels {
    /// With the launches over the last queries' scores of `kind`, which runs on `device`; the others are the same for all.
    pub(in crate::cuda) fn new(device: &Device, kind: KernelKind) -> Result<Self, Error> {
        Ok(Self {
            scores: ScoreKernels::new(device, kind)?,
            gains: device.load(GAINS)?.function("window_gains", 0)?,
            choose: device.load(CHOOSE)?.function("choose_lines", CANDIDATE_BYTES)?,
            blocks: BlockKernels::new(device)?,
            work: device.load(WORK)?.function("work_list", 0)?,
        })
    }

    /// Queues the building of all lists of a call; `work` then has its layout. Q and K are of `shape` and aligned to 16
    /// bytes, the head dim is one that the kernels are made for, and `fallback` lets heads run dense that sparse attention would not make cheaper.
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
        work.prepare(stream, layout.clone(), shape.dim)?;
        if !layout.score_tasks.is_empty() {
            self.scores.sum(stream, q, k, shape, scale, &layout, work)?;
        }
        self.blocks.build(stream, q, k, shape, scale, &layout, work)?;
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
            block_counts: work.block_counts.address(),
            pitch: layout.pitch as i64,
            runs: layout.runs as i64,
            head_count: shape.heads as i32,
            rows: shape.rows as i32,
            start: shape.start as i32,
            len: shape.len() as i32,
            query_tiles: shape.query_tiles() as i32,
            dense_list: layout.dense_list as i32,
            fallback: i32::from(fallback),
            block_tiles: layout.blocks.query_tiles as i32,
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

//! Block-sparse heads: means of tiles of queries and keys, their scores, and the choice of key tiles. Mirrors `kernels/blocks.cuh`.

use half::f16;
use speedread_cuda::{Device, Function, KernelArg, Stream};

use super::layout::{BLOCKS, CallShape, Layout, SHARES};
use super::workspace::Workspace;
use crate::Error;
use crate::cuda::TILE;
use crate::cuda::tensor::{AttentionElement, DeviceRows};

static POOL: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/pool_rows.fatbin"));
static SCORES: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/block_scores.fatbin"));
static CHOOSE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/choose_blocks.fatbin"));
static CHOOSE_SHARES: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/choose_shares.fatbin"));

/// Side, in tiles, of what a thread block of `block_scores` computes.
const SIDE: usize = 128;
/// Key tiles of which `block_scores` keeps the largest score.
const GROUP: usize = 16;
const SCORE_THREADS: u32 = 256;
/// Its shared memory.
const SCORE_BYTES: u32 = 98_304;
/// Key tiles of a thread block of it.
const SCORE_KEYS: usize = 4 * SIDE;
/// Thread blocks of `pool_rows` that a multiprocessor has beside other kernels: enough to keep its memory busy.
const POOLS: usize = 8;
/// Warps of a block of `choose_blocks` and of `choose_shares`: query tiles.
const CHOOSERS: usize = 4;
/// Scores held at a time: 256 MiB, of all heads up to 180K tokens, and of two at a million.
const SCORES_AT_ONCE: usize = 128 << 20;

/// How many key tiles a budget comes to in a query tile (of all its rows) whose first stands at `first`.
pub(super) fn blocks_of(budget: usize, first: usize) -> usize {
    let (own, last) = (first / TILE.keys, (first + TILE.queries - 1) / TILE.keys);
    budget.max(last - own + 1 + usize::from(own > 0)).min(last + 1)
}

/// The block-sparse heads of a call. Their query tiles are those before the dense ones at the end.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct BlockLayout {
    /// Query heads.
    pub heads: Vec<i32>,
    /// Key heads that they read.
    pub key_heads: Vec<i32>,
    /// Where, among those, the key head of each query head is.
    pub key_slots: Vec<i32>,
    pub query_tiles: usize,
    /// Key tiles up to the last query tile's own.
    pub key_tiles: usize,
    /// Scores from a query tile's to the next one's.
    pub pitch: usize,
    /// Query tiles, and heads, whose scores are held at a time.
    pub tiles_at_once: usize,
    pub heads_at_once: usize,
}

impl BlockLayout {
    /// Of these query heads, `group` to a key head, with `query_tiles` that are not dense.
    pub(super) fn new(shape: &CallShape, group: usize, heads: Vec<i32>, query_tiles: usize) -> Self {
        if heads.is_empty() || query_tiles == 0 {
            return BlockLayout::default();
        }
        let mut key_heads: Vec<i32> = heads.iter().map(|&head| head / group as i32).collect();
        key_heads.dedup();
        let slot_of = |head: i32| key_heads.partition_point(|&key_head| key_head < head / group as i32) as i32;
        let key_slots = heads.iter().map(|&head| slot_of(head)).collect();
        let last = shape.start + (query_tiles - 1) * TILE.queries;
        let pitch = ((last + TILE.queries - 1) / TILE.keys + 1).next_multiple_of(SIDE);
        let tiles_at_once = (SCORES_AT_ONCE / pitch / SIDE * SIDE).max(SIDE).min(query_tiles);
        let heads_at_once = if tiles_at_once < query_tiles { 1 } else { SCORES_AT_ONCE / (pitch * query_tiles) };
        BlockLayout {
            query_tiles,
            key_tiles: last / TILE.keys + 1,
            pitch,
            tiles_at_once,
            heads_at_once: heads_at_once.clamp(1, heads.len()),
            heads,
            key_heads,
            key_slots,
        }
    }

    /// All lists, one after the other, as they lie on the device.
    pub(super) fn lists(&self) -> Vec<i32> {
        [&self.heads[..], &self.key_heads, &self.key_slots].concat()
    }

    /// Elements of the pooled queries and the pooled keys.
    pub(super) fn pooled(&self, dim: usize) -> [usize; 2] {
        [self.heads.len() * self.query_tiles * dim, self.key_heads.len() * self.key_tiles * dim]
    }

    /// Scores, and of the largest of each group of them.
    pub(super) fn scores(&self) -> [usize; 2] {
        let scores = self.heads_at_once * self.tiles_at_once * self.pitch;
        [scores, scores / GROUP]
    }
}

/// Mirror of `PoolParams`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct PoolParams {
    pub data: u64,
    pub heads: u64,
    pub means: u64,
    pub row_stride: i64,
    pub head_stride: i64,
    pub scale: f32,
    pub tiles: i32,
}
// SAFETY: the same fields in the same order as the kernel's structure.
unsafe impl KernelArg for PoolParams {}

/// Mirror of `BlockParams`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct BlockParams {
    pub heads: u64,
    pub slot_heads: u64,
    pub key_slots: u64,
    pub pooled_q: u64,
    pub pooled_k: u64,
    pub scores: u64,
    pub largest: u64,
    pub offsets: u64,
    pub counts: u64,
    pub pitch: i64,
    pub query_tiles: i32,
    pub key_tiles: i32,
    pub dim: i32,
    pub start: i32,
    pub first_slot: i32,
    pub first_tile: i32,
    pub tiles: i32,
}
// SAFETY: the same fields in the same order as the kernel's structure.
unsafe impl KernelArg for BlockParams {}

const _: () = assert!(size_of::<PoolParams>() == 48 && size_of::<BlockParams>() == 112);

/// The kernels of block-sparse heads.
#[derive(Debug, Clone)]
pub(super) struct BlockKernels {
    pool_bf16: Function,
    pool_f16: Function,
    scores: Function,
    choose: Function,
    choose_shares: Function,
    /// Where means are computed ahead of the scores.
    side: Stream,
    multiprocessors: usize,
}

impl BlockKernels {
    pub(super) fn new(device: &Device) -> Result<Self, Error> {
        let pool = device.load(POOL)?;
        Ok(Self {
            pool_bf16: pool.function("pool_rows_bf16", 0)?,
            pool_f16: pool.function("pool_rows_f16", 0)?,
            scores: device.load(SCORES)?.function("block_scores", SCORE_BYTES)?,
            choose: device.load(CHOOSE)?.function("choose_blocks", 0)?,
            choose_shares: device.load(CHOOSE_SHARES)?.function("choose_shares", 0)?,
            side: device.stream()?,
            multiprocessors: device.multiprocessors() as usize,
        })
    }

    /// Queues the choice of key tiles for the block-sparse heads of `layout`, which `work` has room for.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn build<T: AttentionElement>(
        &self,
        stream: &Stream,
        q: DeviceRows<'_, T>,
        k: DeviceRows<'_, T>,
        shape: &CallShape,
        scale: f32,
        layout: &Layout,
        work: &Workspace,
    ) -> Result<(), Error> {
        let blocks = &layout.blocks;
        if blocks.heads.is_empty() {
            return Ok(());
        }
        if blocks.heads_at_once == blocks.heads.len() {
            return self.build_batches(stream, None, q, k, shape, scale, layout, work);
        }
        // Of several batches, the queries of the next are read while this one's scores are computed.
        self.side.wait(&stream.record()?)?;
        let queued = self.build_batches(stream, Some(&self.side), q, k, shape, scale, layout, work);
        // Also if that failed: nothing that the stream does next, such as freeing memory, may find the other one at work.
        stream.wait(&self.side.record()?)?;
        queued
    }

    /// Queues the means, in `side` where there is one, and the scores and the choice of each batch.
    #[allow(clippy::too_many_arguments)]
    fn build_batches<T: AttentionElement>(
        &self,
        stream: &Stream,
        side: Option<&Stream>,
        q: DeviceRows<'_, T>,
        k: DeviceRows<'_, T>,
        shape: &CallShape,
        scale: f32,
        layout: &Layout,
        work: &Workspace,
    ) -> Result<(), Error> {
        let blocks = &layout.blocks;
        let list = |at: usize| work.block_lists.address() + (at * size_of::<i32>()) as u64;
        let (heads, key_heads) = (blocks.heads.len(), blocks.key_heads.len());
        let pools = side.unwrap_or(stream);
        self.pool(pools, k, list(heads), key_heads, blocks.key_tiles, 1.0, work.pooled_k.address(), usize::MAX)?;
        for first_slot in (0..heads).step_by(blocks.heads_at_once) {
            let slots = blocks.heads_at_once.min(heads - first_slot);
            let means = first_slot * blocks.query_tiles * shape.dim * size_of::<f16>();
            let means = work.pooled_q.address() + means as u64;
            // What runs beside other kernels leaves them room.
            let at_once = if first_slot > 0 { (POOLS * self.multiprocessors).div_ceil(slots) } else { usize::MAX };
            self.pool(pools, q, list(first_slot), slots, blocks.query_tiles, scale, means, at_once)?;
            if let Some(side) = side {
                stream.wait(&side.record()?)?;
            }
            for first_tile in (0..blocks.query_tiles).step_by(blocks.tiles_at_once) {
                let tiles = blocks.tiles_at_once.min(blocks.query_tiles - first_tile);
                let params = BlockParams {
                    heads: work.heads.address(),
                    slot_heads: list(0),
                    key_slots: list(heads + key_heads),
                    pooled_q: work.pooled_q.address(),
                    pooled_k: work.pooled_k.address(),
                    scores: work.block_scores.address(),
                    largest: work.largest_scores.address(),
                    offsets: work.offsets.address(),
                    counts: work.block_counts.address(),
                    pitch: blocks.pitch as i64,
                    query_tiles: blocks.query_tiles as i32,
                    key_tiles: blocks.key_tiles as i32,
                    dim: shape.dim as i32,
                    start: shape.start as i32,
                    first_slot: first_slot as i32,
                    first_tile: first_tile as i32,
                    tiles: tiles as i32,
                };
                let grid = [blocks.pitch.div_ceil(SCORE_KEYS) as u32, tiles.div_ceil(SIDE) as u32, slots as u32];
                let launch =
                    self.scores.launch(stream).grid(grid).block(SCORE_THREADS).shared_bytes(SCORE_BYTES).arg(params);
                // SAFETY: the kernel's one parameter; the workspace has the room that the layout says.
                unsafe { launch.run()? };
                // Each leaves the other's heads alone.
                for (kind, choose) in [(BLOCKS, &self.choose), (SHARES, &self.choose_shares)] {
                    if !layout.has(kind) {
                        continue;
                    }
                    let grid = [tiles.div_ceil(CHOOSERS) as u32, slots as u32, 1];
                    let launch = choose.launch(stream).grid(grid).block(32 * CHOOSERS as u32).arg(params);
                    // SAFETY: as above.
                    unsafe { launch.run()? };
                }
            }
        }
        Ok(())
    }

    /// Queues the means, times `scale`, of `tiles` tiles of rows of the heads in the list at `heads`, by at most `at_once` thread blocks a head.
    #[allow(clippy::too_many_arguments)]
    fn pool<T: AttentionElement>(
        &self,
        stream: &Stream,
        rows: DeviceRows<'_, T>,
        heads: u64,
        count: usize,
        tiles: usize,
        scale: f32,
        means: u64,
        at_once: usize,
    ) -> Result<(), Error> {
        if tiles == 0 {
            return Ok(());
        }
        let tensor = rows.tensor;
        let params = PoolParams {
            data: tensor.address,
            heads,
            means,
            row_stride: (tensor.row_stride / 2) as i64,
            head_stride: (tensor.head_stride / 2) as i64,
            scale,
            tiles: tiles as i32,
        };
        let function = if T::NAME == "bf16" { &self.pool_bf16 } else { &self.pool_f16 };
        let grid = [tiles.min(at_once) as u32, count as u32, 1];
        let launch = function.launch(stream).grid(grid).block(tensor.dim as u32 / 2).arg(params);
        // SAFETY: the kernel's one parameter. The tiles lie inside the tensor, whose dim is even, and the means have their room.
        unsafe { launch.run()? };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::super::workspace::block_index;
    use super::*;

    /// Heads, and query tiles, whose scores are held in several batches choose as they do in one.
    #[test]
    fn batches_choose_as_one() {
        let Ok(device) = Device::open(0) else {
            let required = std::env::var_os("SPEEDREAD_REQUIRE_CUDA").is_some_and(|value| value == "1");
            assert!(!required, "SPEEDREAD_REQUIRE_CUDA=1, but there is no CUDA device");
            eprintln!("skipped: no CUDA device");
            return;
        };
        let shape = CallShape { rows: 140 * TILE.queries + 77, start: 50, heads: 5, kv_heads: 1, dim: 64 };
        let stream = device.stream().unwrap();
        let number = |i: usize| bf16::from_f32((i * 7919 % 1013) as f32 / 250.0 - 2.0);
        let numbers = |count: usize| -> Vec<bf16> { (0..count).map(number).collect() };
        let q = stream.upload(&numbers(shape.rows * shape.heads * shape.dim)).unwrap();
        let k = stream.upload(&numbers(shape.len() * shape.dim)).unwrap();
        let q = DeviceRows::contiguous(q.view(), shape.rows, shape.heads, shape.dim).unwrap();
        let k = DeviceRows::contiguous(k.view(), shape.len(), 1, shape.dim).unwrap();
        let kernels = BlockKernels::new(&device).unwrap();
        let patterns = ["block-sparse:7", "block-share:3,40,60"].map(|text| text.parse().unwrap());
        let patterns: Vec<_> = (0..5).map(|head| patterns[head % 2]).collect();
        let whole = Layout::new(&shape, &patterns, false).unwrap();
        let chosen = |heads_at_once: usize, tiles_at_once: usize| -> Vec<Vec<Vec<u32>>> {
            let mut layout = whole.clone();
            layout.blocks = BlockLayout { heads_at_once, tiles_at_once, ..layout.blocks };
            let mut work = Workspace::new();
            work.prepare(&stream, layout.clone(), shape.dim).unwrap();
            kernels.build(&stream, q, k, &shape, 0.125, &layout, &work).unwrap();
            let offsets = stream.download(work.offsets.buffer().unwrap().view()).unwrap();
            let counts = stream.download(work.block_counts.buffer().unwrap().view()).unwrap();
            let of_head = |task| {
                let index = block_index(task, &shape, &offsets, &counts);
                let lists = index.blocks().unwrap();
                (0..task.dense_from as usize).map(|tile| lists.of(tile).to_vec()).collect()
            };
            layout.heads.iter().map(of_head).collect()
        };
        let all = chosen(whole.blocks.heads_at_once, whole.blocks.tiles_at_once);
        assert!(all.iter().flatten().all(|list| list.contains(&0)) && all[0] != all[1]);
        for (heads, tiles) in [(2, whole.blocks.query_tiles), (1, 128)] {
            assert!(chosen(heads, tiles) == all, "{heads} heads and {tiles} query tiles at once");
        }
    }
}

//! The device memory of index building.

use half::f16;
use speedread_cuda::{Buffer, Plain, Stream};

use super::blocks::blocks_of;
use super::layout::{CallShape, HeadState, HeadTask, Layout, SHARES, ScoreTask};
use crate::cuda::TILE;
use crate::cuda::attention::Lists;
use crate::cuda::plan::{ColumnMask, WorkItem};
use crate::estimate::LAST_QUERIES;
use crate::index::BlockLists;
use crate::{Error, HeadReport, Pattern, SparseIndex};

/// Device buffers of index building, reused from call to call: they grow, and never shrink. Calls that share one must be on one stream, or
/// otherwise ordered.
#[derive(Debug)]
pub struct Workspace {
    pub(super) heads: Room<HeadTask>,
    pub(super) slots: Room<i32>,
    pub(super) score_tasks: Room<ScoreTask>,
    pub(super) tile_heads: Room<i32>,
    pub(super) states: Room<HeadState>,
    /// Pairs of largest score and sum.
    pub(super) partials: Room<f32>,
    pub(super) columns: Room<f32>,
    pub(super) diagonals: Room<f32>,
    pub(super) gains: Room<f32>,
    pub(super) best: Room<u64>,
    pub(super) block_lists: Room<i32>,
    /// Key tiles of each query tile, where they were not known before.
    pub(super) block_counts: Room<i32>,
    pub(super) pooled_q: Room<f16>,
    pub(super) pooled_k: Room<f16>,
    pub(super) block_scores: Room<u16>,
    pub(super) largest_scores: Room<u16>,
    pub(super) offsets: Room<i32>,
    pub(super) positions: Room<i32>,
    pub(super) masks: Room<ColumnMask>,
    pub(super) items: Room<WorkItem>,
    /// 16-byte chunks of gathered keys and values.
    pub(super) gathered_k: Room<u64>,
    pub(super) gathered_v: Room<u64>,
    pub(super) layout: Option<Layout>,
}

/// A buffer that grows.
#[derive(Debug)]
pub(super) struct Room<T>(Option<Buffer<T>>);

impl<T: Plain> Room<T> {
    /// Makes room for `len` elements; what was there is lost if it grows.
    fn reserve(&mut self, stream: &Stream, len: usize) -> Result<(), Error> {
        if self.0.as_ref().is_none_or(|buffer| buffer.len() < len) {
            self.0 = None; // freed first: both need not fit
            self.0 = Some(stream.alloc(len)?);
        }
        Ok(())
    }
    /// Makes room for `data` and copies it.
    fn fill(&mut self, stream: &Stream, data: &[T]) -> Result<(), Error> {
        self.reserve(stream, data.len())?;
        match &mut self.0 {
            Some(buffer) => Ok(stream.write(data, buffer.view_mut().slice(0..data.len())?)?),
            None => Ok(()),
        }
    }
    /// The device address; zero before the first use.
    pub(super) fn address(&self) -> u64 {
        self.0.as_ref().map_or(0, |buffer| buffer.view().address())
    }
    pub(super) fn buffer(&self) -> Option<&Buffer<T>> {
        self.0.as_ref()
    }
    pub(super) fn buffer_mut(&mut self) -> Option<&mut Buffer<T>> {
        self.0.as_mut()
    }
}

/// Elements of each buffer for a layout.
struct Sizes {
    partials: usize,
    masses: usize,
    gains: usize,
    best: usize,
    /// Queries and keys of block-sparse heads.
    pooled: [usize; 2],
    /// Their scores, and the largest of groups.
    scores: [usize; 2],
    block_counts: usize,
    positions: usize,
    gathered: usize,
}

impl Sizes {
    fn of(layout: &Layout, dim: usize) -> Self {
        let slots = layout.slots.len();
        let with_gains = if layout.has_gains { slots } else { 0 };
        let positions = layout.tile_heads.len() * TILE.keys;
        Sizes {
            partials: slots * layout.chunks * LAST_QUERIES * 2,
            masses: slots * layout.pitch,
            gains: with_gains * layout.pitch,
            best: with_gains * layout.runs,
            pooled: layout.blocks.pooled(dim),
            scores: layout.blocks.scores(),
            block_counts: if layout.has(SHARES) { layout.blocks.heads.len() * layout.blocks.query_tiles } else { 0 },
            positions,
            gathered: positions * dim * 2 / size_of::<u64>(),
        }
    }
}

impl Workspace {
    /// An empty one.
    pub fn new() -> Self {
        Self {
            heads: Room(None),
            slots: Room(None),
            score_tasks: Room(None),
            tile_heads: Room(None),
            states: Room(None),
            partials: Room(None),
            columns: Room(None),
            diagonals: Room(None),
            gains: Room(None),
            best: Room(None),
            block_lists: Room(None),
            block_counts: Room(None),
            pooled_q: Room(None),
            pooled_k: Room(None),
            block_scores: Room(None),
            largest_scores: Room(None),
            offsets: Room(None),
            positions: Room(None),
            masks: Room(None),
            items: Room(None),
            gathered_k: Room(None),
            gathered_v: Room(None),
            layout: None,
        }
    }

    /// Device bytes that a call of this shape needs, with or without the automatic choice of dense attention.
    ///
    /// # Errors
    /// As for [`Attention::prefill`](crate::cuda::Attention::prefill), for shapes and patterns.
    pub fn bytes(shape: &CallShape, patterns: &[Pattern], dense_fallback: bool) -> Result<u64, Error> {
        let layout = Layout::new(shape, patterns, dense_fallback)?;
        let sizes = Sizes::of(&layout, shape.dim);
        let bytes = size_of_val(&layout.heads[..])
            + size_of_val(&layout.slots[..])
            + size_of_val(&layout.score_tasks[..])
            + size_of_val(&layout.tile_heads[..])
            + layout.heads.len() * size_of::<HeadState>()
            + (sizes.partials + 2 * sizes.masses + sizes.gains) * size_of::<f32>()
            + sizes.pooled.iter().sum::<usize>() * size_of::<f16>()
            + sizes.scores.iter().sum::<usize>() * size_of::<u16>()
            + size_of_val(&layout.blocks.lists()[..])
            + sizes.block_counts * size_of::<i32>()
            + sizes.best * size_of::<u64>()
            + (layout.offsets + sizes.positions) * size_of::<i32>()
            + layout.masks * size_of::<ColumnMask>()
            + layout.items * size_of::<WorkItem>()
            + 2 * sizes.gathered * size_of::<u64>();
        Ok(bytes as u64)
    }

    /// Makes room for a call and copies to the device what the host knows of it.
    pub(super) fn prepare(&mut self, stream: &Stream, layout: Layout, dim: usize) -> Result<(), Error> {
        self.layout = None;
        let sizes = Sizes::of(&layout, dim);
        self.heads.fill(stream, &layout.heads)?;
        self.slots.fill(stream, &layout.slots)?;
        self.score_tasks.fill(stream, &layout.score_tasks)?;
        self.tile_heads.fill(stream, &layout.tile_heads)?;
        self.states.reserve(stream, layout.heads.len())?;
        self.partials.reserve(stream, sizes.partials)?;
        self.columns.reserve(stream, sizes.masses)?;
        self.diagonals.reserve(stream, sizes.masses)?;
        self.gains.reserve(stream, sizes.gains)?;
        self.best.reserve(stream, sizes.best)?;
        self.block_lists.fill(stream, &layout.blocks.lists())?;
        self.block_counts.reserve(stream, sizes.block_counts)?;
        self.pooled_q.reserve(stream, sizes.pooled[0])?;
        self.pooled_k.reserve(stream, sizes.pooled[1])?;
        self.block_scores.reserve(stream, sizes.scores[0])?;
        self.largest_scores.reserve(stream, sizes.scores[1])?;
        self.offsets.reserve(stream, layout.offsets)?;
        self.positions.reserve(stream, sizes.positions)?;
        self.masks.reserve(stream, layout.masks)?;
        self.items.reserve(stream, layout.items)?;
        self.gathered_k.reserve(stream, sizes.gathered)?;
        self.gathered_v.reserve(stream, sizes.gathered)?;
        self.layout = Some(layout);
        Ok(())
    }

    /// The lists of the last call.
    pub(in crate::cuda) fn lists(&self) -> Result<Lists, Error> {
        let Some(layout) = &self.layout else {
            return Err(no_indexes());
        };
        Ok(Lists {
            shape: layout.shape,
            items: self.items.address(),
            item_count: layout.items,
            offsets: self.offsets.address(),
            masks: self.masks.address(),
            positions: self.positions.address(),
            tile_heads: self.tile_heads.address(),
            column_tiles: layout.tile_heads.len(),
            gathered_k: self.gathered_k.address(),
            gathered_v: self.gathered_v.address(),
        })
    }

    /// Queues a copy of what the last call did, which outlives the next call: so that a report of many calls is read once, after all.
    ///
    /// # Errors
    /// [`Error::Cuda`], and when there was no call.
    pub fn snapshot(&self, stream: &Stream) -> Result<Snapshot, Error> {
        let (Some(layout), Some(states)) = (&self.layout, self.states.buffer()) else {
            return Err(no_indexes());
        };
        let mut copy = stream.alloc(layout.heads.len())?;
        stream.copy(states.view().slice(0..layout.heads.len())?, copy.view_mut())?;
        Ok(Snapshot { patterns: layout.patterns.clone(), dense_tiles: layout.dense_tiles, states: copy })
    }

    /// The indexes that the last call built, one a query head: for tests and pictures. Waits for it.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn indexes(&self, stream: &Stream) -> Result<Vec<SparseIndex>, Error> {
        let (Some((layout, states)), Some(offsets)) = (self.states(stream)?, self.offsets.buffer()) else {
            return Ok(vec![]);
        };
        let offsets = stream.download(offsets.view())?;
        let positions = self.positions.buffer().map_or(Ok(vec![]), |positions| stream.download(positions.view()))?;
        let counts = self.block_counts.buffer().map_or(Ok(vec![]), |counts| stream.download(counts.view()))?;
        let CallShape { start, rows, .. } = layout.shape;
        let list = |all: &[i32], first: usize, count: i32| -> Vec<usize> {
            all[first..first + count as usize].iter().map(|&x| x as usize).collect()
        };
        let index = |(task, state): (&HeadTask, &HeadState)| {
            if state.dense != 0 {
                return SparseIndex::dense(start, rows, TILE);
            }
            if task.chooses_blocks() {
                return block_index(task, &layout.shape, &offsets, &counts);
            }
            let windows = list(&offsets, task.windows as usize, state.windows);
            let columns = list(&positions, task.column_tile as usize * TILE.keys, state.columns);
            let tail = rows.saturating_sub(task.dense_from as usize * TILE.queries);
            SparseIndex::from_windows(start, rows, TILE, windows, columns).with_dense_tail(tail)
        };
        Ok(layout.heads.iter().zip(&states).map(index).collect())
    }

    fn states(&self, stream: &Stream) -> Result<Option<(&Layout, Vec<HeadState>)>, Error> {
        let (Some(layout), Some(states)) = (&self.layout, self.states.buffer()) else { return Ok(None) };
        Ok(Some((layout, stream.download(states.view().slice(0..layout.heads.len())?)?)))
    }
}

/// What a call did, on the device.
#[derive(Debug)]
pub struct Snapshot {
    patterns: Vec<Pattern>,
    dense_tiles: u64,
    states: Buffer<HeadState>,
}

impl Snapshot {
    /// Per query head: pattern (dense after a fallback) and key tiles. Waits for the call.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn read(&self, stream: &Stream) -> Result<Vec<HeadReport>, Error> {
        let report = |(&pattern, state): (&Pattern, &HeadState)| HeadReport {
            pattern: if state.dense != 0 { Pattern::Dense } else { pattern },
            tiles: state.tiles,
            dense_tiles: self.dense_tiles,
            recall: None,
        };
        Ok(self.patterns.iter().zip(&stream.download(self.states.view())?).map(report).collect())
    }
}

fn no_indexes() -> Error {
    Error::Shape("a workspace without indexes".into())
}

/// The index of a block-sparse head; `counts` are for those whose key tiles follow from the scores.
pub(super) fn block_index(task: &HeadTask, shape: &CallShape, offsets: &[i32], counts: &[i32]) -> SparseIndex {
    let (room, budget) = (task.window_room as usize, task.slash as usize);
    let count = |tile: usize, first: usize| match task.kind {
        SHARES => counts[task.slot as usize * task.dense_from as usize + tile] as usize,
        _ => blocks_of(budget, first),
    };
    let lists = (0..shape.query_tiles()).map(|tile| {
        if tile >= task.dense_from as usize {
            return vec![];
        }
        let first = shape.start + tile * TILE.queries;
        let list = &offsets[task.windows as usize + tile * room..][..count(tile, first)];
        let mut tiles: Vec<u32> =
            list.iter().map(|&o| ((first as i64 - i64::from(o)) / TILE.keys as i64) as u32).collect();
        tiles.sort_unstable();
        tiles
    });
    let tail = shape.rows.saturating_sub(task.dense_from as usize * TILE.queries);
    SparseIndex::from_blocks(shape.start, shape.rows, TILE, BlockLists::from_lists(lists)).with_dense_tail(tail)
}

impl Default for Workspace {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;
    use speedread_cuda::Device;

    use super::*;
    use crate::cuda::{Attention, DeviceOptions, DeviceRows, KernelKind};

    /// What the last queries of `head` make of each key, and of each distance: the sums of their weights, in f64.
    fn masses(q: &[bf16], k: &[bf16], rows: usize, heads: usize, dim: usize, head: usize) -> [Vec<f64>; 2] {
        let (mut columns, mut diagonals) = (vec![0.0; rows], vec![0.0; rows]);
        for row in rows - LAST_QUERIES.min(rows)..rows {
            let dot = |key: usize| -> f64 {
                let (q, k) = (&q[(row * heads + head) * dim..][..dim], &k[key * dim..][..dim]);
                q.iter().zip(k).map(|(a, b)| a.to_f64() * b.to_f64()).sum::<f64>() / (dim as f64).sqrt()
            };
            let weights: Vec<f64> = (0..=row).map(|key| dot(key).exp()).collect();
            let sum: f64 = weights.iter().sum();
            for (key, weight) in weights.iter().enumerate() {
                columns[key] += weight / sum;
                diagonals[row - key] += weight / sum;
            }
        }
        [columns, diagonals]
    }

    /// The tables that kernels read are those that the host made, and masses are those of the head that a slot is for.
    #[test]
    fn slots_hold_the_masses_of_their_heads() {
        let Ok(device) = Device::open(0) else {
            let required = std::env::var_os("SPEEDREAD_REQUIRE_CUDA").is_some_and(|value| value == "1");
            assert!(!required, "SPEEDREAD_REQUIRE_CUDA=1, but there is no CUDA device");
            eprintln!("skipped: no CUDA device");
            return;
        };
        check_slots(&device, &Attention::new(&device).unwrap());
        if KernelKind::of(&device).unwrap() != KernelKind::Portable {
            check_slots(&device, &Attention::with_kernel(&device, KernelKind::Portable).unwrap());
        }
    }

    fn check_slots(device: &Device, attention: &Attention) {
        let heads = 7;
        let local = Pattern::AShape { sink: 5, local: 98 };
        let lines: Pattern = "vertical-slash:51,135".parse().unwrap();
        // One key tile and two; and runs of four with a last one that most rows see nothing of.
        let shapes = [(40, 64), (65, 64), (257, 64), (263, 96), (300, 128), (519, 64), (769, 96), (257, 128)];
        for (turn, (rows, dim)) in shapes.into_iter().enumerate() {
            let stream = device.stream().unwrap();
            // Four heads at once, or three and two: a thread block of the portable kernels has two, and then one.
            let fourth = if turn % 2 == 0 { local } else { lines };
            let patterns = [local, lines, Pattern::Dense, lines, fourth, lines, lines];
            let number = |i: usize| bf16::from_f32(((i * 7919 + turn * 31) % 1013) as f32 / 250.0 - 2.0);
            let q: Vec<bf16> = (0..rows * heads * dim).map(number).collect();
            let k: Vec<bf16> = (1_000_000..1_000_000 + rows * dim).map(number).collect();
            let (on_q, on_k) = (stream.upload(&q).unwrap(), stream.upload(&k).unwrap());
            let (rows_q, rows_k) = (
                DeviceRows::contiguous(on_q.view(), rows, heads, dim).unwrap(),
                DeviceRows::contiguous(on_k.view(), rows, 1, dim).unwrap(),
            );
            let options = DeviceOptions { dense_fallback: false, ..DeviceOptions::default() };
            let mut work = Workspace::new();
            attention.build_indexes(&stream, rows_q, rows_k, &patterns, &options, &mut work).unwrap();
            let layout = work.layout.clone().unwrap();
            let want: Vec<[Vec<f64>; 2]> = (0..heads).map(|head| masses(&q, &k, rows, heads, dim, head)).collect();
            for (line, buffer) in [&work.columns, &work.diagonals].into_iter().enumerate() {
                let sums = stream.download(buffer.buffer().unwrap().view()).unwrap();
                for (slot, &head) in layout.slots.iter().enumerate() {
                    let found = &sums[slot * layout.pitch..][..rows];
                    let off = |want: &[Vec<f64>; 2]| {
                        let off = found.iter().zip(&want[line]).map(|(a, b)| (f64::from(*a) - b).abs());
                        off.fold(0.0, |most, x| if x <= most { most } else { x }) // keeps what is no number
                    };
                    let all: Vec<f64> = want.iter().map(off).collect();
                    assert!(
                        all[head as usize] < 1e-3,
                        "{} kernel, {rows} rows of {dim}, {} of slot {slot} of head {head}: off from head i by {all:?}",
                        attention.kernel(),
                        ["columns", "diagonals"][line]
                    );
                }
            }
            let slots = stream.download(work.slots.buffer().unwrap().view()).unwrap();
            assert_eq!(slots[..layout.slots.len()], layout.slots);
            let tasks = stream.download(work.score_tasks.buffer().unwrap().view()).unwrap();
            assert_eq!(tasks[..layout.score_tasks.len()], layout.score_tasks);
            let read = stream.download(on_q.view()).unwrap();
            assert!(read == q, "{rows} rows of {dim}: the queries on the device are others");
        }
    }
}

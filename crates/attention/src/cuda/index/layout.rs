//! What the host knows of a call's indexes before the data is looked at. The structures mirror `kernels/index.cuh`.

use std::collections::HashMap;

use speedread_cuda::Plain;

use super::blocks::{BlockLayout, blocks_of};
use crate::cost;
use crate::cuda::TILE;
use crate::cuda::plan::CACHE_BYTES;
use crate::estimate::{FORCED_COLUMNS, FORCED_DIAGONALS, LAST_QUERIES};
use crate::{Budget, Error, Pattern};

/// Keys of a tile of the last queries' scores.
const SCORED_KEYS: usize = 64;
/// Query heads of a task: the warpgroups of a thread block on Hopper.
pub(super) const SCORED_HEADS: usize = 4;
/// Thread blocks that the scores are split over, about: a few times as many as a chip runs at once.
const SCORE_BLOCKS: usize = 528;

/// The shape of a call of [`Attention::prefill`](crate::cuda::Attention::prefill).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallShape {
    /// Query rows.
    pub rows: usize,
    /// Position of the first.
    pub start: usize,
    /// Query heads.
    pub heads: usize,
    /// Key heads.
    pub kv_heads: usize,
    /// Elements of a head's row.
    pub dim: usize,
}

impl CallShape {
    /// Number of keys.
    pub fn len(&self) -> usize {
        self.start + self.rows
    }
    /// Whether there are no keys.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    pub(super) fn query_tiles(&self) -> usize {
        self.rows.div_ceil(TILE.queries)
    }
    /// The first query tile that holds one of the last `rows` rows.
    fn tail_from(&self, rows: usize) -> usize {
        match rows.min(self.rows) {
            0 => self.query_tiles(),
            rows => (self.rows - rows) / TILE.queries,
        }
    }
    /// Key tiles that dense attention visits in the first `query_tiles` query tiles.
    fn dense_tiles(&self, query_tiles: usize) -> usize {
        query_tiles * self.dense_tiles_of(0) + query_tiles * query_tiles.saturating_sub(1) / 2
    }
    fn dense_tiles_of(&self, query_tile: usize) -> usize {
        1 + self.start.div_ceil(TILE.keys) + query_tile
    }

    pub(super) fn check(&self, patterns: &[Pattern]) -> Result<(), Error> {
        let CallShape { rows, start, heads, kv_heads, .. } = *self;
        if kv_heads == 0 || heads == 0 || !heads.is_multiple_of(kv_heads) {
            return Err(Error::Shape(format!("{heads} query heads do not share {kv_heads} key heads evenly")));
        }
        if patterns.len() != heads {
            return Err(Error::Shape(format!("{} patterns for {heads} query heads", patterns.len())));
        }
        // Positions, and the keys just past the end that a tile may name, are 32-bit for the copy engine.
        if rows == 0 || start.saturating_add(rows) >= i32::MAX as usize - 64 * TILE.keys {
            return Err(Error::Shape(format!(
                "{rows} rows from position {start}: there must be some, and they must fit 31 bits"
            )));
        }
        patterns.iter().try_for_each(Pattern::validate)
    }
}

/// Query heads of one key head whose last queries are looked at together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub(super) struct ScoreTask {
    pub kv_head: i32,
    pub slot: i32,
    pub count: i32,
}
// SAFETY: integers, without padding.
unsafe impl Plain for ScoreTask {}

const DENSE: i32 = 0;
const LOCAL: i32 = 1;
const LINES: i32 = 2;
const TILES: i32 = 3;
pub(super) const BLOCKS: i32 = 4;
pub(super) const SHARES: i32 = 5;

/// What is asked of a query head, and where its lists go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub(super) struct HeadTask {
    pub kind: i32,
    pub slot: i32,
    pub vertical: i32,
    pub slash: i32,
    pub dense_from: i32,
    pub column_tile: i32,
    pub column_tiles: i32,
    pub order_stride: i32,
    pub least: i32,
    pub percent: i32,
    pub order: i64,
    pub tail_order: i64,
    pub windows: i64,
    pub window_room: i64,
    pub masks: i64,
    pub dense_tiles: i64,
}
// SAFETY: integers; ten of 32 bits, then of 64 bits: no padding.
unsafe impl Plain for HeadTask {}

impl HeadTask {
    /// Whether it has a list of key tiles for each query tile.
    pub(super) fn chooses_blocks(&self) -> bool {
        self.kind == BLOCKS || self.kind == SHARES
    }
}

/// What was chosen for a query head.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub(super) struct HeadState {
    pub windows: i32,
    pub columns: i32,
    pub contiguous: i32,
    pub dense: i32,
    pub tiles: u64,
}
// SAFETY: integers, without padding.
unsafe impl Plain for HeadState {}

const _: () = assert!(size_of::<ScoreTask>() == 12 && size_of::<HeadTask>() == 88 && size_of::<HeadState>() == 24);

/// The lists of a call and their room.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Layout {
    pub(super) shape: CallShape,
    pub(super) heads: Vec<HeadTask>,
    /// Query heads whose last queries are looked at, those of a key head side by side.
    pub(super) slots: Vec<i32>,
    pub(super) score_tasks: Vec<ScoreTask>,
    pub(super) blocks: BlockLayout,
    /// Key head of each tile of gathered columns.
    pub(super) tile_heads: Vec<i32>,
    /// Pattern of each head, dense where it cannot pay.
    pub(super) patterns: Vec<Pattern>,
    /// Room for offsets: the list of all windows first, `dense_list` long.
    pub(super) offsets: usize,
    pub(super) dense_list: usize,
    pub(super) masks: usize,
    pub(super) items: usize,
    /// Floats from a slot's masses to the next one's.
    pub(super) pitch: usize,
    /// Runs of 128 offsets.
    pub(super) runs: usize,
    /// Whether a slot has a budget of tiles: only then are there gains.
    pub(super) has_gains: bool,
    /// Runs of keys that the scores are split into, and score tiles of each.
    pub(super) chunks: usize,
    pub(super) chunk_tiles: usize,
    /// Key tiles that dense attention visits, for each head.
    pub(super) dense_tiles: u64,
}

impl Layout {
    /// Lays out a call. With `fallback`, heads whose pattern cannot cost less than dense attention run dense.
    pub(super) fn new(shape: &CallShape, patterns: &[Pattern], fallback: bool) -> Result<Self, Error> {
        shape.check(patterns)?;
        let (len, query_tiles) = (shape.len(), shape.query_tiles());
        let group = shape.heads / shape.kv_heads;
        let dense_tiles: Vec<usize> = (0..query_tiles).map(|tile| shape.dense_tiles_of(tile)).collect();
        let mut pays: HashMap<Pattern, bool> = HashMap::new();
        let patterns: Vec<Pattern> = patterns
            .iter()
            .map(|&pattern| {
                let mut check = || cost::pays(pattern, TILE.keys, &dense_tiles) && blocks_win(shape, pattern);
                let runs = !fallback || *pays.entry(pattern).or_insert_with(&mut check);
                if runs { pattern } else { Pattern::Dense }
            })
            .collect();

        let dense_list = shape.dense_tiles_of(query_tiles - 1);
        let mut layout = Layout {
            shape: *shape,
            heads: Vec::with_capacity(shape.heads),
            slots: vec![],
            score_tasks: vec![],
            blocks: BlockLayout::default(),
            tile_heads: vec![],
            patterns,
            offsets: dense_list,
            dense_list,
            masks: 0,
            items: 0,
            pitch: len.next_multiple_of(SCORED_KEYS),
            runs: len.div_ceil(TILE.keys),
            has_gains: false,
            chunks: 0,
            chunk_tiles: 0,
            dense_tiles: shape.dense_tiles(query_tiles) as u64,
        };
        for head in 0..shape.heads {
            let mut task = task(shape, layout.patterns[head]);
            if task.kind == LINES || task.kind == TILES {
                task.slot = layout.slots.len() as i32;
                layout.slots.push(head as i32);
                layout.has_gains |= task.kind == TILES;
            }
            task.windows = layout.offsets as i64;
            layout.offsets += task.window_room as usize
                * match task.kind {
                    TILES => 2,
                    BLOCKS | SHARES => task.dense_from as usize,
                    _ => 1,
                };
            task.column_tile = layout.tile_heads.len() as i32;
            let tiles = task.column_tiles as usize;
            layout.tile_heads.resize(layout.tile_heads.len() + tiles, (head / group) as i32);
            task.masks = layout.masks as i64;
            layout.masks += tiles * query_tiles;
            layout.heads.push(task);
        }
        let blocks = layout.heads.iter_mut().enumerate().filter(|(_, task)| task.chooses_blocks());
        let of_slot = |(slot, (head, task)): (usize, (usize, &mut HeadTask))| {
            task.slot = slot as i32;
            (head as i32, task.dense_from)
        };
        let (blocks, tiles): (Vec<i32>, Vec<i32>) = blocks.enumerate().map(of_slot).unzip();
        // The dense tail begins at the same query tile in all of them.
        layout.blocks = BlockLayout::new(shape, group, blocks, tiles.first().map_or(0, |&tiles| tiles as usize));
        layout.split_scores(group, len);
        layout.order(shape, group);
        if i32::try_from(layout.items).is_err() || i32::try_from(layout.tile_heads.len() * TILE.keys).is_err() {
            return Err(Error::Shape(format!("{shape:?}: more query tiles or columns than 31 bits count")));
        }
        Ok(layout)
    }

    /// Shares out the heads whose last queries are looked at: as few tasks a key head as their size allows, evenly filled.
    fn split_scores(&mut self, group: usize, len: usize) {
        let mut slot = 0;
        for heads in self.slots.chunk_by(|&a, &b| a as usize / group == b as usize / group) {
            let size = heads.len().div_ceil(heads.len().div_ceil(SCORED_HEADS));
            for part in heads.chunks(size) {
                self.score_tasks.push(ScoreTask {
                    kv_head: (part[0] as usize / group) as i32,
                    slot,
                    count: part.len() as i32,
                });
                slot += part.len() as i32;
            }
        }
        if self.score_tasks.is_empty() {
            return;
        }
        let tiles = len.div_ceil(SCORED_KEYS);
        // A block also loads its queries and, the second time, all runs' sums: a few tiles at least.
        self.chunk_tiles = tiles.div_ceil((SCORE_BLOCKS / self.score_tasks.len()).max(1)).max(4);
        self.chunks = tiles.div_ceil(self.chunk_tiles);
    }

    /// The order of work. First the dense query tiles at the end of sparse heads: at a million tokens one takes as long as a hundred others.
    /// Then as on the host (see [`Plan`](crate::cuda::Plan)): sections of key heads that fit the cache, those of longest tiles first, from
    /// the last query tile to the first, the heads of a group side by side. The places of the tiles that went first stay empty there.
    fn order(&mut self, shape: &CallShape, group: usize) {
        let query_tiles = shape.query_tiles();
        let last_dense = shape.dense_tiles_of(query_tiles - 1) as i64;
        let mut at = 0i64;
        for task in self.heads.iter_mut().filter(|task| task.kind != DENSE) {
            task.tail_order = at;
            at += query_tiles as i64 - i64::from(task.dense_from);
        }
        let longest = |heads: &[HeadTask]| {
            let of = |task: &HeadTask| match task.kind {
                DENSE => last_dense,
                _ => last_dense.min(task.window_room + i64::from(task.column_tiles)),
            };
            heads.iter().map(of).max()
        };
        let head_bytes = shape.len() * shape.dim * 2 * 2;
        let section = (CACHE_BYTES / head_bytes.max(1)).max(1) * group;
        let mut sections: Vec<&mut [HeadTask]> = self.heads.chunks_mut(section).collect();
        sections.sort_by_key(|heads| std::cmp::Reverse(longest(heads)));
        for heads in sections {
            let stride = heads.len();
            for (i, task) in heads.iter_mut().enumerate() {
                task.order_stride = stride as i32;
                task.order = at + i as i64;
            }
            at += (stride * query_tiles) as i64;
        }
        self.items = at as usize;
    }

    /// Whether a head is of this kind.
    pub(super) fn has(&self, kind: i32) -> bool {
        self.heads.iter().any(|task| task.kind == kind)
    }

    /// Query heads of the largest task.
    pub(super) fn score_heads(&self) -> usize {
        self.score_tasks.iter().map(|task| task.count as usize).max().unwrap_or(0)
    }
}

/// Whether block-sparse visits fewer key tiles than dense attention does, or, of a share, can: patterns whose tiles, or fewest tiles, are known without
/// the data.
fn blocks_win(shape: &CallShape, pattern: Pattern) -> bool {
    let (Pattern::BlockSparse { blocks } | Pattern::BlockShare { least: blocks, .. }) = pattern else { return true };
    let tail = shape.tail_from(LAST_QUERIES);
    let sparse: usize = (0..tail).map(|tile| blocks_of(blocks, shape.start + tile * TILE.queries)).sum();
    sparse < shape.dense_tiles(tail)
}

/// The task of a head of `pattern`, without its places.
fn task(shape: &CallShape, pattern: Pattern) -> HeadTask {
    let (len, query_tiles) = (shape.len(), shape.query_tiles());
    let tail_from = |rows| shape.tail_from(rows);
    let local = |sink: usize, local: usize, dense_from: usize| {
        let local = local.min(len);
        (LOCAL, sink.min(len), local, 1 + (local - 1).div_ceil(TILE.keys), dense_from)
    };
    let blocks_for = |kind: i32, most: usize| {
        let dense_from = tail_from(LAST_QUERIES);
        let most = most.min(shape.dense_tiles_of(query_tiles - 1));
        // The last of them has the most.
        let room = dense_from.checked_sub(1).map(|tile| blocks_of(most, shape.start + tile * TILE.queries));
        (kind, 0, most, room.unwrap_or(0), dense_from)
    };
    let (kind, vertical, slash, room, dense_from) = match pattern {
        Pattern::AShape { sink, local: width } => local(sink, width, query_tiles),
        Pattern::TriShape { sink, local: width, last } => local(sink, width, tail_from(last)),
        Pattern::VerticalSlash { vertical, slash, budget: Budget::Lines } => {
            let slash = slash.max(FORCED_DIAGONALS).min(len);
            (LINES, vertical.max(FORCED_COLUMNS).min(len), slash, slash, query_tiles)
        }
        Pattern::VerticalSlash { vertical, slash, budget: Budget::Tiles } => {
            // Disjoint windows: no more than this fit, and two are always chosen.
            let slash = slash.min(len / TILE.keys + 2);
            let columns = vertical.saturating_mul(TILE.keys).max(FORCED_COLUMNS).min(len);
            // The queries of the estimate are the user's question: they see every key.
            (TILES, columns, slash, slash.max(2), tail_from(LAST_QUERIES))
        }
        Pattern::BlockSparse { blocks } => blocks_for(BLOCKS, blocks),
        Pattern::BlockShare { most, .. } => blocks_for(SHARES, most),
        Pattern::Dense => (DENSE, 0, 0, 0, query_tiles),
    };
    let (least, percent) = match pattern {
        Pattern::BlockShare { least, percent, .. } => (least.min(slash), percent),
        _ => (0, 0),
    };
    HeadTask {
        kind,
        slot: -1,
        vertical: vertical as i32,
        slash: slash as i32,
        dense_from: dense_from as i32,
        column_tiles: vertical.div_ceil(TILE.keys) as i32,
        least: least as i32,
        percent: percent as i32,
        window_room: room as i64,
        dense_tiles: shape.dense_tiles(dense_from) as i64,
        ..HeadTask::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: CallShape = CallShape { rows: 100_000, start: 0, heads: 8, kv_heads: 2, dim: 128 };

    fn patterns(texts: &[&str]) -> Vec<Pattern> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    /// Every query tile of every head has one place in the queue, and no two the same.
    #[test]
    fn the_order_has_a_place_for_every_tile() {
        let mixed = patterns(&[
            "dense",
            "a-shape:4,1024",
            "tri-shape:4,1024,300",
            "vertical-slash:30,800",
            "vertical-slash-tiles:8,24",
            "vertical-slash-tiles:8,24",
            "block-sparse:20",
            "block-share:4,20,90",
        ]);
        for fallback in [false, true] {
            let layout = Layout::new(&SHAPE, &mixed, fallback).unwrap();
            let tiles = SHAPE.query_tiles() as i64;
            let mut places: Vec<i64> = layout
                .heads
                .iter()
                .flat_map(|head| {
                    let tail = (i64::from(head.dense_from)..tiles).map(|t| head.tail_order + tiles - 1 - t);
                    let rest = (0..tiles).map(|t| head.order + (tiles - 1 - t) * i64::from(head.order_stride));
                    rest.chain(tail).collect::<Vec<_>>()
                })
                .collect();
            places.sort_unstable();
            assert_eq!(places, (0..layout.items as i64).collect::<Vec<_>>());
        }
    }

    #[test]
    fn scores_are_shared_out_evenly() {
        let seven = CallShape { heads: 14, kv_heads: 2, ..SHAPE };
        let layout = Layout::new(&seven, &patterns(&["vertical-slash-tiles:8,24"; 14]), true).unwrap();
        let tasks: Vec<_> = layout.score_tasks.iter().map(|t| (t.kv_head, t.slot, t.count)).collect();
        assert_eq!(tasks, [(0, 0, 4), (0, 4, 3), (1, 7, 4), (1, 11, 3)]);
        assert_eq!(layout.score_heads(), 4);
        assert!(layout.chunks * layout.chunk_tiles * 64 >= 100_000 && layout.chunks * 4 <= SCORE_BLOCKS);
    }

    #[test]
    fn scores_of_blocks_are_held_in_parts() {
        let all = patterns(&["block-sparse:50"; 8]);
        let short = Layout::new(&SHAPE, &all, true).unwrap().blocks;
        assert_eq!((short.heads_at_once, short.tiles_at_once), (8, (SHAPE.rows - 64) / 128));
        assert_eq!((&short.key_heads[..], &short.key_slots[..]), (&[0, 1][..], &[0, 0, 0, 0, 1, 1, 1, 1][..]));
        let long = Layout::new(&CallShape { rows: 5 << 20, ..SHAPE }, &all, true).unwrap().blocks;
        assert!(
            long.heads_at_once == 1 && long.tiles_at_once < long.query_tiles && long.tiles_at_once.is_multiple_of(128)
        );
        assert!(long.scores()[0] <= 128 << 20);
        // Where every query tile is dense there is nothing to choose.
        let tail = Layout::new(&CallShape { rows: 100, ..SHAPE }, &all, false).unwrap().blocks;
        assert!(tail.heads.is_empty() && tail.pooled(128) == [0; 2] && tail.scores() == [0; 2]);
    }

    #[test]
    fn what_cannot_pay_runs_dense() {
        let short = CallShape { rows: 500, ..SHAPE };
        let all = patterns(&["vertical-slash-tiles:8,24"; 8]);
        assert!(Layout::new(&short, &all, true).unwrap().patterns.iter().all(|&p| p == Pattern::Dense));
        assert_eq!(Layout::new(&short, &all, false).unwrap().patterns, all);
        // Four query tiles before the dense tail visit 1 + 2 + 3 + 4 key tiles at most.
        let few = CallShape { rows: 600, ..SHAPE };
        for (blocks, sparse) in [(3, true), (4, false)] {
            let pattern = Pattern::BlockSparse { blocks };
            assert_eq!(blocks_win(&few, pattern), sparse);
        }
        assert!(Layout::new(&SHAPE, &all[..7], true).is_err());
        assert!(Layout::new(&CallShape { rows: 0, ..SHAPE }, &all, true).is_err());
        assert_eq!(short.dense_tiles(4), 1 + 2 + 3 + 4);
    }
}

//! From the heads' indexes to the queue of work that the attention kernel takes: the mirror of `kernels/work.cuh`.

use rayon::prelude::*;
use speedread_cuda::{Buffer, Plain, Stream};

use super::TILE;
use crate::Error;
use crate::index::SparseIndex;

/// One query tile of one query head: `spans` runs of 128 keys, run `i` starting `offsets[list + i]` keys before the tile's first row, then
/// the `column_tiles` tiles of gathered columns whose masks are not empty.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct WorkItem {
    /// Query head.
    pub head: i32,
    /// First query row.
    pub row: i32,
    /// Runs of contiguous keys; at least one, and the first starts with a key that every row sees. Only the first and the last may hold keys
    /// that a row does not see.
    pub spans: i32,
    /// Tiles of gathered columns.
    pub column_tiles: i32,
    /// First entry among the offsets.
    pub list: i64,
    /// First entry among the masks: that of tile `tile`, the next one's follows.
    pub columns: i64,
    /// First tile of gathered columns.
    pub tile: i32,
    #[doc(hidden)]
    pub reserved: i32,
}
// SAFETY: integers, without padding.
unsafe impl Plain for WorkItem {}
const _: () = assert!(size_of::<WorkItem>() == 40);

/// A tile of gathered columns as one query tile sees it: bit `j % 32` of word `j / 32` says whether column `j` of the tile counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct ColumnMask(pub [u32; 4]);
// SAFETY: integers, without padding.
unsafe impl Plain for ColumnMask {}

/// The work of one attention call, on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub(crate) start: usize,
    pub(crate) rows: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    items: Vec<WorkItem>,
    offsets: Vec<i32>,
    columns: Vec<ColumnMask>,
    /// `[tiles][128]` key positions to gather; -1 where there is none.
    gather: Vec<i32>,
    /// `[tiles]` key heads to gather from.
    gather_heads: Vec<i32>,
    head_tiles: Vec<u64>,
}

/// What one head adds to a plan; places are relative to its own lists.
struct HeadPlan {
    items: Vec<WorkItem>,
    offsets: Vec<i32>,
    columns: Vec<ColumnMask>,
}

/// Bytes of K and V that the order of work tries to keep in the second-level cache (of 50 MB and more on the chips this is for).
pub(super) const CACHE_BYTES: usize = 32 << 20;

impl Plan {
    /// Lays out the work of `indexes`, one a query head, for `kv_heads` key heads of `dim` elements.
    ///
    /// # Errors
    /// [`Error::Shape`] when the indexes are of different rows, not in tiles of [`TILE`], or their positions do not fit 31 bits.
    pub fn new(indexes: &[SparseIndex], kv_heads: usize, dim: usize) -> Result<Self, Error> {
        let Some(first) = indexes.first() else {
            return Err(Error::Shape("a plan of no heads".into()));
        };
        let (start, rows, heads) = (first.start(), first.rows(), indexes.len());
        if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
            return Err(Error::Shape(format!("{heads} query heads do not share {kv_heads} key heads evenly")));
        }
        for (head, index) in indexes.iter().enumerate() {
            if (index.start(), index.rows(), index.shape()) != (start, rows, TILE) {
                return Err(Error::Shape(format!(
                    "the index of head {head} has {} rows from {} in tiles of {:?}; {rows} from {start} in tiles of {TILE:?} are needed",
                    index.rows(),
                    index.start(),
                    index.shape()
                )));
            }
        }
        // Positions, and the keys just past the end that a tile may name, are 32-bit for the copy engine.
        if rows == 0 || start.saturating_add(rows) >= i32::MAX as usize - 2 * TILE.keys {
            return Err(Error::Shape(format!(
                "{rows} rows from position {start}: there must be some, and they must fit 31 bits"
            )));
        }

        let mut plan = Plan {
            start,
            rows,
            heads,
            kv_heads,
            items: vec![],
            offsets: (0..first.dense_tiles(first.query_tiles() - 1)).map(|i| (i * TILE.keys) as i32).collect(),
            columns: vec![],
            gather: vec![],
            gather_heads: vec![],
            head_tiles: vec![],
        };
        let group = heads / kv_heads;
        let mut bases = Vec::with_capacity(heads);
        for (head, index) in indexes.iter().enumerate() {
            bases.push(plan.gather_heads.len());
            for columns in index.columns().chunks(TILE.keys) {
                plan.gather.extend(columns.iter().map(|&c| c as i32));
                plan.gather.resize(plan.gather.len().next_multiple_of(TILE.keys), -1);
                plan.gather_heads.push((head / group) as i32);
            }
        }
        // Work names tiles by 32-bit numbers.
        if i32::try_from(plan.gather_heads.len()).is_err() {
            return Err(Error::Shape(format!(
                "{} tiles of gathered columns in {heads} heads over {} keys: at most {} go; shorten the prompt, or choose fewer columns",
                plan.gather_heads.len(),
                start + rows,
                i32::MAX
            )));
        }
        let parts: Vec<HeadPlan> = indexes
            .par_iter()
            .zip(&bases)
            .enumerate()
            .map(|(head, (index, &base))| head_plan(head, index, base))
            .collect();
        let mut by_head = Vec::with_capacity(heads);
        for part in parts {
            let (list, columns) = (plan.offsets.len() as i64, plan.columns.len() as i64);
            plan.head_tiles.push(part.items.iter().map(|item| (item.spans + item.column_tiles) as u64).sum());
            plan.offsets.extend(part.offsets);
            plan.columns.extend(part.columns);
            by_head.push(part.items);
            for item in by_head.last_mut().into_iter().flatten() {
                // A negative list is the dense one, which stands first.
                item.list = if item.list < 0 { 0 } else { item.list + list };
                item.columns += columns;
            }
        }
        plan.items = in_order(&by_head, group, start + rows, dim);
        Ok(plan)
    }

    /// Key tiles visited, per query head. Columns are gathered once a head, so a query tile visits the tiles in which it has any.
    pub fn head_tiles(&self) -> &[u64] {
        &self.head_tiles
    }

    /// Copies the plan to the device.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn upload(&self, stream: &Stream) -> Result<DevicePlan, Error> {
        Ok(DevicePlan {
            start: self.start,
            rows: self.rows,
            heads: self.heads,
            kv_heads: self.kv_heads,
            items: stream.upload(&self.items)?,
            offsets: stream.upload(&self.offsets)?,
            columns: stream.upload(&self.columns)?,
            gather: stream.upload(&self.gather)?,
            gather_heads: stream.upload(&self.gather_heads)?,
        })
    }
}

/// A [`Plan`] in device memory.
#[derive(Debug)]
pub struct DevicePlan {
    pub(crate) start: usize,
    pub(crate) rows: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) items: Buffer<WorkItem>,
    pub(crate) offsets: Buffer<i32>,
    pub(crate) columns: Buffer<ColumnMask>,
    pub(crate) gather: Buffer<i32>,
    pub(crate) gather_heads: Buffer<i32>,
}

/// The items of one head, by query tile; its columns are gathered from tile `base` on.
fn head_plan(head: usize, index: &SparseIndex, base: usize) -> HeadPlan {
    let mut part =
        HeadPlan { items: vec![], offsets: index.windows().iter().map(|&o| o as i32).collect(), columns: vec![] };
    let mut live = vec![];
    for tile in 0..index.query_tiles() {
        let m0 = index.positions(tile).start;
        let first_mask = part.columns.len();
        let mut first_tile = 0;
        let (list, spans) = if index.is_dense(tile) {
            (-1, index.dense_tiles(tile))
        } else if let Some(blocks) = index.blocks() {
            let list = part.offsets.len() as i64;
            let blocks = blocks.of(tile);
            assert!(blocks.is_sorted(), "blocks ascend: of later keys only the last holds some");
            // The block of the first row goes first: every row of the tile sees the first row's key.
            let own = (m0 / TILE.keys) as u32;
            let order = std::iter::once(own).chain(blocks.iter().copied().filter(|&b| b != own));
            part.offsets.extend(order.map(|b| (m0 as i64 - (b as usize * TILE.keys) as i64) as i32));
            (list, blocks.len())
        } else {
            live.clear();
            index.live_columns(tile, &mut live);
            first_tile = column_masks(index.columns(), &live, &mut part.columns);
            (0, index.windows().partition_point(|&o| o < m0 + TILE.keys))
        };
        let masks = &part.columns[first_mask..];
        part.items.push(WorkItem {
            head: head as i32,
            row: (tile * TILE.queries) as i32,
            spans: spans as i32,
            column_tiles: masks.iter().filter(|mask| mask.0 != [0; 4]).count() as i32,
            list,
            columns: first_mask as i64,
            tile: (base + first_tile) as i32,
            reserved: 0,
        });
    }
    part
}

/// Appends the masks of the tiles of `columns` from the first to the last in which one of the `live` ones (a subsequence) lies; returns the
/// first.
fn column_masks(columns: &[usize], live: &[usize], to: &mut Vec<ColumnMask>) -> usize {
    let mut at = 0;
    let mut first = None;
    let begin = to.len();
    for &column in live {
        while columns[at] != column {
            at += 1;
        }
        let (tile, bit) = (at / TILE.keys, at % TILE.keys);
        let first = *first.get_or_insert(tile);
        to.resize(begin + tile - first + 1, ColumnMask::default());
        to[begin + tile - first].0[bit / 32] |= 1 << (bit % 32);
    }
    first.unwrap_or(0)
}

/// The order of work: sections of key heads whose K and V fit the cache together, those with the longest tiles first; within a section
/// from the last query tile, which has the most keys, to the first; and a tile's query heads side by side, those of a group reading the
/// same K and V.
fn in_order(by_head: &[Vec<WorkItem>], group: usize, keys: usize, dim: usize) -> Vec<WorkItem> {
    let head_bytes = (keys * dim * 2 * 2).max(1);
    let section = (CACHE_BYTES / head_bytes).max(1) * group;
    let cost = |item: &WorkItem| item.spans + item.column_tiles;
    let longest = |heads: &[Vec<WorkItem>]| heads.iter().flatten().map(cost).max().unwrap_or(0);
    let mut sections: Vec<&[Vec<WorkItem>]> = by_head.chunks(section).collect();
    sections.sort_by_key(|heads| std::cmp::Reverse(longest(heads)));
    let tiles = by_head.first().map_or(0, Vec::len);
    sections
        .into_iter()
        .flat_map(|heads| (0..tiles).rev().flat_map(move |tile| heads.iter().map(move |items| items[tile])))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    impl Plan {
        /// Keys that an item's tiles hold, each once a visit, without the causal mask.
        fn keys(&self, item: &WorkItem) -> Vec<i64> {
            let m0 = self.start as i64 + item.row as i64;
            let spans = &self.offsets[item.list as usize..][..item.spans as usize];
            let mut keys: Vec<i64> =
                spans.iter().flat_map(|&o| m0 - o as i64..m0 - o as i64 + TILE.keys as i64).collect();
            let masks = self.columns[item.columns as usize..].iter().enumerate();
            for (i, mask) in masks.filter(|(_, mask)| mask.0 != [0; 4]).take(item.column_tiles as usize) {
                let live = (0..TILE.keys).filter(|j| mask.0[j / 32] >> (j % 32) & 1 == 1);
                keys.extend(live.map(|j| self.gather[(item.tile as usize + i) * TILE.keys + j] as i64));
            }
            keys
        }
    }

    fn check(plan: &Plan, indexes: &[SparseIndex]) {
        let end = (plan.start + plan.rows) as i64;
        assert_eq!(plan.items.len(), indexes.len() * indexes[0].query_tiles());
        let mut seen = std::collections::HashSet::new();
        for item in &plan.items {
            assert!(seen.insert((item.head, item.row)), "an item twice");
            let index = &indexes[item.head as usize];
            let mut keys = plan.keys(item);
            let row = item.row as usize;
            // Of the runs between the first and the last every row sees every key: the kernels do not mask them.
            let spans = &plan.offsets[item.list as usize..][..item.spans as usize];
            for &offset in spans.iter().skip(1).rev().skip(1) {
                let first = plan.start as i64 + item.row as i64;
                let key = first - offset as i64;
                assert!(key >= 0 && key + TILE.keys as i64 <= first, "keys {key}.. for rows {first}..");
            }
            let first = plan.start as i64 + item.row as i64 - plan.offsets[item.list as usize] as i64;
            let m0 = plan.start as i64 + item.row as i64;
            assert!(first >= 0 && (first..first + 128).contains(&m0), "the first run holds the diagonal");
            for row in row..(row + TILE.queries).min(plan.rows) {
                let position = (plan.start + row) as i64;
                let mut want: Vec<i64> = (0..=position).filter(|&key| index.contains(row, key as usize)).collect();
                let mut got: Vec<i64> = keys.iter().copied().filter(|&key| key >= 0 && key <= position).collect();
                got.sort_unstable();
                want.sort_unstable();
                assert_eq!(got, want, "row {row} of head {}", item.head);
            }
            keys.retain(|&key| key >= end);
            assert!(keys.iter().all(|&key| key < end + 128), "a key far past the end");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// Every item names the keys of its index, each once.
        #[test]
        fn plans_visit_what_the_index_holds(
            start in 0usize..400, rows in 1usize..500, tail in 0usize..200,
            diagonals in proptest::collection::btree_set(0usize..900, 0..20), columns in proptest::collection::btree_set(0usize..900, 0..300),
            chosen in proptest::collection::vec(any::<bool>(), 64),
        ) {
            let diagonals: Vec<usize> = diagonals.into_iter().collect();
            let columns: Vec<usize> = columns.into_iter().filter(|&c| c < start + rows).collect();
            let dense = SparseIndex::dense(start, rows, TILE);
            let lists = crate::index::BlockLists::from_lists((0..dense.query_tiles()).map(|tile| {
                let positions = dense.positions(tile);
                let (own, last) = (positions.start / 128, (positions.end - 1) / 128);
                (0..=last).filter(|&b| b >= own || chosen[(b + 3 * tile) % 64]).map(|b| b as u32).collect()
            }));
            let indexes = [
                SparseIndex::from_lines(start, rows, TILE, &diagonals, columns.clone()),
                SparseIndex::from_lines(start, rows, TILE, &diagonals, columns).with_dense_tail(tail),
                SparseIndex::from_blocks(start, rows, TILE, lists),
                dense,
            ];
            let plan = Plan::new(&indexes, 2, 64).unwrap();
            check(&plan, &indexes);
            prop_assert_eq!(plan.head_tiles()[3], indexes[3].total_tiles());
            prop_assert_eq!(plan.head_tiles()[2], indexes[2].total_tiles());
        }
    }

    #[test]
    fn unfit_indexes_are_refused() {
        let dense = SparseIndex::dense(0, 200, TILE);
        let cpu = SparseIndex::dense(0, 200, crate::cpu::TILE);
        let error = |indexes: &[SparseIndex], kv| Plan::new(indexes, kv, 64).unwrap_err().to_string();
        assert!(error(&[], 1).contains("no heads"));
        assert!(error(&[dense.clone(), dense.clone()], 3).contains("evenly"));
        assert!(error(&[dense.clone(), cpu], 1).contains("head 1"));
        assert!(error(&[dense, SparseIndex::dense(0, 201, TILE)], 1).contains("201 rows"));
        assert!(error(&[SparseIndex::dense(i32::MAX as usize, 1, TILE)], 1).contains("31 bits"));
    }
}

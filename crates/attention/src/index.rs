//! The sparse index of one head: which keys each tile of queries visits.
//!
//! A head's rows are cut into query tiles of `M` rows; keys are visited in tiles of `N >= M` keys. Three kinds of key tiles:
//!
//! * **windows**, ascending offsets `o`: for the query tile whose first row stands at position `m0`, the keys `m0-o .. m0-o+N`. A
//!   diagonal (slash line) has the same offset for every query tile, so one list serves the whole head (MInference keeps a list
//!   per row block: 12.8 GB at 1M tokens and 32 heads). Windows start at any key.
//! * **columns**, ascending key positions (vertical lines, sinks), visited where no window of the query tile covers them.
//! * **blocks**, per query tile, the aligned key tiles to visit.
//!
//! No key is counted twice for a row, and every row has its own position among its keys.

use std::ops::Range;

/// Rows of a query tile and keys of a key tile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TileShape {
    /// Query rows of a tile (`M`).
    pub queries: usize,
    /// Keys of a tile (`N`), at least `M`.
    pub keys: usize,
}

/// Key tiles that a kernel visits, by how it reads them. A tile has as many keys as the index's [`TileShape`] says, and every query tile that
/// visits it counts: 64 by 64 products on the CPU, 128 by 128 on CUDA devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Visits {
    /// Tiles of neighbouring keys: windows and blocks.
    pub runs: u64,
    /// Tiles of gathered keys: columns.
    pub gathered: u64,
}

/// Key tiles per query tile: the aligned tile `b` holds the keys `b*N .. (b+1)*N`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BlockLists {
    /// `begin[i] .. begin[i+1]` are the entries of query tile `i`.
    pub(crate) begin: Vec<usize>,
    /// Tile numbers, ascending within a query tile.
    pub(crate) tiles: Vec<u32>,
}

impl BlockLists {
    /// One list a query tile, each ascending.
    pub fn from_lists(lists: impl IntoIterator<Item = Vec<u32>>) -> Self {
        let mut all = BlockLists { begin: vec![0], tiles: vec![] };
        for list in lists {
            all.tiles.extend(list);
            all.begin.push(all.tiles.len());
        }
        all
    }

    /// The key tiles of query tile `tile`.
    pub fn of(&self, tile: usize) -> &[u32] {
        &self.tiles[self.begin[tile]..self.begin[tile + 1]]
    }
}

/// The keys one head visits. See the module's text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SparseIndex {
    start: usize,
    rows: usize,
    shape: TileShape,
    windows: Vec<usize>,
    columns: Vec<usize>,
    blocks: Option<BlockLists>,
    /// First query tile that visits every key; equal to the number of query tiles when none does.
    dense_from: usize,
}

impl SparseIndex {
    /// Every key: `rows` queries whose first stands at position `start`.
    pub fn dense(start: usize, rows: usize, shape: TileShape) -> Self {
        assert!(
            shape.queries >= 1 && shape.keys >= shape.queries,
            "a key tile is at least as wide as a query tile is high"
        );
        Self { start, rows, shape, windows: vec![], columns: vec![], blocks: None, dense_from: 0 }
    }

    /// Windows that cover the `diagonals` (ascending distances; the nearest one, 0, is added if missing) and `columns`
    /// (ascending, without repeats).
    pub fn from_lines(start: usize, rows: usize, shape: TileShape, diagonals: &[usize], columns: Vec<usize>) -> Self {
        Self::from_windows(start, rows, shape, cover(diagonals, shape), columns)
    }

    /// Ready-made disjoint `windows` (ascending offsets, the first covering every row's own position) and `columns`.
    pub fn from_windows(start: usize, rows: usize, shape: TileShape, windows: Vec<usize>, columns: Vec<usize>) -> Self {
        let mut index = Self::dense(start, rows, shape);
        assert!(
            windows.first().is_some_and(|&o| o <= shape.keys - shape.queries),
            "the first window holds the diagonal"
        );
        assert!(windows.windows(2).all(|w| w[1] >= w[0] + shape.keys), "windows are ascending and disjoint");
        assert!(columns.windows(2).all(|w| w[0] < w[1]), "columns are ascending and unique");
        index.dense_from = index.query_tiles();
        index.windows = windows;
        index.columns = columns;
        index
    }

    /// Aligned key tiles per query tile; each list is ascending and holds the tiles of the query tile's own positions.
    pub fn from_blocks(start: usize, rows: usize, shape: TileShape, blocks: BlockLists) -> Self {
        let mut index = Self::dense(start, rows, shape);
        assert_eq!(blocks.begin.len(), index.query_tiles() + 1, "one list a query tile");
        index.dense_from = index.query_tiles();
        index.blocks = Some(blocks);
        index
    }

    /// Makes the query tiles that hold any of the last `rows` rows dense.
    pub fn with_dense_tail(mut self, rows: usize) -> Self {
        let first = self.rows.saturating_sub(rows);
        if first < self.rows {
            self.dense_from = self.dense_from.min(first / self.shape.queries);
        }
        self
    }

    /// Position of the first query row.
    pub fn start(&self) -> usize {
        self.start
    }
    /// Number of query rows.
    pub fn rows(&self) -> usize {
        self.rows
    }
    /// Tile sizes.
    pub fn shape(&self) -> TileShape {
        self.shape
    }
    /// Window offsets, ascending.
    pub fn windows(&self) -> &[usize] {
        &self.windows
    }
    /// Column positions, ascending.
    pub fn columns(&self) -> &[usize] {
        &self.columns
    }
    /// Block lists, if this index has them.
    pub fn blocks(&self) -> Option<&BlockLists> {
        self.blocks.as_ref()
    }
    /// Number of query tiles.
    pub fn query_tiles(&self) -> usize {
        self.rows.div_ceil(self.shape.queries)
    }
    /// Whether query tile `tile` visits every key.
    pub fn is_dense(&self, tile: usize) -> bool {
        tile >= self.dense_from
    }

    /// Positions of the rows of query tile `tile`.
    pub fn positions(&self, tile: usize) -> Range<usize> {
        let first = tile * self.shape.queries;
        self.start + first..self.start + (first + self.shape.queries).min(self.rows)
    }

    /// The runs of contiguous keys that query tile `tile` visits, each at most `N` long and cut to the keys up to its last row.
    /// Keys of a run can lie right of the diagonal: the kernel masks them.
    pub fn spans(&self, tile: usize) -> impl Iterator<Item = Range<usize>> + '_ {
        let Range { start: m0, end } = self.positions(tile);
        let keys = self.shape.keys;
        let dense = self.is_dense(tile);
        let at_offset = move |o: usize| m0.saturating_sub(o)..(m0 + keys).saturating_sub(o).min(end);
        let all = if dense { 1 + m0.div_ceil(keys) } else { 0 };
        let windows: &[usize] = if dense { &[] } else { &self.windows };
        let blocks: &[u32] = if dense { &[] } else { self.blocks.as_ref().map_or(&[], |b| b.of(tile)) };
        (0..all)
            .map(move |i| at_offset(i * keys))
            .chain(windows.iter().take_while(move |&&o| o < m0 + keys).map(move |&o| at_offset(o)))
            .chain(blocks.iter().map(move |&b| b as usize * keys..((b as usize + 1) * keys).min(end)))
    }

    /// Appends to `live` the columns that query tile `tile` visits: left of its first row and in none of its windows.
    pub fn live_columns(&self, tile: usize, live: &mut Vec<usize>) {
        if self.is_dense(tile) {
            return;
        }
        let m0 = self.positions(tile).start;
        let keys = self.shape.keys;
        // Columns ascend while windows, walked from the farthest, ascend in position too: one merge.
        let mut windows = self.windows.iter().rev().map(|&o| m0 as i64 - o as i64).peekable();
        for &column in &self.columns[..self.columns.partition_point(|&c| c < m0)] {
            while windows.next_if(|&w| w + keys as i64 <= column as i64).is_some() {}
            if windows.peek().is_none_or(|&w| (column as i64) < w) {
                live.push(column);
            }
        }
    }

    /// Key tiles that query tile `tile` visits.
    pub fn tiles(&self, tile: usize) -> usize {
        let mut live = vec![];
        self.live_columns(tile, &mut live);
        self.spans(tile).count() + live.len().div_ceil(self.shape.keys)
    }

    /// Key tiles visited in all, by kind.
    pub fn visits(&self) -> Visits {
        let mut live = vec![];
        (0..self.query_tiles()).fold(Visits::default(), |all, tile| {
            live.clear();
            self.live_columns(tile, &mut live);
            Visits {
                runs: all.runs + self.spans(tile).count() as u64,
                gathered: all.gathered + live.len().div_ceil(self.shape.keys) as u64,
            }
        })
    }

    /// Key tiles that dense causal attention visits for query tile `tile`.
    pub fn dense_tiles(&self, tile: usize) -> usize {
        1 + self.positions(tile).start.div_ceil(self.shape.keys)
    }

    /// Key tiles visited in all.
    pub fn total_tiles(&self) -> u64 {
        let Visits { runs, gathered } = self.visits();
        runs + gathered
    }

    /// Key tiles that dense causal attention visits in all.
    pub fn total_dense_tiles(&self) -> u64 {
        (0..self.query_tiles()).map(|t| self.dense_tiles(t) as u64).sum()
    }

    /// Whether query row `row` sees the key at position `key`, by definition and one key at a time: what tests and pictures ask.
    pub fn contains(&self, row: usize, key: usize) -> bool {
        let tile = row / self.shape.queries;
        let m0 = self.positions(tile).start as i64;
        let keys = self.shape.keys as i64;
        let in_window = |&o: &usize| (m0 - o as i64..m0 - o as i64 + keys).contains(&(key as i64));
        key <= self.start + row
            && (self.is_dense(tile)
                || self.windows.iter().any(in_window)
                || self.columns.binary_search(&key).is_ok()
                || self.blocks.as_ref().is_some_and(|b| b.of(tile).contains(&((key / self.shape.keys) as u32))))
    }
}

/// Fewest windows, greedily, that hold every chosen diagonal for every row of a query tile.
///
/// Row `r` of a query tile at `m0` meets diagonal `t` at key `m0+r-t`, so the diagonal needs the band of keys `-t ..= M-1-t` relative to
/// `m0`; window `o` supplies `-o ..= N-1-o`. Diagonals are taken in ascending order, keys therefore from right to left. A window
/// is put with its right edge where the first missing key is, so what it holds beyond the band serves diagonals still to come, and
/// windows never overlap. As `N >= M`, one diagonal asks for at most one window.
pub fn cover(diagonals: &[usize], shape: TileShape) -> Vec<usize> {
    let (m, n) = (shape.queries as i64, shape.keys as i64);
    let mut windows: Vec<usize> = vec![];
    // All keys from -covered to the band of the last diagonal are supplied.
    let mut covered = i64::MIN;
    let zero = (diagonals.first() != Some(&0)).then_some(0);
    for t in zero.into_iter().chain(diagonals.iter().copied()).map(|t| t as i64) {
        if t <= covered {
            continue;
        }
        let right = (m - 1 - t).min(covered.saturating_neg().saturating_sub(1));
        let offset = n - 1 - right;
        windows.push(offset as usize);
        covered = offset;
    }
    windows
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SHAPES: [TileShape; 4] = [
        TileShape { queries: 64, keys: 64 },
        TileShape { queries: 16, keys: 16 },
        TileShape { queries: 16, keys: 40 },
        TileShape { queries: 128, keys: 176 },
    ];

    fn lines(limit: usize, count: usize) -> impl Strategy<Value = Vec<usize>> {
        proptest::collection::btree_set(0..limit, 0..count).prop_map(|s| s.into_iter().collect())
    }

    proptest! {
        /// Every chosen diagonal and column is visited by every row, no key twice, at most one window a diagonal.
        #[test]
        fn everything_chosen_is_covered_once(
            start in 0usize..300, rows in 1usize..400, which in 0usize..SHAPES.len(),
            diagonals in lines(700, 60), columns in lines(700, 60),
        ) {
            let shape = SHAPES[which];
            let columns: Vec<_> = columns.into_iter().filter(|&c| c < start + rows).collect();
            let index = SparseIndex::from_lines(start, rows, shape, &diagonals, columns.clone());
            prop_assert!(index.windows().len() <= diagonals.len() + 1);
            for tile in 0..index.query_tiles() {
                let mut count = vec![0u8; start + rows];
                for span in index.spans(tile) {
                    prop_assert!(!span.is_empty() && span.len() <= shape.keys);
                    for key in span { count[key] += 1; }
                }
                let mut live = vec![];
                index.live_columns(tile, &mut live);
                for &key in &live { count[key] += 1; }
                prop_assert!(count.iter().all(|&c| c <= 1), "a key twice in tile {tile}");
                for position in index.positions(tile) {
                    prop_assert!(count[position] == 1, "row without its own key");
                    for &t in diagonals.iter().filter(|&&t| t <= position) {
                        prop_assert!(count[position - t] == 1, "diagonal {t} at {position}");
                    }
                    for &c in columns.iter().filter(|&&c| c <= position) {
                        prop_assert!(count[c] == 1, "column {c} at {position}");
                    }
                    // `contains` says the same by definition.
                    for (key, &times) in count.iter().enumerate() {
                        prop_assert_eq!(index.contains(position - start, key), key <= position && times == 1);
                    }
                }
                prop_assert_eq!(index.tiles(tile), index.spans(tile).count() + live.len().div_ceil(shape.keys));
                prop_assert!(index.spans(tile).count() <= index.dense_tiles(tile));
            }
        }

        #[test]
        fn dense_visits_every_key(start in 0usize..300, rows in 1usize..400, which in 0usize..SHAPES.len()) {
            let index = SparseIndex::dense(start, rows, SHAPES[which]);
            for tile in 0..index.query_tiles() {
                let mut keys: Vec<_> = index.spans(tile).flatten().collect();
                keys.sort_unstable();
                prop_assert_eq!(keys, (0..index.positions(tile).end).collect::<Vec<_>>());
                prop_assert_eq!(index.tiles(tile), index.dense_tiles(tile));
            }
        }
    }

    #[test]
    fn clustered_diagonals_merge() {
        let shape = TileShape { queries: 64, keys: 64 };
        assert_eq!(cover(&(0..100).collect::<Vec<_>>(), shape), [0, 64, 128]);
        assert_eq!(cover(&[0, 1000], shape), [0, 1000]);
        assert_eq!(cover(&[], shape), [0]);
        assert_eq!(cover(&[0, 100, 120], shape), [0, 100, 164]);
    }

    #[test]
    fn dense_tail_reaches_whole_tiles() {
        let shape = TileShape { queries: 16, keys: 16 };
        let index = SparseIndex::from_lines(0, 100, shape, &[0], vec![]).with_dense_tail(10);
        assert!(!index.is_dense(4) && index.is_dense(5) && index.is_dense(6));
        assert!(index.contains(90, 3) && !index.contains(70, 3));
        let none = SparseIndex::from_lines(0, 100, shape, &[0], vec![]).with_dense_tail(0);
        assert!(!none.is_dense(6));
    }
}

//! Indexes of one prompt, for others: the "static" patterns of MInference's ablation (arXiv 2407.02490, table 4), which show what it is worth to
//! build an index from the prompt itself.
//!
//! Lines are relative, so they mean something at any length: diagonals are distances, columns are positions, and those past a prompt's end
//! are dropped. Key tiles of a query tile stay the same; query tiles past the end of the index's prompt take those of its last one and their own.
//! What a pattern keeps without looking at a prompt (bands, sinks, the dense queries at the end) is that of the prompt at hand.

use crate::estimate::{LAST_QUERIES, a_shape, dense};
use crate::index::{BlockLists, SparseIndex, TileShape};
use crate::prefill::plan_in_tiles;
use crate::{Budget, Element, Error, Options, Pattern, Rows};

/// The index of a query head, taken from one prompt to be used for others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FixedHead {
    pattern: Pattern,
    /// As the estimator built it, from position 0 on.
    index: SparseIndex,
}

/// What the query heads of a call look at.
#[derive(Debug, Clone, Copy)]
pub enum Heads<'a> {
    /// A pattern each, whose index is built from the queries and keys.
    Patterns(&'a [Pattern]),
    /// An index of another prompt each. The queries must be a whole prompt.
    Fixed(&'a [FixedHead]),
}

impl Heads<'_> {
    /// Number of heads.
    pub fn len(&self) -> usize {
        match self {
            Heads::Patterns(patterns) => patterns.len(),
            Heads::Fixed(heads) => heads.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The pattern of a head.
    pub fn pattern(&self, head: usize) -> Pattern {
        match self {
            Heads::Patterns(patterns) => patterns[head],
            Heads::Fixed(heads) => heads[head].pattern,
        }
    }

    /// These of the heads.
    pub fn slice(self, heads: std::ops::Range<usize>) -> Self {
        match self {
            Heads::Patterns(patterns) => Heads::Patterns(&patterns[heads]),
            Heads::Fixed(fixed) => Heads::Fixed(&fixed[heads]),
        }
    }

    /// Refuses patterns that make no sense, and indexes that do not fit queries whose first stands at `start`, in tiles of `shape`.
    pub(crate) fn check(&self, start: usize, shape: TileShape) -> Result<(), Error> {
        match self {
            Heads::Patterns(patterns) => patterns.iter().try_for_each(Pattern::validate),
            Heads::Fixed(_) if start > 0 => Err(Error::Shape(format!(
                "queries from position {start} on with indexes of another prompt: those are for prompts that are read in one piece"
            ))),
            Heads::Fixed(heads) => match heads.iter().map(|head| head.index.shape()).find(|&tiles| tiles != shape) {
                Some(tiles) => {
                    Err(Error::Shape(format!("indexes of another prompt in tiles of {tiles:?}; {shape:?} are needed")))
                }
                None => Ok(()),
            },
        }
    }
}

impl FixedHead {
    /// The pattern that the index came from.
    pub fn pattern(&self) -> Pattern {
        self.pattern
    }

    /// The index for a prompt of `rows` tokens under a sliding window.
    pub(crate) fn index(&self, rows: usize, window: Option<usize>) -> SparseIndex {
        let shape = self.index.shape();
        match self.pattern {
            Pattern::Dense => dense(0, rows, window, shape),
            Pattern::AShape { sink, local } => a_shape(0, rows, sink, local, shape),
            Pattern::TriShape { sink, local, last } => a_shape(0, rows, sink, local, shape).with_dense_tail(last),
            Pattern::VerticalSlash { budget: Budget::Lines, .. } => self.lines(rows),
            Pattern::VerticalSlash { budget: Budget::Tiles, .. } => self.lines(rows).with_dense_tail(LAST_QUERIES),
            Pattern::BlockSparse { .. } | Pattern::BlockShare { .. } => self.blocks(rows).with_dense_tail(LAST_QUERIES),
        }
    }

    fn lines(&self, rows: usize) -> SparseIndex {
        let columns = self.index.columns().iter().copied().filter(|&column| column < rows).collect();
        SparseIndex::from_windows(0, rows, self.index.shape(), self.index.windows().to_vec(), columns)
    }

    fn blocks(&self, rows: usize) -> SparseIndex {
        let shape = self.index.shape();
        let (all, last) = (SparseIndex::dense(0, rows, shape), self.index.query_tiles() - 1);
        let of = |tile: usize| self.index.blocks().map_or(&[][..], |blocks| blocks.of(tile.min(last)));
        let list = |tile: usize| {
            let positions = all.positions(tile);
            let own = (positions.start / shape.keys) as u32..((positions.end - 1) / shape.keys) as u32 + 1;
            of(tile).iter().copied().filter(|&block| block < own.start).chain(own.clone()).collect()
        };
        SparseIndex::from_blocks(0, rows, shape, BlockLists::from_lists((0..all.query_tiles()).map(list)))
    }
}

/// Builds the indexes of a prompt's query heads for use with other prompts, in tiles of `shape`: those of the kernel that is to visit them.
///
/// Shapes as for [`prefill`](crate::prefill()); the queries must be a whole prompt.
///
/// # Errors
/// As for [`prefill`](crate::prefill()), and [`Error::Shape`] when there are more keys than queries.
pub fn fix<T: Element>(
    q: Rows<'_, f32>,
    k: Rows<'_, T>,
    patterns: &[Pattern],
    shape: TileShape,
    options: &Options<'_>,
) -> Result<Vec<FixedHead>, Error> {
    if q.rows() != k.rows() {
        return Err(Error::Shape(format!(
            "{} queries of {} keys: indexes for other prompts are taken from a whole one",
            q.rows(),
            k.rows()
        )));
    }
    let options = Options { dense_fallback: false, ..*options };
    let planned = plan_in_tiles(q, k, patterns, shape, &options)?;
    Ok(planned.into_iter().map(|(pattern, index)| FixedHead { pattern, index }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Kernel;

    const TILE: TileShape = TileShape { queries: 16, keys: 16 };

    fn head(pattern: &str, index: SparseIndex) -> FixedHead {
        FixedHead { pattern: pattern.parse().unwrap(), index }
    }

    #[test]
    fn lines_stay_where_they_are_and_end_with_the_prompt() {
        let index = SparseIndex::from_lines(0, 200, TILE, &[0, 40], vec![3, 70, 150]);
        let lines = head("vertical-slash:3,2", index.clone());
        assert_eq!(lines.index(200, None), index);
        for rows in [100, 400] {
            let got = lines.index(rows, None);
            assert_eq!((got.rows(), got.windows()), (rows, index.windows()));
            assert_eq!(got.columns(), if rows == 100 { &[3, 70][..] } else { &[3, 70, 150] });
            assert!((0..got.query_tiles()).all(|tile| !got.is_dense(tile)));
        }
        // Under a budget of tiles the last queries see everything, at every length.
        let tiles = head("vertical-slash-tiles:1,2", index.clone().with_dense_tail(LAST_QUERIES));
        for rows in [100, 200, 400] {
            let (got, tail) = (tiles.index(rows, None), (rows - LAST_QUERIES) / TILE.queries);
            assert!((0..got.query_tiles()).all(|tile| got.is_dense(tile) == (tile >= tail)), "{rows}");
        }
    }

    #[test]
    fn key_tiles_stay_and_every_query_tile_has_its_own() {
        let source = vec![vec![0], vec![0, 1], vec![0, 2], vec![1, 3], vec![0, 2, 4]];
        let index = SparseIndex::from_blocks(0, 70, TILE, BlockLists::from_lists(source));
        let blocks = head("block-sparse:2", index);
        for (rows, want) in [
            (35, &[&[0u32][..], &[0, 1], &[0, 2]][..]),
            (110, &[&[0], &[0, 1], &[0, 2], &[1, 3], &[0, 2, 4], &[0, 2, 4, 5], &[0, 2, 4, 6]]),
        ] {
            let got = blocks.index(rows, None);
            let lists = got.blocks().unwrap();
            assert_eq!((0..got.query_tiles()).map(|tile| lists.of(tile)).collect::<Vec<_>>(), want);
            assert!(got.is_dense(got.query_tiles() - 1));
        }
    }

    #[test]
    fn what_needs_no_prompt_is_that_of_the_prompt_at_hand() {
        for pattern in ["dense", "a-shape:20,40", "tri-shape:20,40,30"] {
            let fixed = head(pattern, SparseIndex::dense(0, 200, TILE));
            let lines = a_shape(0, 333, 20, 40, TILE);
            let want = match fixed.pattern {
                Pattern::Dense => dense(0, 333, None, TILE),
                Pattern::TriShape { last, .. } => lines.with_dense_tail(last),
                _ => lines,
            };
            assert_eq!(fixed.index(333, None), want);
        }
    }

    #[test]
    fn fixed_heads_are_for_whole_prompts_and_one_kernel() {
        let heads = [head("dense", SparseIndex::dense(0, 200, TILE))];
        let said = |start, shape| Heads::Fixed(&heads).check(start, shape).unwrap_err().to_string();
        assert!(Heads::Fixed(&heads).check(0, TILE).is_ok());
        assert!(said(100, TILE).contains("one piece"));
        assert!(said(0, Kernel::Cuda.tile()).contains("keys: 128 } are needed"));
    }
}

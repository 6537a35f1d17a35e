//! When a pattern pays: the cost of its tiles and its index against dense attention's tiles, per head and length.
//!
//! Costs are in key tiles of the attention kernel. The weights are measured (`make bench`), not exact: they only decide near the point
//! where both sides cost the same.

use crate::index::SparseIndex;
use crate::{Budget, Pattern};

/// Estimating vertical-slash scores every key tile twice for one query tile, without the value half of the work, and selects.
const LAST_QUERIES_PER_KEY_TILE: f64 = 1.5;
/// Pooling reads every key and query once; the pooled products are 1/64 squared of the real ones.
const POOLING_PER_TILE: f64 = 0.1;

/// Whether `pattern` can cost less than `dense`, judged before its index is built: by the least its budget can come to.
pub(crate) fn can_win(pattern: Pattern, dense: &SparseIndex) -> bool {
    let tiles: Vec<usize> = (0..dense.query_tiles()).map(|t| dense.tiles(t)).collect();
    let key_tiles = dense.dense_tiles(dense.query_tiles() - 1);
    least_tiles(pattern, dense.shape().keys).is_some_and(|least| beats(pattern, least, &tiles, key_tiles))
}

/// As [`can_win`], against dense attention whose query tiles visit `tiles` key tiles of `keys` keys, the last query tile all of them.
pub(crate) fn pays(pattern: Pattern, keys: usize, tiles: &[usize]) -> bool {
    let key_tiles = tiles.last().copied().unwrap_or(0);
    least_tiles(pattern, keys).is_some_and(|least| beats(pattern, least, tiles, key_tiles))
}

/// The fewest key tiles of a query tile that a budget can come to, where there are as many; `None` for dense.
fn least_tiles(pattern: Pattern, keys: usize) -> Option<usize> {
    match pattern {
        Pattern::Dense => None,
        Pattern::AShape { local, .. } | Pattern::TriShape { local, .. } => Some(local.div_ceil(keys)),
        Pattern::VerticalSlash { slash, budget: Budget::Lines, .. } => Some(slash.div_ceil(keys)),
        // A tile budget is spent to the full where there is mass; what it may leave unspent the exact check sees.
        Pattern::VerticalSlash { vertical, slash, budget: Budget::Tiles } => Some(vertical + slash),
        Pattern::BlockSparse { blocks } => Some(blocks),
        // What it comes to beyond that follows from the scores; on the CPU the exact check sees it.
        Pattern::BlockShare { least, .. } => Some(least),
    }
}

fn beats(pattern: Pattern, least: usize, tiles: &[usize], key_tiles: usize) -> bool {
    let sparse: u64 = tiles.iter().map(|&dense| dense.min(least) as u64).sum();
    let dense: u64 = tiles.iter().map(|&dense| dense as u64).sum();
    sparse as f64 + index_cost(pattern, key_tiles, tiles.len()) < dense as f64
}

/// Whether running `index`, already built, costs less than `dense`.
pub(crate) fn wins(index: &SparseIndex, dense: &SparseIndex) -> bool {
    index.total_tiles() < dense.total_tiles()
}

/// Cost of building the index.
fn index_cost(pattern: Pattern, key_tiles: usize, query_tiles: usize) -> f64 {
    match pattern {
        Pattern::Dense | Pattern::AShape { .. } | Pattern::TriShape { .. } => 0.0,
        Pattern::VerticalSlash { .. } => LAST_QUERIES_PER_KEY_TILE * key_tiles as f64,
        Pattern::BlockSparse { .. } | Pattern::BlockShare { .. } => POOLING_PER_TILE * (key_tiles + query_tiles) as f64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::TILE;

    fn vertical_slash(tiles: usize) -> Pattern {
        Pattern::VerticalSlash { vertical: tiles / 2, slash: tiles / 2, budget: Budget::Tiles }
    }

    #[test]
    fn short_prompts_run_dense_and_long_ones_sparse() {
        let dense = |n| SparseIndex::dense(0, n, TILE);
        assert!(!can_win(vertical_slash(16), &dense(1)));
        assert!(!can_win(vertical_slash(16), &dense(1024)));
        assert!(can_win(vertical_slash(16), &dense(4096)));
        assert!(!can_win(vertical_slash(2000), &dense(65536)));
        assert!(!can_win(Pattern::Dense, &dense(65536)));
        // A single row after a long prefix: the estimate alone costs more than the row.
        assert!(!can_win(vertical_slash(16), &SparseIndex::dense(65536, 1, TILE)));
    }
}

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
    let keys = dense.shape().keys;
    let least = match pattern {
        Pattern::Dense => return false,
        Pattern::AShape { local, .. } | Pattern::TriShape { local, .. } => local.div_ceil(keys),
        Pattern::VerticalSlash { slash, budget: Budget::Lines, .. } => slash.div_ceil(keys),
        // A tile budget is spent to the full where there is mass; what it may leave unspent the exact check sees.
        Pattern::VerticalSlash { vertical, slash, budget: Budget::Tiles } => vertical + slash,
        Pattern::BlockSparse { blocks } => blocks,
    };
    let tiles: u64 = (0..dense.query_tiles()).map(|t| dense.tiles(t).min(least) as u64).sum();
    tiles as f64 + index_cost(pattern, dense) < dense.total_tiles() as f64
}

/// Whether running `index`, already built, costs less than `dense`.
pub(crate) fn wins(index: &SparseIndex, dense: &SparseIndex) -> bool {
    index.total_tiles() < dense.total_tiles()
}

/// Cost of building the index.
fn index_cost(pattern: Pattern, dense: &SparseIndex) -> f64 {
    let key_tiles = dense.dense_tiles(dense.query_tiles() - 1) as f64;
    match pattern {
        Pattern::Dense | Pattern::AShape { .. } | Pattern::TriShape { .. } => 0.0,
        Pattern::VerticalSlash { .. } => LAST_QUERIES_PER_KEY_TILE * key_tiles,
        Pattern::BlockSparse { .. } => POOLING_PER_TILE * (key_tiles + dense.query_tiles() as f64),
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

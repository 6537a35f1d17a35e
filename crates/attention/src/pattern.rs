//! The sparse patterns of a head and their budgets (MInference, arXiv 2407.02490, section 3).

/// What the numbers of a vertical-slash pattern count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Budget {
    /// MInference's meaning: `vertical` columns and `slash` diagonals.
    Lines,
    /// Ours: `vertical` and `slash` are key tiles per query tile, so the cost is bounded whatever the prompt.
    Tiles,
}

/// The sparse pattern of one query head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pattern {
    /// Every key (causal).
    Dense,
    /// The first `sink` keys and the nearest `local` keys of every query.
    AShape { sink: usize, local: usize },
    /// A-shape, and the last `last` query rows dense.
    TriShape { sink: usize, local: usize, last: usize },
    /// Columns and diagonals chosen from the prompt.
    VerticalSlash { vertical: usize, slash: usize, budget: Budget },
    /// The `blocks` key tiles of largest mean-pooled score per query tile.
    BlockSparse { blocks: usize },
}

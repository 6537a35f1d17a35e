//! Online index estimation: from a head's pattern and the actual queries and keys to its [`SparseIndex`]
//! (MInference, section 3.3).

mod block_sparse;
pub(crate) mod last_queries;
mod vertical_slash;

use std::sync::OnceLock;

use self::block_sparse::Blocks;
use crate::cpu::prefill::Call;
use crate::index::{SparseIndex, TileShape};
use crate::{Element, Pattern};

pub use last_queries::LastQueryMass;
pub use vertical_slash::{FORCED_COLUMNS, FORCED_DIAGONALS, LAST_QUERIES};

/// Builds the indexes of one query head, on any number of threads. What several patterns start from is measured once.
pub(crate) struct Estimator<'c, 'a, T> {
    call: &'c Call<'a, T>,
    head: usize,
    mass: OnceLock<LastQueryMass>,
}

impl<'c, 'a, T: Element> Estimator<'c, 'a, T> {
    pub fn new(call: &'c Call<'a, T>, head: usize) -> Self {
        Self { call, head, mass: OnceLock::new() }
    }

    /// The index of `pattern`, in tiles of `shape`.
    pub fn index(&self, pattern: Pattern, shape: TileShape) -> SparseIndex {
        let Call { isa, q, ref cache, scale, window, .. } = *self.call;
        let (rows, start) = (q.rows(), cache.k.rows() - q.rows());
        match pattern {
            Pattern::Dense => dense(start, rows, window, shape),
            Pattern::AShape { sink, local } => a_shape(start, rows, sink, local, shape),
            Pattern::TriShape { sink, local, last } => a_shape(start, rows, sink, local, shape).with_dense_tail(last),
            Pattern::VerticalSlash { vertical, slash, budget } => {
                let measure = || LastQueryMass::measure(isa, q, cache, self.head, scale, window, LAST_QUERIES);
                let mass = self.mass.get_or_init(measure);
                vertical_slash::choose(mass, start, rows, vertical, slash, budget, shape)
            }
            // As under a tile budget, the last queries, which are the user's question, see every key.
            Pattern::BlockSparse { blocks } => {
                let budget = Blocks::Count(blocks);
                block_sparse::choose(isa, q, cache.k, self.head, budget, window, shape).with_dense_tail(LAST_QUERIES)
            }
            Pattern::BlockShare { least, most, percent } => {
                let budget = Blocks::Share { least, most, share: percent as f64 / 100.0, scale: f64::from(scale) };
                block_sparse::choose(isa, q, cache.k, self.head, budget, window, shape).with_dense_tail(LAST_QUERIES)
            }
        }
    }
}

/// Every key that a row sees: all, or those in its sliding window.
pub(crate) fn dense(start: usize, rows: usize, window: Option<usize>, shape: TileShape) -> SparseIndex {
    match window {
        Some(window) if window < start + rows => a_shape(start, rows, 0, window, shape),
        _ => SparseIndex::dense(start, rows, shape),
    }
}

/// Sinks and a local band: known without looking at the prompt.
pub(crate) fn a_shape(start: usize, rows: usize, sink: usize, local: usize, shape: TileShape) -> SparseIndex {
    let len = start + rows;
    let diagonals: Vec<usize> = (0..local.min(len)).collect();
    SparseIndex::from_lines(start, rows, shape, &diagonals, (0..sink.min(len)).collect())
}

//! Online index estimation: from a head's pattern and the actual queries and keys to its [`SparseIndex`]
//! (MInference, section 3.3).

mod block_sparse;
pub(crate) mod last_queries;
mod vertical_slash;

use crate::cpu::Isa;
use crate::cpu::cache::Cache;
use crate::index::{SparseIndex, TileShape};
use crate::{Element, Pattern, Rows};

pub use last_queries::LastQueryMass;
pub use vertical_slash::{FORCED_COLUMNS, FORCED_DIAGONALS, LAST_QUERIES};

/// Builds the index of query head `head` for `pattern`, in tiles of `shape`.
#[allow(clippy::too_many_arguments)]
pub(crate) fn estimate<T: Element>(
    isa: Isa,
    pattern: Pattern,
    q: Rows<'_, f32>,
    cache: &Cache<'_, T>,
    head: usize,
    scale: f32,
    shape: TileShape,
) -> SparseIndex {
    let (rows, start) = (q.rows(), cache.k.rows() - q.rows());
    match pattern {
        Pattern::Dense => SparseIndex::dense(start, rows, shape),
        Pattern::AShape { sink, local } => a_shape(start, rows, sink, local, shape),
        Pattern::TriShape { sink, local, last } => a_shape(start, rows, sink, local, shape).with_dense_tail(last),
        Pattern::VerticalSlash { vertical, slash, budget } => {
            let mass = LastQueryMass::measure(isa, q, cache, head, scale, LAST_QUERIES);
            vertical_slash::choose(&mass, start, rows, vertical, slash, budget, shape)
        }
        Pattern::BlockSparse { blocks } => block_sparse::choose(isa, q, cache.k, head, blocks, shape),
    }
}

/// Sinks and a local band: known without looking at the prompt.
fn a_shape(start: usize, rows: usize, sink: usize, local: usize, shape: TileShape) -> SparseIndex {
    let len = start + rows;
    let diagonals: Vec<usize> = (0..local.min(len)).collect();
    SparseIndex::from_lines(start, rows, shape, &diagonals, (0..sink.min(len)).collect())
}

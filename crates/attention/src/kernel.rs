//! What an index, and the count of its tiles, depend on of the kernel that visits it.

use crate::index::{SparseIndex, TileShape, Visits};
use crate::{cpu, cuda};

/// The kernels, one a kind of device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kernel {
    /// [`prefill`](crate::prefill()): tiles of 64 queries and 64 keys.
    #[default]
    Cpu,
    /// [`cuda::Attention`]: tiles of 128 queries and 128 keys.
    Cuda,
}

impl Kernel {
    /// Its tiles: budgets of [`Pattern`](crate::Pattern)s that count tiles count these.
    pub fn tile(self) -> TileShape {
        match self {
            Kernel::Cpu => cpu::TILE,
            Kernel::Cuda => cuda::TILE,
        }
    }

    /// Key tiles that it visits for a head, each of [`tile`](Self::tile)'s keys.
    ///
    /// # Panics
    /// When the index is in tiles of another size.
    pub fn visits(self, index: &SparseIndex) -> Visits {
        assert_eq!(index.shape(), self.tile(), "the tiles of an index are those of the kernel that visits it");
        match self {
            Kernel::Cpu => index.visits(),
            Kernel::Cuda => gathered_once(index),
        }
    }
}

/// Visits where columns are gathered once a head: a query tile visits the tiles of that list in which it has any, however few.
fn gathered_once(index: &SparseIndex) -> Visits {
    let (columns, keys) = (index.columns(), index.shape().keys);
    let mut live = vec![];
    (0..index.query_tiles()).fold(Visits::default(), |all, tile| {
        live.clear();
        index.live_columns(tile, &mut live);
        let (mut at, mut last, mut gathered) = (0, None, 0);
        for column in &live {
            while columns[at] != *column {
                at += 1;
            }
            gathered += u64::from(last.replace(at / keys) != Some(at / keys));
        }
        Visits { runs: all.runs + index.spans(tile).count() as u64, gathered: all.gathered + gathered }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::Plan;
    use proptest::prelude::*;

    proptest! {
        /// The kernel's own list of work has as many tiles, head by head.
        #[test]
        fn visits_are_those_of_the_plan(
            start in 0usize..400, rows in 1usize..900, tail in 0usize..200,
            diagonals in proptest::collection::btree_set(0usize..1300, 0..20), columns in proptest::collection::btree_set(0usize..1300, 0..500),
        ) {
            let diagonals: Vec<usize> = diagonals.into_iter().collect();
            let columns: Vec<usize> = columns.into_iter().filter(|&c| c < start + rows).collect();
            let tile = Kernel::Cuda.tile();
            let lines = SparseIndex::from_lines(start, rows, tile, &diagonals, columns);
            let indexes = [lines.clone(), lines.with_dense_tail(tail), SparseIndex::dense(start, rows, tile)];
            let plan = Plan::new(&indexes, 1, 64).unwrap();
            for (index, &tiles) in indexes.iter().zip(plan.head_tiles()) {
                let Visits { runs, gathered } = Kernel::Cuda.visits(index);
                prop_assert_eq!(runs + gathered, tiles);
                prop_assert_eq!(runs, index.visits().runs);
                prop_assert!(gathered >= index.visits().gathered);
            }
        }
    }
}

//! Where the attention mass of the prompt's last queries lies: per column and per diagonal (MInference, algorithm 2).

use crate::cpu::cache::{Cache, Keys};
use crate::cpu::panel::{KEYS, Panel};
use crate::cpu::{Isa, TILE};
use crate::{Element, Rows};

/// Attention mass of the last queries of a head, summed over them: `A = softmax(Q[-last..] K^T / sqrt(d))`, causal.
#[derive(Debug, Clone, PartialEq)]
pub struct LastQueryMass {
    /// Queries looked at.
    pub queries: usize,
    /// Mass per key position; `kv_len` entries, summing to `queries`.
    pub columns: Vec<f32>,
    /// Mass per diagonal, by distance between query and key; `kv_len` entries, summing to `queries`.
    pub diagonals: Vec<f32>,
}

impl LastQueryMass {
    /// Measures head `head` over the last `min(last, n)` query rows. The matrix A is never held: one pass over the keys gathers each
    /// row's log-sum-exp, a second one its probabilities.
    pub(crate) fn measure<T: Element>(
        isa: Isa,
        q: Rows<'_, f32>,
        cache: &Cache<'_, T>,
        head: usize,
        scale: f32,
        window: Option<usize>,
        last: usize,
    ) -> Self {
        let queries = last.min(q.rows()).min(TILE.queries);
        let (len, first_row) = (cache.k.rows(), q.rows() - queries);
        let start = len - q.rows();
        let first = start + first_row;
        let kv_head = head / (q.heads() / cache.k.heads());
        let mut panel = Panel::new(isa, TILE.queries, q.dim()).with_window(window);
        panel.set_queries((first_row..q.rows()).map(|r| (start + r, q.row(r, head))), scale);
        let score = |panel: &mut Panel, base: usize| {
            let keys = base..(base + KEYS).min(len);
            let diagonal = (keys.end > first + 1).then_some(base);
            panel.score(cache, kv_head, &Keys::Run(keys.clone()), diagonal);
            keys
        };
        for base in (0..len).step_by(KEYS) {
            score(&mut panel, base);
            panel.softmax();
        }
        let mut columns = vec![0.0; len];
        // `lane` of key `j` lies on diagonal `first + lane - j`: a run of ascending diagonals per key. Those right of the causal
        // diagonal have no mass and fall into the padding in front.
        let mut diagonals = vec![0.0; queries + len];
        let width = panel.width();
        for base in (0..len).step_by(KEYS) {
            let keys = score(&mut panel, base);
            for (key, masses) in keys.zip(panel.probabilities().chunks_exact(width)) {
                let masses = &masses[..queries];
                columns[key] = masses.iter().sum();
                let at = queries + first - key;
                for (sum, mass) in diagonals[at..at + queries].iter_mut().zip(masses) {
                    *sum += mass;
                }
            }
        }
        diagonals.drain(..queries);
        LastQueryMass { queries, columns, diagonals }
    }
}

//! How far sparse attention strays from dense attention, for many patterns of every head at once: what an offline search minimises.
//!
//! MInference's search compares attention scores; what the next layer sees is the attention *output*, so that is what is compared here
//! (paper, algorithm 1). Nothing of the size of the prompt is kept: a task computes one query tile of one head densely, then under each plan.

use rayon::prelude::*;

use crate::cpu::cache::Cache;
use crate::cpu::panel::Panel;
use crate::cpu::prefill::{Call, attend_tile};
use crate::estimate::{self, Estimator};
use crate::index::{SparseIndex, TileShape, Visits};
use crate::prefill::{check, check_values};
use crate::{Element, Error, Kernel, Options, Pattern, Recall, Rows};

/// What one query head runs.
#[derive(Debug, Clone, Copy)]
pub enum Plan<'a> {
    /// A pattern, whose index is built from the queries and keys.
    Pattern(Pattern),
    /// An index made elsewhere: of another prompt, for one.
    Index(&'a SparseIndex),
}

/// How a plan's output differs from dense attention's, over the sampled rows of a head.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Deviation {
    /// Squared length of the difference of the outputs, summed over rows.
    pub error: f64,
    /// Squared length of the dense output, summed over the same rows.
    pub energy: f64,
    /// Share of attention mass kept.
    pub recall: Recall,
    /// Key tiles that the whole head visits, in the kernel's tiles.
    pub visits: Visits,
}

/// Compares every plan of every query head with dense attention: `plans[plan][query head]` gives `[plan][query head]`.
///
/// The CPU computes, but in the tiles of `kernel`: a pattern whose budget counts tiles keeps other keys on another kind of device.
///
/// Shapes as for [`prefill`](crate::prefill()). Rows are sampled as whole query tiles: `query_tiles` of them (all, if there are fewer), evenly
/// spread, the last one always among them. No plan falls back to dense.
///
/// # Errors
/// As for [`prefill`](crate::prefill()); [`Error::Shape`] too when a plan's index is of another shape than the queries and keys.
pub fn compare<T: Element>(
    q: Rows<'_, f32>,
    k: Rows<'_, T>,
    v: Rows<'_, T>,
    plans: &[Vec<Plan<'_>>],
    query_tiles: usize,
    kernel: Kernel,
    options: &Options<'_>,
) -> Result<Vec<Vec<Deviation>>, Error> {
    check_values(k, v)?;
    for heads in plans {
        check_plans(q, k, heads, kernel, options)?;
    }
    let group = q.heads() / k.heads();
    let shape = kernel.tile();
    let tiles = sampled_tiles(q.rows().div_ceil(shape.queries), query_tiles);
    let mut deviations = vec![Vec::with_capacity(q.heads()); plans.len()];
    // One key/value head at a time: its packed form is shared by the heads of its group.
    for kv_head in 0..k.heads() {
        let call = Call::new(q, Cache::pack(options.isa(), k, v, kv_head..kv_head + 1), options);
        for head in kv_head * group..(kv_head + 1) * group {
            let estimator = Estimator::new(&call, head);
            let indexes: Vec<SparseIndex> = plans
                .par_iter()
                .map(|heads| match heads[head] {
                    Plan::Pattern(pattern) => estimator.index(pattern, shape),
                    Plan::Index(index) => index.clone(),
                })
                .collect();
            let sums = tiles
                .par_iter()
                .rev()
                .with_max_len(1)
                .map_init(|| Scratch::new(&call, shape), |scratch, &tile| scratch.compare(&call, &indexes, head, tile))
                .reduce_with(TileSums::merge)
                .expect("at least one tile is sampled");
            if call.stopped() {
                return Err(Error::Cancelled);
            }
            let visits: Vec<Visits> = indexes.par_iter().map(|index| kernel.visits(index)).collect();
            for ((into, plan), visits) in deviations.iter_mut().zip(&sums.plans).zip(visits) {
                into.push(Deviation {
                    error: plan.error,
                    energy: sums.energy,
                    recall: Recall { mean: plan.recall / sums.rows as f64, min: plan.least },
                    visits,
                });
            }
        }
    }
    Ok(deviations)
}

fn check_plans<T: Element>(
    q: Rows<'_, f32>,
    k: Rows<'_, T>,
    heads: &[Plan<'_>],
    kernel: Kernel,
    options: &Options<'_>,
) -> Result<(), Error> {
    // An index has nothing to validate as a pattern; dense stands in for it.
    let patterns: Vec<Pattern> = heads
        .iter()
        .map(|plan| match plan {
            Plan::Pattern(pattern) => *pattern,
            Plan::Index(_) => Pattern::Dense,
        })
        .collect();
    check(q, k, &patterns, options)?;
    for (head, plan) in heads.iter().enumerate() {
        let Plan::Index(index) = plan else { continue };
        let (rows, start) = (q.rows(), k.rows() - q.rows());
        if (index.rows(), index.start(), index.shape()) != (rows, start, kernel.tile()) {
            return Err(Error::Shape(format!(
                "the index of head {head} is of {} rows from position {} in tiles of {:?}; {rows} from {start} in tiles of {:?} are needed",
                index.rows(),
                index.start(),
                index.shape(),
                kernel.tile()
            )));
        }
    }
    Ok(())
}

/// `count` of `all` tiles, ascending and evenly spread, the last one among them.
fn sampled_tiles(all: usize, count: usize) -> Vec<usize> {
    let count = count.clamp(1, all);
    (1..=count).map(|i| i * all / count - 1).collect()
}

/// Sums of one plan over rows.
#[derive(Debug, Clone, Copy)]
struct PlanSums {
    error: f64,
    recall: f64,
    least: f64,
}

/// Sums over the rows of some query tiles.
struct TileSums {
    rows: usize,
    energy: f64,
    plans: Vec<PlanSums>,
}

impl TileSums {
    fn merge(mut self, other: Self) -> Self {
        self.rows += other.rows;
        self.energy += other.energy;
        for (into, from) in self.plans.iter_mut().zip(other.plans) {
            into.error += from.error;
            into.recall += from.recall;
            into.least = into.least.min(from.least);
        }
        self
    }
}

/// Buffers of a thread.
struct Scratch {
    shape: TileShape,
    panel: Panel,
    columns: Vec<usize>,
    /// Output of the rows of a tile, dense and under a plan.
    dense: Vec<f32>,
    sparse: Vec<f32>,
}

impl Scratch {
    fn new<T: Element>(call: &Call<'_, T>, shape: TileShape) -> Self {
        let dim = call.q.dim();
        Self {
            shape,
            panel: Panel::new(call.isa, shape.queries, dim).with_window(call.window),
            columns: vec![],
            dense: vec![0.0; shape.queries * dim],
            sparse: vec![0.0; shape.queries * dim],
        }
    }

    fn compare<T: Element>(
        &mut self,
        call: &Call<'_, T>,
        indexes: &[SparseIndex],
        head: usize,
        tile: usize,
    ) -> TileSums {
        let (q, dim) = (call.q, call.q.dim());
        let start = call.cache.k.rows() - q.rows();
        let dense = estimate::dense(start, q.rows(), call.window, self.shape);
        let lanes = dense.positions(tile).len();
        let same = PlanSums { error: 0.0, recall: lanes as f64, least: 1.0 };
        let mut sums = TileSums { rows: lanes, energy: 0.0, plans: vec![same; indexes.len()] };
        if call.stopped() {
            return sums;
        }
        attend_tile(call, &mut self.panel, &mut self.columns, &dense, None, tile, head);
        let lse: Vec<f32> = (0..lanes).map(|lane| self.panel.lse(lane)).collect();
        take_output(&self.panel, &mut self.dense, lanes, dim);
        sums.energy = self.dense[..lanes * dim].iter().map(|&x| x as f64 * x as f64).sum();
        for (index, sums) in indexes.iter().zip(&mut sums.plans) {
            // Nothing to compute, nothing to lose.
            if index.is_dense(tile) {
                continue;
            }
            attend_tile(call, &mut self.panel, &mut self.columns, index, None, tile, head);
            let recalls = (0..lanes).map(|lane| (self.panel.lse(lane) as f64 - lse[lane] as f64).exp());
            (sums.recall, sums.least) = recalls.fold((0.0, f64::INFINITY), |(sum, least), r| (sum + r, least.min(r)));
            take_output(&self.panel, &mut self.sparse, lanes, dim);
            let pairs = self.dense[..lanes * dim].iter().zip(&self.sparse);
            sums.error = pairs.map(|(&a, &b)| (a as f64 - b as f64).powi(2)).sum();
        }
        sums
    }
}

/// Copies the first `lanes` rows of a panel's output.
fn take_output(panel: &Panel, to: &mut [f32], lanes: usize, dim: usize) {
    to.chunks_exact_mut(dim).take(lanes).enumerate().for_each(|(lane, row)| panel.write_output(lane, row));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sampled_tiles_end_at_the_last() {
        assert_eq!(sampled_tiles(1, 64), [0]);
        assert_eq!(sampled_tiles(10, 2), [4, 9]);
        assert_eq!(sampled_tiles(3, 64), [0, 1, 2]);
    }
}

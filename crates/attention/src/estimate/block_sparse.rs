//! Block-sparse: for every query tile the key tiles of largest mean-pooled score (MInference, algorithm 3).
//!
//! Unlike the original, the query tile's own key tile and the first tile are always kept: a row never loses its own position. How many are chosen
//! is given, or follows from the scores: as many as hold a share of the pooled attention.

use crate::cpu::cache::{Cache, Keys};
use crate::cpu::panel::{KEYS, Panel};
use crate::cpu::{Isa, TILE};
use crate::index::{BlockLists, SparseIndex, TileShape};
use crate::{Element, Rows};

/// How many key tiles a query tile gets.
#[derive(Debug, Clone, Copy)]
pub(super) enum Blocks {
    /// So many.
    Count(usize),
    /// Enough for a share of the softmax of the pooled scores, which are multiplied by `scale`: at least and at most so many.
    Share { least: usize, most: usize, share: f64, scale: f64 },
}

/// Chooses key tiles per query tile of a head, of those that a sliding window leaves.
pub(super) fn choose<T: Element>(
    isa: Isa,
    q: Rows<'_, f32>,
    k: Rows<'_, T>,
    head: usize,
    budget: Blocks,
    window: Option<usize>,
    shape: TileShape,
) -> SparseIndex {
    let (rows, start, dim) = (q.rows(), k.rows() - q.rows(), q.dim());
    let index = SparseIndex::dense(start, rows, shape);
    let kv_head = head / (q.heads() / k.heads());
    let pooled_q = pool(rows, shape.queries, dim, |row, to| to.copy_from_slice(q.row(row, head)));
    let pooled_k = pool(k.rows(), shape.keys, dim, |row, to| T::widen(k.row(row, kv_head), to));
    let key_tiles = k.rows().div_ceil(shape.keys);
    let keys = Rows::contiguous(&pooled_k, key_tiles, 1, dim).expect("the pooled keys fill their shape");
    let keys = Cache::unpacked(keys, keys);

    let mut lists = BlockLists { begin: vec![0], tiles: vec![] };
    // One score in thousands of the attention's own, and a share feels their rounding.
    let mut panel = Panel::new(isa.in_f32(), TILE.queries, dim);
    let width = panel.width();
    let mut scores = vec![0f32; width * key_tiles];
    for first_tile in (0..index.query_tiles()).step_by(width) {
        let lanes = width.min(index.query_tiles() - first_tile);
        // The scale does not change which scores are largest.
        panel.set_queries((first_tile..first_tile + lanes).map(|t| (t, &pooled_q[t * dim..(t + 1) * dim])), 1.0);
        for base in (0..key_tiles).step_by(KEYS) {
            panel.score(&keys, 0, &Keys::Run(base..(base + KEYS).min(key_tiles)), None);
            for (i, row) in panel.scores().chunks_exact(width).enumerate() {
                for (lane, &score) in row[..lanes].iter().enumerate() {
                    scores[lane * key_tiles + base + i] = score;
                }
            }
        }
        for lane in 0..lanes {
            let positions = index.positions(first_tile + lane);
            let own = (positions.start / shape.keys) as u32;
            let last = ((positions.end - 1) / shape.keys) as u32;
            let scores = &scores[lane * key_tiles..(lane + 1) * key_tiles];
            let key = |b: u32| if b == 0 || b >= own { f32::INFINITY } else { scores[b as usize] };
            // The first that a sliding window leaves the tile's first row.
            let seen = window.map_or(0, |window| ((positions.start + 1).saturating_sub(window) / shape.keys) as u32);
            let mut order: Vec<u32> = (seen..=last).collect();
            // A query tile that straddles two key tiles, and the first, are kept whatever the budget.
            let first = usize::from(own > 0 && seen == 0);
            let forced = (last - own + 1) as usize + first;
            let by_score = |&a: &u32, &b: &u32| key(b).total_cmp(&key(a)).then(a.cmp(&b));
            let count = match budget {
                Blocks::Count(blocks) => blocks,
                Blocks::Share { least, most, share, scale } => {
                    order.sort_unstable_by(by_score);
                    let (all, kept) = (&scores[seen as usize..=own as usize], [scores[own as usize], scores[0]]);
                    let others = order[forced..].iter().map(|&block| scores[block as usize]);
                    (forced + holding(share, scale, all, &kept[..=first], others)).clamp(least, most)
                }
            };
            let count = count.max(forced);
            if count < order.len() {
                order.select_nth_unstable_by(count, by_score);
                order.truncate(count);
            }
            order.sort_unstable();
            lists.tiles.extend(order);
            lists.begin.push(lists.tiles.len());
        }
    }
    SparseIndex::from_blocks(start, rows, shape, lists)
}

/// How many key tiles of the scores `others`, which descend, hold `share` of the softmax of `all` scores together with those of the scores `kept`. Tiles
/// of one score are taken together.
fn holding(share: f64, scale: f64, all: &[f32], kept: &[f32], others: impl Iterator<Item = f32>) -> usize {
    let top = all.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    // Scores are in base 2, as the panel takes them.
    let weight = |score: f32| (f64::from(score - top) * scale).exp2();
    let sum = |scores: &[f32]| scores.iter().map(|&score| weight(score)).sum::<f64>();
    let mut missing = share * sum(all) - sum(kept);
    let mut last = None;
    others
        .take_while(|&score| {
            let taken = missing > 0.0 || last == Some(score);
            missing -= weight(score);
            last = Some(score);
            taken
        })
        .count()
}

/// Means of runs of `run` rows.
fn pool(rows: usize, run: usize, dim: usize, read: impl Fn(usize, &mut [f32])) -> Vec<f32> {
    let mut pooled = vec![0f32; rows.div_ceil(run) * dim];
    let mut row_values = vec![0f32; dim];
    for (first, mean) in (0..rows).step_by(run).zip(pooled.chunks_exact_mut(dim)) {
        let end = (first + run).min(rows);
        for row in first..end {
            read(row, &mut row_values);
            mean.iter_mut().zip(&row_values).for_each(|(m, x)| *m += x);
        }
        mean.iter_mut().for_each(|m| *m /= (end - first) as f32);
    }
    pooled
}

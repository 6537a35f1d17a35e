//! Attention of one new token over the whole cache: split over keys, the query heads of a group side by side in the lanes.

use rayon::prelude::*;

use super::Isa;
use super::cache::{Cache, Keys};
use super::panel::{KEYS, Panel};
use crate::{Element, Rows};

/// Keys of a split: long enough to amortise the merge, short enough to give many threads work.
const SPLIT: usize = 2048;

/// `q` and `out` are `[query heads][dim]`.
pub(crate) fn attend<T: Element>(isa: Isa, q: &[f32], k: Rows<'_, T>, v: Rows<'_, T>, scale: f32, out: &mut [f32]) {
    let (dim, len) = (k.dim(), k.rows());
    let group = q.len() / dim / k.heads();
    let splits = len.div_ceil(SPLIT);
    let cache = Cache::unpacked(k, v);
    let tasks: Vec<(usize, usize)> = (0..k.heads()).flat_map(|h| (0..splits).map(move |s| (h, s))).collect();
    // Per (kv head, split): outputs and log-sum-exps of the group's heads.
    let parts: Vec<(Vec<f32>, Vec<f32>)> = tasks
        .par_iter()
        .map_init(
            || Panel::new(isa, group, dim),
            |panel, &(kv_head, split)| {
                let heads = &q[kv_head * group * dim..(kv_head + 1) * group * dim];
                panel.set_queries(heads.chunks_exact(dim).map(|row| (len - 1, row)), scale);
                let end = ((split + 1) * SPLIT).min(len);
                for first in (split * SPLIT..end).step_by(KEYS) {
                    panel.step(&cache, kv_head, &Keys::Run(first..(first + KEYS).min(end)), None);
                }
                let mut o = vec![0.0; group * dim];
                o.chunks_exact_mut(dim).enumerate().for_each(|(lane, o)| panel.write_output(lane, o));
                (o, (0..group).map(|lane| panel.lse(lane)).collect())
            },
        )
        .collect();
    // Splits merge by their share of the whole sum.
    for (head, out) in out.chunks_exact_mut(dim).enumerate() {
        let (kv_head, lane) = (head / group, head % group);
        let parts = &parts[kv_head * splits..(kv_head + 1) * splits];
        let max = parts.iter().map(|(_, lse)| lse[lane]).fold(f32::NEG_INFINITY, f32::max);
        let weights: Vec<f32> = parts.iter().map(|(_, lse)| (lse[lane] - max).exp()).collect();
        let total: f32 = weights.iter().sum();
        out.fill(0.0);
        for ((o, _), weight) in parts.iter().zip(&weights) {
            for (to, &x) in out.iter_mut().zip(&o[lane * dim..(lane + 1) * dim]) {
                *to += x * weight / total;
            }
        }
    }
}

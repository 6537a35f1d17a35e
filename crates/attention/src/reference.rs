//! The oracle: attention in f64, one row and one key at a time, from an explicit mask. Slow and plain on purpose; every kernel is
//! tested against it.

use crate::{Element, Rows};

/// Attention of one query row over the keys for which `visible` holds.
///
/// Returns the output (`v.dim()` elements) and the natural log-sum-exp of the scaled scores. A row that sees no key gets zeros and
/// negative infinity.
pub fn attend_row<T: Element>(
    q: &[f32],
    k: Rows<'_, T>,
    v: Rows<'_, T>,
    kv_head: usize,
    scale: f64,
    visible: impl Fn(usize) -> bool,
) -> (Vec<f64>, f64) {
    let scores: Vec<f64> = (0..k.rows())
        .map(|key| {
            if !visible(key) {
                return f64::NEG_INFINITY;
            }
            let row = k.row(key, kv_head);
            scale * q.iter().zip(row).map(|(&a, &b)| a as f64 * b.to_f32() as f64).sum::<f64>()
        })
        .collect();
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut out = vec![0.0; v.dim()];
    if max == f64::NEG_INFINITY {
        return (out, max);
    }
    let mut sum = 0.0;
    for (key, score) in scores.iter().enumerate() {
        let weight = (score - max).exp();
        sum += weight;
        for (o, &x) in out.iter_mut().zip(v.row(key, kv_head)) {
            *o += weight * x.to_f32() as f64;
        }
    }
    out.iter_mut().for_each(|o| *o /= sum);
    (out, max + sum.ln())
}

/// Softmax probabilities of the last `last` query rows over all keys, in f64, causal: `[last][kv_len]`, zero right of the diagonal.
/// MInference's estimate starts from it (paper, section 3.3; equation 2).
pub fn last_query_probabilities<T: Element>(
    q: Rows<'_, f32>,
    k: Rows<'_, T>,
    head: usize,
    kv_head: usize,
    scale: f64,
    last: usize,
) -> Vec<Vec<f64>> {
    let first = q.rows() - last;
    let start = k.rows() - q.rows();
    (first..q.rows())
        .map(|row| {
            let mut scores: Vec<f64> = (0..k.rows())
                .map(|key| {
                    if key > start + row {
                        return f64::NEG_INFINITY;
                    }
                    scale
                        * q.row(row, head)
                            .iter()
                            .zip(k.row(key, kv_head))
                            .map(|(&a, &b)| a as f64 * b.to_f32() as f64)
                            .sum::<f64>()
                })
                .collect();
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
            scores.iter_mut().for_each(|s| *s = (*s - max).exp() / sum);
            scores
        })
        .collect()
}

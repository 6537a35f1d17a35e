//! The entry points: attention of a prompt (or a chunk of it), and of one decoded token.

use std::sync::atomic::AtomicBool;
use std::time::Instant;

use rayon::prelude::*;

use crate::cost;
use crate::cpu::{self, Isa, TILE};
use crate::estimate::estimate;
use crate::index::SparseIndex;
use crate::{Element, Error, Pattern, Rows, RowsMut};

/// Options of [`prefill`].
#[derive(Debug, Clone, Copy)]
pub struct Options<'a> {
    /// Softmax scale; `None` = 1/sqrt(dim).
    pub scale: Option<f32>,
    /// Run a head dense where its pattern, index building included, would cost no less.
    pub dense_fallback: bool,
    /// Measure recall on sampled rows.
    pub audit: Option<Audit>,
    /// Set to stop early; the call then returns [`Error::Cancelled`] and what it wrote is incomplete.
    pub cancel: Option<&'a AtomicBool>,
    /// Instruction set to use; `None` = the best there is.
    pub isa: Option<Isa>,
}

impl Default for Options<'_> {
    fn default() -> Self {
        Options { scale: None, dense_fallback: true, audit: None, cancel: None, isa: None }
    }
}

/// How many query rows a recall audit samples per head.
#[derive(Debug, Clone, Copy)]
pub struct Audit {
    /// Rows per head, evenly spread; the last row is always one of them.
    pub rows: usize,
}

/// Share of attention mass kept, `exp(lse_sparse - lse_dense)`, over the audited rows of a head.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Recall {
    /// Mean.
    pub mean: f64,
    /// Least.
    pub min: f64,
}

/// What one query head did.
#[derive(Debug, Clone, PartialEq)]
pub struct HeadReport {
    /// Pattern that ran (dense after a fallback).
    pub pattern: Pattern,
    /// Key tiles visited, summed over query tiles.
    pub tiles: u64,
    /// Key tiles dense causal attention visits.
    pub dense_tiles: u64,
    /// Recall, if an audit was asked for.
    pub recall: Option<Recall>,
}

/// What a call of [`prefill`] did.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// One entry a query head.
    pub heads: Vec<HeadReport>,
    /// Seconds spent estimating and building indexes, wall clock.
    pub index_seconds: f64,
    /// Seconds in the attention kernel, wall clock.
    pub attention_seconds: f64,
}

/// Builds the sparse index of every query head: what [`prefill`] visits.
///
/// Shapes as for [`prefill`].
///
/// # Errors
/// As for [`prefill`].
pub fn build_indexes<T: Element>(
    q: Rows<'_, f32>,
    k: Rows<'_, T>,
    patterns: &[Pattern],
    options: &Options<'_>,
) -> Result<Vec<SparseIndex>, Error> {
    let (plan, _) = plan(q, k, patterns, options)?;
    Ok(plan.into_iter().map(|(_, index)| index).collect())
}

/// Causal attention of the last `q.rows()` positions of a sequence of `k.rows()` positions.
///
/// Shapes: `q` and `out` `[n, query heads, dim]`, `k` and `v` `[kv_len, kv heads, dim]` with `kv_len >= n`; query row `i` stands
/// at position `kv_len - n + i`. Query heads share key/value heads in groups (GQA). `patterns` has one entry a query head. `lse`
/// (natural log-sum-exp), if given, is `[query heads][n]`.
///
/// # Errors
/// [`Error::Shape`] when shapes do not fit together, [`Error::Pattern`] for a pattern that makes no sense, [`Error::Cancelled`] when
/// `options.cancel` was set.
pub fn prefill<T: Element>(
    q: Rows<'_, f32>,
    k: Rows<'_, T>,
    v: Rows<'_, T>,
    patterns: &[Pattern],
    options: &Options<'_>,
    out: RowsMut<'_, f32>,
    lse: Option<&mut [f32]>,
) -> Result<Report, Error> {
    check_values(k, v)?;
    if (out.rows, out.heads, out.dim) != (q.rows(), q.heads(), q.dim()) {
        return Err(Error::Shape(format!(
            "the output is {} rows x {} heads x {}, the queries are {} x {} x {}",
            out.rows,
            out.heads,
            out.dim,
            q.rows(),
            q.heads(),
            q.dim()
        )));
    }
    let wanted = q.heads() * q.rows();
    if let Some(lse) = lse.as_ref().filter(|lse| lse.len() != wanted) {
        return Err(Error::Shape(format!("the log-sum-exp has {} elements, {wanted} are needed", lse.len())));
    }
    let (plan, index_seconds) = plan(q, k, patterns, options)?;
    let (ran, indexes): (Vec<Pattern>, Vec<SparseIndex>) = plan.into_iter().unzip();

    let began = Instant::now();
    let mut own_lse = vec![];
    let lse = lse.unwrap_or_else(|| {
        own_lse.resize(wanted, 0.0);
        &mut own_lse
    });
    let isa = options.isa.unwrap_or_else(Isa::detect);
    let scale = scale(options, q.dim());
    cpu::prefill::attend(isa, q, k, v, &indexes, scale, out, lse, options.cancel)?;
    let attention_seconds = began.elapsed().as_secs_f64();

    let heads = (0..q.heads())
        .into_par_iter()
        .map(|head| HeadReport {
            pattern: ran[head],
            tiles: indexes[head].total_tiles(),
            dense_tiles: indexes[head].total_dense_tiles(),
            recall: options.audit.map(|audit| {
                let rows = sampled_rows(q.rows(), audit.rows);
                let dense = cpu::prefill::dense_lse(isa, q, k, head, scale, &rows);
                recall(rows.iter().map(|&r| lse[head * q.rows() + r]).zip(dense))
            }),
        })
        .collect();
    Ok(Report { heads, index_seconds, attention_seconds })
}

/// Attention of one new token over the whole cache: `q` and `out` are `[query heads][dim]`, `k` and `v` `[kv_len, kv heads, dim]`.
///
/// # Errors
/// [`Error::Shape`] when shapes do not fit together.
pub fn decode<T: Element>(
    q: &[f32],
    k: Rows<'_, T>,
    v: Rows<'_, T>,
    scale: Option<f32>,
    out: &mut [f32],
) -> Result<(), Error> {
    check_values(k, v)?;
    let group = k.heads() * k.dim();
    if q.is_empty() || !q.len().is_multiple_of(group) || out.len() != q.len() {
        return Err(Error::Shape(format!(
            "a query of {} elements and an output of {} do not fit {} key heads of {}",
            q.len(),
            out.len(),
            k.heads(),
            k.dim()
        )));
    }
    let scale = scale.unwrap_or(1.0 / (k.dim() as f32).sqrt());
    cpu::decode::attend(Isa::detect(), q, k, v, scale, out);
    Ok(())
}

fn scale(options: &Options<'_>, dim: usize) -> f32 {
    options.scale.unwrap_or(1.0 / (dim as f32).sqrt())
}

fn check_values<T>(k: Rows<'_, T>, v: Rows<'_, T>) -> Result<(), Error> {
    if (k.rows(), k.heads(), k.dim()) == (v.rows(), v.heads(), v.dim()) {
        return Ok(());
    }
    Err(Error::Shape(format!(
        "keys are {} rows x {} heads x {}, values are {} x {} x {}",
        k.rows(),
        k.heads(),
        k.dim(),
        v.rows(),
        v.heads(),
        v.dim()
    )))
}

/// Pattern that runs and index of every query head, and the seconds it took.
fn plan<T: Element>(
    q: Rows<'_, f32>,
    k: Rows<'_, T>,
    patterns: &[Pattern],
    options: &Options<'_>,
) -> Result<(Vec<(Pattern, SparseIndex)>, f64), Error> {
    if q.dim() != k.dim() || !q.heads().is_multiple_of(k.heads()) || q.rows() > k.rows() {
        return Err(Error::Shape(format!(
            "queries of {} rows x {} heads x {} do not fit keys of {} rows x {} heads x {}: head dims must be equal, query heads a \
             multiple of key heads, and no more query rows than key rows",
            q.rows(),
            q.heads(),
            q.dim(),
            k.rows(),
            k.heads(),
            k.dim()
        )));
    }
    if patterns.len() != q.heads() {
        return Err(Error::Shape(format!("{} patterns for {} query heads", patterns.len(), q.heads())));
    }
    patterns.iter().try_for_each(Pattern::validate)?;
    let began = Instant::now();
    let isa = options.isa.unwrap_or_else(Isa::detect);
    let scale = scale(options, q.dim());
    let dense = SparseIndex::dense(k.rows() - q.rows(), q.rows(), TILE);
    let plan = (0..q.heads())
        .into_par_iter()
        .map(|head| {
            let pattern = patterns[head];
            if pattern == Pattern::Dense || (options.dense_fallback && !cost::can_win(pattern, &dense)) {
                return (Pattern::Dense, dense.clone());
            }
            let index = estimate(isa, pattern, q, k, head, scale);
            if options.dense_fallback && !cost::wins(&index, &dense) {
                (Pattern::Dense, dense.clone())
            } else {
                (pattern, index)
            }
        })
        .collect();
    Ok((plan, began.elapsed().as_secs_f64()))
}

/// `count` rows of `rows`, evenly spread, ascending, the last one among them.
fn sampled_rows(rows: usize, count: usize) -> Vec<usize> {
    let count = count.clamp(1, rows);
    (1..=count).map(|i| (i as u128 * rows as u128 / count as u128) as usize - 1).collect()
}

fn recall(pairs: impl Iterator<Item = (f32, f32)>) -> Recall {
    let each: Vec<f64> = pairs.map(|(sparse, dense)| (sparse as f64 - dense as f64).exp()).collect();
    Recall {
        mean: each.iter().sum::<f64>() / each.len() as f64,
        min: each.iter().copied().fold(f64::INFINITY, f64::min),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn audited_rows_end_at_the_last() {
        assert_eq!(sampled_rows(1, 8), [0]);
        assert_eq!(sampled_rows(10, 2), [4, 9]);
        assert_eq!(sampled_rows(5, 100), [0, 1, 2, 3, 4]);
    }
}

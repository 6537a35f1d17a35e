//! The entry points: attention of a prompt (or a chunk of it), and of one decoded token.

use std::ops::Range;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use rayon::prelude::*;

use crate::cost;
use crate::cpu::cache::Cache;
use crate::cpu::prefill::Call;
use crate::cpu::{self, Isa, TILE};
use crate::estimate::{self, Estimator};
use crate::index::{SparseIndex, TileShape};
use crate::{Element, Error, FixedHead, Heads, Pattern, Rows, RowsMut};

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
    /// Sliding window of the model: a query sees only this many nearest keys, its own among them, whatever the pattern (Mistral 7B
    /// v0.1, Phi-3-mini-4k); `None` = all.
    pub window: Option<usize>,
    /// Instruction set to use; `None` = the fastest that computes in f32 ([`Isa::detect`]). See [`Isa::bf16`] for a faster one.
    pub isa: Option<Isa>,
}

impl Options<'_> {
    pub(crate) fn isa(&self) -> Isa {
        self.isa.unwrap_or_else(Isa::detect)
    }
}

impl Default for Options<'_> {
    fn default() -> Self {
        Options { scale: None, dense_fallback: true, audit: None, cancel: None, window: None, isa: None }
    }
}

/// How many query rows a recall audit samples per head.
#[derive(Debug, Clone, Copy)]
pub struct Audit {
    /// Rows per head, evenly spread; the last row is always one of them.
    pub rows: usize,
}

impl Audit {
    /// Recall of a head, from the log-sum-exps of all its rows: over the keys kept, and over all.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn recall(&self, kept: &[f32], all: &[f32]) -> Recall {
        assert_eq!(kept.len(), all.len());
        Recall::over(sampled_rows(kept.len(), self.rows).into_iter().map(|row| (kept[row], all[row])))
    }
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
    Ok(plan_in_tiles(q, k, patterns, TILE, options)?.into_iter().map(|(_, index)| index).collect())
}

/// As [`build_indexes`], in the tiles of another kernel than the CPU's, and with the pattern that runs: dense after a fallback.
///
/// # Errors
/// As for [`prefill`].
pub fn plan_in_tiles<T: Element>(
    q: Rows<'_, f32>,
    k: Rows<'_, T>,
    patterns: &[Pattern],
    shape: TileShape,
    options: &Options<'_>,
) -> Result<Vec<(Pattern, SparseIndex)>, Error> {
    check(q, k, patterns, options)?;
    let call = Call::new(q, Cache::pack(options.isa(), k, k, 0..k.heads()), options);
    Ok(plan(&call, Heads::Patterns(patterns), 0..q.heads(), shape, options))
}

/// The index of every query head for a whole prompt of `rows` tokens, from those of another prompt, and the pattern that runs: dense after a
/// fallback, which is as if the index came from the prompt itself.
///
/// # Errors
/// [`Error::Shape`] when the indexes are in tiles of another size than `shape`.
pub fn plan_fixed(
    heads: &[FixedHead],
    rows: usize,
    shape: TileShape,
    options: &Options<'_>,
) -> Result<Vec<(Pattern, SparseIndex)>, Error> {
    Heads::Fixed(heads).check(0, shape)?;
    let dense = estimate::dense(0, rows, options.window, shape);
    let index = |head: &FixedHead| head.index(rows, options.window);
    Ok(heads.par_iter().map(|head| or_dense(head.pattern(), &dense, options, || index(head))).collect())
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
    prefill_heads(q, k, v, Heads::Patterns(patterns), options, out, lse)
}

/// As [`prefill`], of heads that may have their indexes from another prompt.
///
/// # Errors
/// As for [`prefill`], and [`Error::Shape`] when such indexes are not for a whole prompt or not in [`cpu::TILE`]s.
pub fn prefill_heads<T: Element>(
    q: Rows<'_, f32>,
    k: Rows<'_, T>,
    v: Rows<'_, T>,
    of_heads: Heads<'_>,
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
    check_shapes(q, k, of_heads.len(), options)?;
    of_heads.check(k.rows() - q.rows(), TILE)?;
    let mut out = out;
    let mut own_lse = vec![];
    let lse = lse.unwrap_or_else(|| {
        own_lse.resize(wanted, 0.0);
        &mut own_lse
    });

    // Key/value heads are taken a few at a time, enough to give every thread a query head: packed forms stay small and warm.
    let group = q.heads() / k.heads();
    let batch = rayon::current_num_threads().div_ceil(group).min(k.heads());
    let mut report = Report { heads: vec![], index_seconds: 0.0, attention_seconds: 0.0 };
    for kv_heads in (0..k.heads()).step_by(batch).map(|h| h..(h + batch).min(k.heads())) {
        let began = Instant::now();
        let heads = kv_heads.start * group..kv_heads.end * group;
        let first = heads.start;
        let call = Call::new(q, Cache::pack(options.isa(), k, v, kv_heads), options);
        let (ran, indexes): (Vec<_>, Vec<_>) = plan(&call, of_heads, heads.clone(), TILE, options).into_iter().unzip();
        report.index_seconds += began.elapsed().as_secs_f64();

        let began = Instant::now();
        cpu::prefill::attend(&call, first, &indexes, &mut out, lse)?;
        report.attention_seconds += began.elapsed().as_secs_f64();

        report.heads.par_extend(heads.into_par_iter().map(|head| {
            let i = head - first;
            HeadReport {
                pattern: ran[i],
                tiles: indexes[i].total_tiles(),
                dense_tiles: indexes[i].total_dense_tiles(),
                recall: options.audit.map(|audit| recall(&call, head, audit, lse)),
            }
        }));
    }
    Ok(report)
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

pub(crate) fn check_values<T>(k: Rows<'_, T>, v: Rows<'_, T>) -> Result<(), Error> {
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

pub(crate) fn check<T>(
    q: Rows<'_, f32>,
    k: Rows<'_, T>,
    patterns: &[Pattern],
    options: &Options<'_>,
) -> Result<(), Error> {
    check_shapes(q, k, patterns.len(), options)?;
    patterns.iter().try_for_each(Pattern::validate)
}

/// Checks everything but the patterns, of which there are `heads`.
fn check_shapes<T>(q: Rows<'_, f32>, k: Rows<'_, T>, heads: usize, options: &Options<'_>) -> Result<(), Error> {
    if options.window == Some(0) {
        return Err(Error::Shape("a sliding window of 0 keys: a query sees at least its own".into()));
    }
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
    if heads != q.heads() {
        return Err(Error::Shape(format!("{heads} patterns for {} query heads", q.heads())));
    }
    Ok(())
}

impl<'a, T: Element> Call<'a, T> {
    pub(crate) fn new(q: Rows<'a, f32>, cache: Cache<'a, T>, options: &Options<'a>) -> Self {
        let scale = options.scale.unwrap_or(1.0 / (q.dim() as f32).sqrt());
        Call { isa: options.isa(), q, scale, cache, cancel: options.cancel, window: options.window }
    }
}

/// Pattern that runs and index of each of the query heads `heads`.
fn plan<T: Element>(
    call: &Call<'_, T>,
    of_heads: Heads<'_>,
    heads: Range<usize>,
    shape: TileShape,
    options: &Options<'_>,
) -> Vec<(Pattern, SparseIndex)> {
    let (q, k) = (call.q, call.cache.k);
    let dense = estimate::dense(k.rows() - q.rows(), q.rows(), options.window, shape);
    let index = |head: usize| match of_heads {
        Heads::Patterns(patterns) => Estimator::new(call, head).index(patterns[head], shape),
        Heads::Fixed(fixed) => fixed[head].index(q.rows(), options.window),
    };
    heads.into_par_iter().map(|head| or_dense(of_heads.pattern(head), &dense, options, || index(head))).collect()
}

/// A pattern and its index, or dense attention where that is asked for and costs no more.
fn or_dense(
    pattern: Pattern,
    dense: &SparseIndex,
    options: &Options<'_>,
    index: impl FnOnce() -> SparseIndex,
) -> (Pattern, SparseIndex) {
    if pattern == Pattern::Dense || (options.dense_fallback && !cost::can_win(pattern, dense)) {
        return (Pattern::Dense, dense.clone());
    }
    let index = index();
    if options.dense_fallback && !cost::wins(&index, dense) {
        (Pattern::Dense, dense.clone())
    } else {
        (pattern, index)
    }
}

/// `count` rows of `rows`, evenly spread, ascending, the last one among them.
fn sampled_rows(rows: usize, count: usize) -> Vec<usize> {
    let count = count.clamp(1, rows);
    (1..=count).map(|i| (i as u128 * rows as u128 / count as u128) as usize - 1).collect()
}

/// Recall of the audited rows of a head, whose log-sum-exp is in `lse`.
pub(crate) fn recall<T: Element>(call: &Call<'_, T>, head: usize, audit: Audit, lse: &[f32]) -> Recall {
    let rows = sampled_rows(call.q.rows(), audit.rows);
    let dense = cpu::prefill::dense_lse(call, head, &rows);
    Recall::over(rows.iter().map(|&row| lse[head * call.q.rows() + row]).zip(dense))
}

impl Recall {
    /// Of rows' log-sum-exps: over the keys kept, and over all.
    fn over(rows: impl Iterator<Item = (f32, f32)>) -> Self {
        let each: Vec<f64> = rows.map(|(kept, all)| (kept as f64 - all as f64).exp()).collect();
        Recall {
            mean: each.iter().sum::<f64>() / each.len() as f64,
            min: each.iter().copied().fold(f64::INFINITY, f64::min),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recall_is_the_share_of_the_audited_rows() {
        let (kept, all) = ([0.5f32.ln(), 9.0, 0.25f32.ln()], [0.0, 0.0, 0.0]);
        // One sample is the last row.
        let recall = Audit { rows: 1 }.recall(&kept, &all);
        assert!((recall.mean - 0.25).abs() < 1e-6 && (recall.min - 0.25).abs() < 1e-6);
        let recall = Audit { rows: 2 }.recall(&[0.5f32.ln(), 0.25f32.ln()], &[0.0, 0.0]);
        assert!((recall.mean - 0.375).abs() < 1e-6 && (recall.min - 0.25).abs() < 1e-6);
    }

    #[test]
    fn audited_rows_end_at_the_last() {
        assert_eq!(sampled_rows(1, 8), [0]);
        assert_eq!(sampled_rows(10, 2), [4, 9]);
        assert_eq!(sampled_rows(5, 100), [0, 1, 2, 3, 4]);
    }
}

//! The two entry points: attention of a prompt (or a chunk of it), and of one decoded token.

use std::sync::atomic::AtomicBool;

use crate::{Element, Error, Pattern, Rows, RowsMut};

/// Options of [`prefill`].
#[derive(Debug, Clone, Copy)]
pub struct Options<'a> {
    /// Softmax scale; `None` = 1/sqrt(dim).
    pub scale: Option<f32>,
    /// Use dense attention for a head whose sparse cost (index + tiles) would not be lower.
    pub dense_fallback: bool,
    /// Measure recall (the share of attention mass kept) on sampled rows.
    pub audit: Option<Audit>,
    /// Set to stop early; the call then returns [`Error::Cancelled`].
    pub cancel: Option<&'a AtomicBool>,
}

/// How many query rows a recall audit samples per head.
#[derive(Debug, Clone, Copy)]
pub struct Audit {
    /// Rows per head, evenly spread; the last row is always one of them.
    pub rows: usize,
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
    /// Mean and least recall over the audited rows.
    pub recall: Option<(f64, f64)>,
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

/// Causal attention of the last `q.rows()` positions of a sequence of `k.rows()` positions.
///
/// Shapes: `q` and `out` `[n, query heads, dim]`, `k` and `v` `[kv_len, kv heads, dim]` with `kv_len >= n`; query row `i` stands
/// at position `kv_len - n + i`. `patterns` has one entry a query head. `lse` (natural log-sum-exp), if given, is
/// `[query heads][n]`.
pub fn prefill<T: Element>(
    _q: Rows<'_, f32>,
    _k: Rows<'_, T>,
    _v: Rows<'_, T>,
    _patterns: &[Pattern],
    _options: &Options<'_>,
    _out: RowsMut<'_, f32>,
    _lse: Option<&mut [f32]>,
) -> Result<Report, Error> {
    todo!()
}

/// Attention of one new token over the whole cache: `q` and `out` are `[query heads * dim]`, `k` and `v` `[kv_len, kv heads, dim]`.
pub fn decode<T: Element>(
    _q: &[f32],
    _k: Rows<'_, T>,
    _v: Rows<'_, T>,
    _scale: Option<f32>,
    _out: &mut [f32],
) -> Result<(), Error> {
    todo!()
}

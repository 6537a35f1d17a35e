//! Attention of a prompt over the heads' sparse indexes.

use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;

use super::panel::{KEYS, Panel};
use super::{Isa, TILE};
use crate::index::SparseIndex;
use crate::{Element, Error, Rows, RowsMut};

/// A raw pointer that threads may share because they write disjoint places.
#[derive(Clone, Copy)]
struct Shared(*mut f32);
// SAFETY: every use writes the rows of one (query tile, head) task, and no two tasks share one.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    /// # Safety
    /// `at .. at + len` is inside the allocation and no other reference to it is alive.
    unsafe fn slice<'a>(self, at: usize, len: usize) -> &'a mut [f32] {
        // SAFETY: the caller's.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(at), len) }
    }
}

/// Computes output and log-sum-exp of every head over its index. `lse` is `[query heads][rows]`.
#[allow(clippy::too_many_arguments)]
pub(crate) fn attend<T: Element>(
    isa: Isa,
    q: Rows<'_, f32>,
    k: Rows<'_, T>,
    v: Rows<'_, T>,
    indexes: &[SparseIndex],
    scale: f32,
    out: RowsMut<'_, f32>,
    lse: &mut [f32],
    cancel: Option<&AtomicBool>,
) -> Result<(), Error> {
    let group = q.heads() / k.heads();
    let rows = q.rows();
    assert_eq!(lse.len(), q.heads() * rows);
    // The last query tile visits the most keys: it starts first, so that no thread is left alone with it at the end.
    let tiles = rows.div_ceil(TILE.queries);
    let tasks: Vec<(usize, usize)> = (0..tiles).rev().flat_map(|tile| (0..q.heads()).map(move |h| (h, tile))).collect();
    let (row_stride, head_stride, dim) = (out.row_stride, out.head_stride, out.dim);
    let out = Shared(out.data.as_mut_ptr());
    let lse = Shared(lse.as_mut_ptr());
    let stopped = || cancel.is_some_and(|c| c.load(Ordering::Relaxed));
    let scratch = || (Panel::new(isa, TILE.queries, q.dim()), Vec::new());
    tasks.par_iter().with_max_len(1).for_each_init(scratch, |(panel, columns), &(head, tile)| {
        if stopped() {
            return;
        }
        let index = &indexes[head];
        attend_tile(panel, columns, q, k, v, index, tile, head, head / group, scale);
        let first = tile * TILE.queries;
        for (lane, row) in (first..(first + TILE.queries).min(rows)).enumerate() {
            // SAFETY: row `row` of head `head` belongs to this task alone; `RowsMut` checked the bounds and that rows do not overlap.
            panel.write_output(lane, unsafe { out.slice(row * row_stride + head * head_stride, dim) });
            // SAFETY: `lse` holds `heads * rows` elements, this one belongs to this task alone.
            let lse = unsafe { lse.slice(head * rows + row, 1) };
            lse[0] = panel.lse(lane);
        }
    });
    if stopped() { Err(Error::Cancelled) } else { Ok(()) }
}

/// Leaves output and log-sum-exp of query tile `tile` in `panel`.
#[allow(clippy::too_many_arguments)]
fn attend_tile<T: Element>(
    panel: &mut Panel,
    columns: &mut Vec<usize>,
    q: Rows<'_, f32>,
    k: Rows<'_, T>,
    v: Rows<'_, T>,
    index: &SparseIndex,
    tile: usize,
    head: usize,
    kv_head: usize,
    scale: f32,
) {
    let positions = index.positions(tile);
    let m0 = positions.start;
    panel.set_queries(positions.map(|p| (p, q.row(p - index.start(), head))), scale);
    for span in index.spans(tile) {
        panel.load_keys(k, kv_head, span.clone());
        panel.load_values(v, kv_head, span.clone());
        panel.score((span.end > m0 + 1).then_some(span.start));
        panel.softmax();
        panel.accumulate();
    }
    columns.clear();
    index.live_columns(tile, columns);
    for keys in columns.chunks(KEYS) {
        panel.load_keys(k, kv_head, keys.iter().copied());
        panel.load_values(v, kv_head, keys.iter().copied());
        panel.score(None);
        panel.softmax();
        panel.accumulate();
    }
}

/// Log-sum-exp over all keys of the given query rows of a head (ascending): what dense attention would have summed.
pub(crate) fn dense_lse<T: Element>(
    isa: Isa,
    q: Rows<'_, f32>,
    k: Rows<'_, T>,
    head: usize,
    scale: f32,
    rows: &[usize],
) -> Vec<f32> {
    let start = k.rows() - q.rows();
    let kv_head = head / (q.heads() / k.heads());
    let mut all = Vec::with_capacity(rows.len());
    let mut panel = Panel::new(isa, TILE.queries, q.dim());
    for rows in rows.chunks(TILE.queries) {
        panel.set_queries(rows.iter().map(|&r| (start + r, q.row(r, head))), scale);
        let end = start + rows[rows.len() - 1] + 1;
        for first in (0..end).step_by(KEYS) {
            panel.load_keys(k, kv_head, first..(first + KEYS).min(end));
            panel.score(Some(first));
            panel.softmax();
        }
        all.extend((0..rows.len()).map(|lane| panel.lse(lane)));
    }
    all
}

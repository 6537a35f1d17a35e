//! Attention of a prompt over the heads' sparse indexes.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;

use super::cache::{Cache, Keys};
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

/// What all tasks of a call share.
pub(crate) struct Call<'a, T> {
    pub isa: Isa,
    pub q: Rows<'a, f32>,
    pub scale: f32,
    pub cache: Cache<'a, T>,
    pub cancel: Option<&'a AtomicBool>,
    /// Nearest keys that a row sees.
    pub window: Option<usize>,
}

impl<T> Call<'_, T> {
    /// Whether the caller asked to stop.
    pub fn stopped(&self) -> bool {
        self.cancel.is_some_and(|cancel| cancel.load(Ordering::Relaxed))
    }
}

/// Computes output and log-sum-exp of the query heads `first_head ..`, one an index. `lse` is `[query heads][rows]`.
pub(crate) fn attend<T: Element>(
    call: &Call<'_, T>,
    first_head: usize,
    indexes: &[SparseIndex],
    out: &mut RowsMut<'_, f32>,
    lse: &mut [f32],
) -> Result<(), Error> {
    let q = call.q;
    let rows = q.rows();
    assert_eq!(lse.len(), q.heads() * rows);
    // The last query tile visits the most keys: it starts first, so that no thread is left alone with it at the end.
    let tiles = rows.div_ceil(TILE.queries);
    let gathered: Vec<Option<Columns<T>>> =
        indexes.iter().enumerate().map(|(i, index)| Columns::gather(call, first_head + i, index)).collect();
    let gathered: Vec<Option<Cache<'_, T>>> =
        gathered.iter().map(|columns| columns.as_ref().map(|columns| columns.pack(call.isa))).collect();
    let tasks: Vec<(usize, usize)> =
        (0..tiles).rev().flat_map(|tile| (0..indexes.len()).map(move |i| (i, tile))).collect();
    let (row_stride, head_stride, dim) = (out.row_stride, out.head_stride, out.dim);
    let out = Shared(out.data.as_mut_ptr());
    let lse = Shared(lse.as_mut_ptr());
    let scratch = || (Panel::new(call.isa, TILE.queries, q.dim()).with_window(call.window), Vec::new());
    tasks.par_iter().with_max_len(1).for_each_init(scratch, |(panel, columns), &(i, tile)| {
        if call.stopped() {
            return;
        }
        let head = first_head + i;
        attend_tile(call, panel, columns, &indexes[i], gathered[i].as_ref(), tile, head);
        let first = tile * TILE.queries;
        for (lane, row) in (first..(first + TILE.queries).min(rows)).enumerate() {
            // SAFETY: row `row` of head `head` belongs to this task alone; `RowsMut` checked the bounds and that rows do not overlap.
            panel.write_output(lane, unsafe { out.slice(row * row_stride + head * head_stride, dim) });
            // SAFETY: `lse` holds `heads * rows` elements, this one belongs to this task alone.
            let lse = unsafe { lse.slice(head * rows + row, 1) };
            lse[0] = panel.lse(lane);
        }
    });
    if call.stopped() { Err(Error::Cancelled) } else { Ok(()) }
}

/// Keys and values of a head's columns, `[columns][dim]`: every query tile visits them, so they are gathered once.
struct Columns<T> {
    dim: usize,
    k: Vec<T>,
    v: Vec<T>,
}

impl<T: Element> Columns<T> {
    /// `None` where nothing is won: without columns, or where the instruction set reads keys as they are. Under a sliding window the rows of a
    /// tile see different columns, by position: those are gathered for every tile.
    fn gather(call: &Call<'_, T>, head: usize, index: &SparseIndex) -> Option<Self> {
        if index.columns().is_empty() || call.window.is_some() || !call.cache.is_packed() {
            return None;
        }
        let kv_head = head / (call.q.heads() / call.cache.k.heads());
        let gather =
            |rows: Rows<'_, T>| index.columns().iter().flat_map(|&key| rows.row(key, kv_head)).copied().collect();
        Some(Self { dim: call.q.dim(), k: gather(call.cache.k), v: gather(call.cache.v) })
    }

    fn pack(&self, isa: Isa) -> Cache<'_, T> {
        let rows =
            |data| Rows::contiguous(data, self.k.len() / self.dim, 1, self.dim).expect("columns fill their shape");
        Cache::pack(isa, rows(&self.k), rows(&self.v), 0..1)
    }
}

/// Leaves output and log-sum-exp of query tile `tile` in `panel`, which has a lane for each of its rows. `gathered` are the index's columns, if
/// they were gathered beforehand; the index is then in tiles of [`TILE`].
pub(crate) fn attend_tile<T: Element>(
    call: &Call<'_, T>,
    panel: &mut Panel,
    columns: &mut Vec<usize>,
    index: &SparseIndex,
    gathered: Option<&Cache<'_, T>>,
    tile: usize,
    head: usize,
) {
    let kv_head = head / (call.q.heads() / call.cache.k.heads());
    let positions = index.positions(tile);
    let m0 = positions.start;
    panel.set_queries(positions.map(|p| (p, call.q.row(p - index.start(), head))), call.scale);
    // Keys before this one are out of every row's window.
    let nearest = (m0 + 1).saturating_sub(call.window.unwrap_or(usize::MAX));
    // The tiles of another kernel are wider than a step.
    let steps = |span: Range<usize>| span.clone().step_by(KEYS).map(move |first| first..(first + KEYS).min(span.end));
    for keys in index.spans(tile).flat_map(steps).filter(|keys| keys.end > nearest) {
        let first = (keys.end > m0 + 1).then_some(keys.start);
        panel.step(&call.cache, kv_head, &Keys::Run(keys), first);
    }
    columns.clear();
    index.live_columns(tile, columns);
    if let Some(gathered) = gathered {
        let mut live = columns.iter().copied().peekable();
        for (step, all) in index.columns().chunks(KEYS).enumerate() {
            // Bit i: the query tile visits column i of the step. Both lists ascend.
            let bits = all.iter().enumerate().map(|(i, &key)| u64::from(live.next_if_eq(&key).is_some()) << i);
            let visible = bits.fold(0, |all, bit| all | bit);
            if visible != 0 {
                let keys = Keys::Run(step * KEYS..step * KEYS + all.len());
                panel.step_visible(gathered, 0, &keys, visible);
            }
            if live.peek().is_none() {
                break;
            }
        }
        return;
    }
    columns.retain(|&key| key >= nearest);
    for keys in columns.chunks(KEYS) {
        panel.step(&call.cache, kv_head, &Keys::List(keys), None);
    }
}

/// Log-sum-exp over all keys of the given query rows of a head (ascending): what dense attention would have summed.
pub(crate) fn dense_lse<T: Element>(call: &Call<'_, T>, head: usize, rows: &[usize]) -> Vec<f32> {
    let (q, k) = (call.q, call.cache.k);
    let start = k.rows() - q.rows();
    let kv_head = head / (q.heads() / k.heads());
    let mut all = Vec::with_capacity(rows.len());
    let mut panel = Panel::new(call.isa, TILE.queries, q.dim()).with_window(call.window);
    for rows in rows.chunks(TILE.queries) {
        panel.set_queries(rows.iter().map(|&r| (start + r, q.row(r, head))), call.scale);
        let end = start + rows[rows.len() - 1] + 1;
        for first in (0..end).step_by(KEYS) {
            panel.score(&call.cache, kv_head, &Keys::Run(first..(first + KEYS).min(end)), Some(first));
            panel.softmax();
        }
        all.extend((0..rows.len()).map(|lane| panel.lse(lane)));
    }
    all
}

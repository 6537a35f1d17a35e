//! Prompts of different lengths in one call, their rows packed one after the other.

use speedread_cuda::{Stream, ViewMut};

use super::attention::{Attention, DeviceOptions};
use super::index::{Snapshot, Workspace};
use super::tensor::{AttentionElement, DeviceRows, DeviceRowsMut};
use crate::{Error, Pattern};

/// A prompt, or the next chunk of one, of a batch.
#[derive(Debug, Clone, Copy)]
pub struct Sequence<'a> {
    /// Query rows.
    pub queries: usize,
    /// Keys, of which the last query sees all: those of the chunks before, then as many as queries.
    pub keys: usize,
    /// One a query head.
    pub patterns: &'a [Pattern],
}

impl Attention {
    /// As [`Attention::prefill`], for a batch of sequences of different lengths.
    ///
    /// Shapes: `q` and `out` `[all queries, query heads, dim]`, `k` and `v` `[all keys, key heads, dim]`, where the rows of a sequence
    /// follow those of the one before; `lse` the `[query heads][rows]` of each sequence in turn. What each did is to be read from the
    /// snapshots.
    ///
    /// Every sequence is a launch of its own, with its own bounds, so that none reads or writes another's rows. The device is busy all the
    /// same: 32 heads of a thousand tokens are more query tiles than it has multiprocessors.
    ///
    /// # Errors
    /// As for [`Attention::prefill`], naming the sequence; [`Error::Shape`] too when the sequences' rows are not those of the tensors.
    /// Sequences before the one at fault are then queued already.
    #[allow(clippy::too_many_arguments)]
    pub fn prefill_batch<T: AttentionElement>(
        &self,
        stream: &Stream,
        q: DeviceRows<'_, T>,
        k: DeviceRows<'_, T>,
        v: DeviceRows<'_, T>,
        sequences: &[Sequence<'_>],
        options: &DeviceOptions,
        work: &mut Workspace,
        out: &mut DeviceRowsMut<'_, T>,
        mut lse: Option<ViewMut<'_, f32>>,
    ) -> Result<Vec<Snapshot>, Error> {
        let sum = |of: fn(&Sequence<'_>) -> usize| sequences.iter().map(of).sum::<usize>();
        let rows = (sum(|s| s.queries), sum(|s| s.keys));
        let (heads, all) = (q.tensor.heads, (q.tensor.rows, k.tensor.rows));
        if rows != all || v.tensor.rows != all.1 || out.tensor.rows != all.0 {
            return Err(Error::Shape(format!(
                "sequences of {} queries and {} keys in all, for tensors of {} queries, {} keys, {} values and {} outputs",
                rows.0, rows.1, all.0, all.1, v.tensor.rows, out.tensor.rows
            )));
        }
        if let Some(lse) = lse.as_ref().filter(|lse| lse.len() != heads * rows.0) {
            return Err(Error::Shape(format!(
                "the log-sum-exp has {} elements, {} are needed",
                lse.len(),
                heads * rows.0
            )));
        }
        let (mut query, mut key) = (0, 0);
        let mut run = |sequence: &Sequence<'_>| {
            let (queries, keys) = (query..query + sequence.queries, key..key + sequence.keys);
            (query, key) = (queries.end, keys.end);
            let lse = match &mut lse {
                Some(lse) => Some(lse.reborrow().slice(heads * queries.start..heads * queries.end)?),
                None => None,
            };
            let mut out = out.slice_rows(queries.clone())?;
            let (q, k, v) = (q.slice_rows(queries)?, k.slice_rows(keys.clone())?, v.slice_rows(keys)?);
            self.prefill(stream, q, k, v, sequence.patterns, options, work, &mut out, lse)?;
            work.snapshot(stream)
        };
        let named = |(number, sequence)| {
            run(sequence).map_err(|error| match error {
                Error::Shape(what) => Error::Shape(format!("sequence {number}: {what}")),
                Error::Pattern(what) => Error::Pattern(format!("sequence {number}: {what}")),
                other => other,
            })
        };
        sequences.iter().enumerate().map(named).collect()
    }
}

//! What attention of one layer is about to see: for pictures, studies, and the search of patterns.

use speedread_attention::compare::{Deviation, Plan, compare};
use speedread_attention::{Element, FixedHead, Kernel, Options, Pattern, Rows, SparseIndex, fix, plan_in_tiles};

use crate::Result;
use crate::backend::HostView;
use crate::kv_cache::View;

/// Queries, keys and values of one layer after rotary embedding. [`Session::visit_layers`](crate::session::Session::visit_layers) shows
/// one after another.
#[derive(Debug)]
pub struct LayerAttention<'a> {
    /// Number of the layer.
    pub layer: usize,
    pub(crate) heads: usize,
    pub(crate) rows: usize,
    pub(crate) view: HostView<'a>,
    pub(crate) kernel: Kernel,
    pub(crate) options: Options<'a>,
}

impl LayerAttention<'_> {
    /// Tokens.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Copies of the queries of a query head and of the keys it sees, each `[rows, head dim]`.
    pub fn head(&self, head: usize) -> Result<(Vec<f32>, Vec<f32>)> {
        let q = self.query_rows()?;
        let kv_head = head / (self.heads / self.view.cache().shape().heads);
        let queries = (0..self.rows).flat_map(|row| q.row(row, head)).copied().collect();
        let keys = match self.keys_and_values()? {
            View::F32(k, _) => widen_head(k, kv_head),
            View::F16(k, _) => widen_head(k, kv_head),
            View::Bf16(k, _) => widen_head(k, kv_head),
        };
        Ok((queries, keys))
    }

    /// How each of some plans strays from dense attention, `[plan][query head]`, over `query_tiles` query tiles of the device's kernel: see
    /// [`compare`].
    pub fn compare(&self, plans: &[Vec<Plan<'_>>], query_tiles: usize) -> Result<Vec<Vec<Deviation>>> {
        let q = self.query_rows()?;
        Ok(match self.keys_and_values()? {
            View::F32(k, v) => compare(q, k, v, plans, query_tiles, self.kernel, &self.options),
            View::F16(k, v) => compare(q, k, v, plans, query_tiles, self.kernel, &self.options),
            View::Bf16(k, v) => compare(q, k, v, plans, query_tiles, self.kernel, &self.options),
        }?)
    }

    /// The index of every query head under its pattern, in tiles of the device's kernel and without a fallback to dense.
    pub fn indexes(&self, patterns: &[Pattern]) -> Result<Vec<SparseIndex>> {
        let options = Options { dense_fallback: false, ..self.options };
        let (q, tile) = (self.query_rows()?, self.kernel.tile());
        let planned = match self.keys_and_values()? {
            View::F32(k, _) => plan_in_tiles(q, k, patterns, tile, &options),
            View::F16(k, _) => plan_in_tiles(q, k, patterns, tile, &options),
            View::Bf16(k, _) => plan_in_tiles(q, k, patterns, tile, &options),
        }?;
        Ok(planned.into_iter().map(|(_, index)| index).collect())
    }

    /// The index of every query head under its pattern, for use with other prompts: see [`fix`].
    pub fn fix(&self, patterns: &[Pattern]) -> Result<Vec<FixedHead>> {
        let (q, tile) = (self.query_rows()?, self.kernel.tile());
        Ok(match self.keys_and_values()? {
            View::F32(k, _) => fix(q, k, patterns, tile, &self.options),
            View::F16(k, _) => fix(q, k, patterns, tile, &self.options),
            View::Bf16(k, _) => fix(q, k, patterns, tile, &self.options),
        }?)
    }

    fn query_rows(&self) -> Result<Rows<'_, f32>> {
        Ok(Rows::contiguous(&self.view.q, self.rows, self.heads, self.view.cache().shape().dim)?)
    }

    fn keys_and_values(&self) -> Result<View<'_>> {
        self.view.cache().view(self.view.layer, 0, self.view.cache().shape().heads, self.rows)
    }
}

/// The rows of one head, without gaps.
fn widen_head<T: Element>(rows: Rows<'_, T>, head: usize) -> Vec<f32> {
    let mut all = vec![0.0; rows.rows() * rows.dim()];
    all.chunks_exact_mut(rows.dim()).enumerate().for_each(|(row, to)| T::widen(rows.row(row, head), to));
    all
}

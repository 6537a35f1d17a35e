//! What attention of one layer is about to see: for pictures, studies, and the search of patterns.

use std::fmt;

use speedread_attention::compare::{Deviation, Plan};
use speedread_attention::{Element, FixedHead, Kernel, Options, Pattern, Rows, SparseIndex, fix, plan_in_tiles};

use crate::Result;
use crate::backend::AtLayer;
use crate::kv_cache::View;

/// Queries, keys and values of one layer after rotary embedding. [`Session::visit_layers`](crate::session::Session::visit_layers) shows
/// one after another.
pub struct LayerAttention<'a> {
    /// Number of the layer.
    pub layer: usize,
    pub(crate) heads: usize,
    pub(crate) rows: usize,
    pub(crate) device: AtLayer<'a>,
    pub(crate) kernel: Kernel,
    pub(crate) options: Options<'a>,
}

impl fmt::Debug for LayerAttention<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { layer, heads, rows, .. } = self;
        write!(f, "LayerAttention {{ layer: {layer}, heads: {heads}, rows: {rows} }}")
    }
}

impl LayerAttention<'_> {
    /// Tokens.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Copies of the queries of a query head and of the keys it sees, each `[rows, head dim]`; of an 8-bit cache keys less the same reference
    /// key, as they are cached: all products of a query and keys change by one number, and softmax of them does not.
    pub fn head(&mut self, head: usize) -> Result<(Vec<f32>, Vec<f32>)> {
        let (heads, rows, view) = (self.heads, self.rows, self.device.host_view()?);
        let q = view.queries()?;
        let kv_head = head / (heads / view.kv_heads());
        let queries = (0..rows).flat_map(|row| q.row(row, head)).copied().collect();
        let keys = match view.keys_and_values()? {
            View::F32(k, _) => widen_head(k, kv_head),
            View::F16(k, _) => widen_head(k, kv_head),
            View::Bf16(k, _) => widen_head(k, kv_head),
        };
        Ok((queries, keys))
    }

    /// How each of some plans strays from dense attention, `[plan][query head]`: on the CPU over `query_tiles` query tiles, as
    /// [`compare`](speedread_attention::compare::compare()) has it; on a CUDA device by its kernels, over all of them.
    pub fn compare(&mut self, plans: &[Vec<Plan<'_>>], query_tiles: usize) -> Result<Vec<Vec<Deviation>>> {
        self.device.compare(plans, query_tiles, &self.options)
    }

    /// The index of every query head under its pattern, in tiles of the device's kernel and without a fallback to dense.
    pub fn indexes(&mut self, patterns: &[Pattern]) -> Result<Vec<SparseIndex>> {
        let (options, tile) = (Options { dense_fallback: false, ..self.options }, self.kernel.tile());
        let view = self.device.host_view()?;
        let q = view.queries()?;
        let planned = match view.keys_and_values()? {
            View::F32(k, _) => plan_in_tiles(q, k, patterns, tile, &options),
            View::F16(k, _) => plan_in_tiles(q, k, patterns, tile, &options),
            View::Bf16(k, _) => plan_in_tiles(q, k, patterns, tile, &options),
        }?;
        Ok(planned.into_iter().map(|(_, index)| index).collect())
    }

    /// The index of every query head under its pattern, for use with other prompts: see [`fix`].
    pub fn fix(&mut self, patterns: &[Pattern]) -> Result<Vec<FixedHead>> {
        let (options, tile) = (self.options, self.kernel.tile());
        let view = self.device.host_view()?;
        let q = view.queries()?;
        Ok(match view.keys_and_values()? {
            View::F32(k, _) => fix(q, k, patterns, tile, &options),
            View::F16(k, _) => fix(q, k, patterns, tile, &options),
            View::Bf16(k, _) => fix(q, k, patterns, tile, &options),
        }?)
    }
}

/// The rows of one head, without gaps.
fn widen_head<T: Element>(rows: Rows<'_, T>, head: usize) -> Vec<f32> {
    let mut all = vec![0.0; rows.rows() * rows.dim()];
    all.chunks_exact_mut(rows.dim()).enumerate().for_each(|(row, to)| T::widen(rows.row(row, head), to));
    all
}

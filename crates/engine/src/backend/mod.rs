//! What a device must be able to do for the decoder: a dozen operations on buffers of f32-like rows.
//!
//! The decoder is written once over this trait. Buffers are allocated by the decoder's workspace, once; every operation writes in
//! place or into a buffer it is given. Row ranges let the decoder run wide layers in blocks, so that a 32K-token prompt never needs
//! `tokens x feed-forward` numbers at a time.

pub mod cpu;
pub mod cuda;
mod phases;
mod view;

use std::ops::{Range, RangeInclusive};

use speedread_attention::compare::{Deviation, Plan};
use speedread_attention::{Heads, Options};

use crate::Result;
use crate::kv_cache::CacheShape;
use crate::rope::RopeLayout;
use crate::weights::Matrix;
pub(crate) use phases::HostClock;
pub use phases::{PassReport, Phase, Seconds};
pub use view::{AtLayer, HostCache, HostView, InLayer, Seen};

/// How much of a wide layer a device wants to work on at a time.
#[derive(Debug, Clone)]
pub struct BlockSize {
    /// Bytes that a block may take, counted as f32.
    pub bytes: usize,
    /// Bounds of its rows.
    pub rows: RangeInclusive<usize>,
}

/// What a buffer holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The residual stream. Every layer adds to it, and a few of its components grow a thousand times larger than the rest, so every
    /// device keeps it in f32.
    Residual,
    /// Anything else: the input or output of a product, in the device's type for these.
    Activations,
}

/// The numbers [`Backend::rope_append`] needs about heads.
#[derive(Debug, Clone, Copy)]
pub struct HeadShape {
    /// Components of a head.
    pub dim: usize,
    /// Which components form a pair.
    pub layout: RopeLayout,
}

/// Consecutive positions of a sequence, and how queries and keys there are rotated.
#[derive(Debug, Clone, Copy)]
pub struct Positions<'a> {
    /// The frequency of every pair of components.
    pub frequencies: &'a [f64],
    /// Factor on cosines and sines.
    pub scale: f64,
    /// The first position.
    pub start: usize,
    /// How many there are.
    pub rows: usize,
}

/// The next token of a sequence, which is a row of a decode step.
#[derive(Debug)]
pub struct Row<'a, Cache> {
    /// The token.
    pub id: u32,
    /// Where it stands, and how it is rotated: one position.
    pub at: Positions<'a>,
    /// Keys and values of the positions before it, and room for its own.
    pub cache: &'a mut Cache,
}

/// A weight matrix to multiply with and the rows its product goes to.
pub struct Product<'a, B: Backend> {
    /// The weights.
    pub weight: &'a B::Linear,
    /// Where the product goes.
    pub out: &'a mut B::Buffer,
    /// Its first row there.
    pub row: usize,
}

/// A device. Implementations own their scratch memory, so methods take `&mut self`; weights are shared.
///
/// A device may run its operations later, in the order they were asked for, and then an error of one may show in a later one. What
/// returns numbers to the host ([`logits`](Self::logits), [`likeliest`](Self::likeliest), [`read`](Self::read),
/// [`finish`](Self::finish)) waits for them.
pub trait Backend: Sized + Send {
    /// How the wide layers are cut into blocks of rows.
    const BLOCK: BlockSize;
    /// Rows of activations, `[rows, columns]`.
    type Buffer: Send;
    /// A weight matrix with its bias, if any.
    type Linear: Send + Sync;
    /// A vector of norm weights.
    type Vector: Send + Sync;
    /// The key/value cache of a sequence.
    type Cache: Send + 'static;

    /// Starts a pass: its clock, and the reports of its attention.
    fn begin(&mut self) -> Result<()>;
    /// What was done since the last mark counts as `phase`.
    fn mark(&mut self, phase: Phase) -> Result<()>;
    /// A layer is complete. A device that runs behind the host lets the host be no more than a layer ahead, so that progress is
    /// true and an interruption takes effect soon.
    fn layer_done(&mut self) -> Result<()>;
    /// Ends a pass.
    fn finish(&mut self) -> Result<PassReport>;

    /// Takes a weight matrix (`[outputs, inputs]`) and its bias.
    fn upload_linear(&self, weight: Matrix, bias: Option<Vec<f32>>) -> Result<Self::Linear>;
    /// A matrix (`[outputs, inputs]`) of random numbers between `-range` and `range`: those of the numbers `first ..` of
    /// [`crate::synthetic`].
    fn random_linear(
        &self,
        rows: usize,
        columns: usize,
        first: u64,
        range: f32,
        bias: Option<Vec<f32>>,
    ) -> Result<Self::Linear>;
    /// Takes a vector of weights.
    fn upload_vector(&self, values: Vec<f32>) -> Result<Self::Vector>;
    /// Allocates a buffer.
    fn buffer(&self, rows: usize, columns: usize, role: Role) -> Result<Self::Buffer>;
    /// Allocates a cache.
    fn cache(&self, shape: CacheShape) -> Result<Self::Cache>;

    /// Prepares the rotary embedding of the rows of a pass: those of each run of positions after those of the one before.
    fn rotary(&mut self, runs: &[Positions<'_>]) -> Result<()>;

    /// `out[row + i] = table[ids[i]]`; every id is below the table's row count.
    fn embed(&mut self, table: &Self::Linear, ids: &[u32], out: &mut Self::Buffer, row: usize) -> Result<()>;
    /// `out[i] = x[rows.start + i] / rms(x[rows.start + i]) * weight`
    fn rms_norm(
        &mut self,
        x: &Self::Buffer,
        rows: Range<usize>,
        weight: &Self::Vector,
        eps: f32,
        out: &mut Self::Buffer,
    ) -> Result<()>;
    /// Normalises, in place, every run of `weight.len()` components of the rows: the heads of a query, or a whole row.
    fn rms_norm_in_place(
        &mut self,
        x: &mut Self::Buffer,
        rows: Range<usize>,
        weight: &Self::Vector,
        eps: f32,
    ) -> Result<()>;
    /// `out[row + i] = weight x[rows.start + i] + bias` for every product: projections of the same input, which share its preparation.
    fn linear(&mut self, x: &Self::Buffer, rows: Range<usize>, products: &mut [Product<'_, Self>]) -> Result<()>;
    /// `out[row + i] += weight x[rows.start + i] + bias`: a projection that joins the residual stream.
    fn linear_add(&mut self, x: &Self::Buffer, rows: Range<usize>, product: Product<'_, Self>) -> Result<()>;
    /// Rotates the queries `q[rows]` in place and as many keys `k[kv_row..]`, and appends keys and values to the cache at `position`; what
    /// these rows of `k` hold afterwards is left open. `rows` count as those of [`rotary`](Self::rotary).
    #[allow(clippy::too_many_arguments)]
    fn rope_append(
        &mut self,
        q: &mut Self::Buffer,
        k: &mut Self::Buffer,
        v: &Self::Buffer,
        rows: Range<usize>,
        kv_row: usize,
        heads: HeadShape,
        cache: &mut Self::Cache,
        layer: usize,
        position: usize,
    ) -> Result<()>;
    /// [`rope_append`](Self::rope_append) for the rows of a decode step: the first of `q`, `k` and `v`, each at its position of its own cache.
    fn decode_append(
        &mut self,
        q: &mut Self::Buffer,
        k: &mut Self::Buffer,
        v: &Self::Buffer,
        heads: HeadShape,
        rows: &mut [Row<'_, Self::Cache>],
        layer: usize,
    ) -> Result<()> {
        for (n, Row { at, cache, .. }) in rows.iter_mut().enumerate() {
            self.rope_append(q, k, v, n..n + 1, n, heads, cache, layer, at.start)?;
        }
        Ok(())
    }
    /// Replaces the first `rows` rows of `q` by causal attention over the first `len` positions of the cache; the last query stands at
    /// position `len - 1`. What the heads did, and the seconds it took, are part of the pass's report.
    #[allow(clippy::too_many_arguments)]
    fn attend(
        &mut self,
        q: &mut Self::Buffer,
        rows: usize,
        cache: &Self::Cache,
        layer: usize,
        len: usize,
        heads: Heads<'_>,
        options: &Options<'_>,
    ) -> Result<()>;
    /// [`attend`](Self::attend) for one new token of each of some sequences, the first rows of `q`: each over the cache of its own, up to its
    /// position, dense over the nearest `window` keys (`None` = all), without a report.
    fn decode_attend(
        &mut self,
        q: &mut Self::Buffer,
        rows: &[Row<'_, Self::Cache>],
        layer: usize,
        window: Option<usize>,
    ) -> Result<()>;
    /// `gate[i] = silu(gate[i]) * up[i]` for the first `rows` rows.
    fn swiglu(&mut self, gate: &mut Self::Buffer, up: &Self::Buffer, rows: usize) -> Result<()>;
    /// `x[rows.start + i] += y[i]`
    fn add(&mut self, x: &mut Self::Buffer, rows: Range<usize>, y: &Self::Buffer) -> Result<()>;
    /// The logits of the first `rows` rows of `x`: `out` is `[rows, vocabulary]`, in host memory.
    fn logits(&mut self, weight: &Self::Linear, x: &Self::Buffer, rows: usize, out: &mut [f32]) -> Result<()>;
    /// The tokens of the largest logits of the first rows of `x`, one each, the lowest of equals. False where the device leaves the choice to
    /// the host, as the default does, or has found nothing to choose in a row: [`logits`](Self::logits) show it.
    fn likeliest(&mut self, _weight: &Self::Linear, _x: &Self::Buffer, _chosen: &mut [u32]) -> Result<bool> {
        Ok(false)
    }
    /// The first `rows` rows of a buffer.
    fn read(&mut self, x: &Self::Buffer, rows: usize) -> Result<Vec<f32>>;
    /// What attention sees, where the host reads it: copies, where the device's memory is its own.
    fn host_view<'a>(&mut self, seen: &Seen<'a, Self>) -> Result<HostView<'a>>;
    /// How each of some plans strays from dense attention, `[plan][query head]`, over `query_tiles` query tiles or more: see
    /// [`compare`](speedread_attention::compare::compare()).
    fn compare(
        &mut self,
        seen: &Seen<'_, Self>,
        plans: &[Vec<Plan<'_>>],
        query_tiles: usize,
        options: &Options<'_>,
    ) -> Result<Vec<Vec<Deviation>>>;
}

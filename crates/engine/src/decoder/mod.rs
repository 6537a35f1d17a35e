//! The decoder, written once over [`Backend`].
//!
//! A prefill runs layer by layer over all rows of a chunk. Within a layer the matrix products run in blocks of rows ([`block_rows`]): only the
//! residual stream `x` and the queries `q` (which attention replaces by its output) exist for every row, everything wider exists for one
//! block. A decode step is the same with one row, or with a row of each of some sequences: only rotation, cache and attention are by sequence.

mod synthetic;
mod weights;

use std::ops::{ControlFlow, Range};
use std::sync::atomic::{AtomicBool, Ordering};

use speedread_attention::{Heads, Options};

use crate::backend::{AtLayer, Backend, BlockSize, HeadShape, PassReport, Phase, Positions, Product, Role, Row, Seen};
use crate::config::ModelConfig;
use crate::device::Source;
use crate::synthetic::SINKS;
use crate::{Error, Result};
use weights::{DecoderWeights, LayerWeights};

/// Rows that go through the wide layers at a time.
pub(crate) fn block_rows(config: &ModelConfig, rows: usize, size: &BlockSize) -> usize {
    let row = 4 * (2 * config.feed_forward + 2 * config.kv_dim() + 2 * config.hidden);
    (size.bytes / row).clamp(*size.rows.start(), *size.rows.end()).min(rows)
}

/// Rows whose logits are computed at a time when all are wanted.
pub(crate) const LOGITS_BLOCK: usize = 64;

/// A model's decoder on a device.
pub(crate) struct Decoder<B: Backend> {
    config: ModelConfig,
    weights: DecoderWeights<B>,
}

/// Buffers of one session, allocated once.
pub(crate) struct Workspace<B: Backend> {
    /// Residual stream, every row of a chunk.
    x: B::Buffer,
    /// Queries, then attention's output, every row of a chunk.
    pub(crate) q: B::Buffer,
    /// A block of normed rows.
    normed: B::Buffer,
    /// A block of keys and values.
    k: B::Buffer,
    v: B::Buffer,
    /// A block of the feed-forward layer.
    gate: B::Buffer,
    up: B::Buffer,
    /// A block of what joins the residual stream.
    delta: B::Buffer,
}

impl<B: Backend> Workspace<B> {
    /// Buffers for chunks of up to `rows` rows.
    pub(crate) fn new(backend: &B, config: &ModelConfig, rows: usize) -> Result<Self> {
        let block = block_rows(config, rows, &B::BLOCK);
        let activations = |rows, columns| backend.buffer(rows, columns, Role::Activations);
        Ok(Self {
            x: backend.buffer(rows, config.hidden, Role::Residual)?,
            q: activations(rows, config.q_dim())?,
            normed: activations(block, config.hidden)?,
            k: activations(block, config.kv_dim())?,
            v: activations(block, config.kv_dim())?,
            gate: activations(block, config.feed_forward)?,
            up: activations(block, config.feed_forward)?,
            delta: activations(block, config.hidden)?,
        })
    }
}

/// Numbers that a workspace of `rows` rows holds: of the residual stream, of the queries, and of the blocks.
pub(crate) fn workspace_numbers(config: &ModelConfig, rows: usize, size: &BlockSize) -> [u64; 3] {
    let block = block_rows(config, rows, size) as u64;
    let every_row = |columns: usize| (rows as u64).saturating_mul(columns as u64);
    let blocks = block * 2 * (config.hidden + config.kv_dim() + config.feed_forward) as u64;
    [every_row(config.hidden), every_row(config.q_dim()), blocks]
}

/// Called before the attention of each layer, with what it is about to see; may end the pass.
pub(crate) type BeforeAttention<'a> = &'a mut dyn FnMut(usize, AtLayer<'_>) -> Result<ControlFlow<()>>;

/// What a pass over a chunk needs besides its ids.
pub(crate) struct Pass<'a> {
    /// Position of the first id.
    pub start: usize,
    /// Frequencies of the rotary embedding, and the factor on cosines and sines.
    pub rotary: (&'a [f64], f64),
    /// What a layer's query heads look at.
    pub heads: &'a dyn Fn(usize) -> Heads<'a>,
    /// Options of attention; its cancel flag stops the pass between blocks too.
    pub options: Options<'a>,
    /// Looks at what attention is about to see.
    pub before_attention: Option<BeforeAttention<'a>>,
    /// Called with the share of the layers that is done.
    pub observe: &'a mut dyn FnMut(f64),
}

/// `0..rows` in blocks of at most `most` rows, alike in size: a last block of a row or two would be done at another precision.
pub(crate) fn blocks(rows: usize, most: usize) -> impl Iterator<Item = Range<usize>> {
    let count = rows.div_ceil(most);
    (0..count).map(move |i| rows * i / count..rows * (i + 1) / count)
}

pub(super) fn check(cancel: Option<&AtomicBool>) -> Result<()> {
    match cancel.is_some_and(|cancel| cancel.load(Ordering::Relaxed)) {
        true => Err(Error::Cancelled),
        false => Ok(()),
    }
}

impl<B: Backend> Decoder<B> {
    /// Takes the weights to the device; `cancel` is looked at between them.
    pub(crate) fn load(
        config: &ModelConfig,
        source: &Source<'_>,
        backend: &B,
        cancel: Option<&AtomicBool>,
    ) -> Result<Self> {
        let weights = match source {
            Source::Files(weights) => DecoderWeights::load(config, weights, backend, cancel)?,
            Source::Random => DecoderWeights::synthetic(config, backend, cancel)?,
        };
        Ok(Self { config: config.clone(), weights })
    }

    /// Bytes of the weights.
    pub(crate) fn bytes(&self) -> u64 {
        self.weights.bytes
    }

    /// Hash of the norms' weights.
    pub(crate) fn norms_hash(&self) -> &[u8; 32] {
        &self.weights.norms_hash
    }

    /// Number of weights in matrices.
    pub(crate) fn parameters(&self) -> u64 {
        self.weights.parameters
    }

    /// Bytes, as stored, and number of the weights that a step multiplies with.
    pub(crate) fn step_weights(&self) -> (u64, u64) {
        let (bytes, parameters) = self.weights.lookup_only;
        (self.weights.bytes - bytes, self.weights.parameters - parameters)
    }

    /// Runs a chunk; its rows' last residual stream stays in the workspace, keys and values in the cache.
    pub(crate) fn prefill(
        &self,
        backend: &mut B,
        work: &mut Workspace<B>,
        cache: &mut B::Cache,
        ids: &[u32],
        mut pass: Pass<'_>,
    ) -> Result<PassReport> {
        let rows = ids.len();
        let most = block_rows(&self.config, rows, &B::BLOCK);
        let cancel = pass.options.cancel;
        backend.begin()?;
        let (frequencies, scale) = pass.rotary;
        backend.rotary(&[Positions { frequencies, scale, start: pass.start, rows }])?;
        backend.embed(&self.weights.embedding, ids, &mut work.x, 0)?;
        self.embed_sinks(backend, work, 0, pass.start, rows)?;
        for (n, layer) in self.weights.layers.iter().enumerate() {
            for block in blocks(rows, most) {
                check(cancel)?;
                self.project(backend, work, layer, block.clone())?;
                let position = pass.start + block.start;
                backend.rope_append(&mut work.q, &mut work.k, &work.v, block, 0, self.heads(), cache, n, position)?;
                backend.mark(Phase::Other)?;
            }
            if let Some(look) = pass.before_attention.as_mut() {
                let seen = Seen { q: &work.q, rows, cache: &*cache, layer: n, len: pass.start + rows };
                if look(n, Box::new((&mut *backend, seen)))?.is_break() {
                    break;
                }
            }
            let options = Options { window: self.config.window(n), ..pass.options };
            backend.attend(&mut work.q, rows, cache, n, pass.start + rows, (pass.heads)(n), &options).map_err(
                |error| match error {
                    Error::Attention(speedread_attention::Error::Cancelled) => Error::Cancelled,
                    other => other,
                },
            )?;
            (pass.observe)((n as f64 + 0.5) / self.config.layers as f64);
            for block in blocks(rows, most) {
                check(cancel)?;
                self.feed(backend, work, layer, block)?;
            }
            backend.layer_done()?;
            (pass.observe)((n as f64 + 1.0) / self.config.layers as f64);
        }
        backend.finish()
    }

    /// Runs the next token of each of some sequences, at most a block of [`block_rows`].
    pub(crate) fn decode(
        &self,
        backend: &mut B,
        work: &mut Workspace<B>,
        rows: &mut [Row<'_, B::Cache>],
    ) -> Result<()> {
        let (ids, positions): (Vec<u32>, Vec<_>) = rows.iter().map(|row| (row.id, row.at)).unzip();
        backend.rotary(&positions)?;
        backend.embed(&self.weights.embedding, &ids, &mut work.x, 0)?;
        for (i, at) in positions.iter().enumerate() {
            self.embed_sinks(backend, work, i, at.start, 1)?;
        }
        for (n, layer) in self.weights.layers.iter().enumerate() {
            self.project(backend, work, layer, 0..rows.len())?;
            backend.decode_append(&mut work.q, &mut work.k, &work.v, self.heads(), rows, n)?;
            backend.mark(Phase::Other)?;
            backend.decode_attend(&mut work.q, rows, n, self.config.window(n))?;
            self.feed(backend, work, layer, 0..rows.len())?;
        }
        Ok(())
    }

    /// Puts the sinks, where the weights have some, in the place of the embeddings of `rows` rows from `row` on, which stand at `start` and
    /// after it.
    fn embed_sinks(
        &self,
        backend: &mut B,
        work: &mut Workspace<B>,
        row: usize,
        start: usize,
        rows: usize,
    ) -> Result<()> {
        match &self.weights.sinks {
            Some(sinks) if start < SINKS => {
                let end = SINKS.min(start + rows);
                let positions: Vec<u32> = (start as u32..end as u32).collect();
                backend.embed(sinks, &positions, &mut work.x, row)
            }
            _ => Ok(()),
        }
    }

    /// Queries, keys and values of a block of rows, before they are rotated.
    fn project(
        &self,
        backend: &mut B,
        work: &mut Workspace<B>,
        layer: &LayerWeights<B>,
        rows: Range<usize>,
    ) -> Result<()> {
        let (eps, count) = (self.config.norm_eps, rows.len());
        backend.rms_norm(&work.x, rows.clone(), &layer.attn_norm, eps, &mut work.normed)?;
        backend.mark(Phase::Other)?;
        let mut products = [
            Product { weight: &layer.q, out: &mut work.q, row: rows.start },
            Product { weight: &layer.k, out: &mut work.k, row: 0 },
            Product { weight: &layer.v, out: &mut work.v, row: 0 },
        ];
        backend.linear(&work.normed, 0..count, &mut products)?;
        backend.mark(Phase::Linear)?;
        if let Some(norm) = &layer.q_norm {
            backend.rms_norm_in_place(&mut work.q, rows, norm, eps)?;
        }
        if let Some(norm) = &layer.k_norm {
            backend.rms_norm_in_place(&mut work.k, 0..count, norm, eps)?;
        }
        Ok(())
    }

    fn heads(&self) -> HeadShape {
        HeadShape { dim: self.config.head_dim, layout: self.config.rope.layout }
    }

    /// Output projection, residual, norm, feed-forward and residual of a block of rows.
    fn feed(
        &self,
        backend: &mut B,
        work: &mut Workspace<B>,
        layer: &LayerWeights<B>,
        rows: Range<usize>,
    ) -> Result<()> {
        let (eps, count) = (self.config.norm_eps, rows.len());
        backend.mark(Phase::Other)?;
        self.join(
            backend,
            &layer.o,
            &layer.post_attn_norm,
            &work.q,
            rows.clone(),
            &mut work.x,
            rows.start,
            &mut work.delta,
        )?;
        backend.mark(Phase::Linear)?;
        backend.rms_norm(&work.x, rows.clone(), &layer.ffn_norm, eps, &mut work.normed)?;
        backend.mark(Phase::Other)?;
        let mut products = [
            Product { weight: &layer.gate, out: &mut work.gate, row: 0 },
            Product { weight: &layer.up, out: &mut work.up, row: 0 },
        ];
        backend.linear(&work.normed, 0..count, &mut products)?;
        backend.mark(Phase::Linear)?;
        backend.swiglu(&mut work.gate, &work.up, count)?;
        backend.mark(Phase::Other)?;
        self.join(
            backend,
            &layer.down,
            &layer.post_ffn_norm,
            &work.gate,
            0..count,
            &mut work.x,
            rows.start,
            &mut work.delta,
        )?;
        backend.mark(Phase::Linear)
    }

    /// Adds a projection of some rows of `from` to the residual stream, normed first where the model does so.
    #[allow(clippy::too_many_arguments)]
    fn join(
        &self,
        backend: &mut B,
        weight: &B::Linear,
        norm: &Option<B::Vector>,
        from: &B::Buffer,
        rows: Range<usize>,
        x: &mut B::Buffer,
        row: usize,
        delta: &mut B::Buffer,
    ) -> Result<()> {
        let Some(norm) = norm else {
            return backend.linear_add(from, rows, Product { weight, out: x, row });
        };
        let count = rows.len();
        backend.linear(from, rows, &mut [Product { weight, out: delta, row: 0 }])?;
        backend.rms_norm_in_place(delta, 0..count, norm, self.config.norm_eps)?;
        backend.add(x, row..row + count, delta)
    }

    /// The logits of some rows of the last pass, at most a block; `out` is `[rows, vocabulary]`.
    pub(crate) fn logits(
        &self,
        backend: &mut B,
        work: &mut Workspace<B>,
        rows: Range<usize>,
        out: &mut [f32],
    ) -> Result<()> {
        let count = rows.len();
        backend.rms_norm(&work.x, rows, &self.weights.norm, self.config.norm_eps, &mut work.normed)?;
        backend.logits(self.weights.output(), &work.normed, count, out)
    }

    /// The tokens of the largest logits of the first rows of the last pass, if the device chooses: [`Backend::likeliest`].
    pub(crate) fn likeliest(&self, backend: &mut B, work: &mut Workspace<B>, chosen: &mut [u32]) -> Result<bool> {
        backend.rms_norm(&work.x, 0..chosen.len(), &self.weights.norm, self.config.norm_eps, &mut work.normed)?;
        backend.likeliest(self.weights.output(), &work.normed, chosen)
    }
}

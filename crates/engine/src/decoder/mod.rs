//! The decoder, written once over [`Backend`].
//!
//! A prefill runs layer by layer over all rows of a chunk. Within a layer the matrix products run in blocks of rows ([`block_rows`]): only the
//! residual stream `x` and the queries `q` (which attention replaces by its output) exist for every row, everything wider exists for one
//! block. A decode step is the same with one row.

mod weights;

use std::ops::{ControlFlow, Range};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use speedread_attention::{HeadReport, Options, Pattern};

use crate::backend::{Backend, HeadShape, Product};
use crate::config::ModelConfig;
use crate::weights::Weights;
use crate::{Error, Result};
use weights::{DecoderWeights, LayerWeights};

/// Bytes that the feed-forward layer's block may take, and the bounds of its rows.
const BLOCK_BYTES: usize = 64 << 20;
const BLOCK_ROWS: std::ops::RangeInclusive<usize> = 256..=4096;

/// Rows that go through the wide layers at a time: as many as memory allows, because every product widens its weights once per block.
pub(crate) fn block_rows(config: &ModelConfig, rows: usize) -> usize {
    let row = 4 * (2 * config.feed_forward + 2 * config.kv_dim() + 2 * config.hidden);
    (BLOCK_BYTES / row).clamp(*BLOCK_ROWS.start(), *BLOCK_ROWS.end()).min(rows)
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
        let block = block_rows(config, rows);
        Ok(Self {
            x: backend.buffer(rows, config.hidden)?,
            q: backend.buffer(rows, config.q_dim())?,
            normed: backend.buffer(block, config.hidden)?,
            k: backend.buffer(block, config.kv_dim())?,
            v: backend.buffer(block, config.kv_dim())?,
            gate: backend.buffer(block, config.feed_forward)?,
            up: backend.buffer(block, config.feed_forward)?,
            delta: backend.buffer(block, config.hidden)?,
        })
    }
}

/// Numbers a workspace of `rows` rows holds.
pub(crate) fn workspace_numbers(config: &ModelConfig, rows: usize) -> (u64, u64) {
    let block = block_rows(config, rows) as u64;
    let every_row = (rows as u64).saturating_mul((config.hidden + config.q_dim()) as u64);
    (every_row, block * 2 * (config.hidden + config.kv_dim() + config.feed_forward) as u64)
}

/// Wall-clock seconds of a pass by what they went to.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Seconds {
    pub linear: f64,
    pub index: f64,
    pub attention: f64,
    pub other: f64,
}

/// Called before the attention of each layer, with the layer's queries and the cache that holds its keys and values; may end the pass.
pub(crate) type BeforeAttention<'a, B> =
    &'a mut dyn FnMut(usize, &<B as Backend>::Buffer, &<B as Backend>::Cache) -> Result<ControlFlow<()>>;

/// What a pass over a chunk needs besides its ids.
pub(crate) struct Pass<'a, B: Backend> {
    /// Position of the first id.
    pub start: usize,
    /// Frequencies of the rotary embedding, and the factor on cosines and sines.
    pub rotary: (&'a [f64], f64),
    /// The patterns of a layer's query heads.
    pub patterns: &'a dyn Fn(usize) -> &'a [Pattern],
    /// Options of attention; its cancel flag stops the pass between blocks too.
    pub options: Options<'a>,
    /// Looks at what attention is about to see.
    pub before_attention: BeforeAttention<'a, B>,
    /// Called with the share of the layers that is done.
    pub observe: &'a mut dyn FnMut(f64),
}

/// What a pass did.
pub(crate) struct PassReport {
    pub seconds: Seconds,
    pub layers: Vec<Vec<HeadReport>>,
}

/// Splits time between the counters of [`Seconds`].
struct Clock(Instant);

impl Clock {
    fn lap(&mut self, into: &mut f64) {
        let now = Instant::now();
        *into += (now - self.0).as_secs_f64();
        self.0 = now;
    }
}

/// `0..rows` in blocks of at most `most` rows, alike in size: a last block of a row or two would be done at another precision.
pub(crate) fn blocks(rows: usize, most: usize) -> impl Iterator<Item = Range<usize>> {
    let count = rows.div_ceil(most);
    (0..count).map(move |i| rows * i / count..rows * (i + 1) / count)
}

fn check(cancel: Option<&AtomicBool>) -> Result<()> {
    match cancel.is_some_and(|cancel| cancel.load(Ordering::Relaxed)) {
        true => Err(Error::Cancelled),
        false => Ok(()),
    }
}

impl<B: Backend> Decoder<B> {
    /// Takes the weights to the device.
    pub(crate) fn load(config: &ModelConfig, weights: &Weights, backend: &B) -> Result<Self> {
        Ok(Self { config: config.clone(), weights: DecoderWeights::load(config, weights, backend)? })
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

    /// Runs a chunk; its rows' last residual stream stays in the workspace, keys and values in the cache.
    pub(crate) fn prefill(
        &self,
        backend: &mut B,
        work: &mut Workspace<B>,
        cache: &mut B::Cache,
        ids: &[u32],
        pass: Pass<'_, B>,
    ) -> Result<PassReport> {
        let rows = ids.len();
        let most = block_rows(&self.config, rows);
        let cancel = pass.options.cancel;
        let mut report = PassReport { seconds: Seconds::default(), layers: Vec::with_capacity(self.config.layers) };
        let seconds = &mut report.seconds;
        let mut clock = Clock(Instant::now());
        backend.rotary(pass.rotary.0, pass.rotary.1, pass.start as u64, rows)?;
        backend.embed(&self.weights.embedding, ids, &mut work.x)?;
        for (n, layer) in self.weights.layers.iter().enumerate() {
            clock.lap(&mut seconds.other);
            for block in blocks(rows, most) {
                check(cancel)?;
                self.project(backend, work, cache, n, block, pass.start, seconds, &mut clock)?;
            }
            let flow = (pass.before_attention)(n, &work.q, cache)?;
            clock.lap(&mut seconds.other);
            if flow.is_break() {
                break;
            }
            let options = Options { window: self.config.window(n), ..pass.options };
            let attention = backend
                .attend(&mut work.q, rows, cache, n, pass.start + rows, (pass.patterns)(n), &options)
                .map_err(|error| match error {
                    Error::Attention(speedread_attention::Error::Cancelled) => Error::Cancelled,
                    other => other,
                })?;
            seconds.index += attention.index_seconds;
            seconds.attention += attention.attention_seconds;
            seconds.other -= attention.index_seconds + attention.attention_seconds;
            report.layers.push(attention.heads);
            (pass.observe)((n as f64 + 0.5) / self.config.layers as f64);
            clock.lap(&mut seconds.other);
            for block in blocks(rows, most) {
                check(cancel)?;
                self.feed(backend, work, layer, block, seconds, &mut clock)?;
            }
            (pass.observe)((n as f64 + 1.0) / self.config.layers as f64);
        }
        clock.lap(&mut seconds.other);
        Ok(report)
    }

    /// Runs one token at `position`.
    pub(crate) fn decode(
        &self,
        backend: &mut B,
        work: &mut Workspace<B>,
        cache: &mut B::Cache,
        id: u32,
        position: usize,
        rotary: (&[f64], f64),
    ) -> Result<()> {
        let (mut seconds, mut clock) = (Seconds::default(), Clock(Instant::now()));
        backend.rotary(rotary.0, rotary.1, position as u64, 1)?;
        backend.embed(&self.weights.embedding, &[id], &mut work.x)?;
        for (n, layer) in self.weights.layers.iter().enumerate() {
            self.project(backend, work, cache, n, 0..1, position, &mut seconds, &mut clock)?;
            backend.decode_attend(&mut work.q, cache, n, position + 1, self.config.window(n))?;
            self.feed(backend, work, layer, 0..1, &mut seconds, &mut clock)?;
        }
        Ok(())
    }

    /// Queries, keys and values of a block of rows; keys and values go to the cache.
    #[allow(clippy::too_many_arguments)]
    fn project(
        &self,
        backend: &mut B,
        work: &mut Workspace<B>,
        cache: &mut B::Cache,
        n: usize,
        rows: Range<usize>,
        start: usize,
        seconds: &mut Seconds,
        clock: &mut Clock,
    ) -> Result<()> {
        let (layer, eps, count) = (&self.weights.layers[n], self.config.norm_eps, rows.len());
        backend.rms_norm(&work.x, rows.clone(), &layer.attn_norm, eps, &mut work.normed)?;
        clock.lap(&mut seconds.other);
        let mut products = [
            Product { weight: &layer.q, out: &mut work.q, row: rows.start },
            Product { weight: &layer.k, out: &mut work.k, row: 0 },
            Product { weight: &layer.v, out: &mut work.v, row: 0 },
        ];
        backend.linear(&work.normed, 0..count, &mut products)?;
        clock.lap(&mut seconds.linear);
        if let Some(norm) = &layer.q_norm {
            backend.rms_norm_in_place(&mut work.q, rows.clone(), norm, eps)?;
        }
        if let Some(norm) = &layer.k_norm {
            backend.rms_norm_in_place(&mut work.k, 0..count, norm, eps)?;
        }
        let heads = HeadShape { dim: self.config.head_dim, layout: self.config.rope.layout };
        let position = start + rows.start;
        backend.rope_append(&mut work.q, &mut work.k, &work.v, rows, heads, cache, n, position)?;
        clock.lap(&mut seconds.other);
        Ok(())
    }

    /// Output projection, residual, norm, feed-forward and residual of a block of rows.
    fn feed(
        &self,
        backend: &mut B,
        work: &mut Workspace<B>,
        layer: &LayerWeights<B>,
        rows: Range<usize>,
        seconds: &mut Seconds,
        clock: &mut Clock,
    ) -> Result<()> {
        let (eps, count) = (self.config.norm_eps, rows.len());
        clock.lap(&mut seconds.other);
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
        clock.lap(&mut seconds.linear);
        backend.rms_norm(&work.x, rows.clone(), &layer.ffn_norm, eps, &mut work.normed)?;
        clock.lap(&mut seconds.other);
        let mut products = [
            Product { weight: &layer.gate, out: &mut work.gate, row: 0 },
            Product { weight: &layer.up, out: &mut work.up, row: 0 },
        ];
        backend.linear(&work.normed, 0..count, &mut products)?;
        clock.lap(&mut seconds.linear);
        backend.swiglu(&mut work.gate, &work.up, count)?;
        clock.lap(&mut seconds.other);
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
        clock.lap(&mut seconds.linear);
        Ok(())
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
        backend.logits(&self.weights.output, &work.normed, count, out)
    }
}

//! Attention of a pass and of a decode step on the device.

use half::bf16;
use half::slice::HalfFloatSliceExt;
use speedread_attention::cuda::{DecodeWorkspace, DevicePlan, DeviceRows, DeviceRowsMut, Plan, TILE};
use speedread_attention::{HeadReport, Options, Pattern, Rows, SparseIndex, plan_in_tiles};
use speedread_cuda::{Buffer, Stream, View, ViewMut};

use super::buffers::{CudaBuffer, CudaCache};
use super::clock::DeviceClock;
use super::context::CudaContext;
use crate::backend::Phase;
use crate::{Error, Result};

/// What attention keeps between calls.
#[derive(Debug)]
pub(super) struct AttentionState {
    /// Dense attention of a chunk: the same in every layer.
    dense: Option<Planned>,
    buffers: Exchange,
    decode: DecodeWorkspace,
}

/// Where queries go in and outputs come out.
#[derive(Debug, Default)]
struct Exchange {
    /// As large as the queries, which its content replaces.
    out: Option<Buffer<bf16>>,
    /// Queries and output with heads filled up to a size that the kernels take, where the model's are of another.
    padded: Option<[Buffer<bf16>; 2]>,
}

/// A plan on the device, and what it makes each head do.
#[derive(Debug)]
struct Planned {
    start: usize,
    rows: usize,
    plan: DevicePlan,
    heads: Vec<HeadReport>,
}

impl Planned {
    fn new(stream: &Stream, of: Vec<(Pattern, SparseIndex)>, kv_heads: usize, dim: usize) -> Result<Self> {
        let (patterns, indexes): (Vec<_>, Vec<_>) = of.into_iter().unzip();
        let plan = Plan::new(&indexes, kv_heads, dim)?;
        let head = |i: usize| HeadReport {
            pattern: patterns[i],
            tiles: plan.head_tiles()[i],
            dense_tiles: indexes[i].total_dense_tiles(),
            recall: None,
        };
        let heads = (0..indexes.len()).map(head).collect();
        let (start, rows) = (indexes[0].start(), indexes[0].rows());
        Ok(Self { start, rows, plan: plan.upload(stream)?, heads })
    }

    fn dense(stream: &Stream, start: usize, rows: usize, heads: usize, kv_heads: usize, dim: usize) -> Result<Self> {
        let index = SparseIndex::dense(start, rows, TILE);
        Self::new(stream, vec![(Pattern::Dense, index); heads], kv_heads, dim)
    }
}

/// One layer's keys and values, and how its queries see them.
struct Layer<'a> {
    k: DeviceRows<'a, bf16>,
    v: DeviceRows<'a, bf16>,
    heads: usize,
    kv_heads: usize,
    /// Components of a head, and those that the kernels see.
    dim: usize,
    padded: usize,
    scale: f32,
}

impl AttentionState {
    pub fn new(stream: &Stream) -> Result<Self> {
        Ok(Self { dense: None, buffers: Exchange::default(), decode: DecodeWorkspace::new(stream)? })
    }

    /// Replaces the first `rows` rows of `q` by attention over the first `len` positions of the cache.
    #[allow(clippy::too_many_arguments)]
    pub fn prefill(
        &mut self,
        context: &CudaContext,
        clock: &mut DeviceClock,
        q: &mut CudaBuffer,
        rows: usize,
        cache: &CudaCache,
        layer: usize,
        len: usize,
        patterns: &[Pattern],
        options: &Options<'_>,
    ) -> Result<Vec<HeadReport>> {
        if let Some(window) = options.window.filter(|&window| window < len) {
            return Err(window_unsupported(window, len));
        }
        let stream = &context.stream;
        clock.mark(stream, Phase::Other)?;
        let layer = Layer::new(q, cache, layer, len, options.scale)?;
        let (start, heads, kv_heads) = (len - rows, layer.heads, layer.kv_heads);
        let all_dense = patterns.iter().all(|&pattern| pattern == Pattern::Dense);
        if (all_dense || options.audit.is_some())
            && self.dense.as_ref().is_none_or(|dense| (dense.start, dense.rows) != (start, rows))
        {
            self.dense = Some(Planned::dense(stream, start, rows, heads, kv_heads, layer.padded)?);
        }
        let sparse = if all_dense {
            None
        } else {
            let indexes = estimate(stream, q.bf16(0..rows)?, &layer, rows, len, patterns, options)?;
            Some(Planned::new(stream, indexes, kv_heads, layer.padded)?)
        };
        clock.mark(stream, Phase::Index)?;
        if options.cancel.is_some_and(|cancel| cancel.load(std::sync::atomic::Ordering::Relaxed)) {
            return Err(Error::Cancelled);
        }

        let dense = self.dense.take();
        let planned = sparse.as_ref().or(dense.as_ref()).ok_or_else(|| Error::Request("no patterns".into()))?;
        let mut reports = planned.heads.clone();
        if let (Some(audit), Some(dense)) = (options.audit, &dense) {
            // The same queries twice; the second output replaces the first, and then the queries.
            let mut lse = stream.alloc::<f32>(heads * rows)?;
            self.attend(context, q, rows, &layer, dense, Some(lse.view_mut()))?;
            let of_all = stream.download(lse.view())?;
            self.attend(context, q, rows, &layer, planned, Some(lse.view_mut()))?;
            let of_kept = stream.download(lse.view())?;
            for ((report, kept), all) in
                reports.iter_mut().zip(of_kept.chunks_exact(rows)).zip(of_all.chunks_exact(rows))
            {
                report.recall = Some(audit.recall(kept, all));
            }
        } else {
            self.attend(context, q, rows, &layer, planned, None)?;
        }
        self.buffers.replace(context, q, rows, &layer)?;
        self.dense = dense;
        clock.mark(stream, Phase::Attention)?;
        Ok(reports)
    }

    /// Replaces the first row of `q` by attention over the last `window` of the first `len` positions (`None` = all).
    pub fn decode(
        &mut self,
        context: &CudaContext,
        q: &mut CudaBuffer,
        cache: &CudaCache,
        layer: usize,
        len: usize,
        window: Option<usize>,
    ) -> Result<()> {
        let layer = Layer::new(q, cache, layer, len, None)?;
        let near = window.unwrap_or(len);
        let stream = &context.stream;
        let (queries, out) = self.buffers.take(context, q, 1, &layer)?;
        let queries = DeviceRows::contiguous(queries, 1, layer.heads, layer.padded)?;
        let mut out = DeviceRowsMut::contiguous(out, 1, layer.heads, layer.padded)?;
        let work = &mut self.decode;
        let (k, v) = (layer.k.tail(near), layer.v.tail(near));
        context.attention.decode(stream, queries, k, v, Some(layer.scale), work, &mut out)?;
        self.buffers.replace(context, q, 1, &layer)
    }

    /// Queues attention of `q` into the output buffer.
    fn attend(
        &mut self,
        context: &CudaContext,
        q: &CudaBuffer,
        rows: usize,
        layer: &Layer<'_>,
        planned: &Planned,
        lse: Option<ViewMut<'_, f32>>,
    ) -> Result<()> {
        let (queries, out) = self.buffers.take(context, q, rows, layer)?;
        let queries = DeviceRows::contiguous(queries, rows, layer.heads, layer.padded)?;
        let mut out = DeviceRowsMut::contiguous(out, rows, layer.heads, layer.padded)?;
        let (k, v, scale) = (layer.k, layer.v, Some(layer.scale));
        Ok(context.attention.attend(&context.stream, queries, k, v, &planned.plan, scale, &mut out, lse)?)
    }
}

impl Exchange {
    /// The queries as the kernels take them, and room for their output.
    fn take<'a>(
        &'a mut self,
        context: &CudaContext,
        q: &'a CudaBuffer,
        rows: usize,
        layer: &Layer<'_>,
    ) -> Result<(View<'a, bf16>, ViewMut<'a, bf16>)> {
        let stream = &context.stream;
        let queries = q.bf16(0..rows)?;
        if layer.padded == layer.dim {
            if self.out.as_ref().is_none_or(|out| out.len() != q.len()) {
                self.out = Some(stream.alloc(q.len())?);
            }
            let out = self.out.as_mut().ok_or_else(no_output)?;
            return Ok((queries, out.view_mut().slice(0..queries.len())?));
        }
        let len = rows * layer.heads * layer.padded;
        if self.padded.as_ref().is_none_or(|[to, _]| to.len() < len) {
            self.padded = Some([stream.alloc(len)?, stream.alloc(len)?]);
        }
        let [to, out] = self.padded.as_mut().ok_or_else(no_output)?;
        context.kernels.repack(stream, queries, layer.dim, to.view_mut().slice(0..len)?, layer.padded)?;
        Ok((to.view().slice(0..len)?, out.view_mut().slice(0..len)?))
    }

    /// Puts the output in the place of the queries.
    fn replace(&mut self, context: &CudaContext, q: &mut CudaBuffer, rows: usize, layer: &Layer<'_>) -> Result<()> {
        if layer.padded == layer.dim {
            return Ok(q.swap(self.out.as_mut().ok_or_else(no_output)?)?);
        }
        let [_, out] = self.padded.as_ref().ok_or_else(no_output)?;
        let out = out.view().slice(0..rows * layer.heads * layer.padded)?;
        Ok(context.kernels.repack(&context.stream, out, layer.padded, q.bf16_mut(0..rows)?, layer.dim)?)
    }
}

impl<'a> Layer<'a> {
    fn new(q: &CudaBuffer, cache: &'a CudaCache, layer: usize, len: usize, scale: Option<f32>) -> Result<Self> {
        let [k, v] = cache.rows(layer, len)?;
        let (dim, padded, kv_heads) = (cache.shape().dim, cache.padded_dim(), cache.shape().heads);
        // What fills the heads up does not change a product of query and key, but must not count in the scale.
        let scale = scale.unwrap_or(1.0 / (dim as f32).sqrt());
        Ok(Self { k, v, heads: q.columns / dim, kv_heads, dim, padded, scale })
    }
}

fn no_output() -> Error {
    Error::Request("attention has no output".into())
}

/// Indexes of the heads, estimated on the host from copies of the queries and keys.
fn estimate(
    stream: &Stream,
    q: View<'_, bf16>,
    layer: &Layer<'_>,
    rows: usize,
    len: usize,
    patterns: &[Pattern],
    options: &Options<'_>,
) -> Result<Vec<(Pattern, SparseIndex)>> {
    let (dim, padded, kv_heads) = (layer.dim, layer.padded, layer.kv_heads);
    let q = stream.download(q)?.to_f32_vec();
    let stride = layer.k.data().len() / kv_heads;
    let mut k = Vec::with_capacity(kv_heads * len * padded);
    for head in 0..kv_heads {
        k.extend(stream.download(layer.k.data().slice(head * stride..head * stride + len * padded)?)?);
    }
    let keys = Rows::new(&k, len, kv_heads, dim, padded, len * padded)?;
    let options = Options { scale: Some(layer.scale), ..*options };
    Ok(plan_in_tiles(Rows::contiguous(&q, rows, layer.heads, dim)?, keys, patterns, TILE, &options)?)
}

/// The answer to a sliding window.
pub(crate) fn window_unsupported(window: usize, len: usize) -> Error {
    Error::Request(format!(
        "this model's queries see only the nearest {window} tokens, which CUDA devices do not support beyond that length; {len} tokens \
         were asked for. Use --device cpu, or shorten the prompt with --truncate"
    ))
}

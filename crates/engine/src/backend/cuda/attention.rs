//! Attention of a pass and of a decode step on the device.

use half::bf16;
use speedread_attention::compare::{self, Deviation};
use speedread_attention::cuda::{
    CallShape, DecodeRow, DecodeWorkspace, DeviceOptions, DeviceRows, DeviceRowsMut, Plan, Snapshot, TILE, Workspace,
};
use speedread_attention::{FixedHead, HeadReport, Heads, Options, Pattern, Recall, SparseIndex, plan_fixed};
use speedread_cuda::{Buffer, Stream, View, ViewMut};

use super::CudaBackend;
use super::buffers::CudaBuffer;
use super::cache::{CudaCache, WideLayer};
use super::clock::DeviceClock;
use super::compare::Room;
use super::context::CudaContext;
use crate::backend::{Phase, Row, Seen};
use crate::kv_cache::CacheShape;
use crate::{Error, Result};

/// What attention keeps between calls.
#[derive(Debug)]
pub(super) struct AttentionState {
    work: Workspace,
    buffers: Exchange,
    pub wide: WideLayer,
    decode: DecodeWorkspace,
    compare_room: Room,
}

/// What attention of a layer did, to be read when the device is done.
#[derive(Debug)]
pub(super) struct Pending {
    heads: Reports,
    recall: Option<Vec<Recall>>,
}

/// What the heads of a layer did.
#[derive(Debug)]
enum Reports {
    /// To be read from the device.
    There(Snapshot),
    Here(Vec<HeadReport>),
}

impl Pending {
    /// One entry a query head. Waits for the device.
    pub fn read(self, stream: &Stream) -> Result<Vec<HeadReport>> {
        let mut heads = match self.heads {
            Reports::There(snapshot) => snapshot.read(stream)?,
            Reports::Here(heads) => heads,
        };
        if let Some(recall) = self.recall {
            heads.iter_mut().zip(recall).for_each(|(head, recall)| head.recall = Some(recall));
        }
        Ok(heads)
    }
}

/// Where queries go in and outputs come out.
#[derive(Debug, Default)]
struct Exchange {
    /// As large as the queries, which its content replaces.
    out: Option<Buffer<bf16>>,
    /// Queries and output with heads filled up to a size that the kernels take, where the model's are of another.
    padded: Option<[Buffer<bf16>; 2]>,
}

/// The query heads of a layer, and how they see its keys.
#[derive(Clone, Copy)]
struct QueryHeads {
    count: usize,
    /// Components of a head, and those that the kernels see.
    dim: usize,
    padded: usize,
    scale: f32,
}

/// Queries that attend over one layer's keys and values.
struct Call<'a> {
    context: &'a CudaContext,
    q: &'a CudaBuffer,
    rows: usize,
    heads: QueryHeads,
    k: DeviceRows<'a, bf16>,
    v: DeviceRows<'a, bf16>,
    /// Keys, and the heads they are of.
    len: usize,
    kv_heads: usize,
    options: &'a Options<'a>,
}

impl AttentionState {
    pub fn new(stream: &Stream) -> Result<Self> {
        let (work, decode) = (Workspace::new(), DecodeWorkspace::new(stream)?);
        Ok(Self {
            work,
            buffers: Exchange::default(),
            wide: WideLayer::default(),
            decode,
            compare_room: Room::default(),
        })
    }

    /// Replaces the first `rows` rows of `q` by attention over the first `len` positions of the cache, without waiting for it.
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
        chosen: Heads<'_>,
        options: &Options<'_>,
    ) -> Result<Pending> {
        if let Some(window) = options.window.filter(|&window| window < len) {
            return Err(window_unsupported(window, len));
        }
        let stream = &context.stream;
        let heads = QueryHeads::new(q, cache, options.scale);
        let Self { work, buffers, wide, .. } = self;
        let [k, v] = cache.bf16_rows(context, wide, layer, len)?;
        clock.mark(stream, Phase::Other)?;
        let call = Call { context, q, rows, heads, k, v, len, kv_heads: cache.shape().heads, options };
        let (reports, recall) = match options.audit {
            None => (call.attend(clock, work, buffers, chosen, None)?, None),
            Some(audit) => {
                // The same queries twice; the second output replaces the first, and then the queries. Over a cache of codes a row's
                // log-sum-exp lacks the query's product with the reference key, in both: they compare with each other, but not with
                // those over another cache.
                let mut lse = stream.alloc::<f32>(heads.count * rows)?;
                let dense = vec![Pattern::Dense; heads.count];
                call.attend(clock, work, buffers, Heads::Patterns(&dense), Some(lse.view_mut()))?;
                let all = stream.download(lse.view())?;
                let reports = call.attend(clock, work, buffers, chosen, Some(lse.view_mut()))?;
                let kept = stream.download(lse.view())?;
                let of_head = |(kept, all): (&[f32], &[f32])| audit.recall(kept, all);
                (reports, Some(kept.chunks_exact(rows).zip(all.chunks_exact(rows)).map(of_head).collect()))
            }
        };
        buffers.replace(context, q, rows, heads)?;
        clock.mark(stream, Phase::Attention)?;
        Ok(Pending { heads: reports, recall })
    }

    /// How plans stray from dense attention.
    pub fn compare(
        &mut self,
        context: &CudaContext,
        seen: &Seen<'_, CudaBackend>,
        plans: &[Vec<compare::Plan<'_>>],
        options: &Options<'_>,
    ) -> Result<Vec<Vec<Deviation>>> {
        let Seen { q, rows, cache, layer, len } = *seen;
        if let Some(window) = options.window.filter(|&window| window < len) {
            return Err(window_unsupported(window, len));
        }
        let heads = QueryHeads::new(q, cache, options.scale);
        let Self { work, buffers, wide, compare_room, .. } = self;
        let [k, v] = cache.bf16_rows(context, wide, layer, len)?;
        let (queries, _) = buffers.take(context, q, rows, heads)?;
        let queries = DeviceRows::contiguous(queries, rows, heads.count, heads.padded)?;
        let kv_heads = cache.shape().heads;
        let shape = CallShape { rows, start: len - rows, heads: heads.count, kv_heads, dim: heads.padded };
        // The cache, the queries, and room for attention's output.
        let cached = CacheShape { dim: heads.padded, ..*cache.shape() }.bytes().unwrap_or(0);
        compare_room.check(context, &shape, plans, cached + (2 * q.len() * size_of::<bf16>()) as u64)?;
        let (stream, attention) = (&context.stream, &context.attention);
        Ok(attention.compare(stream, queries, k, v, plans, Some(heads.scale), work, options.cancel)?)
    }

    /// Replaces the first rows of `q` by attention of each over its cache up to its position, the last `window` keys (`None` = all).
    pub fn decode(
        &mut self,
        context: &CudaContext,
        q: &mut CudaBuffer,
        rows: &[Row<'_, CudaCache>],
        layer: usize,
        window: Option<usize>,
    ) -> Result<()> {
        let Some(first) = rows.first() else { return Ok(()) };
        let heads = QueryHeads::new(q, first.cache, None);
        let (stream, attention) = (&context.stream, &context.attention);
        let (queries, mut outs) = self.buffers.take(context, q, rows.len(), heads)?;
        let mut of_step = Vec::with_capacity(rows.len());
        for (n, Row { at, cache, .. }) in rows.iter().enumerate() {
            let width = heads.count * heads.padded;
            let q = queries.slice(n * width..(n + 1) * width)?;
            let (out, rest) = outs.split_at(width)?;
            outs = rest;
            let len = at.start + 1;
            of_step.push(DecodeRow {
                q: DeviceRows::contiguous(q, 1, heads.count, heads.padded)?,
                cached: cache.rows(layer, len)?.tail(window.unwrap_or(len)),
                out: DeviceRowsMut::contiguous(out, 1, heads.count, heads.padded)?,
            });
        }
        attention.decode_rows(stream, of_step, Some(heads.scale), &mut self.decode)?;
        self.buffers.replace(context, q, rows.len(), heads)
    }
}

impl Call<'_> {
    /// Queues index building where indexes are not fixed, and attention into the output buffer.
    fn attend(
        &self,
        clock: &mut DeviceClock,
        work: &mut Workspace,
        buffers: &mut Exchange,
        chosen: Heads<'_>,
        lse: Option<ViewMut<'_, f32>>,
    ) -> Result<Reports> {
        let Self { context, q, rows, heads, k, v, options, .. } = *self;
        let (stream, attention) = (&context.stream, &context.attention);
        let (queries, out) = buffers.take(context, q, rows, heads)?;
        let queries = DeviceRows::contiguous(queries, rows, heads.count, heads.padded)?;
        let mut out = DeviceRowsMut::contiguous(out, rows, heads.count, heads.padded)?;
        let scale = Some(heads.scale);
        let reports = match chosen {
            Heads::Patterns(patterns) => {
                let options = DeviceOptions { scale, dense_fallback: options.dense_fallback };
                attention.build_indexes(stream, queries, k, patterns, &options, work)?;
                clock.mark(stream, Phase::Index)?;
                attention.attend_built(stream, queries, k, v, work, scale, &mut out, lse)?;
                Reports::There(work.snapshot(stream)?)
            }
            Heads::Fixed(fixed) => {
                let (plan, reports) = self.plan(fixed)?;
                let plan = plan.upload(stream)?;
                clock.mark(stream, Phase::Index)?;
                attention.attend(stream, queries, k, v, &plan, scale, &mut out, lse)?;
                Reports::Here(reports)
            }
        };
        clock.mark(stream, Phase::Attention)?;
        Ok(reports)
    }

    /// The work of fixed heads, laid out on the host, and what they will have done.
    fn plan(&self, fixed: &[FixedHead]) -> Result<(Plan, Vec<HeadReport>)> {
        let Self { rows, len, .. } = *self;
        if rows != len {
            return Err(Error::Request(format!(
                "{rows} of {len} tokens with indexes of another prompt: those are for prompts that are read in one piece"
            )));
        }
        let planned = plan_fixed(fixed, rows, TILE, self.options)?;
        let (ran, indexes): (Vec<Pattern>, Vec<_>) = planned.into_iter().unzip();
        let plan = Plan::new(&indexes, self.kv_heads, self.heads.padded)?;
        let of_head = |((pattern, index), &tiles): ((Pattern, &SparseIndex), &u64)| HeadReport {
            pattern,
            tiles,
            dense_tiles: index.total_dense_tiles(),
            recall: None,
        };
        let reports = ran.into_iter().zip(&indexes).zip(plan.head_tiles()).map(of_head).collect();
        Ok((plan, reports))
    }
}

impl Exchange {
    /// The queries as the kernels take them, and room for their output.
    fn take<'a>(
        &'a mut self,
        context: &CudaContext,
        q: &'a CudaBuffer,
        rows: usize,
        heads: QueryHeads,
    ) -> Result<(View<'a, bf16>, ViewMut<'a, bf16>)> {
        let stream = &context.stream;
        let queries = q.bf16(0..rows)?;
        if heads.padded == heads.dim {
            if self.out.as_ref().is_none_or(|out| out.len() != q.len()) {
                // The old one goes first: plans count one.
                self.out = None;
                self.out = Some(stream.alloc(q.len())?);
            }
            let out = self.out.as_mut().ok_or_else(no_output)?;
            return Ok((queries, out.view_mut().slice(0..queries.len())?));
        }
        let len = rows * heads.count * heads.padded;
        if self.padded.as_ref().is_none_or(|[to, _]| to.len() < len) {
            self.padded = None;
            self.padded = Some([stream.alloc(len)?, stream.alloc(len)?]);
        }
        let [to, out] = self.padded.as_mut().ok_or_else(no_output)?;
        context.kernels.repack(stream, queries, heads.dim, to.view_mut().slice(0..len)?, heads.padded)?;
        Ok((to.view().slice(0..len)?, out.view_mut().slice(0..len)?))
    }

    /// Puts the output in the place of the queries.
    fn replace(&mut self, context: &CudaContext, q: &mut CudaBuffer, rows: usize, heads: QueryHeads) -> Result<()> {
        if heads.padded == heads.dim {
            return Ok(q.swap(self.out.as_mut().ok_or_else(no_output)?)?);
        }
        let [_, out] = self.padded.as_ref().ok_or_else(no_output)?;
        let out = out.view().slice(0..rows * heads.count * heads.padded)?;
        Ok(context.kernels.repack(&context.stream, out, heads.padded, q.bf16_mut(0..rows)?, heads.dim)?)
    }
}

impl QueryHeads {
    fn new(q: &CudaBuffer, cache: &CudaCache, scale: Option<f32>) -> Self {
        let (dim, padded) = (cache.shape().dim, cache.padded_dim());
        // What fills the heads up does not change a product of query and key, but must not count in the scale.
        let scale = scale.unwrap_or(1.0 / (dim as f32).sqrt());
        Self { count: q.columns / dim, dim, padded, scale }
    }
}

fn no_output() -> Error {
    Error::Request("attention has no output".into())
}

/// The answer to a sliding window.
pub(crate) fn window_unsupported(window: usize, len: usize) -> Error {
    Error::Request(format!(
        "this model's queries see only the nearest {window} tokens, which CUDA devices do not support beyond that length; {len} tokens \
         were asked for. Use --device cpu, or shorten the prompt with --truncate"
    ))
}

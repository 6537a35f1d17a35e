//! The CUDA backend: bf16 weights and activations, f32 sums, cublasLt for products.
//!
//! The residual stream is f32: every layer adds to it what is small beside it, and bf16 would drop the last bits of each. It costs one to
//! two hundredths of a prefill's time. Everything else is bf16, rounded once after a sum in f32.

mod attention;
mod buffers;
mod cache;
mod clock;
mod compare;
mod context;
mod kernels;
mod logits;
mod rope;
#[cfg(test)]
mod tests;

use std::ops::Range;

use half::bf16;
use half::slice::HalfFloatSliceExt;
use speedread_attention::compare::{Deviation, Plan};
use speedread_attention::{Heads, Options};
use speedread_cuda::{Buffer, LinearShape, View, ViewMut};

use super::{
    Backend, BlockSize, HeadShape, HostCache, HostView, PassReport, Phase, Positions, Product, Role, Row, Seen,
};
use crate::kv_cache::{CacheShape, KvCache, KvType};
use crate::weights::Matrix;
use crate::{Error, Result};
pub(crate) use attention::window_unsupported;
use attention::{AttentionState, Pending};
pub use buffers::{CudaBuffer, CudaLinear};
pub use cache::CudaCache;
use clock::DeviceClock;
pub use context::{CudaContext, padded_dim};
use kernels::{MATVEC_MATRICES, Matvec};
use logits::Logits;
use rope::Rope;

/// A CUDA device, with the scratch memory of one session.
#[derive(Debug)]
pub struct CudaBackend {
    context: CudaContext,
    clock: DeviceClock,
    /// What attention of each layer of the pass did.
    pending: Vec<Pending>,
    attention: AttentionState,
    rotary: Rotary,
    ids: Buffer<u32>,
    logits: Logits,
}

/// Cosines and sines of the positions of a pass.
#[derive(Debug)]
struct Rotary {
    host_frequencies: Vec<f64>,
    frequencies: Buffer<f64>,
    cosines: Buffer<f32>,
    sines: Buffer<f32>,
}

impl Rotary {
    /// Rows on their way into a cache at `position`; `of_table` are theirs here.
    #[allow(clippy::too_many_arguments)]
    fn rope<'a>(
        &'a self,
        of_table: Range<usize>,
        q: ViewMut<'a, bf16>,
        [k, v]: [View<'a, bf16>; 2],
        heads: HeadShape,
        cache: &'a mut CudaCache,
        layer: usize,
        position: usize,
    ) -> Result<Rope<'a>> {
        let (rows, pairs) = (of_table.len(), self.host_frequencies.len());
        let of_table = of_table.start * pairs..of_table.end * pairs;
        let (kv_heads, row_stride, head_stride) = (cache.shape().heads, cache.padded_dim(), cache.head_stride());
        let HeadShape { dim, layout } = heads;
        Ok(Rope {
            q,
            k,
            v,
            cosines: self.cosines.view().slice(of_table.clone())?,
            sines: self.sines.view().slice(of_table)?,
            cache: cache.places(layer, position, rows)?,
            rows,
            kv_heads,
            dim,
            pairs,
            head_stride,
            row_stride,
            layout,
        })
    }
}

impl CudaBackend {
    /// A backend on an opened device.
    pub fn new(context: &CudaContext) -> Result<Self> {
        let stream = &context.stream;
        Ok(Self {
            clock: DeviceClock::default(),
            pending: vec![],
            attention: AttentionState::new(stream)?,
            rotary: Rotary {
                host_frequencies: vec![],
                frequencies: stream.alloc(0)?,
                cosines: stream.alloc(0)?,
                sines: stream.alloc(0)?,
            },
            ids: stream.alloc(0)?,
            logits: Logits::new(stream)?,
            context: context.clone(),
        })
    }
}

fn shape(rows: usize, weight: &CudaLinear) -> LinearShape {
    LinearShape { rows, inputs: weight.columns, outputs: weight.rows }
}

impl Backend for CudaBackend {
    type Buffer = CudaBuffer;
    type Linear = CudaLinear;
    type Vector = Buffer<f32>;
    type Cache = CudaCache;

    /// So many rows that every product fills the device several times over.
    const BLOCK: BlockSize = BlockSize { bytes: 2 << 30, rows: 256..=16_384 };

    fn begin(&mut self) -> Result<()> {
        self.pending.clear();
        self.clock.start(&self.context.stream)
    }

    fn mark(&mut self, phase: Phase) -> Result<()> {
        self.clock.mark(&self.context.stream, phase)
    }

    fn layer_done(&mut self) -> Result<()> {
        self.clock.layer_done(&self.context.stream)
    }

    fn finish(&mut self) -> Result<PassReport> {
        let stream = &self.context.stream;
        let seconds = self.clock.finish(stream)?;
        let layers = self.pending.drain(..).map(|pending| pending.read(stream)).collect::<Result<_>>()?;
        Ok(PassReport { seconds, layers })
    }

    fn upload_linear(&self, weight: Matrix, bias: Option<Vec<f32>>) -> Result<CudaLinear> {
        CudaLinear::upload(&self.context.stream, &weight, bias.as_deref())
    }

    fn random_linear(
        &self,
        rows: usize,
        columns: usize,
        first: u64,
        range: f32,
        bias: Option<Vec<f32>>,
    ) -> Result<CudaLinear> {
        let stream = &self.context.stream;
        let mut linear = CudaLinear::new(stream, rows, columns, bias.as_deref())?;
        self.context.kernels.random_weights(stream, linear.weight.view_mut(), first, range)?;
        Ok(linear)
    }

    fn upload_vector(&self, values: Vec<f32>) -> Result<Buffer<f32>> {
        Ok(self.context.stream.upload(&values)?)
    }

    fn buffer(&self, rows: usize, columns: usize, role: Role) -> Result<CudaBuffer> {
        CudaBuffer::new(&self.context.stream, rows, columns, role)
    }

    fn cache(&self, shape: CacheShape) -> Result<CudaCache> {
        CudaCache::new(&self.context.stream, shape)
    }

    fn rotary(&mut self, runs: &[Positions<'_>]) -> Result<()> {
        let (context, rotary) = (&self.context, &mut self.rotary);
        let stream = &context.stream;
        let count = runs.iter().map(|run| run.rows * run.frequencies.len()).sum();
        rotary.cosines.grow(count)?;
        rotary.sines.grow(count)?;
        let mut first = 0;
        for &Positions { frequencies, scale, start, rows } in runs {
            if rotary.host_frequencies != frequencies {
                rotary.frequencies = stream.upload(frequencies)?;
                rotary.host_frequencies = frequencies.to_vec();
            }
            let of_run = first..first + rows * frequencies.len();
            first = of_run.end;
            let cosines = rotary.cosines.view_mut().slice(of_run.clone())?;
            let sines = rotary.sines.view_mut().slice(of_run)?;
            context.kernels.rope.table(stream, rotary.frequencies.view(), start as u64, scale, cosines, sines)?;
        }
        Ok(())
    }

    fn embed(&mut self, table: &CudaLinear, ids: &[u32], out: &mut CudaBuffer, row: usize) -> Result<()> {
        let stream = &self.context.stream;
        self.ids.grow(ids.len())?;
        stream.write(ids, self.ids.view_mut().slice(0..ids.len())?)?;
        let ids = self.ids.view().slice(0..ids.len())?;
        let columns = out.columns;
        let out = out.f32_mut(row..row + ids.len())?;
        Ok(self.context.kernels.embed(stream, table.weight.view(), ids, out, columns)?)
    }

    fn rms_norm(
        &mut self,
        x: &CudaBuffer,
        rows: Range<usize>,
        weight: &Buffer<f32>,
        eps: f32,
        out: &mut CudaBuffer,
    ) -> Result<()> {
        let (x, out) = (x.f32(rows.clone())?, out.bf16_mut(0..rows.len())?);
        Ok(self.context.kernels.rms_norm(&self.context.stream, x, weight.view(), eps, out)?)
    }

    fn rms_norm_in_place(
        &mut self,
        x: &mut CudaBuffer,
        rows: Range<usize>,
        weight: &Buffer<f32>,
        eps: f32,
    ) -> Result<()> {
        let x = x.bf16_mut(rows)?;
        Ok(self.context.kernels.rms_norm_in_place(&self.context.stream, x, weight.view(), eps)?)
    }

    fn linear(&mut self, x: &CudaBuffer, rows: Range<usize>, products: &mut [Product<'_, Self>]) -> Result<()> {
        let context = &self.context;
        let (count, x) = (rows.len(), x.bf16(rows)?);
        if count == 1 {
            for products in products.chunks_mut(MATVEC_MATRICES) {
                let mut matrices = Vec::with_capacity(MATVEC_MATRICES);
                for Product { weight, out, row } in products {
                    let bias = weight.bias.as_ref().map(|bias| bias.f32.view());
                    matrices.push(Matvec { weight: weight.weight.view(), bias, out: out.bf16_mut(*row..*row + 1)? });
                }
                context.kernels.matvec(&context.stream, x, matrices)?;
            }
            return Ok(());
        }
        for Product { weight, out, row } in products {
            let out = out.bf16_mut(*row..*row + count)?;
            let (matrix, bias) = (weight.weight.view(), weight.bias.as_ref().map(|bias| bias.bf16.view()));
            context.blas.linear(shape(count, weight), x, matrix, bias, false, out)?;
        }
        Ok(())
    }

    fn linear_add(&mut self, x: &CudaBuffer, rows: Range<usize>, product: Product<'_, Self>) -> Result<()> {
        let context = &self.context;
        let Product { weight, out, row } = product;
        let (count, x) = (rows.len(), x.bf16(rows)?);
        let out = out.f32_mut(row..row + count)?;
        let (matrix, bias) = (weight.weight.view(), weight.bias.as_ref().map(|bias| bias.f32.view()));
        if count == 1 {
            context.kernels.matvec_f32(&context.stream, x, Matvec { weight: matrix, bias, out }, true)?;
        } else {
            context.blas.linear(shape(count, weight), x, matrix, bias, true, out)?;
        }
        Ok(())
    }

    fn rope_append(
        &mut self,
        q: &mut CudaBuffer,
        k: &mut CudaBuffer,
        v: &CudaBuffer,
        rows: Range<usize>,
        kv_row: usize,
        heads: HeadShape,
        cache: &mut CudaCache,
        layer: usize,
        position: usize,
    ) -> Result<()> {
        let of_kv = kv_row..kv_row + rows.len();
        let (q, kv) = (q.bf16_mut(rows.clone())?, [k.bf16(of_kv.clone())?, v.bf16(of_kv)?]);
        let rope = self.rotary.rope(rows, q, kv, heads, cache, layer, position)?;
        Ok(self.context.kernels.rope.append(&self.context.stream, rope)?)
    }

    fn decode_append(
        &mut self,
        q: &mut CudaBuffer,
        k: &mut CudaBuffer,
        v: &CudaBuffer,
        heads: HeadShape,
        rows: &mut [Row<'_, CudaCache>],
        layer: usize,
    ) -> Result<()> {
        let (width, mut queries) = (q.columns, q.bf16_mut(0..rows.len())?);
        let mut ropes = Vec::with_capacity(rows.len());
        for (n, Row { at, cache, .. }) in rows.iter_mut().enumerate() {
            let (q, rest) = queries.split_at(width)?;
            queries = rest;
            let kv = [k.bf16(n..n + 1)?, v.bf16(n..n + 1)?];
            ropes.push(self.rotary.rope(n..n + 1, q, kv, heads, cache, layer, at.start)?);
        }
        Ok(self.context.kernels.rope.append_rows(&self.context.stream, ropes)?)
    }

    fn attend(
        &mut self,
        q: &mut CudaBuffer,
        rows: usize,
        cache: &CudaCache,
        layer: usize,
        len: usize,
        heads: Heads<'_>,
        options: &Options<'_>,
    ) -> Result<()> {
        let Self { context, clock, attention, .. } = self;
        let pending = attention.prefill(context, clock, q, rows, cache, layer, len, heads, options)?;
        self.pending.push(pending);
        Ok(())
    }

    fn decode_attend(
        &mut self,
        q: &mut CudaBuffer,
        rows: &[Row<'_, CudaCache>],
        layer: usize,
        window: Option<usize>,
    ) -> Result<()> {
        self.clock.forget();
        self.attention.decode(&self.context, q, rows, layer, window)
    }

    fn swiglu(&mut self, gate: &mut CudaBuffer, up: &CudaBuffer, rows: usize) -> Result<()> {
        Ok(self.context.kernels.swiglu(&self.context.stream, gate.bf16_mut(0..rows)?, up.bf16(0..rows)?)?)
    }

    fn add(&mut self, x: &mut CudaBuffer, rows: Range<usize>, y: &CudaBuffer) -> Result<()> {
        let y = y.bf16(0..rows.len())?;
        Ok(self.context.kernels.add(&self.context.stream, x.f32_mut(rows)?, y)?)
    }

    fn logits(&mut self, weight: &CudaLinear, x: &CudaBuffer, rows: usize, out: &mut [f32]) -> Result<()> {
        self.logits.read(&self.context, weight, x, rows, out)
    }

    fn likeliest(&mut self, weight: &CudaLinear, x: &CudaBuffer, chosen: &mut [u32]) -> Result<bool> {
        self.logits.likeliest(&self.context, weight, x, chosen)
    }

    fn read(&mut self, x: &CudaBuffer, rows: usize) -> Result<Vec<f32>> {
        let stream = &self.context.stream;
        match x.data {
            buffers::Data::F32(_) => Ok(stream.download(x.f32(0..rows)?)?),
            buffers::Data::Bf16(_) => Ok(stream.download(x.bf16(0..rows)?)?.to_f32_vec()),
        }
    }

    fn host_view<'a>(&mut self, seen: &Seen<'a, Self>) -> Result<HostView<'a>> {
        let Seen { q, rows, cache, layer, len } = *seen;
        // What prefill's attention reads, of a quantised cache too.
        let shape = CacheShape { layers: 1, capacity: len, kind: KvType::Bf16, ..*cache.shape() };
        let padded = cache.padded_dim();
        let [k, v] = cache.bf16_rows(&self.context, &mut self.attention.wide, layer, len)?.map(|rows| {
            let mut numbers = vec![0.0; len * shape.heads * shape.dim];
            for head in 0..shape.heads {
                let of_head: Vec<bf16> = self.context.stream.download(rows.head(head)?)?;
                for (row, from) in of_head.chunks_exact(padded).enumerate() {
                    let at = (row * shape.heads + head) * shape.dim;
                    from[..shape.dim].convert_to_f32_slice(&mut numbers[at..at + shape.dim]);
                }
            }
            Ok::<_, Error>(numbers)
        });
        let mut copy = KvCache::new(shape)?;
        copy.append(0, 0, len, &k?, &v?)?;
        Ok(HostView { q: self.read(q, rows)?.into(), rows, cache: HostCache::Copy(copy), layer: 0, len })
    }

    fn compare(
        &mut self,
        seen: &Seen<'_, Self>,
        plans: &[Vec<Plan<'_>>],
        _: usize, // all rows take less time than the host's part
        options: &Options<'_>,
    ) -> Result<Vec<Vec<Deviation>>> {
        self.attention.compare(&self.context, seen, plans, options)
    }
}

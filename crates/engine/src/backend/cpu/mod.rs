//! The CPU backend: quantised weights, f32 activations, rayon for threads.

pub mod gemm;
mod ops;
mod simd;

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;
use speedread_attention::compare::{Deviation, Plan, compare};
use speedread_attention::{HeadReport, Heads, Kernel, Options, Rows, RowsMut, prefill_heads};

use super::{
    Backend, BlockSize, HeadShape, HostCache, HostClock, HostView, PassReport, Phase, Positions, Product, Role, Row,
    Seen,
};
use crate::kv_cache::{CacheShape, KvCache, View};
use crate::rope::{RopeLayout, RotaryTable};
use crate::synthetic;
use crate::weights::Matrix;
use crate::{Error, Result};
use gemm::{Linear, Precision, Scratch, Start, WeightRows};

/// Up to this many rows are multiplied one by one with the quantised weights; more are worth widening a matrix for.
const MATVEC_ROWS: usize = 4;
/// Elements a task of an element-wise operation handles: some 64 KiB.
const TASK: usize = 16_384;

/// The CPU, with the scratch memory of one session.
#[derive(Default)]
pub struct CpuBackend {
    precision: Precision,
    scratch: Scratch,
    rotary: RotaryTable,
    /// Output of the attention of the heads in work, or of a matrix-vector product.
    temporary: Vec<f32>,
    clock: HostClock,
    reports: Vec<Vec<HeadReport>>,
}

impl std::fmt::Debug for CpuBackend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CpuBackend").field("precision", &self.precision).finish_non_exhaustive()
    }
}

/// Rows of f32.
#[derive(Debug)]
pub struct CpuBuffer {
    data: Vec<f32>,
    columns: usize,
}

impl CpuBuffer {
    pub(crate) fn rows(&self, rows: Range<usize>) -> &[f32] {
        &self.data[rows.start * self.columns..rows.end * self.columns]
    }

    #[cfg(test)]
    pub(crate) fn fill_for_test(&mut self, values: &[f32]) {
        self.data.copy_from_slice(values);
    }

    fn rows_mut(&mut self, rows: Range<usize>) -> &mut [f32] {
        &mut self.data[rows.start * self.columns..rows.end * self.columns]
    }
}

/// A matrix, as quantised as it came, and its bias.
#[derive(Debug)]
pub struct CpuLinear {
    weight: Matrix,
    bias: Option<Vec<f32>>,
}

impl WeightRows for Matrix {
    fn rows(&self) -> usize {
        Matrix::rows(self)
    }

    fn cols(&self) -> usize {
        Matrix::cols(self)
    }

    fn dequantize_rows(&self, rows: Range<usize>, out: &mut [f32]) {
        Matrix::dequantize_rows(self, rows, out);
    }
}

impl CpuBackend {
    /// A backend that multiplies the rows of a prompt at this precision.
    pub fn new(precision: Precision) -> Self {
        Self { precision, ..Self::default() }
    }

    /// Key/value heads per call of the attention kernel: few, because their output needs a buffer of its own, but enough to give every
    /// thread a query head.
    pub(crate) fn kv_heads_per_call(kv_heads: usize, group: usize) -> usize {
        rayon::current_num_threads().div_ceil(group).clamp(1, kv_heads)
    }

    /// Upper bound on the working memory of the matrix products of `rows` rows of up to `columns` columns.
    pub(crate) fn product_bytes(rows: usize, columns: usize) -> u64 {
        Scratch::max_bytes(rows, columns, rayon::current_num_threads())
    }
}

/// Runs `work` on matching blocks of whole rows in parallel.
fn per_rows<F: Fn(usize, &mut [f32]) + Sync>(data: &mut [f32], columns: usize, work: F) {
    let rows = (TASK / columns).max(1);
    if data.len() <= rows * columns {
        return work(0, data);
    }
    data.par_chunks_mut(rows * columns).enumerate().for_each(|(i, block)| work(i * rows, block));
}

impl Backend for CpuBackend {
    type Buffer = CpuBuffer;
    type Linear = CpuLinear;
    type Vector = Arc<[f32]>;
    type Cache = KvCache;

    /// As many rows as memory allows, because every product widens its weights once per block.
    const BLOCK: BlockSize = BlockSize { bytes: 64 << 20, rows: 256..=4096 };

    fn begin(&mut self) -> Result<()> {
        (self.clock, self.reports) = Default::default();
        Ok(())
    }

    fn mark(&mut self, phase: Phase) -> Result<()> {
        self.clock.lap(phase);
        Ok(())
    }

    fn layer_done(&mut self) -> Result<()> {
        Ok(())
    }

    fn finish(&mut self) -> Result<PassReport> {
        self.clock.lap(Phase::Other);
        Ok(PassReport { seconds: self.clock.seconds, layers: std::mem::take(&mut self.reports) })
    }

    fn upload_linear(&self, weight: Matrix, bias: Option<Vec<f32>>) -> Result<CpuLinear> {
        Ok(CpuLinear { weight, bias })
    }

    fn random_linear(
        &self,
        rows: usize,
        columns: usize,
        first: u64,
        range: f32,
        bias: Option<Vec<f32>>,
    ) -> Result<CpuLinear> {
        let weight = Matrix::from_bf16(rows, columns, &synthetic::values(rows * columns, first, range));
        Ok(CpuLinear { weight, bias })
    }

    fn upload_vector(&self, values: Vec<f32>) -> Result<Self::Vector> {
        Ok(values.into())
    }

    fn buffer(&self, rows: usize, columns: usize, _: Role) -> Result<CpuBuffer> {
        let len = rows.checked_mul(columns).filter(|len| *len <= isize::MAX as usize / 4);
        let len = len.ok_or_else(|| Error::Request(format!("a buffer of {rows} x {columns} numbers is too large")))?;
        Ok(CpuBuffer { data: vec![0.0; len], columns })
    }

    fn cache(&self, shape: CacheShape) -> Result<KvCache> {
        KvCache::new(shape)
    }

    fn rotary(&mut self, runs: &[Positions<'_>]) -> Result<()> {
        let mut first = 0;
        for &Positions { frequencies, scale, start, rows } in runs {
            self.rotary.fill(first, frequencies, scale, start as u64, rows);
            first += rows;
        }
        Ok(())
    }

    fn embed(&mut self, table: &CpuLinear, ids: &[u32], out: &mut CpuBuffer, row: usize) -> Result<()> {
        let columns = out.columns;
        per_rows(out.rows_mut(row..row + ids.len()), columns, |first, out| {
            for (row, &id) in out.chunks_exact_mut(columns).zip(&ids[first..]) {
                table.weight.dequantize_rows(id as usize..id as usize + 1, row);
            }
        });
        Ok(())
    }

    fn rms_norm(
        &mut self,
        x: &CpuBuffer,
        rows: Range<usize>,
        weight: &Self::Vector,
        eps: f32,
        out: &mut CpuBuffer,
    ) -> Result<()> {
        let columns = x.columns;
        let x = x.rows(rows.clone());
        per_rows(out.rows_mut(0..rows.len()), columns, |first, out| {
            let x = x[first * columns..].chunks_exact(columns);
            for (out, x) in out.chunks_exact_mut(columns).zip(x) {
                ops::rms_norm(x, weight, eps, out);
            }
        });
        Ok(())
    }

    fn rms_norm_in_place(
        &mut self,
        x: &mut CpuBuffer,
        rows: Range<usize>,
        weight: &Self::Vector,
        eps: f32,
    ) -> Result<()> {
        let columns = x.columns;
        per_rows(x.rows_mut(rows), columns, |_, x| ops::rms_norm_in_place(x, weight, eps));
        Ok(())
    }

    fn linear(&mut self, x: &CpuBuffer, rows: Range<usize>, products: &mut [Product<'_, Self>]) -> Result<()> {
        let (count, x_columns) = (rows.len(), x.columns);
        let x = x.rows(rows);
        if count > MATVEC_ROWS {
            let mut linears: Vec<Linear<'_>> = products
                .iter_mut()
                .map(|product| {
                    let start = product.weight.bias.as_deref().map_or(Start::Zero, Start::Bias);
                    Linear::new(&product.weight.weight, start, product.out.rows_mut(product.row..product.row + count))
                })
                .collect();
            gemm::matmul(x, count, &mut linears, self.precision, &mut self.scratch);
            return Ok(());
        }
        for product in products {
            let columns = product.out.columns;
            let out = product.out.rows_mut(product.row..product.row + count);
            for (x, out) in x.chunks_exact(x_columns).zip(out.chunks_exact_mut(columns)) {
                product.weight.weight.matvec(x, out);
                if let Some(bias) = &product.weight.bias {
                    ops::add(out, bias);
                }
            }
        }
        Ok(())
    }

    fn linear_add(&mut self, x: &CpuBuffer, rows: Range<usize>, product: Product<'_, Self>) -> Result<()> {
        let (count, x_columns, columns) = (rows.len(), x.columns, product.out.columns);
        let x = x.rows(rows);
        let out = product.out.rows_mut(product.row..product.row + count);
        if count > MATVEC_ROWS {
            let mut linears = [Linear::new(&product.weight.weight, Start::Accumulate, out)];
            gemm::matmul(x, count, &mut linears, self.precision, &mut self.scratch);
        } else {
            self.temporary.resize(columns, 0.0);
            for (x, out) in x.chunks_exact(x_columns).zip(out.chunks_exact_mut(columns)) {
                product.weight.weight.matvec(x, &mut self.temporary);
                ops::add(out, &self.temporary);
            }
        }
        if let Some(bias) = &product.weight.bias {
            let out = product.out.rows_mut(product.row..product.row + count);
            per_rows(out, columns, |_, out| out.chunks_exact_mut(columns).for_each(|row| ops::add(row, bias)));
        }
        Ok(())
    }

    fn rope_append(
        &mut self,
        q: &mut CpuBuffer,
        k: &mut CpuBuffer,
        v: &CpuBuffer,
        rows: Range<usize>,
        kv_row: usize,
        heads: HeadShape,
        cache: &mut KvCache,
        layer: usize,
        position: usize,
    ) -> Result<()> {
        let table = &self.rotary;
        let rotate = |x: &mut [f32], columns: usize| {
            per_rows(x, columns, |first, x| {
                for (row, x) in x.chunks_exact_mut(columns).enumerate() {
                    let (cos, sin) = table.row(rows.start + first + row);
                    match heads.layout {
                        RopeLayout::Halves => ops::rope_halves(x, heads.dim, cos, sin),
                        RopeLayout::Interleaved => ops::rope_interleaved(x, heads.dim, cos, sin),
                    }
                }
            });
        };
        let of_kv = kv_row..kv_row + rows.len();
        let columns = q.columns;
        rotate(q.rows_mut(rows.clone()), columns);
        let columns = k.columns;
        rotate(k.rows_mut(of_kv.clone()), columns);
        cache.append(layer, position, rows.len(), k.rows(of_kv.clone()), v.rows(of_kv))
    }

    fn attend(
        &mut self,
        q: &mut CpuBuffer,
        rows: usize,
        cache: &KvCache,
        layer: usize,
        len: usize,
        of_heads: Heads<'_>,
        options: &Options<'_>,
    ) -> Result<()> {
        // A few heads at a time, so that the output needs only a part of the size of q before it replaces q.
        let shape = *cache.shape();
        let (dim, width) = (shape.dim, q.columns);
        let group = width / (shape.heads * dim);
        let step = Self::kv_heads_per_call(shape.heads, group);
        let mut heads_done = Vec::with_capacity(of_heads.len());
        for first in (0..shape.heads).step_by(step) {
            let kv_heads = step.min(shape.heads - first);
            let heads = kv_heads * group;
            let (column, columns) = (first * group * dim, heads * dim);
            self.temporary.resize(rows * columns, 0.0);
            let queries = Rows::new(&q.data[column..rows * width], rows, heads, dim, width, dim)?;
            let out = RowsMut::contiguous(&mut self.temporary[..rows * columns], rows, heads, dim)?;
            let of_heads = of_heads.slice(first * group..first * group + heads);
            let report = match cache.view(layer, first, kv_heads, len)? {
                View::F32(k, v) => prefill_heads(queries, k, v, of_heads, options, out, None),
                View::F16(k, v) => prefill_heads(queries, k, v, of_heads, options, out, None),
                View::Bf16(k, v) => prefill_heads(queries, k, v, of_heads, options, out, None),
            }?;
            let attended = &self.temporary[..rows * columns];
            per_rows(q.rows_mut(0..rows), width, |first, q| {
                let attended = attended[first * columns..].chunks_exact(columns);
                for (q, attended) in q.chunks_exact_mut(width).zip(attended) {
                    q[column..column + columns].copy_from_slice(attended);
                }
            });
            heads_done.extend(report.heads);
            self.clock.credit(Phase::Index, report.index_seconds);
            self.clock.credit(Phase::Attention, report.attention_seconds);
        }
        self.reports.push(heads_done);
        Ok(())
    }

    fn decode_attend(
        &mut self,
        q: &mut CpuBuffer,
        rows: &[Row<'_, KvCache>],
        layer: usize,
        window: Option<usize>,
    ) -> Result<()> {
        self.temporary.resize(q.columns, 0.0);
        for (n, Row { at, cache, .. }) in rows.iter().enumerate() {
            let len = at.start + 1;
            let near = window.unwrap_or(len);
            let (query, out) = (q.rows_mut(n..n + 1), &mut self.temporary);
            match cache.view(layer, 0, cache.shape().heads, len)? {
                View::F32(k, v) => speedread_attention::decode(query, k.tail(near), v.tail(near), None, out),
                View::F16(k, v) => speedread_attention::decode(query, k.tail(near), v.tail(near), None, out),
                View::Bf16(k, v) => speedread_attention::decode(query, k.tail(near), v.tail(near), None, out),
            }?;
            query.copy_from_slice(&self.temporary);
        }
        Ok(())
    }

    fn swiglu(&mut self, gate: &mut CpuBuffer, up: &CpuBuffer, rows: usize) -> Result<()> {
        let columns = gate.columns;
        let up = up.rows(0..rows);
        per_rows(gate.rows_mut(0..rows), columns, |first, gate| {
            ops::swiglu(gate, &up[first * columns..first * columns + gate.len()]);
        });
        Ok(())
    }

    fn add(&mut self, x: &mut CpuBuffer, rows: Range<usize>, y: &CpuBuffer) -> Result<()> {
        let columns = x.columns;
        let y = y.rows(0..rows.len());
        per_rows(x.rows_mut(rows), columns, |first, x| {
            ops::add(x, &y[first * columns..first * columns + x.len()]);
        });
        Ok(())
    }

    fn logits(&mut self, weight: &CpuLinear, x: &CpuBuffer, rows: usize, out: &mut [f32]) -> Result<()> {
        let (columns, x) = (x.columns, x.rows(0..rows));
        if rows > MATVEC_ROWS {
            let mut linears = [Linear::new(&weight.weight, Start::Zero, out)];
            gemm::matmul(x, rows, &mut linears, self.precision, &mut self.scratch);
        } else {
            let outs = out.chunks_exact_mut(weight.weight.rows());
            x.chunks_exact(columns).zip(outs).for_each(|(x, out)| weight.weight.matvec(x, out));
        }
        Ok(())
    }

    fn read(&mut self, x: &CpuBuffer, rows: usize) -> Result<Vec<f32>> {
        Ok(x.rows(0..rows).to_vec())
    }

    fn host_view<'a>(&mut self, seen: &Seen<'a, Self>) -> Result<HostView<'a>> {
        let Seen { q, rows, cache, layer, len } = *seen;
        Ok(HostView { q: q.rows(0..rows).into(), rows, cache: HostCache::Own(cache), layer, len })
    }

    fn compare(
        &mut self,
        seen: &Seen<'_, Self>,
        plans: &[Vec<Plan<'_>>],
        query_tiles: usize,
        options: &Options<'_>,
    ) -> Result<Vec<Vec<Deviation>>> {
        let view = self.host_view(seen)?;
        let q = view.queries()?;
        Ok(match view.keys_and_values()? {
            View::F32(k, v) => compare(q, k, v, plans, query_tiles, Kernel::Cpu, options),
            View::F16(k, v) => compare(q, k, v, plans, query_tiles, Kernel::Cpu, options),
            View::Bf16(k, v) => compare(q, k, v, plans, query_tiles, Kernel::Cpu, options),
        }?)
    }
}

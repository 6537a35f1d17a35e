//! The CPU's kernel, to be timed.

use half::f16;
use speedread_attention::cpu::Isa;
use speedread_attention::{Kernel, Options, Pattern, Rows, RowsMut, SparseIndex, build_indexes, prefill};
use speedread_engine::Result;

use super::{Bench, Seconds, Shape, random};

/// Made-up queries, keys and values.
pub(super) struct CpuBench {
    shape: Shape,
    options: Options<'static>,
    kv_heads: usize,
    q: Vec<f32>,
    k: Vec<f16>,
    out: Vec<f32>,
}

impl CpuBench {
    pub fn new(shape: Shape, isa: Isa) -> Self {
        let Shape { tokens, head_dim, heads, kv_heads } = shape;
        // A query head a thread at least, as prefill takes them.
        let group = heads / kv_heads;
        let kv_heads = rayon::current_num_threads().div_ceil(group);
        let mut random = random();
        let q: Vec<f32> = (0..tokens * kv_heads * group * head_dim).map(|_| random()).collect();
        let k = (0..tokens * kv_heads * head_dim).map(|_| f16::from_f32(random())).collect();
        let options = Options { isa: Some(isa), dense_fallback: false, ..Options::default() };
        Self { shape: Shape { heads: kv_heads * group, ..shape }, options, kv_heads, out: vec![0.0; q.len()], q, k }
    }

    fn rows(&self) -> Result<(Rows<'_, f32>, Rows<'_, f16>)> {
        let Shape { tokens, head_dim, heads, .. } = self.shape;
        let k = Rows::contiguous(&self.k, tokens, self.kv_heads, head_dim)?;
        Ok((Rows::contiguous(&self.q, tokens, heads, head_dim)?, k))
    }
}

impl Bench for CpuBench {
    fn kernel(&self) -> Kernel {
        Kernel::Cpu
    }

    fn heads(&self) -> usize {
        self.shape.heads
    }

    fn indexes(&mut self, pattern: Pattern) -> Result<Vec<SparseIndex>> {
        let (q, k) = self.rows()?;
        Ok(build_indexes(q, k, &vec![pattern; self.heads()], &self.options)?)
    }

    fn time(&mut self, pattern: Pattern) -> Result<Seconds> {
        let Shape { tokens, head_dim, heads, .. } = self.shape;
        let mut out = std::mem::take(&mut self.out);
        let (q, k) = self.rows()?;
        let to = RowsMut::contiguous(&mut out, tokens, heads, head_dim)?;
        let report = prefill(q, k, k, &vec![pattern; heads], &self.options, to, None)?;
        self.out = out;
        Ok(Seconds { index: report.index_seconds, attention: report.attention_seconds })
    }
}

//! Attention on the CPU.

use std::sync::atomic::AtomicBool;

use half::f16;
use speedread_attention::cpu::Isa;
use speedread_attention::{Options, Pattern, Rows, RowsMut};

use super::super::numbers::{host_has, product, random};
use super::{Bench, Timed};
use crate::args::bench::Heads;
use crate::output;

/// The CPU, and what is computed there.
pub struct OnCpu {
    heads: Heads,
    q: Vec<f32>,
    k: Vec<f16>,
    v: Vec<f16>,
    out: Vec<f32>,
}

impl OnCpu {
    pub fn new(heads: Heads) -> Self {
        Self { heads, q: vec![], k: vec![], v: vec![], out: vec![] }
    }
}

impl Bench for OnCpu {
    fn name(&self) -> String {
        let threads = rayon::current_num_threads();
        format!("{}, {threads} threads", output::cpu().unwrap_or_else(|| std::env::consts::ARCH.into()))
    }

    fn device(&self) -> Option<&str> {
        None
    }

    fn kernel(&self) -> String {
        Isa::bf16().unwrap_or_else(Isa::detect).name().into()
    }

    fn lengths(&self) -> &'static [usize] {
        &[1024, 4096, 16_384]
    }

    fn tile(&self) -> usize {
        let tile = speedread_attention::cpu::TILE;
        tile.queries * tile.keys
    }

    fn fits(&self, tokens: usize, _: &[Pattern]) -> anyhow::Result<bool> {
        let Heads { heads, kv_heads, dim } = self.heads;
        // Queries and output in f32; keys and values in f16, and once more as the kernel packs them, in f32 at most.
        let rows = product(tokens, heads, dim, 2 * 4);
        let cache = product(tokens, kv_heads, dim, 2 * (2 + 4));
        // Of each head in work a few numbers of each key, as the engine plans them.
        let index = product(tokens, rayon::current_num_threads(), 1, 64);
        let all = rows.zip(cache).zip(index).and_then(|((a, b), c)| a.checked_add(b)?.checked_add(c));
        Ok(host_has(all))
    }

    fn fill(&mut self, tokens: usize, cancel: &AtomicBool) -> anyhow::Result<()> {
        let Heads { heads, kv_heads, dim } = self.heads;
        // Freed first: both lengths need not fit.
        (self.q, self.k, self.v, self.out) = (vec![], vec![], vec![], vec![]);
        self.q = random(tokens * heads * dim, 1, cancel, 0.0, |x| x)?;
        self.k = random(tokens * kv_heads * dim, 2, cancel, f16::ZERO, f16::from_f32)?;
        self.v = random(tokens * kv_heads * dim, 3, cancel, f16::ZERO, f16::from_f32)?;
        self.out = vec![0.0; self.q.len()];
        Ok(())
    }

    fn run(&mut self, pattern: Pattern, cancel: &AtomicBool) -> anyhow::Result<Timed> {
        let Heads { heads, kv_heads, dim } = self.heads;
        let tokens = self.q.len() / (heads * dim);
        let (q, k) =
            (Rows::contiguous(&self.q, tokens, heads, dim)?, Rows::contiguous(&self.k, tokens, kv_heads, dim)?);
        let v = Rows::contiguous(&self.v, tokens, kv_heads, dim)?;
        let out = RowsMut::contiguous(&mut self.out, tokens, heads, dim)?;
        let options = Options { dense_fallback: false, isa: Isa::bf16(), cancel: Some(cancel), ..Options::default() };
        let report = speedread_attention::prefill(q, k, v, &vec![pattern; heads], &options, out, None)?;
        Ok(Timed { index: report.index_seconds, attention: report.attention_seconds, heads: report.heads })
    }
}

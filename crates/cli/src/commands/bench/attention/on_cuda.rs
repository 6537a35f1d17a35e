//! Attention on a CUDA device.

use std::sync::atomic::AtomicBool;

use anyhow::ensure;
use half::bf16;
use speedread_attention::cuda::{self, CallShape, DeviceOptions, DeviceRows, DeviceRowsMut, HEAD_DIMS, Workspace};
use speedread_attention::{Error, Pattern};
use speedread_cuda::{Buffer, Device, Stream};

use super::super::numbers::{host_has, product, random};
use super::{Bench, Timed};
use crate::args::bench::Heads;

/// Queries, keys, values and output of one length.
struct OnDevice {
    tokens: usize,
    q: Buffer<bf16>,
    k: Buffer<bf16>,
    v: Buffer<bf16>,
    out: Buffer<bf16>,
}

/// A CUDA device, and what is computed there.
pub struct OnCuda {
    heads: Heads,
    device: Device,
    stream: Stream,
    attention: cuda::Attention,
    work: Workspace,
    data: Option<OnDevice>,
}

impl OnCuda {
    pub fn open(ordinal: usize, heads: Heads) -> anyhow::Result<Self> {
        ensure!(
            HEAD_DIMS.contains(&heads.dim),
            "heads of {} components: the CUDA kernels are for heads of {HEAD_DIMS:?}; use --device cpu",
            heads.dim
        );
        let device = Device::open(ordinal)?;
        let (stream, attention) = (device.stream()?, cuda::Attention::new(&device)?);
        Ok(Self { heads, stream, attention, device, work: Workspace::new(), data: None })
    }
}

impl Bench for OnCuda {
    fn name(&self) -> String {
        self.device.name().to_owned()
    }

    fn device(&self) -> Option<&str> {
        Some(self.device.name())
    }

    fn kernel(&self) -> String {
        self.attention.kernel().to_string()
    }

    fn lengths(&self) -> &'static [usize] {
        &[8192, 32_768, 131_072]
    }

    fn tile(&self) -> usize {
        cuda::TILE.queries * cuda::TILE.keys
    }

    fn fits(&self, tokens: usize, patterns: &[Pattern]) -> anyhow::Result<bool> {
        let Heads { heads, kv_heads, dim } = self.heads;
        // Queries, output, keys and values in bf16; the host makes one of them at a time.
        let (q, k) = (product(tokens, heads, dim, 2), product(tokens, kv_heads, dim, 2));
        let Some(data) = q.zip(k).and_then(|(q, k)| q.checked_add(k)?.checked_mul(2)) else { return Ok(false) };
        let free = self.device.memory()?.0;
        if data > free || !host_has(q) {
            return Ok(false);
        }
        let shape = CallShape { rows: tokens, start: 0, heads, kv_heads, dim };
        let work = patterns.iter().map(|&pattern| Workspace::bytes(&shape, &vec![pattern; heads], false));
        // Lengths that no kernel takes do not fit either.
        let work = work.map(|bytes| bytes.unwrap_or(u64::MAX)).max().unwrap_or(0);
        Ok(data.saturating_add(work) <= free)
    }

    fn fill(&mut self, tokens: usize, cancel: &AtomicBool) -> anyhow::Result<()> {
        // Freed first: both lengths need not fit.
        self.data = None;
        let Heads { heads, kv_heads, dim } = self.heads;
        let upload = |heads: usize, seed| -> anyhow::Result<_> {
            Ok(self.stream.upload(&random(tokens * heads * dim, seed, cancel, bf16::ZERO, bf16::from_f32)?)?)
        };
        let (q, k, v) = (upload(heads, 1)?, upload(kv_heads, 2)?, upload(kv_heads, 3)?);
        let out = self.stream.alloc(q.len())?;
        self.data = Some(OnDevice { tokens, q, k, v, out });
        Ok(())
    }

    fn run(&mut self, pattern: Pattern, _: &AtomicBool) -> anyhow::Result<Timed> {
        let Heads { heads, kv_heads, dim } = self.heads;
        let Some(OnDevice { tokens, q, k, v, out }) = &mut self.data else {
            return Err(Error::Shape("no queries, keys and values yet".into()).into());
        };
        let (stream, attention, work) = (&self.stream, &self.attention, &mut self.work);
        let q = DeviceRows::contiguous(q.view(), *tokens, heads, dim)?;
        let k = DeviceRows::contiguous(k.view(), *tokens, kv_heads, dim)?;
        let v = DeviceRows::contiguous(v.view(), *tokens, kv_heads, dim)?;
        let mut out = DeviceRowsMut::contiguous(out.view_mut(), *tokens, heads, dim)?;
        let options = DeviceOptions { dense_fallback: false, ..DeviceOptions::default() };
        let began = stream.record()?;
        attention.build_indexes(stream, q, k, &vec![pattern; heads], &options, work)?;
        let built = stream.record()?;
        attention.attend_built(stream, q, k, v, work, options.scale, &mut out, None)?;
        let ended = stream.record()?;
        let heads = attention.report(stream, work)?;
        Ok(Timed {
            index: began.milliseconds_to(&built)? / 1e3,
            attention: built.milliseconds_to(&ended)? / 1e3,
            heads,
        })
    }
}

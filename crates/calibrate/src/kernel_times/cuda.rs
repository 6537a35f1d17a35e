//! A CUDA device's kernels, to be timed by the device's own clock.

use half::bf16;
use speedread_attention::cuda::{DeviceOptions, DeviceRows, DeviceRowsMut, Workspace};
use speedread_attention::{Kernel, Pattern, SparseIndex};
use speedread_cuda::Buffer;
use speedread_engine::Result;
use speedread_engine::backend::cuda::{CudaContext, padded_dim};

use super::{Bench, Seconds, Shape, random};

const OPTIONS: DeviceOptions = DeviceOptions { scale: None, dense_fallback: false };

/// Made-up queries, keys and values on the device.
pub(super) struct CudaBench<'a> {
    context: &'a CudaContext,
    /// With the head dim that the kernels see.
    shape: Shape,
    q: Buffer<bf16>,
    k: Buffer<bf16>,
    out: Buffer<bf16>,
    work: Workspace,
}

impl<'a> CudaBench<'a> {
    pub fn new(context: &'a CudaContext, shape: Shape) -> Result<Self> {
        // All heads of a layer, as prefill takes them: fewer might not fill the device.
        let shape = Shape { head_dim: padded_dim(shape.head_dim)?, ..shape };
        let Shape { tokens, head_dim, heads, kv_heads } = shape;
        let mut random = random();
        let mut upload = |heads: usize| {
            let numbers: Vec<bf16> = (0..tokens * heads * head_dim).map(|_| bf16::from_f32(random())).collect();
            context.stream().upload(&numbers)
        };
        let (q, k) = (upload(heads)?, upload(kv_heads)?);
        let out = context.stream().alloc(q.len())?;
        Ok(Self { context, shape, q, k, out, work: Workspace::new() })
    }
}

impl Bench for CudaBench<'_> {
    fn kernel(&self) -> Kernel {
        Kernel::Cuda
    }

    fn heads(&self) -> usize {
        self.shape.heads
    }

    fn indexes(&mut self, pattern: Pattern) -> Result<Vec<SparseIndex>> {
        self.time(pattern)?;
        Ok(self.work.indexes(self.context.stream())?)
    }

    fn time(&mut self, pattern: Pattern) -> Result<Seconds> {
        let Shape { tokens, head_dim, heads, kv_heads } = self.shape;
        let (stream, attention, work) = (self.context.stream(), self.context.attention(), &mut self.work);
        let q = DeviceRows::contiguous(self.q.view(), tokens, heads, head_dim)?;
        let k = DeviceRows::contiguous(self.k.view(), tokens, kv_heads, head_dim)?;
        let mut out = DeviceRowsMut::contiguous(self.out.view_mut(), tokens, heads, head_dim)?;
        let began = stream.record()?;
        attention.build_indexes(stream, q, k, &vec![pattern; heads], &OPTIONS, work)?;
        let built = stream.record()?;
        attention.attend_built(stream, q, k, k, work, OPTIONS.scale, &mut out, None)?;
        let ended = stream.record()?;
        stream.synchronize()?;
        Ok(Seconds { index: began.milliseconds_to(&built)? / 1e3, attention: built.milliseconds_to(&ended)? / 1e3 })
    }
}

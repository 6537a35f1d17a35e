//! What a model and its sessions share on a device: the device itself, its queue of work, and everything that is loaded once.

use std::sync::Arc;

use speedread_attention::cuda::{Attention, HEAD_DIMS};
use speedread_cuda::{Blas, Device, Stream};

use super::kernels::Kernels;
use crate::config::ModelConfig;
use crate::{Error, Result};

/// Elements that the kernels move at a time.
const CHUNK: usize = 8;

/// Bytes left alone: the code of the library's kernels comes to the device when each is first used.
const RESERVE: u64 = 512 << 20;

/// A device with everything loaded. Clones share it.
#[derive(Debug, Clone)]
pub struct CudaContext {
    pub(super) device: Device,
    /// One queue for the model and all its sessions: their work is in order without further ado.
    pub(super) stream: Stream,
    pub(super) kernels: Arc<Kernels>,
    pub(super) attention: Arc<Attention>,
    pub(super) blas: Arc<Blas>,
}

impl CudaContext {
    /// Opens device `ordinal` and loads the kernels and libraries.
    pub fn open(ordinal: usize) -> Result<Self> {
        let device = Device::open(ordinal)?;
        let stream = device.stream()?;
        let kernels = Arc::new(Kernels::load(&device)?);
        let (attention, blas) = (Arc::new(Attention::new(&device)?), Arc::new(Blas::new(&stream)?));
        Ok(Self { device, stream, kernels, attention, blas })
    }

    /// The device's name.
    pub fn name(&self) -> &str {
        self.device.name()
    }

    /// The queue of work that its models and their sessions share.
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// The attention kernels.
    pub fn attention(&self) -> &Attention {
        &self.attention
    }

    /// Bytes of device memory that can be taken.
    pub fn free_memory(&self) -> Result<u64> {
        // What was dropped may still be in the queue.
        self.stream.synchronize()?;
        self.device.release_unused()?;
        Ok(self.device.memory()?.0.saturating_sub(RESERVE))
    }

    /// Refuses models whose sizes the kernels do not take.
    pub fn check(config: &ModelConfig) -> Result<()> {
        padded_dim(config.head_dim)?;
        for (what, size) in
            [("hidden size", config.hidden), ("feed-forward size", config.feed_forward), ("head size", config.head_dim)]
        {
            if !size.is_multiple_of(CHUNK) {
                return Err(Error::Unsupported(format!(
                    "{what} {size}: on CUDA devices it must be a multiple of {CHUNK}; use --device cpu"
                )));
            }
        }
        Ok(())
    }
}

/// Components of a head in the cache: the attention kernels are made for a few sizes, others are filled up with zeros.
///
/// # Errors
/// [`Error::Unsupported`] for heads larger than any of them.
pub fn padded_dim(dim: usize) -> Result<usize> {
    HEAD_DIMS.into_iter().find(|&padded| padded >= dim).ok_or_else(|| {
        let most = HEAD_DIMS.iter().max().copied().unwrap_or(0);
        Error::Unsupported(format!("heads of {dim} components: CUDA devices take up to {most}; use --device cpu"))
    })
}

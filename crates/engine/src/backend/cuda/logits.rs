//! Logits on the device: copied to the host, or only the token of the largest looked for, of which eight bytes are copied.

use speedread_cuda::{Buffer, Device, Error as CudaError, Function, Pinned, Stream, View};

use super::buffers::{CudaBuffer, CudaLinear};
use super::context::CudaContext;
use super::kernels::{Matvec, THREADS, blocks, image};
use super::shape;
use crate::Result;

static LIKELIEST: &[u8] = image!("likeliest");

/// Most thread blocks, and ranks, of the first pass over the logits.
pub(super) const MOST_RANKS: usize = 256;
/// Logits of a thread in it, unless there are more than so many blocks take.
const THREAD_LOGITS: usize = 4;
/// Upper half of the rank of a token whose logit is negative infinity, and of one whose logit is out of range.
const EXCLUDED: u64 = 0x007f_ffff;
const OUT_OF_RANGE: u64 = 0xffff_ffff;

/// Kernels that look for the largest logit.
#[derive(Debug)]
pub(super) struct LikeliestKernels {
    rank_logits: Function,
    largest_rank: Function,
}

impl LikeliestKernels {
    pub fn load(device: &Device) -> Result<Self, CudaError> {
        let module = device.load(LIKELIEST)?;
        Ok(Self { rank_logits: module.overlapping("rank_logits")?, largest_rank: module.overlapping("largest_rank")? })
    }
}

/// Room for logits on the device, and for what is copied of them.
#[derive(Debug)]
pub(super) struct Logits {
    there: Buffer<f32>,
    /// Ranks of the first pass, and behind them the largest.
    ranks: Buffer<u64>,
    row: Pinned<f32>,
    rank: Pinned<u64>,
}

impl Logits {
    pub fn new(stream: &Stream) -> Result<Self> {
        Ok(Self {
            there: stream.alloc(0)?,
            ranks: stream.alloc(MOST_RANKS + 1)?,
            row: stream.pinned(0)?,
            rank: stream.pinned(1)?,
        })
    }

    /// Queues the product of the first `rows` rows of `x`.
    fn make(&mut self, context: &CudaContext, weight: &CudaLinear, x: &CudaBuffer, rows: usize) -> Result<()> {
        let count = rows * weight.rows;
        self.there.grow(count)?;
        let (x, matrix, to) = (x.bf16(0..rows)?, weight.weight.view(), self.there.view_mut().slice(0..count)?);
        if rows == 1 {
            context.kernels.matvec_f32(&context.stream, x, Matvec { weight: matrix, bias: None, out: to }, false)?;
        } else {
            context.blas.linear(shape(rows, weight), x, matrix, None, false, to)?;
        }
        Ok(())
    }

    /// The logits of the first `rows` rows of `x`, copied to `out`.
    pub fn read(
        &mut self,
        context: &CudaContext,
        weight: &CudaLinear,
        x: &CudaBuffer,
        rows: usize,
        out: &mut [f32],
    ) -> Result<()> {
        self.make(context, weight, x, rows)?;
        let Self { there, row, .. } = self;
        // A row at a time: page-locked memory is the whole system's loss.
        row.grow(weight.rows)?;
        for (n, out) in out.chunks_exact_mut(weight.rows.max(1)).take(rows).enumerate() {
            out.copy_from_slice(row.read(there.view().slice(n * weight.rows..(n + 1) * weight.rows)?)?);
        }
        Ok(())
    }

    /// The token of the largest logit of the first row of `x`; `None` where the logits allow no choice.
    pub fn likeliest(&mut self, context: &CudaContext, weight: &CudaLinear, x: &CudaBuffer) -> Result<Option<u32>> {
        self.make(context, weight, x, 1)?;
        let Self { there, ranks, rank, .. } = self;
        likeliest(context, there.view().slice(0..weight.rows)?, ranks, rank)
    }
}

/// The place of the largest of `logits`, the first of equals; `None` where one is out of range, or all are excluded.
pub(super) fn likeliest(
    context: &CudaContext,
    logits: View<'_, f32>,
    ranks: &mut Buffer<u64>,
    rank: &mut Pinned<u64>,
) -> Result<Option<u32>> {
    let (stream, kernels, count) = (&context.stream, &context.kernels.likeliest, logits.len());
    let mut grid = blocks(count, THREADS as usize * THREAD_LOGITS);
    grid[0] = grid[0].min(MOST_RANKS as u32);
    let parts = grid[0] as usize;
    let (of_blocks, largest) = (0..parts, parts..parts + 1);
    let to = ranks.view_mut().slice(of_blocks.clone())?;
    let first = kernels.rank_logits.launch(stream).grid(grid).block(THREADS).overlap();
    // SAFETY: the kernel's parameters; it reads `count` logits and writes a rank a block.
    unsafe { first.read(logits).arg(count as i64).write(to).run()? };
    let (from, to) = (ranks.view().slice(of_blocks)?, ranks.view().slice(largest.clone())?.address());
    let second = kernels.largest_rank.launch(stream).grid([1; 3]).block(THREADS).overlap();
    // SAFETY: the kernel's parameters; it reads the ranks of the first pass and writes one behind them.
    unsafe { second.read(from).arg(parts as i64).arg(to).run()? };
    let rank = rank.read(ranks.view().slice(largest)?)?.first().copied().unwrap_or(0);
    // The kernel's `Rank`.
    let chosen = (EXCLUDED + 1..OUT_OF_RANGE).contains(&(rank >> 32));
    Ok(chosen.then_some(!(rank as u32)))
}

//! Logits on the device: copied to the host, or only the token of the largest looked for, of which eight bytes a row are copied.

use speedread_cuda::{Buffer, Device, Error as CudaError, Function, Pinned, Stream, View};

use super::buffers::{CudaBuffer, CudaLinear};
use super::context::CudaContext;
use super::kernels::{Matvec, THREADS, blocks, fits, image};
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
    /// Ranks of the first pass, row by row, and behind them each row's largest.
    ranks: Buffer<u64>,
    row: Pinned<f32>,
    rank: Pinned<u64>,
}

impl Logits {
    pub fn new(stream: &Stream) -> Result<Self> {
        Ok(Self { there: stream.alloc(0)?, ranks: stream.alloc(0)?, row: stream.pinned(0)?, rank: stream.pinned(0)? })
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

    /// The tokens of the largest logits of the first rows of `x`, one each; false where a row's logits allow no choice.
    pub fn likeliest(
        &mut self,
        context: &CudaContext,
        weight: &CudaLinear,
        x: &CudaBuffer,
        chosen: &mut [u32],
    ) -> Result<bool> {
        self.make(context, weight, x, chosen.len())?;
        let Self { there, ranks, rank, .. } = self;
        likeliest(context, there.view().slice(0..chosen.len() * weight.rows)?, ranks, rank, chosen)
    }
}

/// The places of the largest of the logits of as many rows as there are in `chosen`, each the first of equals; false where a logit is out of
/// range, or all of a row are excluded.
pub(super) fn likeliest(
    context: &CudaContext,
    logits: View<'_, f32>,
    ranks: &mut Buffer<u64>,
    rank: &mut Pinned<u64>,
    chosen: &mut [u32],
) -> Result<bool> {
    let (stream, kernels, rows) = (&context.stream, &context.kernels.likeliest, chosen.len());
    let count = logits.len() / rows.max(1);
    fits(
        "rank_logits",
        rows > 0 && logits.len() == rows * count,
        format_args!("{} logits of {rows} rows", logits.len()),
    )?;
    // A grid's second size is the rows.
    let mut grid = blocks(count, THREADS as usize * THREAD_LOGITS);
    (grid[0], grid[1]) = (grid[0].min(MOST_RANKS as u32), rows as u32);
    let parts = grid[0] as usize;
    let (of_blocks, largest) = (0..rows * parts, rows * parts..rows * (parts + 1));
    ranks.grow(largest.end)?;
    rank.grow(rows)?;
    let to = ranks.view_mut().slice(of_blocks.clone())?;
    let first = kernels.rank_logits.launch(stream).grid(grid).block(THREADS).overlap();
    // SAFETY: the kernel's parameters; it reads `count` logits of each row and writes a rank a block.
    unsafe { first.read(logits).arg(count as i64).write(to).run()? };
    let (from, to) = (ranks.view().slice(of_blocks)?, ranks.view().slice(largest.clone())?.address());
    let second = kernels.largest_rank.launch(stream).grid([rows as u32, 1, 1]).block(THREADS).overlap();
    // SAFETY: the kernel's parameters; it reads the ranks of the first pass and writes one a row behind them.
    unsafe { second.read(from).arg(parts as i64).arg(to).run()? };
    let found = rank.read(ranks.view().slice(largest)?)?;
    chosen.iter_mut().zip(found).for_each(|(chosen, &rank)| *chosen = !(rank as u32));
    // The kernel's `Rank`.
    Ok(found.iter().all(|rank| (EXCLUDED + 1..OUT_OF_RANGE).contains(&(rank >> 32))))
}

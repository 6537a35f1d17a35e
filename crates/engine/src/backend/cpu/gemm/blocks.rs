//! The bf16 product: packs both operands and runs a kernel over blocks of 32 x 32 outputs.

use std::ops::Range;

use rayon::prelude::*;

use super::kernel::Kernel;
use super::pack::{self, BLOCK, Line, STEP_LINES, TILE_LINES};
use super::scratch::{Workspace, at_least};
use super::tasks::{self, Grain, Task, ranges};
use super::{Linear, Scratch, SharedOut, Start, WeightRows, avx512_bf16};

/// Bound on the packed copy of x. More rows are multiplied in parts, and the weights dequantised once per part.
const X_BYTES: usize = 32 << 20;
/// Bound on the packed panels of a task.
const PANEL_BYTES: usize = 8 << 20;
/// Bound on the outputs of a task: so many times each strip of x is used once it has come from memory.
const MAX_COLUMNS: usize = 512;
/// Steps along k that are multiplied before the next ones: 32 rows or outputs of so many values are 32 KB, which stays in the
/// first cache while the other operand comes from the second.
const BLOCK_STEPS: usize = 16;

const PANEL_STEP_BYTES: usize = STEP_LINES * size_of::<Line>();

/// The caller has checked shapes and that `kernel`, one of those on bf16, is available.
pub(super) fn matmul(kernel: Kernel, x: &[f32], n: usize, k: usize, linears: &mut [Linear<'_>], scratch: &mut Scratch) {
    let steps = pack::steps(k);
    let strip_lines = steps * STEP_LINES;
    let strip_bytes = (steps * PANEL_STEP_BYTES).max(1);
    let part_rows = (X_BYTES / strip_bytes).max(8) * BLOCK;
    let max_columns = (PANEL_BYTES / strip_bytes * BLOCK).clamp(BLOCK, MAX_COLUMNS);
    let grain = Grain { rows: BLOCK, columns: BLOCK, max_columns };
    let outputs: Vec<usize> = linears.iter().map(|linear| linear.weights.rows()).collect();
    let outs: Vec<SharedOut> = linears.iter_mut().map(SharedOut::new).collect();

    for part in ranges(n, part_rows) {
        let packed = at_least(&mut scratch.x, part.len().div_ceil(BLOCK) * strip_lines, Line::ZERO);
        pack_x(&x[part.start * k..part.end * k], k, packed);
        let tasks = tasks::cut(part.len(), &outputs, &grain, rayon::current_num_threads());
        tasks.into_par_iter().for_each(|task| {
            let linear = &linears[task.linear];
            let call = Call {
                kernel,
                x: packed,
                steps,
                weights: linear.weights,
                start: linear.start,
                out: outs[task.linear],
                first_row: part.start,
            };
            scratch.workspaces.lend(|workspace| call.run(&task, workspace));
        });
    }
}

fn pack_x(x: &[f32], k: usize, packed: &mut [Line]) {
    if k == 0 {
        return;
    }
    let strip_lines = pack::steps(k) * STEP_LINES;
    packed.par_chunks_mut(strip_lines).zip(x.par_chunks(BLOCK * k)).for_each(|(strip, rows)| {
        // SAFETY: the kernels on bf16 are only available with the instructions that packing needs.
        unsafe { pack::pack_x_strip(rows, k, strip) }
    });
}

/// What the tasks of one matrix have in common.
struct Call<'a> {
    kernel: Kernel,
    /// Packed strips of this part's rows.
    x: &'a [Line],
    steps: usize,
    weights: &'a dyn WeightRows,
    start: Start<'a>,
    out: SharedOut,
    /// Row of the output that the first packed row belongs to.
    first_row: usize,
}

impl Call<'_> {
    fn run(&self, task: &Task, workspace: &mut Workspace) {
        let Workspace { rows, panels } = workspace;
        let panel_lines = self.steps * STEP_LINES;
        let panels = at_least(panels, task.columns.len().div_ceil(BLOCK) * panel_lines, Line::ZERO);
        self.dequantize(task.columns.clone(), rows, panels);

        // Only from here on, as weights dequantise by code that is not ours to trust with configured tiles.
        // SAFETY: the kernel is available, and this thread has no other multiplier.
        let multiplier = unsafe { Multiplier::new(self.kernel) };
        let mut first_step = 0;
        loop {
            let steps = BLOCK_STEPS.min(self.steps - first_step);
            let offset = first_step * STEP_LINES;
            for row in task.rows.clone().step_by(BLOCK) {
                let x = &self.x[row / BLOCK * panel_lines + offset..][..steps * STEP_LINES];
                for (panel, column) in task.columns.clone().step_by(BLOCK).enumerate() {
                    let w = &panels[panel * panel_lines + offset..][..steps * STEP_LINES];
                    let rows = row..(row + BLOCK).min(task.rows.end);
                    let columns = column..(column + BLOCK).min(task.columns.end);
                    self.block(&multiplier, x, w, rows, columns, first_step == 0);
                }
            }
            first_step += steps;
            if first_step == self.steps {
                break;
            }
        }
    }

    fn dequantize(&self, columns: Range<usize>, buffer: &mut Vec<f32>, panels: &mut [Line]) {
        let k = self.weights.cols();
        if k == 0 {
            return;
        }
        let buffer = at_least(buffer, TILE_LINES * k, 0.0);
        for (panel, first) in panels.chunks_exact_mut(self.steps * STEP_LINES).zip(columns.clone().step_by(BLOCK)) {
            for tile in 0..2 {
                let start = (first + tile * TILE_LINES).min(columns.end);
                let end = (start + TILE_LINES).min(columns.end);
                let rows = &mut buffer[..(end - start) * k];
                if start < end {
                    self.weights.dequantize_rows(start..end, rows);
                }
                // SAFETY: the kernels on bf16 are only available with the instructions that packing needs.
                unsafe { pack::pack_weight_tile(rows, k, panel, tile) };
            }
        }
    }

    /// Adds the product of a strip and a panel, over some steps of k, to a block of the output, which the first steps start.
    fn block(
        &self,
        multiplier: &Multiplier,
        x: &[Line],
        w: &[Line],
        rows: Range<usize>,
        columns: Range<usize>,
        first: bool,
    ) {
        const ZEROS: [f32; BLOCK] = [0.0; BLOCK];
        let steps = x.len() / STEP_LINES;
        let stride = self.out.stride;
        // SAFETY: the block lies in the output, whose size the caller has checked.
        let out = unsafe { self.out.at(self.first_row + rows.start, columns.start) };
        let whole = rows.len() == BLOCK && columns.len() == BLOCK;
        let (start, start_stride) = match self.start {
            Start::Zero if first => (ZEROS.as_ptr(), 0),
            Start::Bias(bias) if first => (bias[columns.clone()].as_ptr(), 0),
            _ => (out.cast_const(), stride),
        };
        if whole {
            // SAFETY: x and w have `steps` steps; a whole block of the output is 32 rows of 32 values at its stride, and no other
            // task has any of them; `start` is the same block, or 32 values repeated.
            unsafe { multiplier.block(x.as_ptr(), w.as_ptr(), steps, start, start_stride, out, stride) };
            return;
        }
        let mut edge = [0.0f32; BLOCK * BLOCK];
        for row in 0..rows.len() {
            // SAFETY: the rows and columns of this block that exist, in the output, the bias or the zeros.
            let values = unsafe { std::slice::from_raw_parts(start.add(row * start_stride), columns.len()) };
            edge[row * BLOCK..][..columns.len()].copy_from_slice(values);
        }
        let block = edge.as_mut_ptr();
        // SAFETY: as above; `edge` is 32 rows of 32 values.
        unsafe { multiplier.block(x.as_ptr(), w.as_ptr(), steps, block, BLOCK, block, BLOCK) };
        for row in 0..rows.len() {
            // SAFETY: rows and columns of the output that only this task has.
            let values = unsafe { std::slice::from_raw_parts_mut(out.add(row * stride), columns.len()) };
            values.copy_from_slice(&edge[row * BLOCK..][..columns.len()]);
        }
    }
}

/// A kernel that is ready to multiply on this thread.
enum Multiplier {
    #[cfg(target_os = "linux")]
    Amx(super::amx::Tiles),
    Avx512,
}

impl Multiplier {
    /// # Safety
    ///
    /// The kernel is available, and this thread has no other `Multiplier`.
    unsafe fn new(kernel: Kernel) -> Self {
        match kernel {
            #[cfg(target_os = "linux")]
            // SAFETY: available means that the system has granted tiles.
            Kernel::AmxBf16 => Multiplier::Amx(unsafe { super::amx::Tiles::configure() }),
            _ => Multiplier::Avx512,
        }
    }

    /// # Safety
    ///
    /// As [`avx512_bf16::block`], whose instructions are there as this was made for an available kernel.
    #[expect(clippy::too_many_arguments)]
    unsafe fn block(
        &self,
        x: *const Line,
        w: *const Line,
        steps: usize,
        start: *const f32,
        start_stride: usize,
        out: *mut f32,
        out_stride: usize,
    ) {
        // SAFETY: the caller's promise is that of both.
        unsafe {
            match self {
                #[cfg(target_os = "linux")]
                Multiplier::Amx(tiles) => tiles.block(x, w, steps, start, start_stride, out, out_stride),
                Multiplier::Avx512 => avx512_bf16::block(x, w, steps, start, start_stride, out, out_stride),
            }
        }
    }
}

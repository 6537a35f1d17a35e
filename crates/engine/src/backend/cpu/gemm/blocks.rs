//! The bf16 product: packs both operands and runs a kernel over blocks of 32 x 32 outputs.

use std::ops::Range;

use rayon::prelude::*;
#[cfg(target_os = "linux")]
use speedread_attention::cpu::tiles::Tiles;

use super::kernel::Kernel;
use super::pack::{self, BLOCK, Line, STEP_LINES, Sums, TILE_LINES};
use super::scratch::{Workspace, at_least};
use super::tasks::{self, Grain, Task, ranges};
use super::{Linear, Scratch, SharedOut, Start, WeightRows, avx512_bf16};

/// Bound on the packed copy of x. More rows are multiplied in parts, and the weights dequantised once per part.
const X_BYTES: usize = 32 << 20;
/// Bound on the packed panels of a task, all along k.
const PANEL_BYTES: usize = 8 << 20;
/// Steps along k of the panels that stay in the second cache (2 MB) while all strips pass, and bound on their bytes.
const PART_STEPS: usize = 48;
const PART_BYTES: usize = 768 << 10;
/// Bound on the panels of a task: their sums, 4 KB each, share the second cache.
const MAX_PANELS: usize = 32;
/// Steps along k of a strip that stay in the first cache (48 KB) while all panels pass.
const HOT_STEPS: usize = 16;

/// Weights that are dequantised before they are rounded: 16 KB.
const DEQUANTIZED_VALUES: usize = 4096;

const STEP_BYTES: usize = STEP_LINES * size_of::<Line>();

/// The caller has checked shapes, that `kernel`, one of those on bf16, is available, and that `k` is not 0.
pub(super) fn matmul(kernel: Kernel, x: &[f32], n: usize, k: usize, linears: &mut [Linear<'_>], scratch: &mut Scratch) {
    let steps = pack::steps(k);
    let strip_lines = steps * STEP_LINES;
    let strip_bytes = steps * STEP_BYTES;
    let part_rows = part_rows(strip_bytes);
    let part_bytes = strip_bytes.div_ceil(steps.div_ceil(PART_STEPS));
    let max_panels = (PANEL_BYTES / strip_bytes).min(PART_BYTES / part_bytes).clamp(1, MAX_PANELS);
    let grain = Grain { rows: BLOCK, columns: BLOCK, max_columns: max_panels * BLOCK };
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

/// Rows of x that are packed at a time, a whole number of strips.
fn part_rows(strip_bytes: usize) -> usize {
    (X_BYTES / strip_bytes).max(8) * BLOCK
}

/// See [`Scratch::max_bytes`].
pub(super) fn max_bytes(n: usize, k: usize, threads: usize) -> u64 {
    let strip_bytes = pack::steps(k.max(1)) * STEP_BYTES;
    let x = n.min(part_rows(strip_bytes)).div_ceil(BLOCK) * strip_bytes;
    let panels = PANEL_BYTES.max(strip_bytes);
    let rows =
        DEQUANTIZED_VALUES.max(k) * size_of::<f32>() + TILE_LINES * k.next_multiple_of(pack::STEP) * size_of::<u16>();
    (x + threads * (panels + MAX_PANELS * size_of::<Sums>() + rows)) as u64
}

fn pack_x(x: &[f32], k: usize, packed: &mut [Line]) {
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
        let panel_lines = self.steps * STEP_LINES;
        let count = task.columns.len().div_ceil(BLOCK);
        let panels = at_least(&mut workspace.panels, count * panel_lines, Line::ZERO);
        self.dequantize(task.columns.clone(), &mut workspace.rows, &mut workspace.rounded, panels);
        let sums = at_least(&mut workspace.sums, count, Sums::ZERO);

        // Only from here on, as weights dequantise by code that is not ours to trust with configured tiles.
        // SAFETY: the kernel is available, and this thread has no other multiplier.
        let multiplier = unsafe { Multiplier::new(self.kernel) };
        for (part, part_steps) in even_parts(self.steps, PART_STEPS).enumerate() {
            for row in task.rows.clone().step_by(BLOCK) {
                let strip = &self.x[row / BLOCK * panel_lines..][..panel_lines];
                for hot in even_parts(part_steps.len(), HOT_STEPS) {
                    let lines = (part_steps.start + hot.start) * STEP_LINES..(part_steps.start + hot.end) * STEP_LINES;
                    let x = &strip[lines.clone()];
                    for (i, (panel, sums)) in panels.chunks_exact(panel_lines).zip(&mut *sums).enumerate() {
                        let ahead = self.out.near(self.first_row + row + hot.start, task.columns.start + i * BLOCK);
                        multiplier.multiply(x, &panel[lines.clone()], sums, hot.start == 0, ahead);
                    }
                }
                let rows = row..(row + BLOCK).min(task.rows.end);
                self.write(rows, task.columns.clone(), sums, part == 0);
            }
        }
    }

    fn dequantize(&self, columns: Range<usize>, buffer: &mut Vec<f32>, rounded: &mut Vec<Line>, panels: &mut [Line]) {
        let k = self.weights.cols();
        // Rows that stay in the first cache between dequantising and rounding.
        let batch = (DEQUANTIZED_VALUES / k).clamp(1, TILE_LINES);
        let buffer = at_least(buffer, batch * k, 0.0);
        let rounded = at_least(rounded, TILE_LINES * self.steps, Line::ZERO);
        for (panel, first) in panels.chunks_exact_mut(self.steps * STEP_LINES).zip(columns.clone().step_by(BLOCK)) {
            for tile in 0..2 {
                let mut row = first + tile * TILE_LINES;
                for lines in rounded.chunks_mut(batch * self.steps) {
                    let rows = (lines.len() / self.steps).min(columns.end.saturating_sub(row));
                    let values = &mut buffer[..rows * k];
                    if rows > 0 {
                        self.weights.dequantize_rows(row..row + rows, values);
                    }
                    let (lines, missing) = lines.split_at_mut(rows * self.steps);
                    for (values, lines) in values.chunks_exact(k).zip(lines.chunks_exact_mut(self.steps)) {
                        // SAFETY: the kernels on bf16 are only available with the instructions that packing needs.
                        unsafe { pack::round_row(values, lines) };
                    }
                    missing.fill(Line::ZERO);
                    row += rows;
                }
                // SAFETY: as above.
                unsafe { pack::pack_weight_tile(rounded, panel, tile) };
            }
        }
    }

    /// Adds the sums of one strip to rows of the output, or starts these with them in the `first` part along k.
    fn write(&self, rows: Range<usize>, columns: Range<usize>, sums: &[Sums], first: bool) {
        for (i, row) in rows.enumerate() {
            // SAFETY: a row of the output, whose size the caller has checked, and columns that only this task has.
            let out = unsafe {
                std::slice::from_raw_parts_mut(self.out.at(self.first_row + row, columns.start), columns.len())
            };
            // SAFETY: the kernels on bf16 are only available with AVX-512.
            unsafe {
                match self.start {
                    Start::Zero if first => pack::unpack_row(sums, i, out, |_, _, sum| sum),
                    Start::Bias(bias) if first => {
                        let bias = &bias[columns.clone()];
                        pack::unpack_row(sums, i, out, |column, _, sum| bias[column] + sum);
                    }
                    _ => pack::unpack_row(sums, i, out, |_, old, sum| old + sum),
                }
            }
        }
    }
}

/// `0..len` in as few ranges as a bound on their length allows, of about the same length.
fn even_parts(len: usize, max: usize) -> impl Iterator<Item = Range<usize>> {
    let parts = len.div_ceil(max);
    (0..parts).map(move |part| part * len / parts..(part + 1) * len / parts)
}

/// A kernel that is ready to multiply on this thread.
enum Multiplier {
    #[cfg(target_os = "linux")]
    Amx(Tiles),
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
            Kernel::AmxBf16 => Multiplier::Amx(unsafe { Tiles::configure() }),
            _ => Multiplier::Avx512,
        }
    }

    /// Adds the product of as many steps of a strip and of a panel to `sums`, or starts `sums` with it if `fresh`. The sums will go to
    /// the address `ahead`, with that row stride: a hint.
    fn multiply(&self, x: &[Line], w: &[Line], sums: &mut Sums, fresh: bool, ahead: (*const f32, usize)) {
        assert!(x.len() == w.len() && x.len().is_multiple_of(STEP_LINES));
        let (steps, x, w) = (x.len() / STEP_LINES, x.as_ptr(), w.as_ptr());
        // SAFETY: the operands have that many steps; the instructions are there, as this was made for an available kernel.
        unsafe {
            match self {
                #[cfg(target_os = "linux")]
                Multiplier::Amx(tiles) => super::amx::multiply(tiles, x, w, steps, sums, fresh, ahead),
                Multiplier::Avx512 => avx512_bf16::multiply(x, w, steps, sums, fresh),
            }
        }
    }
}

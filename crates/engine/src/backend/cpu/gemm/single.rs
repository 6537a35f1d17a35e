//! The f32 product: dequantises a group of outputs and multiplies it by the `gemm` crate.

use rayon::prelude::*;

use super::scratch::{Workspace, at_least};
use super::tasks::{self, Grain, Task};
use super::{Linear, Scratch, SharedOut, Start};

/// Bound on the dequantised rows of a task.
const ROW_BYTES: usize = 2 << 20;
/// Bound on the outputs of a task.
const MAX_COLUMNS: usize = 256;

/// The caller has checked shapes.
pub(super) fn matmul(x: &[f32], n: usize, k: usize, linears: &mut [Linear<'_>], scratch: &mut Scratch) {
    let max_columns = (ROW_BYTES / size_of::<f32>() / k.max(1) / 16 * 16).clamp(16, MAX_COLUMNS);
    let grain = Grain { rows: 16, columns: 16, max_columns };
    let outputs: Vec<usize> = linears.iter().map(|linear| linear.weights.rows()).collect();
    let outs: Vec<SharedOut> = linears.iter_mut().map(SharedOut::new).collect();
    let linears = &*linears;
    let workspaces = &scratch.workspaces;
    tasks::cut(n, &outputs, &grain, rayon::current_num_threads()).into_par_iter().for_each(|task| {
        workspaces.lend(|workspace| run(x, k, &linears[task.linear], outs[task.linear], &task, workspace));
    });
}

/// See [`Scratch::max_bytes`].
pub(super) fn max_bytes(k: usize, threads: usize) -> u64 {
    (threads * ROW_BYTES.max(16 * k * size_of::<f32>())) as u64
}

fn run(x: &[f32], k: usize, linear: &Linear<'_>, out: SharedOut, task: &Task, workspace: &mut Workspace) {
    let weights = at_least(&mut workspace.rows, task.columns.len() * k, 0.0);
    if k > 0 {
        linear.weights.dequantize_rows(task.columns.clone(), weights);
    }
    if !matches!(linear.start, Start::Accumulate) {
        for row in task.rows.clone() {
            // SAFETY: a row of the output that only this task has columns of.
            let out = unsafe { std::slice::from_raw_parts_mut(out.at(row, task.columns.start), task.columns.len()) };
            match linear.start {
                Start::Bias(bias) => out.copy_from_slice(&bias[task.columns.clone()]),
                _ => out.fill(0.0),
            }
        }
    }
    let x = &x[task.rows.start * k..task.rows.end * k];
    // SAFETY: `x` is [rows, k], `weights` [columns, k] read as its transpose, and the block of the output lies inside it and belongs
    // to this task alone. Strides are below isize::MAX, as they are inside slices.
    unsafe {
        gemm::gemm(
            task.rows.len(),
            task.columns.len(),
            k,
            out.at(task.rows.start, task.columns.start),
            1,
            out.stride as isize,
            true,
            x.as_ptr(),
            1,
            k as isize,
            weights.as_ptr(),
            k as isize,
            1,
            1.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

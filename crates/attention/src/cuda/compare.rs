//! How far sparse attention strays from dense attention, on the device: the whole of [`crate::compare`] in the time of the kernels.

use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;
use speedread_cuda::{Buffer, Device, Function, KernelArg, Plain, Stream, ViewMut};

use super::attention::{Attention, DeviceOptions};
use super::index::{CallShape, Workspace};
use super::plan::Plan as Work;
use super::tensor::{AttentionElement, DeviceRows, DeviceRowsMut};
use crate::compare::{Deviation, Plan};
use crate::index::SparseIndex;
use crate::{Error, Kernel, Pattern, Recall};

static IMAGE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/deviations.fatbin"));

/// Rows that a thread block sums, and its threads.
const RUN: usize = 64;
const THREADS: u32 = 256;

/// The kernel that sums differences, for bf16 and f16.
#[derive(Debug, Clone)]
pub(super) struct CompareKernels {
    bf16: Function,
    f16: Function,
}

impl CompareKernels {
    pub(super) fn load(device: &Device) -> Result<Self, Error> {
        let module = device.load(IMAGE)?;
        Ok(Self { bf16: module.function("deviations_bf16", 0)?, f16: module.function("deviations_f16", 0)? })
    }
}

/// Mirror of `DeviationSums` in `kernels/deviations.cu`.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
struct Sums {
    error: f64,
    energy: f64,
    kept: f64,
    least: f64,
}
// SAFETY: numbers, without padding.
unsafe impl Plain for Sums {}

/// Mirror of `DeviationParams` in `kernels/deviations.cu`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct Params {
    dense: u64,
    sparse: u64,
    dense_lse: u64,
    sparse_lse: u64,
    sums: u64,
    rows: i32,
    heads: i32,
    pairs: i32,
}
// SAFETY: the same fields in the same order as the kernel's structure.
unsafe impl KernelArg for Params {}

/// Output and log-sum-exp of one call, `[rows, query heads, dim]` and `[query heads][rows]`.
struct Output<T> {
    out: Buffer<T>,
    lse: Buffer<f32>,
}

/// Queries, keys and values that every plan sees.
struct Call<'a, T> {
    attention: &'a Attention,
    stream: &'a Stream,
    q: DeviceRows<'a, T>,
    k: DeviceRows<'a, T>,
    v: DeviceRows<'a, T>,
    options: DeviceOptions,
}

/// Device bytes that [`Attention::compare`] takes beside its arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompareBytes {
    /// Of the outputs that are compared; given back at its end.
    pub outputs: u64,
    /// Of the workspace, which keeps them.
    pub workspace: u64,
}

impl CompareBytes {
    /// For keys and values of so many bytes an element. Indexes made elsewhere take a little more: their lists of work.
    ///
    /// # Errors
    /// As for [`Attention::compare`], for shapes and patterns.
    pub fn of(shape: &CallShape, plans: &[Vec<Plan<'_>>], element: usize) -> Result<Self, Error> {
        let rows = shape.rows.saturating_mul(shape.heads) as u64;
        let output = rows.saturating_mul((shape.dim * element + size_of::<f32>()) as u64);
        let sums = (shape.rows.div_ceil(RUN) * shape.heads * size_of::<Sums>()) as u64;
        let dense = vec![Pattern::Dense; shape.heads];
        let mut workspace = Workspace::bytes(shape, &dense, false)?;
        for plan in plans {
            workspace = workspace.max(Workspace::bytes(shape, &patterns(plan), false)?);
        }
        Ok(Self { outputs: output.saturating_mul(2).saturating_add(sums), workspace })
    }
}

/// What is built for a plan. The place of an index made elsewhere is held by dense, which builds nothing.
fn patterns(plan: &[Plan<'_>]) -> Vec<Pattern> {
    let pattern = |plan: &Plan<'_>| match plan {
        Plan::Pattern(pattern) => *pattern,
        Plan::Index(_) => Pattern::Dense,
    };
    plan.iter().map(pattern).collect()
}

impl Attention {
    /// As [`compare`](crate::compare::compare()): how every plan of every query head differs from dense attention, `plans[plan][query head]`
    /// to `[plan][query head]`. Here all rows count, and outputs are rounded to the kernels' 16 bits before they are compared: in bf16,
    /// squared errors below 1e-5 of the energy are rounding.
    ///
    /// Shapes as for [`Attention::prefill`]; `scale` is the softmax scale, by default 1/sqrt(dim). Waits for the device.
    ///
    /// # Errors
    /// As for [`Attention::prefill`]; [`Error::Shape`] too when a plan is not of one entry a query head, or an index of another shape;
    /// [`Error::Cancelled`].
    #[allow(clippy::too_many_arguments)]
    pub fn compare<T: AttentionElement>(
        &self,
        stream: &Stream,
        q: DeviceRows<'_, T>,
        k: DeviceRows<'_, T>,
        v: DeviceRows<'_, T>,
        plans: &[Vec<Plan<'_>>],
        scale: Option<f32>,
        work: &mut Workspace,
        cancel: Option<&AtomicBool>,
    ) -> Result<Vec<Vec<Deviation>>, Error> {
        let options = DeviceOptions { scale, dense_fallback: false };
        let call = Call { attention: self, stream, q, k, v, options };
        let mut dense = call.output()?;
        let all = vec![Pattern::Dense; q.tensor.heads];
        self.prefill(
            stream,
            q,
            k,
            v,
            &all,
            &options,
            work,
            &mut call.rows(&mut dense.out)?,
            Some(dense.lse.view_mut()),
        )?;
        let mut sparse = call.output()?;
        let of_plan = |plan: &Vec<Plan<'_>>| {
            if cancel.is_some_and(|cancel| cancel.load(Ordering::Relaxed)) {
                return Err(Error::Cancelled);
            }
            let indexes = call.run(plan, work, &mut sparse)?;
            let sums = call.sums(&dense, &sparse)?;
            Ok(call.deviations(&indexes, &sums))
        };
        plans.iter().map(of_plan).collect()
    }
}

impl<'a, T: AttentionElement> Call<'a, T> {
    fn output(&self) -> Result<Output<T>, Error> {
        let (rows, heads, dim) = (self.q.tensor.rows, self.q.tensor.heads, self.q.tensor.dim);
        Ok(Output { out: self.stream.alloc(rows * heads * dim)?, lse: self.stream.alloc(rows * heads)? })
    }

    fn rows<'b>(&self, out: &'b mut Buffer<T>) -> Result<DeviceRowsMut<'b, T>, Error> {
        DeviceRowsMut::contiguous(out.view_mut(), self.q.tensor.rows, self.q.tensor.heads, self.q.tensor.dim)
    }

    /// Runs a plan; the index of each head.
    fn run(&self, plan: &[Plan<'_>], work: &mut Workspace, to: &mut Output<T>) -> Result<Vec<SparseIndex>, Error> {
        let Self { attention, stream, q, k, v, options } = *self;
        attention.build_indexes(stream, q, k, &patterns(plan), &options, work)?;
        let mut indexes = work.indexes(stream)?;
        let mut made_elsewhere = false;
        for (index, plan) in indexes.iter_mut().zip(plan) {
            if let Plan::Index(other) = plan {
                *index = (*other).clone();
                made_elsewhere = true;
            }
        }
        let lse: ViewMut<'_, f32> = to.lse.view_mut();
        let mut out = self.rows(&mut to.out)?;
        if made_elsewhere {
            let plan = Work::new(&indexes, k.tensor.heads, q.tensor.dim)?.upload(stream)?;
            attention.attend(stream, q, k, v, &plan, options.scale, &mut out, Some(lse))?;
        } else {
            attention.attend_built(stream, q, k, v, work, options.scale, &mut out, Some(lse))?;
        }
        Ok(indexes)
    }

    /// Sums over the rows of each head. Waits for the device.
    fn sums(&self, dense: &Output<T>, sparse: &Output<T>) -> Result<Vec<Sums>, Error> {
        let (rows, heads, dim) = (self.q.tensor.rows, self.q.tensor.heads, self.q.tensor.dim);
        let runs = rows.div_ceil(RUN);
        let sums = self.stream.alloc::<Sums>(heads * runs)?;
        let params = Params {
            dense: dense.out.view().address(),
            sparse: sparse.out.view().address(),
            dense_lse: dense.lse.view().address(),
            sparse_lse: sparse.lse.view().address(),
            sums: sums.view().address(),
            rows: rows as i32,
            heads: heads as i32,
            pairs: (dim / 2) as i32,
        };
        let kernels = &self.attention.compare;
        let function = if T::NAME == "bf16" { &kernels.bf16 } else { &kernels.f16 };
        let launch = function.launch(self.stream).grid([runs as u32, heads as u32, 1]).block(THREADS).arg(params);
        // SAFETY: the kernel's one parameter; outputs, log-sum-exps and sums have the room that rows, heads and runs need.
        unsafe { launch.run()? };
        let merge = |runs: &[Sums]| {
            runs.iter().fold(Sums { least: f64::INFINITY, ..Sums::default() }, |all, run| Sums {
                error: all.error + run.error,
                energy: all.energy + run.energy,
                kept: all.kept + run.kept,
                least: all.least.min(run.least),
            })
        };
        Ok(self.stream.download(sums.view())?.chunks_exact(runs).map(merge).collect())
    }

    fn deviations(&self, indexes: &[SparseIndex], sums: &[Sums]) -> Vec<Deviation> {
        let rows = self.q.tensor.rows as f64;
        let of_head = |(index, sums): (&SparseIndex, &Sums)| Deviation {
            error: sums.error,
            energy: sums.energy,
            recall: Recall { mean: sums.kept / rows, min: sums.least },
            visits: Kernel::Cuda.visits(index),
        };
        indexes.par_iter().zip(sums).map(of_head).collect()
    }
}

//! The decoder's own kernels: loading and launching. Every function checks that its views are as large as the kernel takes them to be.

use half::bf16;
use speedread_cuda::{Device, Error, Function, KernelArg, Launch, Plain, Stream, View, ViewMut};

use super::logits::LikeliestKernels;
use super::rope::RopeKernels;

macro_rules! image {
    ($name:literal) => {
        include_bytes!(concat!(env!("OUT_DIR"), "/", $name, ".fatbin"))
    };
}
pub(super) use image;

static ELEMENTWISE: &[u8] = image!("elementwise");
static NORM: &[u8] = image!("norm");
static MATVEC: &[u8] = image!("matvec");
static RANDOM: &[u8] = image!("random");

/// Threads of a block, except where a kernel says otherwise.
pub(super) const THREADS: u32 = 256;
/// Elements that a thread takes at a time.
pub(super) const CHUNK: usize = 8;
/// Outputs of a thread block of the matrix-vector kernel.
const MATVEC_OUTPUTS: usize = 16;
/// Matrices that it takes in one launch.
pub(super) const MATVEC_MATRICES: usize = 3;
/// Most thread blocks of a kernel that strides over its elements.
pub(super) const MOST_BLOCKS: usize = 1 << 16;

/// The kernels of a device.
#[derive(Debug)]
pub(super) struct Kernels {
    embed: Function,
    swiglu: Function,
    add: Function,
    repack: Function,
    rms_norm: Function,
    rms_norm_in_place: Function,
    pub rope: RopeKernels,
    pub likeliest: LikeliestKernels,
    matvec_bf16: Function,
    matvec_f32: Function,
    random_weights: Function,
}

/// Mirror of `MatvecParams` in `kernels/matvec.cu`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct MatvecParams {
    x: u64,
    matrices: [Matrix; MATVEC_MATRICES],
    inputs: i64,
    accumulate: i32,
}
// SAFETY: the same fields in the same order as the kernel's structure.
unsafe impl KernelArg for MatvecParams {}

/// Mirror of `Matrix` in `kernels/matvec.cu`.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
struct Matrix {
    weight: u64,
    bias: u64,
    out: u64,
    outputs: i64,
}

/// A matrix for the matrix-vector kernel: `out[o] = sum_i weight[o][i] x[i]`, plus `bias[o]` if there is one.
pub(super) struct Matvec<'a, Out: Plain> {
    pub weight: View<'a, bf16>,
    pub bias: Option<View<'a, f32>>,
    pub out: ViewMut<'a, Out>,
}

/// An error of kernel `what` unless its buffers are right together: their sizes tell which are not.
pub(super) fn fits(what: &str, right: bool, sizes: std::fmt::Arguments<'_>) -> Result<(), Error> {
    if right { Ok(()) } else { Err(Error::Size(format!("{what}: the buffers do not fit together: {sizes}"))) }
}

/// Thread blocks, each of `each` pieces, for `pieces`: at least one, at most so many that a grid holds them.
pub(super) fn blocks(pieces: usize, each: usize) -> [u32; 3] {
    [pieces.div_ceil(each).clamp(1, MOST_BLOCKS) as u32, 1, 1]
}

/// A grid with a thread block a row.
pub(super) fn row_blocks(rows: usize) -> Result<[u32; 3], Error> {
    let most = i32::MAX as usize;
    if rows > most {
        return Err(Error::Size(format!("{rows} rows at a time; at most {most} go")));
    }
    Ok([rows as u32, 1, 1])
}

impl Kernels {
    pub fn load(device: &Device) -> Result<Self, Error> {
        let [elementwise, norm, matvec, random] = [ELEMENTWISE, NORM, MATVEC, RANDOM].map(|image| device.load(image));
        let (elementwise, norm, matvec) = (elementwise?, norm?, matvec?);
        Ok(Self {
            embed: elementwise.overlapping("embed")?,
            swiglu: elementwise.overlapping("swiglu")?,
            add: elementwise.overlapping("add")?,
            repack: elementwise.overlapping("repack")?,
            rms_norm: norm.overlapping("rms_norm")?,
            rms_norm_in_place: norm.overlapping("rms_norm_in_place")?,
            rope: RopeKernels::load(device)?,
            likeliest: LikeliestKernels::load(device)?,
            matvec_bf16: matvec.overlapping("matvec_bf16")?,
            matvec_f32: matvec.overlapping("matvec_f32")?,
            random_weights: random?.function("random_weights", 0)?,
        })
    }

    /// `out[i] = table[ids[i]]`; every id must be below the number of the table's rows.
    pub fn embed(
        &self,
        stream: &Stream,
        table: View<'_, bf16>,
        ids: View<'_, u32>,
        out: ViewMut<'_, f32>,
        columns: usize,
    ) -> Result<(), Error> {
        fits(
            "embed",
            out.len() == ids.len() * columns && table.len().is_multiple_of(columns),
            format_args!(
                "{} ids, a table of {} and an output of {}, rows of {columns}",
                ids.len(),
                table.len(),
                out.len()
            ),
        )?;
        let launch = self.embed.launch(stream).grid(row_blocks(ids.len())?).block(THREADS).overlap();
        // SAFETY: the kernel's parameters; a block a row, and `out` has as many. That ids are in the table is the caller's promise to the
        // backend, checked by the session.
        unsafe { launch.read(table).read(ids).write(out).arg(columns as i64).run() }
    }

    /// `gate = silu(gate) * up`
    pub fn swiglu(&self, stream: &Stream, gate: ViewMut<'_, bf16>, up: View<'_, bf16>) -> Result<(), Error> {
        self.in_place("swiglu", &self.swiglu, stream, gate, up)
    }

    /// `x += y`
    pub fn add(&self, stream: &Stream, x: ViewMut<'_, f32>, y: View<'_, bf16>) -> Result<(), Error> {
        self.in_place("add", &self.add, stream, x, y)
    }

    fn in_place<T: Plain>(
        &self,
        name: &str,
        kernel: &Function,
        stream: &Stream,
        x: ViewMut<'_, T>,
        y: View<'_, bf16>,
    ) -> Result<(), Error> {
        let count = x.len();
        fits(
            name,
            count == y.len() && count.is_multiple_of(CHUNK),
            format_args!("{count} and {} elements; as many in both, in whole {CHUNK}s, are needed", y.len()),
        )?;
        let launch = kernel.launch(stream).grid(blocks(count / CHUNK, THREADS as usize)).block(THREADS).overlap();
        // SAFETY: the parameters of both kernels; they touch `count` elements of both views.
        unsafe { launch.write(x).read(y).arg(count as i64).run() }
    }

    /// Runs of `from_dim` elements to runs of `to_dim`: cut, or filled up with zeros.
    pub fn repack(
        &self,
        stream: &Stream,
        from: View<'_, bf16>,
        from_dim: usize,
        to: ViewMut<'_, bf16>,
        to_dim: usize,
    ) -> Result<(), Error> {
        let runs = from.len() / from_dim;
        let whole = from_dim.is_multiple_of(CHUNK) && to_dim.is_multiple_of(CHUNK);
        fits(
            "repack",
            whole && from.len() == runs * from_dim && to.len() == runs * to_dim,
            format_args!("{} elements in runs of {from_dim} to {} in runs of {to_dim}", from.len(), to.len()),
        )?;
        let launch =
            self.repack.launch(stream).grid(blocks(to.len() / CHUNK, THREADS as usize)).block(THREADS).overlap();
        let launch = launch.read(from).write(to).arg(runs as i64).arg(from_dim as i32).arg(to_dim as i32);
        // SAFETY: the kernel's parameters; it writes `runs` runs, which both views have.
        unsafe { launch.run() }
    }

    /// Every row of `weight.len()` elements, normed.
    pub fn rms_norm(
        &self,
        stream: &Stream,
        x: View<'_, f32>,
        weight: View<'_, f32>,
        eps: f32,
        out: ViewMut<'_, bf16>,
    ) -> Result<(), Error> {
        let columns = weight.len();
        let rows = x.len() / columns;
        fits(
            "rms_norm",
            columns.is_multiple_of(CHUNK) && x.len() == rows * columns && out.len() == x.len(),
            format_args!("{} elements in rows of {columns} to {}", x.len(), out.len()),
        )?;
        let launch = self.rms_norm.launch(stream).grid(row_blocks(rows)?).block(THREADS).overlap();
        // SAFETY: the kernel's parameters; a block a row, which both views have.
        unsafe { launch.read(x).read(weight).write(out).arg(columns as i64).arg(eps).run() }
    }

    /// Every run of `weight.len()` elements, normed in place.
    pub fn rms_norm_in_place(
        &self,
        stream: &Stream,
        x: ViewMut<'_, bf16>,
        weight: View<'_, f32>,
        eps: f32,
    ) -> Result<(), Error> {
        let columns = weight.len();
        let runs = x.len() / columns;
        fits(
            "rms_norm_in_place",
            columns.is_multiple_of(CHUNK) && x.len() == runs * columns,
            format_args!("{} elements in runs of {columns}", x.len()),
        )?;
        let grid = row_blocks(runs.div_ceil(THREADS as usize / 32))?;
        let launch = self.rms_norm_in_place.launch(stream).grid(grid).block(THREADS).overlap();
        // SAFETY: the kernel's parameters; a warp a run, and those past the last do nothing.
        unsafe { launch.write(x).read(weight).arg(runs as i64).arg(columns as i64).arg(eps).run() }
    }

    /// The products of one row with up to three matrices.
    pub fn matvec(&self, stream: &Stream, x: View<'_, bf16>, matrices: Vec<Matvec<'_, bf16>>) -> Result<(), Error> {
        Self::queue_matvec(&self.matvec_bf16, stream, x, matrices, false)
    }

    /// The product of one row, added to what `out` holds if `accumulate`.
    pub fn matvec_f32(
        &self,
        stream: &Stream,
        x: View<'_, bf16>,
        matrix: Matvec<'_, f32>,
        accumulate: bool,
    ) -> Result<(), Error> {
        Self::queue_matvec(&self.matvec_f32, stream, x, vec![matrix], accumulate)
    }

    fn queue_matvec<Out: Plain>(
        kernel: &Function,
        stream: &Stream,
        x: View<'_, bf16>,
        matrices: Vec<Matvec<'_, Out>>,
        accumulate: bool,
    ) -> Result<(), Error> {
        let inputs = x.len();
        let fit = |m: &Matvec<'_, Out>| {
            m.weight.len() == inputs * m.out.len() && m.bias.is_none_or(|bias| bias.len() == m.out.len())
        };
        let whole = inputs.is_multiple_of(CHUNK) && (1..=MATVEC_MATRICES).contains(&matrices.len());
        let sizes = |m: &Matvec<'_, Out>| (m.weight.len(), m.bias.map(|bias| bias.len()), m.out.len());
        fits(
            "matvec",
            whole && matrices.iter().all(fit),
            format_args!("{inputs} inputs and matrices with biases to outputs {:?}", {
                matrices.iter().map(sizes).collect::<Vec<_>>()
            }),
        )?;
        let grid = row_blocks(matrices.iter().map(|m| m.out.len().div_ceil(MATVEC_OUTPUTS)).sum())?;
        let mut params = MatvecParams {
            x: x.address(),
            matrices: Default::default(),
            inputs: inputs as i64,
            accumulate: accumulate.into(),
        };
        for (to, m) in params.matrices.iter_mut().zip(&matrices) {
            *to = Matrix {
                weight: m.weight.address(),
                bias: m.bias.map_or(0, |bias| bias.address()),
                out: m.out.address(),
                outputs: m.out.len() as i64,
            };
        }
        let launch: Launch<'_> = kernel.launch(stream).grid(grid).block(THREADS).overlap().arg(params);
        // SAFETY: the kernel's one parameter; it reads and writes what the views were found to hold, and there are as many blocks as it
        // takes for all outputs.
        unsafe { launch.run() }
    }

    /// Random numbers, evenly spread over `-range .. range`: element `i` is that of number `seed + i`.
    pub fn random_weights(&self, stream: &Stream, out: ViewMut<'_, bf16>, seed: u64, range: f32) -> Result<(), Error> {
        let count = out.len();
        let launch = self.random_weights.launch(stream).grid(blocks(count, THREADS as usize)).block(THREADS);
        // SAFETY: the kernel's parameters; it writes `count` elements.
        unsafe { launch.write(out).arg(count as i64).arg(seed).arg(range).run() }
    }
}

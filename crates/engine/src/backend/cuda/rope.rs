//! Rotary embedding, and keys' and values' way into the cache and, where that is 8-bit codes, out of it: loading and launching.

use half::bf16;
use speedread_attention::cuda::CodeType;
use speedread_cuda::{Device, Error, Function, KernelArg, Stream, View, ViewMut};

use super::kernels::{CHUNK, MOST_BLOCKS, THREADS, blocks, fits, row_blocks};
use crate::rope::RopeLayout;

static ROPE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/rope.fatbin"));
static CODED_CACHE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/coded_cache.fatbin"));

const ROPE_THREADS: u32 = 128;
/// Of the kernel that makes references of keys, a thread block a head.
const REFERENCE_THREADS: u32 = 1024;
/// Rows of sequences that the kernels for several take in one launch.
const ROWS: usize = 8;
/// Components of a head that a warp of the kernels for codes takes.
const CODED_DIM: usize = 128;
/// Of fewer rows the kernels for codes spread the heads over thread blocks, a warp a head: a decode step waits for the one row.
const MANY_ROWS: usize = 128;

/// The kernels of a device.
#[derive(Debug)]
pub(super) struct RopeKernels {
    table: Function,
    /// By layout, then wide and narrow.
    append: [[Function; 2]; 2],
    /// By type of the codes.
    append_coded: [[[Function; 2]; 2]; 2],
    /// The same for single rows of several sequences.
    append_rows: [[Function; 2]; 2],
    append_rows_coded: [[[Function; 2]; 2]; 2],
    reference: [[Function; 2]; 2],
    widen: [Function; 2],
}

/// Where keys and values go: from the place of the first row in the first head on.
pub(super) enum Places<'a> {
    Bf16([ViewMut<'a, bf16>; 2]),
    Coded {
        kind: CodeType,
        /// Keys, values.
        rows: [CodedPlaces<'a>; 2],
        /// What is taken of every key of a head before it is coded, `[key heads, row_stride]`.
        reference: ViewMut<'a, f32>,
        /// The rows are the layer's first: the reference is made of them.
        first: bool,
    },
}

/// Codes and scales.
pub(super) type CodedPlaces<'a> = (ViewMut<'a, u8>, ViewMut<'a, f32>);

/// Queries, keys and values of some rows on their way through the rotary embedding into the cache.
pub(super) struct Rope<'a> {
    /// `[rows, query heads, dim]`
    pub q: ViewMut<'a, bf16>,
    /// `[rows, key heads, dim]`
    pub k: View<'a, bf16>,
    /// `[rows, key heads, dim]`
    pub v: View<'a, bf16>,
    /// `[rows, pairs]`
    pub cosines: View<'a, f32>,
    /// `[rows, pairs]`
    pub sines: View<'a, f32>,
    pub cache: Places<'a>,
    pub rows: usize,
    pub kv_heads: usize,
    pub dim: usize,
    pub pairs: usize,
    /// Elements from a head to the next in the cache; a multiple of `row_stride`.
    pub head_stride: usize,
    /// Elements from a row to the next in the cache.
    pub row_stride: usize,
    pub layout: RopeLayout,
}

/// Mirror of `RopeParams` in `kernels/rope.cuh`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct RopeParams {
    q: u64,
    k: u64,
    v: u64,
    cosines: u64,
    sines: u64,
    cache_k: u64,
    cache_v: u64,
    head_stride: i64,
    row_stride: i32,
    q_heads: i32,
    kv_heads: i32,
    dim: i32,
    pairs: i32,
}
// SAFETY: the same fields in the same order as the kernel's structure.
unsafe impl KernelArg for RopeParams {}

/// Mirror of `CodedRopeParams` in `kernels/coded_cache.cu`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct CodedRopeParams {
    rope: RopeParams,
    scales_k: u64,
    scales_v: u64,
    scale_head_stride: i64,
    reference: u64,
}
// SAFETY: the same fields in the same order as the kernel's structure.
unsafe impl KernelArg for CodedRopeParams {}

/// Mirror of `RopeRows` in `kernels/rope.cuh`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct RopeRows<P>([P; ROWS]);
// SAFETY: the same structures in the same order as the kernel's.
unsafe impl<P: KernelArg> KernelArg for RopeRows<P> {}

impl<P: Copy> RopeRows<P> {
    /// At most [`ROWS`], and at least one; what is past the last is not looked at.
    fn new(rows: &[P]) -> Self {
        let mut all = [rows[0]; ROWS];
        all.iter_mut().zip(rows).for_each(|(to, row)| *to = *row);
        Self(all)
    }
}

/// Rows whose buffers were found to fit together.
enum Checked {
    Bf16(RopeParams),
    Coded { kind: CodeType, params: CodedRopeParams, first: bool },
}

impl RopeKernels {
    pub fn load(device: &Device) -> Result<Self, Error> {
        let (rope, coded) = (device.load(ROPE)?, device.load(CODED_CACHE)?);
        let append = |module: &speedread_cuda::Module, name: &str| -> Result<[[Function; 2]; 2], Error> {
            let function = |layout: &str| module.overlapping(&format!("{name}_{layout}"));
            Ok([
                [function("halves")?, function("halves_narrow")?],
                [function("interleaved")?, function("interleaved_narrow")?],
            ])
        };
        Ok(Self {
            table: rope.function("rotary_table", 0)?,
            append: append(&rope, "rope_append")?,
            append_coded: [append(&coded, "rope_append_fp8")?, append(&coded, "rope_append_int8")?],
            append_rows: append(&rope, "rope_append_rows")?,
            append_rows_coded: [append(&coded, "rope_append_rows_fp8")?, append(&coded, "rope_append_rows_int8")?],
            reference: append(&coded, "reference_keys")?,
            widen: [coded.function("widen_fp8", 0)?, coded.function("widen_int8", 0)?],
        })
    }

    /// Cosines and sines of the positions `start ..`, `[rows, pairs]`.
    pub fn table(
        &self,
        stream: &Stream,
        frequencies: View<'_, f64>,
        start: u64,
        scale: f64,
        cosines: ViewMut<'_, f32>,
        sines: ViewMut<'_, f32>,
    ) -> Result<(), Error> {
        let (pairs, count) = (frequencies.len(), cosines.len());
        let rows = count / pairs.max(1);
        fits(
            "rotary_table",
            count == rows * pairs && sines.len() == count,
            format_args!("{pairs} frequencies, {count} cosines and {} sines", sines.len()),
        )?;
        let launch = self.table.launch(stream).grid(blocks(count, THREADS as usize)).block(THREADS);
        let launch = launch.read(frequencies).write(cosines).write(sines);
        let launch = launch.arg(rows as i64).arg(pairs as i32).arg(start as i64).arg(scale);
        // SAFETY: the kernel's parameters; it writes `rows * pairs` elements of both tables.
        unsafe { launch.run() }
    }

    /// Rotates the queries in place and writes rotated keys, and values, to the cache. A cache of codes gets keys without their head's
    /// reference, which is made first if these are its first rows: scores of its keys, and the log-sum-exps over them, are less by the
    /// query's product with the reference, and softmax is the same.
    pub fn append(&self, stream: &Stream, rope: Rope<'_>) -> Result<(), Error> {
        let Rope { rows, kv_heads, .. } = rope;
        let (layout, wide) = rope.form();
        let mut grid = row_blocks(rows)?;
        let (kind, params, first) = match rope.check()? {
            Checked::Bf16(params) => {
                let launch = self.append[layout][wide].launch(stream).grid(grid).block(ROPE_THREADS).overlap();
                // SAFETY: the kernel's one parameter; blocks of a row, and the views were found to hold the rows.
                return unsafe { launch.arg(params).run() };
            }
            Checked::Coded { kind, params, first } => (kind, params, first),
        };
        if first {
            let launch = self.reference[layout][wide].launch(stream).grid([kv_heads as u32, 1, 1]);
            let launch = launch.block(REFERENCE_THREADS).overlap().arg(params).arg(rows as i64);
            // SAFETY: the kernel's two parameters; blocks of a head, and the views were found to hold the rows, and the heads' references.
            unsafe { launch.run()? };
        }
        if rows < MANY_ROWS {
            grid[1] = head_blocks(&params.rope);
        }
        let launch = self.append_coded[kind as usize][layout][wide].launch(stream).grid(grid).block(ROPE_THREADS);
        // SAFETY: the kernel's one parameter; blocks of a row or of its heads, and the views were found to hold the rows.
        unsafe { launch.overlap().arg(params).run() }
    }

    /// The same for a row of each of some sequences, which are alike in everything but where they lie: eight in a launch.
    pub fn append_rows(&self, stream: &Stream, ropes: Vec<Rope<'_>>) -> Result<(), Error> {
        let one_by_one = |rope: &Rope<'_>| rope.rows != 1 || matches!(rope.cache, Places::Coded { first: true, .. });
        if ropes.len() < 2 || ropes.iter().any(one_by_one) {
            return ropes.into_iter().try_for_each(|rope| self.append(stream, rope));
        }
        let (layout, wide) = ropes[0].form();
        let (mut plain, mut coded) = (vec![], [vec![], vec![]]);
        for rope in ropes {
            fits("rope_append_rows", rope.form() == (layout, wide), format_args!("rows of different layouts"))?;
            match rope.check()? {
                Checked::Bf16(params) => plain.push(params),
                Checked::Coded { kind, params, .. } => coded[kind as usize].push(params),
            }
        }
        for rows in plain.chunks(ROWS) {
            let launch =
                self.append_rows[layout][wide].launch(stream).grid(row_blocks(rows.len())?).block(ROPE_THREADS);
            // SAFETY: the kernel's one parameter; a block a row, and the views were found to hold it.
            unsafe { launch.overlap().arg(RopeRows::new(rows)).run()? };
        }
        for (kernels, rows) in self.append_rows_coded.iter().zip(&coded) {
            for rows in rows.chunks(ROWS) {
                let grid = [rows.len() as u32, head_blocks(&rows[0].rope), 1];
                let launch = kernels[layout][wide].launch(stream).grid(grid).block(ROPE_THREADS);
                // SAFETY: the kernel's one parameter; blocks of a row's heads, and the views were found to hold them.
                unsafe { launch.overlap().arg(RopeRows::new(rows)).run()? };
            }
        }
        Ok(())
    }

    /// The first rows of every head of a cache of codes as bf16, `[heads, rows, dim]`; the cache's heads are `capacity` rows apart.
    pub fn widen(
        &self,
        stream: &Stream,
        (kind, codes): (CodeType, View<'_, u8>),
        scales: View<'_, f32>,
        capacity: usize,
        dim: usize,
        to: ViewMut<'_, bf16>,
    ) -> Result<(), Error> {
        let heads = scales.len() / capacity.max(1);
        let rows = to.len() / (heads * dim).max(1);
        fits(
            "widen",
            dim.is_multiple_of(CHUNK)
                && dim / CHUNK <= THREADS as usize
                && codes.len() == scales.len() * dim
                && scales.len() == heads * capacity
                && to.len() == heads * rows * dim
                && (1..=capacity).contains(&rows)
                && heads <= usize::from(u16::MAX),
            format_args!(
                "{} codes and {} scales of {capacity} positions of {dim} to {}",
                codes.len(),
                scales.len(),
                to.len()
            ),
        )?;
        let at_a_time = THREADS as usize / (dim / CHUNK);
        let grid = [rows.div_ceil(at_a_time).min(MOST_BLOCKS) as u32, heads as u32, 1];
        let launch = self.widen[kind as usize].launch(stream).grid(grid).block(THREADS);
        let launch = launch.read(codes).read(scales).write(to);
        // SAFETY: the kernel's parameters; it reads `rows` of the `capacity` rows of each head and writes as many.
        unsafe { launch.arg(rows as i64).arg(capacity as i64).arg(dim as i32).run() }
    }
}

impl Rope<'_> {
    /// By layout, then wide and narrow: which of the kernels.
    fn form(&self) -> (usize, usize) {
        let (layout, wide) = match self.layout {
            RopeLayout::Halves => (0, self.pairs.is_multiple_of(CHUNK)),
            RopeLayout::Interleaved => (1, self.pairs.is_multiple_of(CHUNK / 2)),
        };
        (layout, usize::from(!wide))
    }

    /// What the kernels are told, if the buffers hold it.
    fn check(&self) -> Result<Checked, Error> {
        let Rope { rows, kv_heads, dim, pairs, head_stride, row_stride, .. } = *self;
        let q_heads = self.q.len() / (rows * dim).max(1);
        let last_row = (kv_heads - 1) * head_stride + (rows - 1) * row_stride;
        let cache_fits = match &self.cache {
            Places::Bf16(places) => places.iter().all(|place| place.len() >= last_row + dim),
            Places::Coded { rows, reference, .. } => {
                // Scales lie as the codes' rows do.
                row_stride <= CODED_DIM
                    && head_stride.is_multiple_of(row_stride)
                    && reference.len() == kv_heads * row_stride
                    && rows.iter().all(|(codes, scales)| {
                        codes.len() >= last_row + row_stride && scales.len() > last_row / row_stride
                    })
            }
        };
        fits(
            "rope_append",
            self.q.len() == rows * q_heads * dim
                && [self.k.len(), self.v.len()].iter().all(|&len| len == rows * kv_heads * dim)
                && [self.cosines.len(), self.sines.len()].iter().all(|&len| len == rows * pairs)
                && cache_fits
                && [dim, head_stride, row_stride].iter().all(|&x| x.is_multiple_of(CHUNK))
                && 2 * pairs <= dim
                && dim <= row_stride,
            format_args!(
                "{rows} rows, {kv_heads} key heads of {dim} with {pairs} pairs; {} of queries, {} of keys, {} of values, {} cosines and {} \
                 sines; cache rows {row_stride} and heads {head_stride} apart",
                self.q.len(),
                self.k.len(),
                self.v.len(),
                self.cosines.len(),
                self.sines.len()
            ),
        )?;
        let [cache_k, cache_v] = match &self.cache {
            Places::Bf16(places) => places.each_ref().map(ViewMut::address),
            Places::Coded { rows, .. } => rows.each_ref().map(|(codes, _)| codes.address()),
        };
        let params = RopeParams {
            q: self.q.address(),
            k: self.k.address(),
            v: self.v.address(),
            cosines: self.cosines.address(),
            sines: self.sines.address(),
            cache_k,
            cache_v,
            head_stride: head_stride as i64,
            row_stride: row_stride as i32,
            q_heads: q_heads as i32,
            kv_heads: kv_heads as i32,
            dim: dim as i32,
            pairs: pairs as i32,
        };
        Ok(match &self.cache {
            Places::Bf16(_) => Checked::Bf16(params),
            Places::Coded { kind, rows: [(_, scales_k), (_, scales_v)], reference, first } => {
                let params = CodedRopeParams {
                    rope: params,
                    scales_k: scales_k.address(),
                    scales_v: scales_v.address(),
                    scale_head_stride: (head_stride / row_stride) as i64,
                    reference: reference.address(),
                };
                Checked::Coded { kind: *kind, params, first: *first }
            }
        })
    }
}

/// Thread blocks that share the heads of a row of a cache of codes, a warp a head.
fn head_blocks(params: &RopeParams) -> u32 {
    ((params.q_heads + 2 * params.kv_heads) as u32).div_ceil(ROPE_THREADS / 32)
}

//! Running cases on a CUDA device and checking them against the oracle: shared by the suites of the device.
#![allow(dead_code)] // each suite uses a part

use std::io::Write;
use std::sync::OnceLock;

use rayon::prelude::*;
use speedread_attention::cuda::{
    Attention, AttentionElement, DeviceOptions, DeviceRows, DeviceRowsMut, KernelKind, Plan, TILE, Workspace,
};
use speedread_attention::reference::attend_row;
use speedread_attention::*;
use speedread_cuda::{Device, Stream, ViewMut};

use crate::case::Case;

/// Device 0 with each attention kernel that runs on it, the fastest first; none where there is no device and none is required.
pub fn attentions() -> &'static [(Device, Attention)] {
    static OPENED: OnceLock<Vec<(Device, Attention)>> = OnceLock::new();
    OPENED.get_or_init(|| {
        let open = || {
            let device = Device::open(0)?;
            let mut opened = vec![(device.clone(), Attention::new(&device)?)];
            if opened[0].1.kernel() != KernelKind::Portable {
                opened.push((device.clone(), Attention::with_kernel(&device, KernelKind::Portable)?));
            }
            Ok::<_, Error>(opened)
        };
        match open() {
            Ok(opened) => opened,
            Err(error) if std::env::var_os("SPEEDREAD_REQUIRE_CUDA").is_some_and(|x| x == "1") => {
                panic!("SPEEDREAD_REQUIRE_CUDA=1, but {error}")
            }
            Err(error) => {
                // Past the capture of the test harness, which shows nothing of a test that passes.
                let _ = writeln!(std::io::stderr(), "CUDA tests skipped: {error}");
                vec![]
            }
        }
    })
}

/// What a test takes on a device, and what on the emulator.
pub fn sized<T>(full: T, small: T) -> T {
    if std::env::var_os("SPEEDREAD_EMULATED").is_some_and(|x| x == "1") { small } else { full }
}
/// Device 0 with its fastest kernel, or `None` where there is no device and none is required.
pub fn attention() -> Option<&'static (Device, Attention)> {
    attentions().first()
}

/// Where K and V of a case lie.
#[derive(Debug, Clone, Copy)]
pub enum Layout {
    /// `[rows][heads][dim]`.
    RowMajor,
    /// `[heads][rows + spare][dim]`, as in a key/value cache that has room for more.
    HeadMajor { spare: usize },
}

/// A case in a 16-bit type: what host and device both compute from.
pub struct Rounded<T> {
    pub case: Case,
    pub k: Vec<T>,
    pub v: Vec<T>,
}

pub fn round<T: AttentionElement>(data: &[f32]) -> Vec<T> {
    data.iter().map(|&x| T::round(x)).collect()
}

impl<T: AttentionElement> Rounded<T> {
    pub fn new(mut case: Case) -> Self {
        case.q.iter_mut().for_each(|x| *x = T::round(*x).to_f32());
        let (k, v) = (round(&case.k), round(&case.v));
        Rounded { case, k, v }
    }
    pub fn k(&self) -> Rows<'_, T> {
        self.case.kv(&self.k)
    }
    pub fn v(&self) -> Rows<'_, T> {
        self.case.kv(&self.v)
    }

    pub fn indexes(&self, patterns: &[Pattern], fallback: bool) -> Vec<SparseIndex> {
        let options = Options { dense_fallback: fallback, ..Options::default() };
        let planned = plan_in_tiles(self.case.q(), self.k(), patterns, TILE, &options).unwrap();
        planned.into_iter().map(|(_, index)| index).collect()
    }

    fn upload_kv(&self, stream: &Stream, data: &[T], layout: Layout) -> (speedread_cuda::Buffer<T>, usize, usize) {
        let (len, heads, dim) = (self.case.len(), self.case.kv_heads, self.case.dim);
        match layout {
            Layout::RowMajor => (stream.upload(data).unwrap(), heads * dim, dim),
            Layout::HeadMajor { spare } => {
                // What lies past the last key must not matter.
                let mut moved = vec![T::round(f32::NAN); heads * (len + spare) * dim];
                for (i, row) in data.chunks_exact(dim).enumerate() {
                    let at = (i % heads * (len + spare) + i / heads) * dim;
                    moved[at..at + dim].copy_from_slice(row);
                }
                (stream.upload(&moved).unwrap(), dim, (len + spare) * dim)
            }
        }
    }

    /// Output (as f32) and log-sum-exp from the device, over indexes made on the host.
    pub fn run(
        &self,
        (device, attention): &(Device, Attention),
        indexes: &[SparseIndex],
        layout: Layout,
    ) -> (Vec<f32>, Vec<f32>) {
        let stream = device.stream().unwrap();
        let plan = Plan::new(indexes, self.case.kv_heads, self.case.dim).unwrap().upload(&stream).unwrap();
        self.poisoned(&stream, layout, |q, k, v, out, lse| {
            attention.attend(&stream, q, k, v, &plan, None, out, Some(lse)).unwrap();
        })
    }

    /// As `run`, with the indexes built on the device; those too, and the report.
    pub fn prefill(
        &self,
        (device, attention): &(Device, Attention),
        patterns: &[Pattern],
        fallback: bool,
        layout: Layout,
        work: &mut Workspace,
    ) -> (Vec<f32>, Vec<f32>, Vec<SparseIndex>, Vec<HeadReport>) {
        let stream = device.stream().unwrap();
        let options = DeviceOptions { dense_fallback: fallback, ..DeviceOptions::default() };
        let (out, lse) = self.poisoned(&stream, layout, |q, k, v, out, lse| {
            attention.prefill(&stream, q, k, v, patterns, &options, work, out, Some(lse)).unwrap();
        });
        (out, lse, work.indexes(&stream).unwrap(), attention.report(&stream, work).unwrap())
    }

    /// Output and log-sum-exp of `call`. Every result is poisoned first, and memory around it is checked.
    fn poisoned(
        &self,
        stream: &Stream,
        layout: Layout,
        call: impl FnOnce(
            DeviceRows<'_, T>,
            DeviceRows<'_, T>,
            DeviceRows<'_, T>,
            &mut DeviceRowsMut<'_, T>,
            ViewMut<'_, f32>,
        ),
    ) -> (Vec<f32>, Vec<f32>) {
        const GUARD: usize = 4096;
        let Case { rows, heads, dim, .. } = self.case;
        let q = stream.upload(&round::<T>(&self.case.q)).unwrap();
        let (k, row_stride, head_stride) = self.upload_kv(stream, &self.k, layout);
        let (v, ..) = self.upload_kv(stream, &self.v, layout);
        let kv =
            |data| DeviceRows::new(data, self.case.len(), self.case.kv_heads, dim, row_stride, head_stride).unwrap();
        let (out_len, lse_len) = (rows * heads * dim, heads * rows);
        // All bits set is a NaN in each of the types.
        let mut out = stream.alloc::<T>(out_len + 2 * GUARD).unwrap();
        stream.fill(out.view_mut(), 0xff).unwrap();
        let mut lse = stream.alloc::<f32>(lse_len + 2 * GUARD).unwrap();
        stream.fill(lse.view_mut(), 0xff).unwrap();
        let inner = out.view_mut().slice(GUARD..GUARD + out_len).unwrap();
        call(
            DeviceRows::contiguous(q.view(), rows, heads, dim).unwrap(),
            kv(k.view()),
            kv(v.view()),
            &mut DeviceRowsMut::contiguous(inner, rows, heads, dim).unwrap(),
            lse.view_mut().slice(GUARD..GUARD + lse_len).unwrap(),
        );
        let out: Vec<f32> = stream.download(out.view()).unwrap().into_iter().map(T::to_f32).collect();
        let lse = stream.download(lse.view()).unwrap();
        for guarded in [&out, &lse] {
            let len = guarded.len();
            assert!(
                guarded[..GUARD].iter().chain(&guarded[len - GUARD..]).all(|x| x.is_nan()),
                "written outside the result"
            );
        }
        (out[GUARD..GUARD + out_len].to_vec(), lse[GUARD..GUARD + lse_len].to_vec())
    }

    /// Output and log-sum-exp against the oracle over the keys of the indexes, on rows at the edges of tiles and some between.
    pub fn check(&self, out: &[f32], lse: &[f32], indexes: &[SparseIndex], about: &str) {
        let Case { rows, heads, dim, .. } = self.case;
        assert!(out.iter().chain(lse).all(|x| x.is_finite()), "{about}: a value was not written, or is not finite");
        let sampled: Vec<usize> =
            (0..rows).filter(|r| r % 64 < 1 || r % 64 > 62 || r % 53 == 0 || r + 1 == rows).collect();
        let tasks: Vec<(usize, usize)> = (0..heads).flat_map(|h| sampled.iter().map(move |&r| (h, r))).collect();
        let (worst, allowed, squares, norm) = tasks
            .par_iter()
            .map(|&(head, row)| {
                let kv_head = head / (heads / self.case.kv_heads);
                let visible = |key| indexes[head].contains(row, key);
                let q = self.case.q();
                let (want, want_lse) =
                    attend_row(q.row(row, head), self.k(), self.v(), kv_head, self.case.scale(), visible);
                let naive = naive(q.row(row, head), self.k(), self.v(), kv_head, visible);
                let got_lse = lse[head * rows + row] as f64;
                let off = (got_lse - want_lse).abs();
                assert!(
                    off < 1e-4 + 1e-6 * want_lse.abs(),
                    "{about} lse of row {row} head {head}: {got_lse} {want_lse}"
                );
                let got = &out[(row * heads + head) * dim..][..dim];
                let differences =
                    |x: &[f32]| x.iter().zip(&want).map(|(x, want)| *x as f64 - want).collect::<Vec<f64>>();
                let largest = |x: &[f64]| x.iter().map(|x| x.abs()).fold(0.0, f64::max);
                let square = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>();
                let off = differences(got);
                (largest(&off), largest(&differences(&naive)), square(&off), square(&want))
            })
            .reduce(|| (0.0, 0.0, 0.0, 0.0), |a, b| (f64::max(a.0, b.0), f64::max(a.1, b.1), a.2 + b.2, a.3 + b.3));
        // FlashAttention's rule: no more than twice the error of the naive computation in the same type.
        assert!(worst <= 2.0 * allowed + 1e-5, "{about}: {worst} against {allowed}");
        // And over all elements no more than roundings of this type explain: a wrong key here and there would show.
        let relative = (squares / norm).sqrt();
        let epsilon = if T::NAME == "bf16" { 1.0 / 256.0 } else { 1.0 / 2048.0 };
        assert!(relative < epsilon, "{about}: relative error {relative}");
    }

    /// On every kernel.
    pub fn run_and_check(&self, patterns: &[Pattern], fallback: bool, layout: Layout) {
        let indexes = self.indexes(patterns, fallback);
        let Case { rows, start, heads, kv_heads, dim, .. } = self.case;
        for device in attentions() {
            let (out, lse) = self.run(device, &indexes, layout);
            let about = format!(
                "{} kernel, {} {patterns:?} {rows} rows from {start}, {heads}/{kv_heads} heads of {dim}, {layout:?}",
                device.1.kernel(),
                T::NAME
            );
            self.check(&out, &lse, &indexes, &about);
        }
    }
}

/// Attention of one row as a naive implementation in this type does it (FlashAttention's `attention_ref` without upcast): scores, weights
/// and output are rounded, softmax is computed in f32.
pub fn naive<T: AttentionElement>(
    q: &[f32],
    k: Rows<'_, T>,
    v: Rows<'_, T>,
    head: usize,
    visible: impl Fn(usize) -> bool,
) -> Vec<f32> {
    let scale = 1.0 / (k.dim() as f32).sqrt();
    let keys: Vec<usize> = (0..k.rows()).filter(|&key| visible(key)).collect();
    let dot = |key: usize| q.iter().zip(k.row(key, head)).map(|(a, b)| a * b.to_f32()).sum::<f32>() * scale;
    let dot = |key: usize| T::round(dot(key)).to_f32();
    let scores: Vec<f32> = keys.iter().map(|&key| dot(key)).collect();
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f32> = scores.iter().map(|s| (s - max).exp()).collect();
    let sum: f32 = weights.iter().sum();
    let mut out = vec![0f32; v.dim()];
    for (&key, weight) in keys.iter().zip(&weights) {
        let weight = T::round(weight / sum).to_f32();
        out.iter_mut().zip(v.row(key, head)).for_each(|(o, x)| *o += weight * x.to_f32());
    }
    out.iter().map(|&o| T::round(o).to_f32()).collect()
}

//! Every operation against the CPU backend, on the same inputs: numbers that bf16 holds exactly, so that only the operation rounds.
//! Skipped without a device; `SPEEDREAD_REQUIRE_CUDA=1` makes that a failure.

mod coded;
mod decode;
mod likeliest;

use std::io::Write;
use std::sync::OnceLock;

use half::bf16;
use proptest::prelude::*;
use speedread_attention::{Audit, Element, Options, Pattern, Rows};

use super::*;
use crate::backend::cpu::CpuBackend;
use crate::backend::cpu::gemm::Precision;
use crate::kv_cache::{KvType, View};
use crate::rope::RopeLayout;

fn device() -> Option<&'static CudaContext> {
    static OPENED: OnceLock<Option<CudaContext>> = OnceLock::new();
    let open = || match CudaContext::open(0) {
        Ok(context) => Some(context),
        Err(error) if std::env::var_os("SPEEDREAD_REQUIRE_CUDA").is_some_and(|x| x == "1") => {
            panic!("SPEEDREAD_REQUIRE_CUDA=1, but {error}")
        }
        Err(error) => {
            // Past the capture of the test harness, which shows nothing of a test that passes.
            let _ = writeln!(std::io::stderr(), "CUDA tests skipped: {error}");
            None
        }
    };
    OPENED.get_or_init(open).as_ref()
}

/// Numbers around zero that bf16 holds exactly, the same for the same seed.
fn numbers(len: usize, seed: u64) -> Vec<f32> {
    (0..len as u64)
        .map(|i| {
            let mut x = (i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ seed.wrapping_mul(0xD6E8_FEB8_6659_FD93);
            x = (x ^ x >> 32).wrapping_mul(0xD6E8_FEB8_6659_FD93);
            bf16::from_f32((x >> 40) as f32 / (1u64 << 23) as f32 - 1.0).to_f32()
        })
        .collect()
}

/// A backend whose buffers a test can fill.
trait Filled: Backend {
    fn filled(&self, columns: usize, values: &[f32], role: Role) -> Self::Buffer;
}

impl Filled for CpuBackend {
    fn filled(&self, columns: usize, values: &[f32], role: Role) -> Self::Buffer {
        let mut buffer = self.buffer(values.len() / columns, columns, role).unwrap();
        buffer.fill_for_test(values);
        buffer
    }
}

impl Filled for CudaBackend {
    fn filled(&self, columns: usize, values: &[f32], role: Role) -> CudaBuffer {
        let stream = &self.context.stream;
        let data = match role {
            Role::Residual => buffers::Data::F32(stream.upload(values).unwrap()),
            Role::Activations => {
                let rounded: Vec<bf16> = values.iter().map(|&x| bf16::from_f32(x)).collect();
                buffers::Data::Bf16(stream.upload(&rounded).unwrap())
            }
        };
        CudaBuffer { data, columns }
    }
}

/// Largest difference relative to the largest number.
fn difference(got: &[f32], want: &[f32]) -> f32 {
    assert_eq!(got.len(), want.len());
    let scale = want.iter().fold(1e-6f32, |most, x| most.max(x.abs()));
    got.iter()
        .zip(want)
        .map(|(g, w)| if g.is_finite() { (g - w).abs() / scale } else { f32::INFINITY })
        .fold(0.0, f32::max)
}

/// Half a unit of bf16's last place, and a little for sums in another order.
const ROUNDED: f32 = 1.0 / 256.0 + 1e-4;
/// Sums of a few thousand in another order; the largest number may be a small one by chance.
const EXACT: f32 = 1e-5;

/// Runs the same on both backends and compares what comes back.
fn same(
    what: &str,
    tolerance: f32,
    cpu: impl FnOnce(CpuBackend) -> Vec<f32>,
    cuda: impl FnOnce(CudaBackend) -> Vec<f32>,
) {
    let Some(context) = device() else { return };
    let found = difference(&cuda(CudaBackend::new(context).unwrap()), &cpu(CpuBackend::new(Precision::F32)));
    assert!(found <= tolerance, "{what}: {found} > {tolerance}");
}

macro_rules! on_both {
    ($what:expr, $tolerance:expr, $run:ident($($arg:expr),* $(,)?)) => {
        same($what, $tolerance, |backend| $run(backend $(, $arg)*), |backend| $run(backend $(, $arg)*))
    };
}
use on_both;

/// Consecutive positions, unscaled.
fn positions(frequencies: &[f64], start: usize, rows: usize) -> Positions<'_> {
    Positions { frequencies, scale: 1.0, start, rows }
}

fn embed<B: Filled>(mut backend: B, columns: usize) -> Vec<f32> {
    let table = backend.upload_linear(Matrix::from_f32(9, columns, numbers(9 * columns, 1)), None).unwrap();
    let mut out = backend.filled(columns, &vec![f32::NAN; 5 * columns], Role::Residual);
    backend.embed(&table, &[0, 3, 3, 7], &mut out, 1).unwrap();
    backend.embed(&table, &[8], &mut out, 0).unwrap();
    backend.read(&out, 5).unwrap()
}

fn norm<B: Filled>(mut backend: B, columns: usize) -> Vec<f32> {
    let x = backend.filled(columns, &numbers(7 * columns, 2), Role::Residual);
    let weight = backend.upload_vector(numbers(columns, 3)).unwrap();
    let mut out = backend.filled(columns, &vec![f32::NAN; 4 * columns], Role::Activations);
    backend.rms_norm(&x, 2..6, &weight, 0.1, &mut out).unwrap();
    backend.read(&out, 4).unwrap()
}

fn norm_in_place<B: Filled>(mut backend: B, heads: usize, dim: usize) -> Vec<f32> {
    let mut x = backend.filled(heads * dim, &numbers(7 * heads * dim, 2), Role::Activations);
    let weight = backend.upload_vector(numbers(dim, 3)).unwrap();
    backend.rms_norm_in_place(&mut x, 1..6, &weight, 0.1).unwrap();
    backend.read(&x, 7).unwrap()
}

/// Rows 1.. of the input, to rows 2.. of the outputs.
fn linear<B: Filled>(mut backend: B, rows: usize, inputs: usize, outputs: usize, bias: bool) -> Vec<f32> {
    let x = backend.filled(inputs, &numbers((rows + 1) * inputs, 4), Role::Activations);
    let matrix = |seed| {
        let bias = bias.then(|| numbers(outputs, seed + 10));
        backend.upload_linear(Matrix::from_f32(outputs, inputs, numbers(outputs * inputs, seed)), bias).unwrap()
    };
    let (a, b) = (matrix(5), matrix(6));
    let mut outs = [0, 1].map(|_| backend.filled(outputs, &vec![0.5; (rows + 2) * outputs], Role::Activations));
    let [first, second] = &mut outs;
    let mut products = [Product { weight: &a, out: first, row: 2 }, Product { weight: &b, out: second, row: 2 }];
    backend.linear(&x, 1..1 + rows, &mut products).unwrap();
    outs.iter().flat_map(|out| backend.read(out, rows + 2).unwrap()).collect()
}

fn linear_add<B: Filled>(mut backend: B, rows: usize, inputs: usize, outputs: usize, bias: bool) -> Vec<f32> {
    let x = backend.filled(inputs, &numbers((rows + 1) * inputs, 4), Role::Activations);
    let bias = bias.then(|| numbers(outputs, 16));
    let weight = Matrix::from_f32(outputs, inputs, numbers(outputs * inputs, 5));
    let weight = backend.upload_linear(weight, bias).unwrap();
    let mut out = backend.filled(outputs, &numbers((rows + 2) * outputs, 7), Role::Residual);
    backend.linear_add(&x, 1..1 + rows, Product { weight: &weight, out: &mut out, row: 2 }).unwrap();
    backend.read(&out, rows + 2).unwrap()
}

fn logits<B: Filled>(mut backend: B, rows: usize, inputs: usize, outputs: usize) -> Vec<f32> {
    let x = backend.filled(inputs, &numbers(rows * inputs, 4), Role::Activations);
    let weight = Matrix::from_f32(outputs, inputs, numbers(outputs * inputs, 5));
    let weight = backend.upload_linear(weight, None).unwrap();
    let mut out = vec![f32::NAN; rows * outputs];
    backend.logits(&weight, &x, rows, &mut out).unwrap();
    out
}

fn swiglu_and_add<B: Filled>(mut backend: B, columns: usize) -> Vec<f32> {
    let wide = |seed| numbers(6 * columns, seed).iter().map(|x| x * 16.0).collect::<Vec<_>>();
    let mut gate = backend.filled(columns, &wide(1), Role::Activations);
    let up = backend.filled(columns, &wide(2), Role::Activations);
    backend.swiglu(&mut gate, &up, 5).unwrap();
    let mut x = backend.filled(columns, &wide(3), Role::Residual);
    backend.add(&mut x, 2..6, &up).unwrap();
    [backend.read(&gate, 6).unwrap(), backend.read(&x, 6).unwrap()].concat()
}

/// Heads and positions of an attention test.
#[derive(Debug, Clone, Copy)]
struct Heads {
    kv_heads: usize,
    group: usize,
    dim: usize,
    pairs: usize,
    layout: RopeLayout,
}

/// Keys, then values, row by row.
fn widened<T: Element>(k: Rows<'_, T>, v: Rows<'_, T>) -> Vec<f32> {
    let mut all = vec![];
    for rows in [k, v] {
        for (row, head) in (0..rows.rows()).flat_map(|row| (0..rows.heads()).map(move |head| (row, head))) {
            let mut wide = vec![0.0; rows.dim()];
            T::widen(rows.row(row, head), &mut wide);
            all.extend(wide);
        }
    }
    all
}

/// Appends `len` positions in two pieces, then attends with the last `rows` of them; returns the rotated queries, the keys and the output.
fn attend<B: Filled>(
    mut backend: B,
    heads: Heads,
    rows: usize,
    len: usize,
    pattern: Pattern,
    audit: bool,
    kind: KvType,
) -> Vec<f32> {
    let Heads { kv_heads, group, dim, pairs, layout } = heads;
    let shape = CacheShape { layers: 2, heads: kv_heads, dim, capacity: len + 3, kind };
    let mut cache = backend.cache(shape).unwrap();
    let frequencies: Vec<f64> = (0..pairs).map(|i| 10_000f64.powf(-(i as f64) / pairs as f64)).collect();
    let kv = |count, seed| numbers(count * kv_heads * dim, seed);
    let head_shape = HeadShape { dim, layout };
    let width = kv_heads * group * dim;
    let before = len - rows;
    if before > 0 {
        let mut q = backend.filled(width, &numbers(before * width, 1), Role::Activations);
        let mut k = backend.filled(kv_heads * dim, &kv(before, 2), Role::Activations);
        let v = backend.filled(kv_heads * dim, &kv(before, 3), Role::Activations);
        backend.rotary(&[positions(&frequencies, 0, before)]).unwrap();
        backend.rope_append(&mut q, &mut k, &v, 0..before, 0, head_shape, &mut cache, 1, 0).unwrap();
    }
    // Two rows more than are used, in two blocks, as a prefill does it.
    let mut q = backend.filled(width, &numbers((rows + 2) * width, 4), Role::Activations);
    backend.rotary(&[positions(&frequencies, before, rows)]).unwrap();
    let first = rows / 2;
    for block in [0..first, first..rows] {
        let (count, start) = (block.len(), block.start);
        if count == 0 {
            continue;
        }
        let mut k = backend.filled(kv_heads * dim, &kv(count, 5 + start as u64), Role::Activations);
        let v = backend.filled(kv_heads * dim, &kv(count, 6 + start as u64), Role::Activations);
        backend.rope_append(&mut q, &mut k, &v, block, 0, head_shape, &mut cache, 1, before + start).unwrap();
    }
    let mut found = backend.read(&q, rows).unwrap();
    let view = backend.host_view(&Seen { q: &q, rows, cache: &cache, layer: 1, len }).unwrap();
    found.extend(match view.keys_and_values().unwrap() {
        View::F32(k, v) => widened(k, v),
        View::F16(k, v) => widened(k, v),
        View::Bf16(k, v) => widened(k, v),
    });
    let options = Options { audit: audit.then_some(Audit { rows: 5 }), dense_fallback: false, ..Options::default() };
    backend.begin().unwrap();
    backend
        .attend(
            &mut q,
            rows,
            &cache,
            1,
            len,
            speedread_attention::Heads::Patterns(&vec![pattern; kv_heads * group]),
            &options,
        )
        .unwrap();
    let report = backend.finish().unwrap();
    for head in &report.layers[0] {
        assert_eq!(head.recall.is_some(), audit);
        found.extend(head.recall.map(|recall| recall.mean as f32));
    }
    found.extend(backend.read(&q, rows).unwrap());
    found
}

#[test]
fn rows_are_looked_up() {
    for columns in [8, 64, 4096] {
        on_both!("embed", 0.0, embed(columns));
    }
}

#[test]
fn norms() {
    for columns in [8, 64, 2056, 4096] {
        on_both!("norm", ROUNDED, norm(columns));
    }
    for (heads, dim) in [(4, 16), (3, 128), (1, 4096), (40, 64)] {
        on_both!("norm in place", ROUNDED, norm_in_place(heads, dim));
    }
}

#[test]
fn products() {
    for (rows, inputs, outputs) in [(1, 64, 96), (1, 4096, 33), (2, 64, 96), (130, 72, 40), (300, 256, 512)] {
        for bias in [false, true] {
            let what = format!("{rows} x {inputs} x {outputs}, bias {bias}");
            on_both!(&what, ROUNDED, linear(rows, inputs, outputs, bias));
            on_both!(&what, EXACT, linear_add(rows, inputs, outputs, bias));
        }
        on_both!("logits", EXACT, logits(rows, inputs, outputs));
    }
}

#[test]
fn elementwise() {
    for columns in [8, 96, 14_336] {
        on_both!("SwiGLU and addition", ROUNDED, swiglu_and_add(columns));
    }
}

/// As the CPU rounds in f32 and the device in bf16, the tolerance is bf16's for scores, weights and outputs together.
const ATTENDED: f32 = 3.0 / 256.0;

const SHAPES: [Heads; 6] = [
    Heads { kv_heads: 2, group: 2, dim: 64, pairs: 32, layout: RopeLayout::Halves },
    Heads { kv_heads: 1, group: 7, dim: 128, pairs: 64, layout: RopeLayout::Halves },
    Heads { kv_heads: 2, group: 16, dim: 128, pairs: 32, layout: RopeLayout::Interleaved },
    Heads { kv_heads: 3, group: 1, dim: 96, pairs: 48, layout: RopeLayout::Halves },
    // Filled up to 64, and pairs that are no whole vectors.
    Heads { kv_heads: 2, group: 2, dim: 16, pairs: 4, layout: RopeLayout::Halves },
    Heads { kv_heads: 2, group: 3, dim: 80, pairs: 5, layout: RopeLayout::Interleaved },
];

#[test]
fn attention_of_a_prefill() {
    let cases = [
        ("dense", 1, 1),
        ("dense", 130, 130),
        ("dense", 40, 300),
        ("a-shape:8,64", 200, 333),
        ("vertical-slash-tiles:1,2", 256, 700),
    ];
    for heads in SHAPES {
        for (pattern, rows, len) in cases {
            let pattern: Pattern = pattern.parse().unwrap();
            let what = format!("{heads:?} {pattern} {rows} of {len}");
            let audit = pattern != Pattern::Dense;
            // Indexes in tiles of other sizes keep other keys: what is compared is then only what both are sure to share.
            if pattern == Pattern::Dense {
                same(
                    &what,
                    ATTENDED,
                    |cpu| attend(cpu, heads, rows, len, pattern, audit, KvType::Bf16),
                    |cuda| attend(cuda, heads, rows, len, pattern, audit, KvType::Bf16),
                );
            } else if let Some(context) = device() {
                let found = attend(CudaBackend::new(context).unwrap(), heads, rows, len, pattern, audit, KvType::Bf16);
                assert!(found.iter().all(|x| x.is_finite()), "{what}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, max_shrink_iters: 10, ..ProptestConfig::default() })]

    #[test]
    fn products_of_any_shape(rows in 1usize..40, inputs in 1usize..30, outputs in 1usize..200, bias: bool) {
        // For outputs at odd addresses cublasLt rounds sums before it adds the bias, and once more after.
        let roundings = if bias && outputs % 8 != 0 { 2.0 } else { 1.0 };
        on_both!("linear", roundings * ROUNDED, linear(rows, inputs * 8, outputs, bias));
        on_both!("linear_add", EXACT, linear_add(rows, inputs * 8, outputs, bias));
    }
}

#[test]
fn what_does_not_fit_is_an_error() {
    let Some(context) = device() else { return };
    let backend = CudaBackend::new(context).unwrap();
    let shape = CacheShape { layers: 1, heads: 1, dim: 64, capacity: 10, kind: KvType::F16 };
    assert!(backend.cache(shape).unwrap_err().to_string().contains("--kv bf16"));
    let wide = CacheShape { dim: 256, kind: KvType::Bf16, ..shape };
    assert!(backend.cache(wide).unwrap_err().to_string().contains("256 components"));
    assert!(backend.buffer(1 << 40, 1 << 40, Role::Activations).is_err());
    let huge = backend.buffer(1 << 30, 1 << 20, Role::Activations).unwrap_err().to_string();
    assert!(huge.contains("bytes"), "{huge}");
}

#[test]
fn random_weights_are_those_of_the_host() {
    let Some(context) = device() else { return };
    let backend = CudaBackend::new(context).unwrap();
    let linear = backend.random_linear(70, 1000, u64::MAX / 3, 0.3, None).unwrap();
    let found = context.stream.download(linear.weight.view()).unwrap();
    assert_eq!(found, crate::synthetic::values(70_000, u64::MAX / 3, 0.3));
}

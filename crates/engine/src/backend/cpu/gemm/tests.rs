//! Every kernel of this machine against sums in f64, over shapes that fill blocks and shapes that do not.

use std::ops::Range;

use half::bf16;
use proptest::prelude::*;

use super::{Kernel, Linear, Precision, Scratch, Start, WeightRows, matmul, matmul_with};

struct Dense {
    rows: usize,
    cols: usize,
    values: Vec<f32>,
}

impl WeightRows for Dense {
    fn rows(&self) -> usize {
        self.rows
    }
    fn cols(&self) -> usize {
        self.cols
    }
    fn dequantize_rows(&self, rows: Range<usize>, out: &mut [f32]) {
        out.copy_from_slice(&self.values[rows.start * self.cols..rows.end * self.cols]);
    }
}

/// Values of mixed sign and magnitude, the same for the same seed.
fn values(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2).wrapping_add(0x9e37_79b9_7f4a_7c15);
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 33) as f32 / (1u64 << 30) as f32 - 1.0) * [0.01, 1.0, 30.0][(state >> 20) as usize % 3]
        })
        .collect()
}

fn dense(rows: usize, cols: usize, seed: u64) -> Dense {
    Dense { rows, cols, values: values(rows * cols, seed) }
}

/// The product over operands rounded as the kernel rounds them, and the sum of its terms' magnitudes, both in f64.
fn oracle(kernel: Kernel, x: &[f32], w: &[f32], start: f32) -> (f64, f64) {
    let round = |value: f32| match kernel {
        Kernel::F32 => f64::from(value),
        _ => bf16::from_f32(value).to_f64(),
    };
    let first = f64::from(start);
    x.iter().zip(w).fold((first, first.abs()), |(sum, magnitude), (&x, &w)| {
        let term = round(x) * round(w);
        (sum + term, magnitude + term.abs())
    })
}

/// Sums of k + 1 terms in f32, in any order, differ from the exact one by at most k ulp of the sum of magnitudes; rounding errors
/// of random sign stay far below that. Products of two bf16 are exact in f32.
fn tolerance(k: usize, magnitude: f64) -> f64 {
    4.0 * ((k + 1) as f64).sqrt() * f64::from(f32::EPSILON) * magnitude + 1e-30
}

#[derive(Clone, Copy, Debug)]
enum StartKind {
    Zero,
    Bias,
    Accumulate,
}

fn check(kernel: Kernel, n: usize, k: usize, outputs: &[usize], start: StartKind, gap: usize) {
    let x = values(n * k, 1);
    let weights: Vec<Dense> = outputs.iter().enumerate().map(|(i, &m)| dense(m, k, 2 + i as u64)).collect();
    let biases: Vec<Vec<f32>> = outputs.iter().map(|&m| values(m, 77)).collect();
    let before: Vec<Vec<f32>> = outputs.iter().map(|&m| values(n * (m + gap), 99)).collect();
    let mut outs = before.clone();
    let mut linears: Vec<Linear<'_>> = weights
        .iter()
        .zip(&biases)
        .zip(&mut outs)
        .map(|((weights, bias), out)| {
            let start = match start {
                StartKind::Zero => Start::Zero,
                StartKind::Bias => Start::Bias(bias),
                StartKind::Accumulate => Start::Accumulate,
            };
            Linear::new(weights, start, out).with_stride(weights.rows + gap)
        })
        .collect();
    matmul_with(kernel, &x, n, &mut linears, &mut Scratch::new());
    for (i, &m) in outputs.iter().enumerate() {
        for (row, column) in (0..n).flat_map(|row| (0..m + gap).map(move |column| (row, column))) {
            let at = row * (m + gap) + column;
            if column >= m {
                assert_eq!(outs[i][at].to_bits(), before[i][at].to_bits(), "{kernel}: wrote between rows");
                continue;
            }
            let start = match start {
                StartKind::Zero => 0.0,
                StartKind::Bias => biases[i][column],
                StartKind::Accumulate => before[i][at],
            };
            let w = &weights[i].values[column * k..][..k];
            let (expected, magnitude) = oracle(kernel, &x[row * k..][..k], w, start);
            let error = (f64::from(outs[i][at]) - expected).abs();
            assert!(
                error <= tolerance(k, magnitude),
                "{kernel} n {n} k {k} m {m} at {row}, {column}: {} is {error:e} off {expected}",
                outs[i][at]
            );
        }
    }
}

fn any_start() -> impl Strategy<Value = StartKind> {
    prop::sample::select(vec![StartKind::Zero, StartKind::Bias, StartKind::Accumulate])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn agrees_with_sums_in_f64(
        n in 1usize..100,
        k in 1usize..300,
        outputs in prop::collection::vec(1usize..150, 1..4),
        start in any_start(),
        gap in 0usize..5,
    ) {
        for kernel in Kernel::available() {
            check(kernel, n, k, &outputs, start, gap);
        }
    }

    #[test]
    fn kernels_on_bf16_agree(n in 1usize..80, k in 1usize..700, m in 1usize..130) {
        let (x, weights) = (values(n * k, 5), dense(m, k, 6));
        let products: Vec<Vec<f32>> = Kernel::available()
            .into_iter()
            .filter(|&kernel| kernel != Kernel::F32)
            .map(|kernel| {
                let mut out = vec![f32::NAN; n * m];
                matmul_with(kernel, &x, n, &mut [Linear::new(&weights, Start::Zero, &mut out)], &mut Scratch::new());
                out
            })
            .collect();
        for pair in products.windows(2) {
            for (i, (a, b)) in pair[0].iter().zip(&pair[1]).enumerate() {
                let (row, column) = (i / m, i % m);
                let w = &weights.values[column * k..][..k];
                let (_, magnitude) = oracle(Kernel::AmxBf16, &x[row * k..][..k], w, 0.0);
                prop_assert!(f64::from((a - b).abs()) <= 2.0 * tolerance(k, magnitude));
            }
        }
    }
}

#[test]
fn shapes_at_the_edges_of_blocks() {
    for kernel in Kernel::available() {
        for (n, k, m) in
            [(1, 1, 1), (1, 32, 32), (16, 31, 16), (17, 33, 17), (32, 512, 32), (33, 513, 33), (64, 1100, 96)]
        {
            for start in [StartKind::Zero, StartKind::Bias, StartKind::Accumulate] {
                check(kernel, n, k, &[m], start, 0);
            }
        }
    }
}

#[test]
fn no_inputs_leave_the_start() {
    for kernel in Kernel::available() {
        let (weights, bias) = (dense(40, 0, 1), values(40, 3));
        let mut out = vec![f32::NAN; 2 * 40];
        let mut scratch = Scratch::new();
        let (other, mut used) = (dense(40, 9, 1), vec![0.0; 40]);
        matmul_with(kernel, &values(9, 1), 1, &mut [Linear::new(&other, Start::Zero, &mut used)], &mut scratch);
        matmul_with(kernel, &[], 2, &mut [Linear::new(&weights, Start::Bias(&bias), &mut out)], &mut scratch);
        assert_eq!(out, [bias.clone(), bias].concat());
    }
}

/// More rows than one packed part holds: the parts must meet at the right rows.
#[test]
fn long_inputs_are_multiplied_in_parts() {
    let (n, k, m) = (700, 40_000, 3);
    let (x, weights) = (values(n * k, 1), dense(m, k, 2));
    let product = |kernel, rows: Range<usize>| {
        let mut out = vec![f32::NAN; rows.len() * m];
        let x = &x[rows.start * k..rows.end * k];
        matmul_with(kernel, x, rows.len(), &mut [Linear::new(&weights, Start::Zero, &mut out)], &mut Scratch::new());
        out
    };
    // In these kernels a row's sums do not depend on its neighbours, to the last bit.
    for kernel in Kernel::available().into_iter().filter(|&kernel| kernel != Kernel::F32) {
        let whole = product(kernel, 0..n);
        for row in [0, 255, 256, 400, 511, 512, 699] {
            assert_eq!(whole[row * m..][..m], product(kernel, row..row + 1), "{kernel}: row {row}");
        }
    }
}

/// Tile configurations belong to threads: many pools, calls and threads must not disturb each other.
#[test]
fn calls_from_many_threads_agree() {
    let (n, k, m) = (70, 200, 130);
    let (x, weights) = (values(n * k, 5), dense(m, k, 6));
    // Not in f32: there the last bits depend on how columns are shared out.
    for kernel in Kernel::available().into_iter().filter(|&kernel| kernel != Kernel::F32) {
        let product = || {
            let mut out = vec![f32::NAN; n * m];
            matmul_with(kernel, &x, n, &mut [Linear::new(&weights, Start::Zero, &mut out)], &mut Scratch::new());
            out
        };
        let expected = product();
        std::thread::scope(|scope| {
            for threads in 1..6 {
                let (product, expected) = (&product, &expected);
                scope.spawn(move || {
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                    for _ in 0..20 {
                        assert_eq!(&pool.install(product), expected, "{kernel}, {threads} threads");
                    }
                });
            }
        });
    }
}

#[test]
fn scratch_is_reused_and_stale_contents_do_not_matter() {
    let mut scratch = Scratch::new();
    for kernel in Kernel::available() {
        for (n, k, m) in [(64, 200, 96), (3, 17, 5), (33, 65, 40), (64, 200, 96)] {
            let (x, weights) = (values(n * k, 5), dense(m, k, 6));
            let (mut reused, mut fresh) = (vec![0.0; n * m], vec![0.0; n * m]);
            matmul_with(kernel, &x, n, &mut [Linear::new(&weights, Start::Zero, &mut reused)], &mut scratch);
            matmul_with(kernel, &x, n, &mut [Linear::new(&weights, Start::Zero, &mut fresh)], &mut Scratch::new());
            assert_eq!(reused, fresh);
        }
    }
    assert!(scratch.bytes() > 0 && scratch.bytes() <= Scratch::max_bytes(64, 200, rayon::current_num_threads()));
}

#[test]
fn precision_names_a_kernel_that_runs() {
    assert_eq!(Precision::F32.kernel(), Kernel::F32);
    let available = Kernel::available();
    assert_eq!(available.last(), Some(&Kernel::F32));
    assert_eq!(Precision::Bf16.kernel(), available[0]);
    let (x, weights) = (values(4, 1), dense(3, 4, 2));
    for precision in [Precision::Bf16, Precision::F32] {
        let mut out = [f32::NAN; 3];
        matmul(&x, 1, &mut [Linear::new(&weights, Start::Zero, &mut out)], precision, &mut Scratch::new());
        assert!(out.iter().all(|value| value.is_finite()));
    }
}

#[test]
#[should_panic(expected = "the output has 5 values")]
fn an_output_too_small_is_refused() {
    let weights = dense(3, 4, 1);
    let mut out = [0.0; 5];
    matmul(&[0.0; 8], 2, &mut [Linear::new(&weights, Start::Zero, &mut out)], Precision::F32, &mut Scratch::new());
}

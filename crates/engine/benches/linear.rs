//! Linear layers of prefill: every kernel of this machine on the shapes of real models, in GFLOP/s (criterion prints Gelem/s, one
//! element being one floating-point operation).
//!
//! ```text
//! cargo bench -p speedread-engine --bench linear                  # everything, a few minutes
//! cargo bench -p speedread-engine --bench linear -- 4864x896      # one shape
//! SPEEDREAD_BENCH_THREADS=1 cargo bench -p speedread-engine --bench linear -- n512
//! ```
//!
//! `peak/amx-bf16` is one thread's matrix unit multiplying what it already holds: the line to divide by.

use std::ops::Range;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use speedread_engine::backend::cpu::gemm::{Kernel, Linear, Scratch, Start, WeightRows, matmul_with};

/// Outputs and inputs of a layer, and the models that have it.
const SHAPES: [(usize, usize, &str); 9] = [
    (896, 896, "Qwen2.5-0.5B q, o"),
    (128, 896, "Qwen2.5-0.5B k, v"),
    (4864, 896, "Qwen2.5-0.5B gate, up"),
    (896, 4864, "Qwen2.5-0.5B down"),
    (1536, 1536, "Qwen2.5-1.5B q, o"),
    (8960, 1536, "Qwen2.5-1.5B gate, up"),
    (1536, 8960, "Qwen2.5-1.5B down"),
    (14336, 4096, "Llama-8B gate, up"),
    (4096, 14336, "Llama-8B down"),
];
const ROWS: [usize; 3] = [128, 512, 2048];

/// Weights of 8 bits with a scale to each 32, as GGUF's Q8_0.
struct Q8 {
    rows: usize,
    cols: usize,
    values: Vec<i8>,
    scales: Vec<f32>,
}

impl Q8 {
    fn new(rows: usize, cols: usize) -> Self {
        let values = (0..rows * cols).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as i8).collect();
        Self { rows, cols, values, scales: vec![0.01; rows * cols / 32] }
    }
}

impl WeightRows for Q8 {
    fn rows(&self) -> usize {
        self.rows
    }
    fn cols(&self) -> usize {
        self.cols
    }
    fn dequantize_rows(&self, rows: Range<usize>, out: &mut [f32]) {
        let (start, end) = (rows.start * self.cols, rows.end * self.cols);
        let (values, scales) = (&self.values[start..end], &self.scales[start / 32..end / 32]);
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") {
            // SAFETY: just detected.
            return unsafe { dequantize_avx2(values, scales, out) };
        }
        dequantize(values, scales, out);
    }
}

#[inline(always)]
fn dequantize(values: &[i8], scales: &[f32], out: &mut [f32]) {
    for ((values, scale), out) in values.as_chunks::<32>().0.iter().zip(scales).zip(out.as_chunks_mut::<32>().0) {
        for (value, out) in values.iter().zip(out) {
            *out = f32::from(*value) * scale;
        }
    }
}

/// # Safety
///
/// The machine has AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn dequantize_avx2(values: &[i8], scales: &[f32], out: &mut [f32]) {
    dequantize(values, scales, out);
}

fn linear(criterion: &mut Criterion) {
    let threads =
        std::env::var("SPEEDREAD_BENCH_THREADS").map_or(0, |threads| threads.parse().expect("a number of threads"));
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
    let name = |what: &str| format!("{what}/{}t", pool.current_num_threads());
    let mut scratch = Scratch::new();
    for (m, k, _) in SHAPES {
        let weights = Q8::new(m, k);
        for n in ROWS {
            let mut group = criterion.benchmark_group(format!("{m}x{k}/n{n}"));
            group.warm_up_time(Duration::from_millis(100)).measurement_time(Duration::from_millis(400)).sample_size(10);
            group.throughput(Throughput::Elements(2 * (m * k * n) as u64));
            let x: Vec<f32> = (0..n * k).map(|i| (i % 251) as f32 / 251.0 - 0.5).collect();
            let mut out = vec![0.0; n * m];
            for kernel in Kernel::available() {
                group.bench_function(BenchmarkId::from_parameter(name(kernel.name())), |bencher| {
                    bencher.iter(|| {
                        pool.install(|| {
                            let linear = Linear::new(&weights, Start::Zero, &mut out);
                            matmul_with(kernel, &x, n, &mut [linear], &mut scratch);
                        });
                    });
                });
            }
        }
    }
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn peak(criterion: &mut Criterion) {
    const STEPS: usize = 10_000;
    // Asks the system for the unit.
    if !Kernel::AmxBf16.is_available() {
        return;
    }
    let mut config = [0u8; 64];
    config[0] = 1;
    for tile in 0..8 {
        config[16 + 2 * tile] = 64;
        config[48 + tile] = 16;
    }
    let mut group = criterion.benchmark_group("peak");
    group.warm_up_time(Duration::from_millis(100)).measurement_time(Duration::from_millis(400)).sample_size(10);
    group.throughput(Throughput::Elements((STEPS * 4 * 2 * 16 * 16 * 32) as u64));
    group.bench_function("amx-bf16/1t", |bencher| {
        bencher.iter(|| {
            // SAFETY: tiles are permitted; they are configured, used and released here.
            unsafe {
                std::arch::asm!(
                    "ldtilecfg [{config}]",
                    "2:",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    "tdpbf16ps tmm3, tmm5, tmm7",
                    "dec {steps}",
                    "jnz 2b",
                    "tilerelease",
                    config = in(reg) &config,
                    steps = inout(reg) STEPS => _,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                );
            }
        });
    });
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
fn peak(_: &mut Criterion) {}

criterion_group!(benches, peak, linear);
criterion_main!(benches);

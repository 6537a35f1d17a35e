//! One product by the kernel that is used for it and by all others that cublasLt has.

use std::sync::atomic::AtomicBool;
use std::time::Instant;

use anyhow::{Context, ensure};
use half::bf16;
use serde::Serialize;
use speedread_cuda::{Blas, Buffer, Candidates, Error, Event, Linear, LinearShape, OutputElement, Stream};
use speedread_engine::layer_products::LayerProduct;

use super::super::numbers::random;
use super::super::{WARM_UP, ensure_going};

/// Scratch memory that kernels may take: eight times what the engine gives them.
pub const WORKSPACE_BYTES: usize = 256 << 20;
/// Milliseconds of a sample: products that take less run several times in it, so that what is between kernels does not count.
const SAMPLE_MS: f64 = 2.0;
/// Most products of a sample.
const MOST_RUNS: f64 = 64.0;
/// Samples of a kernel in the first sweep; the fastest counts.
const SWEEP: usize = 3;
/// Kernels so many times slower than the fastest so far are not looked at again.
const HOPELESS: f64 = 1.5;
/// Kernels that go from the sweep to the rounds: of those with sums in f32, and of all.
const SHORT_LIST: usize = 4;

/// A kernel of cublasLt, and what it took.
#[derive(Debug, Clone, Serialize)]
pub struct Best {
    /// Median.
    pub milliseconds: f64,
    /// In the library's order, from 1.
    pub place: usize,
    pub workspace_bytes: usize,
    pub f32_sums: bool,
}

/// What one product took.
#[derive(Debug)]
pub struct Times {
    /// Median of the kernel that is used.
    pub milliseconds: f64,
    /// The fastest of the kernels with sums in f32.
    pub best: Best,
    /// The fastest of all.
    pub best_of_any_sums: Best,
    /// Kernels that the library offered with sums in f32, and others; how many of them it then refused to run.
    pub offered: [usize; 2],
    pub refused: usize,
}

/// The operands of a product on the device.
struct Operands<T> {
    shape: LinearShape,
    x: Buffer<bf16>,
    weight: Buffer<bf16>,
    bias: Option<Buffer<T>>,
    accumulate: bool,
    out: Buffer<T>,
}

impl<T: OutputElement> Operands<T> {
    fn new(
        stream: &Stream,
        product: &LayerProduct,
        convert: fn(f32) -> T,
        cancel: &AtomicBool,
    ) -> anyhow::Result<Self> {
        let LinearShape { rows, inputs, outputs } = product.shape;
        let activations = |len, seed| -> anyhow::Result<_> {
            Ok(stream.upload(&random(len, seed, cancel, bf16::ZERO, bf16::from_f32)?)?)
        };
        let results =
            |len, seed| -> anyhow::Result<_> { Ok(stream.upload(&random(len, seed, cancel, T::default(), convert)?)?) };
        Ok(Self {
            shape: product.shape,
            x: activations(rows * inputs, 1)?,
            weight: activations(outputs * inputs, 2)?,
            bias: product.bias.then(|| results(outputs, 3)).transpose()?,
            accumulate: product.residual,
            out: results(rows * outputs, 4)?,
        })
    }

    fn linear(&mut self) -> Linear<'_, T> {
        Linear {
            shape: self.shape,
            x: self.x.view(),
            weight: self.weight.view(),
            bias: self.bias.as_ref().map(Buffer::view),
            accumulate: self.accumulate,
            out: self.out.view_mut(),
        }
    }
}

/// A product, and everything that can run it.
struct Turns<'a, T> {
    stream: &'a Stream,
    blas: &'a Blas,
    candidates: Candidates<'a>,
    operands: Operands<T>,
    /// Products of a sample.
    runs: usize,
}

/// The kernel that the engine uses, or one of the candidates.
type Kernel = Option<usize>;
const OURS: Kernel = None;

impl<T: OutputElement> Turns<'_, T> {
    fn queue(&mut self, kernel: Kernel) -> Result<(), Error> {
        let linear = self.operands.linear();
        match kernel {
            Some(n) => self.candidates.linear(n, linear),
            None => {
                let Linear { shape, x, weight, bias, accumulate, out } = linear;
                self.blas.linear(shape, x, weight, bias, accumulate, out)
            }
        }
    }

    /// Queues `runs` products between two events.
    fn sample(&mut self, kernel: Kernel, runs: usize) -> Result<(Event, Event), Error> {
        let began = self.stream.record()?;
        (0..runs).try_for_each(|_| self.queue(kernel))?;
        Ok((began, self.stream.record()?))
    }

    /// Milliseconds of a product.
    fn time(&mut self, kernel: Kernel, runs: usize) -> Result<f64, Error> {
        let (began, ended) = self.sample(kernel, runs)?;
        Ok(began.milliseconds_to(&ended)? / runs as f64)
    }

    /// Lets clocks settle, and finds how many products a sample takes.
    fn warm_up(&mut self, cancel: &AtomicBool) -> anyhow::Result<()> {
        let began = Instant::now();
        self.time(OURS, 1)?;
        let mut milliseconds = self.time(OURS, 1)?;
        while began.elapsed() < WARM_UP {
            ensure_going(cancel)?;
            milliseconds = self.time(OURS, 1)?;
        }
        self.runs = (SAMPLE_MS / milliseconds).ceil().clamp(1.0, MOST_RUNS) as usize;
        Ok(())
    }

    /// Times of the candidates, one after the other; `None` for those that the library refuses to run, infinite for the hopeless.
    fn sweep(&mut self, cancel: &AtomicBool) -> anyhow::Result<Vec<Option<f64>>> {
        let mut least = f64::INFINITY;
        let mut times = vec![];
        for n in 0..self.candidates.list().len() {
            ensure_going(cancel)?;
            // The first run of a kernel also loads it.
            match self.queue(Some(n)) {
                Err(Error::Library { .. }) => {
                    times.push(None);
                    continue;
                }
                queued => queued?,
            }
            let mut time = f64::INFINITY;
            if self.time(Some(n), 1)? <= HOPELESS * least {
                for _ in 0..SWEEP {
                    time = time.min(self.time(Some(n), self.runs)?);
                }
            }
            least = least.min(time);
            times.push(Some(time));
        }
        Ok(times)
    }

    /// Medians of kernels that run in turns, each round beginning with another.
    fn rounds(&mut self, kernels: &[Kernel], rounds: usize, cancel: &AtomicBool) -> anyhow::Result<Vec<f64>> {
        let mut times = vec![vec![]; kernels.len()];
        for round in 0..rounds {
            ensure_going(cancel)?;
            // All are queued before any is waited for: the device does not rest between them.
            let order: Vec<usize> = (0..kernels.len()).map(|n| (n + round) % kernels.len()).collect();
            let samples = order.iter().map(|&n| self.sample(kernels[n], self.runs)).collect::<Result<Vec<_>, _>>()?;
            for (n, (began, ended)) in order.into_iter().zip(samples) {
                times[n].push(began.milliseconds_to(&ended)? / self.runs as f64);
            }
        }
        Ok(times.iter_mut().map(|times| median(times)).collect())
    }
}

/// Times a product: a sweep over all kernels, then rounds of the one that is used and the fastest few.
pub fn measure(
    stream: &Stream,
    blas: &Blas,
    product: &LayerProduct,
    rounds: usize,
    cancel: &AtomicBool,
) -> anyhow::Result<Times> {
    match product.residual {
        true => measure_as(stream, blas, product, |x| x, rounds, cancel),
        false => measure_as(stream, blas, product, bf16::from_f32, rounds, cancel),
    }
}

fn measure_as<T: OutputElement>(
    stream: &Stream,
    blas: &Blas,
    product: &LayerProduct,
    convert: fn(f32) -> T,
    rounds: usize,
    cancel: &AtomicBool,
) -> anyhow::Result<Times> {
    let mut operands = Operands::new(stream, product, convert, cancel)?;
    let candidates = blas.candidates(&operands.linear(), WORKSPACE_BYTES)?;
    let list = candidates.list().to_vec();
    let mut turns = Turns { stream, blas, candidates, operands, runs: 1 };
    turns.warm_up(cancel)?;
    let swept = turns.sweep(cancel)?;
    let refused = swept.iter().filter(|time| time.is_none()).count();
    let short = short_list(&swept, |n| list[n].f32_sums);
    let kernels: Vec<Kernel> = [OURS].into_iter().chain(short.iter().copied().map(Some)).collect();
    let medians = turns.rounds(&kernels, rounds, cancel)?;
    let (ours, others) = medians.split_first().context("no kernel ran")?;
    let fastest = |any_sums: bool| {
        let timed = short.iter().zip(others).filter(|&(&n, _)| any_sums || list[n].f32_sums);
        let (&n, &milliseconds) =
            timed.min_by(|a, b| a.1.total_cmp(b.1)).context("cublasLt ran none of its kernels")?;
        let (workspace_bytes, f32_sums) = (list[n].workspace_bytes(), list[n].f32_sums);
        anyhow::Ok(Best { milliseconds, place: n + 1, workspace_bytes, f32_sums })
    };
    let f32_sums = list.iter().filter(|one| one.f32_sums).count();
    ensure!(ours.is_finite() && *ours > 0.0, "the device's clock does not tell times: {ours} ms");
    Ok(Times {
        milliseconds: *ours,
        best: fastest(false)?,
        best_of_any_sums: fastest(true)?,
        offered: [f32_sums, list.len() - f32_sums],
        refused,
    })
}

/// The fastest few of the kernels with sums in f32, and of all.
fn short_list(times: &[Option<f64>], f32_sums: impl Fn(usize) -> bool) -> Vec<usize> {
    let mut ran: Vec<(usize, f64)> =
        times.iter().enumerate().filter_map(|(n, time)| time.filter(|t| t.is_finite()).map(|time| (n, time))).collect();
    ran.sort_by(|a, b| a.1.total_cmp(&b.1));
    let all = ran.iter().map(|&(n, _)| n);
    let mut short: Vec<usize> = all.clone().filter(|&n| f32_sums(n)).take(SHORT_LIST).collect();
    for n in all.take(SHORT_LIST) {
        if !short.contains(&n) {
            short.push(n);
        }
    }
    short
}

/// The middle one; of an even number the faster.
fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len().saturating_sub(1) / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fastest_of_both_kinds_run_in_rounds() {
        let times = [Some(5.0), None, Some(4.0), Some(f64::INFINITY), Some(3.0), Some(2.0), Some(1.0), Some(6.0)];
        assert_eq!(short_list(&times, |_| true), [6, 5, 4, 2]);
        assert_eq!(short_list(&times, |n| n < 4), [2, 0, 6, 5, 4]);
        assert_eq!(short_list(&[None], |_| true), [0; 0]);
    }

    #[test]
    fn medians() {
        assert_eq!((median(&mut [3.0, 1.0, 2.0]), median(&mut [4.0, 2.0])), (2.0, 2.0));
    }
}

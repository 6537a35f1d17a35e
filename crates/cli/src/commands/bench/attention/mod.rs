//! `speedread bench attention`: attention alone, index building included, over random numbers.

mod on_cpu;
mod on_cuda;

use std::sync::atomic::AtomicBool;
use std::time::Instant;

use anyhow::{bail, ensure};
use serde::Serialize;
use serde_json::{Value, json};
use speedread_attention::{HeadReport, Pattern};
use speedread_cuda::Device;
use speedread_engine::device::DeviceChoice;

use self::on_cpu::OnCpu;
use self::on_cuda::OnCuda;
use super::{WARM_UP, ensure_going};
use crate::args::bench::{AttentionBenchArgs, Heads};
use crate::context::Interrupt;
use crate::{output, provenance};

/// The median run of a pattern at a length.
#[derive(Debug, Serialize)]
struct Row {
    tokens: usize,
    attention: String,
    milliseconds: f64,
    index_milliseconds: f64,
    /// Share of dense attention's key tiles that were visited.
    density: f64,
    /// Products of queries with keys and of weights with values in the visited tiles, over the attention kernel's time.
    tflops: f64,
    /// Time of dense attention in the same run over this one's.
    speed_up: Option<f64>,
}

/// What one run took and did.
struct Timed {
    index: f64,
    attention: f64,
    heads: Vec<HeadReport>,
}

/// A device, and random queries, keys and values of one length on it.
trait Bench {
    /// Name of what runs.
    fn name(&self) -> String;
    /// Name of the CUDA device; `None` for the CPU.
    fn device(&self) -> Option<&str>;
    /// Name of what computes.
    fn kernel(&self) -> String;
    /// Lengths that are timed where none are given.
    fn lengths(&self) -> &'static [usize];
    /// Products of a visited tile, of queries and keys.
    fn tile(&self) -> usize;
    /// Whether a length fits the memory that is free.
    fn fits(&self, tokens: usize, patterns: &[Pattern]) -> anyhow::Result<bool>;
    /// Makes queries, keys and values.
    fn fill(&mut self, tokens: usize, cancel: &AtomicBool) -> anyhow::Result<()>;
    /// Attention with a pattern in every head, without a fallback to dense.
    fn run(&mut self, pattern: Pattern, cancel: &AtomicBool) -> anyhow::Result<Timed>;
}

/// What is computed on; nothing of it depends on a model.
const DATA: &str =
    "random numbers of mean 0 and variance 1, independent of each other: times are real, what attention finds is noise";

pub fn run(args: &AttentionBenchArgs, interrupt: &Interrupt) -> anyhow::Result<()> {
    let mut bench = open(args)?;
    let Heads { heads, kv_heads, dim } = args.heads;
    let mut lengths: Vec<usize> = args.lengths.iter().map(|n| n.get()).collect();
    if lengths.is_empty() {
        lengths = bench.lengths().to_vec();
    }
    // Before any time is spent on the shorter ones.
    if let Some(&longest) = lengths.iter().max() {
        check_memory(&*bench, args, longest)?;
    }
    if !args.json {
        println!("{} | {heads} query heads, {kv_heads} key/value heads of {dim}", bench.name());
        println!("data: {DATA}");
        println!(
            "{:>8} {:<28} {:>11} {:>11} {:>9} {:>9} {:>9}",
            "tokens", "attention", "ms", "of it index", "density", "TFLOPS", "speed-up"
        );
    }
    let mut rows = vec![];
    for tokens in lengths {
        bench.fill(tokens, interrupt.flag())?;
        let patterns = args.patterns(tokens);
        // Dense attention runs first, wherever it was named: it is what all others are compared with.
        let place = patterns.iter().position(|&pattern| pattern == Pattern::Dense);
        let mut dense = place.map(|_| measure(&mut *bench, args, tokens, Pattern::Dense, interrupt)).transpose()?;
        let dense_ms = dense.as_ref().map(|row| row.milliseconds);
        for (n, pattern) in patterns.into_iter().enumerate() {
            let mut row = match dense.take_if(|_| place == Some(n)) {
                Some(row) => row,
                None => measure(&mut *bench, args, tokens, pattern, interrupt)?,
            };
            row.speed_up = dense_ms.map(|dense| dense / row.milliseconds);
            if !args.json {
                print_row(&row);
            }
            rows.push(row);
        }
    }
    if args.json {
        let mut all = Value::Object(provenance::of_run(args.device, bench.device()));
        let (name, peak) = provenance::peak_memory(bench.device());
        all[name] = peak;
        // On the CPU too, under one name, as ever.
        all["device"] = json!(bench.name());
        all["kernel"] = json!(bench.kernel());
        all["data"] = json!(DATA);
        all["heads"] = json!(args.heads);
        all["repeat"] = json!(args.repeat);
        all["rows"] = json!(rows);
        output::json(&all)?;
    }
    Ok(())
}

/// Refuses a length that does not fit, and says which would.
fn check_memory(bench: &dyn Bench, args: &AttentionBenchArgs, tokens: usize) -> anyhow::Result<()> {
    let fits = |tokens: usize| bench.fits(tokens, &args.patterns(tokens));
    if fits(tokens)? {
        return Ok(());
    }
    // What is needed grows with the length.
    let (mut low, mut high) = (0, tokens);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if fits(middle)? { low = middle } else { high = middle }
    }
    let Heads { heads, kv_heads, dim } = args.heads;
    ensure!(
        low > 0,
        "attention of {heads} query heads and {kv_heads} key/value heads of {dim} does not fit the memory of {} at any length; use fewer heads",
        bench.name()
    );
    bail!(
        "{tokens} tokens of {heads} query heads and {kv_heads} key/value heads of {dim} do not fit the memory of {}; the longest that fits \
         is {low} tokens",
        bench.name()
    )
}

fn open(args: &AttentionBenchArgs) -> anyhow::Result<Box<dyn Bench>> {
    let (device, note) = choose(args.device, Device::count(), |ordinal| OnCuda::open(ordinal, args.heads))?;
    if let Some(note) = note {
        eprintln!("note: {note}");
    }
    Ok(match device {
        None => Box::new(OnCpu::new(args.heads)),
        Some(device) => Box::new(device),
    })
}

/// The CUDA device to run on, `None` for the CPU, and why not on the one that would have been chosen.
fn choose<D>(
    choice: DeviceChoice,
    count: usize,
    open: impl FnOnce(usize) -> anyhow::Result<D>,
) -> anyhow::Result<(Option<D>, Option<String>)> {
    Ok(match choice {
        DeviceChoice::Cpu => (None, None),
        DeviceChoice::Auto if count == 0 => (None, None),
        DeviceChoice::Auto => match open(0) {
            Ok(device) => (Some(device), None),
            Err(error) => (None, Some(format!("on the CPU, because the CUDA device cannot be used: {error:#}"))),
        },
        DeviceChoice::Cuda(ordinal) => (Some(open(ordinal)?), None),
    })
}

fn measure(
    bench: &mut dyn Bench,
    args: &AttentionBenchArgs,
    tokens: usize,
    pattern: Pattern,
    interrupt: &Interrupt,
) -> anyhow::Result<Row> {
    let mut once = || {
        ensure_going(interrupt.flag())?;
        bench.run(pattern, interrupt.flag())
    };
    let began = Instant::now();
    once()?;
    while began.elapsed() < WARM_UP {
        once()?;
    }
    let mut runs = (0..args.repeat.get()).map(|_| once()).collect::<anyhow::Result<Vec<_>>>()?;
    runs.sort_by(|a, b| (a.index + a.attention).total_cmp(&(b.index + b.attention)));
    let Timed { index, attention, heads } = runs.swap_remove(runs.len() / 2);
    let visited: u64 = heads.iter().map(|head| head.tiles).sum();
    let all: u64 = heads.iter().map(|head| head.dense_tiles).sum();
    let products = visited as f64 * bench.tile() as f64 * args.heads.dim as f64;
    Ok(Row {
        tokens,
        attention: pattern.to_string(),
        milliseconds: 1e3 * (index + attention),
        index_milliseconds: 1e3 * index,
        density: visited as f64 / all as f64,
        tflops: 4.0 * products / attention / 1e12,
        speed_up: None,
    })
}

fn print_row(row: &Row) {
    println!(
        "{:>8} {:<28} {:>11.3} {:>11.3} {:>7.2} % {:>9.2} {:>9}",
        row.tokens,
        row.attention,
        row.milliseconds,
        row.index_milliseconds,
        100.0 * row.density,
        row.tflops,
        row.speed_up.map_or("-".into(), |ratio| format!("{ratio:.2}x")),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_stands_in_where_no_device_was_asked_for() {
        let works = |ordinal| Ok(ordinal);
        let fails = |_| -> anyhow::Result<usize> { bail!("this build has no CUDA kernels") };
        assert_eq!(choose(DeviceChoice::Cpu, 1, works).unwrap(), (None, None));
        assert_eq!(choose(DeviceChoice::Auto, 0, works).unwrap(), (None, None));
        assert_eq!(choose(DeviceChoice::Auto, 2, works).unwrap(), (Some(0), None));
        assert_eq!(choose(DeviceChoice::Cuda(3), 0, works).unwrap(), (Some(3), None));
        let (device, note) = choose(DeviceChoice::Auto, 1, fails).unwrap();
        assert!(device.is_none() && note.unwrap().contains("no CUDA kernels"));
        assert!(choose(DeviceChoice::Cuda(0), 1, fails).unwrap_err().to_string().contains("no CUDA kernels"));
    }
}

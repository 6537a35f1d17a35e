//! `speedread bench attention`: attention alone, index building included, over random numbers.

use anyhow::ensure;
use half::{bf16, f16};
use rayon::prelude::*;
use serde::Serialize;
use serde_json::json;
use speedread_attention::cpu::Isa;
use speedread_attention::cuda::{self, DeviceOptions, DeviceRows, DeviceRowsMut, Workspace};
use speedread_attention::{Error, HeadReport, Options, Pattern, Rows, RowsMut};
use speedread_cuda::{Buffer, Device, Stream};
use speedread_engine::device::DeviceChoice;

use crate::args::bench::{AttentionBenchArgs, Heads};
use crate::context::Interrupt;
use crate::output;

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
    /// Products of a visited tile, of queries and keys.
    fn tile(&self) -> usize;
    /// Makes queries, keys and values.
    fn fill(&mut self, tokens: usize) -> anyhow::Result<()>;
    /// Attention with a pattern in every head, without a fallback to dense.
    fn run(&mut self, pattern: Pattern) -> anyhow::Result<Timed>;
}

pub fn run(args: &AttentionBenchArgs, interrupt: &Interrupt) -> anyhow::Result<()> {
    let mut bench = open(args)?;
    let Heads { heads, kv_heads, dim } = args.heads;
    if !args.json {
        println!("{} | {heads} query heads, {kv_heads} key/value heads of {dim}", bench.name());
        println!(
            "{:>8} {:<28} {:>11} {:>11} {:>9} {:>9} {:>9}",
            "tokens", "attention", "ms", "of it index", "density", "TFLOPS", "speed-up"
        );
    }
    let mut rows = vec![];
    for tokens in args.lengths.iter().map(|n| n.get()) {
        bench.fill(tokens)?;
        let mut dense = None;
        for pattern in args.patterns(tokens) {
            let mut row = measure(&mut *bench, args, tokens, pattern, interrupt)?;
            if pattern == Pattern::Dense {
                dense = Some(row.milliseconds);
            }
            row.speed_up = dense.map(|dense| dense / row.milliseconds);
            if !args.json {
                print_row(&row);
            }
            rows.push(row);
        }
    }
    if args.json {
        output::json(&json!({
            "version": env!("CARGO_PKG_VERSION"), "device": bench.name(), "heads": args.heads, "repeat": args.repeat, "rows": rows,
        }))?;
    }
    Ok(())
}

fn open(args: &AttentionBenchArgs) -> anyhow::Result<Box<dyn Bench>> {
    let cuda = match args.device {
        DeviceChoice::Cpu => None,
        DeviceChoice::Auto => (Device::count() > 0).then_some(0),
        DeviceChoice::Cuda(ordinal) => Some(ordinal),
    };
    Ok(match cuda {
        None => Box::new(OnCpu { heads: args.heads, q: vec![], k: vec![], v: vec![], out: vec![] }),
        Some(ordinal) => Box::new(OnCuda::open(ordinal, args.heads)?),
    })
}

fn measure(
    bench: &mut dyn Bench,
    args: &AttentionBenchArgs,
    tokens: usize,
    pattern: Pattern,
    interrupt: &Interrupt,
) -> anyhow::Result<Row> {
    let mut runs = vec![];
    for run in 0..=args.repeat.get() {
        let timed = bench.run(pattern)?;
        ensure!(!interrupt.flag().load(std::sync::atomic::Ordering::Relaxed), speedread_engine::Error::Cancelled);
        if run > 0 {
            runs.push(timed);
        }
    }
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

/// Numbers of mean 0 and variance 1, the same for the same seed.
fn random<T: Send>(len: usize, seed: u64, convert: impl Fn(f32) -> T + Sync) -> Vec<T> {
    const RUN: usize = 1 << 16;
    let number = |state: &mut u64| {
        // xorshift64*; a sum of three evenly spread numbers is close to a bell curve.
        let mut next = || {
            *state ^= *state >> 12;
            *state ^= *state << 25;
            *state ^= *state >> 27;
            (state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 40) as f32 / (1u64 << 24) as f32 - 0.5
        };
        2.0 * (next() + next() + next())
    };
    (0..len.div_ceil(RUN))
        .into_par_iter()
        .flat_map_iter(|run| {
            let mut state = (seed << 40 | run as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
            (run * RUN..len.min((run + 1) * RUN)).map(|_| convert(number(&mut state))).collect::<Vec<_>>()
        })
        .collect()
}

struct OnCpu {
    heads: Heads,
    q: Vec<f32>,
    k: Vec<f16>,
    v: Vec<f16>,
    out: Vec<f32>,
}

impl Bench for OnCpu {
    fn name(&self) -> String {
        let threads = rayon::current_num_threads();
        format!("{}, {threads} threads", output::cpu().unwrap_or_else(|| std::env::consts::ARCH.into()))
    }

    fn tile(&self) -> usize {
        let tile = speedread_attention::cpu::TILE;
        tile.queries * tile.keys
    }

    fn fill(&mut self, tokens: usize) -> anyhow::Result<()> {
        let Heads { heads, kv_heads, dim } = self.heads;
        self.q = random(tokens * heads * dim, 1, |x| x);
        self.k = random(tokens * kv_heads * dim, 2, f16::from_f32);
        self.v = random(tokens * kv_heads * dim, 3, f16::from_f32);
        self.out = vec![0.0; self.q.len()];
        Ok(())
    }

    fn run(&mut self, pattern: Pattern) -> anyhow::Result<Timed> {
        let Heads { heads, kv_heads, dim } = self.heads;
        let tokens = self.q.len() / (heads * dim);
        let (q, k) =
            (Rows::contiguous(&self.q, tokens, heads, dim)?, Rows::contiguous(&self.k, tokens, kv_heads, dim)?);
        let v = Rows::contiguous(&self.v, tokens, kv_heads, dim)?;
        let out = RowsMut::contiguous(&mut self.out, tokens, heads, dim)?;
        let options = Options { dense_fallback: false, isa: Isa::bf16(), ..Options::default() };
        let report = speedread_attention::prefill(q, k, v, &vec![pattern; heads], &options, out, None)?;
        Ok(Timed { index: report.index_seconds, attention: report.attention_seconds, heads: report.heads })
    }
}

/// Queries, keys, values and output of one length.
struct OnDevice {
    tokens: usize,
    q: Buffer<bf16>,
    k: Buffer<bf16>,
    v: Buffer<bf16>,
    out: Buffer<bf16>,
}

struct OnCuda {
    heads: Heads,
    device: Device,
    stream: Stream,
    attention: cuda::Attention,
    work: Workspace,
    data: Option<OnDevice>,
}

impl OnCuda {
    fn open(ordinal: usize, heads: Heads) -> anyhow::Result<Self> {
        let device = Device::open(ordinal)?;
        let (stream, attention) = (device.stream()?, cuda::Attention::new(&device)?);
        Ok(Self { heads, stream, attention, device, work: Workspace::new(), data: None })
    }
}

impl Bench for OnCuda {
    fn name(&self) -> String {
        self.device.name().to_owned()
    }

    fn tile(&self) -> usize {
        cuda::TILE.queries * cuda::TILE.keys
    }

    fn fill(&mut self, tokens: usize) -> anyhow::Result<()> {
        // Freed first: both lengths need not fit.
        self.data = None;
        let Heads { heads, kv_heads, dim } = self.heads;
        let upload = |heads: usize, seed| self.stream.upload(&random(tokens * heads * dim, seed, bf16::from_f32));
        let (q, k, v) = (upload(heads, 1)?, upload(kv_heads, 2)?, upload(kv_heads, 3)?);
        let out = self.stream.alloc(q.len())?;
        self.data = Some(OnDevice { tokens, q, k, v, out });
        Ok(())
    }

    fn run(&mut self, pattern: Pattern) -> anyhow::Result<Timed> {
        let Heads { heads, kv_heads, dim } = self.heads;
        let Some(OnDevice { tokens, q, k, v, out }) = &mut self.data else {
            return Err(Error::Shape("no queries, keys and values yet".into()).into());
        };
        let (stream, attention, work) = (&self.stream, &self.attention, &mut self.work);
        let q = DeviceRows::contiguous(q.view(), *tokens, heads, dim)?;
        let k = DeviceRows::contiguous(k.view(), *tokens, kv_heads, dim)?;
        let v = DeviceRows::contiguous(v.view(), *tokens, kv_heads, dim)?;
        let mut out = DeviceRowsMut::contiguous(out.view_mut(), *tokens, heads, dim)?;
        let options = DeviceOptions { dense_fallback: false, ..DeviceOptions::default() };
        let began = stream.record()?;
        attention.build_indexes(stream, q, k, &vec![pattern; heads], &options, work)?;
        let built = stream.record()?;
        attention.attend_built(stream, q, k, v, work, options.scale, &mut out, None)?;
        let ended = stream.record()?;
        let heads = attention.report(stream, work)?;
        Ok(Timed {
            index: began.milliseconds_to(&built)? / 1e3,
            attention: built.milliseconds_to(&ended)? / 1e3,
            heads,
        })
    }
}

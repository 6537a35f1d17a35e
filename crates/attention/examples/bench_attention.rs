//! Times the CUDA attention kernel over ready-made indexes (dense, windows, windows and columns, blocks), index building on the device
//! (`index alone`), and both (`index and attention`).
//!
//! `bench_attention [--n 8192,32768,131072] [--dim 128] [--heads 32] [--kv-heads 8] [--rounds 3] [--case dense]
//! [--kernel sm90|portable]` prints a JSON object a line. Times are
//! medians of device time and include the gather of columns; the choice of the index only where the case says so. TFLOPS count 4 * 128 * 128 * dim a visited
//! tile; `causal_tflops`, of dense attention, counts n * n / 2 products instead, as FlashAttention's benchmarks do.

use std::collections::BTreeSet;

use half::bf16;
use rayon::prelude::*;
use serde_json::json;
use speedread_attention::cuda::{
    Attention, DeviceOptions, DevicePlan, DeviceRows, DeviceRowsMut, KernelKind, Plan, TILE, Workspace,
};
use speedread_attention::index::BlockLists;
use speedread_attention::{Pattern, SparseIndex};
use speedread_cuda::{Buffer, Device, Stream};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// Tiles of the sparse lists: local windows, scattered windows, columns.
const LOCAL: usize = 16;
const SCATTERED: usize = 32;
const COLUMN_TILES: usize = 8;
/// Pattern of the cases that build the index.
const BUILT: &str = "vertical-slash-tiles:8,48";

struct Arguments {
    lengths: Vec<usize>,
    dim: usize,
    heads: usize,
    kv_heads: usize,
    rounds: usize,
    /// Only cases whose name starts so.
    case: String,
    /// The device's fastest, if none is named.
    kernel: Option<KernelKind>,
}

fn arguments() -> Outcome<Arguments> {
    let mut parsed = Arguments {
        lengths: vec![8192, 32768, 131072],
        dim: 128,
        heads: 32,
        kv_heads: 8,
        rounds: 3,
        case: String::new(),
        kernel: None,
    };
    let mut rest = std::env::args().skip(1);
    while let Some(flag) = rest.next() {
        let value = rest.next().ok_or_else(|| format!("{flag} needs a value"))?;
        match flag.as_str() {
            "--n" => parsed.lengths = value.split(',').map(str::parse).collect::<Result<_, _>>()?,
            "--dim" => parsed.dim = value.parse()?,
            "--heads" => parsed.heads = value.parse()?,
            "--kv-heads" => parsed.kv_heads = value.parse()?,
            "--rounds" => parsed.rounds = value.parse::<usize>()?.max(1),
            "--case" => parsed.case = value,
            "--kernel" => parsed.kernel = Some(value.parse()?),
            _ => return Err(format!("unknown argument {flag}").into()),
        }
    }
    Ok(parsed)
}

/// xorshift64*, seeded by place.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11
    }
    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
    /// Sum of uniform values: mean 0, variance 1.
    fn normal(&mut self) -> f32 {
        (0..3).map(|_| self.next() as f32 / (1u64 << 53) as f32 - 0.5).sum::<f32>() * 2.0
    }
}

fn random(stream: &Stream, len: usize, seed: u64) -> Outcome<Buffer<bf16>> {
    let mut data = vec![bf16::ZERO; len];
    data.par_chunks_mut(1 << 16).enumerate().for_each(|(i, chunk)| {
        let mut random = Random::new(seed << 32 | i as u64);
        chunk.iter_mut().for_each(|x| *x = bf16::from_f32(random.normal()));
    });
    Ok(stream.upload(&data)?)
}

/// Ascending disjoint windows: `local` nearest ones and about `scattered` more.
fn windows(n: usize, local: usize, scattered: usize, random: &mut Random) -> Vec<usize> {
    let mut windows: Vec<usize> = (0..local).map(|i| i * TILE.keys).collect();
    let chosen: BTreeSet<usize> = (0..scattered).map(|_| random.below(n)).collect();
    for offset in chosen {
        if windows.last().is_none_or(|&last| offset >= last + TILE.keys) {
            windows.push(offset);
        }
    }
    windows
}

fn columns(n: usize, count: usize, random: &mut Random) -> Vec<usize> {
    (0..count).map(|_| random.below(n)).collect::<BTreeSet<_>>().into_iter().collect()
}

fn blocks(n: usize, count: usize, random: &mut Random) -> SparseIndex {
    let tiles = n.div_ceil(TILE.queries);
    let lists = (0..tiles).map(|tile| {
        let mut list: BTreeSet<u32> = (0..count).map(|_| random.below(tile + 1) as u32).collect();
        list.extend([0, tile as u32]);
        list.into_iter().collect()
    });
    SparseIndex::from_blocks(0, n, TILE, BlockLists::from_lists(lists))
}

fn cases(n: usize, heads: usize, group: usize) -> Vec<(String, Vec<SparseIndex>)> {
    let per_head = |make: &dyn Fn(usize) -> SparseIndex| (0..heads).map(make).collect::<Vec<_>>();
    let lines = |windows, columns| SparseIndex::from_windows(0, n, TILE, windows, columns);
    let scattered = |seed: usize| windows(n, LOCAL, SCATTERED, &mut Random::new(seed as u64 + 1));
    let gathered = |h: usize| columns(n, COLUMN_TILES * TILE.keys, &mut Random::new(h as u64 + 1000));
    vec![
        ("dense".into(), per_head(&|_| SparseIndex::dense(0, n, TILE))),
        (
            format!("windows: {} contiguous", LOCAL + SCATTERED),
            per_head(&|_| lines(windows(n, LOCAL + SCATTERED, 0, &mut Random::new(1)), vec![])),
        ),
        (format!("windows: {LOCAL} local, {SCATTERED} scattered per head"), per_head(&|h| lines(scattered(h), vec![]))),
        (
            format!("windows shared in a group, and {COLUMN_TILES} column tiles"),
            per_head(&|h| lines(scattered(h / group), gathered(h))),
        ),
        (format!("windows per head, and {COLUMN_TILES} column tiles"), per_head(&|h| lines(scattered(h), gathered(h)))),
        (
            format!("blocks: {} random", LOCAL + SCATTERED),
            per_head(&|h| blocks(n, LOCAL + SCATTERED, &mut Random::new(h as u64 + 1))),
        ),
    ]
}

/// What a case runs.
enum Run {
    /// Attention over indexes made on the host.
    Planned(DevicePlan),
    /// Index building alone.
    Index,
    /// Index building and attention.
    Prefill,
}

struct Prepared {
    name: String,
    run: Run,
    tiles: u64,
    dense: u64,
    times: Vec<f64>,
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn main() -> Outcome<()> {
    let Arguments { lengths, dim, heads, kv_heads, rounds, case, kernel } = arguments()?;
    let device = Device::open(0)?;
    let kernel = kernel.map_or_else(|| KernelKind::of(&device), Ok)?;
    let attention = Attention::with_kernel(&device, kernel)?;
    let stream = device.stream()?;
    for n in lengths {
        let q = random(&stream, n * heads * dim, 1)?;
        let k = random(&stream, n * kv_heads * dim, 2)?;
        let v = random(&stream, n * kv_heads * dim, 3)?;
        let mut out = stream.alloc::<bf16>(n * heads * dim)?;
        let mut lse = stream.alloc::<f32>(heads * n)?;
        let rows = |data, heads| DeviceRows::contiguous(data, n, heads, dim);
        let (rows_q, rows_k, rows_v) = (rows(q.view(), heads)?, rows(k.view(), kv_heads)?, rows(v.view(), kv_heads)?);
        let mut work = Workspace::new();
        let patterns = vec![BUILT.parse::<Pattern>()?; heads];
        let options = DeviceOptions::default();
        let mut prepared = vec![];
        for (name, indexes) in cases(n, heads, heads / kv_heads).into_iter().filter(|(name, _)| name.starts_with(&case))
        {
            let plan = Plan::new(&indexes, kv_heads, dim)?;
            let tiles: u64 = plan.head_tiles().iter().sum();
            let dense: u64 = indexes.iter().map(SparseIndex::total_dense_tiles).sum();
            prepared.push(Prepared { name, run: Run::Planned(plan.upload(&stream)?), tiles, dense, times: vec![] });
        }
        for (name, run) in [("index alone", Run::Index), ("index and attention", Run::Prefill)] {
            if name.starts_with(&case) {
                attention.build_indexes(&stream, rows_q, rows_k, &patterns, &options, &mut work)?;
                let report = attention.report(&stream, &work)?;
                let (tiles, dense) =
                    (report.iter().map(|head| head.tiles).sum(), report.iter().map(|head| head.dense_tiles).sum());
                prepared.push(Prepared { name: format!("{name}: {BUILT}"), run, tiles, dense, times: vec![] });
            }
        }
        let (mut longest, mut repeats) = (0f64, 2);
        // Rounds over all cases, so that the clock drifts for all alike; the first round only warms up.
        for round in 0..=rounds {
            for Prepared { run, times, .. } in &mut prepared {
                let mut once = || -> Outcome<f64> {
                    let mut to = DeviceRowsMut::contiguous(out.view_mut(), n, heads, dim)?;
                    let lse = Some(lse.view_mut());
                    let began = stream.record()?;
                    match run {
                        Run::Planned(plan) => {
                            attention.attend(&stream, rows_q, rows_k, rows_v, plan, None, &mut to, lse)?;
                        }
                        Run::Index => {
                            attention.build_indexes(&stream, rows_q, rows_k, &patterns, &options, &mut work)?;
                        }
                        Run::Prefill => attention
                            .prefill(&stream, rows_q, rows_k, rows_v, &patterns, &options, &mut work, &mut to, lse)?,
                    }
                    Ok(began.milliseconds_to(&stream.record()?)?)
                };
                let first = once()?;
                if round == 0 {
                    longest = longest.max(first);
                    repeats = ((60.0 / longest) as usize).clamp(2, 20);
                    continue;
                }
                for _ in 0..repeats {
                    times.push(once()?);
                }
            }
        }
        let rate = |ms: f64, products: f64| 4.0 * products * dim as f64 / ms / 1e9;
        let tile = (TILE.queries * TILE.keys) as f64;
        let mut dense_rate = 0.0;
        for Prepared { name, run, tiles, dense, times } in prepared {
            let (least, ms) = (times.iter().copied().fold(f64::INFINITY, f64::min), median(times));
            let tflops = if matches!(run, Run::Index) { 0.0 } else { rate(ms, tiles as f64 * tile) };
            let mut line = json!({
                "device": device.name(), "kernel": kernel.to_string(), "element": "bf16", "n": n, "heads": heads, "kv_heads": kv_heads, "dim": dim, "case": name,
                "ms": ms, "least_ms": least, "tiles": tiles, "density": tiles as f64 / dense as f64, "tflops": tflops,
            });
            if name == "dense" {
                dense_rate = tflops;
                line["causal_tflops"] = json!(rate(ms, (n as f64) * (n as f64) / 2.0 * heads as f64));
            }
            if dense_rate > 0.0 {
                line["ratio_to_dense"] = json!(tflops / dense_rate);
            }
            println!("{line}");
        }
    }
    Ok(())
}

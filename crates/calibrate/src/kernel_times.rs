//! What attention costs on this device: seconds a key tile by how the kernel reads it, and seconds an index.
//!
//! A pattern's budget counts lines or tiles; what a user waits for is time, and a tile of gathered columns is dearer than a tile of
//! neighbours. So the kernel itself is timed, once per device and shape, and the result kept in a file.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use half::f16;
use serde::{Deserialize, Serialize};
use speedread_attention::cpu::Isa;
use speedread_attention::index::Visits;
use speedread_attention::{Budget, Options, Pattern, Rows, RowsMut, build_indexes, prefill};
use speedread_engine::{Error, Result};

/// Rounds of measurement. The fastest run of each pattern counts: whatever else the machine does only adds time.
const ROUNDS: usize = 5;

/// Seconds, wall clock with all threads.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct KernelTimes {
    /// A tile of neighbouring keys, at a multiple of the tile size: dense attention, local bands, blocks.
    pub aligned_tile: f64,
    /// A tile of neighbouring keys anywhere: the windows of diagonals.
    pub shifted_tile: f64,
    /// A tile of gathered columns.
    pub gathered_tile: f64,
    /// The vertical-slash index of a head.
    pub vertical_slash_index: f64,
    /// The block-sparse index of a head.
    pub block_sparse_index: f64,
}

/// What times depend on besides the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Tokens of the prompt.
    pub tokens: usize,
    /// Components of a head.
    pub head_dim: usize,
    /// Query heads of a key/value head.
    pub group: usize,
    /// Instruction set of the kernel; `None` = the fastest that computes in f32.
    pub isa: Option<Isa>,
}

impl KernelTimes {
    /// Reads the times of `device` from the file `cache`, or measures them and adds them to it.
    ///
    /// # Errors
    /// [`Error::Io`] when the file cannot be written, [`Error::Format`] when it is there and is not what this function wrote.
    pub fn of_device(device: &str, shape: Shape, cache: &Path) -> Result<Self> {
        let isa = shape.isa.unwrap_or_else(Isa::detect);
        let key = format!(
            "{device} | {} | {} threads | head dim {} | {} query heads a key head | {} tokens | {}",
            isa.name(),
            rayon::current_num_threads(),
            shape.head_dim,
            shape.group,
            shape.tokens,
            env!("CARGO_PKG_VERSION"),
        );
        let mut known = read(cache)?;
        if let Some(times) = known.get(&key) {
            return Ok(*times);
        }
        let times = Self::measure(shape)?;
        known.insert(key, times);
        write(cache, &known)?;
        Ok(times)
    }

    /// Measures.
    pub fn measure(shape: Shape) -> Result<Self> {
        let bench = Bench::new(shape);
        // Enough tiles of a kind to time them, and not so many that the kinds touch.
        let many = (shape.tokens / 64 / 8).clamp(4, 64);
        let vertical_slash = |vertical, slash| Pattern::VerticalSlash { vertical, slash, budget: Budget::Tiles };
        let [band, windows, columns, blocks] = bench.run([
            Pattern::AShape { sink: 0, local: many * 64 },
            vertical_slash(1, many),
            vertical_slash(many, 3),
            Pattern::BlockSparse { blocks: many },
        ])?;
        let (shifted_tile, gathered_tile) = solve(&windows, &columns).unwrap_or_else(|| {
            // A prompt too short to hold both kinds: one time for both.
            let tile = windows.seconds / (windows.visits.runs + windows.visits.gathered) as f64;
            (tile, tile)
        });
        // Every call packs keys and values; what an index costs comes on top of that.
        let index = |run: &Run| (run.index_seconds - band.index_seconds).max(0.0) / bench.heads as f64;
        Ok(KernelTimes {
            aligned_tile: band.seconds / band.visits.runs as f64,
            shifted_tile,
            gathered_tile,
            vertical_slash_index: index(&windows),
            block_sparse_index: index(&blocks),
        })
    }

    /// Seconds of a head: its index and its tiles.
    pub fn head(&self, pattern: Pattern, visits: Visits) -> f64 {
        let (runs, gathered) = (visits.runs as f64, visits.gathered as f64 * self.gathered_tile);
        match pattern {
            Pattern::VerticalSlash { .. } => runs * self.shifted_tile + gathered + self.vertical_slash_index,
            Pattern::BlockSparse { .. } => runs * self.aligned_tile + gathered + self.block_sparse_index,
            Pattern::Dense | Pattern::AShape { .. } | Pattern::TriShape { .. } => runs * self.aligned_tile + gathered,
        }
    }
}

/// Seconds of a run tile and of a gathered tile, from two runs that visit both in different numbers; `None` where they cannot be told apart.
fn solve(a: &Run, b: &Run) -> Option<(f64, f64)> {
    let (a_runs, a_gathered) = (a.visits.runs as f64, a.visits.gathered as f64);
    let (b_runs, b_gathered) = (b.visits.runs as f64, b.visits.gathered as f64);
    let determinant = a_runs * b_gathered - b_runs * a_gathered;
    if determinant.abs() < 0.1 * a_runs * b_runs.max(b_gathered) {
        return None;
    }
    let run = (a.seconds * b_gathered - b.seconds * a_gathered) / determinant;
    let gathered = (a_runs * b.seconds - b_runs * a.seconds) / determinant;
    (run > 0.0 && gathered > 0.0).then_some((run, gathered))
}

/// One pattern, timed.
#[derive(Debug, Clone, Copy)]
struct Run {
    seconds: f64,
    index_seconds: f64,
    visits: Visits,
}

/// Made-up queries, keys and values.
struct Bench {
    shape: Shape,
    kv_heads: usize,
    heads: usize,
    q: Vec<f32>,
    k: Vec<f16>,
}

impl Bench {
    fn new(shape: Shape) -> Self {
        // A query head a thread at least, as prefill takes them.
        let kv_heads = rayon::current_num_threads().div_ceil(shape.group);
        let heads = kv_heads * shape.group;
        let mut state = 1u64;
        let mut random = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
        };
        let q = (0..shape.tokens * heads * shape.head_dim).map(|_| random()).collect();
        let k = (0..shape.tokens * kv_heads * shape.head_dim).map(|_| f16::from_f32(random())).collect();
        Self { shape, kv_heads, heads, q, k }
    }

    /// Times patterns by turns, so that a change of the machine's speed hits all of them.
    fn run<const N: usize>(&self, patterns: [Pattern; N]) -> Result<[Run; N]> {
        let Shape { tokens, head_dim, isa, .. } = self.shape;
        let q = Rows::contiguous(&self.q, tokens, self.heads, head_dim)?;
        let k = Rows::contiguous(&self.k, tokens, self.kv_heads, head_dim)?;
        let options = Options { isa, dense_fallback: false, ..Options::default() };
        let none = Run { seconds: f64::INFINITY, index_seconds: f64::INFINITY, visits: Visits::default() };
        let mut runs = [none; N];
        for (run, &pattern) in runs.iter_mut().zip(&patterns) {
            for index in build_indexes(q, k, &vec![pattern; self.heads], &options)? {
                run.visits.runs += index.visits().runs;
                run.visits.gathered += index.visits().gathered;
            }
        }
        let mut out = vec![0.0; self.q.len()];
        for _ in 0..ROUNDS {
            for (run, &pattern) in runs.iter_mut().zip(&patterns) {
                let out = RowsMut::contiguous(&mut out, tokens, self.heads, head_dim)?;
                let report = prefill(q, k, k, &vec![pattern; self.heads], &options, out, None)?;
                run.seconds = run.seconds.min(report.attention_seconds);
                run.index_seconds = run.index_seconds.min(report.index_seconds);
            }
        }
        Ok(runs)
    }
}

fn read(path: &Path) -> Result<BTreeMap<String, KernelTimes>> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(source) => return Err(Error::Io { path: path.into(), source }),
    };
    let fault = |e: serde_json::Error| Error::Format {
        path: path.into(),
        what: format!("not a table of kernel times ({e}); remove it to measure them again"),
    };
    serde_json::from_str(&text).map_err(fault)
}

fn write(path: &Path, times: &BTreeMap<String, KernelTimes>) -> Result<()> {
    let text = serde_json::to_string_pretty(times).expect("numbers under names are JSON");
    write_whole(path, text.as_bytes())
}

/// Writes a file so that it is there wholly or not at all.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let fault = |source| Error::Io { path: path.into(), source };
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    std::fs::create_dir_all(folder).map_err(fault)?;
    let mut builder = tempfile::Builder::new();
    // Temporary files are for their owner alone; this one becomes a file like any other.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut file = builder.tempfile_in(folder).map_err(fault)?;
    file.write_all(bytes).map_err(fault)?;
    file.persist(path).map_err(|e| fault(e.error))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(seconds: f64, runs: u64, gathered: u64) -> Run {
        Run { seconds, index_seconds: 0.0, visits: Visits { runs, gathered } }
    }

    #[test]
    fn tile_times_come_out_of_two_mixtures() {
        // 2 s a run, 3 s a gathered tile.
        let (runs, gathered) =
            solve(&run(2.0 * 100.0 + 3.0 * 10.0, 100, 10), &run(2.0 * 20.0 + 3.0 * 90.0, 20, 90)).unwrap();
        assert!((runs - 2.0).abs() < 1e-9 && (gathered - 3.0).abs() < 1e-9);
        assert!(solve(&run(1.0, 100, 10), &run(2.0, 200, 20)).is_none());
    }

    #[test]
    fn times_are_measured_once() {
        let folder = tempfile::tempdir().unwrap();
        let cache = folder.path().join("deep/times.json");
        let shape = Shape { tokens: 1024, head_dim: 64, group: 2, isa: None };
        let first = KernelTimes::of_device("here", shape, &cache).unwrap();
        let all = [first.aligned_tile, first.shifted_tile, first.gathered_tile];
        assert!(all.iter().all(|&t| t > 0.0 && t < 1.0), "{first:?}");
        assert_eq!(KernelTimes::of_device("here", shape, &cache).unwrap(), first);
        assert_eq!(read(&cache).unwrap().len(), 1);
        std::fs::write(&cache, "[]").unwrap();
        let error = KernelTimes::of_device("here", shape, &cache).unwrap_err().to_string();
        assert!(error.contains("times.json") && error.contains("remove it"), "{error}");
    }
}

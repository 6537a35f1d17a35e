//! What attention costs on the device of the model: seconds a key tile by how the kernel reads it, and seconds an index.
//!
//! A pattern's budget counts lines or tiles; what a user waits for is time, and a tile of gathered columns is dearer than a tile of
//! neighbours. So the kernel itself is timed ([`cpu`], [`cuda`]), once per device and shape, and the result kept in a file.

mod cpu;
mod cuda;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};
use speedread_attention::cpu::Isa;
use speedread_attention::index::Visits;
use speedread_attention::{Budget, Kernel, Pattern, SparseIndex};
use speedread_engine::backend::cuda::CudaContext;
use speedread_engine::{Error, Result};

use cpu::CpuBench;
use cuda::CudaBench;

/// Rounds of measurement. The fastest run of each pattern counts: whatever else the machine does only adds time.
const ROUNDS: usize = 5;

/// Seconds, wall clock with the whole device at work. A tile is one of the timed kernel's: its keys against a query tile's rows, as
/// [`Kernel::visits`] counts them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct KernelTimes {
    /// The kernel that was timed, whose tiles these are. Files that do not say are the CPU's.
    #[serde(default)]
    pub kernel: Kernel,
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

/// What is timed, and where.
#[derive(Debug, Clone, Copy)]
pub enum Place<'a> {
    /// The CPU's kernel with this instruction set; `None` = the fastest that computes in f32.
    Cpu(Option<Isa>),
    /// The kernels of a CUDA device.
    Cuda(&'a CudaContext),
}

/// What times depend on besides the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Tokens of the prompt.
    pub tokens: usize,
    /// Components of a head.
    pub head_dim: usize,
    /// Query heads of a layer.
    pub heads: usize,
    /// Key/value heads of a layer.
    pub kv_heads: usize,
}

/// Seconds of one run over all heads.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Seconds {
    index: f64,
    attention: f64,
}

/// A kernel, with made-up queries, keys and values of some heads.
trait Bench {
    /// The kernel.
    fn kernel(&self) -> Kernel;
    /// Query heads.
    fn heads(&self) -> usize;
    /// The indexes of a pattern in every head.
    fn indexes(&mut self, pattern: Pattern) -> Result<Vec<SparseIndex>>;
    /// Runs a pattern in every head, index building included, without a fallback to dense.
    fn time(&mut self, pattern: Pattern) -> Result<Seconds>;
}

/// Numbers between -0.5 and 0.5, always the same ones.
fn random() -> impl FnMut() -> f32 {
    let mut state = 1u64;
    move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    }
}

impl KernelTimes {
    /// Reads the times of `device` from the file `cache`, or measures them and adds them to it.
    ///
    /// # Errors
    /// [`Error::Io`] when the file cannot be written, [`Error::Format`] when it is there and is not what this function wrote, those of
    /// [`measure`](Self::measure).
    pub fn of_device(device: &str, place: Place<'_>, shape: Shape, cache: &Path) -> Result<Self> {
        let Shape { tokens, head_dim, heads, kv_heads } = shape;
        let what = match place {
            Place::Cpu(isa) => format!(
                "{} | {} threads | head dim {head_dim} | {} query heads a key head",
                isa.unwrap_or_else(Isa::detect).name(),
                rayon::current_num_threads(),
                heads / kv_heads
            ),
            Place::Cuda(context) => format!(
                "cuda, {} | head dim {head_dim} | {heads} query heads, {kv_heads} key heads",
                context.attention().kernel()
            ),
        };
        let key = format!("{device} | {what} | {tokens} tokens | {}", env!("CARGO_PKG_VERSION"));
        if let Some(times) = read(cache)?.get(&key) {
            return Ok(*times);
        }
        let times = Self::measure(place, shape)?;
        // Read again: another process may have added its own meanwhile.
        let mut known = read(cache)?;
        known.insert(key, times);
        write(cache, &known)?;
        Ok(times)
    }

    /// Measures.
    ///
    /// # Errors
    /// Those of attention on the device. [`Error::Request`] when the device's clock says that
    /// tiles take no time.
    pub fn measure(place: Place<'_>, shape: Shape) -> Result<Self> {
        match place {
            Place::Cpu(isa) => Self::of_bench(&mut CpuBench::new(shape, isa.unwrap_or_else(Isa::detect)), shape.tokens),
            Place::Cuda(context) => Self::of_bench(&mut CudaBench::new(context, shape)?, shape.tokens),
        }
    }

    fn of_bench(bench: &mut dyn Bench, tokens: usize) -> Result<Self> {
        let kernel = bench.kernel();
        let keys = kernel.tile().keys;
        // Enough tiles of a kind to time them, and not so many that the kinds touch.
        let many = (tokens / keys / 8).clamp(4, 64);
        let vertical_slash = |vertical, slash| Pattern::VerticalSlash { vertical, slash, budget: Budget::Tiles };
        let [band, windows, columns, blocks] = run(
            bench,
            [
                Pattern::AShape { sink: 0, local: many * keys },
                vertical_slash(1, many),
                vertical_slash(many, 3),
                Pattern::BlockSparse { blocks: many },
            ],
        )?;
        let (shifted_tile, gathered_tile) = solve(&windows, &columns).unwrap_or_else(|| {
            // A prompt too short to hold both kinds: one time for both.
            let tile = windows.seconds / (windows.visits.runs + windows.visits.gathered) as f64;
            (tile, tile)
        });
        let aligned_tile = band.seconds / band.visits.runs as f64;
        if [aligned_tile, shifted_tile, gathered_tile].iter().any(|&seconds| !(seconds > 0.0 && seconds.is_finite())) {
            return Err(Error::Request(format!(
                "key tiles take {aligned_tile}, {shifted_tile} and {gathered_tile} seconds by this device's clock: times must be positive"
            )));
        }
        // Every call packs keys and values, or lays out its work; what an index costs comes on top of that.
        let index = |run: &Run| (run.index_seconds - band.index_seconds).max(0.0) / bench.heads() as f64;
        Ok(KernelTimes {
            kernel,
            aligned_tile,
            shifted_tile,
            gathered_tile,
            vertical_slash_index: index(&windows),
            block_sparse_index: index(&blocks),
        })
    }

    /// Seconds of a head: its index and its tiles, of which `visits` are the timed kernel's.
    pub fn head(&self, pattern: Pattern, visits: Visits) -> f64 {
        let (runs, gathered) = (visits.runs as f64, visits.gathered as f64 * self.gathered_tile);
        match pattern {
            Pattern::VerticalSlash { .. } => runs * self.shifted_tile + gathered + self.vertical_slash_index,
            Pattern::BlockSparse { .. } | Pattern::BlockShare { .. } => {
                runs * self.aligned_tile + gathered + self.block_sparse_index
            }
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

/// Times patterns by turns, so that a change of the device's speed hits all of them.
fn run<const N: usize>(bench: &mut dyn Bench, patterns: [Pattern; N]) -> Result<[Run; N]> {
    let none = Run { seconds: f64::INFINITY, index_seconds: f64::INFINITY, visits: Visits::default() };
    let mut runs = [none; N];
    for (run, &pattern) in runs.iter_mut().zip(&patterns) {
        for index in bench.indexes(pattern)? {
            let Visits { runs, gathered } = bench.kernel().visits(&index);
            run.visits.runs += runs;
            run.visits.gathered += gathered;
        }
    }
    for _ in 0..ROUNDS {
        for (run, &pattern) in runs.iter_mut().zip(&patterns) {
            let Seconds { index, attention } = bench.time(pattern)?;
            run.seconds = run.seconds.min(attention);
            run.index_seconds = run.index_seconds.min(index);
        }
    }
    Ok(runs)
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
        let shape = Shape { tokens: 1024, head_dim: 64, heads: 4, kv_heads: 2 };
        let of_device = || KernelTimes::of_device("here", Place::Cpu(None), shape, &cache);
        let first = of_device().unwrap();
        assert_eq!(first.kernel, Kernel::Cpu);
        let all = [first.aligned_tile, first.shifted_tile, first.gathered_tile];
        assert!(all.iter().all(|&t| t > 0.0 && t < 1.0), "{first:?}");
        assert_eq!(of_device().unwrap(), first);
        assert_eq!(read(&cache).unwrap().len(), 1);
        std::fs::write(&cache, "[]").unwrap();
        let error = of_device().unwrap_err().to_string();
        assert!(error.contains("times.json") && error.contains("remove it"), "{error}");
    }
}

//! The memory a run will need, known and compared with what the machine has before anything is allocated.

use crate::backend::cpu::CpuBackend;
use crate::config::ModelConfig;
use crate::decoder::{block_rows, workspace_numbers};
use crate::kv_cache::{CacheShape, KvType};
use crate::rope::RotaryTable;
use crate::session::SessionOptions;
use crate::{Error, Result};

/// Bytes of a run, by purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryPlan {
    /// The weights, as quantised as they are; mapped from the file.
    pub weights: u64,
    /// The key/value cache at its full capacity.
    pub kv: u64,
    /// Activations of every row of a chunk: residual stream, queries, attention's output.
    pub activations: u64,
    /// Blocks of the wide layers, packed inputs, tables, indexes, logits.
    pub scratch: u64,
}

impl MemoryPlan {
    /// The plan for a session. `weights` are the bytes of the model's tensors.
    pub fn new(config: &ModelConfig, weights: u64, options: &SessionOptions) -> Self {
        let rows = options.chunk_rows();
        let kv = CacheShape {
            layers: config.layers,
            heads: config.kv_heads,
            dim: config.head_dim,
            capacity: options.context,
            kind: options.kv,
        };
        let (every_row, blocks) = workspace_numbers(config, rows);
        let heads = CpuBackend::kv_heads_per_call(config.kv_heads, config.group()) * config.group();
        let attended = (rows as u64).saturating_mul((heads * config.head_dim) as u64);
        let widest = config.hidden.max(config.q_dim()).max(config.feed_forward);
        let products = CpuBackend::product_bytes(block_rows(config, rows), widest);
        // Attention's own working memory: gathered keys and values and an index per head in work; bounded by a few rows of each key.
        let index = (options.context as u64).saturating_mul(64 * rayon::current_num_threads() as u64);
        Self {
            weights,
            kv: kv.bytes().unwrap_or(u64::MAX),
            activations: every_row.saturating_add(attended).saturating_mul(4),
            scratch: (blocks * 4)
                .saturating_add(products)
                .saturating_add(RotaryTable::bytes(rows, config.rope.dim / 2))
                .saturating_add(config.vocab as u64 * 4)
                .saturating_add(index),
        }
    }

    /// All of it.
    pub fn total(&self) -> u64 {
        self.weights.saturating_add(self.kv).saturating_add(self.activations).saturating_add(self.scratch)
    }
}

/// Compares a session's plan with `available` bytes; the error says what would fit.
pub fn check(config: &ModelConfig, weights: u64, options: &SessionOptions, available: u64) -> Result<()> {
    let plan = MemoryPlan::new(config, weights, options);
    if plan.total() <= available {
        return Ok(());
    }
    let fits = |options: &SessionOptions| MemoryPlan::new(config, weights, options).total() <= available;
    let mut advice = vec![];
    // The largest chunk that fits, then a smaller cache type, then both, then a shorter context.
    let chunks = [16_384usize, 8192, 4096, 2048, 1024, 512];
    let chunked = |options: &SessionOptions| {
        chunks
            .into_iter()
            .filter(|&chunk| chunk < options.chunk_rows())
            .map(|chunk| SessionOptions { chunk: Some(chunk), ..options.clone() })
            .find(|options| fits(options))
            .and_then(|options| options.chunk)
    };
    if let Some(chunk) = chunked(options) {
        advice.push(format!("--chunk {chunk}"));
    }
    if options.kv == KvType::F32 {
        let half = SessionOptions { kv: KvType::F16, ..options.clone() };
        if fits(&half) {
            advice.push("--kv f16".into());
        } else if let (true, Some(chunk)) = (advice.is_empty(), chunked(&half)) {
            advice.push(format!("--kv f16 --chunk {chunk}"));
        }
    }
    if advice.is_empty() {
        // The plan grows with the context, so the longest that fits can be bisected.
        let at = |context: usize| SessionOptions { context, chunk: Some(512.min(options.chunk_rows())), kv: KvType::F16, ..options.clone() };
        let (mut low, mut high) = (0, options.context);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if fits(&at(middle)) { low = middle } else { high = middle }
        }
        advice.push(match low {
            0 => "a smaller model".into(),
            longest => format!("at most {longest} tokens with --chunk 512"),
        });
    }
    Err(Error::Request(format!(
        "{} tokens need {} of memory (weights {}, key/value cache {}, activations {}, scratch {}); {} are available. \
         What would fit: {}",
        options.context,
        bytes(plan.total()),
        bytes(plan.weights),
        bytes(plan.kv),
        bytes(plan.activations),
        bytes(plan.scratch),
        bytes(available),
        advice.join(", or ")
    )))
}

/// `1.4 GB`, `402 MB`.
pub fn bytes(count: u64) -> String {
    match count {
        0..1_000_000 => format!("{} kB", count.div_ceil(1000)),
        1_000_000..1_000_000_000 => format!("{} MB", count.div_ceil(1_000_000)),
        _ => format!("{:.1} GB", count as f64 / 1e9),
    }
}

/// Bytes a process may still use: what the system calls available, within the limits of its control groups. `None` where neither is known.
pub fn available() -> Option<u64> {
    let system = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| mem_available(&text));
    match (system, control_group()) {
        (Some(system), Some(group)) => Some(system.min(group)),
        (one, other) => one.or(other),
    }
}

fn mem_available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// What is left under the tightest limit from this process's control group up to the root, in either version.
fn control_group() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    groups.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let (root, limit, usage, reclaimable) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file "),
            other if other.split(',').any(|name| name == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file ")
            }
            _ => return None,
        };
        let read = |folder: &std::path::Path, name: &str| std::fs::read_to_string(folder.join(name)).ok();
        let number = |folder: &std::path::Path, name: &str| read(folder, name)?.trim().parse::<u64>().ok();
        let folder = std::path::Path::new(root).join(path.trim_start_matches('/'));
        folder.ancestors().take_while(|folder| folder.starts_with(root)).filter_map(|folder| {
            // "max" (no limit) is not a number.
            let (limit, usage) = (number(folder, limit)?, number(folder, usage)?);
            // Cached file pages count as used but are given back under pressure.
            let stat = read(folder, "memory.stat").unwrap_or_default();
            let cached = stat.lines().find_map(|line| line.strip_prefix(reclaimable)?.trim().parse::<u64>().ok()).unwrap_or(0);
            Some(limit.saturating_sub(usage.saturating_sub(cached)))
        }).min()
    }).min()
}

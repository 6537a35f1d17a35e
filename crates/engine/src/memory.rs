//! The memory a run will need, known and compared with what the machine has before anything is allocated.

use speedread_attention::Pattern;
use speedread_attention::cuda::{CallShape, Workspace};

use crate::backend::Backend;
use crate::backend::cpu::CpuBackend;
use crate::backend::cuda::{CudaBackend, padded_dim};
use crate::config::ModelConfig;
use crate::decoder::{LOGITS_BLOCK, block_rows, workspace_numbers};
use crate::device::DeviceKind;
use crate::kv_cache::{CacheShape, KvType};
use crate::rope::RotaryTable;
use crate::session::SessionOptions;
use crate::{Error, Result};

/// Bytes of a run, by purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryPlan {
    /// The weights: on the CPU as quantised as in their file, which is mapped; on CUDA devices in bf16, whatever the file holds.
    pub weights: u64,
    /// The key/value cache at its full capacity.
    pub kv: u64,
    /// Activations of every row of a chunk: residual stream, queries, attention's output.
    pub activations: u64,
    /// Blocks of the wide layers, packed inputs, tables, indexes, logits.
    pub scratch: u64,
}

impl MemoryPlan {
    /// The plan for a session. `weights` are the bytes of the model's tensors, on the device.
    pub fn new(config: &ModelConfig, weights: u64, options: &SessionOptions, device: DeviceKind) -> Self {
        match device {
            DeviceKind::Cpu => Self::on_cpu(config, weights, options),
            DeviceKind::Cuda => Self::on_cuda(config, weights, options),
        }
    }

    fn on_cpu(config: &ModelConfig, weights: u64, options: &SessionOptions) -> Self {
        let rows = options.chunk_rows();
        let kv = options.cache_shape(config, DeviceKind::Cpu);
        let [residual, queries, blocks] = workspace_numbers(config, rows, &CpuBackend::BLOCK);
        let heads = CpuBackend::kv_heads_per_call(config.kv_heads, config.group()) * config.group();
        let attended = (rows as u64).saturating_mul((heads * config.head_dim) as u64);
        let widest = config.hidden.max(config.q_dim()).max(config.feed_forward);
        let products = CpuBackend::product_bytes(block_rows(config, rows, &CpuBackend::BLOCK), widest);
        // Attention's own working memory: gathered keys and values and an index per head in work; bounded by a few rows of each key.
        let index = (options.context as u64).saturating_mul(64 * rayon::current_num_threads() as u64);
        Self {
            weights,
            kv: kv.bytes().unwrap_or(u64::MAX),
            activations: residual.saturating_add(queries).saturating_add(attended).saturating_mul(4),
            scratch: (blocks * 4)
                .saturating_add(products)
                .saturating_add(RotaryTable::bytes(rows, config.rope.dim / 2))
                .saturating_add(config.vocab as u64 * 4)
                .saturating_add(index),
        }
    }

    fn on_cuda(config: &ModelConfig, weights: u64, options: &SessionOptions) -> Self {
        let rows = options.chunk_rows();
        // A size that no kernel takes is refused elsewhere.
        let padded = padded_dim(config.head_dim).unwrap_or(config.head_dim);
        let kv = CacheShape { dim: padded, ..options.cache_shape(config, DeviceKind::Cuda) };
        let [residual, queries, blocks] = workspace_numbers(config, rows, &CudaBackend::BLOCK);
        let wide_queries = (rows as u64).saturating_mul((config.heads * padded) as u64);
        // Output of attention, as large as the queries; both again where heads are filled up.
        let attended = if padded == config.head_dim { queries } else { wide_queries.saturating_mul(2) };
        let shape = CallShape {
            rows,
            start: options.context - rows,
            heads: config.heads,
            kv_heads: config.kv_heads,
            dim: padded,
        };
        // Lengths and patterns that no kernel takes are refused elsewhere too.
        let of_layer =
            |patterns: &Vec<Pattern>| Workspace::bytes(&shape, patterns, options.dense_fallback).unwrap_or(u64::MAX);
        let mut layers = options.attention.distinct(config.heads, options.context);
        // An audit runs every layer dense too, and keeps a log-sum-exp of each row and head.
        let mut audit = 0;
        if options.audit_rows.is_some() {
            layers.push(vec![Pattern::Dense; config.heads]);
            audit = (rows as u64).saturating_mul((config.heads * size_of::<f32>()) as u64);
        }
        let index = layers.iter().map(of_layer).max().unwrap_or(0);
        // Of a cache of codes prefill's attention reads one layer at a time in bf16.
        let wide = kv
            .kind
            .codes()
            .map_or(0, |_| CacheShape { layers: 1, kind: KvType::Bf16, ..kv }.bytes().unwrap_or(u64::MAX));
        Self {
            weights,
            kv: kv.bytes().unwrap_or(u64::MAX),
            activations: residual
                .saturating_mul(4)
                .saturating_add(queries.saturating_mul(2))
                .saturating_add(attended.saturating_mul(2)),
            scratch: (blocks * 2)
                .saturating_add(RotaryTable::bytes(rows, config.rope.dim / 2))
                .saturating_add((LOGITS_BLOCK * config.vocab * 4) as u64)
                .saturating_add(index)
                .saturating_add(audit)
                .saturating_add(wide),
        }
    }

    /// The plan for sessions whose prompts are read one after another and whose answers are then decoded together, in steps with buffers of
    /// their own: every cache, and of the rest the largest.
    pub(crate) fn together(sessions: &[Self], steps: &Self) -> Self {
        let most = |part: fn(&Self) -> u64| sessions.iter().map(part).max().unwrap_or(0);
        Self {
            weights: most(|plan| plan.weights),
            kv: sessions.iter().fold(0, |kv, plan| kv.saturating_add(plan.kv)),
            activations: most(|plan| plan.activations).saturating_add(steps.activations),
            scratch: most(|plan| plan.scratch).saturating_add(steps.scratch),
        }
    }

    /// All of it.
    pub fn total(&self) -> u64 {
        self.weights.saturating_add(self.kv).saturating_add(self.activations).saturating_add(self.scratch)
    }
}

/// Compares a session's plan with `available` bytes; the error says what would fit.
pub fn check(
    config: &ModelConfig,
    weights: u64,
    options: &SessionOptions,
    device: DeviceKind,
    available: u64,
) -> Result<()> {
    let plan = MemoryPlan::new(config, weights, options, device);
    if plan.total() <= available {
        return Ok(());
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
        what_would_fit(config, weights, options, device, available).join(", or ")
    )))
}

/// What of a session that does not fit `available` bytes could be changed so that it does: options, or a shorter context; at least one.
pub fn what_would_fit(
    config: &ModelConfig,
    weights: u64,
    options: &SessionOptions,
    device: DeviceKind,
    available: u64,
) -> Vec<String> {
    let fits = |options: &SessionOptions| MemoryPlan::new(config, weights, options, device).total() <= available;
    let mut advice = vec![];
    // The largest chunk that fits, then a smaller cache type, then both, then a shorter context.
    let chunks = [262_144usize, 131_072, 65_536, 32_768, 16_384, 8192, 4096, 2048, 1024, 512];
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
    let asked = options.cache_type(device);
    let smaller = match (device, asked) {
        (DeviceKind::Cpu, KvType::F32) => Some(KvType::F16),
        // Of as many bytes as FP8, and nearer to bf16.
        (DeviceKind::Cuda, KvType::Bf16) => Some(KvType::Int8),
        _ => None,
    };
    if let Some(kind) = smaller {
        let small = SessionOptions { kv: Some(kind), ..options.clone() };
        if fits(&small) {
            advice.push(format!("--kv {kind}"));
        } else if let (true, Some(chunk)) = (advice.is_empty(), chunked(&small)) {
            advice.push(format!("--kv {kind} --chunk {chunk}"));
        }
    }
    if advice.is_empty() {
        // The plan grows with the context, so the longest that fits can be bisected.
        let longest = |kind: KvType| {
            let at = |context: usize| SessionOptions {
                context,
                chunk: Some(512.min(options.chunk_rows())),
                kv: Some(kind),
                ..options.clone()
            };
            let (mut low, mut high) = (0, options.context);
            while high - low > 1 {
                let middle = low + (high - low) / 2;
                if fits(&at(middle)) { low = middle } else { high = middle }
            }
            low
        };
        let of_asked = longest(asked);
        if of_asked > 0 {
            advice.push(format!("at most {of_asked} tokens with --chunk 512"));
        }
        if let Some((kind, of_smaller)) = smaller.map(|kind| (kind, longest(kind))).filter(|&(_, n)| n > of_asked) {
            advice.push(format!("at most {of_smaller} tokens with --chunk 512 --kv {kind}"));
        }
    }
    if advice.is_empty() {
        advice.push(match device {
            DeviceKind::Cuda => "a smaller model, or --device cpu".into(),
            DeviceKind::Cpu => "a smaller model".into(),
        });
    }
    advice
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
    groups
        .lines()
        .filter_map(|line| {
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
            folder
                .ancestors()
                .take_while(|folder| folder.starts_with(root))
                .filter_map(|folder| {
                    // "max" (no limit) is not a number.
                    let (limit, usage) = (number(folder, limit)?, number(folder, usage)?);
                    // Cached file pages count as used but are given back under pressure.
                    let stat = read(folder, "memory.stat").unwrap_or_default();
                    let cached = stat
                        .lines()
                        .find_map(|line| line.strip_prefix(reclaimable)?.trim().parse::<u64>().ok())
                        .unwrap_or(0);
                    Some(limit.saturating_sub(usage.saturating_sub(cached)))
                })
                .min()
        })
        .min()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::session::AttentionChoice;

    /// Qwen2.5-0.5B.
    fn config() -> ModelConfig {
        let text = r#"{"model_type":"qwen2","hidden_size":896,"intermediate_size":4864,"num_hidden_layers":24,
            "num_attention_heads":14,"num_key_value_heads":2,"vocab_size":151936,"max_position_embeddings":32768,"rms_norm_eps":1e-06}"#;
        ModelConfig::from_hf(text, Path::new("config.json")).unwrap()
    }

    const WEIGHTS: u64 = 485_000_000;

    fn plan_of(options: &SessionOptions) -> MemoryPlan {
        MemoryPlan::new(&config(), WEIGHTS, options, DeviceKind::Cpu)
    }

    fn refused(options: &SessionOptions, available: u64) -> String {
        check(&config(), WEIGHTS, options, DeviceKind::Cpu, available).unwrap_err().to_string()
    }

    #[test]
    fn the_plan_counts_what_it_says() {
        let plan = plan_of(&SessionOptions::new(32_768));
        assert_eq!(plan.weights, WEIGHTS);
        // 24 layers, 2 heads of 64, keys and values, 2 bytes: 12,288 bytes a token.
        assert_eq!(plan.kv, 32_768 * 12_288);
        // Residual stream and queries of every row, and at least one group's output.
        assert!(plan.activations >= 32_768 * 4 * (896 + 896 + 448));
        assert!(plan.scratch < 300_000_000);
        let chunked = plan_of(&SessionOptions { chunk: Some(2048), ..SessionOptions::new(32_768) });
        assert_eq!(chunked.kv, plan.kv);
        assert!(chunked.activations * 15 < plan.activations);
        check(&config(), WEIGHTS, &SessionOptions::new(32_768), DeviceKind::Cpu, plan.total()).unwrap();
    }

    #[test]
    fn too_little_memory_says_what_would_fit() {
        let options = SessionOptions::new(32_768);
        let plan = plan_of(&options);
        let error = refused(&options, plan.total() - 1);
        assert!(error.contains("--chunk 16384") && error.contains("32768 tokens"), "{error}");
        // What is offered does fit.
        check(
            &config(),
            WEIGHTS,
            &SessionOptions { chunk: Some(16_384), ..options.clone() },
            DeviceKind::Cpu,
            plan.total() - 1,
        )
        .unwrap();
        let f32 = SessionOptions { kv: Some(KvType::F32), ..options.clone() };
        let error = refused(&f32, plan.total());
        assert!(error.contains("--kv f16"), "{error}");
        let error = refused(&options, 700_000_000);
        assert!(error.contains("at most") && error.contains("--chunk 512"), "{error}");
        assert!(refused(&options, 1_000_000).contains("smaller model"));
    }

    #[test]
    fn a_device_holds_16_bit_numbers_and_an_exact_residual_stream() {
        let options = SessionOptions::new(1 << 20);
        let plan = MemoryPlan::new(&config(), WEIGHTS, &options, DeviceKind::Cuda);
        assert_eq!(plan.kv, 12_288 << 20);
        // Residual stream, queries and their output: 896 numbers each of 4, 2 and 2 bytes.
        assert_eq!(plan.activations, (896 * 8) << 20);
        // Positions' cosines and sines are the largest part: 256 bytes a token.
        assert!((256 << 20..1_200_000_000).contains(&plan.scratch), "{}", plan.scratch);
        // Heads of 16 take the room of 64, in the cache and once more for queries and output.
        let narrow = ModelConfig { head_dim: 16, ..config() };
        let narrow = MemoryPlan::new(&narrow, WEIGHTS, &options, DeviceKind::Cuda);
        assert_eq!(narrow.kv, plan.kv);
        assert_eq!(narrow.activations, (896 * 4 + 14 * 16 * 2 + 14 * 64 * 4) << 20);
        let error = check(&config(), WEIGHTS, &options, DeviceKind::Cuda, plan.total() - 1).unwrap_err().to_string();
        assert!(error.contains("--chunk 262144"), "{error}");
        let error = check(&config(), WEIGHTS, &options, DeviceKind::Cuda, WEIGHTS).unwrap_err().to_string();
        assert!(error.contains("--device cpu"), "{error}");
    }

    #[test]
    fn an_audit_and_patterns_without_a_fallback_count() {
        let on_device = |options: &SessionOptions| MemoryPlan::new(&config(), WEIGHTS, options, DeviceKind::Cuda);
        // So many tiles that dense attention costs less: with a fallback none of their lists are made.
        let tiles = AttentionChoice::Pattern("vertical-slash-tiles:900,900".parse().unwrap());
        let plain = SessionOptions { attention: tiles, ..SessionOptions::new(1 << 17) };
        let audited = SessionOptions { audit_rows: Some(64), ..plain.clone() };
        // A number of 4 bytes for each row and head, and at most what dense attention's lists take.
        let more = on_device(&audited).scratch - on_device(&plain).scratch;
        assert!(((14 * 4) << 17..(2 * 14 * 4) << 17).contains(&more), "{more}");
        let always = SessionOptions { dense_fallback: false, ..plain.clone() };
        // At least the gathered columns of each head: keys and values of 64 components.
        let more = on_device(&always).scratch - on_device(&plain).scratch;
        assert!(more > 900 * 128 * 14 * 2 * 64 * 2, "{more}");
    }

    #[test]
    fn a_cache_of_codes_is_half_with_scales_and_a_layer_to_attend_from() {
        let on_device = |options: &SessionOptions| MemoryPlan::new(&config(), WEIGHTS, options, DeviceKind::Cuda);
        let bf16 = SessionOptions { chunk: Some(512), ..SessionOptions::new(1 << 20) };
        let int8 = SessionOptions { kv: Some(KvType::Int8), ..bf16.clone() };
        let (wide, narrow) = (on_device(&bf16), on_device(&int8));
        assert_eq!(on_device(&SessionOptions { kv: Some(KvType::Fp8), ..bf16.clone() }), narrow);
        // 24 layers, 2 heads, keys and values: 64 codes and a scale of 4 bytes; and once for each head a reference of 64 numbers of 4 bytes.
        assert_eq!(narrow.kv, ((24 * 2 * 2 * 68) << 20) + 24 * 2 * 64 * 4);
        assert_eq!(narrow.scratch - wide.scratch, (2 * 2 * 64 * 2) << 20);
        assert_eq!(narrow.activations, wide.activations);

        let refused = |options: &SessionOptions, available: u64| {
            check(&config(), WEIGHTS, options, DeviceKind::Cuda, available).unwrap_err().to_string()
        };
        // Chunks can be no smaller: only the cache can.
        let error = refused(&bf16, narrow.total());
        assert!(error.ends_with("What would fit: --kv int8"), "{error}");
        check(&config(), WEIGHTS, &int8, DeviceKind::Cuda, narrow.total()).unwrap();
        // Both together, where neither is enough.
        let whole = SessionOptions { chunk: None, ..bf16.clone() };
        let error = refused(&whole, narrow.total());
        assert!(error.ends_with("What would fit: --kv int8 --chunk 512"), "{error}");
        // And what is the longest with each.
        let error = refused(&bf16, narrow.total() - 1_000_000);
        assert!(
            error.contains("tokens with --chunk 512, or at most") && error.ends_with("--chunk 512 --kv int8"),
            "{error}"
        );
        let numbers: Vec<usize> =
            error.split("at most ").skip(1).map(|x| x.split(' ').next().unwrap().parse().unwrap()).collect();
        assert!(numbers[0] * 3 / 2 < numbers[1] && numbers[1] < 1 << 20, "{error}");
        let error = refused(&int8, narrow.total() - 1_000_000);
        assert!(error.contains(&format!("at most {} tokens", numbers[1])) && !error.contains("--kv"), "{error}");
    }

    #[test]
    fn absurd_contexts_do_not_overflow() {
        let options = SessionOptions { kv: Some(KvType::F32), ..SessionOptions::new(usize::MAX) };
        assert_eq!(plan_of(&options).total(), u64::MAX);
        let options = SessionOptions { kv: Some(KvType::Fp8), chunk: Some(512), ..SessionOptions::new(usize::MAX) };
        assert_eq!(MemoryPlan::new(&config(), WEIGHTS, &options, DeviceKind::Cuda).total(), u64::MAX);
        assert!(refused(&options, 16 << 30).contains("at most"));
    }

    #[test]
    fn meminfo_is_read() {
        assert_eq!(mem_available("MemTotal: 5 kB\nMemAvailable:   2048 kB\n"), Some(2 << 20));
        assert_eq!(mem_available("MemTotal: 5 kB\n"), None);
        assert_eq!(
            (bytes(1), bytes(402_000_000), bytes(1_440_000_000)),
            ("1 kB".into(), "402 MB".into(), "1.4 GB".into())
        );
    }
}

//! What a run reports: the summary line, the JSON object, the audit table.

use std::time::Duration;

use serde::Serialize;
use speedread_attention::HeadReport;
use speedread_engine::generate::{FinishReason, Generation};
use speedread_engine::memory;
use speedread_engine::session::PrefillReport;

/// A whole run in numbers; field names are the JSON's.
#[derive(Debug, Serialize)]
pub struct Summary {
    /// Tokens read.
    pub prompt_tokens: usize,
    /// Tokens of the documents left out to fit the context.
    pub truncated_tokens: usize,
    /// Seconds from the start of reading to the first token of the answer.
    pub time_to_first_token_s: f64,
    /// Tokens read per second.
    pub prefill_tokens_per_s: f64,
    /// Seconds of reading by what they went to.
    pub phases: Phases,
    /// Share of dense attention that was computed.
    pub attention_density: f64,
    /// Tokens generated.
    pub answer_tokens: usize,
    /// Tokens generated per second.
    pub decode_tokens_per_s: f64,
    /// Why the answer ended.
    pub finish_reason: &'static str,
    /// Seed of the sampler.
    pub seed: u64,
    /// Most memory the process held, in bytes; null where the system does not say.
    pub peak_memory_bytes: Option<u64>,
    /// Share of attention kept, if an audit was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audit: Option<Vec<Vec<AuditedHead>>>,
}

/// Seconds of a prefill by what they went to.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Phases {
    /// Matrix products.
    pub linear_s: f64,
    /// Estimating and building sparse indexes.
    pub index_s: f64,
    /// The attention kernel.
    pub attention_s: f64,
    /// Norms, rotary embedding, activations.
    pub other_s: f64,
}

impl From<&PrefillReport> for Phases {
    fn from(report: &PrefillReport) -> Self {
        Phases {
            linear_s: report.linear_seconds,
            index_s: report.index_seconds,
            attention_s: report.attention_seconds,
            other_s: report.other_seconds,
        }
    }
}

/// What an audit found of a head.
#[derive(Debug, Serialize)]
pub struct AuditedHead {
    /// Pattern that ran.
    pub pattern: String,
    /// Share of dense attention that was computed.
    pub density: f64,
    /// Mean share of attention mass kept.
    pub recall: f64,
    /// Least share of attention mass kept, of the sampled rows.
    pub least_recall: f64,
}

impl Summary {
    /// Puts a run's reports together.
    pub fn new(prefill: &PrefillReport, answer: &Generation, truncated_tokens: usize, seed: u64) -> Self {
        let audited = prefill.layers.iter().flatten().any(|head| head.recall.is_some());
        Summary {
            prompt_tokens: prefill.tokens,
            truncated_tokens,
            // The first token is sampled from the logits that reading leaves.
            time_to_first_token_s: prefill.seconds,
            prefill_tokens_per_s: rate(prefill.tokens, prefill.seconds),
            phases: prefill.into(),
            attention_density: prefill.density(),
            answer_tokens: answer.ids.len(),
            decode_tokens_per_s: rate(answer.ids.len(), answer.seconds),
            finish_reason: match answer.finish_reason {
                FinishReason::Stop => "stop",
                FinishReason::Length => "length",
                FinishReason::Cancelled => "interrupted",
            },
            seed,
            peak_memory_bytes: peak_memory(),
            audit: audited
                .then(|| prefill.layers.iter().map(|heads| heads.iter().map(audited_head).collect()).collect()),
        }
    }

    /// The line that ends an answer.
    pub fn line(&self) -> String {
        let memory = self.peak_memory_bytes.map(|b| format!(" | peak memory {}", memory::bytes(b))).unwrap_or_default();
        let ended = if self.finish_reason == "length" { " (cut at the token limit)" } else { "" };
        format!(
            "{} prompt tokens | first token after {} | prefill {:.0} tok/s | attention density {:.1} % | \
             {} answer tokens{ended}, {:.1} tok/s{memory}",
            self.prompt_tokens,
            seconds(self.time_to_first_token_s),
            self.prefill_tokens_per_s,
            100.0 * self.attention_density,
            self.answer_tokens,
            self.decode_tokens_per_s,
        )
    }

    /// The audit as a table: one line a layer, heads side by side; `None` without an audit.
    pub fn audit_table(&self) -> Option<String> {
        let layers = self.audit.as_ref()?;
        let heads = layers.iter().flatten();
        let count = heads.clone().count().max(1) as f64;
        let mean = heads.clone().map(|h| h.recall).sum::<f64>() / count;
        let least = heads.map(|h| h.least_recall).fold(1.0, f64::min);
        let mut table = String::from("share of attention kept, % (mean of sampled rows), by layer and head\n");
        for (layer, heads) in layers.iter().enumerate() {
            let cells: String = heads.iter().map(|h| format!("{:6.1}", 100.0 * h.recall)).collect();
            table += &format!("{layer:>5} {cells}\n");
        }
        table += &format!("mean {:.2} %, least row {:.1} %", 100.0 * mean, 100.0 * least);
        Some(table)
    }
}

fn audited_head(head: &HeadReport) -> AuditedHead {
    let (recall, least_recall) = head.recall.map_or((f64::NAN, f64::NAN), |r| (r.mean, r.min));
    AuditedHead {
        pattern: head.pattern.to_string(),
        density: head.tiles as f64 / head.dense_tiles.max(1) as f64,
        recall,
        least_recall,
    }
}

/// Things per second; zero where no time passed.
pub fn rate(count: usize, seconds: f64) -> f64 {
    if seconds > 0.0 { count as f64 / seconds } else { 0.0 }
}

/// `0.84 s`, `12.3 s`, `3 min 20 s`.
pub fn seconds(s: f64) -> String {
    match s {
        s if s < 10.0 => format!("{s:.2} s"),
        s if s < 120.0 => format!("{s:.1} s"),
        s => {
            let whole = Duration::from_secs_f64(s).as_secs();
            format!("{} min {} s", whole / 60, whole % 60)
        }
    }
}

/// Most memory this process held.
pub fn peak_memory() -> Option<u64> {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the call fills the structure it is given.
    let answer = unsafe { libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr()) };
    if answer != 0 {
        return None;
    }
    // SAFETY: filled, as the call succeeded.
    let peak = unsafe { usage.assume_init() }.ru_maxrss as u64;
    // Linux counts kilobytes, macOS bytes.
    Some(if cfg!(target_os = "macos") { peak } else { peak * 1024 })
}

/// The processor's name, where the system tells.
pub fn cpu() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// Prints one JSON object.
pub fn json(value: &impl Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_well() {
        assert_eq!(seconds(0.8444), "0.84 s");
        assert_eq!(seconds(12.34), "12.3 s");
        assert_eq!(seconds(200.9), "3 min 20 s");
        assert_eq!(rate(5, 0.0), 0.0);
    }
}

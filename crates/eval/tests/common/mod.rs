//! A small model with random weights, samples for it, and settings with indexes of their own and of other prompts.

#![allow(dead_code)] // Every test binary uses a part of this.

use std::io::Write;
use std::path::Path;

use serde_json::json;
use speedread_engine::device::DeviceChoice;
use speedread_engine::model::{Model, ModelOptions};
use speedread_engine::session::{AttentionChoice, SessionOptions};
use speedread_engine::synthetic;
use speedread_eval::header::Header;
use speedread_eval::metrics::Metric;
use speedread_eval::results::{Record, ResultsFile};
use speedread_eval::sample::{Prompt, Sample};
use speedread_eval::setting::Setting;

pub const NEW: usize = 4;

/// A model that seems to lie at `path`; `None` where its device cannot be used and is not required.
pub fn model(device: DeviceChoice, path: &Path) -> Option<Model> {
    let mut config = synthetic::config("llama-3.2-1b").unwrap();
    (config.layers, config.hidden, config.feed_forward, config.vocab) = (2, 128, 256, 256);
    (config.heads, config.kv_heads, config.head_dim, config.rope.dim) = (4, 2, 64, 64);
    let options = ModelOptions { device, ..ModelOptions::default() };
    match Model::with_random_weights(config, path.into(), &options) {
        Ok(model) => Some(model),
        Err(error) => {
            let required = std::env::var_os("SPEEDREAD_REQUIRE_CUDA").is_some_and(|value| value == "1");
            assert!(!required && device != DeviceChoice::Cpu, "{error}");
            // Not eprintln!, which the test harness hides.
            std::io::stderr().write_all(format!("CUDA tests skipped: {error}\n").as_bytes()).unwrap();
            None
        }
    }
}

pub fn ids(count: usize, seed: usize) -> Vec<u32> {
    (0..count).map(|i| ((i * i * 31 + i * seed + 3) % 256) as u32).collect()
}

pub fn sample(task: &str, number: usize, tokens: usize) -> Sample {
    Sample {
        id: format!("{task}:{number}"),
        task: task.into(),
        length: Some(1024),
        depth: None,
        prompt: Prompt::Ids(ids(tokens, 7 * number + task.len())),
        answers: vec!["x".into()],
        classes: vec![],
        metric: Metric::QaF1,
        first_line: false,
        max_new_tokens: NEW,
    }
}

/// Dense, a pattern, and the pattern with indexes of another prompt.
pub fn settings(pattern: &str) -> Vec<Setting> {
    let base = SessionOptions { dense_fallback: false, ..SessionOptions::new(0) };
    let of = |name: String| Setting::new(name, AttentionChoice::Pattern(pattern.parse().unwrap()), &base);
    vec![
        Setting::new("dense", AttentionChoice::Dense, &base),
        of(pattern.into()),
        of(format!("static:{pattern}")).fixed().unwrap(),
    ]
}

pub fn open<R: Record>(model: &Model, settings: &[Setting], path: &Path) -> (ResultsFile, Vec<R>) {
    let header = Header::new(R::KIND, model, settings, &[], None, json!({})).unwrap();
    ResultsFile::open(path, &header).unwrap()
}

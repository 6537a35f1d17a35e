//! Log-probabilities of real models against Hugging Face transformers on the same dequantised weights.
//! `scripts/golden/real_models.py` made the expectations and says how.
//!
//! `SPEEDREAD_TEST_MODELS` names the folder with the GGUF files. Without it the tests say that they skip, unless
//! `SPEEDREAD_REQUIRE_MODELS=1` (continuous integration), which demands smollm2.gguf.

mod golden;

use std::path::Path;
use std::sync::atomic::AtomicBool;

use golden::real_model;
use serde_json::Value;
use speedread_engine::backend::cpu::gemm::Precision;
use speedread_engine::kv_cache::KvType;
use speedread_engine::model::{Model, ModelOptions};
use speedread_engine::session::{AttentionChoice, Session, SessionOptions};

/// What was found over the stored positions of a prompt.
#[derive(Debug, Default)]
struct Agreement {
    positions: usize,
    same_top: usize,
    /// Largest and mean difference of a stored log-probability.
    largest: f64,
    mean: f64,
}

/// Log-probability of `id`.
fn log_probability(logits: &[f32], id: usize) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&x| f64::from(x - max).exp()).sum();
    f64::from(logits[id] - max) - sum.ln()
}

fn measure(model: &Model, golden: &Value, case: &Value, options: &SessionOptions, margin: f64) -> Agreement {
    let tokens = case["tokens"].as_u64().unwrap() as usize;
    let ids: Vec<u32> = golden::usizes(&golden["ids"]).into_iter().take(tokens).map(|id| id as u32).collect();
    let mut session = Session::new(model, SessionOptions { context: tokens, ..options.clone() }).unwrap();
    let (vocab, rows) = (model.config.vocab, case["rows"].as_array().unwrap());
    let mut found = Agreement::default();
    let mut compare = |first: usize, logits: &[f32]| {
        for (i, logits) in logits.chunks_exact(vocab).enumerate() {
            let Some(row) = rows.iter().find(|row| row["position"] == (first + i) as u64) else { continue };
            let ids = golden::usizes(&row["ids"]);
            let expected: Vec<f64> = row["logprobs"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
            let differences = ids.iter().zip(&expected).map(|(&id, x)| (log_probability(logits, id) - x).abs());
            for difference in differences {
                found.largest = found.largest.max(difference);
                found.mean += difference / (rows.len() * ids.len()) as f64;
            }
            let top = (0..vocab).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
            found.positions += 1;
            found.same_top += usize::from(top == ids[0] || expected[0] - expected[1] <= margin);
        }
    };
    session.prefill_all_logits(&ids, &mut |_| {}, &AtomicBool::new(false), &mut compare).unwrap();
    assert_eq!(found.positions, rows.len());
    found
}

fn check(name: &str, required: bool) {
    let Some(path) = real_model(&format!("{name}.gguf"), required) else { return };
    let model = Model::open(&path, &ModelOptions::default()).unwrap();
    // Patterns that come with speedread find their model by its weights.
    assert_eq!(model.known_patterns(model.device()).is_some(), name.starts_with("qwen2.5-coder"), "{name}");
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/real").join(format!("{name}.json"));
    let golden: Value = serde_json::from_str(&std::fs::read_to_string(golden).unwrap()).unwrap();
    let exact = SessionOptions {
        kv: Some(KvType::F32),
        attention: AttentionChoice::Dense,
        precision: Precision::F32,
        ..SessionOptions::new(1)
    };
    let default = SessionOptions { attention: AttentionChoice::Dense, ..SessionOptions::new(1) };
    for case in golden["cases"].as_array().unwrap() {
        let found = measure(&model, &golden, case, &exact, 1e-2);
        eprintln!("{name}, {} tokens, f32: {found:?}", case["tokens"]);
        assert!(found.largest <= 1e-2 && found.same_top == found.positions, "{found:?}");
        // At the default precision (bf16 products, f16 cache) rounding shows, but little.
        let found = measure(&model, &golden, case, &default, 0.2);
        eprintln!("{name}, {} tokens, default: {found:?}", case["tokens"]);
        assert!(found.mean <= 0.05 && found.same_top == found.positions, "{found:?}");
    }
}

#[test]
fn smollm2() {
    check("smollm2", true);
}

#[test]
fn qwen2_5_coder_0_5b() {
    check("qwen2.5-coder-0.5b", false);
}

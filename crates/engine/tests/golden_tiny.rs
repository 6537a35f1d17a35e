//! Logits of tiny random models of every architecture against Hugging Face transformers, from safetensors folders and from GGUF files.
//! `scripts/golden/tiny_models.py` made the expectations and says how.

mod golden;

use std::path::Path;
use std::sync::atomic::AtomicBool;

use golden::{prompt, tiny, write_folder, write_gguf};
use serde_json::Value;
use speedread_engine::backend::cpu::gemm::Precision;
use speedread_engine::kv_cache::KvType;
use speedread_engine::model::{Model, ModelOptions};
use speedread_engine::session::{AttentionChoice, Session, SessionOptions};

/// In f32 throughout, as the expectations are.
fn options(context: usize) -> SessionOptions {
    SessionOptions {
        kv: KvType::F32,
        attention: AttentionChoice::Dense,
        precision: Precision::F32,
        ..SessionOptions::new(context)
    }
}

fn check(model: &Model, golden: &Value) {
    for case in golden["cases"].as_array().unwrap() {
        let tokens = case["tokens"].as_u64().unwrap() as usize;
        let mut logits = vec![];
        let mut session = Session::new(model, options(tokens)).unwrap();
        let ids = prompt(tokens, model.config.vocab);
        let cancel = AtomicBool::new(false);
        session.prefill_all_logits(&ids, &mut |_| {}, &cancel, &mut |_, rows| logits.extend_from_slice(rows)).unwrap();
        compare(case, golden, |position| &logits[position * model.config.vocab..][..model.config.vocab]);
    }
}

fn compare<'a>(case: &Value, golden: &Value, logits: impl Fn(usize) -> &'a [f32]) {
    let stride = golden["stride"].as_u64().unwrap() as usize;
    for row in case["rows"].as_array().unwrap() {
        let position = row["position"].as_u64().unwrap() as usize;
        let got = logits(position);
        let lse = got.iter().map(|&x| f64::from(x).exp()).sum::<f64>().ln();
        assert!((lse - row["lse"].as_f64().unwrap()).abs() <= 1e-4, "position {position}: log-sum-exp {lse}");
        let expected = row["logits"].as_array().unwrap();
        assert_eq!(expected.len(), got.len().div_ceil(stride));
        for (i, (got, expected)) in got.iter().step_by(stride).zip(expected).enumerate() {
            let difference = (f64::from(*got) - expected.as_f64().unwrap()).abs();
            assert!(difference <= 1e-4, "position {position}, logit {}: {got}, expected {expected}", i * stride);
        }
    }
}

fn open(path: &Path) -> Model {
    Model::open(path, &ModelOptions::default()).unwrap()
}

fn from_folder(name: &str) {
    let golden = tiny(name);
    let folder = tempfile::tempdir().unwrap();
    write_folder(&golden, folder.path());
    check(&open(folder.path()), &golden);
}

fn from_gguf(name: &str) {
    let golden = tiny(name);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    write_gguf(&golden, &path);
    check(&open(&path), &golden);
}

macro_rules! tests {
    ($module:ident, $run:ident: $($test:ident = $name:literal),* $(,)?) => {
        mod $module {
            $(#[test] fn $test() { super::$run($name); })*
        }
    };
}

tests!(safetensors, from_folder:
    llama2 = "llama2",
    llama3_1 = "llama3.1",
    smollm2_tied = "smollm2",
    llama_linear_rope = "llama-linear",
    llama_with_biases = "llama-biases",
    mistral = "mistral",
    mistral_sliding_window = "mistral-window",
    qwen2_sliding_window_in_some_layers = "qwen2-window",
    phi3_sliding_window = "phi3-window",
    qwen2 = "qwen2",
    qwen2_yarn = "qwen2-yarn",
    qwen3 = "qwen3",
    phi3 = "phi3",
    phi3_long_rope_both_sides = "phi3-longrope",
    glm = "glm",
    glm4 = "glm4",
);

tests!(gguf, from_gguf:
    llama2 = "llama2",
    llama3_1 = "llama3.1",
    smollm2_tied = "smollm2",
    llama_linear_rope = "llama-linear",
    mistral = "mistral",
    qwen2 = "qwen2",
    qwen2_yarn = "qwen2-yarn",
    qwen3 = "qwen3",
    phi3 = "phi3",
    phi3_sliding_window = "phi3-window",
    phi3_long_rope_both_sides = "phi3-longrope",
    glm = "glm",
    glm_with_fused_qkv = "glm-fused",
    glm4 = "glm4",
);

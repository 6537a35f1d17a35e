//! Logits of tiny random models of every architecture against Hugging Face transformers, from safetensors folders and from GGUF files.
//! `scripts/golden/tiny_models.py` made the expectations and says how.

mod golden;

use std::path::Path;
use std::sync::atomic::AtomicBool;

use golden::{cuda_device, prompt, tiny, write_folder, write_gguf};
use serde_json::Value;
use speedread_engine::backend::cpu::gemm::Precision;
use speedread_engine::device::{DeviceChoice, DeviceKind};
use speedread_engine::kv_cache::KvType;
use speedread_engine::model::{Model, ModelOptions};
use speedread_engine::session::{AttentionChoice, Session, SessionOptions};

/// In f32 throughout, as the expectations are; on a device with its own types.
fn options(context: usize, device: DeviceKind) -> SessionOptions {
    if device == DeviceKind::Cuda {
        return SessionOptions { attention: AttentionChoice::Dense, ..SessionOptions::new(context) };
    }
    SessionOptions {
        kv: Some(KvType::F32),
        attention: AttentionChoice::Dense,
        precision: Precision::F32,
        ..SessionOptions::new(context)
    }
}

fn check(model: &Model, golden: &Value) {
    if model.device() == DeviceKind::Cuda && model.config.sliding_window.is_some() {
        let refused = Session::new(model, options(model.config.context, model.device()));
        assert!(refused.unwrap_err().to_string().contains("--device cpu"));
        return;
    }
    for case in golden["cases"].as_array().unwrap() {
        let tokens = case["tokens"].as_u64().unwrap() as usize;
        let mut logits = vec![];
        let mut session = Session::new(model, options(tokens, model.device())).unwrap();
        let ids = prompt(tokens, model.config.vocab);
        let cancel = AtomicBool::new(false);
        session.prefill_all_logits(&ids, &mut |_| {}, &cancel, &mut |_, rows| logits.extend_from_slice(rows)).unwrap();
        compare(case, golden, tolerance(model.device()), |position| {
            &logits[position * model.config.vocab..][..model.config.vocab]
        });
    }
}

/// Largest difference of a logit. The logits of these models lie between -3 and 3; bf16 has 8 bits, and rounds some dozen times on the way.
fn tolerance(device: DeviceKind) -> f64 {
    match device {
        DeviceKind::Cpu => 1e-4,
        DeviceKind::Cuda => 0.05,
    }
}

fn compare<'a>(case: &Value, golden: &Value, tolerance: f64, logits: impl Fn(usize) -> &'a [f32]) {
    let stride = golden["stride"].as_u64().unwrap() as usize;
    for row in case["rows"].as_array().unwrap() {
        let position = row["position"].as_u64().unwrap() as usize;
        let got = logits(position);
        let lse = got.iter().map(|&x| f64::from(x).exp()).sum::<f64>().ln();
        assert!((lse - row["lse"].as_f64().unwrap()).abs() <= tolerance, "position {position}: log-sum-exp {lse}");
        let expected = row["logits"].as_array().unwrap();
        assert_eq!(expected.len(), got.len().div_ceil(stride));
        for (i, (got, expected)) in got.iter().step_by(stride).zip(expected).enumerate() {
            let difference = (f64::from(*got) - expected.as_f64().unwrap()).abs();
            assert!(difference <= tolerance, "position {position}, logit {}: {got}, expected {expected}", i * stride);
        }
    }
}

fn on(device: DeviceChoice, path: &Path) -> Model {
    Model::open(path, &ModelOptions { device, ..ModelOptions::default() }).unwrap()
}

fn from_folder(name: &str, device: DeviceChoice) {
    let golden = tiny(name);
    let folder = tempfile::tempdir().unwrap();
    write_folder(&golden, folder.path());
    check(&on(device, folder.path()), &golden);
}

fn from_gguf(name: &str, device: DeviceChoice) {
    let golden = tiny(name);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    write_gguf(&golden, &path);
    check(&on(device, &path), &golden);
}

macro_rules! tests {
    ($module:ident, $run:ident: $($test:ident = $name:literal),* $(,)?) => {
        mod $module {
            $(#[test] fn $test() { super::$run($name, super::DeviceChoice::Cpu); })*
            mod cuda {
                $(#[test] fn $test() {
                    if let Some(device) = super::super::cuda_device() {
                        super::super::$run($name, device);
                    }
                })*
            }
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

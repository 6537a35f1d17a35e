//! Writes the logits of every position of a prompt, for comparison with another program (`benchmarks/logits_vs_llama_cpp.py`):
//! `cargo run --release --example logits -- model.gguf ids.json logits.f32 [f32] [cuda]`
//!
//! `ids.json` is an array of token ids; the output is `[ids, vocabulary]` in little-endian f32. With `f32` products, cache and attention are
//! in f32, else at the default precision; with `cuda` they are those of the first CUDA device. Attention is dense.
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::atomic::AtomicBool;

use speedread_engine::backend::cpu::gemm::Precision;
use speedread_engine::device::DeviceChoice;
use speedread_engine::kv_cache::KvType;
use speedread_engine::model::{Model, ModelOptions};
use speedread_engine::session::{AttentionChoice, Session, SessionOptions};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, ids, out, words @ ..] = arguments.as_slice() else {
        return Err("usage: logits MODEL.gguf IDS.json OUT.f32 [f32] [cuda]".into());
    };
    let (mut exact, mut device) = (false, DeviceChoice::default());
    for word in words {
        match word.as_str() {
            "f32" => exact = true,
            device_name => device = device_name.parse()?,
        }
    }
    let ids: Vec<u32> = serde_json::from_reader(File::open(ids)?)?;
    let model = Model::open(Path::new(model), &ModelOptions { device, ..ModelOptions::default() })?;
    let mut options = SessionOptions { attention: AttentionChoice::Dense, ..SessionOptions::new(ids.len()) };
    if exact {
        (options.kv, options.precision) = (Some(KvType::F32), Precision::F32);
    }
    let mut out = BufWriter::new(File::create(out)?);
    let mut written = Ok(());
    let mut write = |_: usize, logits: &[f32]| {
        for x in logits {
            if written.is_ok() {
                written = out.write_all(&x.to_le_bytes());
            }
        }
    };
    Session::new(&model, options)?.prefill_all_logits(&ids, &mut |_| {}, &AtomicBool::new(false), &mut write)?;
    written?;
    Ok(out.flush()?)
}

//! Model files made from the descriptions in `golden/tiny/*.json`: the weights of `scripts/golden/tiny_models.py`, computed again.

#![allow(dead_code)] // Every test binary uses a part of this.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use speedread_engine::backend::cuda::CudaContext;
use speedread_engine::device::DeviceChoice;

/// 64-bit FNV-1a.
pub fn fnv(data: impl IntoIterator<Item = u8>) -> u64 {
    data.into_iter().fold(0xcbf2_9ce4_8422_2325, |h, byte| (h ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The weights of a tensor: eight bits of splitmix64 each, scaled by a power of two.
pub fn values(name: &str, shape: &[usize]) -> Vec<f32> {
    let seed = fnv(name.bytes());
    let unit = |i: u64| {
        let mut x = seed.wrapping_add(i.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^= x >> 31;
        ((x >> 56) as f32 - 128.0) / 128.0
    };
    let count: usize = shape.iter().product();
    let numbers = (1..=count as u64).map(unit);
    if let [_] = shape {
        let norm = name.contains("norm");
        return numbers.map(|unit| if norm { 1.0 + unit / 4.0 } else { unit / 2.0 }).collect();
    }
    let sharper = ["q_proj", "k_proj", "qkv_proj"].iter().any(|part| name.contains(part));
    let exponent = shape[1].ilog2() as i32 / 2 - i32::from(sharper);
    numbers.map(|unit| unit * 2f32.powi(-exponent)).collect()
}

/// The prompt of a case.
pub fn prompt(length: usize, vocab: usize) -> Vec<u32> {
    (0..length).map(|i| ((i * i * 31 + i * 17 + 3) % vocab) as u32).collect()
}

/// The description of a tiny model.
pub fn tiny(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tiny").join(format!("{name}.json"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

pub fn usizes(value: &Value) -> Vec<usize> {
    value.as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize).collect()
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// GPT-2's printable stand-ins for the 256 bytes, then fillers up to `vocab`.
fn byte_tokens(vocab: usize) -> Vec<String> {
    let printable = |b: u32| (33..127).contains(&b) || (161..173).contains(&b) || (174..256).contains(&b);
    let mut stand_ins = 256..;
    let mut tokens: Vec<String> = (0..256u32)
        .map(|b| if printable(b) { b } else { stand_ins.next().unwrap() })
        .map(|code| char::from_u32(code).unwrap().to_string())
        .collect();
    tokens.extend((256..vocab).map(|i| format!("<extra_{i}>")));
    tokens
}

/// Writes the model as a Hugging Face folder.
pub fn write_folder(golden: &Value, folder: &Path) {
    write_changed_folder(golden, folder, |_, _| {});
}

/// The same, after `change` of each tensor, which is named.
pub fn write_changed_folder(golden: &Value, folder: &Path, change: impl Fn(&str, &mut [f32])) {
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = golden["tensors"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(name, shape)| {
            let shape = usizes(shape);
            let mut numbers = values(name, &shape);
            change(name, &mut numbers);
            (name.clone(), shape, bytes(&numbers))
        })
        .collect();
    let views = tensors.iter().map(|(name, shape, data)| {
        (name, safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), data).unwrap())
    });
    safetensors::serialize_to_file(views, None, &folder.join("model.safetensors")).unwrap();
    std::fs::write(folder.join("config.json"), golden["config"].to_string()).unwrap();
    let vocab = golden["config"]["vocab_size"].as_u64().unwrap() as usize;
    let tokens: serde_json::Map<String, Value> =
        byte_tokens(vocab).into_iter().enumerate().map(|(id, token)| (token, json!(id))).collect();
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": tokens, "merges": [],
        },
    });
    std::fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
}

/// Writes the model as a GGUF file, as `golden["gguf"]` describes it, and checks every tensor against the description's hash.
pub fn write_gguf(golden: &Value, path: &Path) {
    let description = &golden["gguf"];
    let vocab = golden["config"]["vocab_size"].as_u64().unwrap() as usize;
    let string = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let mut metadata = vec![];
    for (key, entry) in description["metadata"].as_object().unwrap() {
        let (kind, value) = (entry[0].as_str().unwrap(), &entry[1]);
        metadata.push(match kind {
            "string" => [string(key), 8u32.to_le_bytes().into(), string(value.as_str().unwrap())].concat(),
            "u32" => {
                [string(key), 4u32.to_le_bytes().into(), (value.as_u64().unwrap() as u32).to_le_bytes().into()].concat()
            }
            "f32" => {
                [string(key), 6u32.to_le_bytes().into(), (value.as_f64().unwrap() as f32).to_le_bytes().into()].concat()
            }
            other => panic!("{other}"),
        });
    }
    for (key, value) in [("tokenizer.ggml.model", "gpt2"), ("tokenizer.ggml.pre", "qwen2")] {
        metadata.push([string(key), 8u32.to_le_bytes().into(), string(value)].concat());
    }
    for (key, list) in [("tokenizer.ggml.tokens", byte_tokens(vocab)), ("tokenizer.ggml.merges", vec![])] {
        let items: Vec<u8> = list.iter().flat_map(|item| string(item)).collect();
        let head = [
            string(key),
            9u32.to_le_bytes().into(),
            8u32.to_le_bytes().into(),
            (list.len() as u64).to_le_bytes().into(),
        ];
        metadata.push([head.concat(), items].concat());
    }

    let mut tensors: Vec<(String, Vec<usize>, Vec<f32>)> = vec![];
    for tensor in description["tensors"].as_array().unwrap() {
        let mut data: Vec<f32> = tensor["sources"]
            .as_array()
            .unwrap()
            .iter()
            .flat_map(|source| values(source.as_str().unwrap(), &usizes(&golden["tensors"][source.as_str().unwrap()])))
            .collect();
        let shape = usizes(&tensor["shape"]);
        let heads = tensor["permuted_heads"].as_u64().unwrap() as usize;
        if heads > 0 {
            data = permuted(&data, heads, shape[0], shape.get(1).copied().unwrap_or(1));
        }
        let name = tensor["name"].as_str().unwrap().to_owned();
        assert_eq!(format!("{:016x}", fnv(bytes(&data))), tensor["fnv"].as_str().unwrap(), "{name}");
        tensors.push((name, shape, data));
    }
    for (name, list) in description["extra"].as_object().unwrap() {
        let data: Vec<f32> = list.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect();
        tensors.push((name.clone(), vec![data.len()], data));
    }

    let mut file = [&b"GGUF"[..], &3u32.to_le_bytes()].concat();
    file.extend((tensors.len() as u64).to_le_bytes());
    file.extend((metadata.len() as u64).to_le_bytes());
    file.extend(metadata.concat());
    let mut offset = 0u64;
    for (name, shape, data) in &tensors {
        file.extend(string(name));
        file.extend((shape.len() as u32).to_le_bytes());
        shape.iter().rev().for_each(|&dim| file.extend((dim as u64).to_le_bytes()));
        file.extend(0u32.to_le_bytes());
        file.extend(offset.to_le_bytes());
        offset += (data.len() as u64 * 4).next_multiple_of(32);
    }
    for (_, _, data) in &tensors {
        file.resize(file.len().next_multiple_of(32), 0);
        file.extend(bytes(data));
    }
    file.resize(file.len().next_multiple_of(32), 0);
    std::fs::write(path, file).unwrap();
}

/// llama.cpp's order of the rows of Q and K: a head's rows i and i + d/2 side by side.
fn permuted(data: &[f32], heads: usize, rows: usize, cols: usize) -> Vec<f32> {
    let dim = rows / heads;
    let row = |r: usize| &data[r * cols..(r + 1) * cols];
    (0..rows)
        .flat_map(|r| {
            let (head, at) = (r / dim, r % dim);
            row(head * dim + at / 2 + at % 2 * (dim / 2)).iter().copied()
        })
        .collect()
}

/// The folder that `SPEEDREAD_TEST_MODELS` names, or `None` where it is missing and allowed to be.
pub fn real_model(file: &str, required_in_ci: bool) -> Option<PathBuf> {
    let required = std::env::var_os("SPEEDREAD_REQUIRE_MODELS").is_some_and(|value| value == "1");
    let path = std::env::var_os("SPEEDREAD_TEST_MODELS").map(|folder| PathBuf::from(folder).join(file));
    match path {
        Some(path) if path.is_file() => Some(path),
        path => {
            assert!(!(required && required_in_ci), "SPEEDREAD_REQUIRE_MODELS=1, but {file} is not there ({path:?})");
            // Not eprintln!, which the test harness hides.
            let line = format!("skipped: {file} is not in SPEEDREAD_TEST_MODELS ({path:?})\n");
            std::io::stderr().write_all(line.as_bytes()).unwrap();
            None
        }
    }
}

/// The first CUDA device, or `None` where it cannot be used and is not required.
pub fn cuda_device() -> Option<DeviceChoice> {
    match CudaContext::open(0) {
        Ok(_) => Some(DeviceChoice::Cuda(0)),
        Err(error) => {
            let required = std::env::var_os("SPEEDREAD_REQUIRE_CUDA").is_some_and(|value| value == "1");
            assert!(!required, "SPEEDREAD_REQUIRE_CUDA=1, but {error}");
            // Not eprintln!, which the test harness hides.
            let line = format!("CUDA tests skipped: {error}\n");
            std::io::stderr().write_all(line.as_bytes()).unwrap();
            None
        }
    }
}

//! A Hugging Face folder: `model.safetensors`, or several files and `model.safetensors.index.json` that says which tensor
//! is in which.
use std::collections::BTreeMap;
use std::path::{Component, Path};
use std::sync::Arc;

use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

use super::{Storage, Tensor};
use crate::quant::DType;
use crate::{Error, Result};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// Larger headers and indexes are refused, as by the safetensors library: a real one of a thousand tensors has 100 KB.
const MAX_JSON: u64 = 100_000_000;

/// The tensors of a folder, by name.
pub(super) fn open(folder: &Path) -> Result<BTreeMap<String, Tensor>> {
    if folder.join(SINGLE).exists() {
        return file(&folder.join(SINGLE));
    }
    if folder.join(INDEX).exists() {
        return sharded(folder, &folder.join(INDEX));
    }
    let hint = if folder.join("pytorch_model.bin").exists() || folder.join("pytorch_model.bin.index.json").exists() {
        ": its weights are in PyTorch's pickle format, which is not supported; convert them to safetensors"
    } else {
        ""
    };
    Err(wrong(folder, format!("the folder has neither `{SINGLE}` nor `{INDEX}`{hint}")))
}

#[derive(serde::Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Exactly the tensors that the index names, each from its file.
fn sharded(folder: &Path, path: &Path) -> Result<BTreeMap<String, Tensor>> {
    let index = Storage::map(path)?;
    if index.bytes().len() as u64 > MAX_JSON {
        return Err(wrong(path, format!("an index of {} bytes is not plausible", index.bytes().len())));
    }
    let index: Index = serde_json::from_slice(index.bytes())
        .map_err(|e| wrong(path, format!("not an index of safetensors files: {e}")))?;
    let mut files = BTreeMap::new();
    let mut tensors = BTreeMap::new();
    for (name, shard) in index.weight_map {
        if !files.contains_key(&shard) {
            let shard_path = Path::new(&shard);
            if !matches!(shard_path.components().collect::<Vec<_>>()[..], [Component::Normal(_)]) {
                return Err(wrong(
                    path,
                    format!("tensor `{name}` is said to be in `{shard}`, which is not a file name"),
                ));
            }
            files.insert(shard.clone(), file(&folder.join(shard_path))?);
        }
        let tensor = files.get(&shard).and_then(|tensors| tensors.get(&name)).cloned();
        let tensor = tensor.ok_or_else(|| wrong(path, format!("tensor `{name}` is not in `{shard}`")))?;
        tensors.insert(name, tensor);
    }
    Ok(tensors)
}

/// The tensors of one file.
fn file(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    let storage = Arc::new(Storage::map(path)?);
    let file: Arc<Path> = path.into();
    let (header, data) = split(storage.bytes()).map_err(|what| wrong(path, what))?;
    // The library checks that the tensors follow each other without gaps and have the length their shape asks for.
    let metadata: Metadata =
        serde_json::from_slice(header).map_err(|e| wrong(path, format!("the header of the file is wrong: {e}")))?;
    if metadata.data_len() != data.len() {
        let (said, is) = (metadata.data_len(), data.len());
        return Err(wrong(
            path,
            format!("the header asks for {said} bytes of data, but the file has {is}: it is truncated or damaged"),
        ));
    }
    let start = storage.bytes().len() - data.len();
    let tensors = metadata.tensors().into_iter().map(|(name, info)| {
        let tensor = Tensor {
            storage: Arc::clone(&storage),
            file: Arc::clone(&file),
            offset: start + info.data_offsets.0,
            shape: info.shape.clone(),
            dtype: dtype(info),
        };
        (name, tensor)
    });
    Ok(tensors.collect())
}

/// Header and data: the file starts with the header's length as 64 bits.
fn split(bytes: &[u8]) -> std::result::Result<(&[u8], &[u8]), String> {
    let Some((len, rest)) = bytes.split_first_chunk() else {
        return Err(format!("not a safetensors file: {} bytes are too few", bytes.len()));
    };
    let len = u64::from_le_bytes(*len);
    if len > MAX_JSON {
        return Err(format!("not a safetensors file: a header of {len} bytes is not plausible"));
    }
    if len > rest.len() as u64 {
        return Err(format!("the header has {len} bytes, but only {} follow: the file is truncated", rest.len()));
    }
    Ok(rest.split_at(len as usize))
}

/// The name instead where it is not one that weights come in. Models carry tensors of other types that nobody reads.
fn dtype(info: &TensorInfo) -> std::result::Result<DType, String> {
    match info.dtype {
        Dtype::F32 => Ok(DType::F32),
        Dtype::F16 => Ok(DType::F16),
        Dtype::BF16 => Ok(DType::BF16),
        other => Err(format!("{other:?}")),
    }
}

fn wrong(path: &Path, what: String) -> Error {
    Error::Format { path: path.to_owned(), what }
}

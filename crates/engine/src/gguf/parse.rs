//! From the bytes of a file to its metadata and tensor table.
use std::collections::HashSet;
use std::path::Path;

use super::TensorInfo;
use super::metadata::{Array, Metadata, Value};
use super::reader::{Parsed, Reader};
use crate::quant::DType;

const MAGIC: &[u8] = b"GGUF";
/// Where the format lets a file not say how its data is aligned.
const DEFAULT_ALIGNMENT: u64 = 32;
/// The format's own limit.
const MAX_DIMENSIONS: u32 = 4;

pub(super) struct Header {
    pub(super) version: u32,
    pub(super) metadata: Metadata,
    pub(super) tensors: Vec<TensorInfo>,
}

/// Reads everything before the data, and checks that the data of every tensor lies in the file.
pub(super) fn header(path: &Path, bytes: &[u8]) -> Parsed<Header> {
    let mut reader = Reader::new(bytes);
    if reader.take(MAGIC.len() as u64).ok() != Some(MAGIC) {
        return Err("not a GGUF file: it does not start with the bytes `GGUF`".into());
    }
    let version = version(reader.scalar()?)?;
    let tensor_count: u64 = reader.scalar()?;
    let metadata_count: u64 = reader.scalar()?;
    let metadata = metadata(path, &mut reader, metadata_count)?;
    refuse_shards(&metadata)?;
    let alignment = alignment(&metadata)?;
    let tensors = tensor_table(&mut reader, tensor_count)?;
    let data_start = (reader.position() as u64).checked_next_multiple_of(alignment);
    let tensors = tensors
        .into_iter()
        .map(|t| {
            let name = shown(&t.name);
            place(t, data_start, alignment, bytes.len()).map_err(|what| format!("tensor `{name}`: {what}"))
        })
        .collect::<Parsed<_>>()?;
    Ok(Header { version, metadata, tensors })
}

/// A name from a file as a message may show it: no control characters, and not longer than a line.
fn shown(name: &str) -> String {
    let start: String = name.chars().take(100).flat_map(char::escape_debug).collect();
    if name.chars().nth(100).is_some() { start + "..." } else { start }
}

fn version(version: u32) -> Parsed<u32> {
    match version {
        2 | 3 => Ok(version),
        1 => Err("GGUF version 1 is obsolete and not supported: convert the model again with a current tool".into()),
        v if matches!(v.swap_bytes(), 1..=3) => {
            Err("the file is big-endian: convert it with `gguf-convert-endian FILE little` of the `gguf` package"
                .into())
        }
        v => Err(format!("GGUF version {v} is not supported (versions 2 and 3 are)")),
    }
}

fn metadata(path: &Path, reader: &mut Reader, count: u64) -> Parsed<Metadata> {
    let mut metadata = Metadata::new(path.to_owned());
    for i in 0..count {
        let key = reader.string().map_err(|what| format!("metadata entry {} of {count}: {what}", i + 1))?;
        let value = value(reader).map_err(|what| format!("metadata key `{}`: {what}", shown(key)))?;
        if !metadata.insert(key.to_owned(), value) {
            return Err(format!("metadata key `{}` occurs twice", shown(key)));
        }
    }
    Ok(metadata)
}

fn value(reader: &mut Reader) -> Parsed<Value> {
    Ok(match reader.scalar::<u32>()? {
        0 => Value::U8(reader.scalar()?),
        1 => Value::I8(reader.scalar()?),
        2 => Value::U16(reader.scalar()?),
        3 => Value::I16(reader.scalar()?),
        4 => Value::U32(reader.scalar()?),
        5 => Value::I32(reader.scalar()?),
        6 => Value::F32(reader.scalar()?),
        7 => Value::Bool(boolean(reader.scalar()?)?),
        8 => Value::String(reader.string()?.to_owned()),
        9 => Value::Array(array(reader)?),
        10 => Value::U64(reader.scalar()?),
        11 => Value::I64(reader.scalar()?),
        12 => Value::F64(reader.scalar()?),
        other => return Err(format!("value type {other} does not exist")),
    })
}

fn array(reader: &mut Reader) -> Parsed<Array> {
    let kind: u32 = reader.scalar()?;
    let count: u64 = reader.scalar()?;
    Ok(match kind {
        0 => Array::U8(reader.scalars(count)?),
        1 => Array::I8(reader.scalars(count)?),
        2 => Array::U16(reader.scalars(count)?),
        3 => Array::I16(reader.scalars(count)?),
        4 => Array::U32(reader.scalars(count)?),
        5 => Array::I32(reader.scalars(count)?),
        6 => Array::F32(reader.scalars(count)?),
        7 => Array::Bool(reader.scalars(count)?.into_iter().map(boolean).collect::<Parsed<_>>()?),
        8 => Array::Strings(strings(reader, count)?),
        9 => return Err("arrays of arrays are not supported".into()),
        10 => Array::U64(reader.scalars(count)?),
        11 => Array::I64(reader.scalars(count)?),
        12 => Array::F64(reader.scalars(count)?),
        other => return Err(format!("array element type {other} does not exist")),
    })
}

fn strings(reader: &mut Reader, count: u64) -> Parsed<Vec<String>> {
    // Each string takes at least the eight bytes of its length, so the count is bounded before anything is allocated.
    if count > reader.remaining() as u64 / 8 {
        return Err(format!("an array of {count} strings does not fit in the {} bytes left", reader.remaining()));
    }
    (0..count)
        .map(|i| reader.string().map(str::to_owned).map_err(|what| format!("string {i} of {count}: {what}")))
        .collect()
}

fn boolean(byte: u8) -> Parsed<bool> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(format!("a boolean holds {other} instead of 0 or 1")),
    }
}

fn refuse_shards(metadata: &Metadata) -> Parsed<()> {
    match metadata.get("split.count").and_then(Value::as_u64) {
        Some(shards) if shards > 1 => Err(format!(
            "the model is split into {shards} files, which is not supported: join them with \
             `llama-gguf-split --merge FIRST-SHARD OUTPUT` of llama.cpp"
        )),
        _ => Ok(()),
    }
}

fn alignment(metadata: &Metadata) -> Parsed<u64> {
    let Some(value) = metadata.get("general.alignment") else { return Ok(DEFAULT_ALIGNMENT) };
    match value.as_u64() {
        Some(alignment) if alignment.is_power_of_two() => Ok(alignment),
        _ => Err(format!("`general.alignment` must be a power of two, but is {}", value.describe())),
    }
}

/// A row of the table as the file gives it.
struct Entry {
    name: String,
    /// Innermost first.
    dimensions: Vec<u64>,
    kind: u32,
    /// From the start of the data.
    offset: u64,
}

fn tensor_table(reader: &mut Reader, count: u64) -> Parsed<Vec<Entry>> {
    let mut names = HashSet::new();
    let mut entries = Vec::new();
    for i in 0..count {
        let name = reader.string().map_err(|what| format!("entry {} of {count} of the tensor table: {what}", i + 1))?;
        let entry = entry(reader, name).map_err(|what| format!("tensor `{}`: {what}", shown(name)))?;
        if !names.insert(name) {
            return Err(format!("tensor `{}` occurs twice", shown(name)));
        }
        entries.push(entry);
    }
    Ok(entries)
}

fn entry(reader: &mut Reader, name: &str) -> Parsed<Entry> {
    let dimension_count: u32 = reader.scalar()?;
    if !(1..=MAX_DIMENSIONS).contains(&dimension_count) {
        return Err(format!("{dimension_count} dimensions, but 1 to {MAX_DIMENSIONS} are allowed"));
    }
    let dimensions = reader.scalars(dimension_count.into())?;
    Ok(Entry { name: name.to_owned(), dimensions, kind: reader.scalar()?, offset: reader.scalar()? })
}

/// Finds an entry's data in the file.
fn place(entry: Entry, data_start: Option<u64>, alignment: u64, file_len: usize) -> Parsed<TensorInfo> {
    let Entry { name, dimensions, kind, offset } = entry;
    let dtype = DType::from_ggml(kind)?;
    let too_large = || format!("dimensions {dimensions:?} overflow");
    if dimensions.contains(&0) {
        return Err(format!("a dimension of {dimensions:?} is zero"));
    }
    let rows = dimensions[1..].iter().try_fold(1u64, |n, &d| n.checked_mul(d)).ok_or_else(too_large)?;
    let len = rows.checked_mul(dtype.row_len(dimensions[0])?).ok_or_else(too_large)?;
    if !offset.is_multiple_of(alignment) {
        return Err(format!("the data's offset {offset} is not a multiple of the file's alignment {alignment}"));
    }
    let start = data_start.and_then(|start| start.checked_add(offset));
    let end = start.and_then(|start| start.checked_add(len));
    match (start, end) {
        (Some(start), Some(end)) if end <= file_len as u64 => {
            let shape = dimensions.iter().rev().map(|&d| usize::try_from(d)).collect::<Result<_, _>>();
            let shape = shape.map_err(|_| too_large())?;
            // Lossless: both are at most the length of the file, a `usize`.
            Ok(TensorInfo { name, shape, dtype, offset: start as usize, len: len as usize })
        }
        _ => Err(format!(
            "its {len} bytes at data offset {offset} lie outside the file of {file_len} bytes: \
             the file is truncated or damaged"
        )),
    }
}

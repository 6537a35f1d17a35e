//! The key/value cache of a session.
//!
//! Head-major, `[layer][kv head][position][dim]`, so that the keys of a head are one contiguous run: attention reads a head at a time, and
//! appending writes `dim` numbers per head and token. The whole capacity is reserved at once but the system commits pages only when
//! they are first written.

use std::str::FromStr;

use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use half::{bf16, f16};
use rayon::prelude::*;
use speedread_attention::cuda::CodeType;
use speedread_attention::{Element, Rows};

use crate::backend::cpu::gemm::bf16::round;
use crate::{Error, Result};

/// Element type of a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KvType {
    /// 32 bits.
    F32,
    /// 16 bits, 11 of precision: the default.
    #[default]
    F16,
    /// 16 bits with the range of f32.
    Bf16,
    /// 8 bits (e4m3: 4 of precision) with an f32 scale for each position and head; keys less an f32 reference key of their head. Of CUDA
    /// devices alone.
    Fp8,
    /// 8 bits (whole numbers: 7 of the head's largest) with the same scale and reference. Of CUDA devices alone.
    Int8,
}

impl KvType {
    /// Bytes of one position of a head of `dim` components; `None` if the number does not fit 64 bits.
    pub fn row_bytes(self, dim: usize) -> Option<u64> {
        let (element, scale) = match self {
            Self::F32 => (4, 0),
            Self::F16 | Self::Bf16 => (2, 0),
            Self::Fp8 | Self::Int8 => (1, size_of::<f32>() as u64),
        };
        (dim as u64).checked_mul(element)?.checked_add(scale)
    }

    /// What its bytes are, where they are codes of 8 bits.
    pub(crate) fn codes(self) -> Option<CodeType> {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => None,
            Self::Fp8 => Some(CodeType::E4m3),
            Self::Int8 => Some(CodeType::Int8),
        }
    }
}

impl std::fmt::Display for KvType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Fp8 => "fp8",
            Self::Int8 => "int8",
        })
    }
}

impl FromStr for KvType {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "f32" => Ok(Self::F32),
            "f16" => Ok(Self::F16),
            "bf16" => Ok(Self::Bf16),
            "fp8" => Ok(Self::Fp8),
            "int8" => Ok(Self::Int8),
            _ => Err(Error::Request(format!("cache type {text:?}: expected f32, f16, bf16, int8 or fp8"))),
        }
    }
}

/// The answer to a cache of 8-bit codes in host memory.
pub(crate) fn coded_on_cpu(kind: KvType) -> Error {
    Error::Request(format!(
        "--kv {kind}: caches of 8 bits are for CUDA devices; on the CPU use --kv f16 or bf16, or run with --device cuda"
    ))
}

/// The shape of a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheShape {
    /// Decoder layers.
    pub layers: usize,
    /// Key/value heads of a layer.
    pub heads: usize,
    /// Components of a head.
    pub dim: usize,
    /// Positions it can hold.
    pub capacity: usize,
    /// Element type.
    pub kind: KvType,
}

impl CacheShape {
    /// Bytes of keys and values together, with their scales and reference keys; `None` if the number does not fit 64 bits.
    pub fn bytes(&self) -> Option<u64> {
        let product = |first: u64, factors: &[usize]| {
            factors.iter().try_fold(first, |bytes, &factor| bytes.checked_mul(factor as u64))
        };
        let rows = product(self.kind.row_bytes(self.dim)?, &[2, self.layers, self.heads, self.capacity])?;
        let references = match self.kind.codes() {
            Some(_) => product(size_of::<f32>() as u64, &[self.layers, self.heads, self.dim])?,
            None => 0,
        };
        rows.checked_add(references)
    }
}

/// An element type of the cache, in the form it is stored.
pub(crate) trait Stored: Element {
    /// Converts a run of numbers.
    fn store(from: &[f32], to: &mut [Self]);
}

impl Stored for f32 {
    fn store(from: &[f32], to: &mut [f32]) {
        to.copy_from_slice(from);
    }
}

impl Stored for f16 {
    fn store(from: &[f32], to: &mut [f16]) {
        to.convert_from_f32_slice(from);
    }
}

impl Stored for bf16 {
    fn store(from: &[f32], to: &mut [bf16]) {
        round(from, to);
    }
}

/// Keys and values of one layer. Halves are kept as bits: a vector of zero bits needs no page of memory before it is written.
#[derive(Debug)]
struct Layer<T> {
    k: Vec<T>,
    v: Vec<T>,
}

#[derive(Debug)]
enum Storage {
    F32(Vec<Layer<f32>>),
    F16(Vec<Layer<u16>>),
    Bf16(Vec<Layer<u16>>),
}

/// Views of some heads of a layer: keys and values.
pub(crate) enum View<'a> {
    F32(Rows<'a, f32>, Rows<'a, f32>),
    F16(Rows<'a, f16>, Rows<'a, f16>),
    Bf16(Rows<'a, bf16>, Rows<'a, bf16>),
}

/// A cache in host memory.
#[derive(Debug)]
pub struct KvCache {
    shape: CacheShape,
    storage: Storage,
}

impl KvCache {
    /// An empty cache.
    pub fn new(shape: CacheShape) -> Result<Self> {
        let too_large =
            || Error::Request(format!("a key/value cache of {} positions is too large to address", shape.capacity));
        let bytes = shape.bytes().ok_or_else(too_large)?;
        if bytes > isize::MAX as u64 {
            return Err(too_large());
        }
        let len = shape.heads * shape.dim * shape.capacity;
        fn layers<T: Copy>(shape: &CacheShape, zeros: impl Fn() -> Vec<T>) -> Vec<Layer<T>> {
            (0..shape.layers).map(|_| Layer { k: zeros(), v: zeros() }).collect()
        }
        let storage = match shape.kind {
            KvType::F32 => Storage::F32(layers(&shape, || vec![0f32; len])),
            KvType::F16 => Storage::F16(layers(&shape, || vec![0u16; len])),
            KvType::Fp8 | KvType::Int8 => return Err(coded_on_cpu(shape.kind)),
            KvType::Bf16 => Storage::Bf16(layers(&shape, || vec![0u16; len])),
        };
        Ok(Self { shape, storage })
    }

    /// Its shape.
    pub fn shape(&self) -> &CacheShape {
        &self.shape
    }

    /// Writes keys and values of `rows` positions from `position` on; `k` and `v` are `[rows, heads * dim]`.
    pub(crate) fn append(&mut self, layer: usize, position: usize, rows: usize, k: &[f32], v: &[f32]) -> Result<()> {
        let shape = self.shape;
        if position.checked_add(rows).is_none_or(|end| end > shape.capacity) {
            return Err(Error::Request(format!(
                "the key/value cache holds {} positions; {position} + {rows} do not fit",
                shape.capacity
            )));
        }
        match &mut self.storage {
            Storage::F32(layers) => {
                let layer = &mut layers[layer];
                scatter(&shape, position, rows, k, &mut layer.k);
                scatter(&shape, position, rows, v, &mut layer.v);
            }
            Storage::F16(layers) => {
                let layer = &mut layers[layer];
                scatter::<f16>(&shape, position, rows, k, layer.k.reinterpret_cast_mut());
                scatter::<f16>(&shape, position, rows, v, layer.v.reinterpret_cast_mut());
            }
            Storage::Bf16(layers) => {
                let layer = &mut layers[layer];
                scatter::<bf16>(&shape, position, rows, k, layer.k.reinterpret_cast_mut());
                scatter::<bf16>(&shape, position, rows, v, layer.v.reinterpret_cast_mut());
            }
        }
        Ok(())
    }

    /// The first `len` positions of the heads from `first_head` on, `heads` of them.
    pub(crate) fn view(&self, layer: usize, first_head: usize, heads: usize, len: usize) -> Result<View<'_>> {
        let shape = self.shape;
        let stride = shape.capacity * shape.dim;
        fn rows<'a, T>(
            all: &'a [T],
            shape: &CacheShape,
            first: usize,
            heads: usize,
            len: usize,
        ) -> Result<Rows<'a, T>> {
            let stride = shape.capacity * shape.dim;
            Ok(Rows::new(&all[first * stride..], len, heads, shape.dim, shape.dim, stride)?)
        }
        debug_assert!(stride * (first_head + heads) <= shape.heads * stride);
        Ok(match &self.storage {
            Storage::F32(layers) => {
                let layer = &layers[layer];
                View::F32(
                    rows(&layer.k, &shape, first_head, heads, len)?,
                    rows(&layer.v, &shape, first_head, heads, len)?,
                )
            }
            Storage::F16(layers) => {
                let (k, v): (&[f16], &[f16]) = (layers[layer].k.reinterpret_cast(), layers[layer].v.reinterpret_cast());
                View::F16(rows(k, &shape, first_head, heads, len)?, rows(v, &shape, first_head, heads, len)?)
            }
            Storage::Bf16(layers) => {
                let (k, v): (&[bf16], &[bf16]) =
                    (layers[layer].k.reinterpret_cast(), layers[layer].v.reinterpret_cast());
                View::Bf16(rows(k, &shape, first_head, heads, len)?, rows(v, &shape, first_head, heads, len)?)
            }
        })
    }
}

/// Copies `[rows, heads, dim]` to `[heads][position ..][dim]`, a head and a few hundred rows per task.
fn scatter<T: Stored>(shape: &CacheShape, position: usize, rows: usize, from: &[f32], to: &mut [T]) {
    const ROWS: usize = 256;
    let (dim, width) = (shape.dim, shape.heads * shape.dim);
    to.par_chunks_exact_mut(shape.capacity * dim).enumerate().for_each(|(head, to)| {
        let to = &mut to[position * dim..(position + rows) * dim];
        to.par_chunks_mut(ROWS * dim).enumerate().for_each(|(block, to)| {
            for (row, to) in to.chunks_exact_mut(dim).enumerate() {
                let at = (block * ROWS + row) * width + head * dim;
                T::store(&from[at..at + dim], to);
            }
        });
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(kind: KvType) -> CacheShape {
        CacheShape { layers: 2, heads: 3, dim: 4, capacity: 700, kind }
    }

    #[test]
    fn rows_come_back_under_their_head_and_position() {
        for kind in [KvType::F32, KvType::F16, KvType::Bf16] {
            let mut cache = KvCache::new(shape(kind)).unwrap();
            // Small whole numbers: exact in every type.
            let k: Vec<f32> = (0..600 * 12).map(|i| (i % 251) as f32).collect();
            let v: Vec<f32> = k.iter().map(|x| -x).collect();
            cache.append(1, 0, 100, &k[..1200], &v[..1200]).unwrap();
            cache.append(1, 100, 500, &k[1200..], &v[1200..]).unwrap();
            let read = |row: usize, head: usize| match cache.view(1, 1, 2, 600).unwrap() {
                View::F32(k, v) => (k.row(row, head).to_vec(), v.row(row, head).to_vec()),
                View::F16(k, v) => (k.row(row, head).to_f32_vec(), v.row(row, head).to_f32_vec()),
                View::Bf16(k, v) => (k.row(row, head).to_f32_vec(), v.row(row, head).to_f32_vec()),
            };
            for (row, head) in [(0, 0), (99, 1), (100, 0), (599, 1)] {
                let at = row * 12 + (head + 1) * 4;
                assert_eq!(read(row, head), (k[at..at + 4].to_vec(), v[at..at + 4].to_vec()), "{kind} {row} {head}");
            }
        }
    }

    #[test]
    fn a_full_cache_and_an_absurd_one_are_errors() {
        let mut cache = KvCache::new(shape(KvType::F16)).unwrap();
        assert!(cache.append(0, 700, 1, &[0.0; 12], &[0.0; 12]).unwrap_err().to_string().contains("700 positions"));
        let absurd = CacheShape { capacity: usize::MAX / 2, ..shape(KvType::F32) };
        assert!(KvCache::new(absurd).unwrap_err().to_string().contains("too large"));
        for kind in [KvType::Fp8, KvType::Int8] {
            let error = KvCache::new(shape(kind)).unwrap_err().to_string();
            assert!(error.starts_with(&format!("--kv {kind}")) && error.contains("--device cuda"), "{error}");
        }
    }

    #[test]
    fn types_have_names_and_sizes() {
        let halves = [(KvType::F16, 256), (KvType::Bf16, 256)];
        for (kind, bytes) in [(KvType::F32, 512), (KvType::Fp8, 132), (KvType::Int8, 132)].into_iter().chain(halves) {
            assert_eq!(kind.to_string().parse::<KvType>().unwrap(), kind);
            assert_eq!(kind.row_bytes(128), Some(bytes));
            // Two layers of three heads, keys and values of 700 positions; a cache of codes has a reference for each head.
            let references = if kind.codes().is_some() { 2 * 3 * 128 * 4 } else { 0 };
            let shape = CacheShape { dim: 128, ..shape(kind) };
            assert_eq!(shape.bytes(), Some(2 * 3 * 2 * 700 * bytes + references));
        }
        assert!("int3".parse::<KvType>().unwrap_err().to_string().contains("int8 or fp8"));
    }
}

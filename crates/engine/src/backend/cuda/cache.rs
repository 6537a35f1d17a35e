//! The key/value cache on the device: per layer `[kv head][position][padded dim]`, so that a head's keys are one run, as on the CPU. In bf16,
//! or in 8-bit codes with an f32 scale for each position and head, `[kv head][position]`; keys are coded as differences from one reference key
//! of their head, `[kv head][padded dim]`, that their layer's first rows give.

use half::bf16;
use speedread_attention::cuda::{CachedRows, CodeType, CodedRows, DeviceRows};
use speedread_cuda::{Buffer, Error as CudaError, Stream};

use super::context::{CudaContext, padded_dim};
use super::rope::Places;
use crate::device::DeviceKind;
use crate::kv_cache::CacheShape;
use crate::{Error, Result};

/// A key/value cache on the device.
#[derive(Debug)]
pub struct CudaCache {
    shape: CacheShape,
    padded: usize,
    layers: Layers,
}

/// Keys and values of every layer.
#[derive(Debug)]
enum Layers {
    Bf16(Vec<[Buffer<bf16>; 2]>),
    Coded(CodeType, Vec<CodedLayer>),
}

#[derive(Debug)]
struct CodedLayer {
    /// Keys, values.
    rows: [Coded; 2],
    /// Zero, then made by the rows at position 0, and anew whenever others take their place; rows at later positions go by it, as the keys
    /// before them do.
    reference: Buffer<f32>,
}

#[derive(Debug)]
struct Coded {
    codes: Buffer<u8>,
    scales: Buffer<f32>,
}

/// Room for keys and values of one layer of a cache of codes in bf16, for all layers in turn: taken when it is first needed, at the cache's
/// whole capacity. Of a cache in bf16, none.
#[derive(Debug, Default)]
pub(super) struct WideLayer(Option<[Buffer<bf16>; 2]>);

impl CudaCache {
    pub(super) fn new(stream: &Stream, shape: CacheShape) -> Result<Self> {
        DeviceKind::Cuda.check_kv(shape.kind)?;
        let padded = padded_dim(shape.dim)?;
        let too_large =
            || Error::Request(format!("a key/value cache of {} positions is too large to address", shape.capacity));
        let len = shape.capacity.checked_mul(shape.heads * padded).ok_or_else(too_large)?;
        let layers = if let Some(codes) = shape.kind.codes() {
            // The kernel that appends fills heads up by itself.
            let one = || -> Result<Coded, CudaError> {
                Ok(Coded { codes: stream.alloc(len)?, scales: stream.alloc(shape.capacity * shape.heads)? })
            };
            let layer = || -> Result<CodedLayer, CudaError> {
                Ok(CodedLayer { rows: [one()?, one()?], reference: stream.zeros(shape.heads * padded)? })
            };
            Layers::Coded(codes, (0..shape.layers).map(|_| layer()).collect::<Result<_, CudaError>>()?)
        } else {
            let one = || -> Result<Buffer<bf16>, CudaError> {
                // What fills heads up must be zero; positions that were not written are never looked at.
                if padded == shape.dim { stream.alloc(len) } else { stream.zeros(len) }
            };
            Layers::Bf16((0..shape.layers).map(|_| Ok([one()?, one()?])).collect::<Result<_, CudaError>>()?)
        };
        Ok(Self { shape, padded, layers })
    }

    pub(super) fn shape(&self) -> &CacheShape {
        &self.shape
    }

    /// Components of a head here.
    pub(super) fn padded_dim(&self) -> usize {
        self.padded
    }

    /// Elements from a head to the next.
    pub(super) fn head_stride(&self) -> usize {
        self.shape.capacity * self.padded
    }

    /// Places for `rows` positions from `position` on: views that begin at the first head's.
    pub(super) fn places(&mut self, layer: usize, position: usize, rows: usize) -> Result<Places<'_>> {
        if position.checked_add(rows).is_none_or(|end| end > self.shape.capacity) {
            return Err(Error::Request(format!(
                "the key/value cache holds {} positions; {position} + {rows} do not fit",
                self.shape.capacity
            )));
        }
        let first = position * self.padded;
        Ok(match &mut self.layers {
            Layers::Bf16(layers) => {
                let [k, v] = &mut layers[layer];
                let (k_len, v_len) = (k.len(), v.len());
                Places::Bf16([k.view_mut().slice(first..k_len)?, v.view_mut().slice(first..v_len)?])
            }
            Layers::Coded(kind, layers) => {
                let CodedLayer { rows, reference } = &mut layers[layer];
                let [k, v] = rows.each_mut().map(|Coded { codes, scales }| {
                    let (codes_len, scales_len) = (codes.len(), scales.len());
                    let codes = codes.view_mut().slice(first..codes_len)?;
                    Ok::<_, CudaError>((codes, scales.view_mut().slice(position..scales_len)?))
                });
                Places::Coded { kind: *kind, rows: [k?, v?], reference: reference.view_mut(), first: position == 0 }
            }
        })
    }

    /// Keys and values of the first `len` positions, as a decode step reads them.
    pub(super) fn rows(&self, layer: usize, len: usize) -> Result<CachedRows<'_>> {
        let CacheShape { heads, capacity, .. } = self.shape;
        let (dim, stride) = (self.padded, self.head_stride());
        Ok(match &self.layers {
            Layers::Bf16(layers) => CachedRows::Bf16(self.bf16(&layers[layer], len)?),
            Layers::Coded(kind, layers) => {
                let [k, v] = layers[layer].rows.each_ref().map(|Coded { codes, scales }| {
                    CodedRows::new((*kind, codes.view()), scales.view(), len, heads, dim, dim, stride, capacity)
                });
                CachedRows::Coded([k?, v?])
            }
        })
    }

    fn bf16<'a>(&self, layer: &'a [Buffer<bf16>; 2], len: usize) -> Result<[DeviceRows<'a, bf16>; 2]> {
        let (heads, dim, stride) = (self.shape.heads, self.padded, self.head_stride());
        let [k, v] = layer.each_ref().map(|x| DeviceRows::new(x.view(), len, heads, dim, dim, stride));
        Ok([k?, v?])
    }

    /// Keys and values of the first `len` positions in bf16, as prefill's kernels read them. Those of a cache of codes, keys without their
    /// reference, are written to `wide` first: one pass over the layer's cache for each layer and chunk, which is little beside attention of a
    /// chunk over the same keys, and leaves the kernels that build indexes and attend as they are. Indexes do not miss the reference: they
    /// come from the softmax of some queries' scores, or from the order of a query tile's scores, and a query's scores are all less by one
    /// number.
    pub(super) fn bf16_rows<'a>(
        &'a self,
        context: &CudaContext,
        wide: &'a mut WideLayer,
        layer: usize,
        len: usize,
    ) -> Result<[DeviceRows<'a, bf16>; 2]> {
        let CacheShape { heads, capacity, .. } = self.shape;
        let (stream, dim) = (&context.stream, self.padded);
        let (kind, cached) = match &self.layers {
            Layers::Bf16(layers) => return self.bf16(&layers[layer], len),
            Layers::Coded(kind, layers) => (*kind, &layers[layer].rows),
        };
        let (room, count) = (heads * capacity * dim, heads * len * dim);
        if wide.0.as_ref().is_none_or(|[k, _]| k.len() != room) {
            // The other cache's goes first.
            wide.0 = None;
        }
        let wide = match &mut wide.0 {
            Some(wide) => wide,
            none => none.insert([stream.alloc(room)?, stream.alloc(room)?]),
        };
        for (Coded { codes, scales }, to) in cached.iter().zip(wide.iter_mut()) {
            let to = to.view_mut().slice(0..count)?;
            context.kernels.rope.widen(stream, (kind, codes.view()), scales.view(), capacity, dim, to)?;
        }
        let [k, v] = wide.each_ref().map(|x| DeviceRows::new(x.view(), len, heads, dim, dim, len * dim));
        Ok([k?, v?])
    }
}

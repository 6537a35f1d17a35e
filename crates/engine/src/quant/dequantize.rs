//! Weights to f32.
use super::DType;
use super::float::{Bf16, F16, F32, Float};
use super::isa::{Isa, multiversion};
use super::simd::Portable;
use super::tile::{Format, GROUP, TILE, Tile, with_format};

/// Turns whole blocks into floats. The values are those of ggml's reference, bit for bit.
///
/// # Panics
/// If `bytes` is not exactly the blocks of `out.len()` elements.
pub fn dequantize(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    dequantize_on(Isa::detect(), dtype, bytes, out);
}

fn dequantize_on(isa: Isa, dtype: DType, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(dtype.row_len(out.len() as u64), Ok(bytes.len() as u64), "blocks and elements differ in number");
    with_format!(dtype, F => blocks::<F>(isa, bytes, out), float => match float {
        DType::F16 => floats::<F16>(isa, bytes, out),
        DType::BF16 => floats::<Bf16>(isa, bytes, out),
        _ => floats::<F32>(isa, bytes, out),
    });
}

fn blocks<F: Format>(isa: Isa, bytes: &[u8], out: &mut [f32]) {
    multiversion!(isa, [F: Format] dequantize_blocks::<F> => (bytes: &[u8], out: &mut [f32]))
}

fn floats<T: Float>(isa: Isa, bytes: &[u8], out: &mut [f32]) {
    multiversion!(isa, [T: Float] dequantize_floats::<T> => (bytes: &[u8], out: &mut [f32]))
}

#[inline(always)]
fn dequantize_blocks<F: Format>(bytes: &[u8], out: &mut [f32]) {
    let mut tile = Tile::new();
    let (out, out_tail) = out.as_chunks_mut::<TILE>();
    let (blocks, blocks_tail) = bytes.split_at(out.len() * F::TILE_BYTES);
    for (blocks, out) in blocks.chunks_exact(F::TILE_BYTES).zip(out) {
        F::unpack(Portable, blocks, &mut tile);
        elements::<F>(&tile, out);
    }
    if !out_tail.is_empty() {
        let mut last = [0.0; TILE];
        F::unpack(Portable, blocks_tail, &mut tile);
        elements::<F>(&tile, &mut last);
        out_tail.copy_from_slice(&last[..out_tail.len()]);
    }
}

/// All products are exact: a scale has 11 bits, times at most 8 of a second-level scale, and a code at most 5 beside its
/// sign in those formats. Only subtracting a min rounds, once, as in ggml.
#[inline(always)]
fn elements<F: Format>(tile: &Tile, out: &mut [f32; TILE]) {
    let groups = out.as_chunks_mut::<GROUP>().0.iter_mut().zip(tile.codes.as_chunks::<GROUP>().0);
    for ((out, codes), (scale, min)) in groups.zip(tile.scales.iter().zip(&tile.mins)) {
        for (out, code) in out.iter_mut().zip(codes) {
            let product = scale * (i32::from(*code) - i32::from(F::ZERO)) as f32;
            *out = if F::ZERO == 0 { product - min } else { product };
        }
    }
}

#[inline(always)]
fn dequantize_floats<T: Float>(bytes: &[u8], out: &mut [f32]) {
    for (bytes, out) in bytes.chunks_exact(T::BYTES).zip(out) {
        *out = T::read(bytes);
    }
}

//! Weights to f32.
use super::DType;
use super::float::{Bf16, F16, F32, Float};
use super::isa::{Isa, multiversion};
use super::simd::Simd;
use super::tile::{Format, TILE, Tile, with_format};

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
    multiversion!(isa, [F: Format] dequantize_blocks::<F, _> => (bytes: &[u8], out: &mut [f32]))
}

fn floats<T: Float>(isa: Isa, bytes: &[u8], out: &mut [f32]) {
    multiversion!(isa, [T: Float] dequantize_floats::<T, _> => (bytes: &[u8], out: &mut [f32]))
}

#[inline(always)]
fn dequantize_blocks<F: Format, S: Simd>(simd: S, bytes: &[u8], out: &mut [f32]) {
    let mut tile = Tile::new();
    let (out, out_tail) = out.as_chunks_mut::<TILE>();
    let (blocks, blocks_tail) = bytes.split_at(out.len() * F::TILE_BYTES);
    for (blocks, out) in blocks.chunks_exact(F::TILE_BYTES).zip(out) {
        F::unpack(simd, blocks, &mut tile);
        simd.elements::<F>(&tile, out);
    }
    if !out_tail.is_empty() {
        let mut last = [0.0; TILE];
        F::unpack(simd, blocks_tail, &mut tile);
        simd.elements::<F>(&tile, &mut last);
        out_tail.copy_from_slice(&last[..out_tail.len()]);
    }
}

#[inline(always)]
fn dequantize_floats<T: Float, S: Simd>(_: S, bytes: &[u8], out: &mut [f32]) {
    for (bytes, out) in bytes.chunks_exact(T::BYTES).zip(out) {
        *out = T::read(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// tests/quant.rs holds the best instruction set to gguf-py's bits; here the others are held to the same.
    #[test]
    fn all_instruction_sets_agree_to_the_bit() {
        let golden = include_bytes!("../../tests/golden/quant.safetensors");
        let golden = safetensors::SafeTensors::deserialize(golden).unwrap();
        for dtype in DType::ALL.into_iter().filter(|d| *d != DType::F32) {
            let blocks = golden.tensor(&format!("{dtype}.blocks")).unwrap();
            let expected = golden.tensor(&format!("{dtype}.values")).unwrap();
            for isa in Isa::available() {
                let mut out = vec![f32::NAN; expected.data().len() / 4];
                dequantize_on(isa, dtype, blocks.data(), &mut out);
                let bytes: Vec<u8> = out.iter().flat_map(|v| v.to_le_bytes()).collect();
                assert!(bytes == expected.data(), "{dtype} on {}", isa.name());
            }
        }
    }
}

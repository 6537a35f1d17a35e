//! Dequantisation against gguf-py: scripts/golden/quant.py made the expectations.
use safetensors::SafeTensors;
use speedread_engine::quant::{DType, dequantize};

const GOLDEN: &[u8] = include_bytes!("golden/quant.safetensors");

#[test]
fn every_format_dequantises_to_the_bits_of_gguf_py() {
    let golden = SafeTensors::deserialize(GOLDEN).unwrap();
    for dtype in DType::ALL.into_iter().filter(|d| *d != DType::F32) {
        let blocks = golden.tensor(&format!("{dtype}.blocks")).unwrap();
        let values = golden.tensor(&format!("{dtype}.values")).unwrap();
        let expected: Vec<u32> =
            values.data().chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect();
        assert!(expected.len() > 200, "{dtype}");
        let mut ours = vec![f32::NAN; expected.len()];
        dequantize(dtype, blocks.data(), &mut ours);
        for (i, (ours, expected)) in ours.iter().zip(&expected).enumerate() {
            let theirs = f32::from_bits(*expected);
            assert!(ours.to_bits() == *expected, "{dtype}, element {i}: {ours:e}, but gguf-py has {theirs:e}");
        }
    }
}

#[test]
fn the_end_of_a_row_that_is_no_whole_tile_is_as_exact() {
    let golden = SafeTensors::deserialize(GOLDEN).unwrap();
    for dtype in DType::ALL.into_iter().filter(|d| d.block_len() == 32) {
        let blocks = golden.tensor(&format!("{dtype}.blocks")).unwrap();
        let mut all = vec![0.0; 768];
        dequantize(dtype, blocks.data(), &mut all);
        for len in (32..768).step_by(32) {
            let mut ours = vec![f32::NAN; len];
            dequantize(dtype, &blocks.data()[..len / 32 * dtype.block_bytes()], &mut ours);
            assert_eq!(ours, all[..len], "{dtype}, {len} elements");
        }
    }
}

#[test]
fn floats_are_read_in_little_endian() {
    let mut out = [0.0; 2];
    dequantize(DType::F32, &[0, 0, 0x80, 0x3f, 0, 0, 0, 0xc0], &mut out);
    assert_eq!(out, [1.0, -2.0]);
}

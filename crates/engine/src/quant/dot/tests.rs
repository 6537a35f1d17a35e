//! One suite for every format and instruction set. The references are f64 dot products of dequantised rows (dequantisation
//! itself is tested against gguf-py), and the portable code for what only differs in the order of additions.
use super::*;
use crate::quant::dequantize;
use crate::quant::tile::{GROUP, TILE};

const SCALE_BYTES: &[(DType, &[usize])] = &[
    (DType::Q4_0, &[0]),
    (DType::Q4_1, &[0, 2]),
    (DType::Q5_0, &[0]),
    (DType::Q5_1, &[0, 2]),
    (DType::Q8_0, &[0]),
    (DType::Q2K, &[80, 82]),
    (DType::Q3K, &[108]),
    (DType::Q4K, &[0, 2]),
    (DType::Q5K, &[0, 2]),
    (DType::Q6K, &[208]),
];

/// Rows of `columns` elements whose bytes come from `byte`, the 16-bit floats among them from `half`.
fn rows(
    (dtype, halves): (DType, &[usize]),
    rows: usize,
    columns: usize,
    mut byte: impl FnMut() -> u8,
    mut half: impl FnMut() -> f32,
) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..rows * columns / dtype.block_len() {
        let start = bytes.len();
        bytes.extend((0..dtype.block_bytes()).map(|_| byte()));
        for at in halves {
            bytes[start + at..][..2].copy_from_slice(&half::f16::from_f32(half()).to_le_bytes());
        }
    }
    bytes
}

/// xorshift64*: as random as the tests need.
fn random(state: &mut u64) -> u64 {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32
}

fn random_float(state: &mut u64) -> f32 {
    random(state) as f32 / 2f32.powi(31) - 1.0
}

/// Checks all instruction sets; the result may be off by what rounding the vector to 8 bits moves it, at worst.
fn check(dtype: DType, weights: &[u8], x: &[f32]) {
    let count = weights.len() / dtype.row_len(x.len() as u64).unwrap() as usize;
    let mut dense = vec![0.0; count * x.len()];
    dequantize(dtype, weights, &mut dense);
    let activations = Activations::quantize(x);
    let portable = *Isa::available().last().unwrap();
    let mut reference = vec![0.0; count];
    dot_rows(portable, dtype, weights, &activations, &mut reference);
    for isa in Isa::available() {
        let mut out = vec![f32::NAN; count];
        dot_rows(isa, dtype, weights, &activations, &mut out);
        for (r, w) in dense.chunks(x.len()).enumerate() {
            let exact: f64 = w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
            let mass: f64 = w.iter().zip(x).map(|(w, x)| f64::from(w * x).abs()).sum();
            let rounding: f64 = w
                .chunks(GROUP)
                .zip(x.chunks(GROUP))
                .map(|(w, x)| {
                    let step = x.iter().fold(0f32, |m, v| m.max(v.abs())) / 127.0;
                    0.5001 * f64::from(step) * w.iter().map(|w| f64::from(w.abs())).sum::<f64>()
                })
                .sum();
            let (got, error) = (out[r], (f64::from(out[r]) - exact).abs());
            let name = format!("{dtype} on {}, {} columns, row {r}", isa.name(), x.len());
            assert!(error <= rounding + 1e-5 * mass, "{name}: {got} for {exact}, allowed {rounding}");
            // Codes count from 0, not from the format's zero, in the sums that the instruction sets form.
            let scale: f64 = w.iter().map(|w| f64::from(w.abs())).fold(0.0, f64::max) * x.len() as f64;
            let difference = f64::from((got - reference[r]).abs());
            assert!(difference <= 2e-6 * (mass + scale), "{name}: {got}, portable {}", reference[r]);
        }
    }
}

#[test]
fn random_rows() {
    let mut state = 2407;
    for &format in SCALE_BYTES {
        for columns in [32, 64, 224, 256, 288, 512, 576, 768, 896, 1536] {
            if columns % format.0.block_len() != 0 {
                continue;
            }
            let mut halves = 1;
            let weights = rows(format, 5, columns, || random(&mut state) as u8, || 1e-2 * random_float(&mut halves));
            let x: Vec<f32> = (0..columns).map(|_| random_float(&mut state)).collect();
            check(format.0, &weights, &x);
        }
    }
}

/// Every code and every activation as large as it gets, in both signs: nothing saturates on the way.
#[test]
fn extreme_codes_and_activations() {
    for &format in SCALE_BYTES {
        for byte in [0x00, 0x7f, 0x80, 0x81, 0xff] {
            for x in [1.0, -1.0] {
                let weights = rows(format, 1, 2 * TILE, || byte, || 1.0);
                check(format.0, &weights, &[x; 2 * TILE]);
            }
        }
    }
}

#[test]
fn float_rows_match_f64() {
    let mut state = 1;
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        for columns in [1, 7, 63, 64, 65, 200, 1000] {
            let weights: Vec<u8> = (0..3 * columns)
                .map(|_| random_float(&mut state))
                .flat_map(|v| match dtype {
                    DType::F32 => v.to_le_bytes().to_vec(),
                    DType::F16 => half::f16::from_f32(v).to_le_bytes().to_vec(),
                    _ => half::bf16::from_f32(v).to_le_bytes().to_vec(),
                })
                .collect();
            let x: Vec<f32> = (0..columns).map(|_| random_float(&mut state)).collect();
            let mut dense = vec![0.0; 3 * columns];
            dequantize(dtype, &weights, &mut dense);
            for isa in Isa::available() {
                let mut out = [f32::NAN; 3];
                dot_float_rows(isa, dtype, &weights, &x, &mut out);
                for (out, w) in out.iter().zip(dense.chunks(columns)) {
                    let exact: f64 = w.iter().zip(&x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
                    let error = (f64::from(*out) - exact).abs();
                    assert!(error <= 1e-6 * columns as f64, "{dtype} on {}: {out} for {exact}", isa.name());
                }
            }
        }
    }
}

#[test]
fn a_nan_in_the_vector_shows_in_every_product() {
    for &format in SCALE_BYTES {
        let weights = rows(format, 2, 512, || 0x35, || 1.0);
        let mut x = [1.0; 512];
        x[300] = f32::NAN;
        for isa in Isa::available() {
            let mut out = [0.0; 2];
            dot_rows(isa, format.0, &weights, &Activations::quantize(&x), &mut out);
            assert!(out.iter().all(|v| v.is_nan()), "{} on {}", format.0, isa.name());
        }
    }
}

//! AVX2: `vpmaddubsw` adds pairs of products of an unsigned and a signed byte into 16-bit lanes, `vpmaddwd` with ones
//! pairs of those into 32-bit lanes, so 32 elements, two groups, at a time. The 16-bit sums would saturate from codes of
//! 129 on: signed codes (`ZERO` 128) are split into magnitude, at most 128, and sign, which moves to the other factor.
use std::arch::x86_64::*;

use super::Accumulator;
use crate::quant::activations::ActivationTile;
use crate::quant::tile::{Format, GROUPS, Tile};

/// # Safety
/// See [`super::rows`].
#[target_feature(enable = "avx2,fma")]
pub(super) fn rows<F: Format>(weights: &[u8], row_bytes: usize, x: &[ActivationTile], out: &mut [f32]) {
    // SAFETY: this function is compiled for the instruction set, so whoever may call it has it.
    unsafe { super::rows::<F, Sum>(weights, row_bytes, x, out) }
}

pub(super) struct Sum {
    products: [__m256; 2],
    offsets: __m256,
}

/// The scales of a tile, where they can be fetched one by one.
#[repr(align(32))]
struct Scales([f32; GROUPS]);

impl Accumulator for Sum {
    #[inline(always)]
    unsafe fn new() -> Self {
        // SAFETY: see the trait.
        unsafe { Self { products: [_mm256_setzero_ps(); 2], offsets: _mm256_setzero_ps() } }
    }

    #[inline(always)]
    unsafe fn add<F: Format>(&mut self, weights: &Tile, x: &ActivationTile) {
        let mut scales = Scales([0.0; GROUPS]);
        // SAFETY: see the trait; a tile has 8 vectors of codes and two each of scales, mins and sums, aligned to 64 bytes.
        unsafe {
            for i in [0, 8] {
                let w = _mm256_load_ps(weights.scales.as_ptr().add(i));
                _mm256_store_ps(
                    scales.0.as_mut_ptr().add(i),
                    _mm256_mul_ps(w, _mm256_load_ps(x.scales.as_ptr().add(i))),
                );
                let sums = _mm256_load_ps(x.sums.as_ptr().add(i));
                if F::ZERO == 0 {
                    self.offsets = _mm256_fmadd_ps(_mm256_load_ps(weights.mins.as_ptr().add(i)), sums, self.offsets);
                } else if F::ZERO != 128 {
                    let zero = _mm256_set1_ps(f32::from(F::ZERO));
                    self.offsets = _mm256_fmadd_ps(_mm256_mul_ps(w, zero), sums, self.offsets);
                }
            }
            for i in 0..8 {
                let w = _mm256_load_si256(weights.codes.as_ptr().cast::<__m256i>().add(i));
                let x = _mm256_load_si256(x.codes.as_ptr().cast::<__m256i>().add(i));
                let pairs = if F::ZERO == 128 {
                    let w = _mm256_xor_si256(w, _mm256_set1_epi8(-128));
                    _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w))
                } else {
                    _mm256_maddubs_epi16(w, x)
                };
                let sums = _mm256_cvtepi32_ps(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
                let scale = _mm256_set_m128(_mm_set1_ps(scales.0[2 * i + 1]), _mm_set1_ps(scales.0[2 * i]));
                let product = &mut self.products[i % 2];
                *product = _mm256_fmadd_ps(sums, scale, *product);
            }
        }
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        let [a, b] = self.products;
        // SAFETY: see the trait.
        unsafe {
            let eight = _mm256_sub_ps(_mm256_add_ps(a, b), self.offsets);
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }
}

//! AVX-512 VNNI: `vpdpbusd` adds four products of an unsigned and a signed byte to each of sixteen 32-bit lanes, so 64
//! elements, four groups, at a time. Four neighbouring lanes are a group and take its scale.
use std::arch::x86_64::*;

use super::Accumulator;
use crate::quant::activations::ActivationTile;
use crate::quant::tile::{Format, Tile};

/// # Safety
/// See [`super::rows`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma")]
pub(super) fn rows<F: Format>(weights: &[u8], row_bytes: usize, x: &[ActivationTile], out: &mut [f32]) {
    // SAFETY: this function is compiled for the instruction set, so whoever may call it has it.
    unsafe { super::rows::<F, Sum>(weights, row_bytes, x, out) }
}

pub(super) struct Sum {
    products: [__m512; 2],
    offsets: __m512,
}

impl Accumulator for Sum {
    #[inline(always)]
    unsafe fn new() -> Self {
        // SAFETY: see the trait.
        unsafe { Self { products: [_mm512_setzero_ps(); 2], offsets: _mm512_setzero_ps() } }
    }

    #[inline(always)]
    unsafe fn add<F: Format>(&mut self, weights: &Tile, x: &ActivationTile) {
        // SAFETY: see the trait; a tile has 4 vectors of codes and one each of scales, mins and sums, aligned to 64 bytes.
        unsafe {
            let scales = _mm512_load_ps(weights.scales.as_ptr());
            let offsets = if F::ZERO == 0 {
                _mm512_load_ps(weights.mins.as_ptr())
            } else {
                _mm512_mul_ps(scales, _mm512_set1_ps(f32::from(F::ZERO)))
            };
            self.offsets = _mm512_fmadd_ps(offsets, _mm512_load_ps(x.sums.as_ptr()), self.offsets);
            let scales = _mm512_mul_ps(scales, _mm512_load_ps(x.scales.as_ptr()));
            // Group of each lane.
            let mut groups = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
            for i in 0..4 {
                let w = _mm512_load_si512(weights.codes.as_ptr().cast::<__m512i>().add(i));
                let x = _mm512_load_si512(x.codes.as_ptr().cast::<__m512i>().add(i));
                let sums = _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(_mm512_setzero_si512(), w, x));
                let product = &mut self.products[i % 2];
                *product = _mm512_fmadd_ps(sums, _mm512_permutexvar_ps(groups, scales), *product);
                groups = _mm512_add_epi32(groups, _mm512_set1_epi32(4));
            }
        }
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        let [a, b] = self.products;
        // SAFETY: see the trait.
        unsafe { _mm512_reduce_add_ps(_mm512_sub_ps(_mm512_add_ps(a, b), self.offsets)) }
    }
}

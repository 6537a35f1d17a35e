//! AVX-512 VNNI: `vpdpbusd` adds four products of an unsigned and a signed byte to each of sixteen 32-bit lanes, so 64
//! elements, four groups, at a time. Four neighbouring lanes are a group and take its scale.
use std::arch::x86_64::*;
use std::mem::transmute;

use super::Simd;
use crate::quant::activations::ActivationTile;
use crate::quant::tile::{Format, GROUP, TILE, Tile};

#[derive(Clone, Copy)]
pub(in crate::quant) struct Avx512(());

impl Avx512 {
    /// # Safety
    /// The processor must have AVX-512 F, BW, VL and VNNI, AVX2 and FMA.
    #[inline(always)]
    pub(in crate::quant) unsafe fn new() -> Self {
        Self(())
    }
}

pub(in crate::quant) struct Sum {
    products: [__m512; 2],
    offsets: __m512,
}

impl Simd for Avx512 {
    type Sum = Sum;

    #[inline(always)]
    fn zero(self) -> Sum {
        // SAFETY: `self` exists.
        let zero = unsafe { _mm512_setzero_ps() };
        Sum { products: [zero; 2], offsets: zero }
    }

    #[inline(always)]
    fn add<F: Format>(self, sum: &mut Sum, weights: &Tile, x: &ActivationTile) {
        // SAFETY: `self` exists; tiles have 4 vectors of codes and one each of scales, mins and sums, aligned to 64 bytes.
        unsafe {
            let scales = _mm512_load_ps(weights.scales.as_ptr());
            let offsets = if F::ZERO == 0 {
                _mm512_load_ps(weights.mins.as_ptr())
            } else {
                _mm512_mul_ps(scales, _mm512_set1_ps(f32::from(F::ZERO)))
            };
            sum.offsets = _mm512_fmadd_ps(offsets, _mm512_load_ps(x.sums.as_ptr()), sum.offsets);
            let scales = _mm512_mul_ps(scales, _mm512_load_ps(x.scales.as_ptr()));
            // The group of each lane.
            let mut groups = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
            for i in 0..4 {
                let w = _mm512_load_si512(weights.codes.as_ptr().cast::<__m512i>().add(i));
                let x = _mm512_load_si512(x.codes.as_ptr().cast::<__m512i>().add(i));
                let sums = _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(_mm512_setzero_si512(), w, x));
                let product = &mut sum.products[i % 2];
                *product = _mm512_fmadd_ps(sums, _mm512_permutexvar_ps(groups, scales), *product);
                groups = _mm512_add_epi32(groups, _mm512_set1_epi32(4));
            }
        }
    }

    #[inline(always)]
    fn total(self, sum: Sum) -> f32 {
        let [a, b] = sum.products;
        // SAFETY: `self` exists.
        unsafe { _mm512_reduce_add_ps(_mm512_sub_ps(_mm512_add_ps(a, b), sum.offsets)) }
    }

    #[inline(always)]
    fn elements<F: Format>(self, tile: &Tile, out: &mut [f32; TILE]) {
        let groups = tile.codes.as_chunks::<GROUP>().0.iter().zip(out.as_chunks_mut::<GROUP>().0);
        for ((codes, out), (scale, min)) in groups.zip(tile.scales.iter().zip(&tile.mins)) {
            // SAFETY: `self` exists; there are 16 codes to load and 16 floats to store.
            unsafe {
                let codes = _mm512_cvtepu8_epi32(_mm_loadu_si128(codes.as_ptr().cast()));
                let codes = _mm512_sub_epi32(codes, _mm512_set1_epi32(F::ZERO.into()));
                let product = _mm512_mul_ps(_mm512_cvtepi32_ps(codes), _mm512_set1_ps(*scale));
                let value = if F::ZERO == 0 { _mm512_sub_ps(product, _mm512_set1_ps(*min)) } else { product };
                _mm512_storeu_ps(out.as_mut_ptr(), value);
            }
        }
    }

    #[inline(always)]
    fn set_bits(self, bytes: [u8; 32], position: u32, bits: [u8; 4]) -> [u8; 32] {
        // SAFETY: `self` exists; a vector and the array of its bytes are of one size and have no invalid values.
        unsafe {
            let bytes = transmute::<[u8; 32], __m256i>(bytes);
            let set = _mm256_maskz_set1_epi8(u32::from_le_bytes(bits), (1 << position) as i8);
            transmute::<__m256i, [u8; 32]>(_mm256_or_si256(bytes, set))
        }
    }
}

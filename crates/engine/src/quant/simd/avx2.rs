//! AVX2: `vpmaddubsw` adds pairs of products of an unsigned and a signed byte into 16-bit lanes, `vpmaddwd` with ones
//! pairs of those into 32-bit lanes, so 32 elements, two groups, at a time. The 16-bit sums would saturate from codes of
//! 129 on: signed codes (`ZERO` 128) are split into magnitude, at most 128, and sign, which moves to the other factor.
use std::arch::x86_64::*;
use std::mem::transmute;

use super::Simd;
use crate::quant::activations::ActivationTile;
use crate::quant::tile::{Format, GROUPS, Tile};

#[derive(Clone, Copy)]
pub(in crate::quant) struct Avx2(());

impl Avx2 {
    /// # Safety
    /// The processor must have AVX2 and FMA.
    #[inline(always)]
    pub(in crate::quant) unsafe fn new() -> Self {
        Self(())
    }
}

pub(in crate::quant) struct Sum {
    products: [__m256; 2],
    offsets: __m256,
}

/// The scales of a tile, where they can be fetched one by one.
#[repr(align(32))]
struct Scales([f32; GROUPS]);

impl Simd for Avx2 {
    type Sum = Sum;

    #[inline(always)]
    fn zero(self) -> Sum {
        // SAFETY: `self` exists.
        let zero = unsafe { _mm256_setzero_ps() };
        Sum { products: [zero; 2], offsets: zero }
    }

    #[inline(always)]
    fn add<F: Format>(self, sum: &mut Sum, weights: &Tile, x: &ActivationTile) {
        let mut scales = Scales([0.0; GROUPS]);
        // SAFETY: `self` exists; tiles have 8 vectors of codes and two each of scales, mins and sums, aligned to 64 bytes.
        unsafe {
            for i in [0, 8] {
                let w = _mm256_load_ps(weights.scales.as_ptr().add(i));
                _mm256_store_ps(
                    scales.0.as_mut_ptr().add(i),
                    _mm256_mul_ps(w, _mm256_load_ps(x.scales.as_ptr().add(i))),
                );
                let sums = _mm256_load_ps(x.sums.as_ptr().add(i));
                if F::ZERO == 0 {
                    sum.offsets = _mm256_fmadd_ps(_mm256_load_ps(weights.mins.as_ptr().add(i)), sums, sum.offsets);
                } else if F::ZERO != 128 {
                    let zero = _mm256_set1_ps(f32::from(F::ZERO));
                    sum.offsets = _mm256_fmadd_ps(_mm256_mul_ps(w, zero), sums, sum.offsets);
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
                let product = &mut sum.products[i % 2];
                *product = _mm256_fmadd_ps(sums, scale, *product);
            }
        }
    }

    #[inline(always)]
    fn total(self, sum: Sum) -> f32 {
        let [a, b] = sum.products;
        // SAFETY: `self` exists.
        unsafe {
            let eight = _mm256_sub_ps(_mm256_add_ps(a, b), sum.offsets);
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }
    #[inline(always)]
    fn set_bits(self, bytes: [u8; 32], position: u32, bits: [u8; 4]) -> [u8; 32] {
        // SAFETY: `self` exists; a vector and the array of its bytes are of one size and have no invalid values.
        unsafe {
            // Each of the four bytes of bits eight times, to test one bit in each copy.
            let copy = _mm256_setr_epi64x(0, 0x0101_0101_0101_0101, 0x0202_0202_0202_0202, 0x0303_0303_0303_0303);
            let copies = _mm256_shuffle_epi8(_mm256_set1_epi32(i32::from_le_bytes(bits)), copy);
            let bit = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
            let set = _mm256_cmpeq_epi8(_mm256_and_si256(copies, bit), bit);
            let set = _mm256_and_si256(set, _mm256_set1_epi8((1 << position) as i8));
            transmute::<__m256i, [u8; 32]>(_mm256_or_si256(transmute::<[u8; 32], __m256i>(bytes), set))
        }
    }
}

//! NEON: 16 elements, a group, at a time. `smull` and `smlal` multiply signed bytes into 16-bit lanes and add two
//! products, which fits (2 x 128 x 127 < 2^15); `saddlp` adds pairs into 32-bit lanes. Codes are taken as signed: they
//! are below 128, or (`ZERO` 128) signed with the top bit flipped.
use std::arch::aarch64::*;

use super::Simd;
use crate::quant::activations::ActivationTile;
use crate::quant::tile::{Format, GROUP, GROUPS, Tile};

#[derive(Clone, Copy)]
pub(in crate::quant) struct Neon(());

impl Neon {
    /// # Safety
    /// The processor must have NEON.
    #[inline(always)]
    pub(in crate::quant) unsafe fn new() -> Self {
        Self(())
    }
}

pub(in crate::quant) struct Sum {
    products: [float32x4_t; 4],
    offsets: float32x4_t,
}

impl Simd for Neon {
    type Sum = Sum;

    #[inline(always)]
    fn zero(self) -> Sum {
        // SAFETY: `self` exists.
        let zero = unsafe { vdupq_n_f32(0.0) };
        Sum { products: [zero; 4], offsets: zero }
    }

    #[inline(always)]
    fn add<F: Format>(self, sum: &mut Sum, weights: &Tile, x: &ActivationTile) {
        // SAFETY: `self` exists; tiles have 16 vectors of codes and four each of scales, mins and sums.
        unsafe {
            for quad in 0..GROUPS / 4 {
                let at = 4 * quad;
                let w = vld1q_f32(weights.scales.as_ptr().add(at));
                let scales = vmulq_f32(w, vld1q_f32(x.scales.as_ptr().add(at)));
                let sums = vld1q_f32(x.sums.as_ptr().add(at));
                if F::ZERO == 0 {
                    sum.offsets = vfmaq_f32(sum.offsets, vld1q_f32(weights.mins.as_ptr().add(at)), sums);
                } else if F::ZERO != 128 {
                    sum.offsets = vfmaq_f32(sum.offsets, vmulq_n_f32(w, f32::from(F::ZERO)), sums);
                }
                let group = |i: usize| self.group_sum::<F>(weights, x, at + i);
                let [a, b, c, d] = &mut sum.products;
                *a = vfmaq_laneq_f32::<0>(*a, group(0), scales);
                *b = vfmaq_laneq_f32::<1>(*b, group(1), scales);
                *c = vfmaq_laneq_f32::<2>(*c, group(2), scales);
                *d = vfmaq_laneq_f32::<3>(*d, group(3), scales);
            }
        }
    }

    #[inline(always)]
    fn total(self, sum: Sum) -> f32 {
        let [a, b, c, d] = sum.products;
        // SAFETY: `self` exists.
        unsafe { vaddvq_f32(vsubq_f32(vaddq_f32(vaddq_f32(a, b), vaddq_f32(c, d)), sum.offsets)) }
    }
}

impl Neon {
    /// The sum of a group's products of codes, in four parts.
    #[inline(always)]
    fn group_sum<F: Format>(self, weights: &Tile, x: &ActivationTile, group: usize) -> float32x4_t {
        let (w, x) = (&weights.codes[group * GROUP..][..GROUP], &x.codes[group * GROUP..][..GROUP]);
        // SAFETY: `self` exists; both slices have the 16 bytes of a vector.
        unsafe {
            let w = vld1q_u8(w.as_ptr());
            let w = vreinterpretq_s8_u8(if F::ZERO == 128 { veorq_u8(w, vdupq_n_u8(128)) } else { w });
            let x = vld1q_s8(x.as_ptr());
            let products = vmull_s8(vget_low_s8(w), vget_low_s8(x));
            let products = vmlal_s8(products, vget_high_s8(w), vget_high_s8(x));
            vcvtq_f32_s32(vpaddlq_s16(products))
        }
    }
}

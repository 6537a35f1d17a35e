//! Rounding f32 to bf16, to nearest, ties to even.

use half::bf16;

/// Rounds every value of `from` into `to`, with AVX-512 where there is an instruction for it. That instruction takes subnormal
/// numbers (below 1.2e-38) for zero.
///
/// # Panics
///
/// When the lengths differ.
pub fn round(from: &[f32], to: &mut [bf16]) {
    assert_eq!(from.len(), to.len());
    #[cfg(target_arch = "x86_64")]
    if super::kernel::avx512_bf16_is_available() {
        // SAFETY: just detected.
        return unsafe { round_avx512(from, to) };
    }
    round_portable(from, to);
}

fn round_portable(from: &[f32], to: &mut [bf16]) {
    for (from, to) in from.iter().zip(to) {
        let bits = from.to_bits();
        // Adding one less than half of the last kept bit, or half when that bit is odd, carries exactly when rounding goes up. A NaN
        // could become infinity that way: it keeps its upper half, made quiet.
        let rounded = (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16;
        let quiet = (bits >> 16) as u16 | 0x40;
        *to = bf16::from_bits(if from.is_nan() { quiet } else { rounded });
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::round_32;
#[cfg(target_arch = "x86_64")]
use x86::round_avx512;

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::mem::transmute;

    use half::bf16;

    /// # Safety
    ///
    /// The machine has AVX-512 F, BW and BF16.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub unsafe fn round_avx512(from: &[f32], to: &mut [bf16]) {
        for (from, to) in from.chunks(32).zip(to.chunks_mut(32)) {
            // SAFETY: the features are there; the mask covers the values of this chunk.
            unsafe { _mm512_mask_storeu_epi16(to.as_mut_ptr().cast(), mask(to.len()), round_32(from)) };
        }
    }

    /// The first 32 values as bf16 bits; missing ones are zeros.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub fn round_32(values: &[f32]) -> __m512i {
        let start = values.as_ptr();
        // SAFETY: 32 values are read whole, fewer under a mask. The last transmute is between types of 512 bits without invalid
        // values.
        unsafe {
            let (low, high) = if values.len() >= 32 {
                (_mm512_loadu_ps(start), _mm512_loadu_ps(start.add(16)))
            } else {
                let mask = mask(values.len());
                let high = start.wrapping_add(16);
                (_mm512_maskz_loadu_ps(mask as u16, start), _mm512_maskz_loadu_ps((mask >> 16) as u16, high))
            };
            transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low))
        }
    }

    /// The lowest `len` of 32 bits.
    fn mask(len: usize) -> u32 {
        ((1u64 << len) - 1) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(bits: &[u32]) -> Result<(), TestCaseError> {
        let from: Vec<f32> = bits.iter().map(|&bits| f32::from_bits(bits)).collect();
        let mut portable = vec![bf16::ZERO; from.len()];
        let mut any = portable.clone();
        round_portable(&from, &mut portable);
        round(&from, &mut any);
        for (i, &from) in from.iter().enumerate() {
            let expected = bf16::from_f32(from);
            prop_assert_eq!(portable[i].to_bits(), expected.to_bits(), "{:x}", from.to_bits());
            if from.is_subnormal() {
                prop_assert!(any[i] == expected || any[i] == bf16::ZERO);
            } else {
                prop_assert_eq!(any[i].to_bits(), expected.to_bits(), "{:x}", from.to_bits());
            }
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn rounds_as_the_half_crate_does(bits in prop::collection::vec(any::<u32>(), 0..100)) {
            check(&bits)?;
        }

        #[test]
        fn ties_go_to_even(upper in prop::collection::vec(any::<u16>(), 1..70), below in 0u32..3) {
            check(&upper.iter().map(|&upper| (u32::from(upper) << 16) + 0x7fff + below).collect::<Vec<_>>())?;
        }
    }

    #[test]
    fn special_values_survive() {
        check(&[0, 0x8000_0000, 0x7f80_0000, 0xff80_0000, 0x7f80_0001, 0xffff_ffff, 0x7f7f_ffff, 0x0080_0000]).unwrap();
    }
}

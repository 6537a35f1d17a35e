//! The vector operations that the CPU kernels are written in, and one implementation a family of chips.
//!
//! The kernels ([`super::panel`]) are generic over [`Simd`] and always inlined into a function that switches the instruction set
//! on; which one runs is decided once, at run time, by [`Isa::detect`].

use std::sync::OnceLock;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::Avx512;
#[cfg(target_arch = "aarch64")]
pub(crate) use neon::Neon;
pub(crate) use portable::Portable;

/// A vector of `LANES` f32 and the operations the kernels need.
///
/// # Safety
/// Every method requires that the chip has the instruction set of the implementing type, and that pointers are valid for `LANES`
/// elements (no alignment asked).
pub(crate) trait Simd {
    /// The register type.
    type V: Copy;
    /// f32 values in a register.
    const LANES: usize;
    /// Registers side by side in the inner loop of a matrix product: with 4 rows, as many accumulators as the register file holds.
    const WIDE: usize;

    unsafe fn splat(x: f32) -> Self::V;
    unsafe fn load(from: *const f32) -> Self::V;
    unsafe fn store(to: *mut f32, x: Self::V);
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// Nearest integer, ties to even.
    unsafe fn round(a: Self::V) -> Self::V;
    /// `2^a` of whole numbers `-127 ..= 127`; -127 gives zero.
    unsafe fn pow2_whole(a: Self::V) -> Self::V;

    /// `LANES` f16 values, given as bits, in f32.
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self::V {
        // SAFETY: the caller vouches for the instruction set and for LANES values, of which there are at most 16.
        unsafe {
            let mut lanes = [0.0; 16];
            for (i, lane) in lanes[..Self::LANES].iter_mut().enumerate() {
                *lane = f16_to_f32(*from.add(i));
            }
            Self::load(lanes.as_ptr())
        }
    }
    /// `LANES` bf16 values, given as bits, in f32.
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self::V {
        // SAFETY: as above.
        unsafe {
            let mut lanes = [0.0; 16];
            for (i, lane) in lanes[..Self::LANES].iter_mut().enumerate() {
                *lane = f32::from_bits(u32::from(*from.add(i)) << 16);
            }
            Self::load(lanes.as_ptr())
        }
    }

    /// `2^x` for `x <= 127`, relative error below 2e-7; zero below -126.5, so also for negative infinity.
    #[inline(always)]
    unsafe fn exp2(x: Self::V) -> Self::V {
        // SAFETY: the caller vouches for the instruction set.
        unsafe {
            let x = Self::max(x, Self::splat(-127.0));
            let whole = Self::round(x);
            let f = Self::sub(x, whole);
            // Taylor series of 2^f = e^(f ln 2) on [-1/2, 1/2]; the first dropped term is 1.2e-7 at the ends.
            let mut p = Self::splat(1.540_353e-4);
            for c in [1.333_355_8e-3, 9.618_129e-3, 5.550_411e-2, 2.402_265e-1, 6.931_472e-1, 1.0] {
                p = Self::fma(p, f, Self::splat(c));
            }
            Self::mul(p, Self::pow2_whole(whole))
        }
    }
}

/// The value of f16 bits, exactly, without a branch or a call: loops over it become vectors.
#[inline(always)]
fn f16_to_f32(bits: u16) -> f32 {
    let magnitude = u32::from(bits & 0x7fff) << 13;
    // Shifted into place the exponent is 112 too small, for normal numbers and subnormal ones alike.
    let finite = (f32::from_bits(magnitude) * f32::from_bits((127 + 112) << 23)).to_bits();
    let special = magnitude | 0x7f80_0000;
    let value = if bits & 0x7c00 == 0x7c00 { special } else { finite };
    f32::from_bits(value | u32::from(bits & 0x8000) << 16)
}

/// The instruction sets the kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isa {
    /// AMX tiles: products in bf16, the rest in f32 on AVX-512.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    Amx,
    /// 16 lanes.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// 8 lanes, with FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// 4 lanes.
    #[cfg(target_arch = "aarch64")]
    Neon,
    /// Plain arrays; whatever the compiler's baseline makes of them.
    Portable,
}

impl Isa {
    /// Those this chip can run, fastest first.
    pub fn available() -> Vec<Isa> {
        let mut all = vec![];
        all.extend(Self::bf16());
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") {
                all.push(Isa::Avx512);
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
                all.push(Isa::Avx2);
            }
        }
        #[cfg(target_arch = "aarch64")]
        all.push(Isa::Neon);
        all.push(Isa::Portable);
        all
    }

    /// The fastest one that computes in f32 throughout.
    pub fn detect() -> Isa {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| {
            let bf16 = Self::bf16();
            *Self::available().iter().find(|&&isa| Some(isa) != bf16).expect("the portable one always runs")
        })
    }

    /// This one, or if it multiplies in bf16 the fastest that does not.
    pub(crate) fn in_f32(self) -> Isa {
        if Some(self) == Self::bf16() { Self::detect() } else { self }
    }

    /// One whose products are in bf16, if this chip has such a thing: several times faster than f32.
    pub fn bf16() -> Option<Isa> {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        if crate::cpu::tiles::available() {
            return Some(Isa::Amx);
        }
        None
    }

    /// Lanes that panels of this instruction set come in.
    pub(crate) fn lane_block(self) -> usize {
        match self {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Isa::Amx => 32,
            _ => 16,
        }
    }

    /// Name for people.
    pub fn name(self) -> &'static str {
        match self {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Isa::Amx => "AMX",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => "AVX-512",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => "AVX2",
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => "NEON",
            Isa::Portable => "portable",
        }
    }
}

/// Runs `$body` with `$S` standing for the vector type of `$isa`, inside a function that has the instruction set switched on.
///
/// The generic functions called by `$body` must be `#[inline(always)]`, or their vector operations become calls.
macro_rules! with_simd {
    ($(#[$doc:meta])* $vis:vis unsafe fn $name:ident<$S:ident>($($arg:ident: $ty:ty),* $(,)?) $body:block) => {
        $(#[$doc])*
        $vis unsafe fn $name(isa: $crate::cpu::simd::Isa, $($arg: $ty),*) {
            use $crate::cpu::simd::Isa;
            #[inline(always)]
            unsafe fn body<$S: $crate::cpu::simd::Simd>($($arg: $ty),*) $body
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f")]
            unsafe fn avx512($($arg: $ty),*) {
                // SAFETY: same contract as the caller's; the instruction set is on.
                unsafe { body::<$crate::cpu::simd::Avx512>($($arg),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            unsafe fn avx2($($arg: $ty),*) {
                // SAFETY: as above.
                unsafe { body::<$crate::cpu::simd::Avx2>($($arg),*) }
            }
            match isa {
                // SAFETY: `Isa` values come from `Isa::available`, which asked the chip; AMX comes with AVX-512.
                #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
                Isa::Amx => unsafe { avx512($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 => unsafe { avx512($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => unsafe { avx2($($arg),*) },
                // SAFETY: NEON is part of every aarch64 chip.
                #[cfg(target_arch = "aarch64")]
                Isa::Neon => unsafe { body::<$crate::cpu::simd::Neon>($($arg),*) },
                // SAFETY: needs no instruction set beyond the compiler's baseline.
                Isa::Portable => unsafe { body::<$crate::cpu::simd::Portable>($($arg),*) },
            }
        }
    };
}
pub(crate) use with_simd;

#[cfg(test)]
mod tests {
    use super::*;

    with_simd! {
        unsafe fn exp2_all<S>(xs: &mut [f32]) {
            for chunk in xs.chunks_exact_mut(S::LANES) {
                // SAFETY: a chunk holds LANES elements.
                unsafe { S::store(chunk.as_mut_ptr(), S::exp2(S::load(chunk.as_ptr()))) };
            }
        }
    }

    with_simd! {
        unsafe fn load_halves<S>(from: &[u16], f16s: &mut [f32], bf16s: &mut [f32]) {
            for i in (0..from.len()).step_by(S::LANES) {
                // SAFETY: the slices have the same length, a multiple of LANES.
                unsafe {
                    S::store(f16s.as_mut_ptr().add(i), S::load_f16(from.as_ptr().add(i)));
                    S::store(bf16s.as_mut_ptr().add(i), S::load_bf16(from.as_ptr().add(i)));
                }
            }
        }
    }

    #[test]
    fn every_half_is_loaded_exactly_on_every_isa() {
        let bits: Vec<u16> = (0..=u16::MAX).collect();
        for isa in Isa::available() {
            let (mut f16s, mut bf16s) = (vec![0.0; bits.len()], vec![0.0; bits.len()]);
            // SAFETY: `isa` is available.
            unsafe { load_halves(isa, &bits, &mut f16s, &mut bf16s) };
            for ((&bits, &f), &b) in bits.iter().zip(&f16s).zip(&bf16s) {
                let same = |got: f32, want: f32| got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan();
                assert!(same(f, half::f16::from_bits(bits).to_f32()), "{} f16 {bits:#x}: {f}", isa.name());
                assert!(same(b, half::bf16::from_bits(bits).to_f32()), "{} bf16 {bits:#x}: {b}", isa.name());
            }
        }
    }

    #[test]
    fn exp2_is_accurate_on_every_isa() {
        for isa in Isa::available() {
            let mut xs: Vec<f32> = (0..16 * 4096).map(|i| -126.0 + i as f32 * (253.0 / 65536.0)).collect();
            let want: Vec<f64> = xs.iter().map(|&x| (x as f64).exp2()).collect();
            // SAFETY: `isa` is available.
            unsafe { exp2_all(isa, &mut xs) };
            for (got, want) in xs.iter().zip(want) {
                assert!((*got as f64 / want - 1.0).abs() < 4e-7, "{} {got} {want}", isa.name());
            }
            let mut edge = [f32::NEG_INFINITY, -1e30, -200.0, -126.6, 0.0, 1.0, -0.0, -1.0].repeat(2);
            // SAFETY: `isa` is available.
            unsafe { exp2_all(isa, &mut edge) };
            assert_eq!(edge[..8], [0.0, 0.0, 0.0, 0.0, 1.0, 2.0, 1.0, 0.5], "{}", isa.name());
        }
    }
}

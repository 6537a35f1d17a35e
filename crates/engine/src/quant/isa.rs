//! Instruction sets: which one to use, and how a function is compiled once for each.
use std::sync::OnceLock;

/// An instruction set that this processor has. That it exists only for such is what makes calling its kernels safe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Isa(pub(super) Kind);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// x86-64 with AVX-512 F, BW, VL and VNNI.
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
    /// x86-64 with AVX2 and FMA.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AArch64, which always has it.
    #[cfg(target_arch = "aarch64")]
    Neon,
    /// Plain Rust: everywhere, and what the others are tested against.
    Portable,
}

impl Isa {
    /// The best one this processor has.
    pub fn detect() -> Self {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| Self::available()[0])
    }

    /// All that this processor has, best first. Never empty.
    pub fn available() -> Vec<Self> {
        let mut kinds = Vec::new();
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512vnni")
            {
                kinds.push(Kind::Avx512Vnni);
            }
            kinds.push(Kind::Avx2);
        }
        #[cfg(target_arch = "aarch64")]
        kinds.push(Kind::Neon);
        kinds.push(Kind::Portable);
        kinds.into_iter().map(Self).collect()
    }

    /// Its usual name.
    pub fn name(self) -> &'static str {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512Vnni => "AVX-512 VNNI",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => "AVX2",
            #[cfg(target_arch = "aarch64")]
            Kind::Neon => "NEON",
            Kind::Portable => "portable",
        }
    }
}

/// Calls an `#[inline(always)]` function, compiled for an [`Isa`], with that instruction set's [`Simd`](super::simd::Simd)
/// as its first argument: `multiversion!(isa, [T: Bound] function::<T, _> => (argument: Type, ..))`. The brackets hold the
/// type parameter of the surrounding function, if there is one.
macro_rules! multiversion {
    ($isa:expr, [$($generic:ident: $bound:path)?] $body:expr => ($($arg:ident: $t:ty),*)) => {{
        use $crate::quant::isa::Kind;
        use $crate::quant::simd;
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma")]
        fn avx512<$($generic: $bound)?>($($arg: $t),*) {
            // SAFETY: this function is compiled for the instruction set, so whoever may call it has it.
            let simd = unsafe { simd::Avx512::new() };
            $body(simd, $($arg),*)
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma")]
        fn avx2<$($generic: $bound)?>($($arg: $t),*) {
            // SAFETY: as above.
            let simd = unsafe { simd::Avx2::new() };
            $body(simd, $($arg),*)
        }
        #[cfg(target_arch = "aarch64")]
        #[target_feature(enable = "neon")]
        fn neon<$($generic: $bound)?>($($arg: $t),*) {
            // SAFETY: as above.
            let simd = unsafe { simd::Neon::new() };
            $body(simd, $($arg),*)
        }
        match $isa.0 {
            // SAFETY: an `Isa` exists only where the processor has the instruction set.
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512Vnni => unsafe { avx512::<$($generic)?>($($arg),*) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => unsafe { avx2::<$($generic)?>($($arg),*) },
            // SAFETY: as above.
            #[cfg(target_arch = "aarch64")]
            Kind::Neon => unsafe { neon::<$($generic)?>($($arg),*) },
            Kind::Portable => $body(simd::Portable, $($arg),*),
        }
    }};
}
pub(super) use multiversion;

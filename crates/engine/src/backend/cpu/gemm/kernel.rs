//! Which kernels this machine has, and the choice among them.

use std::fmt;
use std::sync::OnceLock;

use speedread_attention::cpu::Isa;

/// How exactly a linear layer multiplies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// Activations and dequantised weights rounded to bf16, products summed in f32. Falls back to f32 on a machine that has no bf16
    /// instructions: [`Precision::kernel`] tells.
    #[default]
    Bf16,
    /// Everything in f32.
    F32,
}

impl Precision {
    /// The kernel that runs on this machine at this precision.
    pub fn kernel(self) -> Kernel {
        match self {
            Precision::Bf16 => best(),
            Precision::F32 => Kernel::F32,
        }
    }

    /// The instruction set of attention at this precision; `None` = the best that computes in f32.
    pub fn attention(self) -> Option<Isa> {
        match self {
            Precision::Bf16 => Isa::bf16(),
            Precision::F32 => None,
        }
    }
}

/// A way to multiply blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// The tile matrix unit of recent Xeons, on bf16.
    AmxBf16,
    /// The bf16 dot product of AVX-512: Zen 4 and later, Cooper Lake, and Xeons whose system keeps the matrix unit away.
    Avx512Bf16,
    /// f32 on any machine.
    F32,
}

/// Fastest first.
const ALL: [Kernel; 3] = [Kernel::AmxBf16, Kernel::Avx512Bf16, Kernel::F32];

impl Kernel {
    /// The kernels of this machine, fastest first; the last one is always [`Kernel::F32`].
    pub fn available() -> Vec<Kernel> {
        ALL.into_iter().filter(|kernel| kernel.is_available()).collect()
    }

    /// Whether this machine and its system allow it.
    pub fn is_available(self) -> bool {
        match self {
            Kernel::AmxBf16 => amx_is_available(),
            Kernel::Avx512Bf16 => avx512_bf16_is_available(),
            Kernel::F32 => true,
        }
    }

    /// A short name for reports.
    pub fn name(self) -> &'static str {
        match self {
            Kernel::AmxBf16 => "amx-bf16",
            Kernel::Avx512Bf16 => "avx512-bf16",
            Kernel::F32 => "f32",
        }
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

fn best() -> Kernel {
    static BEST: OnceLock<Kernel> = OnceLock::new();
    *BEST.get_or_init(|| ALL.into_iter().find(|kernel| kernel.is_available()).unwrap_or(Kernel::F32))
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn amx_is_available() -> bool {
    // Asks the system for tiles once; the answer includes the AVX-512 conversions to bf16 that packing uses.
    speedread_attention::cpu::tiles::available()
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
fn amx_is_available() -> bool {
    false
}

#[cfg(target_arch = "x86_64")]
pub(super) fn avx512_bf16_is_available() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512bf16")
}

#[cfg(not(target_arch = "x86_64"))]
fn avx512_bf16_is_available() -> bool {
    false
}

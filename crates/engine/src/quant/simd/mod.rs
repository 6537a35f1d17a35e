//! What an instruction set does its own way. A file each; [`dot`](super::dot) has the algorithm.
#[cfg(target_arch = "x86_64")]
pub(super) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(super) mod avx512;
#[cfg(target_arch = "aarch64")]
pub(super) mod neon;
mod portable;

pub(super) use portable::Portable;

use super::activations::ActivationTile;
use super::tile::{Format, Tile};

/// An instruction set. A value of the type is the promise that the processor has it, so the functions are safe; they are
/// `#[inline(always)]` and meant for callers that are compiled for the instruction set.
pub(super) trait Simd: Copy {
    /// A dot product under way.
    type Sum;

    /// An empty sum.
    fn zero(self) -> Self::Sum;

    /// Adds the product of two tiles.
    fn add<F: Format>(self, sum: &mut Self::Sum, weights: &Tile, x: &ActivationTile);

    /// The value of a sum.
    fn total(self, sum: Self::Sum) -> f32;

    /// Sets bit `position` of byte i where bit i of `bits` is set.
    #[inline(always)]
    fn set_bits(self, mut bytes: [u8; 32], position: u32, bits: [u8; 4]) -> [u8; 32] {
        for (bytes, bits) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(bits) {
            for (i, byte) in bytes.iter_mut().enumerate() {
                *byte |= (bits >> i & 1) << position;
            }
        }
        bytes
    }
}

//! What an instruction set does its own way. A file each; [`dot`](super::dot) has the algorithm.
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;

#[cfg(target_arch = "x86_64")]
pub(super) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(super) use avx512::Avx512;
#[cfg(target_arch = "aarch64")]
pub(super) use neon::Neon;
pub(super) use portable::Portable;

use super::activations::ActivationTile;
use super::tile::{Format, GROUP, TILE, Tile};

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

    /// The elements of a tile.
    ///
    /// All products are exact: a scale has 11 bits, times at most 8 of a second-level scale, and a code at most 5 beside
    /// its sign in those formats. Only subtracting a min rounds, once, as in ggml.
    #[inline(always)]
    fn elements<F: Format>(self, tile: &Tile, out: &mut [f32; TILE]) {
        let groups = out.as_chunks_mut::<GROUP>().0.iter_mut().zip(tile.codes.as_chunks::<GROUP>().0);
        for ((out, codes), (scale, min)) in groups.zip(tile.scales.iter().zip(&tile.mins)) {
            for (out, code) in out.iter_mut().zip(codes) {
                let product = scale * (i32::from(*code) - i32::from(F::ZERO)) as f32;
                *out = if F::ZERO == 0 { product - min } else { product };
            }
        }
    }

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

//! What every block format is unpacked to.
use super::simd::Simd;

/// Elements in a tile.
pub(super) const TILE: usize = 256;
/// Elements that share a scale and a min.
pub(super) const GROUP: usize = 16;
/// Groups in a tile.
pub(super) const GROUPS: usize = TILE / GROUP;

/// 256 consecutive elements of a row: element `i` is `scales[i / 16] * (codes[i] - F::ZERO) - mins[i / 16]`.
#[repr(C, align(64))]
pub(super) struct Tile {
    pub(super) codes: [u8; TILE],
    pub(super) scales: [f32; GROUPS],
    /// All zero in formats with a `ZERO`.
    pub(super) mins: [f32; GROUPS],
}

impl Tile {
    pub(super) const fn new() -> Self {
        Self { codes: [0; TILE], scales: [0.0; GROUPS], mins: [0.0; GROUPS] }
    }
}

/// A block format.
pub(super) trait Format {
    /// Elements in a block, a divisor of [`TILE`].
    const BLOCK_LEN: usize;
    /// Bytes of a block.
    const BLOCK_BYTES: usize;
    /// The code that stands for zero. 128 only in a format whose codes are signed bytes with the top bit flipped; at most
    /// 32 in the others, whose codes are below 64: that keeps 16-bit intermediate sums of products from overflowing.
    const ZERO: u8;
    /// Bytes of a whole tile.
    const TILE_BYTES: usize = TILE / Self::BLOCK_LEN * Self::BLOCK_BYTES;

    /// Unpacks one tile: `blocks` is a whole number of blocks, as many as a tile has or, at the end of a row, fewer.
    /// What no block covers gets the scale and min 0 and any codes.
    ///
    /// Implementations are `#[inline(always)]` plain loops over arrays: compiled once per instruction set, they
    /// vectorise for it. `simd` does what compilers vectorise badly.
    fn unpack<S: Simd>(simd: S, blocks: &[u8], tile: &mut Tile);
}

/// Calls a generic with the format of a block type; floats go to the last arm.
macro_rules! with_format {
    ($dtype:expr, $format:ident => $call:expr, $float:pat => $otherwise:expr) => {{
        use $crate::quant::{DType, k_formats, legacy_formats};
        match $dtype {
            DType::Q4_0 => {
                type $format = legacy_formats::Q4_0;
                $call
            }
            DType::Q4_1 => {
                type $format = legacy_formats::Q4_1;
                $call
            }
            DType::Q5_0 => {
                type $format = legacy_formats::Q5_0;
                $call
            }
            DType::Q5_1 => {
                type $format = legacy_formats::Q5_1;
                $call
            }
            DType::Q8_0 => {
                type $format = legacy_formats::Q8_0;
                $call
            }
            DType::Q2K => {
                type $format = k_formats::Q2K;
                $call
            }
            DType::Q3K => {
                type $format = k_formats::Q3K;
                $call
            }
            DType::Q4K => {
                type $format = k_formats::Q4K;
                $call
            }
            DType::Q5K => {
                type $format = k_formats::Q5K;
                $call
            }
            DType::Q6K => {
                type $format = k_formats::Q6K;
                $call
            }
            $float => $otherwise,
        }
    }};
}
pub(super) use with_format;

//! The block formats of 32 elements: Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0.
//!
//! A block is a scale of 16 bits, in the `_1` formats a min of 16 bits (to be added), in the 5-bit formats the 32 top bits,
//! and the codes: bytes, or nibbles of which the low ones are elements 0..16 and the high ones 16..32.
use super::float::f16_to_f32;
use super::simd::Simd;
use super::tile::{Format, TILE, Tile};

const BLOCK: usize = 32;
const BLOCKS: usize = TILE / BLOCK;

/// What differs between the formats of this file.
trait Block {
    /// Bytes of a block.
    const BYTES: usize;
    /// Whether a min follows the scale.
    const MIN: bool = false;
    /// Unpacks what follows scale and min.
    fn codes<S: Simd>(simd: S, payload: &[u8]) -> [u8; BLOCK];
}

/// Unpacks the codes of block `i`; returns its scale and its min.
#[inline(always)]
fn unpack_block<B: Block, S: Simd>(simd: S, blocks: &[u8], i: usize, tile: &mut Tile) -> [u16; 2] {
    let block = &blocks[i * B::BYTES..][..B::BYTES];
    let half = |at: usize| u16::from_le_bytes([block[at], block[at + 1]]);
    tile.codes.as_chunks_mut().0[i] = B::codes(simd, &block[if B::MIN { 4 } else { 2 }..]);
    [half(0), if B::MIN { half(2) } else { 0 }]
}

#[inline(always)]
fn unpack<B: Block, S: Simd>(simd: S, blocks: &[u8], tile: &mut Tile) {
    let halves = if blocks.len() == BLOCKS * B::BYTES {
        // Written out, because then, and only then, compilers keep a whole tile in registers.
        [
            unpack_block::<B, S>(simd, blocks, 0, tile),
            unpack_block::<B, S>(simd, blocks, 1, tile),
            unpack_block::<B, S>(simd, blocks, 2, tile),
            unpack_block::<B, S>(simd, blocks, 3, tile),
            unpack_block::<B, S>(simd, blocks, 4, tile),
            unpack_block::<B, S>(simd, blocks, 5, tile),
            unpack_block::<B, S>(simd, blocks, 6, tile),
            unpack_block::<B, S>(simd, blocks, 7, tile),
        ]
    } else {
        let mut halves = [[0; 2]; BLOCKS];
        for (i, halves) in halves.iter_mut().enumerate().take(blocks.len() / B::BYTES) {
            *halves = unpack_block::<B, S>(simd, blocks, i, tile);
        }
        halves
    };
    for (i, [scale, min]) in halves.into_iter().enumerate() {
        let scale = f16_to_f32(scale);
        tile.scales[2 * i] = scale;
        tile.scales[2 * i + 1] = scale;
        if B::MIN {
            let min = -f16_to_f32(min);
            tile.mins[2 * i] = min;
            tile.mins[2 * i + 1] = min;
        }
    }
}

#[inline(always)]
fn four_bits<S: Simd>(_: S, packed: &[u8]) -> [u8; BLOCK] {
    let mut codes = [0; BLOCK];
    for i in 0..BLOCK / 2 {
        codes[i] = packed[i] & 15;
        codes[i + BLOCK / 2] = packed[i] >> 4;
    }
    codes
}

#[inline(always)]
fn five_bits<S: Simd>(simd: S, packed: &[u8]) -> [u8; BLOCK] {
    let (top, low) = packed.split_at(4);
    let low = four_bits(simd, low);
    simd.set_bits(low, 4, [top[0], top[1], top[2], top[3]])
}

#[inline(always)]
fn signed<S: Simd>(_: S, packed: &[u8]) -> [u8; BLOCK] {
    let mut codes = [0; BLOCK];
    for i in 0..BLOCK {
        codes[i] = packed[i] ^ 0x80;
    }
    codes
}

macro_rules! legacy_format {
    ($(#[$doc:meta])* $name:ident, $bytes:literal, zero: $zero:literal, min: $min:literal, $codes:expr) => {
        $(#[$doc])*
        #[allow(non_camel_case_types, reason = "the name the format is known by")]
        pub(super) struct $name;

        impl Block for $name {
            const BYTES: usize = $bytes;
            const MIN: bool = $min;
            #[inline(always)]
            fn codes<S: Simd>(simd: S, payload: &[u8]) -> [u8; BLOCK] {
                $codes(simd, payload)
            }
        }

        impl Format for $name {
            const BLOCK_LEN: usize = BLOCK;
            const BLOCK_BYTES: usize = $bytes;
            const ZERO: u8 = $zero;
            #[inline(always)]
            fn unpack<S: Simd>(simd: S, blocks: &[u8], tile: &mut Tile) {
                unpack::<Self, S>(simd, blocks, tile)
            }
        }
    };
}

legacy_format!(/** 4 bits around 8. */ Q4_0, 18, zero: 8, min: false, four_bits);
legacy_format!(/** 4 bits and a min. */ Q4_1, 20, zero: 0, min: true, four_bits);
legacy_format!(/** 5 bits around 16. */ Q5_0, 22, zero: 16, min: false, five_bits);
legacy_format!(/** 5 bits and a min. */ Q5_1, 24, zero: 0, min: true, five_bits);
legacy_format!(/** Signed bytes: with the top bit flipped, unsigned ones around 128. */ Q8_0, 34, zero: 128, min: false, signed);

//! The block formats of 32 elements: Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0.
//!
//! A block is a scale of 16 bits, in the `_1` formats a min of 16 bits (to be added), in the 5-bit formats the 32 top bits,
//! and the codes: bytes, or nibbles of which the low ones are elements 0..16 and the high ones 16..32.
use super::float::f16_to_f32;
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
    fn codes(payload: &[u8], codes: &mut [u8; BLOCK]);
}

#[inline(always)]
fn unpack<B: Block>(blocks: &[u8], tile: &mut Tile) {
    let (mut scales, mut mins) = ([0; BLOCKS], [0; BLOCKS]);
    let (codes, _) = tile.codes.as_chunks_mut::<BLOCK>();
    for (((block, codes), scale), min) in blocks.chunks_exact(B::BYTES).zip(codes).zip(&mut scales).zip(&mut mins) {
        *scale = u16::from_le_bytes([block[0], block[1]]);
        if B::MIN {
            *min = u16::from_le_bytes([block[2], block[3]]);
        }
        B::codes(&block[if B::MIN { 4 } else { 2 }..], codes);
    }
    for i in 0..BLOCKS {
        let scale = f16_to_f32(scales[i]);
        tile.scales[2 * i] = scale;
        tile.scales[2 * i + 1] = scale;
        if B::MIN {
            let min = f16_to_f32(mins[i]);
            tile.mins[2 * i] = -min;
            tile.mins[2 * i + 1] = -min;
        }
    }
}

/// The nibbles of 16 bytes.
#[inline(always)]
fn nibbles(packed: &[u8], codes: &mut [u8; BLOCK]) {
    for i in 0..BLOCK / 2 {
        codes[i] = packed[i] & 15;
        codes[i + BLOCK / 2] = packed[i] >> 4;
    }
}

/// Bit i of four bytes as bit 4 of code i, and the nibbles that follow.
#[inline(always)]
fn five_bits(packed: &[u8], codes: &mut [u8; BLOCK]) {
    nibbles(&packed[4..], codes);
    for i in 0..BLOCK {
        codes[i] |= ((packed[i / 8] >> (i % 8)) & 1) << 4;
    }
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
            fn codes(payload: &[u8], codes: &mut [u8; BLOCK]) {
                $codes(payload, codes)
            }
        }

        impl Format for $name {
            const BLOCK_LEN: usize = BLOCK;
            const BLOCK_BYTES: usize = $bytes;
            const ZERO: u8 = $zero;
            #[inline(always)]
            fn unpack(blocks: &[u8], tile: &mut Tile) {
                unpack::<Self>(blocks, tile)
            }
        }
    };
}

legacy_format!(/** 4 bits around 8. */ Q4_0, 18, zero: 8, min: false, nibbles);
legacy_format!(/** 4 bits and a min. */ Q4_1, 20, zero: 0, min: true, nibbles);
legacy_format!(/** 5 bits around 16. */ Q5_0, 22, zero: 16, min: false, five_bits);
legacy_format!(/** 5 bits and a min. */ Q5_1, 24, zero: 0, min: true, five_bits);
legacy_format!(
    /** Signed bytes: with the top bit flipped, unsigned ones around 128. */
    Q8_0, 34, zero: 128, min: false, |packed: &[u8], codes: &mut [u8; BLOCK]| {
        for i in 0..BLOCK {
            codes[i] = packed[i] ^ 0x80;
        }
    }
);

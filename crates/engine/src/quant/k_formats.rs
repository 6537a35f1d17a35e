//! The block formats of 256 elements: Q2_K to Q6_K. A block is a tile.
//!
//! Scales (and mins) come in two levels: small integers, one per 16 or 32 elements, times one or two floats of 16 bits.
//! Codes are stored as planes: a plane of bytes holds, in different bits, elements that lie 32 apart.
use super::float::f16_to_f32;
use super::simd::Simd;
use super::tile::{Format, GROUPS, TILE, Tile};

/// 2 bits; a scale and a min of 4 bits per 16 elements.
pub(super) struct Q2K;
/// 3 bits around 4; a signed scale of 6 bits per 16 elements.
pub(super) struct Q3K;
/// 4 bits; a scale and a min of 6 bits per 32 elements.
pub(super) struct Q4K;
/// 5 bits; a scale and a min of 6 bits per 32 elements.
pub(super) struct Q5K;
/// 6 bits around 32; a signed scale of 8 bits per 16 elements.
pub(super) struct Q6K;

/// The 16-bit float at the start of `bytes`.
#[inline(always)]
fn half(bytes: &[u8]) -> f32 {
    f16_to_f32(u16::from_le_bytes([bytes[0], bytes[1]]))
}

#[inline(always)]
fn word(bytes: &[u8]) -> u32 {
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

/// Eight bytes, the first of `low` first.
#[inline(always)]
fn bytes_of(low: u32, high: u32) -> [u8; 8] {
    (u64::from(low) | u64::from(high) << 32).to_le_bytes()
}

impl Format for Q2K {
    const BLOCK_LEN: usize = TILE;
    const BLOCK_BYTES: usize = 84;
    const ZERO: u8 = 0;

    /// scales and mins \[16\], codes \[64\], scale, min
    #[inline(always)]
    fn unpack<S: Simd>(_: S, block: &[u8], tile: &mut Tile) {
        let block = &block[..Self::BLOCK_BYTES];
        let (scale, min) = (half(&block[80..]), half(&block[82..]));
        for (g, both) in block[..GROUPS].iter().enumerate() {
            tile.scales[g] = scale * f32::from(both & 15);
            tile.mins[g] = min * f32::from(both >> 4);
        }
        for h in 0..2 {
            let plane = &block[16 + 32 * h..][..32];
            let codes = &mut tile.codes[128 * h..][..128];
            for i in 0..32 {
                codes[i] = plane[i] & 3;
                codes[i + 32] = plane[i] >> 2 & 3;
                codes[i + 64] = plane[i] >> 4 & 3;
                codes[i + 96] = plane[i] >> 6;
            }
        }
    }
}

impl Format for Q3K {
    const BLOCK_LEN: usize = TILE;
    const BLOCK_BYTES: usize = 110;
    const ZERO: u8 = 4;

    /// top bits \[32\], low bits \[64\], scales \[12\], scale
    #[inline(always)]
    fn unpack<S: Simd>(_: S, block: &[u8], tile: &mut Tile) {
        let block = &block[..Self::BLOCK_BYTES];
        let scale = half(&block[108..]);
        // Scale g: low 4 bits in nibble g of the first 8 bytes, counting all low nibbles first; top 2 bits in byte g % 4 of the
        // last four, at bit 2 (g / 4).
        let (a, b, top) = (word(&block[96..]), word(&block[100..]), word(&block[104..]));
        let quad = |low: u32, shift: u32| (low & 0x0f0f_0f0f) | (top >> shift & 0x0303_0303) << 4;
        let integers = [bytes_of(quad(a, 0), quad(b, 2)), bytes_of(quad(a >> 4, 4), quad(b >> 4, 6))];
        for g in 0..GROUPS {
            tile.scales[g] = scale * (f32::from(integers[g / 8][g % 8]) - 32.0);
        }
        let top = &block[..32];
        for h in 0..2 {
            let plane = &block[32 + 32 * h..][..32];
            let codes = &mut tile.codes[128 * h..][..128];
            for i in 0..32 {
                let top = top[i] >> (4 * h);
                codes[i] = plane[i] & 3 | (top & 1) << 2;
                codes[i + 32] = plane[i] >> 2 & 3 | (top & 2) << 1;
                codes[i + 64] = plane[i] >> 4 & 3 | top & 4;
                codes[i + 96] = plane[i] >> 6 | (top & 8) >> 1;
            }
        }
    }
}

/// Scale, min, and the 12 bytes with 8 scales and 8 mins of 6 bits that Q4_K and Q5_K start with. Of the first four of
/// each, all six bits are in bytes 0..4 (scales) and 4..8 (mins); of the last four, the low nibbles are in bytes 8..12
/// and the top bits above the first four's.
#[inline(always)]
fn scales_and_mins(block: &[u8], tile: &mut Tile) {
    let (scale, min) = (half(block), half(&block[2..]));
    let (a, b, c) = (word(&block[4..]), word(&block[8..]), word(&block[12..]));
    let scales = bytes_of(a & 0x3f3f_3f3f, c & 0x0f0f_0f0f | a >> 2 & 0x3030_3030);
    let mins = bytes_of(b & 0x3f3f_3f3f, c >> 4 & 0x0f0f_0f0f | b >> 2 & 0x3030_3030);
    for g in 0..GROUPS {
        tile.scales[g] = scale * f32::from(scales[g / 2]);
        tile.mins[g] = min * f32::from(mins[g / 2]);
    }
}

impl Format for Q4K {
    const BLOCK_LEN: usize = TILE;
    const BLOCK_BYTES: usize = 144;
    const ZERO: u8 = 0;

    /// scale, min, scales and mins \[12\], codes \[128\]
    #[inline(always)]
    fn unpack<S: Simd>(_: S, block: &[u8], tile: &mut Tile) {
        let block = &block[..Self::BLOCK_BYTES];
        scales_and_mins(block, tile);
        for q in 0..4 {
            let plane = &block[16 + 32 * q..][..32];
            let codes = &mut tile.codes[64 * q..][..64];
            for i in 0..32 {
                codes[i] = plane[i] & 15;
                codes[i + 32] = plane[i] >> 4;
            }
        }
    }
}

impl Format for Q5K {
    const BLOCK_LEN: usize = TILE;
    const BLOCK_BYTES: usize = 176;
    const ZERO: u8 = 0;

    /// scale, min, scales and mins \[12\], top bits \[32\], low bits \[128\]
    #[inline(always)]
    fn unpack<S: Simd>(_: S, block: &[u8], tile: &mut Tile) {
        let block = &block[..Self::BLOCK_BYTES];
        scales_and_mins(block, tile);
        let top = &block[16..48];
        for q in 0..4 {
            let plane = &block[48 + 32 * q..][..32];
            let codes = &mut tile.codes[64 * q..][..64];
            for i in 0..32 {
                let top = top[i] >> (2 * q);
                codes[i] = plane[i] & 15 | (top & 1) << 4;
                codes[i + 32] = plane[i] >> 4 | (top & 2) << 3;
            }
        }
    }
}

impl Format for Q6K {
    const BLOCK_LEN: usize = TILE;
    const BLOCK_BYTES: usize = 210;
    const ZERO: u8 = 32;

    /// low nibbles \[128\], top bits \[64\], scales \[16\], scale
    #[inline(always)]
    fn unpack<S: Simd>(_: S, block: &[u8], tile: &mut Tile) {
        let block = &block[..Self::BLOCK_BYTES];
        let scale = half(&block[208..]);
        for g in 0..GROUPS {
            tile.scales[g] = scale * f32::from(block[192 + g] as i8);
        }
        for h in 0..2 {
            let low = &block[64 * h..][..64];
            let top = &block[128 + 32 * h..][..32];
            let codes = &mut tile.codes[128 * h..][..128];
            for i in 0..32 {
                codes[i] = low[i] & 15 | (top[i] & 3) << 4;
                codes[i + 32] = low[i + 32] & 15 | (top[i] >> 2 & 3) << 4;
                codes[i + 64] = low[i] >> 4 | (top[i] >> 4 & 3) << 4;
                codes[i + 96] = low[i + 32] >> 4 | (top[i] >> 6) << 4;
            }
        }
    }
}

//! The packed forms of both operands.
//!
//! k is cut into steps of 32 (the last one padded with zeros), rows of x and rows of weights into tiles of 16, two tiles to a strip or
//! panel. A strip or panel is contiguous: step by step, tile by tile, 16 lines of 64 bytes each.
//!
//! - Line r of a tile of x is the 32 values of row r.
//! - Line p of a tile of weights is, for each of its 16 rows, the values 2p and 2p + 1: the order in which both bf16
//!   instructions want their second operand.

use std::arch::x86_64::*;
use std::mem::transmute;

use super::bf16;

/// Rows of a tile of x, outputs of a tile of weights, and lines of either.
pub(super) const TILE_LINES: usize = 16;
/// Rows of a strip of x, outputs of a panel of weights.
pub(super) const BLOCK: usize = 2 * TILE_LINES;
/// Values along k of one step.
pub(super) const STEP: usize = 32;
/// Lines of one step of a strip or panel.
pub(super) const STEP_LINES: usize = 2 * TILE_LINES;

/// One cache line of bf16 bits.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Line(pub(super) [u16; STEP]);

/// A 32 x 32 block of sums as four tiles: rows 0..16 left and right, then rows 16..32.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Sums(pub(super) [[[f32; TILE_LINES]; TILE_LINES]; 4]);

impl Sums {
    pub(super) const ZERO: Sums = Sums([[[0.0; TILE_LINES]; TILE_LINES]; 4]);
}

impl Line {
    pub(super) const ZERO: Line = Line([0; STEP]);
}

/// Steps along `k` values.
pub(super) fn steps(k: usize) -> usize {
    k.div_ceil(STEP)
}

/// Packs up to 32 rows of x; the missing ones become zeros.
///
/// # Safety
///
/// The machine has AVX-512 F, BW and BF16.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) unsafe fn pack_x_strip(x: &[f32], k: usize, strip: &mut [Line]) {
    let rows = x.len() / k.max(1);
    /// Steps of a row at a time: the lines of a row are 2 KB apart, so that writing many in turn would use few sets of a cache.
    const GROUP: usize = 4;
    assert!(rows <= BLOCK && x.len() == rows * k && strip.len() == steps(k) * STEP_LINES);
    for (group, lines) in strip.chunks_mut(GROUP * STEP_LINES).enumerate() {
        let first = group * GROUP * STEP;
        let last = (first + GROUP * STEP).min(k);
        for row in 0..BLOCK {
            let lines = lines.iter_mut().skip(row).step_by(STEP_LINES);
            if row < rows {
                for (line, values) in lines.zip(x[row * k + first..row * k + last].chunks(STEP)) {
                    *line = to_line(bf16::round_32(values));
                }
            } else {
                lines.for_each(|line| *line = Line::ZERO);
            }
        }
    }
}

/// Rounds one row of weights, of k values, into lines, the last one padded with zeros.
///
/// # Safety
///
/// The machine has AVX-512 F, BW and BF16.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) unsafe fn round_row(row: &[f32], lines: &mut [Line]) {
    assert!(lines.len() == steps(row.len()));
    for (line, values) in lines.iter_mut().zip(row.chunks(STEP)) {
        *line = to_line(bf16::round_32(values));
    }
}

/// Packs 16 rounded rows of weights, each of as many lines as the panel has steps, as tile `tile` (0 or 1) of a panel.
///
/// # Safety
///
/// The machine has AVX-512 F.
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn pack_weight_tile(rows: &[Line], panel: &mut [Line], tile: usize) {
    let steps = panel.len() / STEP_LINES;
    assert!(tile < 2 && rows.len() == TILE_LINES * steps);
    for (step, lines) in panel.chunks_exact_mut(STEP_LINES).enumerate() {
        let lines = &mut lines[tile * TILE_LINES..][..TILE_LINES];
        // SAFETY: `step < steps`, so row r has a line `r * steps + step`; lines are aligned as vectors are.
        let vectors =
            std::array::from_fn(|row| unsafe { _mm512_load_si512((&raw const rows[row * steps + step]).cast()) });
        for (line, pairs) in lines.iter_mut().zip(transpose(vectors)) {
            *line = to_line(pairs);
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn to_line(bits: __m512i) -> Line {
    // SAFETY: both are 64 bytes without invalid values.
    unsafe { transmute(bits) }
}

/// Transposes 16 x 16 values of 32 bits: first inside 128-bit lanes, then the lanes.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose(rows: [__m512i; 16]) -> [__m512i; 16] {
    let mut quads = [_mm512_setzero_si512(); 16];
    for group in 0..4 {
        let [a, b, c, d] = std::array::from_fn(|row| rows[4 * group + row]);
        let (ab_low, ab_high) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
        let (cd_low, cd_high) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
        // Lane l of quads[4 group + i] is column 4l + i of the rows 4 group .. 4 group + 4.
        quads[4 * group] = _mm512_unpacklo_epi64(ab_low, cd_low);
        quads[4 * group + 1] = _mm512_unpackhi_epi64(ab_low, cd_low);
        quads[4 * group + 2] = _mm512_unpacklo_epi64(ab_high, cd_high);
        quads[4 * group + 3] = _mm512_unpackhi_epi64(ab_high, cd_high);
    }
    let mut columns = [_mm512_setzero_si512(); 16];
    for i in 0..4 {
        let [a, b, c, d] = std::array::from_fn(|group| quads[4 * group + i]);
        // The even lanes of two vectors, or the odd ones.
        let (ab_even, ab_odd) =
            (_mm512_shuffle_i32x4::<0b10_00_10_00>(a, b), _mm512_shuffle_i32x4::<0b11_01_11_01>(a, b));
        let (cd_even, cd_odd) =
            (_mm512_shuffle_i32x4::<0b10_00_10_00>(c, d), _mm512_shuffle_i32x4::<0b11_01_11_01>(c, d));
        columns[i] = _mm512_shuffle_i32x4::<0b10_00_10_00>(ab_even, cd_even);
        columns[4 + i] = _mm512_shuffle_i32x4::<0b10_00_10_00>(ab_odd, cd_odd);
        columns[8 + i] = _mm512_shuffle_i32x4::<0b11_01_11_01>(ab_even, cd_even);
        columns[12 + i] = _mm512_shuffle_i32x4::<0b11_01_11_01>(ab_odd, cd_odd);
    }
    columns
}

/// Sets one row of an output to `combine(column, what it holds, its sum)`; `sums` are the blocks of that row's strip.
///
/// # Safety
///
/// The machine has AVX-512 F.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn unpack_row(sums: &[Sums], row: usize, out: &mut [f32], combine: impl Fn(usize, f32, f32) -> f32) {
    let (tile, in_tile) = (row / TILE_LINES * 2, row % TILE_LINES);
    for (block, (out, sums)) in out.chunks_mut(BLOCK).zip(sums).enumerate() {
        let (left, right) = (&sums.0[tile][in_tile], &sums.0[tile + 1][in_tile]);
        if let Ok(out) = <&mut [f32; BLOCK]>::try_from(&mut *out) {
            for i in 0..TILE_LINES {
                out[i] = combine(block * BLOCK + i, out[i], left[i]);
            }
            for i in 0..TILE_LINES {
                out[TILE_LINES + i] = combine(block * BLOCK + TILE_LINES + i, out[TILE_LINES + i], right[i]);
            }
        } else {
            for (i, (out, sum)) in out.iter_mut().zip(left.iter().chain(right)).enumerate() {
                *out = combine(block * BLOCK + i, *out, *sum);
            }
        }
    }
}

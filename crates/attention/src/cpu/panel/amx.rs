//! The products of a step in bf16 on AMX tiles, accumulated in f32.
//!
//! Both products have the form of [`Tiles::block`]: the broadcast side of the f32 form (K, V transposed) is its left operand, the
//! lanes (Q, P) its right one, whose lines pair two values of the inner dimension. P is rounded to bf16 as FlashAttention does on
//! GPUs; maximum, sum and log-sum-exp stay in f32.

use std::arch::x86_64::*;

use super::KEYS;
use crate::cpu::tiles::{Line, STEP, STEP_LINES, Tiles, available};
use crate::{Element, Rows};

/// Rows and columns of a product block.
const BLOCK: usize = 32;

/// Packed operands. A block of 32 rows or lanes is contiguous: step after step along the inner dimension, 32 lines each.
pub(super) struct Operands {
    tiles: Tiles,
    width: usize,
    dim: usize,
    /// Steps along the head dim.
    steps: usize,
    /// Lanes: `[lane block][dim step][tile, pair]`.
    q: Vec<Line>,
    /// Keys: `[key block][dim step][key]`.
    k: Vec<Line>,
    /// Values, transposed: `[dim block][key step][x]`.
    v: Vec<Line>,
    /// Weights: `[lane block][key step][tile, pair]`.
    p: Vec<Line>,
    /// Rows converted to f32: one key, or two values.
    rows: [Vec<f32>; 2],
    /// Values of 16 pairs of keys, by blocks of 16 along the head dim.
    pairs: Vec<[[u32; 16]; 16]>,
}

impl Operands {
    pub fn new(width: usize, dim: usize) -> Self {
        assert!(available(), "AMX tiles asked for on a machine without");
        let steps = dim.div_ceil(STEP);
        let lines = |blocks: usize, steps: usize| vec![Line::ZERO; blocks * steps * STEP_LINES];
        Operands {
            // SAFETY: just checked; a thread makes one panel at a time, and every panel configures its tiles alike.
            tiles: unsafe { Tiles::configure() },
            width,
            dim,
            steps,
            q: lines(width / BLOCK, steps),
            k: lines(KEYS / BLOCK, steps),
            v: lines(steps * STEP / BLOCK, KEYS / STEP),
            p: lines(width / BLOCK, KEYS / STEP),
            rows: [vec![0.0; steps * STEP], vec![0.0; steps * STEP]],
            pairs: vec![[[0; 16]; 16]; steps * STEP / 16],
        }
    }

    pub fn padded_dim(&self) -> usize {
        self.steps * STEP
    }

    pub fn clear_queries(&mut self) {
        self.q.fill(Line::ZERO);
    }

    pub fn set_query(&mut self, lane: usize, row: &[f32], scale: f32) {
        let (block, tile, column) = (lane / BLOCK, lane % BLOCK / 16, lane % 16);
        for (x, &value) in row.iter().enumerate() {
            let line = (block * self.steps + x / STEP) * STEP_LINES + tile * 16 + x % STEP / 2;
            self.q[line].0[2 * column + x % 2] = half::bf16::from_f32(value * scale).to_bits();
        }
    }

    pub fn load_keys<T: Element>(&mut self, k: Rows<'_, T>, head: usize, keys: impl ExactSizeIterator<Item = usize>) {
        for (i, key) in keys.enumerate() {
            T::widen(k.row(key, head), &mut self.rows[0][..self.dim]);
            let first = i / BLOCK * self.steps * STEP_LINES + i % BLOCK;
            for (step, values) in self.rows[0].chunks_exact(STEP).enumerate() {
                // SAFETY: `available` checked the instruction sets.
                self.k[first + step * STEP_LINES] = unsafe { round(values) };
            }
        }
    }

    pub fn load_values<T: Element>(&mut self, v: Rows<'_, T>, head: usize, keys: impl ExactSizeIterator<Item = usize>) {
        let mut transposed = [[0u32; 16]; 16];
        let steps = keys.len().div_ceil(STEP);
        let mut keys = keys.fuse();
        for key_step in 0..steps {
            for pair in 0..16 {
                for row in &mut self.rows {
                    match keys.next() {
                        Some(key) => T::widen(v.row(key, head), &mut row[..self.dim]),
                        None => row.fill(0.0),
                    }
                }
                for (x, block) in self.pairs.iter_mut().enumerate() {
                    // SAFETY: `available` checked the instruction sets.
                    block[pair] = unsafe { pair_up(&self.rows[0][16 * x..], &self.rows[1][16 * x..]) };
                }
            }
            for (i, block) in self.pairs.iter().enumerate() {
                // SAFETY: as above.
                unsafe { transpose(block, &mut transposed) };
                let x = 16 * i;
                let first = (x / BLOCK * (KEYS / STEP) + key_step) * STEP_LINES + x % BLOCK;
                for (line, row) in self.v[first..first + 16].iter_mut().zip(&transposed) {
                    // SAFETY: both are 64 bytes of plain integers.
                    line.0 = unsafe { std::mem::transmute::<[u32; 16], [u16; 32]>(*row) };
                }
            }
        }
    }

    /// `s[key][lane]` of `count` keys.
    pub fn scores(&mut self, count: usize, s: &mut [f32]) {
        assert!(s.len() >= KEYS * self.width);
        static ZERO: [f32; BLOCK] = [0.0; BLOCK];
        let lines = self.steps * STEP_LINES;
        for (keys, k) in self.k.chunks_exact(lines).enumerate().take(count.div_ceil(BLOCK)) {
            for (lanes, q) in self.q.chunks_exact(lines).enumerate() {
                let out = &mut s[keys * BLOCK * self.width + lanes * BLOCK..];
                // SAFETY: both operands hold `steps` steps; `out` holds 32 rows of 32 at stride `width`; the start is one row of zeros.
                unsafe {
                    self.tiles.block(k.as_ptr(), q.as_ptr(), self.steps, ZERO.as_ptr(), 0, out.as_mut_ptr(), self.width)
                };
            }
        }
    }

    /// `o[x][lane] = o[x][lane] * alpha[lane] + sum_key v[key][x] * s[key][lane]`.
    pub fn accumulate(&mut self, count: usize, s: &[f32], alpha: &[f32], o: &mut [f32]) {
        let steps = count.div_ceil(STEP);
        // SAFETY: `available` checked the instruction sets.
        unsafe {
            pack_weights(&mut self.p, s, count, self.width);
            // The maximum seldom moves after the first steps.
            if alpha.iter().any(|&a| a != 1.0) {
                rescale(o, alpha);
            }
        }
        for (xs, v) in self.v.chunks_exact(KEYS / STEP * STEP_LINES).enumerate() {
            for (lanes, p) in self.p.chunks_exact(KEYS / STEP * STEP_LINES).enumerate() {
                let out = &mut o[xs * BLOCK * self.width + lanes * BLOCK..];
                assert!(out.len() > (BLOCK - 1) * self.width);
                let out = out.as_mut_ptr();
                // SAFETY: both operands hold `KEYS / STEP >= steps` steps; `out` holds 32 rows of 32 at stride `width`.
                unsafe { self.tiles.block(v.as_ptr(), p.as_ptr(), steps, out, self.width, out, self.width) };
            }
        }
    }
}

/// Rounds 32 values to bf16, to the nearest, ties to even.
#[target_feature(enable = "avx512f,avx512bf16")]
fn round(values: &[f32]) -> Line {
    assert!(values.len() >= STEP);
    // SAFETY: 32 values, just checked; a line is 64 bytes.
    unsafe {
        let low = _mm512_loadu_ps(values.as_ptr());
        let high = _mm512_loadu_ps(values.as_ptr().add(16));
        std::mem::transmute::<__m512bh, Line>(_mm512_cvtne2ps_pbh(high, low))
    }
}

/// 16 pairs of bf16: of each place the first value in the low half, the second in the high half.
#[target_feature(enable = "avx512f,avx512bf16")]
fn pair_up(first: &[f32], second: &[f32]) -> [u32; 16] {
    assert!(first.len() >= 16 && second.len() >= 16);
    // SAFETY: 16 values each, just checked; the results are plain integers.
    unsafe {
        let low = _mm512_cvtneps_pbh(_mm512_loadu_ps(first.as_ptr()));
        let high = _mm512_cvtneps_pbh(_mm512_loadu_ps(second.as_ptr()));
        let low = _mm512_cvtepu16_epi32(std::mem::transmute::<__m256bh, __m256i>(low));
        let high = _mm512_cvtepu16_epi32(std::mem::transmute::<__m256bh, __m256i>(high));
        std::mem::transmute::<__m512i, [u32; 16]>(_mm512_or_si512(low, _mm512_slli_epi32::<16>(high)))
    }
}

/// Weights to lines of pairs of keys; keys past the last one get no weight.
#[target_feature(enable = "avx512f,avx512bf16")]
fn pack_weights(p: &mut [Line], s: &[f32], count: usize, width: usize) {
    let zeros = [0f32; 16];
    for (block, lines) in p.chunks_exact_mut(KEYS / STEP * STEP_LINES).enumerate() {
        for pair in 0..count.div_ceil(STEP) * STEP / 2 {
            let (step, line) = (pair / 16, pair % 16);
            for tile in 0..2 {
                let lane = block * BLOCK + tile * 16;
                let row = |key: usize| if key < count { &s[key * width + lane..] } else { &zeros[..] };
                // SAFETY: both are 64 bytes of plain integers.
                lines[step * STEP_LINES + tile * 16 + line].0 =
                    unsafe { std::mem::transmute::<[u32; 16], [u16; 32]>(pair_up(row(2 * pair), row(2 * pair + 1))) };
            }
        }
    }
}

/// Multiplies every row of `o` by `alpha`.
#[target_feature(enable = "avx512f")]
fn rescale(o: &mut [f32], alpha: &[f32]) {
    for row in o.chunks_exact_mut(alpha.len()) {
        for (o, a) in row.iter_mut().zip(alpha) {
            *o *= a;
        }
    }
}

/// Transposes a 16 x 16 matrix of 32-bit values.
#[target_feature(enable = "avx512f")]
fn transpose(from: &[[u32; 16]; 16], to: &mut [[u32; 16]; 16]) {
    // SAFETY: every row is 64 bytes.
    unsafe {
        let r: [__m512i; 16] = std::array::from_fn(|i| _mm512_loadu_si512(from[i].as_ptr().cast()));
        // Pairs of rows, then fours, within each 128-bit lane; then the lanes themselves, in two steps.
        let a: [__m512i; 16] = std::array::from_fn(|i| {
            let (x, y) = (r[i & !1], r[i | 1]);
            if i & 1 == 0 { _mm512_unpacklo_epi32(x, y) } else { _mm512_unpackhi_epi32(x, y) }
        });
        // b[4g + c]: column c of each lane, rows 4g..4g+4.
        let b: [__m512i; 16] = std::array::from_fn(|i| {
            let (g, c) = (i / 4, i % 4);
            let (x, y) = (a[4 * g + c / 2], a[4 * g + 2 + c / 2]);
            if c & 1 == 0 { _mm512_unpacklo_epi64(x, y) } else { _mm512_unpackhi_epi64(x, y) }
        });
        for c in 0..4 {
            let low01 = _mm512_shuffle_i32x4::<0x44>(b[c], b[4 + c]);
            let high01 = _mm512_shuffle_i32x4::<0xEE>(b[c], b[4 + c]);
            let low23 = _mm512_shuffle_i32x4::<0x44>(b[8 + c], b[12 + c]);
            let high23 = _mm512_shuffle_i32x4::<0xEE>(b[8 + c], b[12 + c]);
            let rows = [
                _mm512_shuffle_i32x4::<0x88>(low01, low23),
                _mm512_shuffle_i32x4::<0xDD>(low01, low23),
                _mm512_shuffle_i32x4::<0x88>(high01, high23),
                _mm512_shuffle_i32x4::<0xDD>(high01, high23),
            ];
            for (lane, row) in rows.into_iter().enumerate() {
                _mm512_storeu_si512(to[4 * lane + c].as_mut_ptr().cast(), row);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transpose_transposes() {
        if !available() {
            eprintln!("skipped: no AMX");
            return;
        }
        let from: [[u32; 16]; 16] = std::array::from_fn(|i| std::array::from_fn(|j| (100 * i + j) as u32));
        let mut to = [[0; 16]; 16];
        // SAFETY: AMX implies AVX-512.
        unsafe { transpose(&from, &mut to) };
        for (i, row) in to.iter().enumerate() {
            for (j, &x) in row.iter().enumerate() {
                assert_eq!(x as usize, 100 * j + i);
            }
        }
    }
}

//! The products of a step in bf16 on AMX tiles, accumulated in f32.
//!
//! Both products have the form of [`Tiles::block`]: the broadcast side of the f32 form (K, V transposed) is its left operand, the
//! lanes (Q, P) its right one, whose lines pair two values of the inner dimension. P is rounded to bf16 as FlashAttention does on
//! GPUs; maximum, sum and log-sum-exp stay in f32.

use std::arch::x86_64::*;

use rayon::prelude::*;

use super::KEYS;
use crate::cpu::cache::{Cache, Keys};
use crate::cpu::tiles::{Line, Operand, STEP, STEP_LINES, Tiles, available};
use crate::{Element, Rows};

/// Rows and columns of a product block.
const BLOCK: usize = 32;

/// Packed operands. A block of 32 rows or lanes is contiguous: step after step along the inner dimension, 32 lines each.
pub(super) struct Operands {
    tiles: Tiles,
    width: usize,
    /// Steps along the head dim.
    steps: usize,
    /// Lanes: `[lane block][dim step][tile, pair]`.
    q: Vec<Line>,
    /// Gathered keys: `[key][dim]`.
    k: Vec<u16>,
    /// Gathered values, transposed: `[dim][key]`.
    v: Vec<u16>,
    /// Weights: `[lane block][key step][tile, pair]`.
    p: Vec<Line>,
    scratch: Scratch,
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

            steps,
            q: lines(width / BLOCK, steps),
            k: vec![0; KEYS * steps * STEP],
            v: vec![0; KEYS * steps * STEP],
            p: lines(width / BLOCK, KEYS / STEP),
            scratch: Scratch::new(dim),
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

    /// `s[key][lane]` of the keys.
    pub fn scores<T: Element>(&mut self, cache: &Cache<'_, T>, head: usize, keys: &Keys<'_>, s: &mut [f32]) {
        assert!(s.len() >= KEYS * self.width);
        static ZERO: [f32; BLOCK] = [0.0; BLOCK];
        let row = self.padded_dim();
        let k = match (keys, cache.packed(head)) {
            (Keys::Run(run), Some(packed)) => packed.keys(run.start),
            _ => {
                keys.for_each(|i, key| {
                    self.scratch.round_row(cache.k.row(key, head), &mut self.k[i * row..(i + 1) * row])
                });
                &self.k
            }
        };
        // Rows past the last key are computed too, and not looked at.
        let blocks = keys.len().div_ceil(BLOCK);
        assert!(k.len() >= blocks * BLOCK * row);
        for (lanes, q) in self.q.chunks_exact(self.steps * STEP_LINES).enumerate() {
            for block in 0..blocks {
                let x = Operand { first: k[block * BLOCK * row..].as_ptr(), row, step: STEP };
                let out = &mut s[block * BLOCK * self.width + lanes * BLOCK..];
                // SAFETY: `x` holds 32 rows of `steps` steps, just checked; `q` holds `steps` steps; `out` holds 32 rows of 32 at stride
                // `width`; the start is one row of zeros.
                unsafe { self.tiles.block(x, q.as_ptr(), self.steps, ZERO.as_ptr(), 0, out.as_mut_ptr(), self.width) };
            }
        }
    }

    /// `o[x][lane] = o[x][lane] * alpha[lane] + sum_key v[key][x] * s[key][lane]`.
    pub fn accumulate<T: Element>(
        &mut self,
        cache: &Cache<'_, T>,
        head: usize,
        keys: &Keys<'_>,
        s: &[f32],
        alpha: &[f32],
        o: &mut [f32],
    ) {
        let steps = keys.len().div_ceil(STEP);
        let (v, row) = match (keys, cache.packed(head)) {
            (Keys::Run(run), Some(packed)) => packed.values(run.start),
            (keys, _) => {
                for step in 0..steps {
                    let rows = (step * STEP..(step + 1) * STEP).map(|i| match keys {
                        Keys::Run(run) => (i < run.len()).then(|| run.start + i),
                        Keys::List(list) => list.get(i).copied(),
                    });
                    let rows = rows.map(|key| key.map(|key| cache.v.row(key, head)));
                    self.scratch
                        .transpose_rows(rows, |x, line| self.v[x * KEYS + step * STEP..][..STEP].copy_from_slice(line));
                }
                (&self.v[..], KEYS)
            }
        };
        assert!(v.len() >= (self.padded_dim() - 1) * row + steps * STEP && o.len() >= self.padded_dim() * self.width);
        // SAFETY: `available` checked the instruction sets.
        unsafe {
            pack_weights(&mut self.p, s, keys.len(), self.width);
            // The maximum seldom moves after the first steps.
            if alpha.iter().any(|&a| a != 1.0) {
                rescale(o, alpha);
            }
        }
        for xs in (0..self.padded_dim()).step_by(BLOCK) {
            let x = Operand { first: v[xs * row..].as_ptr(), row, step: STEP };
            for (lanes, p) in self.p.chunks_exact(KEYS / STEP * STEP_LINES).enumerate() {
                let out = o[xs * self.width + lanes * BLOCK..].as_mut_ptr();
                // SAFETY: `x` holds 32 rows of `steps` steps, just checked; `p` holds `KEYS / STEP >= steps` steps; `out` holds 32 rows
                // of 32 at stride `width`, just checked.
                unsafe { self.tiles.block(x, p.as_ptr(), steps, out, self.width, out, self.width) };
            }
        }
    }
}

/// Keys and values of a head in bf16, packed once for all the tile steps that visit them.
pub(crate) struct PackedHead {
    /// Head dim, a whole number of steps.
    padded: usize,
    /// `[key][dim]`, with zeros past the last key, so that a step may start at any key.
    k: Vec<u16>,
    /// Values, transposed: `[dim][key]`.
    v: Vec<u16>,
    /// Keys of a row of `v`.
    row: usize,
}

impl PackedHead {
    /// Packs head `head`, in parallel.
    pub fn new<T: Element>(k: Rows<'_, T>, v: Rows<'_, T>, head: usize) -> Self {
        assert!(available());
        let (len, padded) = (k.rows(), k.dim().next_multiple_of(STEP));
        // Rows of `v` are an odd number of cache lines apart: 16 lines of a tile fall into different sets of the cache.
        let row = (len + KEYS).next_multiple_of(2 * STEP) + STEP;
        let mut packed = PackedHead { padded, k: vec![0; (len + KEYS) * padded], v: vec![0; padded * row], row };
        let run = 16 * STEP;
        let values = SharedValues(packed.v.as_mut_ptr());
        packed.k.par_chunks_mut(run * padded).enumerate().for_each_init(
            || Scratch::new(k.dim()),
            |scratch, (i, to)| {
                let keys = i * run..((i + 1) * run).min(len);
                for (key, to) in keys.clone().zip(to.chunks_exact_mut(padded)) {
                    scratch.round_row(k.row(key, head), to);
                }
                for first in keys.step_by(STEP) {
                    let rows = (first..first + STEP).map(|key| (key < len).then(|| v.row(key, head)));
                    scratch.transpose_rows(rows, |x, line| {
                        // SAFETY: this task alone writes the keys `first .. first + 32` of each row; `row >= len + KEYS` holds them.
                        unsafe { values.write(x * row + first, line) }
                    });
                }
            },
        );
        packed
    }

    /// Key rows from `first` on.
    fn keys(&self, first: usize) -> &[u16] {
        &self.k[first * self.padded..]
    }

    /// Transposed values from key `first` on, and the stride of their rows.
    fn values(&self, first: usize) -> (&[u16], usize) {
        (&self.v[first..], self.row)
    }
}

/// The transposed values while several threads write disjoint runs of keys.
#[derive(Clone, Copy)]
struct SharedValues(*mut u16);
// SAFETY: every use writes its own run of keys.
unsafe impl Send for SharedValues {}
// SAFETY: as above.
unsafe impl Sync for SharedValues {}

impl SharedValues {
    /// # Safety
    /// `at .. at + line.len()` is inside the allocation and nobody else's.
    unsafe fn write(self, at: usize, line: &[u16; STEP]) {
        // SAFETY: the caller's.
        unsafe { self.0.add(at).copy_from_nonoverlapping(line.as_ptr(), STEP) };
    }
}

/// Buffers for conversion.
struct Scratch {
    dim: usize,
    /// Two rows in f32, padded with zeros.
    rows: [Vec<f32>; 2],
    /// Values of 16 pairs of keys, by blocks of 16 along the head dim.
    pairs: Vec<[[u32; 16]; 16]>,
}

impl Scratch {
    fn new(dim: usize) -> Self {
        let padded = dim.next_multiple_of(STEP);
        Scratch { dim, rows: [vec![0.0; padded], vec![0.0; padded]], pairs: vec![[[0; 16]; 16]; padded / 16] }
    }

    /// Rounds a row to bf16; `to` is as long as the padded head dim.
    fn round_row<T: Element>(&mut self, row: &[T], to: &mut [u16]) {
        T::widen(row, &mut self.rows[0][..self.dim]);
        for (to, values) in to.chunks_exact_mut(STEP).zip(self.rows[0].chunks_exact(STEP)) {
            // SAFETY: `available` checked the instruction sets.
            let line = unsafe { round(values) };
            to.copy_from_slice(&line.0);
        }
    }

    /// Transposes 32 rows (`None`: zeros) and hands out, for each place of the head dim, the 32 values in bf16.
    fn transpose_rows<'r, T: Element>(
        &mut self,
        mut rows: impl Iterator<Item = Option<&'r [T]>>,
        mut write: impl FnMut(usize, &[u16; STEP]),
    ) {
        for pair in 0..16 {
            for to in &mut self.rows {
                match rows.next().flatten() {
                    Some(row) => T::widen(row, &mut to[..self.dim]),
                    None => to.fill(0.0),
                }
            }
            for (x, block) in self.pairs.iter_mut().enumerate() {
                // SAFETY: `available` checked the instruction sets.
                block[pair] = unsafe { pair_up(&self.rows[0][16 * x..], &self.rows[1][16 * x..]) };
            }
        }
        let mut transposed = [[0u32; 16]; 16];
        for (i, block) in self.pairs.iter().enumerate() {
            // SAFETY: as above.
            unsafe { transpose(block, &mut transposed) };
            for (x, row) in transposed.iter().enumerate() {
                // SAFETY: both are 64 bytes of plain integers.
                write(16 * i + x, &unsafe { std::mem::transmute::<[u32; 16], [u16; STEP]>(*row) });
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

//! Blocks of 32 x 32 outputs with `VDPBF16PS`, over the same packed operands as the tiles of AMX.
//!
//! Eight rows of x at a time: their 8 x 32 sums fill sixteen registers, and each pair of k takes two loads of weights and eight
//! broadcasts for sixteen multiplications.

use std::arch::x86_64::{
    __m512, __m512bh, __m512i, _mm512_dpbf16_ps, _mm512_load_si512, _mm512_loadu_ps, _mm512_set1_epi32,
    _mm512_storeu_ps,
};
use std::mem::transmute;

use super::pack::{Line, STEP_LINES, TILE_LINES};

const ROWS: usize = 8;

/// As [`Tiles::block`](super::amx::Tiles::block), without tiles.
///
/// # Safety
///
/// The machine has AVX-512 F, BW and BF16; the pointers are as there.
#[expect(clippy::too_many_arguments)]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) unsafe fn block(
    x: *const Line,
    w: *const Line,
    steps: usize,
    start: *const f32,
    start_stride: usize,
    out: *mut f32,
    out_stride: usize,
) {
    for first in (0..2 * TILE_LINES).step_by(ROWS) {
        // SAFETY: all addresses lie in the ranges that the caller promises: rows `first .. first + 8` of 32.
        unsafe {
            let mut sums: [[__m512; 2]; ROWS] = std::array::from_fn(|row| {
                let row = start.add((first + row) * start_stride);
                [_mm512_loadu_ps(row), _mm512_loadu_ps(row.add(16))]
            });
            for step in 0..steps {
                let x = x.add(step * STEP_LINES + first).cast::<[i32; 16]>();
                let w = w.add(step * STEP_LINES).cast::<__m512i>();
                for pair in 0..16 {
                    let left = as_bf16(_mm512_load_si512(w.add(pair)));
                    let right = as_bf16(_mm512_load_si512(w.add(TILE_LINES + pair)));
                    for (row, sums) in sums.iter_mut().enumerate() {
                        let x = as_bf16(_mm512_set1_epi32((*x.add(row))[pair]));
                        sums[0] = _mm512_dpbf16_ps(sums[0], x, left);
                        sums[1] = _mm512_dpbf16_ps(sums[1], x, right);
                    }
                }
            }
            for (row, sums) in sums.into_iter().enumerate() {
                let row = out.add((first + row) * out_stride);
                _mm512_storeu_ps(row, sums[0]);
                _mm512_storeu_ps(row.add(16), sums[1]);
            }
        }
    }
}

#[target_feature(enable = "avx512f")]
fn as_bf16(bits: __m512i) -> __m512bh {
    // SAFETY: both are 512 bits without invalid values.
    unsafe { transmute(bits) }
}

//! Blocks of 32 x 32 outputs with `VDPBF16PS`, over the same packed operands as the tiles of AMX.
//!
//! Eight rows of x at a time: their 8 x 32 sums fill sixteen registers, and each pair of k takes two loads of weights and eight
//! broadcasts for sixteen multiplications.

use std::arch::x86_64::*;
use std::mem::transmute;

use super::pack::{BLOCK, Line, STEP_LINES, Sums, TILE_LINES};

const ROWS: usize = 8;

/// As [`amx::multiply`](super::amx::multiply), without tiles.
///
/// # Safety
///
/// The machine has AVX-512 F, BW and BF16; `x` and `w` point to `steps * STEP_LINES` lines.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) unsafe fn multiply(x: *const Line, w: *const Line, steps: usize, sums: &mut Sums, fresh: bool) {
    for first in (0..BLOCK).step_by(ROWS) {
        let tile = first / TILE_LINES * 2;
        let in_tile = first % TILE_LINES;
        // SAFETY: steps and lines in them are below what the caller promises: rows `first .. first + 8` of 32. Rows of sums are aligned
        // as whole tiles are, to their size.
        unsafe {
            let mut block: [[__m512; 2]; ROWS] = std::array::from_fn(|row| {
                std::array::from_fn(|side| {
                    if fresh {
                        _mm512_setzero_ps()
                    } else {
                        _mm512_load_ps(sums.0[tile + side][in_tile + row].as_ptr())
                    }
                })
            });
            for step in 0..steps {
                let x = x.add(step * STEP_LINES + first).cast::<[i32; 16]>();
                let w = w.add(step * STEP_LINES).cast::<__m512i>();
                for pair in 0..16 {
                    let left = as_bf16(_mm512_load_si512(w.add(pair)));
                    let right = as_bf16(_mm512_load_si512(w.add(TILE_LINES + pair)));
                    for (row, sums) in block.iter_mut().enumerate() {
                        let x = as_bf16(_mm512_set1_epi32((*x.add(row))[pair]));
                        sums[0] = _mm512_dpbf16_ps(sums[0], x, left);
                        sums[1] = _mm512_dpbf16_ps(sums[1], x, right);
                    }
                }
            }
            for (row, values) in block.into_iter().enumerate() {
                for (side, values) in values.into_iter().enumerate() {
                    _mm512_store_ps(sums.0[tile + side][in_tile + row].as_mut_ptr(), values);
                }
            }
        }
    }
}

#[target_feature(enable = "avx512f")]
fn as_bf16(bits: __m512i) -> __m512bh {
    // SAFETY: both are 512 bits without invalid values.
    unsafe { transmute(bits) }
}

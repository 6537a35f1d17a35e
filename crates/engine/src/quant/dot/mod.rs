//! Dot products of stored rows with a vector: what a decode step spends its time on.
//!
//! One algorithm for all formats and instruction sets. Of each tile of 256 elements,
//!
//! ```text
//! sum_i w_i x_i  =  sum_g ws_g xs_g (sum_{i in g} wc_i xc_i)  -  sum_g (ws_g zero + wm_g) (xs_g sum_{i in g} xc_i)
//! ```
//!
//! with groups g of 16, codes wc (unsigned) and xc (signed), scales ws and xs, mins wm. The inner sums are exact
//! integers; the last bracket is stored with the vector. [`Simd`] adds a tile up; here are the loops.
#[cfg(test)]
mod tests;

use super::DType;
use super::activations::{ActivationTile, Activations};
use super::float::{Bf16, F16, F32, Float};
use super::isa::{Isa, multiversion};
use super::simd::Simd;
use super::tile::{Format, TILE, Tile, with_format};

/// `out[r]` = row r of block-quantised `weights` times `x`.
pub(crate) fn dot_rows(isa: Isa, dtype: DType, weights: &[u8], x: &Activations, out: &mut [f32]) {
    let row_bytes = weights.len().checked_div(out.len()).unwrap_or(0);
    assert_eq!(dtype.row_len(x.len() as u64), Ok(row_bytes as u64), "rows and vector differ in length");
    let x = x.tiles();
    with_format!(
        dtype,
        F => rows_on::<F>(isa, weights, row_bytes, x, out),
        float => unreachable!("{float} is not a block format")
    );
}

fn rows_on<F: Format>(isa: Isa, weights: &[u8], row_bytes: usize, x: &[ActivationTile], out: &mut [f32]) {
    multiversion!(
        isa,
        [F: Format] rows::<F, _> => (weights: &[u8], row_bytes: usize, x: &[ActivationTile], out: &mut [f32])
    )
}

#[inline(always)]
fn rows<F: Format, S: Simd>(simd: S, weights: &[u8], row_bytes: usize, x: &[ActivationTile], out: &mut [f32]) {
    let mut tile = Tile::new();
    for (row, out) in weights.chunks_exact(row_bytes).zip(out) {
        let mut sum = simd.zero();
        // Whole tiles and the rest apart: where the compiler knows the length it leaves the checks out.
        let (whole, rest) = row.split_at(row.len() / F::TILE_BYTES * F::TILE_BYTES);
        for (blocks, x) in whole.chunks_exact(F::TILE_BYTES).zip(x) {
            F::unpack(simd, blocks, &mut tile);
            simd.add::<F>(&mut sum, &tile, x);
        }
        if F::BLOCK_LEN < TILE && !rest.is_empty() {
            F::unpack(simd, rest, &mut tile);
            simd.add::<F>(&mut sum, &tile, &x[x.len() - 1]);
        }
        *out = simd.total(sum);
    }
}

/// `out[r]` = row r of float `weights` times `x`, in f32.
pub(crate) fn dot_float_rows(isa: Isa, dtype: DType, weights: &[u8], x: &[f32], out: &mut [f32]) {
    assert_eq!(weights.len(), x.len() * out.len() * dtype.block_bytes(), "rows and vector differ in length");
    match dtype {
        DType::F32 => float_rows_on::<F32>(isa, weights, x, out),
        DType::F16 => float_rows_on::<F16>(isa, weights, x, out),
        DType::BF16 => float_rows_on::<Bf16>(isa, weights, x, out),
        other => unreachable!("{other} is not a float"),
    }
}

fn float_rows_on<T: Float>(isa: Isa, weights: &[u8], x: &[f32], out: &mut [f32]) {
    multiversion!(isa, [T: Float] float_rows::<T, _> => (weights: &[u8], x: &[f32], out: &mut [f32]))
}

#[inline(always)]
fn float_rows<T: Float, S: Simd>(_: S, weights: &[u8], x: &[f32], out: &mut [f32]) {
    /// Independent partial sums: enough to hide the latency of additions, whatever the vector width.
    const LANES: usize = 64;
    for (row, out) in weights.chunks_exact(x.len() * T::BYTES).zip(out) {
        let mut sums = [0.0; LANES];
        let (x, x_tail) = x.as_chunks::<LANES>();
        let (row, row_tail) = row.split_at(x.len() * LANES * T::BYTES);
        for (w, x) in row.chunks_exact(LANES * T::BYTES).zip(x) {
            for i in 0..LANES {
                sums[i] += T::read(&w[i * T::BYTES..][..T::BYTES]) * x[i];
            }
        }
        for (i, (w, x)) in row_tail.chunks_exact(T::BYTES).zip(x_tail).enumerate() {
            sums[i] += T::read(w) * x;
        }
        let mut width = LANES;
        while width > 1 {
            width /= 2;
            for i in 0..width {
                sums[i] += sums[i + width];
            }
        }
        *out = sums[0];
    }
}

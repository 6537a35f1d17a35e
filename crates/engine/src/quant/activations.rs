//! Activations rounded to 8 bits, the other side of a quantised dot product.
use super::isa::{Isa, multiversion};
use super::simd::Simd;
use super::tile::{GROUP, GROUPS, TILE};

/// 256 elements: element `i` is about `scales[i / 16] * codes[i]`.
#[repr(C, align(64))]
#[derive(Debug, Clone, Copy)]
pub(super) struct ActivationTile {
    pub(super) codes: [i8; TILE],
    pub(super) scales: [f32; GROUPS],
    /// Of each group, scale times the sum of its codes: what a weight's zero or min multiplies.
    pub(super) sums: [f32; GROUPS],
}

impl ActivationTile {
    const ZERO: Self = Self { codes: [0; TILE], scales: [0.0; GROUPS], sums: [0.0; GROUPS] };
}

/// A vector in groups of 16 signed bytes with one f32 scale each.
///
/// (ggml uses groups of 32 or 256: finer groups cost nothing here and halve the rounding error against 256.)
/// A group with a NaN or an infinity has a scale of that kind, so that the result shows it.
#[derive(Debug, Clone)]
pub struct Activations {
    len: usize,
    tiles: Vec<ActivationTile>,
}

impl Activations {
    /// Rounds a vector.
    pub fn quantize(x: &[f32]) -> Self {
        Self::quantize_on(Isa::detect(), x)
    }

    fn quantize_on(isa: Isa, x: &[f32]) -> Self {
        let mut tiles = vec![ActivationTile::ZERO; x.len().div_ceil(TILE)];
        fill(isa, x, &mut tiles);
        Self { len: x.len(), tiles }
    }

    /// The length of the vector.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the vector is empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The vector, padded with zeros to whole tiles.
    pub(super) fn tiles(&self) -> &[ActivationTile] {
        &self.tiles
    }
}

fn fill(isa: Isa, x: &[f32], tiles: &mut [ActivationTile]) {
    multiversion!(isa, [] quantize_groups => (x: &[f32], tiles: &mut [ActivationTile]))
}

#[inline(always)]
fn quantize_groups<S: Simd>(_: S, x: &[f32], tiles: &mut [ActivationTile]) {
    for (x, tile) in x.chunks(TILE).zip(tiles) {
        let (codes, _) = tile.codes.as_chunks_mut::<GROUP>();
        let (groups, tail) = x.as_chunks::<GROUP>();
        let mut padded = [0.0; GROUP];
        padded[..tail.len()].copy_from_slice(tail);
        let groups = groups.iter().chain((!tail.is_empty()).then_some(&padded));
        for (((x, codes), scale), sum) in groups.zip(codes).zip(&mut tile.scales).zip(&mut tile.sums) {
            (*scale, *sum) = quantize_group(x, codes);
        }
    }
}

/// Returns the scale and the scaled sum of codes.
#[inline(always)]
fn quantize_group(x: &[f32; GROUP], codes: &mut [i8; GROUP]) -> (f32, f32) {
    // Compared as integers, magnitudes order like floats and a NaN comes out on top instead of being skipped.
    let largest = f32::from_bits(x.iter().map(|v| v.to_bits() & 0x7fff_ffff).max().unwrap_or(0));
    let scale = largest / 127.0;
    let inverse = if largest == 0.0 { 0.0 } else { 127.0 / largest };
    let mut sum = 0;
    for i in 0..GROUP {
        codes[i] = (x[i] * inverse).round_ties_even() as i8;
        sum += i32::from(codes[i]);
    }
    (scale, scale * sum as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dequantized(activations: &Activations) -> Vec<f32> {
        let value = |t: &ActivationTile, i: usize| t.scales[i / GROUP] * f32::from(t.codes[i]);
        let all = activations.tiles.iter().flat_map(|t| (0..TILE).map(move |i| value(t, i)));
        all.collect()
    }

    #[test]
    fn rounding_is_within_half_a_step_and_sums_match() {
        for isa in Isa::available() {
            for len in [1, 15, 16, 17, 255, 256, 257, 896] {
                let x: Vec<f32> =
                    (0..len).map(|i| ((i * 37 % 101) as f32 - 50.0) * 1e-3f32.powi((i % 3) as i32)).collect();
                let activations = Activations::quantize_on(isa, &x);
                let back = dequantized(&activations);
                for (g, group) in x.chunks(GROUP).enumerate() {
                    let largest = group.iter().fold(0f32, |m, v| m.max(v.abs()));
                    for (i, v) in group.iter().enumerate() {
                        assert!((v - back[g * GROUP + i]).abs() <= largest / 127.0 * 0.5001, "{isa:?} {len}");
                    }
                    let sum: f32 = back[g * GROUP..][..GROUP].iter().sum();
                    let stored = activations.tiles[g / GROUPS].sums[g % GROUPS];
                    assert!((sum - stored).abs() <= 1e-5 * largest * GROUP as f32);
                }
                assert!(back[len..].iter().all(|v| *v == 0.0), "padding is zero");
            }
        }
    }

    #[test]
    fn values_that_are_not_finite_are_not_hidden() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = [1.0; 40];
            x[20] = bad;
            let activations = Activations::quantize(&x);
            assert!(!activations.tiles[0].scales[1].is_finite());
            assert!(activations.tiles[0].scales[0].is_finite());
        }
        let tiny = Activations::quantize(&[f32::from_bits(1); 16]);
        assert!(tiny.tiles[0].sums[0].is_finite());
    }
}

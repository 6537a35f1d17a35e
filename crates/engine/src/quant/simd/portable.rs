//! Plain Rust.
use super::Simd;
use crate::quant::activations::ActivationTile;
use crate::quant::tile::{Format, GROUP, GROUPS, Tile};

#[derive(Clone, Copy)]
pub(in crate::quant) struct Portable;

impl Simd for Portable {
    type Sum = f32;

    #[inline(always)]
    fn zero(self) -> f32 {
        0.0
    }

    #[inline(always)]
    fn add<F: Format>(self, total: &mut f32, weights: &Tile, x: &ActivationTile) {
        for g in 0..GROUPS {
            let mut sum = 0;
            for i in g * GROUP..(g + 1) * GROUP {
                sum += (i32::from(weights.codes[i]) - i32::from(F::ZERO)) * i32::from(x.codes[i]);
            }
            *total += weights.scales[g] * x.scales[g] * sum as f32 - weights.mins[g] * x.sums[g];
        }
    }

    #[inline(always)]
    fn total(self, sum: f32) -> f32 {
        sum
    }
}

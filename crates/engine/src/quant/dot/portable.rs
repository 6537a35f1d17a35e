//! Plain Rust.
use super::Accumulator;
use crate::quant::activations::ActivationTile;
use crate::quant::tile::{Format, GROUP, GROUPS, Tile};

pub(super) struct Sum(f32);

impl Accumulator for Sum {
    #[inline(always)]
    unsafe fn new() -> Self {
        Self(0.0)
    }

    #[inline(always)]
    unsafe fn add<F: Format>(&mut self, weights: &Tile, x: &ActivationTile) {
        for g in 0..GROUPS {
            let mut sum = 0;
            for i in g * GROUP..(g + 1) * GROUP {
                sum += (i32::from(weights.codes[i]) - i32::from(F::ZERO)) * i32::from(x.codes[i]);
            }
            self.0 += weights.scales[g] * x.scales[g] * sum as f32 - weights.mins[g] * x.sums[g];
        }
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        self.0
    }
}

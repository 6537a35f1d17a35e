//! Random attention problems, and patterns to run them with: shared by the suites of the backends.
#![allow(dead_code)] // each suite uses a part

use proptest::prelude::*;
use speedread_attention::{Budget, Pattern, Rows};

/// A random problem: queries, keys and values with some structure, so that patterns have something to find.
pub struct Case {
    pub rows: usize,
    pub start: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub dim: usize,
    pub q: Vec<f32>,
    pub k: Vec<f32>,
    pub v: Vec<f32>,
}

impl Case {
    pub fn new(rows: usize, start: usize, kv_heads: usize, group: usize, dim: usize, seed: u64) -> Self {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut random = move || {
            // xorshift64*; sums of four are close enough to normal.
            (0..4)
                .map(|_| {
                    state ^= state >> 12;
                    state ^= state << 25;
                    state ^= state >> 27;
                    (state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 40) as f32 / (1u64 << 24) as f32 - 0.5
                })
                .sum::<f32>()
        };
        let (heads, len) = (kv_heads * group, start + rows);
        let q: Vec<f32> = (0..rows * heads * dim).map(|_| 2.0 * random()).collect();
        let mut k: Vec<f32> = (0..len * kv_heads * dim).map(|_| 2.0 * random()).collect();
        // Some keys that every query likes: vertical lines.
        for key in (0..len).step_by(97) {
            for x in k[key * kv_heads * dim..(key + 1) * kv_heads * dim].iter_mut() {
                *x *= 2.0;
            }
        }
        let v = (0..len * kv_heads * dim).map(|_| random()).collect();
        Case { rows, start, heads, kv_heads, dim, q, k, v }
    }

    pub fn len(&self) -> usize {
        self.start + self.rows
    }
    pub fn q(&self) -> Rows<'_, f32> {
        Rows::contiguous(&self.q, self.rows, self.heads, self.dim).unwrap()
    }
    pub fn kv<'a, T>(&self, data: &'a [T]) -> Rows<'a, T> {
        Rows::contiguous(data, self.len(), self.kv_heads, self.dim).unwrap()
    }
    pub fn scale(&self) -> f64 {
        1.0 / (self.dim as f64).sqrt()
    }
}

/// Any pattern, of sizes that fit the cases.
pub fn patterns() -> impl Strategy<Value = Pattern> {
    prop_oneof![
        Just(Pattern::Dense),
        (0usize..200, 1usize..600).prop_map(|(sink, local)| Pattern::AShape { sink, local }),
        (0usize..50, 1usize..300, 0usize..200).prop_map(|(sink, local, last)| Pattern::TriShape { sink, local, last }),
        (0usize..300, 1usize..400).prop_map(|(vertical, slash)| Pattern::VerticalSlash {
            vertical,
            slash,
            budget: Budget::Lines
        }),
        (0usize..6, 1usize..12).prop_map(|(vertical, slash)| Pattern::VerticalSlash {
            vertical,
            slash,
            budget: Budget::Tiles
        }),
        (1usize..20).prop_map(|blocks| Pattern::BlockSparse { blocks }),
    ]
}

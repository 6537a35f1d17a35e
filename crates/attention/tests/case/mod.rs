//! Random attention problems, and patterns to run them with: shared by the suites of the backends.
#![allow(dead_code)] // each suite uses a part

use proptest::prelude::*;
use speedread_attention::{Budget, Element, Pattern, Rows, SparseIndex};

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
        (1usize..6, 0usize..12, 1usize..=100).prop_map(|(least, more, percent)| Pattern::BlockShare {
            least,
            most: least + more,
            percent
        }),
    ]
}

/// Gives the pooled scores of a case of 64-element heads a spread of some units, which differs from one tile of 64 keys to the next.
pub fn spread(case: &mut Case) {
    let kv_heads = case.kv_heads;
    case.q.chunks_exact_mut(64).for_each(|q| q[0] += 8.0);
    for (row, k) in case.k.chunks_exact_mut(64).enumerate() {
        k[0] += (row / kv_heads / 64 * 37 % 11) as f32 * 0.7 - 3.0;
    }
}

/// Checks the lists of a head under [`Pattern::BlockShare`] against the definition, in f64. `rounding` is that of pooled numbers and of scores.
pub fn check_shares<T: Element>(
    (q, k): (Rows<'_, f32>, Rows<'_, T>),
    head: usize,
    index: &SparseIndex,
    (least, most, percent): (usize, usize, usize),
    window: Option<usize>,
    rounding: f64,
    about: &str,
) {
    let (dim, keys) = (q.dim(), index.shape().keys);
    let scale = 1.0 / (dim as f64).sqrt();
    let kv_head = head / (q.heads() / k.heads());
    let mean = |rows: std::ops::Range<usize>, of: &dyn Fn(usize, usize) -> f64| -> Vec<f64> {
        (0..dim).map(|x| rows.clone().map(|row| of(row, x)).sum::<f64>() / rows.len() as f64).collect()
    };
    let pooled: Vec<Vec<f64>> = (0..k.rows().div_ceil(keys))
        .map(|b| mean(b * keys..((b + 1) * keys).min(k.rows()), &|row, x| f64::from(k.row(row, kv_head)[x].to_f32())))
        .collect();
    let length = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>().sqrt();
    let lists = index.blocks().expect("a list for every query tile");
    for tile in (0..index.query_tiles()).filter(|&tile| !index.is_dense(tile)) {
        let positions = index.positions(tile);
        let (own, last) = (positions.start / keys, (positions.end - 1) / keys);
        let rows = positions.start - index.start()..positions.end - index.start();
        let q = mean(rows, &|row, x| f64::from(q.row(row, head)[x]));
        let scores: Vec<f64> =
            pooled[..=own].iter().map(|k| scale * q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>()).collect();
        // Tiles that the window leaves to no row have no part in it.
        let seen = window.map_or(0, |window| (positions.start + 1).saturating_sub(window) / keys);
        let top = scores[seen..].iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> =
            scores.iter().enumerate().map(|(b, s)| if b < seen { 0.0 } else { (s - top).exp() }).collect();
        let far = pooled[..=own].iter().map(|k| length(k)).fold(0.0, f64::max) * length(&q) * scale;
        // Of scores, and relative of what they weigh.
        let close = rounding * (far + 1e-3);
        let (chosen, about) = (lists.of(tile), format!("{about}, head {head}, tile {tile}: {:?}", lists.of(tile)));
        assert!(chosen.windows(2).all(|w| w[0] < w[1]) && *chosen.last().unwrap() as usize == last, "{about}");
        assert!(chosen[0] as usize >= seen && (own..=last).all(|b| chosen.contains(&(b as u32))), "{about}");
        assert!(seen > 0 || chosen[0] == 0, "{about}");
        let free: Vec<usize> = chosen.iter().map(|&b| b as usize).filter(|&b| b > 0 && b < own).collect();
        let lowest = free.iter().map(|&b| scores[b]).fold(f64::INFINITY, f64::min);
        let left_out =
            (seen.max(1)..own).filter(|b| !free.contains(b)).map(|b| scores[b]).fold(f64::NEG_INFINITY, f64::max);
        assert!(left_out <= lowest + close, "{about}: {left_out} is left out, {lowest} chosen");
        let forced = last - own + 1 + usize::from(own > 0 && seen == 0);
        assert!(
            (least.max(forced).min(last + 1 - seen)..=most.max(forced)).contains(&chosen.len()),
            "{about}: how many"
        );
        let ends = weights[own] + if own > 0 { weights[0] } else { 0.0 };
        let held = |above: f64| ends + free.iter().filter(|&&b| scores[b] > above).map(|&b| weights[b]).sum::<f64>();
        let wanted = percent as f64 / 100.0 * weights.iter().sum::<f64>();
        let slack = wanted * 2.0 * close;
        if chosen.len() < most.max(forced).min(last + 1 - seen) {
            assert!(held(f64::NEG_INFINITY) >= wanted - slack, "{about}: too few, {scores:?}");
        }
        if chosen.len() > least.max(forced) {
            // Those that may be of one score were taken together.
            assert!(held(lowest + close) < wanted + slack, "{about}: more than it takes, {scores:?}");
        }
    }
}

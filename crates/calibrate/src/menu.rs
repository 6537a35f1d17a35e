//! The candidates of a search: patterns of every family at a ladder of costs.
//!
//! The paper's search sets each candidate to the cost of one target by steps of its budget ("ChangeSpace", algorithm 1). Here a family's
//! budget is stepped, a key tile at a time, to several multiples of the target's time, so that a search over all heads together can give one
//! head more and another less.

use serde::{Deserialize, Serialize};
use speedread_attention::estimate::{FORCED_DIAGONALS, LAST_QUERIES};
use speedread_attention::index::{Visits, cover};
use speedread_attention::{Budget, Pattern};

use crate::kernel_times::KernelTimes;

/// Kinds of patterns that a search may choose from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    /// Every key.
    Dense,
    /// Sinks and a local band; the last queries may see everything (tri-shape).
    AShape,
    /// Columns and diagonals.
    VerticalSlash,
    /// Diagonals only (and the columns that are always kept).
    Slash,
    /// Key tiles per query tile.
    BlockSparse,
}

impl Family {
    /// All of them.
    pub const ALL: [Family; 5] =
        [Family::Dense, Family::AShape, Family::VerticalSlash, Family::Slash, Family::BlockSparse];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Family::Dense => "dense",
            Family::AShape => "a-shape",
            Family::VerticalSlash => "vertical-slash",
            Family::Slash => "slash",
            Family::BlockSparse => "block-sparse",
        }
    }

    /// The family of a pattern.
    pub fn of(pattern: Pattern) -> Self {
        match pattern {
            Pattern::Dense => Family::Dense,
            Pattern::AShape { .. } | Pattern::TriShape { .. } => Family::AShape,
            Pattern::VerticalSlash { vertical: 0, .. } => Family::Slash,
            Pattern::VerticalSlash { .. } => Family::VerticalSlash,
            Pattern::BlockSparse { .. } | Pattern::BlockShare { .. } => Family::BlockSparse,
        }
    }
}

/// How budgets of vertical-slash candidates count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Lines {
    /// In key tiles: the cost is known beforehand.
    Tiles,
    /// In columns and diagonals: what MInference's format holds.
    Lines,
}

/// Multiples of the target's time that every family is offered at; 1 is the paper's.
const LADDER: [f64; 8] = [0.25, 0.375, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0];
/// Shares of a vertical-slash budget that go to columns.
const COLUMN_SHARES: [f64; 4] = [0.125, 0.25, 0.5, 0.75];
/// Shares of an A-shape's budget that go to sinks; the least is one tile.
const SINK_SHARES: [f64; 2] = [0.0, 0.25];
/// The paper's shapes of vertical-slash, columns and diagonals (appendix, table of the search space).
const PAPER_LINES: [(usize, usize); 4] = [(30, 2048), (100, 1800), (500, 1500), (3000, 200)];
/// Factors on them.
const LINE_FACTORS: [f64; 6] = [0.125, 0.25, 0.5, 1.0, 2.0, 4.0];

/// The patterns a search measures: dense first, then the uniform default, then every family's ladder, without repeats. Budgets in tiles are in
/// those of the timed kernel.
pub fn menu(tokens: usize, target: f64, times: &KernelTimes, lines: Lines) -> Vec<Pattern> {
    let keys = times.kernel.tile().keys;
    let tiles = tokens.div_ceil(keys);
    let mut all = vec![Pattern::Dense, Pattern::default_for(tokens)];
    let mut add = |pattern: Pattern| {
        if !all.contains(&pattern) {
            all.push(pattern);
        }
    };
    for multiple in LADDER {
        let mut step_up = |with_budget: &dyn Fn(usize) -> Pattern| {
            let fits = |&budget: &usize| most_seconds(with_budget(budget), tokens, times) <= multiple * target;
            // The largest budget that costs no more; the least one where none does.
            let budget = (1..=tiles).take_while(fits).last().unwrap_or(1);
            // A budget for everything is dense.
            if budget < tiles {
                add(with_budget(budget));
            }
        };
        for share in SINK_SHARES {
            step_up(&|budget| {
                let sink = ((budget as f64 * share) as usize).max(1);
                let (sink, local) = (sink * keys, (budget - sink.min(budget)).max(1) * keys);
                match lines {
                    // As under the other patterns with tile budgets, the user's question sees every key.
                    Lines::Tiles => Pattern::TriShape { sink, local, last: LAST_QUERIES },
                    Lines::Lines => Pattern::AShape { sink, local },
                }
            });
        }
        if lines == Lines::Tiles {
            for share in COLUMN_SHARES {
                step_up(&|budget| {
                    let vertical = ((budget as f64 * share).round() as usize).max(1);
                    let slash = (budget - vertical.min(budget)).max(1);
                    Pattern::VerticalSlash { vertical, slash, budget: Budget::Tiles }
                });
            }
            step_up(&|budget| Pattern::VerticalSlash { vertical: 0, slash: budget, budget: Budget::Tiles });
        }
        step_up(&|blocks| Pattern::BlockSparse { blocks });
    }
    if lines == Lines::Lines {
        for factor in LINE_FACTORS {
            for (vertical, slash) in PAPER_LINES {
                let scaled = |lines: usize| ((lines as f64 * factor) as usize).max(1);
                let (vertical, slash) = (scaled(vertical), scaled(slash));
                if vertical + slash < tokens {
                    add(Pattern::VerticalSlash { vertical, slash, budget: Budget::Lines });
                }
            }
        }
    }
    all
}

/// The most seconds that a head can take under a pattern, before any prompt is seen: query tile `t` has `t + 1` key tiles to choose from. A window
/// far from the diagonal serves late query tiles only, so vertical-slash may take less; what it takes is known once it is measured.
pub fn most_seconds(pattern: Pattern, tokens: usize, times: &KernelTimes) -> f64 {
    // A query tile has as many rows as a key tile has keys.
    let shape = times.kernel.tile();
    let tiles = tokens.div_ceil(shape.keys) as u64;
    // Sum over query tiles of what is visited when each may visit `budget`, of those that are left.
    let capped = |budget: u64, taken: u64| (1..=tiles).map(|t| budget.min(t.saturating_sub(taken))).sum::<u64>();
    let visits = match pattern {
        Pattern::Dense => Visits { runs: capped(tiles, 0), gathered: 0 },
        Pattern::AShape { sink, local } | Pattern::TriShape { sink, local, .. } => {
            // A band of `local` keys reaches into one tile more.
            let band = local.div_ceil(shape.keys) as u64 + 1;
            let tail = if matches!(pattern, Pattern::TriShape { .. }) { tiles.saturating_sub(band) } else { 0 };
            Visits { runs: capped(band, 0) + tail, gathered: capped(sink.div_ceil(shape.keys) as u64, band) }
        }
        Pattern::VerticalSlash { vertical, slash, budget } => {
            let (vertical, slash) = match budget {
                Budget::Tiles => (vertical, slash),
                Budget::Lines => (vertical.div_ceil(shape.keys), slash),
            };
            // The nearest diagonals and the first columns are always kept; the last query tile sees everything.
            let nearest = cover(&(0..FORCED_DIAGONALS).collect::<Vec<_>>(), shape).len();
            let (vertical, slash) = (vertical.max(1) as u64, slash.max(nearest) as u64);
            Visits { runs: capped(slash, 0) + tiles.saturating_sub(slash), gathered: capped(vertical, slash) }
        }
        Pattern::BlockSparse { blocks } | Pattern::BlockShare { most: blocks, .. } => {
            let blocks = blocks.max(2) as u64;
            Visits { runs: capped(blocks, 0) + tiles.saturating_sub(blocks), gathered: 0 }
        }
    };
    times.head(pattern, visits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use speedread_attention::{Kernel, Options, Rows, plan_in_tiles};

    const TIMES: KernelTimes = KernelTimes {
        kernel: Kernel::Cpu,
        aligned_tile: 1.0,
        shifted_tile: 1.25,
        gathered_tile: 2.0,
        vertical_slash_index: 50.0,
        block_sparse_index: 20.0,
    };

    #[test]
    fn every_family_is_offered_at_the_target() {
        let (tokens, target) = (8192, 3000.0);
        let menu = menu(tokens, target, &TIMES, Lines::Tiles);
        assert_eq!(menu[..2], [Pattern::Dense, Pattern::default_for(tokens)]);
        for family in [Family::AShape, Family::VerticalSlash, Family::Slash, Family::BlockSparse] {
            let costs: Vec<f64> =
                menu.iter().filter(|&&p| Family::of(p) == family).map(|&p| most_seconds(p, tokens, &TIMES)).collect();
            // One step of a budget is a tile of every query tile.
            let near = costs.iter().filter(|&&cost| cost <= target && cost > target - 2.1 * 128.0).count();
            assert!(near > 0, "{family:?}: {costs:?}");
            assert!(costs.iter().any(|&cost| cost < 0.6 * target), "{family:?}: {costs:?}");
            assert!(costs.iter().any(|&cost| cost > 1.4 * target), "{family:?}: {costs:?}");
        }
        let mut unique = menu.clone();
        unique.dedup();
        assert_eq!(unique.len(), menu.len());
    }

    #[test]
    fn lines_are_what_minference_can_write() {
        let menu = menu(8192, 1500.0, &TIMES, Lines::Lines);
        assert!(menu[2..].iter().all(|p| !matches!(p, Pattern::VerticalSlash { budget: Budget::Tiles, .. })));
        assert!(menu.iter().any(|p| matches!(p, Pattern::VerticalSlash { budget: Budget::Lines, .. })));
    }

    #[test]
    fn short_prompts_have_a_menu_too() {
        for tokens in [1, 64, 200, 1000] {
            for pattern in menu(tokens, 1.0, &TIMES, Lines::Tiles) {
                pattern.validate().unwrap();
            }
        }
    }

    #[test]
    fn expectations_are_what_indexes_cost_at_most() {
        let (tokens, dim) = (4096, 64);
        // Random values: every key has some mass, so budgets are spent to the full.
        let mut state = 1u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
        };
        let data: Vec<f32> = (0..tokens * dim).map(|_| random()).collect();
        let rows = Rows::contiguous(&data, tokens, 1, dim).unwrap();
        let options = Options { dense_fallback: false, ..Options::default() };
        for kernel in [Kernel::Cpu, Kernel::Cuda] {
            let times = KernelTimes { kernel, ..TIMES };
            for text in [
                "dense",
                "a-shape:64,640",
                "tri-shape:64,640,64",
                "vertical-slash-tiles:4,12",
                "vertical-slash-tiles:0,16",
                "block-sparse:10",
            ] {
                let pattern: Pattern = text.parse().unwrap();
                let planned = plan_in_tiles(rows, rows, &[pattern], kernel.tile(), &options).unwrap();
                let visits = kernel.visits(&planned[0].1);
                let (got, want) = (most_seconds(pattern, tokens, &times), times.head(pattern, visits));
                let least = if text.starts_with("vertical") { 0.5 } else { 0.85 };
                assert!(want / got <= 1.02 && want / got >= least, "{kernel:?} {text}: {got} {want}");
            }
        }
    }
}

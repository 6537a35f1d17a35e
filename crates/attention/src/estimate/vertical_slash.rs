//! Vertical-slash: columns and diagonals chosen by the mass the last queries give them.

use std::cmp::Ordering;

use super::LastQueryMass;
use crate::Budget;
use crate::index::{SparseIndex, TileShape, cover};

/// Query rows that the estimate looks at (MInference's `last_q`).
pub const LAST_QUERIES: usize = 64;
/// Columns at the start that are always kept (MInference's constant).
pub const FORCED_COLUMNS: usize = 30;
/// Nearest diagonals that are always kept (MInference's constant). They are kept whatever the budget: the original fills a slash budget
/// of 50 to 99 with an arbitrary subset of them and may lose the diagonal itself.
pub const FORCED_DIAGONALS: usize = 100;

/// Chooses the lines of a head, and the tiles of `shape` that hold them.
pub(super) fn choose(
    mass: &LastQueryMass,
    start: usize,
    rows: usize,
    vertical: usize,
    slash: usize,
    budget: Budget,
    shape: TileShape,
) -> SparseIndex {
    let len = mass.columns.len();
    match budget {
        Budget::Lines => {
            let diagonals = top(&mass.diagonals, slash.max(FORCED_DIAGONALS), |t| t < FORCED_DIAGONALS);
            let columns = top(&mass.columns, vertical.max(FORCED_COLUMNS), |j| j < FORCED_COLUMNS);
            SparseIndex::from_lines(start, rows, shape, &diagonals, columns)
        }
        Budget::Tiles => {
            let windows = windows_by_mass(mass, slash, shape);
            let mut columns = mass.columns.clone();
            // What the windows hold for the last queries is not the columns' to bring.
            let m0 = len - mass.queries;
            for &o in windows.iter().take_while(|&&o| o < m0 + shape.keys) {
                columns[m0.saturating_sub(o)..(m0 + shape.keys - o).min(len)].fill(0.0);
            }
            let count = vertical.saturating_mul(shape.keys).max(FORCED_COLUMNS);
            let mut chosen = top(&columns, count, |j| j < FORCED_COLUMNS);
            chosen.retain(|&j| columns[j] > 0.0 || j < FORCED_COLUMNS);
            // The queries of the estimate are the user's question: they see every key, for the price of a query tile or two.
            SparseIndex::from_windows(start, rows, shape, windows, chosen).with_dense_tail(mass.queries)
        }
    }
}

/// Positions of the `count` largest values, ascending; `forced` ones first, ties to the lower position.
fn top(values: &[f32], count: usize, forced: impl Fn(usize) -> bool) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    let key = |i: usize| if forced(i) { f32::INFINITY } else { values[i] };
    let descending = |&a: &usize, &b: &usize| -> Ordering { key(b).total_cmp(&key(a)).then(a.cmp(&b)) };
    if count < order.len() {
        order.select_nth_unstable_by(count, descending);
        order.truncate(count);
    }
    order.sort_unstable();
    order
}

/// At most `budget` window offsets (but always those of the forced diagonals): greedily the window that brings the most slash mass
/// among those that overlap no chosen one.
///
/// A diagonal `t` has the mass `D[t]`, spread evenly over its rows; window `o` holds the rows `r` of a tile with `0 <= r + o - t < N`. So
/// the mass window `o` brings is `D` under a trapezoid, and as windows are disjoint, what each brings is new.
fn windows_by_mass(mass: &LastQueryMass, budget: usize, shape: TileShape) -> Vec<usize> {
    let len = mass.diagonals.len();
    // Windows chosen one by one leave gaps too narrow for another: a budget for everything is spent on everything.
    if budget >= len.div_ceil(shape.keys) {
        let all = cover(&(0..len).collect::<Vec<_>>(), shape);
        if all.len() <= budget {
            return all;
        }
    }
    let forced: Vec<usize> = (0..FORCED_DIAGONALS.min(len)).collect();
    let mut windows = cover(&forced, shape);
    let gains = gains(&mass.diagonals, shape);
    // The best free offset of each run of N offsets; choosing a window touches three runs.
    let free = |windows: &[usize], o: usize| {
        let next = windows.partition_point(|&w| w <= o);
        (next == 0 || o >= windows[next - 1] + shape.keys) && (next == windows.len() || windows[next] >= o + shape.keys)
    };
    let best_of = |windows: &[usize], run: usize| {
        (run * shape.keys..((run + 1) * shape.keys).min(len))
            .filter(|&o| gains[o] > 0.0 && free(windows, o))
            .max_by(|&a, &b| gains[a].total_cmp(&gains[b]).then(b.cmp(&a)))
    };
    let mut best: Vec<Option<usize>> = (0..len.div_ceil(shape.keys)).map(|run| best_of(&windows, run)).collect();
    while windows.len() < budget {
        let Some(o) = best.iter().flatten().copied().max_by(|&a, &b| gains[a].total_cmp(&gains[b]).then(b.cmp(&a)))
        else {
            break;
        };
        windows.insert(windows.partition_point(|&w| w < o), o);
        let run = o / shape.keys;
        for run in run.saturating_sub(1)..(run + 2).min(best.len()) {
            best[run] = best_of(&windows, run);
        }
    }
    windows
}

/// Mass that a window at each offset brings: `sum_t D[t] * |{r in 0..M : 0 <= r + o - t < N}| / M`, in two running sums.
fn gains(diagonals: &[f32], shape: TileShape) -> Vec<f32> {
    let (m, n, len) = (shape.queries as i64, shape.keys as i64, diagonals.len() as i64);
    // prefix[i] = D[0] + .. + D[i-1], in f64: the sums run over a million entries.
    let mut prefix = vec![0f64; diagonals.len() + 1];
    for (i, &d) in diagonals.iter().enumerate() {
        prefix[i + 1] = prefix[i] + d as f64;
    }
    let upto = |i: i64| prefix[i.clamp(0, len) as usize];
    // Row r of a tile finds in window o the diagonals o+r-N+1 ..= o+r.
    let row = |x: i64| upto(x + 1) - upto(x + 1 - n);
    let mut sum: f64 = (0..m).map(row).sum();
    (0..len)
        .map(|o| {
            let gain = sum / m as f64;
            sum += row(o + m) - row(o);
            gain as f32
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::TILE;
    use proptest::prelude::*;

    fn mass(len: usize, at: &[(usize, f32)], columns: &[(usize, f32)]) -> LastQueryMass {
        let mut mass = LastQueryMass { queries: 64.min(len), columns: vec![0.0; len], diagonals: vec![0.0; len] };
        at.iter().for_each(|&(t, x)| mass.diagonals[t] = x);
        columns.iter().for_each(|&(j, x)| mass.columns[j] = x);
        mass
    }

    #[test]
    fn lines_keep_the_forced_ones_and_break_ties_low() {
        let index =
            choose(&mass(1000, &[(500, 1.0), (600, 1.0)], &[(700, 1.0)]), 0, 1000, 31, 101, Budget::Lines, TILE);
        assert_eq!(index.windows(), [0, 64, 128, 500]);
        let mut want: Vec<usize> = (0..30).collect();
        want.push(700);
        assert_eq!(index.columns(), want);
        // A slash budget below the forced ones keeps them all.
        let small = choose(&mass(1000, &[(500, 1.0)], &[]), 0, 1000, 0, 50, Budget::Lines, TILE);
        assert_eq!((small.windows(), small.columns().len()), (&[0, 64, 128][..], 30));
    }

    #[test]
    fn tiles_take_the_heaviest_windows() {
        let index = choose(
            &mass(4096, &[(1000, 3.0), (1010, 3.0), (2000, 5.0), (3000, 1.0)], &[]),
            0,
            4096,
            0,
            5,
            Budget::Tiles,
            TILE,
        );
        // One window over both of the neighbours brings nearly 6, the one at 2000 brings 5; nothing is left for 3000.
        assert_eq!(index.windows().len(), 5);
        assert_eq!(index.windows()[4], 2000);
        assert!((1000..=1010).contains(&index.windows()[3]), "{:?}", index.windows());
    }

    #[test]
    fn a_budget_for_everything_is_dense() {
        for len in [1, 63, 64, 65, 1000, 4096] {
            let index =
                choose(&mass(len, &[(0, 1.0)], &[]), 0, len, 4, len.div_ceil(TILE.keys) + 1, Budget::Tiles, TILE);
            let tiles: usize = (0..index.query_tiles()).map(|tile| index.tiles(tile)).sum();
            assert_eq!(tiles as u64, index.total_dense_tiles(), "{len}");
        }
    }

    #[test]
    fn column_tiles_leave_out_what_windows_hold() {
        let columns: Vec<(usize, f32)> = (0..4096).map(|j| (j, 1.0 + j as f32)).collect();
        let index = choose(&mass(4096, &[], &columns), 0, 4096, 1, 3, Budget::Tiles, TILE);
        assert_eq!(index.windows(), [0, 64, 128]);
        // Last queries start at 4032, the windows hold 3904..4096.
        let mut want: Vec<usize> = (0..30).collect();
        want.extend(3904 - 34..3904);
        assert_eq!(index.columns(), want);
    }

    proptest! {
        #[test]
        fn tile_budget_is_a_bound(
            len in 1usize..3000, v in 0usize..8, s in 3usize..40,
            spikes in proptest::collection::vec((0usize..3000, 0.0f32..1.0), 0..80),
        ) {
            let at: Vec<_> = spikes.iter().copied().filter(|&(i, _)| i < len).collect();
            let index = choose(&mass(len, &at, &at), 0, len, v, s, Budget::Tiles, TILE);
            prop_assert!(index.windows().len() <= s);
            let tail = (len - 64.min(len)) / TILE.queries;
            for tile in 0..index.query_tiles() {
                prop_assert!(index.is_dense(tile) == (tile >= tail));
                prop_assert!(tile >= tail || index.tiles(tile) <= s + v.max(1));
            }
        }

        #[test]
        fn gains_are_the_mass_under_a_window(len in 1usize..300, spikes in proptest::collection::vec((0usize..300, 0.0f32..1.0), 0..30)) {
            let mut d = vec![0f32; len];
            spikes.iter().filter(|s| s.0 < len).for_each(|&(t, x)| d[t] = x);
            for (o, gain) in gains(&d, TILE).into_iter().enumerate() {
                let want: f64 = (0..TILE.queries).flat_map(|r| (0..TILE.keys).map(move |c| (r + o) as i64 - c as i64))
                    .filter(|&t| t >= 0 && t < len as i64).map(|t| d[t as usize] as f64).sum::<f64>() / TILE.queries as f64;
                prop_assert!((gain as f64 - want).abs() < 1e-5, "{o}: {gain} {want}");
            }
        }
    }
}

//! How a call is cut into tasks.

use std::ops::Range;

/// Some outputs of one of the call's matrices, for some rows of x.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Task {
    /// Which matrix.
    pub(super) linear: usize,
    /// Its outputs.
    pub(super) columns: Range<usize>,
    /// The rows of x.
    pub(super) rows: Range<usize>,
}

/// The grain of tasks: where rows and columns may be cut, and the largest group of columns, which bounds the working memory.
pub(super) struct Grain {
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) max_columns: usize,
}

/// Tasks that cover `n` rows of every matrix, each element once.
///
/// A task dequantises its columns, so columns are cut first: into some groups per thread, as threads do not run at the same speed on
/// a shared machine, but not so narrow that streaming x past them costs more than multiplying. When that leaves threads without a
/// task, as for the few outputs of a key projection, rows are cut as well, but into parts long enough to repay dequantising again.
pub(super) fn cut(n: usize, outputs: &[usize], grain: &Grain, threads: usize) -> Vec<Task> {
    const GROUPS_PER_THREAD: usize = 3;
    const MIN_COLUMNS: usize = 64;
    const TASKS_PER_THREAD: usize = 2;
    const MIN_ROWS: usize = 256;
    let (columns, rows) = if threads > 1 {
        let total: usize = outputs.iter().sum();
        let even = total.div_ceil(GROUPS_PER_THREAD * threads).next_multiple_of(grain.columns);
        let columns = even.max(MIN_COLUMNS).min(grain.max_columns);
        let groups: usize = outputs.iter().map(|&m| m.div_ceil(columns)).sum();
        let parts = (TASKS_PER_THREAD * threads).div_ceil(groups.max(1)).min(n.div_ceil(MIN_ROWS));
        (columns, n.div_ceil(parts).next_multiple_of(grain.rows))
    } else {
        (grain.max_columns, n)
    };
    let mut tasks = Vec::new();
    for (linear, &m) in outputs.iter().enumerate() {
        for columns in ranges(m, columns) {
            tasks.extend(ranges(n, rows).map(|rows| Task { linear, columns: columns.clone(), rows }));
        }
    }
    tasks
}

/// `0..len` in ranges of `step`, the last one shorter.
pub(super) fn ranges(len: usize, step: usize) -> impl Iterator<Item = Range<usize>> {
    (0..len).step_by(step).map(move |start| start..(start + step).min(len))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn tasks_cover_every_element_once(
            n in 1usize..900,
            outputs in prop::collection::vec(1usize..400, 1..4),
            threads in 1usize..70,
            max_columns in prop::sample::select(vec![32usize, 64, 256]),
        ) {
            let tasks = cut(n, &outputs, &Grain { rows: 32, columns: 32, max_columns }, threads);
            let mut seen: Vec<Vec<u8>> = outputs.iter().map(|m| vec![0; n * m]).collect();
            for task in &tasks {
                prop_assert!(task.columns.start % 32 == 0 && task.rows.start % 32 == 0 && task.columns.len() <= max_columns);
                for row in task.rows.clone() {
                    for column in task.columns.clone() {
                        seen[task.linear][row * outputs[task.linear] + column] += 1;
                    }
                }
            }
            prop_assert!(seen.iter().flatten().all(|&count| count == 1));
        }
    }
}

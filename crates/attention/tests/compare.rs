//! What `compare` reports of a plan, against the f64 oracle on the same keys.

mod case;

use case::{Case, patterns};
use proptest::prelude::*;
use speedread_attention::compare::{Plan, compare};
use speedread_attention::reference::attend_row;
use speedread_attention::{Error, Kernel, Options, Pattern, SparseIndex, build_indexes, plan_in_tiles};

/// Options that build the index of the very pattern.
fn options() -> Options<'static> {
    Options { dense_fallback: false, ..Options::default() }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn deviations_are_the_oracles(
        rows in 1usize..300, start in 0usize..200, kv_heads in 1usize..3, group in 1usize..4,
        first in patterns(), second in patterns(), tiles in 1usize..8, on_device in any::<bool>(), seed in any::<u64>(),
    ) {
        let case = Case::new(rows, start, kv_heads, group, 64, seed);
        let kernel = if on_device { Kernel::Cuda } else { Kernel::Cpu };
        let (q, k, v) = (case.q(), case.kv(&case.k), case.kv(&case.v));
        let patterns = [first, second];
        let plans: Vec<_> = patterns.iter().map(|&p| vec![Plan::Pattern(p); case.heads]).collect();
        let deviations = compare(q, k, v, &plans, tiles, kernel, &options()).unwrap();
        for (pattern, deviations) in patterns.iter().zip(deviations) {
            let indexes = plan_in_tiles(q, k, &vec![*pattern; case.heads], kernel.tile(), &options()).unwrap();
            for (head, (got, (_, index))) in deviations.iter().zip(indexes).enumerate() {
                let all = index.query_tiles();
                let count = tiles.min(all);
                let sampled: Vec<usize> = (1..=count).map(|i| i * all / count - 1).collect();
                let (mut error, mut energy, mut recall, mut least, mut seen) = (0.0, 0.0, 0.0, f64::INFINITY, 0.0);
                for row in (0..rows).filter(|row| sampled.contains(&(row / kernel.tile().queries))) {
                    let attend = |visible: &dyn Fn(usize) -> bool| {
                        attend_row(q.row(row, head), k, v, head / group, case.scale(), visible)
                    };
                    let (dense, dense_lse) = attend(&|key| key <= start + row);
                    let (sparse, lse) = attend(&|key| index.contains(row, key));
                    error += dense.iter().zip(&sparse).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
                    energy += dense.iter().map(|x| x * x).sum::<f64>();
                    recall += (lse - dense_lse).exp();
                    least = least.min((lse - dense_lse).exp());
                    seen += 1.0;
                }
                prop_assert!((got.error - error).abs() <= 1e-4 * energy.max(error), "{pattern}: {} {error}", got.error);
                prop_assert!((got.energy - energy).abs() <= 1e-4 * energy, "{pattern}: {} {energy}", got.energy);
                prop_assert!((got.recall.mean - recall / seen).abs() < 1e-4, "{pattern}: {:?} {}", got.recall, recall / seen);
                prop_assert!((got.recall.min - least).abs() < 1e-4, "{pattern}: {:?} {least}", got.recall);
                prop_assert_eq!(got.visits, kernel.visits(&index));
            }
        }
    }
}

#[test]
fn an_index_of_another_prompt_is_a_plan() {
    let (case, other) = (Case::new(500, 0, 1, 2, 64, 1), Case::new(500, 0, 1, 2, 64, 2));
    let pattern: Pattern = "vertical-slash:40,120".parse().unwrap();
    let indexes = |case: &Case| build_indexes(case.q(), case.kv(&case.k), &[pattern; 2], &options()).unwrap();
    let (own, others) = (indexes(&case), indexes(&other));
    let fixed = |indexes: &[SparseIndex]| {
        let plans = [indexes.iter().map(Plan::Index).collect()];
        compare(case.q(), case.kv(&case.k), case.kv(&case.v), &plans, 100, Kernel::Cpu, &options()).unwrap().remove(0)
    };
    let plans = [vec![Plan::Pattern(pattern); 2]];
    let built = compare(case.q(), case.kv(&case.k), case.kv(&case.v), &plans, 100, Kernel::Cpu, &options());
    assert_eq!(fixed(&own), built.unwrap().remove(0));
    assert_ne!(fixed(&own), fixed(&others));
}

#[test]
fn an_index_of_another_length_or_kernel_is_refused() {
    let case = Case::new(100, 0, 1, 1, 64, 1);
    for (index, why) in [
        (SparseIndex::dense(0, 99, Kernel::Cpu.tile()), "head 0 is of 99 rows"),
        (SparseIndex::dense(0, 100, Kernel::Cuda.tile()), "queries: 64, keys: 64 } are needed"),
    ] {
        let plans = [vec![Plan::Index(&index)]];
        let error = compare(case.q(), case.kv(&case.k), case.kv(&case.v), &plans, 1, Kernel::Cpu, &options());
        let Err(Error::Shape(what)) = error else { panic!("{error:?}") };
        assert!(what.contains(why), "{what}");
    }
}

//! Attention over indexes of another prompt, against the f64 oracle and against the indexes' own prompt.

mod case;

use case::{Case, patterns};
use proptest::prelude::*;
use speedread_attention::cpu::TILE;
use speedread_attention::reference::attend_row;
use speedread_attention::*;

/// Output, log-sum-exp and what the heads did.
type Read = (Vec<f32>, Vec<f32>, Vec<HeadReport>);

fn run(case: &Case, heads: Heads<'_>, options: &Options<'_>) -> Result<Read, Error> {
    let (mut out, mut lse) = (vec![0.0; case.q.len()], vec![0.0; case.heads * case.rows]);
    let to = RowsMut::contiguous(&mut out, case.rows, case.heads, case.dim)?;
    let (k, v) = (case.kv(&case.k), case.kv(&case.v));
    let report = prefill_heads(case.q(), k, v, heads, options, to, Some(&mut lse))?;
    Ok((out, lse, report.heads))
}

fn fixed(case: &Case, patterns: &[Pattern], options: &Options<'_>) -> Vec<FixedHead> {
    fix(case.q(), case.kv(&case.k), patterns, TILE, options).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// For its own prompt an index changes nothing.
    #[test]
    fn a_prompt_with_its_own_indexes_is_read_as_ever(
        rows in 1usize..700, first in patterns(), second in patterns(), fallback: bool,
        window in prop_oneof![Just(None), (1usize..300).prop_map(Some)], seed: u64,
    ) {
        let case = Case::new(rows, 0, 1, 2, 64, seed);
        let options = Options { dense_fallback: fallback, window, ..Options::default() };
        let heads = fixed(&case, &[first, second], &options);
        let got = run(&case, Heads::Fixed(&heads), &options).unwrap();
        prop_assert_eq!(got, run(&case, Heads::Patterns(&[first, second]), &options).unwrap());
    }

    /// Another prompt is read over the index's lines and tiles, whatever its length.
    #[test]
    fn another_prompt_is_read_over_them(
        rows in 1usize..500, other in 1usize..500, pattern in patterns(), fallback: bool, seed: u64,
    ) {
        let (case, source) = (Case::new(rows, 0, 1, 2, 64, seed), Case::new(other, 0, 1, 2, 64, !seed));
        let options = Options { dense_fallback: fallback, ..Options::default() };
        let heads = fixed(&source, &[pattern; 2], &options);
        let planned = plan_fixed(&heads, rows, TILE, &options).unwrap();
        let (out, lse, report) = run(&case, Heads::Fixed(&heads), &options).unwrap();
        for (head, (ran, index)) in planned.iter().enumerate() {
            prop_assert_eq!((report[head].pattern, report[head].tiles), (*ran, index.total_tiles()));
            for row in (0..rows).filter(|row| row % 64 < 2 || row % 37 == 0 || row + 1 == rows) {
                let visible = |key| index.contains(row, key);
                prop_assert!(visible(row), "row {} without its own key", row);
                let (k, v) = (case.kv(&case.k), case.kv(&case.v));
                let (want, want_lse) = attend_row(case.q().row(row, head), k, v, 0, case.scale(), visible);
                let got = &out[(row * case.heads + head) * case.dim..][..case.dim];
                let worst = got.iter().zip(want).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
                prop_assert!(worst < 1e-4, "{} row {}: {}", pattern, row, worst);
                prop_assert!((f64::from(lse[head * rows + row]) - want_lse).abs() < 1e-4);
            }
        }
    }
}

#[test]
fn what_is_no_whole_prompt_is_refused() {
    let (whole, chunk) = (Case::new(300, 0, 1, 2, 64, 1), Case::new(200, 100, 1, 2, 64, 1));
    let (options, pattern) = (Options::default(), "vertical-slash:40,120".parse().unwrap());
    let heads = fixed(&whole, &[pattern; 2], &options);
    let error = run(&chunk, Heads::Fixed(&heads), &options).unwrap_err().to_string();
    assert!(error.contains("from position 100") && error.contains("one piece"), "{error}");
    let error = fix(chunk.q(), chunk.kv(&chunk.k), &[pattern; 2], TILE, &options).unwrap_err().to_string();
    assert!(error.contains("200 queries of 300 keys"), "{error}");
    let error = run(&whole, Heads::Fixed(&heads[..1]), &options).unwrap_err().to_string();
    assert!(error.contains("1 patterns for 2 query heads"), "{error}");
    let error = plan_fixed(&heads, 300, cuda::TILE, &options).unwrap_err().to_string();
    assert!(error.contains("queries: 128"), "{error}");
}

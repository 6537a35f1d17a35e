//! Every pattern on every instruction set against the f64 oracle, over random shapes.

mod case;

use case::{Case, check_shares, patterns, spread};
use half::{bf16, f16};
use proptest::prelude::*;
use speedread_attention::cpu::{Isa, TILE};
use speedread_attention::estimate::{FORCED_COLUMNS, FORCED_DIAGONALS, LAST_QUERIES};
use speedread_attention::reference::{attend_row, last_query_probabilities};
use speedread_attention::*;

/// Running a case on the CPU, and checking it.
impl Case {
    fn run<T: Element>(
        &self,
        k: &[T],
        v: &[T],
        pattern: Pattern,
        options: &Options<'_>,
    ) -> (Vec<f32>, Vec<f32>, Report) {
        let mut out = vec![f32::NAN; self.q.len()];
        let mut lse = vec![f32::NAN; self.heads * self.rows];
        let report = prefill(
            self.q(),
            self.kv(k),
            self.kv(v),
            &vec![pattern; self.heads],
            options,
            RowsMut::contiguous(&mut out, self.rows, self.heads, self.dim).unwrap(),
            Some(&mut lse),
        )
        .unwrap();
        (out, lse, report)
    }

    /// Output and log-sum-exp against the oracle over the keys of the index, on rows at the edges of tiles and some between.
    fn check<T: Element>(&self, k: &[T], v: &[T], pattern: Pattern, isa: Isa, fallback: bool, window: Option<usize>) {
        let options = Options { isa: Some(isa), dense_fallback: fallback, window, ..Options::default() };
        let (out, lse, report) = self.run(k, v, pattern, &options);
        let indexes = build_indexes(self.q(), self.kv(k), &vec![pattern; self.heads], &options).unwrap();
        let rows: Vec<usize> =
            (0..self.rows).filter(|r| r % 64 < 2 || r % 64 > 61 || r % 37 == 0 || *r + 1 == self.rows).collect();
        for (head, index) in indexes.iter().enumerate() {
            assert_eq!(report.heads[head].tiles, index.total_tiles());
            let kv_head = head / (self.heads / self.kv_heads);
            // In bf16 the weights are rounded against another maximum than the naive ones: half a step of 1.0 may come on top.
            let in_bf16 = Some(isa) == Isa::bf16();
            let round = if in_bf16 { |x| bf16::from_f32(x).to_f32() } else { |x| x };
            let floor = if in_bf16 { 2e-3 } else { 1e-5 };
            let (mut worst, mut allowed) = ((0f64, 0f64), (0f64, 0f64));
            for &row in &rows {
                let near = |key| window.is_none_or(|window| key + window > self.start + row);
                let visible = |key| index.contains(row, key) && near(key);
                let q = self.q().row(row, head);
                let (want, want_lse) = attend_row(q, self.kv(k), self.kv(v), kv_head, self.scale(), visible);
                let (naive, naive_lse) = naive(q, self.kv(k), self.kv(v), kv_head, visible, round);
                let got = &out[(row * self.heads + head) * self.dim..][..self.dim];
                for ((got, want), naive) in got.iter().zip(&want).zip(naive) {
                    assert!(got.is_finite(), "{pattern} {isa:?} row {row} head {head}");
                    worst.0 = worst.0.max((*got as f64 - want).abs());
                    allowed.0 = allowed.0.max((naive as f64 - want).abs());
                }
                worst.1 = worst.1.max((lse[head * self.rows + row] as f64 - want_lse).abs());
                allowed.1 = allowed.1.max((naive_lse as f64 - want_lse).abs());
            }
            // FlashAttention's rule: no more than twice the error of the naive computation in the same precision.
            assert!(worst.0 <= 2.0 * allowed.0 + floor, "{pattern} {isa:?} head {head}: {worst:?} against {allowed:?}");
            assert!(
                worst.1 <= 2.0 * allowed.1 + floor,
                "{pattern} {isa:?} head {head}: lse {worst:?} against {allowed:?}"
            );
        }
    }
}

/// Attention and log-sum-exp of one row in plain f32, the operands of both products rounded by `round`.
fn naive<T: Element>(
    q: &[f32],
    k: Rows<'_, T>,
    v: Rows<'_, T>,
    head: usize,
    visible: impl Fn(usize) -> bool,
    round: fn(f32) -> f32,
) -> (Vec<f32>, f32) {
    // As the kernels do it: base 2, the scale folded into the query before rounding.
    let scale = std::f32::consts::LOG2_E / (k.dim() as f32).sqrt();
    let keys: Vec<usize> = (0..k.rows()).filter(|&key| visible(key)).collect();
    let dot =
        |key: usize| q.iter().zip(k.row(key, head)).map(|(a, b)| round(a * scale) * round(b.to_f32())).sum::<f32>();
    let scores: Vec<f32> = keys.iter().map(|&key| dot(key)).collect();
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f32> = scores.iter().map(|s| (s - max).exp2()).collect();
    let sum: f32 = weights.iter().sum();
    let value = |x: usize| {
        keys.iter().zip(&weights).map(|(&key, &w)| round(w) * round(v.row(key, head)[x].to_f32())).sum::<f32>()
    };
    ((0..v.dim()).map(|x| value(x) / sum).collect(), (max + sum.log2()) * std::f32::consts::LN_2)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_pattern_matches_the_oracle(
        rows in prop_oneof![1usize..70, 1usize..700], start in prop_oneof![Just(0usize), 0usize..500], kv_heads in 1usize..3,
        group in 1usize..9, dim in prop_oneof![Just(64usize), Just(96), Just(128), 1usize..40],
        pattern in patterns(), fallback: bool, window in prop_oneof![Just(None), (1usize..300).prop_map(Some)],
        element in 0..3, seed: u64,
    ) {
        let case = Case::new(rows, start, kv_heads, group, dim, seed);
        for isa in Isa::available() {
            // Every instruction set must find its own index: in bf16 the estimate may choose other lines.
            match element {
                0 => case.check(&case.k, &case.v, pattern, isa, fallback, window),
                1 => {
                    let cast = |x: &[f32]| x.iter().map(|&x| f16::from_f32(x)).collect::<Vec<_>>();
                    case.check(&cast(&case.k), &cast(&case.v), pattern, isa, fallback, window);
                }
                _ => {
                    let cast = |x: &[f32]| x.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>();
                    case.check(&cast(&case.k), &cast(&case.v), pattern, isa, fallback, window);
                }
            }
        }
    }

    /// With budgets that hold every key, every pattern is dense attention.
    #[test]
    fn all_keys_kept_equals_dense(rows in 1usize..500, start in 0usize..300, seed: u64) {
        let case = Case::new(rows, start, 1, 2, 64, seed);
        let options = Options { dense_fallback: false, ..Options::default() };
        let (dense, dense_lse, _) = case.run(&case.k, &case.v, Pattern::Dense, &options);
        let n = case.len();
        for pattern in [
            Pattern::AShape { sink: 0, local: n + 7 },
            Pattern::AShape { sink: n + 7, local: 1 },
            Pattern::TriShape { sink: 0, local: 1, last: n },
            Pattern::VerticalSlash { vertical: n, slash: 100, budget: Budget::Lines },
            Pattern::VerticalSlash { vertical: 0, slash: n + 1, budget: Budget::Lines },
            Pattern::BlockSparse { blocks: n },
            Pattern::BlockShare { least: n, most: n, percent: 50 },
            Pattern::BlockShare { least: 1, most: n, percent: 100 },
        ] {
            let (out, lse, _) = case.run(&case.k, &case.v, pattern, &options);
            for (a, b) in out.iter().chain(&lse).zip(dense.iter().chain(&dense_lse)) {
                prop_assert!((a - b).abs() < 1e-5, "{pattern}: {a} {b}");
            }
        }
    }

    /// The lines of a vertical-slash index are MInference's: the largest column and diagonal sums of the last queries' softmax, with
    /// the forced ones, and nothing but what their windows hold besides.
    #[test]
    fn vertical_slash_follows_minference(rows in 1usize..600, start in 0usize..200, v in 0usize..200, s in 1usize..300, seed: u64) {
        let case = Case::new(rows, start, 1, 1, 64, seed);
        let n = case.len();
        let last = LAST_QUERIES.min(rows);
        let a = last_query_probabilities(case.q(), case.kv(&case.k), 0, 0, case.scale(), last);
        let mut columns = vec![0f64; n];
        let mut diagonals = vec![0f64; n];
        for (r, row) in a.iter().enumerate() {
            for (key, p) in row.iter().enumerate() {
                columns[key] += p;
                if key <= n - last + r { diagonals[n - last + r - key] += p; }
            }
        }
        let pattern = Pattern::VerticalSlash { vertical: v, slash: s, budget: Budget::Lines };
        let options = Options { dense_fallback: false, ..Options::default() };
        let index = &build_indexes(case.q(), case.kv(&case.k), &[pattern], &options).unwrap()[0];
        let chosen = |values: &[f64], forced: usize, count: usize| {
            let mut order: Vec<usize> = (0..n).collect();
            order.sort_by(|&a, &b| (b < forced).cmp(&(a < forced)).then(values[b].total_cmp(&values[a])).then(a.cmp(&b)));
            order.truncate(count);
            order
        };
        // A sum within rounding of the last one chosen may fall either way.
        let close = |values: &[f64], want: &[usize], x: usize| (values[x] - values[*want.last().unwrap()]).abs() < 1e-4;
        let want = chosen(&columns, FORCED_COLUMNS, v.max(FORCED_COLUMNS));
        for j in 0..n {
            prop_assert!(index.columns().contains(&j) == want.contains(&j) || close(&columns, &want, j), "column {j}");
        }
        let want = chosen(&diagonals, FORCED_DIAGONALS, s.max(FORCED_DIAGONALS));
        for &t in want.iter().filter(|&&t| !close(&diagonals, &want, t)) {
            for position in (start..n).filter(|&p| p >= t) {
                prop_assert!(index.contains(position - start, position - t), "diagonal {t} at {position}");
            }
        }
        prop_assert!(index.windows().len() <= want.len());
    }

    /// The key tiles of a share are the fewest of largest pooled score that hold it.
    #[test]
    fn shares_are_what_they_are_defined_to_be(
        rows in 1usize..1500, start in prop_oneof![Just(0usize), 0usize..700], least in 1usize..8, more in 0usize..16, percent in 1usize..=100, wide: bool,
        window in prop_oneof![Just(None), (1usize..900).prop_map(Some)],
        seed: u64,
    ) {
        let mut case = Case::new(rows, start, 1, 2, 64, seed);
        if wide {
            spread(&mut case);
        }
        let pattern = Pattern::BlockShare { least, most: least + more, percent };
        for isa in Isa::available() {
            let options = Options { dense_fallback: false, window, isa: Some(isa), ..Options::default() };
            let indexes = build_indexes(case.q(), case.kv(&case.k), &[pattern; 2], &options).unwrap();
            for (head, index) in indexes.iter().enumerate() {
                let rows = (case.q(), case.kv(&case.k));
                check_shares(rows, head, index, (least, least + more, percent), window, 1e-5, &format!("{isa:?}"));
            }
        }
    }

    #[test]
    fn decode_matches_the_last_row(len in prop_oneof![1usize..200, 1usize..5000], kv_heads in 1usize..3, group in 1usize..9, seed: u64) {
        let case = Case::new(1, len - 1, kv_heads, group, 64, seed);
        let mut out = vec![f32::NAN; case.q.len()];
        decode(&case.q, case.kv(&case.k), case.kv(&case.v), None, &mut out).unwrap();
        for (head, out) in out.chunks_exact(64).enumerate() {
            let (want, _) = attend_row(case.q().row(0, head), case.kv(&case.k), case.kv(&case.v), head / group, case.scale(), |_| true);
            for (got, want) in out.iter().zip(want) {
                prop_assert!((*got as f64 - want).abs() < 1e-5);
            }
        }
    }
}

/// Dense attention with a sliding window visits what the window holds, and gives what the oracle gives on it; so does decode on the tail.
#[test]
fn a_sliding_window_is_seen_and_costs_what_it_holds() {
    let case = Case::new(1500, 0, 1, 2, 64, 5);
    let options = Options { window: Some(100), ..Options::default() };
    let (out, _, report) = case.run(&case.k, &case.v, Pattern::Dense, &options);
    assert!(report.heads[0].tiles * 4 < report.heads[0].dense_tiles, "{:?}", report.heads[0]);
    let (row, head) = (1499, 1);
    let near = |key| key + 100 > row;
    let (want, _) = attend_row(case.q().row(row, head), case.kv(&case.k), case.kv(&case.v), 0, case.scale(), near);
    let mut decoded = vec![0.0; case.heads * case.dim];
    let q: Vec<f32> = (0..case.heads).flat_map(|head| case.q().row(row, head).to_vec()).collect();
    decode(&q, case.kv(&case.k).tail(100), case.kv(&case.v).tail(100), None, &mut decoded).unwrap();
    for (x, want) in want.iter().enumerate() {
        assert!((f64::from(out[(row * case.heads + head) * case.dim + x]) - want).abs() < 1e-5);
        assert!((f64::from(decoded[head * case.dim + x]) - want).abs() < 1e-5);
    }
}

/// Chunks of a sequence give what the whole gives, when the pattern does not depend on the chunk.
#[test]
fn chunks_equal_the_whole() {
    let whole = Case::new(300, 0, 2, 2, 64, 7);
    let options = Options { dense_fallback: false, ..Options::default() };
    for pattern in [Pattern::Dense, Pattern::AShape { sink: 70, local: 64 }] {
        let (want, _, _) = whole.run(&whole.k, &whole.v, pattern, &options);
        let row = whole.heads * whole.dim;
        for (from, to) in [(0, 128), (128, 256), (256, 300)] {
            let mut chunk = Case::new(to - from, from, 2, 2, 64, 1);
            chunk.q = whole.q[from * row..to * row].to_vec();
            let kv = |x: &[f32]| x[..to * whole.kv_heads * whole.dim].to_vec();
            let (got, _, _) = chunk.run(&kv(&whole.k), &kv(&whole.v), pattern, &options);
            for (a, b) in got.iter().zip(&want[from * row..to * row]) {
                assert!((a - b).abs() < 1e-5, "{pattern} {from}..{to}");
            }
        }
    }
}

/// The audit reports the share of attention mass that the index kept.
#[test]
fn audit_measures_recall() {
    let case = Case::new(400, 100, 1, 2, 64, 3);
    let audit = Options { dense_fallback: false, audit: Some(Audit { rows: 1000 }), ..Options::default() };
    let pattern = Pattern::AShape { sink: 4, local: 64 };
    let (_, _, report) = case.run(&case.k, &case.v, pattern, &audit);
    let index = &build_indexes(case.q(), case.kv(&case.k), &[pattern; 2], &audit).unwrap()[0];
    let probabilities = last_query_probabilities(case.q(), case.kv(&case.k), 0, 0, case.scale(), 400);
    let kept: Vec<f64> = (0..400)
        .map(|row| (0..case.len()).filter(|&key| index.contains(row, key)).map(|key| probabilities[row][key]).sum())
        .collect();
    let recall = report.heads[0].recall.unwrap();
    assert!((recall.mean - kept.iter().sum::<f64>() / 400.0).abs() < 1e-4);
    assert!((recall.min - kept.iter().copied().fold(1.0, f64::min)).abs() < 1e-4);
    assert!(recall.min < 0.9, "the case keeps too much to tell");
    let (_, _, dense) = case.run(&case.k, &case.v, Pattern::Dense, &audit);
    assert!((dense.heads[0].recall.unwrap().min - 1.0).abs() < 1e-4);
}

#[test]
fn wrong_shapes_are_refused() {
    let case = Case::new(10, 0, 2, 2, 64, 1);
    let mut out = vec![0.0; case.q.len()];
    let mut run = |q: Rows<'_, f32>, k: Rows<'_, f32>, v: Rows<'_, f32>, patterns: &[Pattern]| {
        let out = RowsMut::contiguous(&mut out, 10, 4, 64).unwrap();
        prefill(q, k, v, patterns, &Options::default(), out, None).map(|_| ()).unwrap_err().to_string()
    };
    let (q, k, v) = (case.q(), case.kv(&case.k), case.kv(&case.v));
    let short = Rows::contiguous(&case.k, 9, 2, 64).unwrap();
    let narrow = Rows::contiguous(&case.k, 10, 2, 32).unwrap();
    let three = Rows::contiguous(&case.k, 6, 3, 64).unwrap();
    assert!(run(q, k, v, &[Pattern::Dense; 3]).contains("3 patterns for 4 query heads"));
    assert!(run(q, short, short, &[Pattern::Dense; 4]).contains("do not fit"));
    assert!(run(q, narrow, narrow, &[Pattern::Dense; 4]).contains("do not fit"));
    assert!(run(q, three, three, &[Pattern::Dense; 4]).contains("do not fit"));
    assert!(run(q, k, short, &[Pattern::Dense; 4]).contains("values are 9"));
    assert!(run(q, k, v, &[Pattern::AShape { sink: 0, local: 0 }; 4]).contains("local width"));
    assert!(decode(&case.q[..65], k, v, None, &mut [0.0; 65]).is_err());
    assert_eq!(TILE.queries, 64);
}

#[test]
fn a_set_flag_cancels() {
    let case = Case::new(100, 0, 1, 1, 64, 1);
    let mut out = vec![0.0; case.q.len()];
    let flag = std::sync::atomic::AtomicBool::new(true);
    let options = Options { cancel: Some(&flag), ..Options::default() };
    let out = RowsMut::contiguous(&mut out, 100, 1, 64).unwrap();
    let result = prefill(case.q(), case.kv(&case.k), case.kv(&case.v), &[Pattern::Dense], &options, out, None);
    assert!(matches!(result, Err(Error::Cancelled)));
}

//! Indexes built on the device: what they keep against what the CPU's estimator keeps, and outputs against the f64 oracle.
//!
//! Without a device the tests say that they were skipped; with `SPEEDREAD_REQUIRE_CUDA=1` that is a failure.

mod case;
mod device;

use case::{Case, check_shares, patterns, spread};
use device::{Layout, Rounded, attentions, sized};
use half::{bf16, f16};
use proptest::prelude::*;
use rayon::prelude::*;
use speedread_attention::cuda::{
    self, Attention, AttentionElement, CallShape, DeviceOptions, DeviceRows, Plan, TILE, Workspace,
};
use speedread_attention::index::cover;
use speedread_attention::*;
use speedread_cuda::Device;

/// Attention of the last queries of a head: per query its row and its weight on every key it sees, in f64.
fn last_weights<T: AttentionElement>(case: &Rounded<T>, head: usize) -> Vec<(usize, Vec<f64>)> {
    let Case { rows, start, heads, kv_heads, .. } = case.case;
    let (q, k) = (case.case.q(), case.k());
    (rows - rows.min(64)..rows)
        .into_par_iter()
        .map(|row| {
            let dot = |key| -> f64 {
                let k = k.row(key, head / (heads / kv_heads));
                q.row(row, head).iter().zip(k).map(|(a, b)| f64::from(*a) * f64::from(b.to_f32())).sum::<f64>()
            };
            let scores: Vec<f64> = (0..=start + row).map(|key| dot(key) * case.case.scale()).collect();
            let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|s| (s - top).exp()).collect();
            let sum: f64 = weights.iter().sum();
            (row, weights.into_iter().map(|w| w / sum).collect())
        })
        .collect()
}

/// Share of the mass that the windows and columns of an index hold, without its dense tail.
fn mass_kept(weights: &[(usize, Vec<f64>)], index: &SparseIndex) -> f64 {
    let (start, rows) = (index.start(), index.rows());
    let lists = SparseIndex::from_windows(start, rows, TILE, index.windows().to_vec(), index.columns().to_vec());
    let kept: f64 = weights
        .par_iter()
        .map(|(row, weights)| {
            weights.iter().enumerate().filter(|&(key, _)| lists.contains(*row, key)).map(|(_, w)| w).sum::<f64>()
        })
        .sum();
    kept / weights.len() as f64
}

/// Positions of the `count` largest masses, those below `forced` before all others: which ones must be among them, and which ones may,
/// where sums in another order can swap what is nearly equal.
fn top(masses: &[f64], count: usize, forced: usize) -> (Vec<usize>, Vec<usize>) {
    let key = |i: usize| if i < forced { f64::INFINITY } else { masses[i] };
    let mut sorted: Vec<f64> = (0..masses.len()).map(key).collect();
    sorted.sort_unstable_by(|a, b| b.total_cmp(a));
    let least = sorted[count.min(masses.len()) - 1];
    let from = |limit: f64| (0..masses.len()).filter(|&i| key(i) >= limit).collect();
    (from(least * (1.0 + 1e-4)), from(least * (1.0 - 1e-4)))
}

/// The lines of an index with a budget of lines are those of most mass.
fn check_lines(weights: &[(usize, Vec<f64>)], index: &SparseIndex, vertical: usize, slash: usize, about: &str) {
    let len = index.start() + index.rows();
    let (mut columns, mut diagonals) = (vec![0.0; len], vec![0.0; len]);
    for (row, weights) in weights {
        for (key, weight) in weights.iter().enumerate() {
            columns[key] += weight;
            diagonals[index.start() + row - key] += weight;
        }
    }
    let count = vertical.max(30).min(len);
    let (must, may) = top(&columns, count, 30);
    assert_eq!(index.columns().len(), count, "{about}");
    let mut sorted = columns.clone();
    sorted.sort_unstable_by(|a, b| b.total_cmp(a));
    let mut chosen: Vec<f64> = index.columns().iter().filter(|&&c| c >= 30).map(|&c| columns[c]).collect();
    chosen.sort_unstable_by(f64::total_cmp);
    let missing: Vec<(usize, f64)> =
        must.iter().filter(|c| index.columns().binary_search(c).is_err()).map(|&c| (c, columns[c])).collect();
    assert!(
        missing.is_empty(),
        "{about}: columns of much mass are missing: {missing:?}; least chosen {:?}, count {count}, got {}",
        &chosen[..3.min(chosen.len())],
        index.columns().len()
    );
    assert!(index.columns().iter().all(|c| may.binary_search(c).is_ok()), "{about}: a column of little mass");

    let (must, may) = top(&diagonals, slash.max(100), 100);
    // A diagonal asks for the keys -t ..= 127 - t relative to a query tile; window o holds -o ..= 127 - o.
    let held = |key: i64| index.windows().iter().any(|&o| (-(o as i64)..128 - o as i64).contains(&key));
    let whole = |&t: &usize| (-(t as i64)..128 - t as i64).all(held);
    assert!(must.iter().all(whole), "{about}: a diagonal of much mass is not covered");
    assert!(index.windows().len() <= cover(&may, TILE).len(), "{about}: more windows than the diagonals need");
}

/// On every kernel.
fn check<T: AttentionElement>(case: Case, patterns: &[Pattern], fallback: bool, layout: Layout, work: &mut Workspace) {
    if attentions().is_empty() {
        return;
    }
    let case = Rounded::<T>::new(case);
    let want = case.indexes(patterns, fallback);
    for device in attentions() {
        check_on(device, &case, &want, patterns, fallback, layout, work);
    }
}

fn check_on<T: AttentionElement>(
    device: &(Device, Attention),
    case: &Rounded<T>,
    want: &[SparseIndex],
    patterns: &[Pattern],
    fallback: bool,
    layout: Layout,
    work: &mut Workspace,
) {
    let Case { rows, start, heads, kv_heads, dim, .. } = case.case;
    let about = format!(
        "{} kernel, {} {patterns:?} {rows} rows from {start}, {heads}/{kv_heads} heads of {dim}",
        device.1.kernel(),
        T::NAME
    );
    let (out, lse, indexes, report) = case.prefill(device, patterns, fallback, layout, work);
    let plan = Plan::new(&indexes, kv_heads, dim).unwrap();
    for head in 0..heads {
        let (got, want, report) = (&indexes[head], &want[head], &report[head]);
        assert_eq!(report.dense_tiles, want.total_dense_tiles(), "{about}");
        assert_eq!(report.tiles, plan.head_tiles()[head], "{about}: head {head}");
        if let (Pattern::BlockShare { least, most, percent }, Some(_)) = (patterns[head], got.blocks()) {
            let rows = (case.case.q(), case.k());
            // Of the 16-bit means and scores: two roundings of eleven bits, and one.
            check_shares(rows, head, got, (least, most, percent), None, 2f64.powi(-9), &about);
            continue;
        }
        if let (Some(got_lists), Some(want_lists)) = (got.blocks(), want.blocks()) {
            // Sums in another order may swap what is nearly equal.
            let (mut same, mut all) = (0, 0);
            for tile in (0..want.query_tiles()).filter(|&tile| !want.is_dense(tile)) {
                let (got, want) = (got_lists.of(tile), want_lists.of(tile));
                assert_eq!(got.len(), want.len(), "{about}: blocks of head {head}, tile {tile}");
                same += want.iter().filter(|block| got.contains(block)).count();
                all += want.len();
            }
            assert!(same * 100 >= all * 98, "{about}: head {head} has {same} of {all} blocks");
            continue;
        }
        if got.windows().is_empty() || want.windows().is_empty() {
            // Dense: by its pattern, or because it costs no less; the device may judge that a little sooner.
            assert!(fallback || patterns[head] == Pattern::Dense, "{about}: head {head} ran dense");
            continue;
        }
        assert_eq!(got.is_dense(got.query_tiles() - 1), want.is_dense(want.query_tiles() - 1), "{about}");
        if !matches!(patterns[head], Pattern::VerticalSlash { .. }) {
            assert_eq!(got, want, "{about}: head {head}");
            continue;
        }
        let weights = last_weights(case, head);
        if let Pattern::VerticalSlash { vertical, slash, budget: Budget::Lines } = patterns[head] {
            check_lines(&weights, got, vertical, slash, &format!("{about}: head {head}"));
            continue;
        }
        // Of windows that bring nearly the same, sums in another order may choose the one beside: a key of a row or two.
        let (kept, wanted) = (mass_kept(&weights, got), mass_kept(&weights, want));
        let tolerance = 2e-3 + 4.0 / (start + rows) as f64;
        assert!((kept - wanted).abs() < tolerance, "{about}: head {head} keeps {kept}, the estimator {wanted}");
    }
    case.check(&out, &lse, &indexes, &about);
}

proptest! {
    // The machine that runs this may not have the sources.
    #![proptest_config(ProptestConfig { cases: sized(96, 6), failure_persistence: None, max_shrink_iters: 20, ..ProptestConfig::default() })]

    #[test]
    fn every_pattern_matches_the_oracle(
        rows in prop_oneof![1usize..70, 1usize..1500, Just(128usize), Just(256usize)], start in prop_oneof![Just(0usize), 0usize..900],
        kv_heads in 1usize..4, group in 1usize..9, dim in prop_oneof![Just(64usize), Just(96), Just(128)],
        chosen in proptest::collection::vec(patterns(), 1..4), fallback: bool, half: bool, spare in proptest::option::of(0usize..300),
        seed: u64,
    ) {
        if attentions().is_empty() { return Ok(()) }
        let case = Case::new(rows, start, kv_heads, group, dim, seed);
        let patterns: Vec<Pattern> = (0..case.heads).map(|head| chosen[head % chosen.len()]).collect();
        let layout = spare.map_or(Layout::RowMajor, |spare| Layout::HeadMajor { spare });
        if half {
            check::<f16>(case, &patterns, fallback, layout, &mut Workspace::new());
        } else {
            check::<bf16>(case, &patterns, fallback, layout, &mut Workspace::new());
        }
    }
}

/// Shapes that tiles make special, with budgets smaller and larger than the sequence, one workspace for all.
#[test]
fn edges_of_tiles() {
    if attentions().is_empty() {
        return;
    }
    let mut work = Workspace::new();
    let shapes =
        [(1, 0), (1, 127), (1, 5000), (2, 0), (63, 0), (64, 64), (65, 0), (127, 0), (129, 0), (200, 64), (64, 4032)];
    for &(rows, start) in sized(&shapes[..], &shapes[4..7]) {
        for &dim in sized(&cuda::HEAD_DIMS[..], &[96]) {
            for text in [
                "vertical-slash-tiles:4,6",
                "vertical-slash-tiles:1,1",
                "vertical-slash-tiles:900,900",
                "vertical-slash:30,100",
                "vertical-slash:9000,9000",
                "a-shape:300,200",
                "tri-shape:9000,9000,1",
                "block-sparse:3",
                "block-sparse:900",
                "block-share:1,900,50",
                "block-share:900,900,50",
                "block-share:3,3,100",
            ] {
                let case = Case::new(rows, start, 2, 2, dim, 11);
                check::<bf16>(case, &[text.parse().unwrap(); 4], false, Layout::RowMajor, &mut work);
            }
        }
    }
}

/// Long enough for several runs of keys, several blocks of gains and several batches of column tiles.
#[test]
fn long_prompts() {
    if attentions().is_empty() {
        return;
    }
    for (text, rows, start) in [
        ("vertical-slash-tiles:40,24", sized(30_001, 1_301), 0),
        ("vertical-slash:5000,3000", sized(20_000, 700), 77),
        ("vertical-slash-tiles:12,8", sized(3_000, 130), sized(60_000, 9_000)),
        // Chosen from a few groups of key tiles, from all, and, of more than shared memory holds, from the whole row.
        ("block-sparse:2", sized(3_000, 200), sized(60_000, 9_000)),
        ("block-sparse:40", sized(3_000, 200), sized(60_000, 9_000)),
        ("block-sparse:1500", 200, sized(270_000, 3_000)),
        ("block-share:2,40,80", sized(3_000, 200), sized(60_000, 9_000)),
        ("block-share:30,1500,20", 200, sized(270_000, 3_000)),
    ] {
        let case = Case::new(rows, start, 1, 2, 128, 3);
        check::<bf16>(case, &[text.parse().unwrap(); 2], true, Layout::RowMajor, &mut Workspace::new());
    }
}

/// Sharp attention needs few key tiles and one that spreads many, in the same head.
#[test]
fn shares_follow_the_scores() {
    if attentions().is_empty() {
        return;
    }
    for (rows, start, text) in
        [(1_500, 0, "block-share:2,40,90"), (900, 700, "block-share:1,6,60"), (300, 4_000, "block-share:4,40,75")]
    {
        let mut case = Case::new(rows, start, 2, 2, 64, 5);
        spread(&mut case);
        check::<bf16>(
            case,
            &[text.parse().unwrap(), "block-sparse:4".parse().unwrap(), text.parse().unwrap(), Pattern::Dense],
            false,
            Layout::RowMajor,
            &mut Workspace::new(),
        );
    }
}

/// Of key tiles of equal score the first are chosen, however many there are.
#[test]
fn equal_scores_of_blocks() {
    for (device, start) in attentions().iter().flat_map(|device| [(device, 9_000), (device, sized(270_000, 17_000))]) {
        let mut case = Case::new(200, start, 1, 1, 64, 1);
        case.k.fill(0.0);
        let blocks = ["block-sparse:4".parse().unwrap()];
        let (.., indexes, _) =
            Rounded::<bf16>::new(case).prefill(device, &blocks, false, Layout::RowMajor, &mut Workspace::new());
        let own = start as u32 / 128;
        assert_eq!(indexes[0].blocks().unwrap().of(0), [0, 1, own, own + 1]);
    }
    // A share takes those of one score together, as far as it may.
    for (device, (text, want)) in attentions().iter().flat_map(|device| {
        let few = ("block-share:4,7,50", vec![0, 1, 2, 3, 4, 70, 71]);
        [
            (device, few),
            (device, ("block-share:4,999,50", (0..=71).collect())),
            (device, ("block-share:4,999,1", vec![0, 1, 70, 71])),
        ]
    }) {
        let mut case = Case::new(200, 9_000, 1, 1, 64, 1);
        case.k.fill(0.0);
        let shares = [text.parse().unwrap()];
        let (.., indexes, _) =
            Rounded::<bf16>::new(case).prefill(device, &shares, false, Layout::RowMajor, &mut Workspace::new());
        assert_eq!(indexes[0].blocks().unwrap().of(0), want, "{text}");
    }
}

/// What is asked of the device's lines holds for the estimator's: a check of the check, on any machine.
#[test]
fn the_estimator_chooses_the_lines_of_most_mass() {
    for (rows, start, seed) in [(1, 0, 1), (40, 300, 2), (700, 0, 3), (500, 400, 4)] {
        let case = Rounded::<bf16>::new(Case::new(rows, start, 1, 2, 64, seed));
        for (vertical, slash) in [(0, 1), (35, 180), (200, 350)] {
            let pattern = Pattern::VerticalSlash { vertical, slash, budget: Budget::Lines };
            for (head, index) in case.indexes(&[pattern; 2], false).iter().enumerate() {
                check_lines(&last_weights(&case, head), index, vertical, slash, &format!("{pattern}, {rows} rows"));
            }
        }
    }
}

/// Of columns of equal mass the first are chosen, also where there are more of them than fit the room for candidates, and where most have
/// none.
#[test]
fn equal_masses() {
    for (device, start) in attentions().iter().flat_map(|device| [(device, 9_000), (device, 12_000)]) {
        let mut case = Case::new(70, start, 1, 1, 64, 1);
        case.q.fill(0.0);
        let lines = ["vertical-slash:2000,120".parse().unwrap()];
        let (.., indexes, _) =
            Rounded::<bf16>::new(case).prefill(device, &lines, false, Layout::RowMajor, &mut Workspace::new());
        assert!(indexes[0].columns().iter().copied().eq(0..2000));

        let mut case = Case::new(70, start, 1, 1, 64, 1);
        case.k.fill(0.0);
        // Nothing has mass beside these keys.
        let liked: Vec<usize> = (40..start).step_by(5).collect();
        for (q, x) in case.q.iter_mut().enumerate() {
            *x = if q % 64 == 0 { 100.0 } else { 0.0 };
        }
        liked.iter().for_each(|key| case.k[key * 64] = 100.0);
        let (.., indexes, _) =
            Rounded::<bf16>::new(case).prefill(device, &lines, false, Layout::RowMajor, &mut Workspace::new());
        let mut want: Vec<usize> = (0..30).chain(liked).collect();
        let others = (30..).filter(|key| want.binary_search(key).is_err());
        let filled: Vec<usize> = others.take(2000usize.saturating_sub(want.len())).collect();
        want.extend(filled);
        want.sort_unstable();
        assert_eq!(indexes[0].columns(), &want[..2000]);
    }
}

/// The same inputs give the same bits.
#[test]
fn runs_repeat_exactly() {
    if attentions().is_empty() {
        return;
    }
    let case = Rounded::<bf16>::new(Case::new(sized(9000, 300), 300, 4, 4, 128, 9));
    let patterns = ["vertical-slash-tiles:4,8".parse().unwrap(); 16];
    for device in attentions() {
        let mut work = Workspace::new();
        let first = case.prefill(device, &patterns, false, Layout::RowMajor, &mut work);
        for _ in 0..sized(5, 1) {
            let again = case.prefill(device, &patterns, false, Layout::RowMajor, &mut work);
            assert!(again == first, "{} kernel: another result", device.1.kernel());
        }
    }
}

/// Every kernel reads 16 bytes at a time, whatever the pattern.
#[test]
fn rows_off_their_alignment_are_refused() {
    for (device, attention) in attentions() {
        let stream = device.stream().unwrap();
        let buffer = stream.zeros::<bf16>(300 * 129 + 64).unwrap();
        let even = DeviceRows::new(buffer.view(), 300, 2, 64, 128, 64).unwrap();
        let odd = DeviceRows::new(buffer.view(), 300, 2, 64, 129, 64).unwrap();
        for pattern in ["vertical-slash:30,100", "vertical-slash-tiles:1,1", "block-sparse:1", "a-shape:4,100"] {
            let patterns = [pattern.parse().unwrap(); 2];
            let options = DeviceOptions { dense_fallback: false, ..DeviceOptions::default() };
            for (q, k, what) in [(odd, even, "queries"), (even, odd, "keys")] {
                let built = attention.build_indexes(&stream, q, k, &patterns, &options, &mut Workspace::new());
                let said = built.unwrap_err().to_string();
                assert!(
                    said.contains(what) && said.contains("multiples of 16"),
                    "{} {pattern}: {said}",
                    attention.kernel()
                );
            }
        }
    }
}

#[test]
fn memory_stays_small() {
    let shape = CallShape { rows: 1 << 20, start: 0, heads: 32, kv_heads: 8, dim: 128 };
    let bytes = Workspace::bytes(&shape, &["vertical-slash-tiles:48,8".parse().unwrap(); 32], true).unwrap();
    assert!(bytes < 800 << 20, "{} MiB", bytes >> 20);
}

/// Masses are kept for the heads that need them alone: here the first of them is not the first head.
#[test]
fn heads_of_several_patterns() {
    if attentions().is_empty() {
        return;
    }
    let local = Pattern::AShape { sink: 101, local: 6 };
    let lines = Pattern::VerticalSlash { vertical: 255, slash: 144, budget: Budget::Lines };
    let tiles = "vertical-slash-tiles:2,3".parse().unwrap();
    for seed in 0..sized(10, 1) {
        let case = |rows, dim| Case::new(rows + seed as usize, 595, 1, 7, dim, seed);
        let patterns = [local, lines, Pattern::Dense, lines, tiles, lines, local];
        check::<f16>(case(1204, 96), &patterns, false, Layout::RowMajor, &mut Workspace::new());
        check::<bf16>(case(65, 64), &patterns, seed % 2 == 0, Layout::HeadMajor { spare: 100 }, &mut Workspace::new());
    }
}

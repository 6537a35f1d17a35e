//! The suite of `oracle.rs` on a CUDA device, with each attention kernel that it runs: every pattern against the f64 oracle, over random
//! shapes.
//!
//! Without a device the tests say that they were skipped; with `SPEEDREAD_REQUIRE_CUDA=1` that is a failure. The binary runs on a machine
//! without Rust. `--ignored` adds the case above 2^31 elements (26 GB of device memory, 30 GB of host memory).

mod case;
mod device;

use case::{Case, patterns};
use device::{Layout, Rounded, attention, attentions, sized};
use half::{bf16, f16};
use proptest::prelude::*;
use rayon::prelude::*;
use speedread_attention::cuda::{self, Attention, DeviceRows, DeviceRowsMut, KernelKind, Plan, TILE};
use speedread_attention::reference::attend_row;
use speedread_attention::*;
use speedread_cuda::Device;

fn config(cases: u32) -> ProptestConfig {
    // The machine that runs this may not have the sources.
    ProptestConfig { cases, failure_persistence: None, max_shrink_iters: 20, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config(sized(96, 6)))]

    #[test]
    fn every_pattern_matches_the_oracle(
        rows in prop_oneof![1usize..70, 1usize..1000, Just(128usize), Just(256usize)], start in prop_oneof![Just(0usize), 0usize..700],
        kv_heads in 1usize..4, group in 1usize..9, dim in prop_oneof![Just(64usize), Just(96), Just(128)],
        chosen in proptest::collection::vec(patterns(), 1..4), fallback: bool, half: bool, spare in proptest::option::of(0usize..300), seed: u64,
    ) {
        if attentions().is_empty() { return Ok(()) }
        let case = Case::new(rows, start, kv_heads, group, dim, seed);
        // Heads with different patterns in one call.
        let patterns: Vec<Pattern> = (0..case.heads).map(|head| chosen[head % chosen.len()]).collect();
        let layout = spare.map_or(Layout::RowMajor, |spare| Layout::HeadMajor { spare });
        if half {
            Rounded::<f16>::new(case).run_and_check(&patterns, fallback, layout);
        } else {
            Rounded::<bf16>::new(case).run_and_check(&patterns, fallback, layout);
        }
    }
}

/// The shapes that tiles make special, each of them, with every kind of key tile.
#[test]
fn edges_of_tiles() {
    if attentions().is_empty() {
        return;
    }
    let shapes =
        [(1, 0), (1, 127), (1, 128), (1, 5000), (127, 0), (129, 0), (128, 64), (200, 64), (64, 4032), (3000, 0)];
    for &(rows, start) in sized(&shapes[..], &shapes[4..7]) {
        for &dim in sized(&cuda::HEAD_DIMS[..], &[96]) {
            let case = Rounded::<bf16>::new(Case::new(rows, start, 2, 2, dim, 11));
            for text in ["dense", "a-shape:300,200", "vertical-slash-tiles:4,6", "block-sparse:4"] {
                case.run_and_check(&[text.parse().unwrap(); 4], false, Layout::RowMajor);
            }
        }
    }
}

/// The row maximum grows from tile to tile: the output summed so far must be rescaled, and only as often as needed.
#[test]
fn growing_maxima() {
    if attentions().is_empty() {
        return;
    }
    for half in [false, true] {
        let rows = sized(2000, 500);
        let mut case = Case::new(rows, 0, 1, 4, 128, 5);
        let row = case.kv_heads * case.dim;
        for (i, x) in case.k.iter_mut().enumerate() {
            *x *= 8.0 - 7.9 * (i / row) as f32 / rows as f32;
        }
        let dense = [Pattern::Dense; 4];
        if half {
            Rounded::<f16>::new(case).run_and_check(&dense, false, Layout::RowMajor);
        } else {
            Rounded::<bf16>::new(case).run_and_check(&dense, false, Layout::RowMajor);
        }
    }
}

/// The same inputs give the same bits, whatever block took which tile.
#[test]
fn runs_repeat_exactly() {
    for device in attentions() {
        let case = Rounded::<bf16>::new(Case::new(sized(5000, 300), 300, 4, 4, 128, 9));
        let indexes = case.indexes(&["vertical-slash-tiles:4,8".parse().unwrap(); 16], false);
        let first = case.run(device, &indexes, Layout::RowMajor);
        case.check(&first.0, &first.1, &indexes, "many items a block");
        for _ in 0..sized(10, 1) {
            assert_eq!(case.run(device, &indexes, Layout::RowMajor), first);
        }
    }
}

/// Chunks of a sequence give what the whole gives, when the pattern does not depend on the chunk.
#[test]
fn chunks_equal_the_whole() {
    let patterns = [Pattern::Dense, Pattern::AShape { sink: 140, local: 256 }];
    for (device, pattern) in attentions().iter().flat_map(|device| patterns.map(|pattern| (device, pattern))) {
        let whole = Rounded::<bf16>::new(Case::new(700, 0, 2, 2, 64, 7));
        let (want, want_lse) = whole.run(device, &whole.indexes(&[pattern; 4], false), Layout::RowMajor);
        let row = whole.case.heads * whole.case.dim;
        for (from, to) in [(0, 256), (256, 512), (512, 700)] {
            let mut chunk = Case::new(to - from, from, 2, 2, 64, 1);
            chunk.q = whole.case.q[from * row..to * row].to_vec();
            let kv = |x: &[f32]| x[..to * whole.case.kv_heads * whole.case.dim].to_vec();
            (chunk.k, chunk.v) = (kv(&whole.case.k), kv(&whole.case.v));
            let chunk = Rounded::<bf16>::new(chunk);
            let (got, lse) = chunk.run(device, &chunk.indexes(&[pattern; 4], false), Layout::RowMajor);
            assert_eq!(got, want[from * row..to * row], "{pattern} {from}..{to}");
            for (head, lse) in lse.chunks_exact(to - from).enumerate() {
                assert_eq!(lse, &want_lse[head * 700 + from..head * 700 + to]);
            }
        }
    }
}

/// The host entry: the same numbers as by way of the plan, with the report and the recall that the CPU's gives.
#[test]
fn host_entry_reports() {
    attentions().iter().for_each(host_entry);
}

fn host_entry(device: &(Device, Attention)) {
    let case = Rounded::<bf16>::new(Case::new(600, 100, 2, 3, 128, 3));
    let pattern = Pattern::AShape { sink: 4, local: 128 };
    let patterns = [pattern; 6];
    let options = Options { dense_fallback: false, audit: Some(Audit { rows: 40 }), ..Options::default() };
    let stream = device.0.stream().unwrap();
    let mut out = vec![f32::NAN; case.case.q.len()];
    let mut lse = vec![f32::NAN; 6 * 600];
    let rows_mut = RowsMut::contiguous(&mut out, 600, 6, 128).unwrap();
    let (q, k, v) = (case.case.q(), case.k(), case.v());
    let report = cuda::prefill(&device.1, &stream, q, k, v, &patterns, &options, rows_mut, Some(&mut lse)).unwrap();
    let indexes = case.indexes(&patterns, false);
    let (want, want_lse) = case.run(device, &indexes, Layout::RowMajor);
    assert_eq!((out, lse), (want, want_lse));
    for (head, index) in report.heads.iter().zip(&indexes) {
        assert_eq!((head.pattern, head.dense_tiles), (pattern, index.total_dense_tiles()));
        let recall = head.recall.unwrap();
        assert!(recall.min > 0.0 && recall.min < 0.9 && recall.mean < 1.0 && recall.mean >= recall.min, "{recall:?}");
    }
    let flag = std::sync::atomic::AtomicBool::new(true);
    let options = Options { cancel: Some(&flag), ..Options::default() };
    let mut out = vec![0.0; case.case.q.len()];
    let rows_mut = RowsMut::contiguous(&mut out, 600, 6, 128).unwrap();
    let result = cuda::prefill(&device.1, &stream, q, k, v, &patterns, &options, rows_mut, None);
    assert!(matches!(result, Err(Error::Cancelled)));
}

#[test]
fn kernels_have_names() {
    for kind in [KernelKind::Sm90, KernelKind::Portable] {
        assert_eq!(kind.to_string().parse::<KernelKind>().unwrap(), kind);
    }
    assert!("sm80".parse::<KernelKind>().unwrap_err().to_string().contains("portable"));
}

#[test]
fn wrong_shapes_are_refused() {
    attentions().iter().for_each(|(device, attention)| wrong_shapes(device, attention));
}

fn wrong_shapes(device: &Device, attention: &Attention) {
    let stream = device.stream().unwrap();
    let buffer = stream.zeros::<bf16>(100 * 4 * 64).unwrap();
    let mut out_buffer = stream.zeros::<bf16>(100 * 4 * 64).unwrap();
    let mut lse = stream.zeros::<f32>(100 * 4).unwrap();
    let plan =
        |rows: usize| Plan::new(&vec![SparseIndex::dense(0, rows, TILE); 4], 2, 64).unwrap().upload(&stream).unwrap();
    let rows = |rows, heads, dim| DeviceRows::contiguous(buffer.view(), rows, heads, dim).unwrap();
    let mut error = |q: DeviceRows<'_, bf16>, kv: DeviceRows<'_, bf16>, plan_rows, scale, lse_len| {
        let (q_rows, heads, dim) = (100, 4, if q.data().len() == 1 { 1 } else { 64 });
        let mut out = DeviceRowsMut::contiguous(out_buffer.view_mut(), q_rows, heads, dim).unwrap();
        let lse = lse.view_mut().slice(0..lse_len).unwrap();
        attention.attend(&stream, q, kv, kv, &plan(plan_rows), scale, &mut out, Some(lse)).unwrap_err().to_string()
    };
    assert!(error(rows(100, 4, 64), rows(100, 2, 64), 99, None, 400).contains("queries"));
    assert!(error(rows(100, 4, 64), rows(99, 2, 64), 100, None, 400).contains("keys"));
    assert!(error(rows(100, 4, 64), rows(100, 2, 64), 100, Some(0.0), 400).contains("scale"));
    assert!(error(rows(100, 4, 64), rows(100, 2, 64), 100, None, 399).contains("log-sum-exp"));
    let odd = DeviceRows::new(buffer.view(), 100, 2, 64, 129, 64).unwrap();
    assert!(error(rows(100, 4, 64), odd, 100, None, 400).contains("multiples of 16"));
    let narrow = DeviceRows::contiguous(buffer.view(), 100, 4, 32).unwrap();
    let mut out = DeviceRowsMut::contiguous(out_buffer.view_mut(), 100, 4, 32).unwrap();
    let kv = DeviceRows::contiguous(buffer.view(), 100, 2, 32).unwrap();
    let refused = attention.attend(&stream, narrow, kv, kv, &plan(100), None, &mut out, None).unwrap_err();
    assert!(refused.to_string().contains("head dim 32"));
}

/// A million tokens of 32 heads of 128: more than 2^31 elements, so that every 32-bit product of sizes would show.
#[test]
#[ignore = "needs 26 GB of device memory and 30 GB of host memory"]
fn a_million_tokens() {
    let Some((device, _)) = attention() else { return };
    let (n, heads, kv_heads, dim) = (1usize << 20, 32, 8, 128);
    let value = |i: usize| {
        // A hash of the place: rows differ, and any element can be made again.
        let mut x = (i as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        x ^= x >> 32;
        x = x.wrapping_mul(0xD6E8_FEB8_6659_FD93);
        bf16::from_f32((x >> 40) as f32 / (1u64 << 23) as f32 - 1.0)
    };
    let tensor =
        |len: usize, salt: usize| (0..len).into_par_iter().map(|i| value(i ^ salt << 44)).collect::<Vec<bf16>>();
    let (q, k, v) = (tensor(n * heads * dim, 1), tensor(n * kv_heads * dim, 2), tensor(n * kv_heads * dim, 3));
    assert!(q.len() > 1 << 31);
    let indexes: Vec<SparseIndex> = (0..heads)
        .map(|h| {
            let windows = vec![0, 128, 300, 70_001 + 129 * h, 500_000 + 1000 * h, 1_000_000];
            let columns = (0..300).map(|c| c * 3000 + 7 * h).collect();
            SparseIndex::from_windows(0, n, TILE, windows, columns)
        })
        .collect();
    let stream = device.stream().unwrap();
    let plan = Plan::new(&indexes, kv_heads, dim).unwrap().upload(&stream).unwrap();
    let (device_q, device_k, device_v) =
        (stream.upload(&q).unwrap(), stream.upload(&k).unwrap(), stream.upload(&v).unwrap());
    let mut out = stream.alloc::<bf16>(q.len()).unwrap();
    let mut lse = stream.alloc::<f32>(heads * n).unwrap();
    let rows = |data, heads| Rows::contiguous(data, n, heads, dim).unwrap();
    let (rows_q, rows_k, rows_v) = (rows(&q, heads), rows(&k, kv_heads), rows(&v, kv_heads));
    for (_, attention) in attentions() {
        stream.fill(out.view_mut(), 0xff).unwrap();
        stream.fill(lse.view_mut(), 0xff).unwrap();
        attention
            .attend(
                &stream,
                DeviceRows::contiguous(device_q.view(), n, heads, dim).unwrap(),
                DeviceRows::contiguous(device_k.view(), n, kv_heads, dim).unwrap(),
                DeviceRows::contiguous(device_v.view(), n, kv_heads, dim).unwrap(),
                &plan,
                None,
                &mut DeviceRowsMut::contiguous(out.view_mut(), n, heads, dim).unwrap(),
                Some(lse.view_mut()),
            )
            .unwrap();
        let (out, lse) = (stream.download(out.view()).unwrap(), stream.download(lse.view()).unwrap());
        assert!(out.par_iter().all(|x| x.is_finite()) && lse.par_iter().all(|x| x.is_finite()));
        let places: Vec<(usize, usize)> =
            [0, 17, 31].iter().flat_map(|&h| [0, 1000, n / 2 + 3, n - 129, n - 1].map(|row| (row, h))).collect();
        places.par_iter().for_each(|&(row, head)| {
            let query: Vec<f32> = rows_q.row(row, head).iter().map(|x| x.to_f32()).collect();
            let visible = |key| key <= row && indexes[head].contains(row, key);
            let (want, want_lse) = attend_row(&query, rows_k, rows_v, head / 4, 1.0 / (dim as f64).sqrt(), visible);
            assert!((lse[head * n + row] as f64 - want_lse).abs() < 1e-4, "lse of row {row} head {head}");
            for (got, want) in out[(row * heads + head) * dim..][..dim].iter().zip(&want) {
                assert!((got.to_f32() as f64 - want).abs() < 4e-3, "row {row} head {head}: {got} {want}");
            }
        });
    }
}

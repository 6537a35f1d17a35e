//! Caches of 8-bit codes: what comes back of what was appended, and attention on exactly that.

use speedread_attention::RowsMut;

use super::*;

const KINDS: [KvType; 2] = [KvType::Fp8, KvType::Int8];

/// Appends `k` and `v` (`[rows, key heads, dim]`) in two pieces after `before` positions of other content, and returns what the cache holds
/// of all positions: keys, then values.
fn cached<B: Filled>(mut backend: B, heads: Heads, before: usize, k: &[f32], v: &[f32], kind: KvType) -> Vec<f32> {
    let Heads { kv_heads, group, dim, pairs, layout } = heads;
    let (width, rows) = (kv_heads * dim, k.len() / (kv_heads * dim));
    let len = before + rows;
    let shape = CacheShape { layers: 2, heads: kv_heads, dim, capacity: len + 3, kind };
    let mut cache = backend.cache(shape).unwrap();
    let frequencies: Vec<f64> = (0..pairs).map(|i| 10_000f64.powf(-(i as f64) / pairs as f64)).collect();
    let first = rows / 3;
    let other = numbers(before * width, 9);
    let pieces = [(0, &other[..], &other[..]), (before, &k[..first * width], &v[..first * width])];
    for (position, k, v) in pieces.into_iter().chain([(before + first, &k[first * width..], &v[first * width..])]) {
        let count = k.len() / width;
        if count == 0 {
            continue;
        }
        let mut q = backend.filled(group * width, &vec![1.0; count * group * width], Role::Activations);
        let mut k = backend.filled(width, k, Role::Activations);
        let v = backend.filled(width, v, Role::Activations);
        backend.rotary(&frequencies, 1.0, position as u64, count).unwrap();
        backend.rope_append(&mut q, &mut k, &v, 0..count, HeadShape { dim, layout }, &mut cache, 1, position).unwrap();
    }
    let q = backend.filled(group * width, &vec![0.0; group * width], Role::Activations);
    let view = backend.host_view(&Seen { q: &q, rows: 1, cache: &cache, layer: 1, len }).unwrap();
    match view.keys_and_values().unwrap() {
        View::F32(k, v) => widened(k, v),
        View::F16(k, v) => widened(k, v),
        View::Bf16(k, v) => widened(k, v),
    }
}

/// Heads of `dim` components times the matrix that keys and queries of such a cache are multiplied by, from its definition: the sign of
/// entry (i, j) of a block is that of the number of ones in `i & j`.
fn spread(all: &[f32], dim: usize) -> Vec<f32> {
    let block = 1 << dim.trailing_zeros();
    let times = |x: &[f32], i: usize| {
        let signed =
            |(j, &x): (usize, &f32)| if (i & j).count_ones().is_multiple_of(2) { f64::from(x) } else { -f64::from(x) };
        (x.iter().enumerate().map(signed).sum::<f64>() / (block as f64).sqrt()) as f32
    };
    all.chunks_exact(block).flat_map(|x| (0..block).map(|i| times(x, i))).collect()
}

/// A dim whose largest power of two is a third of it, and which is filled up.
const ODD: Heads = Heads { kv_heads: 1, group: 3, dim: 48, pairs: 24, layout: RopeLayout::Halves };

/// Numbers of every size: heads of zeros, of thousands, of thousandths, and some whose components are a millionfold apart.
fn of_every_size(rows: usize, kv_heads: usize, dim: usize, seed: u64) -> Vec<f32> {
    let mut all = numbers(rows * kv_heads * dim, seed);
    for (i, x) in all.iter_mut().enumerate() {
        let (run, at) = (i / dim, i % dim);
        let size = [0.0, 30_000.0, 1e-3, 1.0, 2f32.powi(-(at as i32 * 20 / dim as i32))][run % 5];
        *x = bf16::from_f32(*x * size).to_f32();
    }
    all
}

#[test]
fn appended_rows_come_back_within_the_types_error() {
    let Some(context) = device() else { return };
    for (heads, kind) in SHAPES.into_iter().chain([ODD]).flat_map(|heads| KINDS.map(|kind| (heads, kind))) {
        let Heads { kv_heads, dim, .. } = heads;
        let (k, v) = (of_every_size(23, kv_heads, dim, 1), of_every_size(23, kv_heads, dim, 2));
        for before in [0, 2] {
            let mut want = cached(CpuBackend::new(Precision::F32), heads, before, &k, &v, KvType::F32);
            let keys = want.len() / 2;
            want.splice(..keys, spread(&want[..keys], dim));
            let got = cached(CudaBackend::new(context).unwrap(), heads, before, &k, &v, kind);
            assert_eq!(got.len(), want.len());
            let mut off = 0.0f32;
            for (run, (got, want)) in got.chunks_exact(dim).zip(want.chunks_exact(dim)).enumerate() {
                let largest = want.iter().fold(0f32, |most, x| most.max(x.abs()));
                for (got, want) in got.iter().zip(want) {
                    // Half a step: of e4m3 a sixteenth of the number, or of a step at the lowest exponent. The host's view is bf16, and the angle's
                    // cosine and sine are rounded in another place.
                    let step = match kind {
                        KvType::Int8 => largest / 254.0,
                        _ => (want.abs() / 16.0).max(largest / 448.0 / 1024.0),
                    };
                    let allowed = step + want.abs() / 256.0 + EXACT * largest;
                    let difference = (got - want).abs();
                    assert!(difference <= allowed, "{heads:?} run {run}: {got} for {want}, largest {largest}");
                    if want.abs() == largest {
                        assert!(
                            difference <= largest / 256.0 + EXACT * largest,
                            "{heads:?}: largest {largest} came back as {got}"
                        );
                    }
                    off = off.max(difference / largest.max(f32::MIN_POSITIVE));
                }
            }
            let rounded = if kind == KvType::Int8 { 1.0 / 400.0 } else { 1.0 / 64.0 };
            assert!(off > rounded, "{heads:?} {kind}: nothing was rounded to 8 bits");
        }
    }
}

/// Queries of `rows` positions as attention meets them.
fn rotated_queries<B: Filled>(mut backend: B, heads: Heads, rows: usize, kind: KvType) -> Vec<f32> {
    let Heads { kv_heads, group, dim, pairs, layout } = heads;
    let mut cache = backend.cache(CacheShape { layers: 1, heads: kv_heads, dim, capacity: rows, kind }).unwrap();
    let [q, k] = [group * kv_heads * dim, kv_heads * dim].map(|width| (width, numbers(rows * width, 7)));
    let [mut q, mut k, v] = [&q, &k, &k].map(|(width, x)| backend.filled(*width, x, Role::Activations));
    let frequencies: Vec<f64> = (0..pairs).map(|i| 10_000f64.powf(-(i as f64) / pairs as f64)).collect();
    backend.rotary(&frequencies, 1.0, 0, rows).unwrap();
    backend.rope_append(&mut q, &mut k, &v, 0..rows, HeadShape { dim, layout }, &mut cache, 0, 0).unwrap();
    backend.read(&q, rows).unwrap()
}

/// Queries are multiplied as keys are, rounded once; of few rows and of many.
#[test]
fn queries_meet_keys_as_they_are_cached() {
    let Some(context) = device() else { return };
    for heads in SHAPES.into_iter().chain([ODD]) {
        for (rows, kind) in [(1, KvType::Fp8), (1, KvType::Int8), (150, KvType::Fp8)] {
            let want = spread(&rotated_queries(CpuBackend::new(Precision::F32), heads, rows, KvType::F32), heads.dim);
            let got = rotated_queries(CudaBackend::new(context).unwrap(), heads, rows, kind);
            for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                assert!((got - want).abs() <= want.abs() / 256.0 + EXACT, "{heads:?} {i}: {got} for {want}");
            }
        }
    }
}

/// What is not finite must show, as it does in other types, and in its own head alone.
#[test]
fn numbers_that_are_none_stay_none() {
    let Some(context) = device() else { return };
    let heads = SHAPES[0];
    let Heads { kv_heads, dim, .. } = heads;
    let good = numbers(3 * kv_heads * dim, 1);
    for kind in KINDS {
        for number in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut bad = good.clone();
            (bad[5], bad[kv_heads * dim + 7]) = (number, number);
            for keys in [true, false] {
                let (k, v) = if keys { (&bad, &good) } else { (&good, &bad) };
                let got = cached(CudaBackend::new(context).unwrap(), heads, 0, k, v, kind);
                let (k, v) = got.split_at(good.len());
                let (bad, good) = if keys { (k, v) } else { (v, k) };
                assert!(good.iter().all(|x| x.is_finite()), "{kind}, {number}");
                for (run, x) in bad.chunks_exact(dim).enumerate() {
                    let shows = x.iter().all(|x| x.is_nan());
                    assert!(
                        if [0, kv_heads].contains(&run) { shows } else { x.iter().all(|x| x.is_finite()) },
                        "{kind}, {number}, {run}"
                    );
                }
            }
        }
    }
}

#[test]
fn attention_is_that_of_the_dequantised_numbers() {
    let Some(context) = device() else { return };
    let pattern = "a-shape:8,64".parse().unwrap();
    for (heads, kind) in SHAPES.into_iter().flat_map(|heads| KINDS.map(|kind| (heads, kind))) {
        let Heads { kv_heads, group, dim, .. } = heads;
        let query_heads = kv_heads * group;
        for (pattern, rows, len) in
            [(Pattern::Dense, 1, 1), (Pattern::Dense, 40, 300), (Pattern::Dense, 130, 130), (pattern, 200, 333)]
        {
            let found = attend(CudaBackend::new(context).unwrap(), heads, rows, len, pattern, false, kind);
            let (q, rest) = found.split_at(rows * query_heads * dim);
            let (kv, out) = rest.split_at(2 * len * kv_heads * dim);
            let (k, v) = kv.split_at(len * kv_heads * dim);
            let what = format!("{heads:?} {kind} {pattern} {rows} of {len}");
            if pattern != Pattern::Dense {
                // Tiles of other sizes keep other keys.
                assert!(out.iter().all(|x| x.is_finite()), "{what}");
                continue;
            }
            let mut want = vec![0.0; out.len()];
            let rows_of = |data, rows, heads| Rows::contiguous(data, rows, heads, dim).unwrap();
            let to = RowsMut::contiguous(&mut want, rows, query_heads, dim).unwrap();
            let (q, k, v) = (rows_of(q, rows, query_heads), rows_of(k, len, kv_heads), rows_of(v, len, kv_heads));
            let patterns = vec![pattern; query_heads];
            speedread_attention::prefill(q, k, v, &patterns, &Options::default(), to, None).unwrap();
            let found = difference(out, &want);
            assert!(found <= ATTENDED, "{what}: {found} > {ATTENDED}");
        }
    }
}

#[test]
fn a_decode_step_is_attention_of_one_row() {
    let Some(context) = device() else { return };
    let wide = Heads { kv_heads: 1, group: 20, dim: 64, pairs: 32, layout: RopeLayout::Halves };
    for (heads, kind) in SHAPES.into_iter().chain([wide]).flat_map(|heads| KINDS.map(|kind| (heads, kind))) {
        for len in [1, 17, 64, 300, 1000] {
            let what = format!("{heads:?} {kind} {len} keys");
            let [dense, step] = [false, true].map(|step| {
                let mut backend = CudaBackend::new(context).unwrap();
                let Heads { kv_heads, group, dim, pairs, layout } = heads;
                let shape = CacheShape { layers: 1, heads: kv_heads, dim, capacity: len + 5, kind };
                let mut cache = backend.cache(shape).unwrap();
                let mut k = backend.filled(kv_heads * dim, &numbers(len * kv_heads * dim, 2), Role::Activations);
                let v = backend.filled(kv_heads * dim, &numbers(len * kv_heads * dim, 3), Role::Activations);
                let width = kv_heads * group * dim;
                let mut q = backend.filled(width, &numbers(len * width, 1), Role::Activations);
                backend.rotary(&vec![0.0; pairs], 1.0, 0, len).unwrap();
                backend.rope_append(&mut q, &mut k, &v, 0..len, HeadShape { dim, layout }, &mut cache, 0, 0).unwrap();
                if step {
                    backend.decode_attend(&mut q, &cache, 0, len, None).unwrap();
                } else {
                    let patterns = vec![Pattern::Dense; kv_heads * group];
                    backend.begin().unwrap();
                    backend
                        .attend(
                            &mut q,
                            1,
                            &cache,
                            0,
                            len,
                            speedread_attention::Heads::Patterns(&patterns),
                            &Options::default(),
                        )
                        .unwrap();
                    backend.finish().unwrap();
                }
                backend.read(&q, 1).unwrap()
            });
            let found = difference(&step, &dense);
            assert!(found <= ATTENDED, "{what}: {found} > {ATTENDED}");
            // And over a window, near the step on the numbers before they were quantised.
            let near = decode(CudaBackend::new(context).unwrap(), heads, len, Some(50), kind);
            let bf16 = decode(CudaBackend::new(context).unwrap(), heads, len, Some(50), KvType::Bf16);
            let found = difference(&near, &bf16);
            let allowed = if kind == KvType::Int8 { 1.0 / 32.0 } else { 1.0 / 8.0 };
            assert!(found <= allowed, "{what}, the last 50: {found}");
        }
    }
}

//! Caches of 8-bit codes: what comes back of what was appended, and attention on exactly that.

use speedread_attention::RowsMut;

use super::decode::decode;
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
        backend.rotary(&[positions(&frequencies, position, count)]).unwrap();
        backend
            .rope_append(&mut q, &mut k, &v, 0..count, 0, HeadShape { dim, layout }, &mut cache, 1, position)
            .unwrap();
    }
    let q = backend.filled(group * width, &vec![0.0; group * width], Role::Activations);
    let view = backend.host_view(&Seen { q: &q, rows: 1, cache: &cache, layer: 1, len }).unwrap();
    match view.keys_and_values().unwrap() {
        View::F32(k, v) => widened(k, v),
        View::F16(k, v) => widened(k, v),
        View::Bf16(k, v) => widened(k, v),
    }
}

/// Keys (`[rows, key heads, dim]`, rotated) less the mean of their head over the first `first` rows, or over 256 of these.
fn without_reference(keys: &[f32], kv_heads: usize, dim: usize, first: usize) -> Vec<f32> {
    let (width, count) = (kv_heads * dim, first.min(256));
    let of_sample = |at: usize| (0..count).map(move |i| f64::from(keys[i * first / count * width + at]));
    let reference: Vec<f64> = (0..width).map(|at| of_sample(at).sum::<f64>() / count as f64).collect();
    keys.iter().enumerate().map(|(i, &x)| (f64::from(x) - reference[i % width]) as f32).collect()
}

/// A dim which is filled up, and whose lanes of four are no power of two.
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
        // The first rows are a third of these, a single one, or more than a reference is the mean of.
        for before in [0, 1, 2, 300] {
            let exact = cached(CpuBackend::new(Precision::F32), heads, before, &k, &v, KvType::F32);
            let (keys, values) = exact.split_at(exact.len() / 2);
            let first = if before == 0 { 23 / 3 } else { before };
            let want = [&without_reference(keys, kv_heads, dim, first), values].concat();
            let got = cached(CudaBackend::new(context).unwrap(), heads, before, &k, &v, kind);
            assert_eq!(got.len(), want.len());
            let mut off = 0.0f32;
            for (run, (got, want)) in got.chunks_exact(dim).zip(want.chunks_exact(dim)).enumerate() {
                let largest_of = |x: &[f32]| x.iter().fold(0f32, |most, x| most.max(x.abs()));
                let largest = largest_of(want);
                // The rotated key was rounded, and so was its reference.
                let rounded = EXACT * largest.max(largest_of(&exact[run * dim..][..dim]));
                for (got, want) in got.iter().zip(want) {
                    // Half a step: of e4m3 a sixteenth of the number, or of a step at the lowest exponent. The host's view is bf16, and the angle's
                    // cosine and sine are rounded in another place.
                    let step = match kind {
                        KvType::Int8 => largest / 254.0,
                        _ => (want.abs() / 16.0).max(largest / 448.0 / 1024.0),
                    };
                    let allowed = step + want.abs() / 256.0 + rounded;
                    let difference = (got - want).abs();
                    assert!(difference <= allowed, "{heads:?} run {run}: {got} for {want}, largest {largest}");
                    if want.abs() == largest {
                        assert!(
                            difference <= largest / 256.0 + rounded,
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
    backend.rotary(&[positions(&frequencies, 0, rows)]).unwrap();
    backend.rope_append(&mut q, &mut k, &v, 0..rows, 0, HeadShape { dim, layout }, &mut cache, 0, 0).unwrap();
    backend.read(&q, rows).unwrap()
}

/// Queries are rotated and nothing else, rounded once; of few rows and of many.
#[test]
fn queries_are_rotated() {
    let Some(context) = device() else { return };
    for heads in SHAPES.into_iter().chain([ODD]) {
        for (rows, kind) in [(1, KvType::Fp8), (1, KvType::Int8), (150, KvType::Fp8)] {
            let want = rotated_queries(CpuBackend::new(Precision::F32), heads, rows, KvType::F32);
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
                backend.rotary(&[positions(&vec![0.0; pairs], 0, len)]).unwrap();
                backend
                    .rope_append(&mut q, &mut k, &v, 0..len, 0, HeadShape { dim, layout }, &mut cache, 0, 0)
                    .unwrap();
                if step {
                    let at = positions(&[], len - 1, 1);
                    backend.decode_attend(&mut q, &[Row { id: 0, at, cache: &mut cache }], 0, None).unwrap();
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
            let near = decode(CudaBackend::new(context).unwrap(), heads, &[len], Some(50), kind);
            let bf16 = decode(CudaBackend::new(context).unwrap(), heads, &[len], Some(50), KvType::Bf16);
            let found = difference(&near, &bf16);
            let allowed = if kind == KvType::Int8 { 1.0 / 32.0 } else { 1.0 / 8.0 };
            assert!(found <= allowed, "{what}, the last 50: {found}");
        }
    }
}

/// A backend with a cache of two layers that grows row by row.
struct Growing<B: Backend> {
    backend: B,
    cache: B::Cache,
    heads: Heads,
}

impl<B: Filled> Growing<B> {
    fn new(backend: B, heads: Heads, kind: KvType) -> Self {
        let Heads { kv_heads, dim, .. } = heads;
        let cache = backend.cache(CacheShape { layers: 2, heads: kv_heads, dim, capacity: 80, kind }).unwrap();
        Self { backend, cache, heads }
    }

    /// Appends `rows` positions, in whose keys and queries the last two components are large, and returns the rotated queries. These
    /// components are not rotated, or hardly.
    fn append(&mut self, layer: usize, position: usize, rows: usize, bias: f32) -> B::Buffer {
        let Self { backend, cache, heads: Heads { kv_heads, group, dim, pairs, layout } } = self;
        let (q_width, width) = (*kv_heads * *group * *dim, *kv_heads * *dim);
        let normal = |width: usize, seed: usize| -> Vec<f32> {
            // Of unit variance.
            numbers(rows * width, seed as u64).iter().map(|x| x * 3f32.sqrt()).collect()
        };
        let large = |mut all: Vec<f32>, size: f32| {
            for (head, x) in all.chunks_exact_mut(*dim).enumerate() {
                let size = [size, -size][head % *kv_heads % 2];
                // The largest alone would be exact in e4m3, as the scale is made of it.
                (x[*dim - 1], x[*dim - 2]) = (x[*dim - 1] + size, x[*dim - 2] - 0.6 * size);
            }
            // What bf16 holds: only the codes are to round.
            all.iter().map(|&x| bf16::from_f32(x).to_f32()).collect::<Vec<_>>()
        };
        let mut q = backend.filled(q_width, &large(normal(q_width, 3 * position), 8.0), Role::Activations);
        let mut k = backend.filled(width, &large(normal(width, 3 * position + 1), bias), Role::Activations);
        let v = backend.filled(width, &large(normal(width, 3 * position + 2), 0.0), Role::Activations);
        let frequencies: Vec<f64> = (0..*pairs).map(|i| 1e6f64.powf(-(i as f64) / *pairs as f64)).collect();
        backend.rotary(&[positions(&frequencies, position, rows)]).unwrap();
        let shape = HeadShape { dim: *dim, layout: *layout };
        backend.rope_append(&mut q, &mut k, &v, 0..rows, 0, shape, cache, layer, position).unwrap();
        q
    }
}

/// Causal attention of the last rows, from its definition.
fn exact_attention(q: &[f32], k: Rows<'_, f32>, v: Rows<'_, f32>, heads: Heads) -> Vec<f64> {
    let Heads { kv_heads, group, dim, .. } = heads;
    let (query_heads, len) = (kv_heads * group, k.rows());
    let before = len - q.len() / (query_heads * dim);
    let mut out = vec![];
    for (i, q) in q.chunks_exact(dim).enumerate() {
        let (row, head) = (i / query_heads, i % query_heads / group);
        let dot = |key: usize| q.iter().zip(k.row(key, head)).map(|(&q, &k)| f64::from(q) * f64::from(k)).sum::<f64>();
        let scores: Vec<f64> = (0..=before + row).map(|key| dot(key) / (dim as f64).sqrt()).collect();
        let most = scores.iter().fold(f64::MIN, |most, &x| most.max(x));
        let weights: Vec<f64> = scores.iter().map(|x| (x - most).exp()).collect();
        let sum: f64 = weights.iter().sum();
        out.extend((0..dim).map(|at| {
            weights.iter().enumerate().map(|(key, weight)| weight * f64::from(v.row(key, head)[at])).sum::<f64>() / sum
        }));
    }
    out
}

/// Keys with a component far larger than the rest and much the same in all, where queries are large too: what codes lose of keys must be
/// of what keys differ by. Over chunks and steps, after rows are taken back, and after all are, when keys and reference are others.
#[test]
fn a_component_that_all_keys_share_costs_nothing() {
    let Some(context) = device() else { return };
    for (heads, kind) in SHAPES.into_iter().chain([ODD]).flat_map(|heads| KINDS.map(|kind| (heads, kind))) {
        let mut exact = Growing::new(CpuBackend::new(Precision::F32), heads, KvType::F32);
        let mut coded = Growing::new(CudaBackend::new(context).unwrap(), heads, kind);
        for (position, rows, bias) in [
            (0, 40, 100.0),
            (40, 25, 100.0),
            (65, 1, 100.0),
            (66, 1, 100.0),
            (50, 20, 100.0),
            (70, 1, 100.0),
            (0, 30, -70.0),
            (30, 1, -70.0),
            (31, 20, -70.0),
            (0, 1, 200.0),
            (1, 1, 200.0),
            (2, 30, 200.0),
        ] {
            let len = position + rows;
            exact.append(1, position, rows, bias);
            let mut q = coded.append(1, position, rows, bias);
            // Every layer has its own reference.
            coded.append(0, position, rows, -3.0 * bias);
            let queries = coded.backend.read(&q, rows).unwrap();
            if rows == 1 {
                let row = Row { id: 0, at: positions(&[], position, 1), cache: &mut coded.cache };
                coded.backend.decode_attend(&mut q, &[row], 1, None).unwrap();
            } else {
                let patterns = vec![Pattern::Dense; heads.kv_heads * heads.group];
                let patterns = speedread_attention::Heads::Patterns(&patterns);
                coded.backend.begin().unwrap();
                coded.backend.attend(&mut q, rows, &coded.cache, 1, len, patterns, &Options::default()).unwrap();
                coded.backend.finish().unwrap();
            }
            let found = coded.backend.read(&q, rows).unwrap();
            let View::F32(k, v) = exact.cache.view(1, 0, heads.kv_heads, len).unwrap() else { unreachable!() };
            let want = exact_attention(&queries, k, v, heads);
            let squares = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>();
            let off = squares(&mut found.iter().zip(&want).map(|(&x, y)| f64::from(x) - y));
            let off = (off / squares(&mut want.iter().copied())).sqrt();
            // Of heads of 16 components, a part of whose scores is two of them, most; with no reference a quarter to all of the output.
            let allowed = if kind == KvType::Int8 { 1.0 / 64.0 } else { 0.1 };
            assert!(off <= allowed, "{heads:?} {kind}, {rows} rows at {position}: {off}");
        }
    }
}

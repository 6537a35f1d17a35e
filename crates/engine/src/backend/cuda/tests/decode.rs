//! Decode steps: rows of sequences of different lengths.

use super::*;

/// A decode step of several sequences, each of a length of its own, in whose caches nothing turns: keys stay numbers that bf16 holds.
pub(super) fn decode<B: Filled>(
    mut backend: B,
    heads: Heads,
    lens: &[usize],
    window: Option<usize>,
    kind: KvType,
) -> Vec<f32> {
    let Heads { kv_heads, group, dim, pairs, layout } = heads;
    let (width, kv_width, still) = (kv_heads * group * dim, kv_heads * dim, vec![0.0; pairs]);
    let mut caches: Vec<B::Cache> = vec![];
    for (seed, &len) in lens.iter().enumerate() {
        let shape = CacheShape { layers: 1, heads: kv_heads, dim, capacity: len + 5, kind };
        let mut cache = backend.cache(shape).unwrap();
        let [mut k, v] = [2, 3]
            .map(|what| backend.filled(kv_width, &numbers(len * kv_width, what + 10 * seed as u64), Role::Activations));
        let mut q = backend.filled(width, &numbers(len * width, 1), Role::Activations);
        backend.rotary(&[positions(&still, 0, len)]).unwrap();
        backend.rope_append(&mut q, &mut k, &v, 0..len, 0, HeadShape { dim, layout }, &mut cache, 0, 0).unwrap();
        caches.push(cache);
    }
    let mut q = backend.filled(width, &numbers((lens.len() + 1) * width, 1), Role::Activations);
    let row = |(cache, &len)| Row { id: 0, at: positions(&still, len - 1, 1), cache };
    let rows: Vec<_> = caches.iter_mut().zip(lens).map(row).collect();
    backend.decode_attend(&mut q, &rows, 0, window).unwrap();
    backend.read(&q, lens.len()).unwrap()
}

/// Rows of sequences at positions of their own, with frequencies of their own, on their way into their caches, `at_once` of them in a step:
/// what attention reads of the caches, then the rotated queries.
fn append_together<B: Filled>(
    mut backend: B,
    heads: Heads,
    kind: KvType,
    starts: &[usize],
    at_once: usize,
) -> Vec<f32> {
    let Heads { kv_heads, group, dim, pairs, layout } = heads;
    let (width, kv_width, shape) = (kv_heads * group * dim, kv_heads * dim, HeadShape { dim, layout });
    let turned = [10_000f64, 500.0].map(|base| (0..pairs).map(|i| base.powf(-(i as f64) / pairs as f64)).collect());
    let turned: [Vec<f64>; 2] = turned;
    let mut caches: Vec<B::Cache> = vec![];
    for (n, &start) in starts.iter().enumerate() {
        let of_cache = CacheShape { layers: 1, heads: kv_heads, dim, capacity: start + 1, kind };
        let mut cache = backend.cache(of_cache).unwrap();
        if start > 0 {
            // The positions before it.
            let mut q = backend.filled(width, &vec![0.0; start * width], Role::Activations);
            let before = numbers(start * kv_width, 20 + n as u64);
            let [mut k, v] = [0; 2].map(|_| backend.filled(kv_width, &before, Role::Activations));
            backend.rotary(&[positions(&turned[n % 2], 0, start)]).unwrap();
            backend.rope_append(&mut q, &mut k, &v, 0..start, 0, shape, &mut cache, 0, 0).unwrap();
        }
        caches.push(cache);
    }
    let (mut found, mut rotated) = (vec![], vec![]);
    for (step, caches) in caches.chunks_mut(at_once).enumerate() {
        let (first, count) = (step * at_once, caches.len());
        let of_rows =
            |width: usize, seed: u64| numbers(starts.len() * width, seed)[first * width..][..count * width].to_vec();
        let mut q = backend.filled(width, &of_rows(width, 1), Role::Activations);
        let [mut k, v] = [2, 3].map(|seed| backend.filled(kv_width, &of_rows(kv_width, seed), Role::Activations));
        let at = |n: usize| positions(&turned[n % 2], starts[n], 1);
        backend.rotary(&(first..first + count).map(at).collect::<Vec<_>>()).unwrap();
        let row = |(n, cache)| Row { id: 0, at: at(first + n), cache };
        let mut rows: Vec<_> = caches.iter_mut().enumerate().map(row).collect();
        backend.decode_append(&mut q, &mut k, &v, shape, &mut rows, 0).unwrap();
        for (n, cache) in caches.iter().enumerate() {
            let seen = Seen { q: &q, rows: 1, cache, layer: 0, len: starts[first + n] + 1 };
            found.extend(match backend.host_view(&seen).unwrap().keys_and_values().unwrap() {
                View::F32(k, v) => widened(k, v),
                View::F16(k, v) => widened(k, v),
                View::Bf16(k, v) => widened(k, v),
            });
        }
        rotated.extend(backend.read(&q, count).unwrap());
    }
    found.extend(rotated);
    found
}

#[test]
fn attention_of_a_decode_step() {
    for heads in SHAPES {
        for len in [1, 15, 16, 17, 64, 65, 300, 1000] {
            for window in [None, Some(50)] {
                let what = format!("{heads:?} {len} keys, window {window:?}");
                on_both!(&what, ATTENDED, decode(heads, &[len], window, KvType::Bf16));
            }
        }
        on_both!("several sequences", ATTENDED, decode(heads, &[300, 1, 65], Some(50), KvType::Bf16));
    }
    let wide = Heads { kv_heads: 1, group: 20, dim: 64, pairs: 32, layout: RopeLayout::Halves };
    on_both!("more heads than a block takes", ATTENDED, decode(wide, &[300], None, KvType::Bf16));
}

/// A sequence's row is what it would be alone, to the last bit: nothing of it is computed with the others'.
#[test]
fn attention_of_sequences_together_is_that_of_each() {
    let Some(context) = device() else { return };
    let backend = || CudaBackend::new(context).unwrap();
    for (heads, kind) in SHAPES.into_iter().flat_map(|heads| [KvType::Bf16, KvType::Int8].map(|kind| (heads, kind))) {
        // More than a launch takes.
        let lens = [1000, 17, 300, 64, 1, 2, 900, 65, 300, 33];
        let together = decode(backend(), heads, &lens, None, kind);
        let first = decode(backend(), heads, &lens[..1], None, kind);
        assert_eq!(together[..first.len()], first, "{heads:?}, {kind}");
        let two = decode(backend(), heads, &lens[..2], None, kind);
        assert_eq!(together[..two.len()], two, "{heads:?}, {kind}");
    }
}

#[test]
fn rows_of_sequences_go_to_their_own_caches() {
    for heads in SHAPES {
        on_both!(&format!("{heads:?}"), ROUNDED, append_together(heads, KvType::Bf16, &[0, 7, 300], 3));
    }
    let Some(context) = device() else { return };
    let found = |heads, kind, starts: &[usize], at_once| {
        append_together(CudaBackend::new(context).unwrap(), heads, kind, starts, at_once)
    };
    // A first row makes the reference of its cache of codes by itself.
    let many = [5, 7, 300, 1, 2, 64, 90, 33, 8, 9];
    for (heads, starts) in SHAPES.into_iter().flat_map(|heads| [(heads, &many[..]), (heads, &[7, 0, 30])]) {
        for kind in [KvType::Bf16, KvType::Int8, KvType::Fp8] {
            assert_eq!(found(heads, kind, starts, 10), found(heads, kind, starts, 1), "{heads:?}, {kind}, {starts:?}");
        }
    }
}

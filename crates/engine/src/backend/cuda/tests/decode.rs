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

/// Rows of sequences at positions of their own, with frequencies of their own, on their way into their caches: what [`attend`] reads of one.
fn append_together<B: Filled>(mut backend: B, heads: Heads, kind: KvType) -> Vec<f32> {
    let Heads { kv_heads, group, dim, pairs, layout } = heads;
    let (width, kv_width) = (kv_heads * group * dim, kv_heads * dim);
    let frequencies = |base: f64| (0..pairs).map(|i| base.powf(-(i as f64) / pairs as f64)).collect::<Vec<_>>();
    let turned = [frequencies(10_000.0), frequencies(500.0), frequencies(10_000.0)];
    let starts = [0, 7, 300];
    let runs: Vec<_> = turned.iter().zip(starts).map(|(of, start)| positions(of, start, 1)).collect();
    backend.rotary(&runs).unwrap();
    let mut q = backend.filled(width, &numbers(3 * width, 1), Role::Activations);
    let [mut k, v] = [2, 3].map(|seed| backend.filled(kv_width, &numbers(3 * kv_width, seed), Role::Activations));
    let mut found = vec![];
    for (i, start) in starts.into_iter().enumerate() {
        let shape = CacheShape { layers: 1, heads: kv_heads, dim, capacity: start + 1, kind };
        let mut cache = backend.cache(shape).unwrap();
        // Positions before it, all alike: it is the last that is looked at.
        let zeros = vec![0.0; start.max(1) * kv_width];
        if start > 0 {
            let mut scratch = backend.filled(width, &vec![0.0; start * width], Role::Activations);
            let [mut k, v] = [0; 2].map(|_| backend.filled(kv_width, &zeros, Role::Activations));
            backend.rotary(&[positions(&turned[i], 0, start)]).unwrap();
            let shape = HeadShape { dim, layout };
            backend.rope_append(&mut scratch, &mut k, &v, 0..start, 0, shape, &mut cache, 0, 0).unwrap();
            backend.rotary(&runs).unwrap();
        }
        backend.rope_append(&mut q, &mut k, &v, i..i + 1, i, HeadShape { dim, layout }, &mut cache, 0, start).unwrap();
        let seen = Seen { q: &q, rows: 1, cache: &cache, layer: 0, len: start + 1 };
        found.extend(match backend.host_view(&seen).unwrap().keys_and_values().unwrap() {
            View::F32(k, v) => widened(k, v),
            View::F16(k, v) => widened(k, v),
            View::Bf16(k, v) => widened(k, v),
        });
    }
    found.extend(backend.read(&q, 3).unwrap());
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
        let lens = [1000, 17, 300, 64];
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
        on_both!(&format!("{heads:?}"), ROUNDED, append_together(heads, KvType::Bf16));
    }
}

//! The largest logit as the device finds it, against the sampler's.

use super::super::logits::likeliest;
use super::*;
use crate::sampler;

/// What the host chooses; `None` where it finds nothing to choose from.
fn on_host(logits: &[f32]) -> Option<u32> {
    sampler::likeliest(logits).ok()
}

#[test]
fn the_largest_logit_is_the_samplers() {
    let Some(context) = device() else { return };
    let stream = &context.stream;
    let (mut ranks, mut rank) = (stream.alloc(0).unwrap(), stream.pinned(0).unwrap());
    let mut of_rows = |logits: &[f32], rows: usize| {
        let (there, mut chosen) = (stream.upload(logits).unwrap(), vec![0; rows]);
        let found = likeliest(context, there.view(), &mut ranks, &mut rank, &mut chosen).unwrap();
        found.then_some(chosen)
    };
    let mut check = |what: &str, logits: &[f32]| {
        let of_row = on_host(logits);
        assert_eq!(of_rows(logits, 1), of_row.map(|token| vec![token]), "{what}, {} logits", logits.len());
        // Between rows whose largest are elsewhere, and one that allows no choice or does.
        let falling: Vec<f32> = (0..logits.len()).map(|i| -(i as f32)).collect();
        let rising: Vec<f32> = falling.iter().rev().copied().collect();
        let rows = [&falling, logits, &rising].concat();
        let expected = of_row.map(|token| vec![0, token, logits.len() as u32 - 1]);
        assert_eq!(of_rows(&rows, 3), expected, "{what}, three rows of {} logits", logits.len());
    };
    const INFINITY: f32 = f32::INFINITY;
    // From one thread to more than the blocks take at once, with a part of a block at the end.
    for len in [1, 31, 256, 257, 1023, 1025, 5000, 152_064, 300_001] {
        let mut logits = numbers(len, len as u64);
        check("as they come: bf16 has many equals", &logits);
        logits.iter_mut().for_each(|x| *x -= 2.0);
        check("all negative", &logits);
        for at in [0, len / 3, len - 1] {
            let mut one = logits.clone();
            one[at] = 1e-30;
            check("one above", &one);
            one[len - 1] = one[at];
            one[len / 2] = one[at];
            check("the first of equals", &one);
        }
        check("equal", &vec![-3.5; len]);
        let zeros: Vec<f32> = (0..len).map(|i| if i % 3 == 0 { -0.0 } else { 0.0 }).collect();
        check("the zeros are equal", &zeros);
        check("none", &vec![-INFINITY; len]);
        let mut last = vec![-INFINITY; len];
        last[len - 1] = f32::MIN;
        check("all but one excluded", &last);
        for bad in [f32::NAN, -f32::NAN, INFINITY] {
            let mut bad_one = logits.clone();
            bad_one[len / 2] = bad;
            check("out of range", &bad_one);
        }
    }
}

#[test]
fn a_matrix_gives_the_token_of_its_largest_product() {
    let Some(context) = device() else { return };
    let mut backend = CudaBackend::new(context).unwrap();
    let (tokens, hidden) = (2001, 64);
    let weight = backend.upload_linear(Matrix::from_f32(tokens, hidden, numbers(tokens * hidden, 4)), None).unwrap();
    for seed in 0..5 {
        let x = backend.filled(hidden, &numbers(3 * hidden, seed), Role::Activations);
        let mut logits = vec![0.0; 3 * tokens];
        backend.logits(&weight, &x, 3, &mut logits).unwrap();
        let all = logits.clone();
        backend.logits(&weight, &x, 1, &mut logits[..tokens]).unwrap();
        assert!(difference(&logits[..tokens], &all[..tokens]) <= EXACT);
        let mut chosen = [0; 3];
        assert!(backend.likeliest(&weight, &x, &mut chosen[..1]).unwrap());
        assert_eq!(Some(chosen[0]), on_host(&logits[..tokens]));
        assert!(backend.likeliest(&weight, &x, &mut chosen).unwrap());
        assert!(all.chunks_exact(tokens).map(on_host).eq(chosen.map(Some)));
    }
}

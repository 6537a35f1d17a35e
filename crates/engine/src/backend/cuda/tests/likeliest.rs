//! The largest logit as the device finds it, against the sampler's.

use super::super::logits::{MOST_RANKS, likeliest};
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
    let (mut ranks, mut rank) = (stream.alloc(MOST_RANKS + 1).unwrap(), stream.pinned(1).unwrap());
    let mut check = |what: &str, logits: &[f32]| {
        let there = stream.upload(logits).unwrap();
        let found = likeliest(context, there.view(), &mut ranks, &mut rank).unwrap();
        assert_eq!(found, on_host(logits), "{what}, {} logits", logits.len());
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
        let found = backend.likeliest(&weight, &x).unwrap();
        assert_eq!(found, on_host(&logits[..tokens]));
        assert!(found.is_some());
    }
}

//! Prompts of different lengths in one call: each as if it were alone.
//!
//! Without a device the tests say that they were skipped; with `SPEEDREAD_REQUIRE_CUDA=1` that is a failure.

mod case;
mod device;

use case::{Case, patterns};
use device::{Layout, Rounded, attentions, round, sized};
use half::bf16;
use proptest::prelude::*;
use speedread_attention::cuda::{Attention, DeviceOptions, DeviceRows, DeviceRowsMut, Sequence, Workspace};
use speedread_attention::*;
use speedread_cuda::Device;

/// Outputs, log-sum-exps and reports of a batch; everything is poisoned first.
#[allow(clippy::type_complexity)]
fn batch(
    (device, attention): &(Device, Attention),
    cases: &[Rounded<bf16>],
    sequences: &[Sequence<'_>],
) -> Result<(Vec<f32>, Vec<f32>, Vec<Vec<HeadReport>>), Error> {
    let stream = device.stream().unwrap();
    let Case { heads, kv_heads, dim, .. } = cases[0].case;
    let packed = |of: &dyn Fn(&Rounded<bf16>) -> Vec<bf16>| {
        stream.upload(&cases.iter().flat_map(of).collect::<Vec<_>>()).unwrap()
    };
    let (q, k) = (packed(&|case| round(&case.case.q)), packed(&|case| case.k.clone()));
    let v = packed(&|case| case.v.clone());
    let rows = q.len() / (heads * dim);
    let (mut out, mut lse) = (stream.alloc::<bf16>(q.len()).unwrap(), stream.alloc::<f32>(rows * heads).unwrap());
    stream.fill(out.view_mut(), 0xff).unwrap();
    stream.fill(lse.view_mut(), 0xff).unwrap();
    let kv = |data| DeviceRows::contiguous(data, k.len() / (kv_heads * dim), kv_heads, dim).unwrap();
    let snapshots = attention.prefill_batch(
        &stream,
        DeviceRows::contiguous(q.view(), rows, heads, dim).unwrap(),
        kv(k.view()),
        kv(v.view()),
        sequences,
        &DeviceOptions::default(),
        &mut Workspace::new(),
        &mut DeviceRowsMut::contiguous(out.view_mut(), rows, heads, dim).unwrap(),
        Some(lse.view_mut()),
    )?;
    let reports = snapshots.into_iter().map(|snapshot| snapshot.read(&stream).unwrap()).collect();
    let out = stream.download(out.view()).unwrap().into_iter().map(bf16::to_f32).collect();
    Ok((out, stream.download(lse.view()).unwrap(), reports))
}

proptest! {
    // The machine that runs this may not have the sources.
    #![proptest_config(ProptestConfig { cases: sized(48, 4), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn sequences_do_not_see_each_other(
        lengths in proptest::collection::vec((prop_oneof![1usize..70, 1usize..500], prop_oneof![Just(0usize), 0usize..300]), 1..5),
        kv_heads in 1usize..3, group in 1usize..4, dim in prop_oneof![Just(64usize), Just(96), Just(128)],
        chosen in proptest::collection::vec(patterns(), 5), seed: u64,
    ) {
        for device in attentions() {
            let case = |(i, &(rows, start)): (usize, &(usize, usize))| {
                Rounded::<bf16>::new(Case::new(rows, start, kv_heads, group, dim, seed.wrapping_add(i as u64)))
            };
            let cases: Vec<_> = lengths.iter().enumerate().map(case).collect();
            let patterns: Vec<Vec<Pattern>> = chosen.iter().map(|&pattern| vec![pattern; kv_heads * group]).collect();
            let mut sequences = vec![];
            for (Rounded { case, .. }, patterns) in cases.iter().zip(&patterns) {
                sequences.push(Sequence { queries: case.rows, keys: case.len(), patterns });
            }
            let (out, lse, reports) = batch(device, &cases, &sequences).unwrap();
            let (mut at, heads) = (0, kv_heads * group);
            for ((case, patterns), report) in cases.iter().zip(&patterns).zip(reports) {
                // Bit for bit what it is alone; there it is compared with the oracle.
                let alone = case.prefill(device, patterns, true, Layout::RowMajor, &mut Workspace::new());
                let rows = case.case.rows;
                prop_assert_eq!(&out[at * heads * dim..(at + rows) * heads * dim], &alone.0);
                prop_assert_eq!(&lse[at * heads..(at + rows) * heads], &alone.1);
                prop_assert_eq!(report, alone.3);
                at += rows;
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_named() {
    for device in attentions() {
        let cases = [(40, 0), (30, 10)].map(|(rows, start)| Rounded::new(Case::new(rows, start, 1, 2, 64, 1)));
        let patterns = [Pattern::Dense; 2];
        let refused = |lengths: [(usize, usize); 2], second: &[Pattern]| {
            let [a, b] = lengths.map(|(queries, keys)| Sequence { queries, keys, patterns: &patterns });
            batch(device, &cases, &[a, Sequence { patterns: second, ..b }]).unwrap_err().to_string()
        };
        let too_many = refused([(40, 40), (31, 40)], &patterns);
        assert!(too_many.contains("71 queries and 80 keys in all") && too_many.contains("70 queries"), "{too_many}");
        let one = refused([(40, 40), (30, 40)], &patterns[..1]);
        assert!(one.contains("sequence 1: 1 patterns for 2 query heads"), "{one}");
        let none = refused([(70, 70), (0, 10)], &patterns);
        assert!(none.contains("sequence 1: rows 70..70 of 70"), "{none}");
        let few = refused([(40, 30), (30, 50)], &patterns);
        assert!(few.contains("sequence 0: 40 query rows"), "{few}");
    }
}

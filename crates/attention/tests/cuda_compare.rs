//! Comparing plans on the device: against the host's comparison over the same indexes.
//!
//! Without a device the tests say that they were skipped; with `SPEEDREAD_REQUIRE_CUDA=1` that is a failure.

mod case;
mod device;

use std::sync::atomic::AtomicBool;

use case::{Case, patterns};
use device::{Layout, Rounded, attentions, sized};
use half::{bf16, f16};
use proptest::prelude::*;
use speedread_attention::compare::{Deviation, Plan, compare};
use speedread_attention::cuda::{Attention, AttentionElement, DeviceRows, Workspace};
use speedread_attention::*;
use speedread_cuda::Device;

/// The device's comparison of the plans.
fn on_device<T: AttentionElement>(
    (device, attention): &(Device, Attention),
    case: &Rounded<T>,
    plans: &[Vec<Plan<'_>>],
    cancel: Option<&AtomicBool>,
) -> Result<Vec<Vec<Deviation>>, Error> {
    let stream = device.stream().unwrap();
    let Case { rows, heads, kv_heads, dim, .. } = case.case;
    let q = stream.upload(&device::round::<T>(&case.case.q)).unwrap();
    let (k, v) = (stream.upload(&case.k).unwrap(), stream.upload(&case.v).unwrap());
    let kv = |data| DeviceRows::contiguous(data, case.case.len(), kv_heads, dim).unwrap();
    let q = DeviceRows::contiguous(q.view(), rows, heads, dim).unwrap();
    attention.compare(&stream, q, kv(k.view()), kv(v.view()), plans, None, &mut Workspace::new(), cancel)
}

fn check<T: AttentionElement>(device: &(Device, Attention), case: Case, chosen: &[Pattern], rounding: f64) {
    let case = Rounded::<T>::new(case);
    let heads = case.case.heads;
    let of_patterns: Vec<Vec<Plan<'_>>> = chosen.iter().map(|&pattern| vec![Plan::Pattern(pattern); heads]).collect();
    let got = on_device(device, &case, &of_patterns, None).unwrap();
    for (&pattern, got) in chosen.iter().zip(got) {
        let (.., indexes, _) =
            case.prefill(device, &vec![pattern; heads], false, Layout::RowMajor, &mut Workspace::new());
        let plan = [indexes.iter().map(Plan::Index).collect::<Vec<_>>()];
        // The work laid out on the host is that of the device, so that not a bit differs.
        let of_indexes = on_device(device, &case, &plan, None).unwrap().remove(0);
        assert_eq!(got, of_indexes, "{pattern}");
        let (q, options) = (case.case.q(), Options::default());
        let want = compare(q, case.k(), case.v(), &plan, usize::MAX, Kernel::Cuda, &options).unwrap().remove(0);
        for (head, (got, want)) in got.iter().zip(want).enumerate() {
            let about = format!("{pattern}, head {head}: {got:?} {want:?}");
            // Outputs that are each off by a rounding.
            let off = (got.error.sqrt() - want.error.sqrt()).abs();
            assert!(off <= rounding * want.energy.sqrt(), "{about}");
            assert!((got.energy.sqrt() - want.energy.sqrt()).abs() <= rounding * want.energy.sqrt(), "{about}");
            assert!((got.recall.mean - want.recall.mean).abs() < 1e-4, "{about}");
            assert!((got.recall.min - want.recall.min).abs() < 1e-4, "{about}");
            assert_eq!(got.visits, want.visits, "{about}");
        }
    }
}

proptest! {
    // The machine that runs this may not have the sources.
    #![proptest_config(ProptestConfig { cases: sized(64, 5), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn deviations_are_the_hosts(
        rows in prop_oneof![1usize..70, 1usize..900], start in prop_oneof![Just(0usize), 0usize..500],
        kv_heads in 1usize..3, group in 1usize..5, dim in prop_oneof![Just(64usize), Just(96), Just(128)],
        chosen in proptest::collection::vec(patterns(), 1..4), half: bool, seed: u64,
    ) {
        for device in attentions() {
            let case = Case::new(rows, start, kv_heads, group, dim, seed);
            if half {
                check::<f16>(device, case, &chosen, 1e-3);
            } else {
                check::<bf16>(device, case, &chosen, 6e-3);
            }
        }
    }
}

/// Dense attention does not differ from itself, a band of a few keys does, and heads of one plan may run different things.
#[test]
fn heads_of_a_plan_are_told_apart() {
    let Some(device) = attentions().first() else { return };
    let case = Rounded::<bf16>::new(Case::new(700, 0, 1, 3, 64, 5));
    let band = Pattern::AShape { sink: 1, local: 2 };
    let index = SparseIndex::dense(0, 700, cuda::TILE);
    let plan = vec![Plan::Pattern(band), Plan::Pattern(Pattern::Dense), Plan::Index(&index)];
    let got = on_device(device, &case, &[plan], None).unwrap().remove(0);
    assert!(got[0].error > 0.1 * got[0].energy && got[0].recall.mean < 0.8, "{:?}", got[0]);
    for same in &got[1..] {
        assert_eq!((same.error, same.recall), (0.0, Recall { mean: 1.0, min: 1.0 }));
        assert!(same.energy > 0.0);
    }
}

#[test]
fn wrong_plans_are_refused_and_a_flag_stops() {
    let Some(device) = attentions().first() else { return };
    let case = Rounded::<bf16>::new(Case::new(100, 0, 1, 2, 64, 1));
    let plan = vec![Plan::Pattern(Pattern::Dense); 2];
    let short = on_device(device, &case, &[plan[..1].to_vec()], None).unwrap_err().to_string();
    assert!(short.contains("1 patterns for 2 query heads"), "{short}");
    let index = SparseIndex::dense(0, 99, cuda::TILE);
    let other = on_device(device, &case, &[vec![Plan::Pattern(Pattern::Dense), Plan::Index(&index)]], None)
        .unwrap_err()
        .to_string();
    assert!(other.contains("head 1 has 99 rows"), "{other}");
    let stopped = on_device(device, &case, &[plan], Some(&AtomicBool::new(true)));
    assert!(matches!(stopped, Err(Error::Cancelled)), "{stopped:?}");
}

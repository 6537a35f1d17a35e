//! A search on the CPU, of a small model with random weights.

mod common;

use std::sync::atomic::{AtomicBool, Ordering};

use common::{LAYERS, found, model, request};
use speedread_calibrate::{LayerWeights, Progress, calibrate};
use speedread_engine::Error;

#[test]
fn layers_count_by_what_they_do_to_the_next_tokens() {
    let (model, folder) = (model(), tempfile::tempdir().unwrap());
    let paths = ["times.json", "found.partial"].map(|name| folder.path().join(name));
    let measured = found(&request(&model, &paths, LayerWeights::Measured));
    assert!((measured.weights.iter().sum::<f64>() - LAYERS as f64).abs() < 1e-9, "{:?}", measured.weights);
    assert!(measured.weights.iter().any(|weight| (weight - 1.0).abs() > 1e-3), "{:?}", measured.weights);
    let other = [paths[0].clone(), folder.path().join("equal.partial")];
    let equal = found(&request(&model, &other, LayerWeights::Equal));
    assert_eq!(equal.weights, [1.0; LAYERS]);
    let comparisons = &measured.lengths[0].comparisons;
    let nats = |name: &str| comparisons.iter().find(|c| c.name.starts_with(name)).unwrap().divergence.unwrap();
    assert!(comparisons.iter().all(|c| c.divergence.is_some_and(|nats| nats.is_finite())), "{comparisons:?}");
    // Twice the keys and more say nearly what all of them say.
    assert!(nats("searched, global") > nats("uniform default") && nats("uniform default") >= 0.0, "{comparisons:?}");
}

/// Stopped in every stage, at every layer, a search goes on and ends as one that was not.
#[test]
fn a_stopped_search_goes_on_where_it_was() {
    let (model, folder) = (model(), tempfile::tempdir().unwrap());
    let paths = ["times.json", "found.partial"].map(|name| folder.path().join(name));
    let whole = found(&request(&model, &paths, LayerWeights::Measured)).to_json().unwrap();
    let paths = [paths[0].clone(), folder.path().join("stopped.partial")];
    let request = request(&model, &paths, LayerWeights::Measured);
    let mut stops = vec![];
    let ended = loop {
        let cancel = AtomicBool::new(false);
        let mut new = None;
        let mut stop_at_the_next = |p: Progress<'_>| {
            let at = format!("{} {} {}", p.stage, p.text, p.done);
            if new.is_none() && !stops.contains(&at) {
                new = Some(at);
                cancel.store(true, Ordering::Relaxed);
            }
        };
        match calibrate(&request, &mut stop_at_the_next, &cancel) {
            Ok(found) => break found,
            Err(Error::Cancelled | Error::Attention(speedread_attention::Error::Cancelled)) => stops.extend(new),
            Err(other) => panic!("{other}"),
        }
    };
    for stage in ["weighing", "measuring", "comparing"] {
        assert!(stops.iter().any(|at| at.starts_with(stage)), "{stops:?}");
    }
    assert_eq!(ended.to_json().unwrap(), whole);
}

//! A search on the CPU, of a small model with random weights.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use speedread_calibrate::{
    Calibration, LayerWeights, Length, Lines, Objective, Progress, Request, Search, Target, Text, calibrate,
};
use speedread_engine::Error;
use speedread_engine::device::DeviceChoice;
use speedread_engine::model::{Model, ModelOptions};
use speedread_engine::session::SessionOptions;
use speedread_engine::synthetic;

const TOKENS: usize = 900;
const LAYERS: usize = 3;

fn model() -> Model {
    let mut config = synthetic::config("llama-3.2-1b").unwrap();
    (config.layers, config.hidden, config.feed_forward, config.vocab) = (LAYERS, 128, 256, 500);
    (config.heads, config.kv_heads, config.head_dim, config.rope.dim) = (4, 2, 32, 32);
    let options = ModelOptions { device: DeviceChoice::Cpu, ..ModelOptions::default() };
    Model::with_random_weights(config, "random".into(), &options).unwrap()
}

fn text(name: &str, seed: usize) -> Text {
    Text { name: name.into(), ids: (0..TOKENS).map(|i| ((i * i * 31 + i * seed + 3) % 500) as u32).collect() }
}

fn request<'a>(model: &'a Model, [times, journal]: &'a [PathBuf; 2], layer_weights: LayerWeights) -> Request<'a> {
    Request {
        model,
        texts: vec![text("one", 17), text("three", 41)],
        held_out: vec![text("two", 29)],
        lengths: vec![Length { tokens: TOKENS, target: Target::Density(0.4) }],
        options: SessionOptions::new(TOKENS),
        search: Search::Global,
        objective: Objective::Mean,
        layer_weights,
        lines: Lines::Tiles,
        only: None,
        ablate: false,
        query_tiles: 4,
        device: "here",
        times,
        journal,
    }
}

fn found(request: &Request<'_>) -> Calibration {
    calibrate(request, &mut |_| {}, &AtomicBool::new(false)).unwrap()
}

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

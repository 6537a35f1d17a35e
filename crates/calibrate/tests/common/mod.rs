//! What the searches of the tests share: a small model with random weights, and texts.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use speedread_calibrate::{
    Calibration, LayerWeights, Length, Lines, Objective, Request, Search, Target, Text, calibrate,
};
use speedread_engine::device::DeviceChoice;
use speedread_engine::model::{Model, ModelOptions};
use speedread_engine::session::SessionOptions;
use speedread_engine::synthetic;

pub const TOKENS: usize = 900;
pub const LAYERS: usize = 3;

pub fn model() -> Model {
    let mut config = synthetic::config("llama-3.2-1b").unwrap();
    (config.layers, config.hidden, config.feed_forward, config.vocab) = (LAYERS, 128, 256, 500);
    (config.heads, config.kv_heads, config.head_dim, config.rope.dim) = (4, 2, 32, 32);
    let options = ModelOptions { device: DeviceChoice::Cpu, ..ModelOptions::default() };
    Model::with_random_weights(config, "random".into(), &options).unwrap()
}

pub fn text(name: &str, tokens: usize, seed: usize) -> Text {
    Text { name: name.into(), ids: (0..tokens).map(|i| ((i * i * 31 + i * seed + 3) % 500) as u32).collect() }
}

pub fn request<'a>(model: &'a Model, [times, journal]: &'a [PathBuf; 2], layer_weights: LayerWeights) -> Request<'a> {
    Request {
        model,
        texts: vec![text("one", TOKENS, 17), text("three", TOKENS, 41)],
        held_out: vec![text("two", TOKENS, 29)],
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

pub fn found(request: &Request<'_>) -> Calibration {
    calibrate(request, &mut |_| {}, &AtomicBool::new(false)).unwrap()
}

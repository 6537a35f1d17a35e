//! A search on a CUDA device, of a small model with random weights. Skipped without a device; `SPEEDREAD_REQUIRE_CUDA=1` makes that a failure.

use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use speedread_attention::{Kernel, Pattern, PatternFile};
use speedread_calibrate::{
    KernelTimes, LayerWeights, Length, Lines, Objective, Place, Request, Search, Shape, Target, Text, calibrate,
};
use speedread_engine::device::DeviceChoice;
use speedread_engine::model::{Model, ModelOptions};
use speedread_engine::session::{AttentionChoice, Session, SessionOptions};
use speedread_engine::synthetic;

/// Nine query tiles of the device's kernel, the last one not full.
const TOKENS: usize = 1100;

/// Two layers on the first CUDA device, or `None` where it cannot be used and is not required.
fn model(head_dim: usize) -> Option<Model> {
    let mut config = synthetic::config("llama-3.2-1b").unwrap();
    (config.layers, config.hidden, config.feed_forward, config.vocab) = (2, 128, 256, 500);
    (config.heads, config.kv_heads, config.head_dim, config.rope.dim) = (4, 2, head_dim, head_dim);
    let options = ModelOptions { device: DeviceChoice::Cuda(0), ..ModelOptions::default() };
    match Model::with_random_weights(config, "random".into(), &options) {
        Ok(model) => Some(model),
        Err(error) => {
            let required = std::env::var_os("SPEEDREAD_REQUIRE_CUDA").is_some_and(|value| value == "1");
            assert!(!required, "SPEEDREAD_REQUIRE_CUDA=1, but {error}");
            // Not eprintln!, which the test harness hides.
            std::io::stderr().write_all(format!("CUDA tests skipped: {error}\n").as_bytes()).unwrap();
            None
        }
    }
}

fn text(name: &str, seed: usize) -> Text {
    Text { name: name.into(), ids: (0..TOKENS).map(|i| ((i * i * 31 + i * seed + 3) % 500) as u32).collect() }
}

fn request<'a>(model: &'a Model, [times, journal]: &'a [PathBuf; 2]) -> Request<'a> {
    Request {
        model,
        texts: vec![text("one", 17)],
        held_out: vec![text("two", 29)],
        lengths: vec![Length { tokens: TOKENS, target: Target::Time(0.6) }],
        options: SessionOptions::new(TOKENS),
        search: Search::Global,
        objective: Objective::Mean,
        layer_weights: LayerWeights::Measured,
        lines: Lines::Tiles,
        only: None,
        ablate: true,
        query_tiles: 4,
        device: "here",
        times,
        journal,
    }
}

#[test]
fn a_search_on_a_device_ends_in_patterns_that_it_reads_with() {
    let Some(model) = model(64) else { return };
    let folder = tempfile::tempdir().unwrap();
    let paths = ["times.json", "found.partial"].map(|name| folder.path().join(name));
    let cancel = AtomicBool::new(false);
    let found = calibrate(&request(&model, &paths), &mut |_| {}, &cancel).unwrap();

    let times = found.lengths[0].kernel_times;
    assert_eq!(times.kernel, Kernel::Cuda);
    let all = [times.aligned_tile, times.shifted_tile, times.gathered_tile];
    assert!(
        all.into_iter().chain([times.vertical_slash_index, times.block_sparse_index]).all(|t| t > 0.0),
        "{times:?}"
    );
    assert!(
        (found.weights.iter().sum::<f64>() - 2.0).abs() < 1e-9 && found.weights[0] != found.weights[1],
        "{:?}",
        found.weights
    );
    let comparisons = &found.lengths[0].comparisons;
    let divergence = |of: &str| comparisons.iter().find(|c| c.name.starts_with(of)).and_then(|c| c.divergence);
    assert!(divergence("searched, global").is_some_and(|nats| nats > 0.0 && nats.is_finite()), "{comparisons:?}");
    assert_eq!(divergence("static"), None);
    assert!(comparisons.iter().any(|c| c.name.starts_with("static")), "{comparisons:?}");
    assert!(
        comparisons.iter().all(|c| c.time.is_finite() && c.error.is_finite() && c.recall <= 1.001),
        "{comparisons:?}"
    );

    // The same device is not timed again.
    let kept = std::fs::read_to_string(&paths[0]).unwrap();
    assert!(kept.contains("here | cuda, ") && kept.contains("4 query heads, 2 key heads | 1100 tokens"), "{kept}");
    let shape = Shape { tokens: TOKENS, head_dim: 64, heads: 4, kv_heads: 2 };
    let again = KernelTimes::of_device("here", Place::Cuda(model.cuda().unwrap()), shape, &paths[0]).unwrap();
    assert_eq!(again, times);

    let path = folder.path().join("found.json");
    found.write(&path).unwrap();
    let file = PatternFile::read(&path).unwrap();
    let table =
        file.table(model.config.layers, model.config.heads, &model.fingerprint(), model.device().kernel()).unwrap();
    let options = SessionOptions {
        attention: AttentionChoice::PerHead(table),
        dense_fallback: false,
        ..SessionOptions::new(TOKENS)
    };
    let mut session = Session::new(&model, options).unwrap();
    let report = session.prefill(&text("two", 29).ids, &mut |_| {}, &cancel).unwrap();
    // The tiles that the search counted on the held-out text are those that the device visits, but for lines that are nearly equal.
    let (counted, visited) = (comparisons[0].density, report.density());
    assert!((counted - visited).abs() < 0.03, "{counted} {visited}");
}

/// A budget of tiles is one of the device's tiles of 128 keys, wherever the search counts it.
#[test]
fn tiles_are_the_devices() {
    let Some(model) = model(48) else { return };
    let context = model.cuda().unwrap();
    let shape = Shape { tokens: 600, head_dim: 48, heads: 4, kv_heads: 2 };
    let times = KernelTimes::measure(Place::Cuda(context), shape).unwrap();
    // Dense attention of five query tiles, by the tile.
    let index = speedread_attention::SparseIndex::dense(0, 600, Kernel::Cuda.tile());
    let visits = times.kernel.visits(&index);
    assert_eq!((visits.runs, visits.gathered), (1 + 2 + 3 + 4 + 5, 0));
    assert_eq!(times.head(Pattern::Dense, visits), 15.0 * times.aligned_tile);
}

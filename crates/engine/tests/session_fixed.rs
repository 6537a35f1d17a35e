//! Sessions that read with the indexes of another prompt, on the CPU and, where there is one, on a CUDA device. `SPEEDREAD_REQUIRE_CUDA=1` makes
//! its absence a failure.

mod golden;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use golden::{cuda_device, prompt, tiny, write_folder};
use speedread_attention::Pattern;
use speedread_engine::device::DeviceChoice;
use speedread_engine::model::{Model, ModelOptions};
use speedread_engine::session::{AttentionChoice, FixedIndexes, PrefillReport, Session, SessionOptions};
use speedread_engine::synthetic;

/// More than the model was made for: enough tiles for a pattern to leave some out.
const CONTEXT: usize = 1000;

fn model(name: &str, device: DeviceChoice) -> Model {
    let folder = tempfile::tempdir().unwrap();
    write_folder(&tiny(name), folder.path());
    let mut model = Model::open(folder.path(), &ModelOptions { device, ..ModelOptions::default() }).unwrap();
    model.config.context = CONTEXT;
    model
}

fn options(attention: AttentionChoice) -> SessionOptions {
    SessionOptions { attention, dense_fallback: false, ..SessionOptions::new(CONTEXT) }
}

fn read(model: &Model, options: SessionOptions, ids: &[u32]) -> (Vec<f32>, PrefillReport) {
    let mut session = Session::new(model, options).unwrap();
    let report = session.prefill(ids, &mut |_| {}, &AtomicBool::new(false)).unwrap();
    (session.logits().unwrap().to_vec(), report)
}

fn fix(model: &Model, pattern: Pattern, ids: &[u32]) -> Arc<FixedIndexes> {
    let mut session = Session::new(model, options(AttentionChoice::Pattern(pattern))).unwrap();
    let fixed = session.fix_indexes(ids, &AtomicBool::new(false)).unwrap();
    assert!(session.is_empty());
    fixed.into()
}

fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| if (a - b).is_finite() { (a - b).abs() } else { f32::INFINITY }).fold(0.0, f32::max)
}

/// With indexes of the prompt itself nothing changes; with those of others of all lengths, what is looked at does, and hardly how much.
fn check(device: DeviceChoice, tolerance: f32) {
    let model = model("llama3.1", device);
    let ids = prompt(CONTEXT, model.config.vocab);
    let other: Vec<u32> = ids.iter().rev().map(|id| id * 7 % model.config.vocab as u32).collect();
    for text in ["vertical-slash-tiles:1,2", "vertical-slash:60,105", "block-sparse:3", "tri-shape:64,128,64"] {
        let pattern: Pattern = text.parse().unwrap();
        let (itself, report) = read(&model, options(AttentionChoice::Pattern(pattern)), &ids);
        let (own, own_report) = read(&model, options(AttentionChoice::Fixed(fix(&model, pattern, &ids))), &ids);
        assert!(difference(&itself, &own) <= tolerance, "{text}: {}", difference(&itself, &own));
        assert!((report.density() - own_report.density()).abs() < 0.01, "{text}");
        assert!(own_report.density() < 0.99, "{text}: {}", own_report.density());
        assert!(own_report.layers.iter().flatten().all(|head| head.pattern == pattern), "{text}");
        for length in [600, CONTEXT] {
            let fixed = AttentionChoice::Fixed(fix(&model, pattern, &other[..length]));
            let audited = SessionOptions { audit_rows: Some(8), ..options(fixed.clone()) };
            let (logits, report) = read(&model, audited, &ids);
            assert_eq!(logits, read(&model, options(fixed.clone()), &ids).0, "{text}: an audit changes nothing");
            assert!(logits.iter().all(|x| x.is_finite()), "{text}");
            assert!(report.layers.iter().flatten().all(|head| head.recall.unwrap().mean <= 1.001), "{text}");
            assert_eq!(difference(&logits, &own) > 0.0, !text.starts_with("tri"), "{text} of {length}");
            let (short, _) = read(&model, options(fixed), &ids[..400]);
            assert!(short.iter().all(|x| x.is_finite()), "{text}");
        }
    }
}

#[test]
fn prompts_are_read_with_indexes_of_others() {
    check(DeviceChoice::Cpu, 0.0);
}

#[test]
fn prompts_are_read_with_indexes_of_others_on_a_device() {
    let Some(device) = cuda_device() else { return };
    // Indexes come from the host's estimator here and from the device's there: of equal lines they may choose others.
    check(device, 0.1);
}

/// What is a whole prompt on the host and on the device.
fn check_refusals(device: DeviceChoice) {
    let tiny = model("llama3.1", device);
    let ids = prompt(600, tiny.config.vocab);
    let pattern: Pattern = "vertical-slash:60,150".parse().unwrap();
    let fixed = AttentionChoice::Fixed(fix(&tiny, pattern, &ids));
    let said = |model: &Model, options| match Session::new(model, options) {
        Ok(_) => panic!("not refused"),
        Err(error) => error.to_string(),
    };
    assert!(said(&tiny, SessionOptions { chunk: Some(100), ..options(fixed.clone()) }).contains("leave out --chunk"));
    let mut config = synthetic::config("llama-3.2-1b").unwrap();
    (config.layers, config.hidden, config.feed_forward, config.vocab) = (3, 64, 128, 100);
    (config.heads, config.kv_heads) = (4, 2);
    let open = ModelOptions { device, ..ModelOptions::default() };
    let deeper = Model::with_random_weights(config, "random".into(), &open).unwrap();
    assert!(said(&deeper, options(fixed.clone())).contains("another model"));
    let mut session = Session::new(&tiny, options(fixed)).unwrap();
    session.prefill(&ids[..300], &mut |_| {}, &AtomicBool::new(false)).unwrap();
    let later = session.prefill(&ids[300..], &mut |_| {}, &AtomicBool::new(false)).unwrap_err().to_string();
    assert!(later.contains("one piece"), "{later}");
    assert_eq!(session.len(), 300);
}

#[test]
fn what_is_no_whole_prompt_is_refused() {
    check_refusals(DeviceChoice::Cpu);
    if let Some(device) = cuda_device() {
        check_refusals(device);
    }
}

/// An index is in the tiles of the device that it is for.
#[test]
fn indexes_are_for_one_kind_of_device() {
    let Some(device) = cuda_device() else { return };
    let (here, there) = (model("llama3.1", DeviceChoice::Cpu), model("llama3.1", device));
    let ids = prompt(600, here.config.vocab);
    let fixed = AttentionChoice::Fixed(fix(&here, "block-sparse:3".parse().unwrap(), &ids));
    let mut session = Session::new(&there, options(fixed)).unwrap();
    let error = session.prefill(&ids, &mut |_| {}, &AtomicBool::new(false)).unwrap_err().to_string();
    assert!(error.contains("queries: 128, keys: 128 } are needed"), "{error}");
}

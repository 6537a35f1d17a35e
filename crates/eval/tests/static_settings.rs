//! Settings that read with the indexes of another sample's prompt, on a small model with random weights: on the CPU and, where there is one, on
//! a CUDA device. `SPEEDREAD_REQUIRE_CUDA=1` makes its absence a failure.

use std::io::Write;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use serde_json::json;
use speedread_engine::device::DeviceChoice;
use speedread_engine::generate::generate;
use speedread_engine::model::{Model, ModelOptions};
use speedread_engine::sampler::{Sampler, SamplerOptions};
use speedread_engine::session::{AttentionChoice, Session, SessionOptions};
use speedread_engine::synthetic;
use speedread_eval::header::Header;
use speedread_eval::metrics::Metric;
use speedread_eval::perplexity::{self, Perplexity, Text};
use speedread_eval::results::{Answer, Record, ResultsFile};
use speedread_eval::runner;
use speedread_eval::sample::{Prompt, Sample};
use speedread_eval::setting::Setting;

const NEW: usize = 4;

/// A model that seems to lie at `path`; `None` where its device cannot be used and is not required.
fn model(device: DeviceChoice, path: &Path) -> Option<Model> {
    let mut config = synthetic::config("llama-3.2-1b").unwrap();
    (config.layers, config.hidden, config.feed_forward, config.vocab) = (2, 128, 256, 256);
    (config.heads, config.kv_heads, config.head_dim, config.rope.dim) = (4, 2, 64, 64);
    let options = ModelOptions { device, ..ModelOptions::default() };
    match Model::with_random_weights(config, path.into(), &options) {
        Ok(model) => Some(model),
        Err(error) => {
            let required = std::env::var_os("SPEEDREAD_REQUIRE_CUDA").is_some_and(|value| value == "1");
            assert!(!required && device != DeviceChoice::Cpu, "{error}");
            // Not eprintln!, which the test harness hides.
            std::io::stderr().write_all(format!("CUDA tests skipped: {error}\n").as_bytes()).unwrap();
            None
        }
    }
}

fn ids(count: usize, seed: usize) -> Vec<u32> {
    (0..count).map(|i| ((i * i * 31 + i * seed + 3) % 256) as u32).collect()
}

fn sample(task: &str, number: usize, tokens: usize) -> Sample {
    Sample {
        id: format!("{task}:{number}"),
        task: task.into(),
        length: Some(1024),
        depth: None,
        prompt: Prompt::Ids(ids(tokens, 7 * number + task.len())),
        answers: vec!["x".into()],
        classes: vec![],
        metric: Metric::QaF1,
        first_line: false,
        max_new_tokens: NEW,
    }
}

/// Dense, a pattern, and the pattern with indexes of another prompt.
fn settings(pattern: &str) -> Vec<Setting> {
    let base = SessionOptions { dense_fallback: false, ..SessionOptions::new(0) };
    let of = |name: String| Setting::new(name, AttentionChoice::Pattern(pattern.parse().unwrap()), &base);
    vec![
        Setting::new("dense", AttentionChoice::Dense, &base),
        of(pattern.into()),
        of(format!("static:{pattern}")).fixed().unwrap(),
    ]
}

fn open<R: Record>(model: &Model, settings: &[Setting], path: &Path) -> (ResultsFile, Vec<R>) {
    let header = Header::new(R::KIND, model, settings, &[], None, json!({})).unwrap();
    ResultsFile::open(path, &header).unwrap()
}

/// The answer to a prompt that is read with the indexes of another.
fn by_hand(model: &Model, setting: &Setting, prompt: &Sample, source: &Sample) -> (String, f64) {
    let (Prompt::Ids(ids), Prompt::Ids(of)) = (&prompt.prompt, &source.prompt) else { panic!("ids") };
    let cancel = AtomicBool::new(false);
    let options = |tokens| SessionOptions { context: tokens, ..setting.options.clone() };
    let fixed = Session::new(model, options(of.len())).unwrap().fix_indexes(of, &cancel).unwrap();
    let options = SessionOptions { attention: AttentionChoice::Fixed(fixed.into()), ..options(ids.len() + NEW) };
    let mut session = Session::new(model, options).unwrap();
    let report = session.prefill(ids, &mut |_| {}, &cancel).unwrap();
    let mut sampler = Sampler::new(SamplerOptions::default()).unwrap();
    let said = generate(&mut session, &model.tokenizer, &mut sampler, &[], NEW, &cancel, &mut |_| {}).unwrap();
    (said.text, report.density())
}

fn check(device: DeviceChoice, pattern: &str) {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("model"), "").unwrap();
    let Some(model) = model(device, &path("model")) else { return };
    let settings = settings(pattern);
    let samples =
        [sample("a", 0, 900), sample("a", 1, 700), sample("bb", 0, 800), sample("a", 2, 1000), sample("bb", 1, 640)];
    let cancel = AtomicBool::new(false);
    let run = |file: &mut ResultsFile, samples: &[Sample]| {
        runner::run(&model, samples, &settings, file, &mut |_| {}, &cancel)
    };
    let (mut file, _) = open::<Answer>(&model, &settings, &path("answers"));
    // A sample alone has no other prompt: nothing is run.
    let error = run(&mut file, &samples[..3]).unwrap_err().to_string();
    assert!(error.contains("bb of length 1024 has one sample"), "{error}");
    let answers = run(&mut file, &samples).unwrap();
    assert_eq!(answers.len(), 15);
    assert!(run(&mut file, &samples).unwrap().is_empty(), "all is done");
    let of = |sample: &Sample, setting: &str| {
        answers.iter().find(|answer| answer.id == sample.id && answer.setting == setting).unwrap()
    };
    // The first of a task gives the indexes for the others, and the second for the first.
    for (prompt, source) in [(0, 1), (1, 0), (2, 4), (3, 0), (4, 2)] {
        let (prompt, source) = (&samples[prompt], &samples[source]);
        let (itself, other) = (of(prompt, pattern), of(prompt, &settings[2].name));
        assert_eq!(
            (other.answer.clone(), other.density),
            by_hand(&model, &settings[2], prompt, source),
            "{}",
            prompt.id
        );
        assert!((itself.density - other.density).abs() < 0.1 && other.density < 1.0, "{itself:?} {other:?}");
    }

    let texts = [("one", 5), ("two", 11), ("three", 23)].map(|(name, seed)| {
        let text = ids(700, seed).into_iter().map(|id| char::from(b' ' + (id % 90) as u8)).collect();
        Text { name: name.into(), text }
    });
    let (mut file, _) = open::<Perplexity>(&model, &settings, &path("perplexity"));
    let mut run =
        |texts: &[Text]| perplexity::run(&model, texts, &[512, 700], &settings, &mut file, &mut |_| {}, &cancel);
    let error = run(&texts[..1]).unwrap_err().to_string();
    assert!(error.contains("another text, and there is one"), "{error}");
    let found = run(&texts).unwrap();
    assert_eq!(found.len(), 18);
    let mut differ = 0;
    for fixed in found.iter().filter(|found| found.setting.starts_with("static:")) {
        let itself = found.iter().find(|other| other.id == fixed.id && other.setting == pattern).unwrap();
        assert!(fixed.nll.is_finite(), "{fixed:?}");
        differ += usize::from(fixed.nll != itself.nll);
    }
    // Of a few tiles the same ones may be the best of both texts.
    assert!(differ > 0, "{found:?}");
}

#[test]
fn samples_are_read_with_indexes_of_others() {
    for pattern in ["vertical-slash-tiles:1,3", "block-sparse:3"] {
        check(DeviceChoice::Cpu, pattern);
    }
}

#[test]
fn samples_are_read_with_indexes_of_others_on_a_device() {
    check(DeviceChoice::Cuda(0), "vertical-slash-tiles:1,2");
}

#[test]
fn chunks_are_refused() {
    let base = SessionOptions { chunk: Some(100), ..SessionOptions::new(0) };
    let error = Setting::new("static:auto", AttentionChoice::Auto, &base).fixed().unwrap_err().to_string();
    assert!(error.contains("static:auto") && error.contains("leave out --chunk"), "{error}");
}

//! Settings that read with the indexes of another sample's prompt, on a small model with random weights: on the CPU and, where there is one, on
//! a CUDA device. `SPEEDREAD_REQUIRE_CUDA=1` makes its absence a failure.

mod common;

use std::sync::atomic::AtomicBool;

use common::{NEW, ids, model, open, sample, settings};
use speedread_engine::device::DeviceChoice;
use speedread_engine::generate::generate;
use speedread_engine::model::Model;
use speedread_engine::sampler::{Sampler, SamplerOptions};
use speedread_engine::session::{AttentionChoice, Session, SessionOptions};
use speedread_eval::perplexity::{self, Perplexity, Text};
use speedread_eval::results::{Answer, ResultsFile};
use speedread_eval::runner;
use speedread_eval::sample::{Prompt, Sample};
use speedread_eval::setting::Setting;

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
        // So few rows that the CPU multiplies each as if it were alone.
        let batch = if device == DeviceChoice::Cpu { 3 } else { 1 };
        runner::run(&model, samples, &settings, Some(batch), file, &mut |_| {}, &cancel)
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

//! Answers that are decoded together are those of one by one, in runs that are stopped as well. `SPEEDREAD_REQUIRE_CUDA=1` makes the absence of
//! a CUDA device a failure.

mod common;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{model, open, sample, settings};
use speedread_engine::device::DeviceChoice;
use speedread_engine::model::Model;
use speedread_eval::results::{Answer, Results, ResultsFile};
use speedread_eval::runner::{self, RunProgress};
use speedread_eval::sample::Sample;
use speedread_eval::setting::Setting;

const PATTERN: &str = "block-sparse:3";

/// Prompts of different lengths with answers of different lengths, none and a token among them.
fn samples() -> Vec<Sample> {
    let mut samples: Vec<Sample> =
        [("a", 0, 500), ("a", 1, 700), ("a", 2, 30), ("a", 3, 410), ("bb", 0, 300), ("bb", 1, 640), ("bb", 2, 4)]
            .map(|(task, number, tokens)| sample(task, number, tokens))
            .into();
    for (sample, tokens) in samples.iter_mut().zip([12, 3, 20, 1, 7, 0, 9]) {
        sample.max_new_tokens = tokens;
    }
    samples
}

/// A run in a folder of its own that seems to hold the model.
struct Run<'a> {
    model: &'a Model,
    settings: Vec<Setting>,
    folder: &'a Path,
}

impl Run<'_> {
    fn file(&self, name: &str) -> (ResultsFile, Vec<Answer>) {
        open::<Answer>(self.model, &self.settings, &self.folder.join(name))
    }

    /// Answers of a batch size; `observe` may stop it.
    fn run(
        &self,
        name: &str,
        batch: Option<usize>,
        cancel: &AtomicBool,
        observe: &mut dyn FnMut(RunProgress<'_>),
    ) -> speedread_eval::Result<Vec<Answer>> {
        runner::run(self.model, &samples(), &self.settings, batch, &mut self.file(name).0, observe, cancel)
    }

    fn all(&self, name: &str, batch: usize) -> Vec<Answer> {
        let answers = self.run(name, Some(batch), &AtomicBool::new(false), &mut |_| {}).unwrap();
        let written = Results::<Answer>::read(&self.folder.join(name)).unwrap().records;
        assert_eq!(written.len(), samples().len() * self.settings.len());
        assert!(!answers.is_empty());
        timeless(written)
    }
}

/// Sorted and without seconds, which are never the same.
fn timeless(mut answers: Vec<Answer>) -> Vec<Answer> {
    for answer in &mut answers {
        assert!(answer.ttft_s > 0.0 && answer.prefill_s > 0.0 && answer.decode_s >= 0.0, "{answer:?}");
        (answer.ttft_s, answer.prefill_s, answer.attention_s, answer.decode_s) = (0.0, 0.0, 0.0, 0.0);
    }
    answers.sort_by(|a, b| (&a.id, &a.setting).cmp(&(&b.id, &b.setting)));
    answers
}

#[test]
fn a_batch_answers_as_each_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model");
    std::fs::write(&path, "").unwrap();
    let model = model(DeviceChoice::Cpu, &path).unwrap();
    let run = Run { model: &model, settings: settings(PATTERN), folder: folder.path() };
    let alone = run.all("1", 1);
    assert!(
        alone.iter().any(|answer| answer.answer_tokens == 20) && alone.iter().any(|answer| answer.answer_tokens == 0)
    );
    assert_eq!(run.all("3", 3), alone);
    assert_eq!(run.all("4", 4), alone);
    // One by one is the default on the CPU, in the order of the samples.
    let mut order = vec![];
    let mut observe = |progress: RunProgress<'_>| {
        if order.last() != Some(&progress.answers) {
            order.push(progress.answers);
        }
    };
    let first = run.run("default", None, &AtomicBool::new(false), &mut observe).unwrap();
    let keys: Vec<_> = first.iter().map(|answer| (answer.id.clone(), answer.setting.clone())).collect();
    let expected = samples()
        .into_iter()
        .flat_map(|sample| run.settings.iter().map(move |setting| (sample.id.clone(), setting.name.clone())));
    assert!(keys.into_iter().eq(expected));
    assert!(order.into_iter().eq(0..samples().len() * run.settings.len()));
    assert_eq!(timeless(first), alone);

    for wrong in [0, 65] {
        let error = run.run("wrong", Some(wrong), &AtomicBool::new(false), &mut |_| {}).unwrap_err().to_string();
        assert!(error.contains(&format!("--batch {wrong}: from 1 to 64")), "{error}");
    }
}

/// Stopped while a prompt is read, and between steps, when an answer of one token is there already; continued with another size of batch.
#[test]
fn a_stopped_run_goes_on_in_other_batches() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model");
    std::fs::write(&path, "").unwrap();
    let model = model(DeviceChoice::Cpu, &path).unwrap();
    let run = Run { model: &model, settings: settings(PATTERN), folder: folder.path() };
    let alone = run.all("alone", 1);
    let batch = |tokens: &[usize]| tokens.iter().sum::<usize>() as u64;
    for (what, at, done) in [
        // In the first batch's third prompt, its second setting: the first setting has answered three.
        ("reading", batch(&[500, 700, 30]) + batch(&[500, 700]) + 1, 3),
        // With the last layer of the second batch's prompts under the first setting: one token is the whole answer to sample 3.
        ("decoding", 3 * batch(&[500, 700, 30]) + batch(&[410, 300, 640]), 9 + 2),
    ] {
        let cancel = AtomicBool::new(false);
        let mut stop = |progress: RunProgress<'_>| cancel.store(progress.tokens >= at, Ordering::Relaxed);
        assert!(run.run(what, Some(3), &cancel, &mut stop).unwrap_err().is_cancelled());
        let (file, written) = run.file(what);
        drop(file);
        assert_eq!(written.len(), done, "{what}");
        assert_eq!(run.all(what, 2), alone, "{what}");
    }
}

#[test]
fn batches_on_a_device() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model");
    std::fs::write(&path, "").unwrap();
    let Some(model) = model(DeviceChoice::Cuda(0), &path) else { return };
    let run = Run { model: &model, settings: settings("vertical-slash-tiles:1,2"), folder: folder.path() };
    let (alone, together) = (run.all("1", 1), run.all("3", 3));
    let same = |a: &Answer, b: &Answer| {
        assert_eq!((&a.id, &a.setting, a.density, a.prompt_tokens), (&b.id, &b.setting, b.density, b.prompt_tokens));
        a.answer == b.answer
    };
    // Products of one row and of several round differently, and a near tie may fall the other way.
    let differ = alone.iter().zip(&together).filter(|(a, b)| !same(a, b)).count();
    assert!(differ <= 2, "{differ} of {}", alone.len());
}

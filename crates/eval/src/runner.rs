//! Runs samples: every sample with every setting, one prefill and a greedy answer each.

use std::collections::HashSet;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use speedread_engine::generate::{FinishReason, generate};
use speedread_engine::model::Model;
use speedread_engine::sampler::{Sampler, SamplerOptions};
use speedread_engine::session::{Session, SessionOptions};

use crate::fixed::{Indexes, Sources};
use crate::prompt::{self, Encoded};
use crate::results::{Answer, ResultsFile};
use crate::sample::Sample;
use crate::setting::Setting;
use crate::{Error, Result};

/// How far a run is.
#[derive(Debug, Clone, Copy)]
pub struct RunProgress<'a> {
    /// Prompt tokens read in this run.
    pub tokens: u64,
    /// Prompt tokens that this run has to read.
    pub total_tokens: u64,
    /// Answers given in this run.
    pub answers: usize,
    /// Answers that this run has to give.
    pub total_answers: usize,
    /// The task that is being worked on.
    pub task: &'a str,
    /// The setting that is being worked on.
    pub setting: &'a str,
}

/// Answers all samples with all settings that the file has not got yet, sample by sample, so that a run that is stopped has the same samples
/// for every setting. Returns the new answers.
///
/// # Errors
/// When a prompt does not fit the model or a static setting has no other prompt to take indexes from (before anything is run), the file cannot be written, or the caller asks to stop; what is in the
/// file then stays.
pub fn run(
    model: &Model,
    samples: &[Sample],
    settings: &[Setting],
    file: &mut ResultsFile,
    observer: &mut dyn FnMut(RunProgress<'_>),
    cancel: &AtomicBool,
) -> Result<Vec<Answer>> {
    let open = |file: &ResultsFile, sample: &Sample| -> Vec<usize> {
        (0..settings.len()).filter(|&i| !file.has(&sample.id, &settings[i].name)).collect()
    };
    let sources = Sources::new(samples);
    let (mut work, mut ids) = (vec![], HashSet::new());
    for sample in samples {
        if !ids.insert(&sample.id) {
            return Err(Error::Request(format!("two samples have the id {}", sample.id)));
        }
        let open = open(file, sample);
        if open.iter().any(|&i| settings[i].fixed) {
            sources.of(sample)?;
        }
        if !open.is_empty() {
            work.push((sample, open, prompt::encode(model, sample)?));
        }
    }
    let cost = |settings: &[usize], prompt: &Encoded| (settings.len() * prompt.ids.len()) as u64;
    let total_tokens = work.iter().map(|(_, settings, prompt)| cost(settings, prompt)).sum();
    let total_answers = work.iter().map(|(_, settings, _)| settings.len()).sum();
    let (mut tokens, mut answers) = (0, vec![]);
    let mut indexes = Indexes::new(model);
    for (sample, open, prompt) in work {
        for setting in open.into_iter().map(|i| &settings[i]) {
            let given = answers.len();
            let mut observe = |done: f64| {
                observer(RunProgress {
                    tokens: tokens + (done * prompt.ids.len() as f64) as u64,
                    total_tokens,
                    answers: given,
                    total_answers,
                    task: &sample.task,
                    setting: &setting.name,
                });
            };
            let room = prompt.ids.len() + sample.max_new_tokens;
            let options = match setting.fixed {
                false => setting.session(room),
                true => {
                    let source = sources.of(sample)?;
                    let ids = || Ok(prompt::encode(model, source)?.ids);
                    indexes.session(setting, room, &source.id, ids, cancel)?
                }
            };
            let answer = answer(model, sample, &setting.name, options, &prompt, &mut observe, cancel)?;
            file.add(&answer)?;
            answers.push(answer);
            tokens += prompt.ids.len() as u64;
        }
    }
    Ok(answers)
}

/// Answers one sample in a session of its own.
fn answer(
    model: &Model,
    sample: &Sample,
    setting: &str,
    options: SessionOptions,
    prompt: &Encoded,
    observe: &mut dyn FnMut(f64),
    cancel: &AtomicBool,
) -> Result<Answer> {
    let mut session = Session::new(model, options)?;
    let began = Instant::now();
    let report = session.prefill(&prompt.ids, &mut |progress| observe(progress.done_fraction), cancel)?;
    let ttft_s = began.elapsed().as_secs_f64();
    let mut sampler = Sampler::new(SamplerOptions::default())?;
    let tokenizer = &model.tokenizer;
    let generation = generate(&mut session, tokenizer, &mut sampler, &[], sample.max_new_tokens, cancel, &mut |_| {})?;
    if generation.finish_reason == FinishReason::Cancelled {
        return Err(speedread_engine::Error::Cancelled.into());
    }
    Ok(Answer {
        id: sample.id.clone(),
        task: sample.task.clone(),
        length: sample.length,
        depth: sample.depth,
        setting: setting.to_owned(),
        score: sample.score(&generation.text),
        answer: generation.text,
        prompt_tokens: report.tokens,
        truncated_tokens: prompt.cut,
        answer_tokens: generation.ids.len(),
        finished: generation.finish_reason == FinishReason::Stop,
        density: report.density(),
        ttft_s,
        prefill_s: report.seconds,
        attention_s: report.attention_seconds + report.index_seconds,
        decode_s: generation.seconds,
    })
}

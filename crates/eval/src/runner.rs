//! Runs samples: every sample with every setting, a prefill and a greedy answer each, a batch of answers at a time.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use speedread_engine::generate::{Continuation, FinishReason};
use speedread_engine::model::Model;
use speedread_engine::session::{Batch, PrefillReport, Sequence, Session, SessionOptions};

use crate::batch::{self, Work};
use crate::fixed::{Indexes, Sources};
use crate::prompt;
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
    /// Answers given in this run, and prompts read for answers that are still to be given.
    pub answers: usize,
    /// Answers that this run has to give.
    pub total_answers: usize,
    /// The task that is being worked on.
    pub task: &'a str,
    /// The setting that is being worked on.
    pub setting: &'a str,
}

/// Answers all samples with all settings that the file has not got yet, batch by batch of samples, so that a run that is stopped has the same
/// samples for every setting. Returns the new answers.
///
/// The prompts of a batch are read one after another, each in a session of its own; then their answers are decoded together, a token of
/// each a step, and are written as they end. `batch` is the samples of one; `None` is one on the CPU, and on CUDA devices 8, or as many as
/// fit the memory. An answer does not depend on the others of its batch but for the rounding of products of more rows.
///
/// # Errors
/// When a prompt does not fit the model, a batch does not fit the memory, or a static setting has no other prompt to take indexes from (before
/// anything is run), the file cannot be written, or the caller asks to stop; what is in the file then stays.
pub fn run(
    model: &Model,
    samples: &[Sample],
    settings: &[Setting],
    batch: Option<usize>,
    file: &mut ResultsFile,
    observer: &mut dyn FnMut(RunProgress<'_>),
    cancel: &AtomicBool,
) -> Result<Vec<Answer>> {
    let sources = Sources::new(samples);
    let work = work(model, samples, settings, &sources, file)?;
    let size = batch::size(model, &work, settings, batch)?;
    let total_tokens = work.iter().map(|work| (work.open.len() * work.prompt.ids.len()) as u64).sum();
    let total_answers = work.iter().map(|work| work.open.len()).sum();
    let (mut tokens, mut answers) = (0, vec![]);
    let mut indexes = Indexes::new(model);
    for samples in work.chunks(size) {
        for (number, setting) in settings.iter().enumerate() {
            let samples: Vec<&Work<'_>> = samples.iter().filter(|work| work.open.contains(&number)).collect();
            // All indexes of other prompts first: there are no caches yet beside which those prompts would have to fit.
            let mut options = vec![];
            for work in &samples {
                let room = work.room();
                options.push(match setting.fixed {
                    false => setting.session(room),
                    true => {
                        let source = sources.of(work.sample)?;
                        let ids = || Ok(prompt::encode(model, source)?.ids);
                        indexes.session(setting, room, &source.id, ids, cancel)?
                    }
                });
            }
            let mut open = vec![];
            for (work, options) in samples.into_iter().zip(options) {
                let length = work.prompt.ids.len();
                let mut observe = |done: f64| {
                    observer(RunProgress {
                        tokens: tokens + (done * length as f64) as u64,
                        total_tokens,
                        answers: answers.len() + open.len(),
                        total_answers,
                        task: &work.sample.task,
                        setting: &setting.name,
                    });
                };
                let read = OpenAnswer::read(model, work, options, &mut observe, cancel)?;
                open.push(read);
                tokens += length as u64;
            }
            if !open.is_empty() {
                let mut steps = Batch::new(model, open.len(), setting.options.precision)?;
                answer_all(&mut steps, open, setting, file, &mut answers, cancel)?;
            }
        }
    }
    Ok(answers)
}

/// The samples that some settings have not answered yet, and their prompts.
fn work<'a>(
    model: &Model,
    samples: &'a [Sample],
    settings: &[Setting],
    sources: &Sources<'_>,
    file: &ResultsFile,
) -> Result<Vec<Work<'a>>> {
    let (mut work, mut ids) = (vec![], HashSet::new());
    for sample in samples {
        if !ids.insert(&sample.id) {
            return Err(Error::Request(format!("two samples have the id {}", sample.id)));
        }
        let open: Vec<usize> = (0..settings.len()).filter(|&i| !file.has(&sample.id, &settings[i].name)).collect();
        if open.iter().any(|&i| settings[i].fixed) {
            sources.of(sample)?;
        }
        if !open.is_empty() {
            work.push(Work { sample, open, prompt: prompt::encode(model, sample)? });
        }
    }
    Ok(work)
}

/// An answer whose prompt was read.
struct OpenAnswer<'a> {
    work: &'a Work<'a>,
    sequence: Sequence<'a>,
    /// The token to come.
    next: u32,
    text: Continuation<'a>,
    report: PrefillReport,
    ttft_s: f64,
}

impl<'a> OpenAnswer<'a> {
    /// Reads a prompt in a session of its own, of which only the cache is kept.
    fn read(
        model: &'a Model,
        work: &'a Work<'a>,
        options: SessionOptions,
        observe: &mut dyn FnMut(f64),
        cancel: &AtomicBool,
    ) -> Result<Self> {
        let mut session = Session::new(model, options)?;
        let began = Instant::now();
        let report = session.prefill(&work.prompt.ids, &mut |progress| observe(progress.done_fraction), cancel)?;
        let ttft_s = began.elapsed().as_secs_f64();
        let next = session.likeliest()?;
        let text = Continuation::new(model.eos_ids(), &model.tokenizer, &[], work.sample.max_new_tokens);
        Ok(Self { work, sequence: session.into_sequence(), next, text, report, ttft_s })
    }

    /// Takes the token to come; whether the answer goes on after it.
    fn goes_on(&mut self) -> bool {
        if self.text.ended().is_none() {
            self.text.push(self.next);
        }
        self.text.ended().is_none() && !self.sequence.is_full()
    }

    /// The answer, which ended so many seconds after the first step of its batch.
    fn finish(self, setting: &str, seconds: f64) -> Answer {
        let Work { sample, prompt, .. } = self.work;
        // Not ended by itself: its session is full.
        let (generation, _) = self.text.finish(FinishReason::Length);
        Answer {
            id: sample.id.clone(),
            task: sample.task.clone(),
            length: sample.length,
            depth: sample.depth,
            setting: setting.to_owned(),
            score: sample.score(&generation.text),
            answer: generation.text,
            prompt_tokens: self.report.tokens,
            truncated_tokens: prompt.cut,
            answer_tokens: generation.ids.len(),
            finished: generation.finish_reason == FinishReason::Stop,
            density: self.report.density(),
            ttft_s: self.ttft_s,
            prefill_s: self.report.seconds,
            attention_s: self.report.attention_seconds + self.report.index_seconds,
            decode_s: seconds,
        }
    }
}

/// Decodes the answers of a batch together until all have ended; each leaves the batch, and goes to the file, when it ends.
fn answer_all(
    steps: &mut Batch<'_>,
    mut open: Vec<OpenAnswer<'_>>,
    setting: &Setting,
    file: &mut ResultsFile,
    answers: &mut Vec<Answer>,
    cancel: &AtomicBool,
) -> Result<()> {
    let began = Instant::now();
    loop {
        let mut going = vec![];
        for mut answer in open {
            if answer.goes_on() {
                going.push(answer);
                continue;
            }
            let answer = answer.finish(&setting.name, began.elapsed().as_secs_f64());
            file.add(&answer)?;
            answers.push(answer);
        }
        if going.is_empty() {
            return Ok(());
        }
        open = going;
        if cancel.load(Ordering::Relaxed) {
            return Err(speedread_engine::Error::Cancelled.into());
        }
        let ids: Vec<u32> = open.iter().map(|answer| answer.next).collect();
        let mut sequences: Vec<&mut Sequence<'_>> = open.iter_mut().map(|answer| &mut answer.sequence).collect();
        let next = steps.decode_greedy(&mut sequences, &ids)?;
        open.iter_mut().zip(next).for_each(|(answer, next)| answer.next = next);
    }
}

//! `speedread eval`: what sparse attention costs in accuracy.

mod compare;
mod needles;
mod perplexity;
mod table;
mod tasks;

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use indicatif::ProgressBar;
use serde_json::{Value, json};
use speedread_engine::model::Model;
use speedread_eval::format::Format;
use speedread_eval::header::Header;
use speedread_eval::results::{Answer, Record, ResultsFile};
use speedread_eval::runner::{self, RunProgress};
use speedread_eval::sample::Sample;
use speedread_eval::setting::Setting;

use crate::args::eval::{BatchArgs, EvalArgs, EvalCommand, SettingArgs, SettingAttention, parse_setting};
use crate::context::{Interrupt, bar, open_model};
use crate::input::{self, Document};

pub fn run(args: EvalArgs, interrupt: &Interrupt) -> anyhow::Result<()> {
    match args.what {
        EvalCommand::Ruler(args) => tasks::run(args, None, Format::Ruler, interrupt),
        EvalCommand::Longbench(args) => tasks::run(args.task, args.prompts, Format::LongBench, interrupt),
        EvalCommand::Infinitebench(args) => tasks::run(args.task, args.prompts, Format::InfiniteBench, interrupt),
        EvalCommand::Needles(args) => needles::run(args, interrupt),
        EvalCommand::Perplexity(args) => perplexity::run(args, interrupt),
        EvalCommand::Compare(args) => compare::run(args, interrupt),
    }
}

/// Opens the model, and the settings that the arguments name.
fn open(args: &SettingArgs, interrupt: &Interrupt) -> anyhow::Result<(Model, Vec<Setting>)> {
    let model = open_model(&args.model, args.reading.needs(), interrupt)?;
    let settings = settings(args, &model)?;
    Ok((model, settings))
}

fn settings(args: &SettingArgs, model: &Model) -> anyhow::Result<Vec<Setting>> {
    let chosen = match args.attention.is_empty() {
        true => {
            ["dense", "auto"].into_iter().map(parse_setting).collect::<Result<_, _>>().map_err(anyhow::Error::msg)?
        }
        false => args.attention.clone(),
    };
    let base = args.reading.session(0);
    let setting = |chosen: crate::args::eval::Setting| {
        let setting = match chosen.attention {
            SettingAttention::Of(attention) => Setting::new(chosen.name, attention.choice(), &base),
            SettingAttention::File(path) => Setting::from_file(chosen.name, &path, &base, model)?,
        };
        Ok(if chosen.fixed { setting.fixed()? } else { setting })
    };
    chosen.into_iter().map(setting).collect()
}

/// A run: what is read, how, and where the results go.
struct Job<'a> {
    model: &'a Model,
    settings: &'a [Setting],
    data: &'a [PathBuf],
    /// The file of prompts.
    prompts: Option<&'a Path>,
    /// What else the samples depend on.
    parameters: Value,
    output: &'a Path,
    interrupt: &'a Interrupt,
}

impl Job<'_> {
    /// Opens the file of results.
    fn open<R: Record>(&self) -> anyhow::Result<(ResultsFile, Vec<R>)> {
        let header = Header::new(R::KIND, self.model, self.settings, self.data, self.prompts, self.parameters.clone())?;
        let (file, before) = ResultsFile::open(self.output, &header)?;
        if !before.is_empty() {
            eprintln!(
                "note: {} holds {} results already; the run goes on after them",
                self.output.display(),
                before.len()
            );
        }
        Ok((file, before))
    }

    /// Answers samples with all settings; returns their answers, those of earlier runs included.
    fn answer(&self, samples: &[Sample], batch: &BatchArgs) -> anyhow::Result<Vec<Answer>> {
        let (mut file, mut answers) = self.open::<Answer>()?;
        let new = self.watch(|observer| {
            let cancel = self.interrupt.flag();
            runner::run(self.model, samples, self.settings, batch.size(), &mut file, observer, cancel)
        })?;
        answers.extend(new);
        // An earlier run may have had more samples.
        let asked: std::collections::HashSet<&str> = samples.iter().map(|sample| sample.id.as_str()).collect();
        answers.retain(|answer| asked.contains(answer.id.as_str()));
        Ok(answers)
    }

    /// Runs something with a progress bar.
    fn watch<T>(
        &self,
        work: impl FnOnce(&mut dyn FnMut(RunProgress<'_>)) -> speedread_eval::Result<T>,
    ) -> anyhow::Result<T> {
        let bar = bar(0, "{msg} {bar:24} {pos}/{len} tokens  {per_sec}  {eta} left");
        let outcome = work(&mut |progress| show(&bar, &progress));
        bar.finish_and_clear();
        if outcome.as_ref().is_err_and(speedread_eval::Error::is_cancelled) {
            eprintln!("note: what is done is in {}; the same command goes on after it", self.output.display());
        }
        Ok(outcome?)
    }

    /// What identifies the run in JSON.
    fn json(&self) -> Value {
        let settings: Vec<_> = self.settings.iter().map(|setting| &setting.name).collect();
        json!({
            "version": env!("CARGO_PKG_VERSION"), "model": self.model.path(), "data": self.data, "prompts": self.prompts,
            "parameters": self.parameters, "settings": settings, "results": self.output, "threads": rayon::current_num_threads(),
            "kernel": self.settings.first().map(|setting| super::kernel(self.model, setting.options.precision)),
        })
    }
}

fn show(bar: &ProgressBar, progress: &RunProgress<'_>) {
    bar.set_length(progress.total_tokens);
    bar.set_position(progress.tokens);
    let RunProgress { answers, total_answers, task, setting, .. } = progress;
    bar.set_message(format!("{}/{total_answers} {task} {setting}", answers + 1));
}

/// Writes rows as comma-separated values.
fn csv(path: &Path, header: &[&str], rows: impl Iterator<Item = Vec<String>>) -> anyhow::Result<()> {
    let name = || path.display().to_string();
    let mut writer = csv::Writer::from_path(path).with_context(name)?;
    writer.write_record(header).with_context(name)?;
    for row in rows {
        writer.write_record(row).with_context(name)?;
    }
    writer.flush().with_context(name)
}

/// Whole numbers as numbers, for JSON and engine.
fn numbers(list: &[std::num::NonZeroUsize]) -> Vec<usize> {
    list.iter().map(|n| n.get()).collect()
}

/// The texts that arguments name, each with its file.
fn texts(names: &[String]) -> anyhow::Result<(Vec<Document>, Vec<PathBuf>)> {
    if names.iter().any(|name| name == "-") {
        bail!("standard input cannot be read again when a run is continued: give a file");
    }
    let documents = input::gather(names)?;
    let paths = documents.iter().map(|document| PathBuf::from(&document.name)).collect();
    Ok((documents, paths))
}

//! `speedread eval ruler`, `longbench` and `infinitebench`: samples of a benchmark, scored as the benchmark does it.

use std::path::{Path, PathBuf};

use anyhow::bail;
use serde_json::json;
use speedread_engine::model::Model;
use speedread_eval::compare::{Comparison, compare};
use speedread_eval::format::Format;
use speedread_eval::sample::{Sample, select};
use speedread_eval::setting::Setting;
use speedread_eval::templates::Templates;

use super::{Job, numbers, table};
use crate::args::eval::{BatchArgs, SampleArgs, TableArgs, TaskArgs};
use crate::context::Interrupt;
use crate::output;

pub fn run(args: TaskArgs, prompts: Option<PathBuf>, format: Format, interrupt: &Interrupt) -> anyhow::Result<()> {
    let from = Source { data: &args.data, prompts: prompts.as_deref() };
    let samples = samples(format, from, &args.samples)?;
    let (model, settings) = super::open(&args.settings, interrupt)?;
    let job = job(&model, &settings, from, &args.samples, &args.output, interrupt);
    report(&job, &samples, &args.batch, &args.table)
}

/// The files that samples come from.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    pub data: &'a [PathBuf],
    pub prompts: Option<&'a Path>,
}

/// The samples that the arguments choose.
pub fn samples(format: Format, from: Source<'_>, args: &SampleArgs) -> anyhow::Result<Vec<Sample>> {
    let templates = from.prompts.map(Templates::read).transpose()?;
    let all = format.read(from.data, templates.as_ref())?;
    let mut samples = select(all, args.samples.map(|n| n.get()), &numbers(&args.lengths));
    if samples.is_empty() {
        bail!("no samples of these lengths in the data");
    }
    if let Some(most) = args.max_new_tokens {
        samples.iter_mut().for_each(|sample| sample.max_new_tokens = sample.max_new_tokens.min(most.get()));
    }
    Ok(samples)
}

/// A run over the files of a benchmark.
pub fn job<'a>(
    model: &'a Model,
    settings: &'a [Setting],
    from: Source<'a>,
    args: &SampleArgs,
    output: &'a Path,
    interrupt: &'a Interrupt,
) -> Job<'a> {
    // How many samples of which lengths is no parameter: a run with more adds to the results of one with fewer.
    let parameters = json!({ "max_new_tokens": args.max_new_tokens.map(|n| n.get()) });
    Job { model, settings, data: from.data, prompts: from.prompts, parameters, output, interrupt }
}

/// Runs, and shows the table.
pub fn report(job: &Job<'_>, samples: &[Sample], batch: &BatchArgs, args: &TableArgs) -> anyhow::Result<()> {
    let answers = job.answer(samples, batch)?;
    let names: Vec<String> = job.settings.iter().map(|setting| setting.name.clone()).collect();
    show(&compare(&names, &answers), job.json(), args)
}

/// Shows a comparison as the arguments say.
pub fn show(comparison: &Comparison, of: serde_json::Value, args: &TableArgs) -> anyhow::Result<()> {
    if let Some(path) = &args.csv {
        table::write_csv(comparison, path)?;
    }
    if args.json {
        return output::json(&json!({ "run": of, "comparison": comparison }));
    }
    table::print(comparison);
    Ok(())
}

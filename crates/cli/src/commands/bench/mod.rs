//! `speedread bench`: a whole model's prompts or generated tokens, a search of its patterns, attention or linear layers alone.

mod attention;
mod calibrate;
mod decode;
mod linear;
mod numbers;
mod prefill;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};
use speedread_engine::device::Needs;
use speedread_engine::model::Model;
use speedread_engine::session::AttentionChoice;
use speedread_engine::synthetic;

use crate::args::bench::{BenchArgs, BenchCommand, PromptArgs};
use crate::context::{Interrupt, open_model, synthetic_model};
use crate::{input, provenance};

pub fn run(args: BenchArgs, interrupt: &Interrupt) -> anyhow::Result<()> {
    match args.what {
        BenchCommand::Prefill(args) => prefill::run(*args, interrupt),
        BenchCommand::Decode(args) => decode::run(&args, interrupt),
        BenchCommand::Calibrate(args) => calibrate::run(&args, interrupt),
        BenchCommand::Attention(args) => attention::run(&args, interrupt),
        BenchCommand::Linear(args) => linear::run(&args, interrupt),
    }
}

/// Runs of a kernel before those that count take as long as this: clocks rise, and fall again where power is limited. One run is enough if
/// it takes longer.
const WARM_UP: Duration = Duration::from_millis(300);

fn ensure_going(cancel: &AtomicBool) -> anyhow::Result<()> {
    ensure!(!cancel.load(Ordering::Relaxed), speedread_engine::Error::Cancelled);
    Ok(())
}

/// A model and the prompts that it is timed with: the first tokens of the longest.
struct Prompts {
    model: Model,
    ids: Vec<u32>,
    lengths: Vec<usize>,
}

impl Prompts {
    /// Opens the model; sessions will hold `more` tokens than the prompts.
    fn new(args: &PromptArgs, more: usize, interrupt: &Interrupt) -> anyhow::Result<Self> {
        let lengths: Vec<usize> = args.lengths.iter().map(|n| n.get()).collect();
        let longest = lengths.iter().copied().max().context("no lengths")?;
        let context = longest + more;
        let needs = Needs { tokens: Some(context), ..args.prefill.reading.needs() };
        let model = match &args.synthetic {
            Some(shape) => synthetic_model(shape, &args.model, needs, interrupt)?,
            None => open_model(&args.model, needs, interrupt)?,
        };
        if context > model.config.context {
            bail!(
                "{context} tokens exceed the model's context of {}; stretch it with --rope-scaling yarn:{}",
                model.config.context,
                context.div_ceil(model.config.context)
            );
        }
        let ids = tokens(&model, &args.files, longest)?;
        Ok(Self { model, ids, lengths })
    }

    /// What is read and with which weights, for people and machines.
    fn weights(&self, args: &PromptArgs) -> String {
        match &args.synthetic {
            Some(shape) => format!("random, in the published shape of {shape}; {}", synthetic::STRUCTURE),
            None => "the model's".into(),
        }
    }

    /// The lines in front of a table.
    fn print_about(&self, args: &PromptArgs) {
        println!("{} | {}", self.model.path().display(), self.device(args));
        let prompts = if args.files.is_empty() { "made-up tokens" } else { "from the files" };
        println!("weights: {} | prompts: {prompts}", self.weights(args));
    }

    /// What the model runs on.
    fn device(&self, args: &PromptArgs) -> String {
        let on_cpu =
            || format!("{} threads, {}", rayon::current_num_threads(), args.prefill.reading.precision.kernel());
        self.model.device_name().map_or_else(on_cpu, str::to_owned)
    }

    /// What there is to say of a run, for machines, beside its rows.
    fn about(&self, args: &PromptArgs) -> anyhow::Result<Value> {
        let asked = args.prefill.session(&self.model, self.ids.len())?;
        let options = self.model.resolve(asked, self.model.device());
        let mut all = Value::Object(provenance::of_run(args.model.device, self.model.device_name()));
        let run = json!({
            "model": self.model.path(),
            "weights": self.weights(args),
            "tokens_from": if args.files.is_empty() { json!("made up") } else { json!(args.files) },
            "attention": match &options.attention {
                AttentionChoice::Auto | AttentionChoice::Uniform => "uniform".to_owned(),
                AttentionChoice::Known(_) => "known patterns".to_owned(),
                AttentionChoice::Pattern(pattern) => pattern.to_string(),
                AttentionChoice::Dense => "dense".to_owned(),
                AttentionChoice::PerHead(_) => format!("{:?}", args.prefill.patterns),
                AttentionChoice::Fixed(_) => "static".to_owned(),
            },
            "kv": options.cache_type(self.model.device()).to_string(),
            "kernel": super::kernel(&self.model, args.prefill.reading.precision),
        });
        let (name, peak) = provenance::peak_memory(self.model.device_name());
        all[name] = peak;
        if let (Value::Object(all), Value::Object(run)) = (&mut all, run) {
            all.extend(run);
        }
        Ok(all)
    }
}

/// The first `count` tokens of the files, or made-up ones that differ from each other.
fn tokens(model: &Model, files: &[String], count: usize) -> anyhow::Result<Vec<u32>> {
    if files.is_empty() {
        let usable = model.config.vocab.min(20_000) as u64;
        return Ok((0..count as u64).map(|i| (i * 7919 % usable) as u32).collect());
    }
    let mut ids = model.tokenizer.encode(&input::join(&input::gather(files)?), false)?;
    if ids.len() < count {
        bail!("the files have {} tokens, {count} are needed", ids.len());
    }
    ids.truncate(count);
    Ok(ids)
}

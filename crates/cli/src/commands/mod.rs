//! The commands, one a file.

pub mod ask;
pub mod attention_map;
pub mod bench;
pub mod calibrate;
pub mod chat;
pub mod eval;
pub mod inspect;
pub mod models;
pub mod run;

use std::io::Write;

use serde_json::json;
use speedread_engine::generate::{FinishReason, Generation, generate};
use speedread_engine::model::Model;
use speedread_engine::sampler::Sampler;
use speedread_engine::session::{AttentionChoice, Precision, Session};

use crate::args::{Attention, PrefillArgs, SamplingArgs};
use crate::context::{Interrupt, prefill};
use crate::output::{self, Summary};
use crate::prompt::Prompt;

/// What multiplies, for reports: the CPU's products, or the device's attention kernel.
fn kernel(model: &Model, precision: Precision) -> String {
    model.cuda().map_or_else(|| precision.kernel().to_string(), |device| device.attention().kernel().to_string())
}

/// What a model runs on, in words.
fn device(model: &Model) -> String {
    let processor = || output::cpu().unwrap_or_else(|| std::env::consts::ARCH.into());
    model.device_name().map_or_else(processor, str::to_owned)
}

/// Reads a prompt in a session of its own and prints the continuation: what `ask` and `run` share.
fn answer(
    model: &Model,
    prompt: Prompt,
    prefill_args: &PrefillArgs,
    sampling: &SamplingArgs,
    as_json: bool,
    interrupt: &Interrupt,
) -> anyhow::Result<()> {
    if prompt.truncated_tokens > 0 {
        eprintln!("note: the last {} tokens of the text were cut to fit the context", prompt.truncated_tokens);
    }
    let room = model.config.context - prompt.ids.len();
    let max_tokens = sampling.max_tokens.get().min(room);
    let options = prefill_args.session(model, prompt.ids.len() + max_tokens)?;
    let sampler_options = sampling.options();
    let mut sampler = Sampler::new(sampler_options)?;
    let mut session = Session::new(model, options)?;
    let report = prefill(&mut session, &prompt.ids, interrupt)?;
    let generation = stream(&mut session, &mut sampler, sampling, max_tokens, as_json, interrupt)?;
    let summary = Summary::new(&report, &generation, prompt.truncated_tokens, sampler_options.seed);
    if as_json {
        output::json(&json!({ "model": model.path(), "answer": generation.text, "summary": summary }))?;
    } else {
        println!();
        if let Some(table) = summary.audit_table() {
            eprintln!("\n{table}");
        }
        eprintln!("\n{}", summary.line());
    }
    if prefill_args.attention == Attention::Auto
        && matches!(session.options().attention, AttentionChoice::Uniform)
        && report.density() < 1.0
    {
        eprintln!(
            "note: speedread knows no patterns of this model and read all its heads alike; `speedread calibrate` finds them, and \
             --patterns FILE reads with them: nearer to dense attention in the same time"
        );
    }
    match generation.finish_reason {
        FinishReason::Cancelled => Err(speedread_engine::Error::Cancelled.into()),
        _ => Ok(()),
    }
}

/// Generates, writing the text to standard output as it comes unless `quiet`.
fn stream(
    session: &mut Session<'_>,
    sampler: &mut Sampler,
    sampling: &SamplingArgs,
    max_tokens: usize,
    quiet: bool,
    interrupt: &Interrupt,
) -> anyhow::Result<Generation> {
    let mut written = Ok(());
    let mut show = |piece: &str| {
        if !quiet && written.is_ok() {
            let mut out = std::io::stdout().lock();
            written = out.write_all(piece.as_bytes()).and_then(|()| out.flush());
        }
    };
    let tokenizer = &session.model().tokenizer;
    let generation = generate(session, tokenizer, sampler, &sampling.stop, max_tokens, interrupt.flag(), &mut show)?;
    written?;
    Ok(generation)
}

//! `speedread calibrate`: finds the sparse pattern of every head.

mod histogram;
mod report;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, bail};
use serde_json::json;
use speedread_calibrate::{Length, LengthResult, Lines, Request, Text, calibrate, remove_journal, targets};
use speedread_engine::device::Needs;
use speedread_engine::hub::Cache;
use speedread_engine::model::Model;
use speedread_engine::session::SessionOptions;

use crate::args::calibrate::{CalibrateArgs, Format};
use crate::context::{Interrupt, bar, open_model};
use crate::{input, output};

/// Prompt length where none is asked for.
const DEFAULT_LENGTH: usize = 8192;

pub fn run(args: CalibrateArgs, interrupt: &Interrupt) -> anyhow::Result<()> {
    let began = Instant::now();
    let documents = input::gather(&args.files)?;
    let held_out = if args.held_out.is_empty() { vec![] } else { input::gather(&args.held_out)? };
    let tokens = args.lengths.iter().map(|n| n.get()).max().or(Some(DEFAULT_LENGTH));
    let needs = Needs { kv: args.kv, precision: args.precision, tokens };
    let model = open_model(&args.model, needs, interrupt)?;
    let lengths = lengths(&args, model.config.context)?;
    let longest = lengths[lengths.len() - 1].tokens;
    let texts = encode(&model, documents)?;
    let held_out = match held_out.is_empty() {
        true => following(&texts, longest),
        false => encode(&model, held_out)?,
    };
    // Texts that are too short to be searched are refused below.
    if held_out.is_empty() && texts.iter().all(|text| text.ids.len() >= longest) {
        eprintln!(
            "note: the texts have no second part of {longest} tokens, and there is no --held-out: nothing to compare on"
        );
    }
    let device = super::device(&model);
    let journal = journal_path(&args.output);
    let request = Request {
        model: &model,
        texts,
        held_out,
        lengths,
        options: SessionOptions { kv: args.kv, precision: args.precision, ..SessionOptions::new(longest) },
        search: args.search,
        objective: args.objective,
        layer_weights: args.layer_weights,
        lines: match args.format {
            Format::Speedread => Lines::Tiles,
            Format::Minference => Lines::Lines,
        },
        only: args.only,
        ablate: args.ablate,
        query_tiles: args.query_tiles.get(),
        device: &device,
        times: &Cache::standard()?.folder().join("kernel-times.json"),
        journal: &journal,
    };
    let progress = bar(0, "{msg} {bar:24} layer {pos}/{len}  {eta} left");
    let found = calibrate(
        &request,
        &mut |p| {
            progress.set_length(p.of as u64);
            progress.set_position(p.done as u64);
            progress.set_message(format!("{}, {} tokens of {}", p.stage, p.tokens, p.text));
        },
        interrupt.flag(),
    );
    progress.finish_and_clear();
    if matches!(found, Err(speedread_engine::Error::Cancelled)) && journal.exists() {
        eprintln!("note: what is measured is in {}; the same command goes on after it", journal.display());
    }
    let found = found?;
    found.write(&args.output)?;
    if let Some(path) = &args.map {
        report::map(&found).save(path)?;
    }
    if let Some(path) = &args.report {
        let text = report::markdown(&found, &args.model.model);
        std::fs::write(path, text).with_context(|| path.display().to_string())?;
    }
    // Last: where a picture could not be written, the same command writes it without measuring again.
    remove_journal(&journal)?;
    if args.json {
        return output::json(&json!({
            "version": env!("CARGO_PKG_VERSION"), "model": model.path(), "fingerprint": model.fingerprint(),
            "texts": request.texts.iter().map(|text| &text.name).collect::<Vec<_>>(),
            "target": targets(&request.lengths), "search": args.search, "objective": args.objective, "only": args.only,
            "query_tiles": args.query_tiles, "threads": rayon::current_num_threads(), "device": device,
            "kernel": super::kernel(&model, args.precision), "seconds": began.elapsed().as_secs_f64(),
            "layer_weights": args.layer_weights, "weights": found.weights, "lengths": found.lengths, "patterns": args.output,
        }));
    }
    for length in &found.lengths {
        print(length);
    }
    println!("{} in {}", args.output.display(), output::seconds(began.elapsed().as_secs_f64()));
    Ok(())
}

/// The lengths to search, ascending, each with its target.
fn lengths(args: &CalibrateArgs, context: usize) -> anyhow::Result<Vec<Length>> {
    let tokens = match args.lengths.as_slice() {
        [] => vec![DEFAULT_LENGTH.min(context)],
        given => given.iter().map(|n| n.get()).collect(),
    };
    let target = |at: usize| if args.target.len() == 1 { args.target[0] } else { args.target[at] };
    if args.target.len() != 1 && args.target.len() != tokens.len() {
        bail!("{} targets for {} lengths: give one target for all, or one for each", args.target.len(), tokens.len());
    }
    let mut lengths: Vec<Length> =
        tokens.iter().enumerate().map(|(at, &tokens)| Length { tokens, target: target(at) }).collect();
    lengths.sort_by_key(|length| length.tokens);
    if let Some(twice) = lengths.windows(2).find(|two| two[0].tokens == two[1].tokens) {
        bail!("the length {} is given twice", twice[0].tokens);
    }
    Ok(lengths)
}

/// Where a search keeps what it has measured: beside its output.
fn journal_path(output: &std::path::Path) -> PathBuf {
    let mut name = output.as_os_str().to_owned();
    name.push(".partial");
    name.into()
}

fn encode(model: &Model, documents: Vec<input::Document>) -> anyhow::Result<Vec<Text>> {
    let text = |document: input::Document| {
        Ok(Text { ids: model.tokenizer.encode_prompt(&document.text, false)?, name: document.name })
    };
    documents.into_iter().map(text).collect()
}

/// What follows the first `tokens` tokens of texts, where there are as many again.
fn following(texts: &[Text], tokens: usize) -> Vec<Text> {
    let long = texts.iter().filter(|text| text.ids.len() >= 2 * tokens);
    long.map(|text| Text {
        name: format!("{} (from token {tokens} on)", text.name),
        ids: text.ids[tokens..2 * tokens].to_vec(),
    })
    .collect()
}

fn print(length: &LengthResult) {
    println!("prompts of {} tokens, {} candidates a head", length.tokens, length.candidates);
    for (family, heads) in length.families.iter().filter(|(_, heads)| *heads > 0) {
        println!("  {heads:>5} heads {}", family.name());
    }
    println!("  together {}", report::totals(&length.totals));
    if !length.comparisons.is_empty() {
        let width = length.comparisons.iter().map(|c| c.name.len()).max().unwrap_or(0);
        println!(
            "\n  {:<width$} {:>8} {:>8} {:>9} {:>8} {:>11}  text",
            "on other texts", "time", "density", "error", "recall", "divergence"
        );
        for c in &length.comparisons {
            println!(
                "  {:<width$} {:>6.1} % {:>6.1} % {:>9.5} {:>6.2} % {:>11}  {}",
                c.name,
                100.0 * c.time,
                100.0 * c.density,
                c.error,
                100.0 * c.recall,
                report::nats(c.divergence),
                c.text
            );
        }
    }
    println!();
}

//! `speedread bench calibrate`: how long a search of patterns takes, on random weights in the shape of a real model or on the model's.

use std::time::Instant;

use anyhow::Context;
use serde_json::{Map, Value, json};
use speedread_calibrate::{LayerWeights, Length, Lines, Objective, Request, Search, Text, calibrate};
use speedread_engine::device::Needs;
use speedread_engine::session::SessionOptions;
use speedread_engine::synthetic;

use crate::args::bench::CalibrateBenchArgs;
use crate::context::{Interrupt, bar, open_model, synthetic_model};
use crate::{commands, output, provenance};

pub fn run(args: &CalibrateBenchArgs, interrupt: &Interrupt) -> anyhow::Result<()> {
    let tokens = args.length.get();
    let needs = Needs { kv: args.kv, tokens: Some(tokens), ..Needs::default() };
    let model = match &args.synthetic {
        Some(shape) => synthetic_model(shape, &args.model, needs, interrupt)?,
        None => open_model(&args.model, needs, interrupt)?,
    };
    let weights = match &args.synthetic {
        Some(shape) => format!("random, in the published shape of {shape}; {}", synthetic::STRUCTURE),
        None => "the model's".into(),
    };
    // What a search keeps is not for a later one: the times of the kernels are measured anew, which is a part of the time.
    let kept = tempfile::tempdir().context("a folder for what the search keeps")?;
    let text =
        |number: usize| Text { name: format!("made-up {number}"), ids: made_up(tokens, number, model.config.vocab) };
    let device = commands::device(&model);
    let request = Request {
        model: &model,
        texts: (0..args.texts.get()).map(text).collect(),
        held_out: vec![text(args.texts.get())],
        lengths: vec![Length { tokens, target: args.target }],
        options: SessionOptions { kv: args.kv, ..SessionOptions::new(tokens) },
        search: Search::Global,
        objective: Objective::Mean,
        layer_weights: LayerWeights::Measured,
        lines: Lines::Tiles,
        only: None,
        ablate: args.ablate,
        query_tiles: args.query_tiles.get(),
        device: &device,
        times: &kept.path().join("kernel-times.json"),
        journal: &kept.path().join("patterns.partial"),
    };
    let progress = bar(0, "{msg} {bar:24} {pos}/{len}");
    let began = Instant::now();
    let mut stages: Vec<(&str, f64)> = vec![];
    let mut before = 0.0;
    let found = calibrate(
        &request,
        &mut |p| {
            progress.set_length(p.of as u64);
            progress.set_position(p.done as u64);
            progress.set_message(format!("{}, {}", p.stage, p.text));
            // A stage has the time up to its last report.
            let now = began.elapsed().as_secs_f64();
            match stages.iter_mut().find(|(stage, _)| *stage == p.stage) {
                Some((_, seconds)) => *seconds += now - before,
                None => stages.push((p.stage, now - before)),
            }
            before = now;
        },
        interrupt.flag(),
    );
    progress.finish_and_clear();
    let found = found?;
    let seconds = began.elapsed().as_secs_f64();
    let length = &found.lengths[0];
    if args.json {
        let mut all = Value::Object(provenance::of_run(args.model.device, model.device_name()));
        let stages: Map<String, Value> =
            stages.iter().map(|&(stage, seconds)| (stage.into(), json!(seconds))).collect();
        let run = json!({
            "model": model.path(), "weights": weights, "tokens": tokens, "texts": args.texts, "target": args.target.to_string(),
            "ablate": args.ablate, "query_tiles": args.query_tiles, "kernel": model.device().kernel(),
            "kv": request.options.cache_type(model.device()).to_string(), "threads": rayon::current_num_threads(),
            "candidates": length.candidates, "heads": model.config.layers * model.config.heads,
            "seconds": seconds, "stages": stages,
        });
        if let (Value::Object(all), Value::Object(run)) = (&mut all, run) {
            all.extend(run);
        }
        return output::json(&all);
    }
    println!("{} | {device} | weights: {weights}", model.path().display());
    println!(
        "{} layers of {} heads, {} candidates, {} texts of {tokens} made-up tokens and one to compare on: {}",
        model.config.layers,
        model.config.heads,
        length.candidates,
        args.texts,
        output::seconds(seconds)
    );
    for (stage, seconds) in &stages {
        println!("{stage:>12} {}", output::seconds(*seconds));
    }
    Ok(())
}

/// Tokens that differ from each other, and from those of other texts.
fn made_up(count: usize, text: usize, vocab: usize) -> Vec<u32> {
    let usable = vocab.min(20_000) as u64;
    (0..count as u64).map(|i| ((i * 7919 + i / usable * 131 + text as u64 * 4099) % usable) as u32).collect()
}

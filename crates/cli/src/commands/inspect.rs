//! `speedread inspect`: a model's facts, the memory a prompt needs, a pattern file.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use speedread_attention::{Pattern, PatternFile};
use speedread_engine::memory::{self, MemoryPlan};

use super::attention_map;
use crate::args::InspectArgs;
use crate::context::{Interrupt, open_model};
use crate::output;

pub fn run(args: InspectArgs, interrupt: &Interrupt) -> anyhow::Result<()> {
    let model = open_model(&args.model, args.prefill.reading.needs(), interrupt)?;
    if args.attention_map.is_some() {
        return attention_map::run(&model, &args, interrupt);
    }
    let facts = model.facts();
    let context = args.context.map_or(facts.context, |n| n.get());
    let mut options = args.prefill.session(&model, context)?;
    let patterns = args.prefill.patterns.as_deref().map(PatternFile::read).transpose()?;
    let whole = model.memory_plan(&options);
    options.chunk = options.chunk.or(Some(4096.min(context)));
    let chunked = model.memory_plan(&options);
    let chunk = options.chunk.unwrap_or(context);
    let available = model.available_memory()?;

    if args.json {
        let plan = |plan: &MemoryPlan, chunk: usize| {
            json!({
                "chunk": chunk, "weights": plan.weights, "kv_cache": plan.kv, "activations": plan.activations,
                "scratch": plan.scratch, "total": plan.total(),
            })
        };
        let whole_chunk = args.prefill.reading.chunk.map_or(context, |n| n.get());
        return output::json(&json!({
            "path": model.path(),
            "facts": facts,
            "memory": {
                "context": context, "available_bytes": available,
                "plans": [plan(&whole, whole_chunk), plan(&chunked, chunk)],
            },
            "patterns": patterns.as_ref().map(|file| file.by_length().into_iter().map(|(tokens, layers)| {
                json!({ "tokens": tokens, "heads": tally(&layers) })
            }).collect::<Vec<_>>()),
        }));
    }
    println!("{}", model.path().display());
    // The facts are a flat structure: its fields are the table.
    if let Value::Object(fields) = serde_json::to_value(&facts)? {
        for (name, value) in fields.iter().filter(|(_, value)| !value.is_null()) {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            println!("  {:<20} {text}", name.replace('_', " "));
        }
    }
    println!("\nmemory for {context} tokens");
    println!(
        "  {:<14} {:>10} {:>10} {:>12} {:>10} {:>10}",
        "", "weights", "KV cache", "activations", "scratch", "total"
    );
    let mut rows =
        vec![(args.prefill.reading.chunk.map_or("whole prompt".to_owned(), |n| format!("--chunk {n}")), whole)];
    if args.prefill.reading.chunk.is_none() && chunk < context {
        rows.push((format!("--chunk {chunk}"), chunked));
    }
    for (name, plan) in rows {
        let cells = [plan.weights, plan.kv, plan.activations, plan.scratch, plan.total()].map(memory::bytes);
        println!("  {name:<14} {:>10} {:>10} {:>12} {:>10} {:>10}", cells[0], cells[1], cells[2], cells[3], cells[4]);
    }
    if let Some(available) = available {
        println!("  available now: {}", memory::bytes(available));
    }
    for (tokens, layers) in patterns.iter().flat_map(PatternFile::by_length) {
        let prompts = tokens.map(|tokens| format!(", prompts of {tokens} tokens")).unwrap_or_default();
        println!("\npatterns of {} layers x {} heads{prompts}", layers.len(), layers[0].len());
        for (pattern, count) in tally(&layers) {
            println!("  {count:>6}  {pattern}");
        }
    }
    Ok(())
}

/// How many heads have each pattern.
fn tally(layers: &[Vec<Pattern>]) -> Map<String, Value> {
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for pattern in layers.iter().flatten() {
        *counts.entry(pattern.to_string()).or_default() += 1;
    }
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    counts.into_iter().map(|(pattern, count)| (pattern, count.into())).collect()
}

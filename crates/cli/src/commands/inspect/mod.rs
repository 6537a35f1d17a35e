//! `speedread inspect`: a model's facts, the memory a prompt needs, a pattern file.

mod memory;

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use speedread_attention::{Pattern, PatternFile};

use self::memory::{Plans, Subject};
use super::attention_map;
use crate::args::InspectArgs;
use crate::context::{Interrupt, open_model};
use crate::output;

pub fn run(args: InspectArgs, interrupt: &Interrupt) -> anyhow::Result<()> {
    if args.attention_map.is_some() {
        return attention_map::run(
            &open_model(&args.model, args.prefill.reading.needs(), interrupt)?,
            &args,
            interrupt,
        );
    }
    let subject = Subject::open(&args, interrupt)?;
    let plans = Plans::make(&subject, &args, args.memory)?;
    // The model is absent only with --synthetic, which goes with --memory alone.
    let facts = subject.model.as_ref().filter(|_| !args.memory).map(|model| model.facts());
    let patterns = args.prefill.patterns.as_deref().filter(|_| !args.memory).map(PatternFile::read).transpose()?;
    if args.json {
        let mut all = json!({ "path": subject.path, "memory": plans.json() });
        if let Some(facts) = facts {
            all["facts"] = json!(facts);
            all["patterns"] = json!(patterns.as_ref().map(|file| {
                let lengths = file.by_length().into_iter();
                lengths.map(|(tokens, layers)| json!({ "tokens": tokens, "heads": tally(&layers) })).collect::<Vec<_>>()
            }));
        }
        return output::json(&all);
    }
    println!("{}", subject.path.display());
    if let Some(facts) = facts {
        // The facts are a flat structure: its fields are the table.
        if let Value::Object(fields) = serde_json::to_value(&facts)? {
            for (name, value) in fields.iter().filter(|(_, value)| !value.is_null()) {
                let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                let name = if name == "weight_bytes" { "weight bytes in file".into() } else { name.replace('_', " ") };
                println!("  {name:<20} {text}");
            }
        }
        println!();
    }
    plans.print();
    let tiles = patterns.as_ref().and_then(PatternFile::tile_keys);
    let tiles = tiles.map(|keys| format!(", tiles of {keys} keys")).unwrap_or_default();
    for (tokens, layers) in patterns.iter().flat_map(PatternFile::by_length) {
        let prompts = tokens.map(|tokens| format!(", prompts of {tokens} tokens")).unwrap_or_default();
        println!("\npatterns of {} layers x {} heads{prompts}{tiles}", layers.len(), layers[0].len());
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

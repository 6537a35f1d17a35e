//! `speedread bench decode`: generated tokens after prompts of several lengths, against the time that their bytes take to read.

use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::Context;
use serde::Serialize;
use serde_json::json;
use speedread_engine::Error;
use speedread_engine::session::Session;

use super::Prompts;
use crate::args::bench::DecodeBenchArgs;
use crate::context::{Interrupt, prefill};
use crate::output;

/// Steps in front of those that are timed: the first take memory and load code.
const WARM_UP: usize = 3;

#[derive(Debug, Serialize)]
struct Row {
    /// Of the prompt.
    tokens: usize,
    /// Median of the steps, the next token at the host included.
    seconds_per_token: f64,
    tokens_per_s: f64,
    /// Weights, keys and values that a step reads.
    bytes_per_token: u64,
    bytes_per_s: f64,
    /// Of the time that a step would take if it only read them.
    bandwidth_share: f64,
}

pub fn run(args: &DecodeBenchArgs, interrupt: &Interrupt) -> anyhow::Result<()> {
    let steps = WARM_UP + args.tokens.get();
    let prompts = Prompts::new(&args.prompt, steps, interrupt)?;
    let bandwidth = prompts.model.memory_bandwidth()?;
    if !args.json {
        prompts.print_about(&args.prompt);
        println!("memory: {:.0} GB/s, measured", bandwidth / 1e9);
        println!(
            "{:>8} {:>12} {:>10} {:>12} {:>10} {:>16}",
            "tokens", "ms a token", "tok/s", "GB a token", "GB/s", "of the bandwidth"
        );
    }
    let mut rows = vec![];
    for &tokens in &prompts.lengths {
        let row = measure(&prompts, args, tokens, steps, bandwidth, interrupt)?;
        if !args.json {
            println!(
                "{:>8} {:>12.3} {:>10.1} {:>12.2} {:>10.0} {:>14.1} %",
                row.tokens,
                1e3 * row.seconds_per_token,
                row.tokens_per_s,
                row.bytes_per_token as f64 / 1e9,
                row.bytes_per_s / 1e9,
                100.0 * row.bandwidth_share
            );
        }
        rows.push(row);
    }
    if args.json {
        let mut all = prompts.about(&args.prompt)?;
        all["steps"] = json!(args.tokens);
        all["bandwidth_bytes_per_s"] = json!(bandwidth);
        all["rows"] = json!(rows);
        output::json(&all)?;
    }
    Ok(())
}

fn measure(
    prompts: &Prompts,
    args: &DecodeBenchArgs,
    tokens: usize,
    steps: usize,
    bandwidth: f64,
    interrupt: &Interrupt,
) -> anyhow::Result<Row> {
    let (model, ids) = (&prompts.model, &prompts.ids[..tokens]);
    let options = args.prompt.prefill.session(model, tokens + steps)?;
    let kv = options.cache_type(model.device());
    let mut session = Session::new(model, options)?;
    prefill(&mut session, ids, interrupt)?;
    let mut times = vec![];
    for step in 0..steps {
        if interrupt.flag().load(Ordering::SeqCst) {
            return Err(Error::Cancelled.into());
        }
        let began = Instant::now();
        // Which token it is makes no difference to the time.
        session.decode_greedy(ids[step % tokens])?;
        times.push(began.elapsed().as_secs_f64());
    }
    let timed = &mut times[WARM_UP..];
    timed.sort_unstable_by(f64::total_cmp);
    let seconds = timed[timed.len() / 2];
    let bytes = model.step_bytes(tokens + steps / 2, kv).context("the bytes of a step do not fit 64 bits")?;
    let bytes_per_s = bytes as f64 / seconds;
    Ok(Row {
        tokens,
        seconds_per_token: seconds,
        tokens_per_s: 1.0 / seconds,
        bytes_per_token: bytes,
        bytes_per_s,
        bandwidth_share: bytes_per_s / bandwidth,
    })
}

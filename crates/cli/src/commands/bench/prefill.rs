//! `speedread bench prefill`: a whole model at several lengths, dense and sparse side by side.

use std::path::Path;

use anyhow::Context;
use plotters::prelude::*;
use serde::Serialize;
use serde_json::json;
use speedread_engine::model::Model;
use speedread_engine::session::{AttentionChoice, PrefillReport, Session};

use super::Prompts;
use crate::args::bench::PrefillBenchArgs;
use crate::context::{Interrupt, prefill};
use crate::output::{self, Phases, rate, seconds};

/// The fastest run of one setting at one length.
#[derive(Debug, Clone, Serialize)]
struct Run {
    seconds: f64,
    tokens_per_s: f64,
    density: f64,
    phases: Phases,
}

impl From<&PrefillReport> for Run {
    fn from(report: &PrefillReport) -> Self {
        Run {
            seconds: report.seconds,
            tokens_per_s: rate(report.tokens, report.seconds),
            density: report.density(),
            phases: report.into(),
        }
    }
}

#[derive(Debug, Serialize)]
struct Row {
    tokens: usize,
    dense: Option<Run>,
    sparse: Run,
}

pub fn run(args: PrefillBenchArgs, interrupt: &Interrupt) -> anyhow::Result<()> {
    let prompts = Prompts::new(&args.prompt, 0, interrupt)?;
    let model = &prompts.model;
    if !args.json {
        prompts.print_about(&args.prompt);
        println!(
            "{:>8} {:<9} {:>11} {:>8} {:>8} {:>9} {:>9} {:>9} {:>11} {:>9}",
            "tokens", "attention", "time", "tok/s", "speed-up", "density", "linear", "index", "attention", "other"
        );
    }
    let mut rows = vec![];
    for &tokens in &prompts.lengths {
        let row = measure(model, &args, &prompts.ids[..tokens], interrupt)?;
        if !args.json {
            print_row(&row);
        }
        rows.push(row);
    }
    if let Some(path) = &args.svg {
        plot(&rows, path)?;
    }
    if args.json {
        let mut all = prompts.about(&args.prompt)?;
        all["repeat"] = json!(args.repeat);
        all["rows"] = json!(rows);
        output::json(&all)?;
    }
    Ok(())
}

/// Runs both settings by turns, so that a change of the machine's speed hits both.
fn measure(model: &Model, args: &PrefillBenchArgs, ids: &[u32], interrupt: &Interrupt) -> anyhow::Result<Row> {
    let options = args.prompt.prefill.session(model, ids.len())?;
    let dense = speedread_engine::session::SessionOptions { attention: AttentionChoice::Dense, ..options.clone() };
    let mut best: [Option<Run>; 2] = [None, None];
    for _ in 0..args.repeat.get() {
        for (best, options) in best.iter_mut().zip([&dense, &options]) {
            if args.sparse_only && std::ptr::eq(options, &dense) {
                continue;
            }
            let run = Run::from(&prefill(&mut Session::new(model, options.clone())?, ids, interrupt)?);
            if best.as_ref().is_none_or(|b| run.seconds < b.seconds) {
                *best = Some(run);
            }
        }
    }
    let [dense, sparse] = best;
    Ok(Row { tokens: ids.len(), dense, sparse: sparse.context("at least one run")? })
}

/// A line a run: what it took, and the seconds of its phases.
fn print_row(row: &Row) {
    let line = |name: &str, run: &Run, gain: String| {
        let p = run.phases;
        println!(
            "{:>8} {name:<9} {:>11} {:>8.0} {gain:>8} {:>7.1} % {:>7.2} s {:>7.2} s {:>9.2} s {:>7.2} s",
            row.tokens,
            seconds(run.seconds),
            run.tokens_per_s,
            100.0 * run.density,
            p.linear_s,
            p.index_s,
            p.attention_s,
            p.other_s,
        );
    };
    if let Some(dense) = &row.dense {
        line("dense", dense, String::new());
    }
    let gain = row.dense.as_ref().map(|dense| format!("{:.2}x", dense.seconds / row.sparse.seconds));
    line("sparse", &row.sparse, gain.unwrap_or_default());
}

/// Tokens per second by length.
fn plot(rows: &[Row], path: &Path) -> anyhow::Result<()> {
    let lines = |of: fn(&Row) -> Option<f64>| {
        rows.iter().filter_map(move |r| Some((r.tokens as f64, of(r)?))).collect::<Vec<_>>()
    };
    let series = [
        ("dense", lines(|r| r.dense.as_ref().map(|d| d.tokens_per_s)), RGBColor(120, 120, 120)),
        ("sparse", lines(|r| Some(r.sparse.tokens_per_s)), RGBColor(20, 90, 200)),
    ];
    let top = series.iter().flat_map(|(_, points, _)| points).map(|p| p.1).fold(1.0, f64::max) * 1.1;
    let (first, last) = (rows[0].tokens as f64, rows[rows.len() - 1].tokens as f64);
    let range = first.min(last)..first.max(last).max(first + 1.0);
    let draw = || -> Result<(), Box<dyn std::error::Error>> {
        let root = SVGBackend::new(path, (720, 420)).into_drawing_area();
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .margin(16)
            .caption("prefill, tokens per second by prompt length", ("sans-serif", 18))
            .x_label_area_size(40)
            .y_label_area_size(56)
            .build_cartesian_2d(range.log_scale(), 0.0..top)?;
        chart
            .configure_mesh()
            .x_desc("prompt tokens")
            .y_desc("tokens / s")
            .x_label_formatter(&|x| format!("{x:.0}"))
            .draw()?;
        for (name, points, color) in series.iter().filter(|s| !s.1.is_empty()) {
            let color = *color;
            chart
                .draw_series(LineSeries::new(points.clone(), color.stroke_width(2)).point_size(3))?
                .label(*name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], color.stroke_width(2)));
        }
        chart.configure_series_labels().border_style(BLACK).background_style(WHITE).draw()?;
        root.present()?;
        Ok(())
    };
    draw().map_err(|e| anyhow::anyhow!("{}: {e}", path.display()))
}

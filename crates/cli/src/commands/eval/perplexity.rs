//! `speedread eval perplexity`: how well the tokens of texts are foretold, by length.

use std::path::Path;

use plotters::prelude::*;
use serde_json::json;
use speedread_eval::perplexity::{self, Perplexity, Text};

use super::{Job, csv, numbers};
use crate::args::eval::PerplexityArgs;
use crate::context::Interrupt;
use crate::output;

pub fn run(args: PerplexityArgs, interrupt: &Interrupt) -> anyhow::Result<()> {
    let (documents, data) = super::texts(&args.files)?;
    let texts: Vec<Text> = documents.into_iter().map(|d| Text { name: d.name, text: d.text }).collect();
    let (model, settings) = super::open(&args.settings, interrupt)?;
    let mut lengths = numbers(&args.lengths);
    lengths.sort_unstable();
    lengths.dedup();
    // More lengths add to the results of fewer: they are no parameter.
    let job = Job {
        model: &model,
        settings: &settings,
        data: &data,
        prompts: None,
        parameters: json!({}),
        output: &args.output,
        interrupt,
    };
    let (mut file, mut all) = job.open::<Perplexity>()?;
    all.extend(job.watch(|observer| {
        perplexity::run(&model, &texts, &lengths, &settings, &mut file, observer, interrupt.flag())
    })?);
    all.retain(|result| lengths.contains(&result.tokens));
    let rows = rows(&all, &settings[0].name);
    if let Some(path) = &args.svg {
        plot(&rows, path)?;
    }
    if let Some(path) = &args.table.csv {
        let line = |(result, change): &Line<'_>| {
            let numbers = [result.nll, result.nll.exp(), *change, result.density].map(|n| format!("{n:.6}"));
            let names = [result.text.clone(), result.tokens.to_string(), result.setting.clone()];
            names.into_iter().chain(numbers).collect()
        };
        let header = ["text", "tokens", "setting", "nll", "perplexity", "change", "density"];
        csv(path, &header, rows.iter().map(line))?;
    }
    if args.table.json {
        let row =
            |(result, change): &Line<'_>| json!({ "result": result, "perplexity": result.nll.exp(), "change": change });
        return output::json(&json!({ "run": job.json(), "rows": rows.iter().map(row).collect::<Vec<_>>() }));
    }
    print(&rows);
    Ok(())
}

/// A result, and how much its perplexity is above the first setting's, as a share.
type Line<'a> = (&'a Perplexity, f64);

fn rows<'a>(all: &'a [Perplexity], first: &str) -> Vec<Line<'a>> {
    let mut rows: Vec<Line<'a>> = all
        .iter()
        .filter_map(|result| {
            let base = all.iter().find(|other| other.id == result.id && other.setting == first)?;
            Some((result, (result.nll - base.nll).exp() - 1.0))
        })
        .collect();
    // Texts in the order of the files, then lengths; settings stay in their order.
    rows.sort_by_key(|(result, _)| {
        let file = result.id.split(':').next().and_then(|number| number.parse::<usize>().ok());
        (file, result.tokens)
    });
    rows
}

fn print(rows: &[Line<'_>]) {
    let width = |of: fn(&Perplexity) -> &str, title: &str| {
        rows.iter().map(|(result, _)| of(result).chars().count()).max().unwrap_or(0).max(title.len())
    };
    let (text, setting) = (width(|r| &r.text, "text"), width(|r| &r.setting, "setting"));
    println!(
        "{:<text$} {:>8}  {:<setting$} {:>8} {:>10} {:>9} {:>8}  nats by eighth of the text",
        "text", "tokens", "setting", "nats", "perplexity", "change", "density"
    );
    for (result, change) in rows {
        let parts: Vec<String> = result.by_eighth.iter().map(|nll| format!("{nll:.3}")).collect();
        println!(
            "{:<text$} {:>8}  {:<setting$} {:>8.4} {:>10.3} {:>+7.2} % {:>6.1} %  {}",
            result.text,
            result.tokens,
            result.setting,
            result.nll,
            result.nll.exp(),
            100.0 * change,
            100.0 * result.density,
            parts.join(" "),
        );
    }
}

/// Perplexity by length, a line a text and setting.
fn plot(rows: &[Line<'_>], path: &Path) -> anyhow::Result<()> {
    let mut series: Vec<(String, Vec<(f64, f64)>)> = vec![];
    for (result, _) in rows {
        let name = format!("{}, {}", result.text, result.setting);
        let point = (result.tokens as f64, result.nll.exp());
        match series.iter_mut().find(|(other, _)| *other == name) {
            Some((_, points)) => points.push(point),
            None => series.push((name, vec![point])),
        }
    }
    let of =
        |part: fn(&(f64, f64)) -> f64| series.iter().flat_map(|(_, points)| points).map(part).collect::<Vec<f64>>();
    let least = |values: &[f64]| values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = |values: &[f64]| values.iter().copied().fold(0.0, f64::max);
    let (x, y) = (of(|point| point.0), of(|point| point.1));
    let x_range = least(&x)..most(&x).max(least(&x) + 1.0);
    let draw = || -> Result<(), Box<dyn std::error::Error>> {
        let root = SVGBackend::new(path, (760, 440)).into_drawing_area();
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .margin(16)
            .caption("perplexity by length", ("sans-serif", 18))
            .x_label_area_size(40)
            .y_label_area_size(56)
            .build_cartesian_2d(x_range.log_scale(), 0.95 * least(&y)..1.05 * most(&y))?;
        chart
            .configure_mesh()
            .x_desc("tokens read")
            .y_desc("perplexity")
            .x_label_formatter(&|x| format!("{x:.0}"))
            .draw()?;
        for (i, (name, points)) in series.iter().enumerate() {
            let color = Palette99::pick(i).to_rgba();
            chart
                .draw_series(LineSeries::new(points.clone(), color.stroke_width(2)).point_size(3))?
                .label(name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], color.stroke_width(2)));
        }
        chart.configure_series_labels().border_style(BLACK).background_style(WHITE).draw()?;
        root.present()?;
        Ok(())
    };
    draw().map_err(|e| anyhow::anyhow!("{}: {e}", path.display()))
}

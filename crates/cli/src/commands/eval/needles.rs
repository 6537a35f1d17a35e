//! `speedread eval needles`: numbers hidden in texts, by length and depth.

use serde::Serialize;
use serde_json::json;
use speedread_eval::compare::compare;
use speedread_eval::needles::Grid;
use speedread_eval::results::Answer;

use super::{Job, numbers, table};
use crate::args::eval::NeedlesArgs;
use crate::context::Interrupt;
use crate::heatmap::{Cell, HeatMap, draw_all};
use crate::{input, output};

/// What a setting found.
#[derive(Debug, Serialize)]
struct Found {
    setting: String,
    /// Share of the needles found, `[depth][length]`; null where nothing was asked.
    found: Vec<Vec<Option<f64>>>,
}

pub fn run(args: NeedlesArgs, interrupt: &Interrupt) -> anyhow::Result<()> {
    let (text, data) = super::texts(&args.files)?;
    let text = input::join(&text);
    let (model, settings) = super::open(&args.settings, interrupt)?;
    let mut lengths = numbers(&args.lengths);
    lengths.sort_unstable();
    lengths.dedup();
    let grid = Grid {
        lengths,
        depths: args.depths.get(),
        repeats: args.repeats.get(),
        distractors: args.distractors,
        seed: args.seed,
    };
    let samples = grid.samples(&model, &text)?;
    let job = Job {
        model: &model,
        settings: &settings,
        data: &data,
        prompts: None,
        parameters: serde_json::to_value(&grid)?,
        output: &args.output,
        interrupt,
    };
    let answers = job.answer(&samples, &args.batch)?;
    let names: Vec<String> = settings.iter().map(|setting| setting.name.clone()).collect();
    let found: Vec<Found> = names.iter().map(|name| of_setting(&grid, &answers, name)).collect();
    let comparison = compare(&names, &answers);
    if let Some(path) = &args.png {
        draw_all(&found.iter().map(|found| picture(&grid, found)).collect::<Vec<_>>()).save(path)?;
    }
    if let Some(path) = &args.table.csv {
        table::write_csv(&comparison, path)?;
    }
    if args.table.json {
        return output::json(&json!({
            "run": job.json(), "comparison": comparison, "lengths": grid.lengths, "depths": grid.depths(), "found": found,
        }));
    }
    for found in &found {
        println!("{}: needles found, % (rows: depth, columns: tokens)", found.setting);
        println!("{:>7} {}", "", grid.lengths.iter().map(|length| format!("{length:>8}")).collect::<String>());
        for (depth, row) in grid.depths().iter().zip(&found.found) {
            let cell =
                |share: &Option<f64>| share.map_or(format!("{:>8}", "-"), |share| format!("{:>8.0}", 100.0 * share));
            println!("{:>5.0} % {}", 100.0 * depth, row.iter().map(cell).collect::<String>());
        }
        println!();
    }
    table::print(&comparison);
    Ok(())
}

fn of_setting(grid: &Grid, answers: &[Answer], setting: &str) -> Found {
    let share = |depth: f64, length: usize| {
        let of_cell = |a: &&Answer| a.setting == setting && a.length == Some(length) && a.depth == Some(depth);
        let scores: Vec<f64> = answers.iter().filter(of_cell).map(|answer| answer.score).collect();
        (!scores.is_empty()).then(|| scores.iter().sum::<f64>() / scores.len() as f64)
    };
    let row = |depth| grid.lengths.iter().map(|&length| share(depth, length)).collect();
    Found { setting: setting.to_owned(), found: grid.depths().into_iter().map(row).collect() }
}

fn picture(grid: &Grid, found: &Found) -> HeatMap {
    HeatMap {
        title: format!("{}: needles found, %", found.setting),
        row_title: "depth".into(),
        column_title: "prompt tokens".into(),
        rows: grid.depths().iter().map(|depth| format!("{:.0} %", 100.0 * depth)).collect(),
        columns: grid.lengths.iter().map(usize::to_string).collect(),
        cells: found.found.iter().flatten().map(|share| share.map_or(Cell::Empty, Cell::Value)).collect(),
        categories: vec![],
        numbers: true,
    }
}

//! The table of a comparison: on the terminal, as comma-separated values.

use std::path::Path;

use speedread_eval::compare::{Cell, Comparison, Row};

use super::csv;
use crate::output::seconds;

/// Prints a comparison, a line a row and setting.
pub fn print(table: &Comparison) {
    let names = table.rows.iter().map(|row| name(row).len());
    let width = names.max().unwrap_or(0).max("task".len());
    let setting = table.settings.iter().map(|setting| setting.chars().count()).max().unwrap_or(0).max("setting".len());
    println!(
        "{:<width$} {:>7} {:>7}  {:<setting$} {:>6} {:>6}  {:<15} {:>8} {:>11}",
        "task", "length", "samples", "setting", "score", "drop", "95 % interval", "density", "first token"
    );
    for row in &table.rows {
        for (i, cell) in row.cells.iter().enumerate() {
            let (task, length, samples) = match i {
                0 => (name(row), row.length.map(|n| n.to_string()).unwrap_or_default(), row.samples.to_string()),
                _ => Default::default(),
            };
            println!(
                "{task:<width$} {length:>7} {samples:>7}  {:<setting$} {:>6.1} {:>6}  {:<15} {:>6.1} % {:>11}",
                cell.setting,
                cell.score,
                cell.drop.map(|drop| format!("{:.1}", drop.points)).unwrap_or_default(),
                interval(cell),
                100.0 * cell.density,
                seconds(cell.ttft_s),
            );
        }
    }
    if table.rows.is_empty() {
        println!("no sample has been answered by every setting yet");
    }
    if table.incomplete_samples > 0 {
        println!("{} samples that not every setting has answered yet do not count", table.incomplete_samples);
    }
}

/// Writes a comparison as comma-separated values.
pub fn write_csv(table: &Comparison, path: &Path) -> anyhow::Result<()> {
    let header =
        ["task", "length", "samples", "setting", "score", "drop", "drop_low", "drop_high", "density", "ttft_s"];
    let number = |n: Option<f64>| n.map(|n| format!("{n:.4}")).unwrap_or_default();
    let line = |row: &Row, cell: &Cell| {
        vec![
            name(row),
            row.length.map(|n| n.to_string()).unwrap_or_default(),
            row.samples.to_string(),
            cell.setting.clone(),
            number(Some(cell.score)),
            number(cell.drop.map(|drop| drop.points)),
            number(cell.drop.and_then(|drop| drop.low)),
            number(cell.drop.and_then(|drop| drop.high)),
            number(Some(cell.density)),
            number(Some(cell.ttft_s)),
        ]
    };
    csv(path, &header, table.rows.iter().flat_map(|row| row.cells.iter().map(move |cell| line(row, cell))))
}

fn name(row: &Row) -> String {
    row.task.clone().unwrap_or_else(|| "average".into())
}

fn interval(cell: &Cell) -> String {
    let ends = cell.drop.and_then(|drop| Some((drop.low?, drop.high?)));
    ends.map(|(low, high)| format!("{low:.1} to {high:.1}")).unwrap_or_default()
}

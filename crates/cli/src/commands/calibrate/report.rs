//! What a search found, for people: a picture by layer and head, and a report in Markdown.

use std::fmt::Write;

use speedread_attention::pattern_file::searched::SearchedHead;
use speedread_calibrate::{Calibration, Family};

use crate::canvas::Canvas;
use crate::heatmap::{Cell, HeatMap, draw_all};

/// Bins of the histogram of errors.
const BINS: [f64; 7] = [0.0, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1];

/// Maps of patterns, of recall and of time by layer and head, one set a length.
pub fn map(found: &Calibration) -> Canvas {
    let maps = found.heads.iter().zip(&found.lengths).flat_map(|(layers, length)| {
        let draw = |what: &str, cell: &dyn Fn(&SearchedHead) -> Cell, categories: Vec<String>| HeatMap {
            title: format!("{what}, prompts of {} tokens", length.tokens),
            row_title: "layer".into(),
            column_title: "query head".into(),
            rows: (0..layers.len()).map(|n| n.to_string()).collect(),
            columns: (0..layers[0].len()).map(|n| n.to_string()).collect(),
            cells: layers.iter().flatten().map(cell).collect(),
            numbers: categories.is_empty(),
            categories,
        };
        let family = |head: &SearchedHead| Family::of(head.pattern);
        let number = |head: &SearchedHead| Family::ALL.iter().position(|&f| f == family(head)).unwrap_or(0);
        let names = Family::ALL.iter().map(|family| family.name().to_owned()).collect();
        [
            draw("pattern", &|head| Cell::Category(number(head)), names),
            draw("recall, %", &|head| Cell::Value(head.recall), vec![]),
            draw("time against dense, %", &|head| Cell::Value(head.time.min(1.0)), vec![]),
        ]
    });
    draw_all(&maps.collect::<Vec<_>>())
}

/// A divergence in nats; nothing where none was measured.
pub fn nats(divergence: Option<f64>) -> String {
    divergence.map_or(String::new(), |nats| format!("{nats:.5}"))
}

/// Everything that was found.
pub fn markdown(found: &Calibration, model: &str) -> String {
    let mut text = format!("# Patterns of {model}\n");
    // Writing to a string does not fail.
    let mut line = |what: std::fmt::Arguments<'_>| text.write_fmt(format_args!("{what}\n")).unwrap_or_default();
    let weights: Vec<String> = found.weights.iter().map(|weight| format!("{weight:.2}")).collect();
    line(format_args!("\nWhat an error in each layer counted, first to last: {}.", weights.join(", ")));
    for (layers, length) in found.heads.iter().zip(&found.lengths) {
        line(format_args!("\n## Prompts of {} tokens\n\nTarget: {}.\n", length.tokens, length.target));
        line(format_args!("| pattern | heads |\n|---|---|"));
        for (family, heads) in &length.families {
            line(format_args!("| {} | {heads} |", family.name()));
        }
        if !length.comparisons.is_empty() {
            line(format_args!("\nOn texts the search has not seen (time and density relative to dense attention):\n"));
            line(format_args!(
                "| patterns | text | time | density | error | recall | divergence |\n|---|---|---|---|---|---|---|"
            ));
            for c in &length.comparisons {
                let (time, density, recall) = (100.0 * c.time, 100.0 * c.density, 100.0 * c.recall);
                let (name, from, error) = (&c.name, &c.text, c.error);
                let nats = nats(c.divergence);
                line(format_args!(
                    "| {name} | {from} | {time:.1} % | {density:.1} % | {error:.5} | {recall:.2} % | {nats} |"
                ));
            }
        }
        line(format_args!("\nHeads by the squared error of their output, relative:\n\n| error | heads |\n|---|---|"));
        for (i, &from) in BINS.iter().enumerate() {
            let to = BINS.get(i + 1).copied().unwrap_or(f64::INFINITY);
            let heads = layers.iter().flatten().filter(|head| head.error >= from && head.error < to).count();
            line(format_args!("| {from} to {to} | {heads} |"));
        }
        line(format_args!("\n| layer | head | pattern | error | recall | time |\n|---|---|---|---|---|---|"));
        for (layer, heads) in layers.iter().enumerate() {
            for (number, head) in heads.iter().enumerate() {
                let (recall, time) = (100.0 * head.recall, 100.0 * head.time);
                let (pattern, error) = (head.pattern, head.error);
                line(format_args!("| {layer} | {number} | {pattern} | {error:.5} | {recall:.2} % | {time:.1} % |"));
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use speedread_attention::pattern_file::minference::MInferenceFile;
    use speedread_attention::{Kernel, PatternFile};
    use speedread_calibrate::{KernelTimes, LengthResult, Target};

    #[test]
    fn every_head_is_reported() {
        let head =
            |pattern: &str, error| SearchedHead { pattern: pattern.parse().unwrap(), error, recall: 0.5, time: 0.25 };
        let times = KernelTimes {
            kernel: Kernel::Cpu,
            aligned_tile: 1.0,
            shifted_tile: 1.0,
            gathered_tile: 1.0,
            vertical_slash_index: 1.0,
            block_sparse_index: 1.0,
        };
        let length = LengthResult {
            tokens: 4096,
            target: Target::Default,
            kernel_times: times,
            candidates: 3,
            families: vec![(Family::BlockSparse, 1)],
            comparisons: vec![],
        };
        let found = Calibration {
            file: PatternFile::MInference(MInferenceFile { layers: vec![] }),
            heads: vec![vec![vec![head("block-sparse:9", 0.5), head("a-shape:64,640", 0.002)]]],
            lengths: vec![length],
            weights: vec![1.0],
        };
        let text = markdown(&found, "tiny");
        assert!(
            text.contains("Target: default.")
                && text.contains("| 0 | 0 | block-sparse:9 | 0.50000 | 50.00 % | 25.0 % |"),
            "{text}"
        );
        assert!(text.contains("| 0.1 to inf | 1 |") && text.contains("| 0.001 to 0.003 | 1 |"), "{text}");
        map(&found);
    }
}

//! What a search found, for people: pictures by layer and head and by error, and a report in Markdown.

use std::fmt::Write;

use speedread_attention::pattern_file::searched::SearchedHead;
use speedread_calibrate::{Calibration, Family, Totals};

use super::histogram::{Histogram, bins};
use crate::canvas::Canvas;
use crate::heatmap::{Cell, Figure, HeatMap, draw_all};

/// Maps of patterns, of recall and of time by layer and head, and a histogram of the heads' errors, one set a length.
pub fn map(found: &Calibration) -> Canvas {
    let figures = found.heads.iter().zip(&found.lengths).flat_map(|(layers, length)| {
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
        let histogram =
            Histogram { title: format!("heads by error, prompts of {} tokens", length.tokens), bins: bins(layers) };
        let figures: [Box<dyn Figure>; 4] = [
            Box::new(draw("pattern", &|head| Cell::Category(number(head)), names)),
            Box::new(draw("recall, %", &|head| Cell::Value(head.recall), vec![])),
            Box::new(draw("time against dense, %", &|head| Cell::Value(head.time.min(1.0)), vec![])),
            Box::new(histogram),
        ];
        figures
    });
    draw_all(&figures.collect::<Vec<_>>())
}

/// What all heads come to, in a sentence.
pub fn totals(totals: &Totals) -> String {
    format!(
        "{:.1} % of dense attention's time, {:.1} % of its key tiles, mean error {:.5} by the layers' weights, mean recall {:.2} %",
        100.0 * totals.time,
        100.0 * totals.density,
        totals.error,
        100.0 * totals.recall
    )
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
        line(format_args!("\nAll heads, on the texts of the search: {}.", totals(&length.totals)));
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
        for bin in bins(layers) {
            line(format_args!("| {} to {} | {} |", bin.from, bin.to, bin.heads()));
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
    use crate::heatmap::categories;
    use speedread_attention::pattern_file::minference::MInferenceFile;
    use speedread_attention::{Kernel, PatternFile};
    use speedread_calibrate::{KernelTimes, LengthResult, Target};

    /// What was found of one layer with two heads, of which the first has this error.
    fn found(error: f64) -> Calibration {
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
            totals: Totals { time: 0.25, density: 0.125, error: 0.251, recall: 0.5 },
            comparisons: vec![],
        };
        Calibration {
            file: PatternFile::MInference(MInferenceFile { layers: vec![] }),
            heads: vec![vec![vec![head("block-sparse:9", error), head("a-shape:64,640", 0.002)]]],
            lengths: vec![length],
            weights: vec![1.0],
        }
    }

    #[test]
    fn every_head_is_reported() {
        let found = found(0.5);
        let text = markdown(&found, "tiny");
        assert!(
            text.contains("Target: default.")
                && text.contains("| 0 | 0 | block-sparse:9 | 0.50000 | 50.00 % | 25.0 % |"),
            "{text}"
        );
        assert!(text.contains("| 0.1 to inf | 1 |") && text.contains("| 0.001 to 0.003 | 1 |"), "{text}");
        // Without texts to compare on.
        let all = "All heads, on the texts of the search: 25.0 % of dense attention's time, 12.5 % of its key tiles, mean error 0.25100 by the layers' weights, mean recall 50.00 %.";
        assert!(text.contains("| block-sparse | 1 |") && text.contains(all), "{text}");
    }

    #[test]
    fn pictures_show_heads_by_error_too() {
        let names = Family::ALL.map(|family| family.name().to_owned());
        let number = Family::ALL.iter().position(|&family| family == Family::BlockSparse).unwrap();
        let area = |error| map(&found(error)).area(categories(&names)[number].1);
        // By itself in its bin, its bar is full; with the other head in one bin, it has half a bar.
        assert!(area(0.5) > area(0.002) + 1000, "{} {}", area(0.5), area(0.002));
    }
}

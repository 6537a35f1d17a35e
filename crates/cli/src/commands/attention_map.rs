//! `speedread inspect --attention-map`: where a head's attention goes, and which keys its index keeps.

use std::ops::ControlFlow;

use anyhow::{Context, bail};
use serde_json::json;
use speedread_attention::index::TileShape;
use speedread_attention::{Options, Pattern, Rows, SparseIndex, plan_in_tiles};
use speedread_engine::model::Model;
use speedread_engine::session::Session;

use crate::args::InspectArgs;
use crate::canvas::{Canvas, Color, TEXT_HEIGHT};
use crate::context::{Interrupt, bar};
use crate::{input, output, prompt};

/// Most pixels a side.
const SIDE: usize = 800;
/// Query rows averaged into a line of pixels, at most.
const ROWS_A_LINE: usize = 4;
/// Shares of attention drawn from white to full colour, as powers of ten per pixel.
const FAINTEST: f64 = -6.0;

pub fn run(model: &Model, args: &InspectArgs, interrupt: &Interrupt) -> anyhow::Result<()> {
    let (Some((layer, head)), Some(path)) = (args.attention_map, &args.output) else {
        bail!("--attention-map needs --output");
    };
    let config = &model.config;
    if layer >= config.layers || head >= config.heads {
        bail!(
            "there is no head {layer}.{head}: the model has layers 0 to {} of query heads 0 to {}",
            config.layers - 1,
            config.heads - 1
        );
    }
    let text = input::join(&input::gather(&args.input.files)?);
    let encode = |text: &str| Ok(model.tokenizer.encode(text, false)?);
    let prompt = prompt::fit(model, &text, 1, args.input.truncate, encode)?;
    let mut options = model.resolve(args.prefill.session(model, prompt.ids.len() + 1)?, model.device());
    options.chunk = None;
    let pattern = options.attention.patterns(layer, config.heads, prompt.ids.len())[head];
    let mut session = Session::new(model, options)?;
    let progress = bar(prompt.ids.len() as u64, "reading {bar:32} {pos}/{len} tokens  {per_sec}  {eta} left");
    let mut rows = None;
    let visited = session.visit_layers(
        &prompt.ids,
        &mut |mut visited| {
            if visited.layer < layer {
                return Ok(ControlFlow::Continue(()));
            }
            rows = Some(visited.head(head)?);
            Ok(ControlFlow::Break(()))
        },
        &mut |p| progress.set_position((p.done_fraction * prompt.ids.len() as f64) as u64),
        interrupt.flag(),
    );
    progress.finish_and_clear();
    visited?;
    let (q, k) = rows.context("the layer was not reached")?;
    let view = |rows| Rows::contiguous(rows, prompt.ids.len(), 1, config.head_dim);
    let picture = Picture::new(view(&q)?, view(&k)?, pattern, model.device().kernel().tile())?;
    let title = format!(
        "layer {layer} head {head}: {} tokens, {pattern}, {:.1} % of dense attention, {:.2} % of its mass kept",
        prompt.ids.len(),
        100.0 * picture.density,
        100.0 * picture.recall,
    );
    picture.draw(&title).save(path)?;
    if args.json {
        output::json(&json!({
            "layer": layer, "head": head, "tokens": prompt.ids.len(), "pattern": pattern.to_string(),
            "density": picture.density, "recall": picture.recall, "picture": path,
        }))
    } else {
        println!("{title}\n{}", path.display());
        Ok(())
    }
}

/// Attention of a head, pooled to pixels.
struct Picture {
    side: usize,
    tokens: usize,
    /// Share of attention of the line's rows that goes to the pixel's keys, `[line][pixel]`.
    mass: Vec<f64>,
    /// Share of the pixel's keys that the index keeps, `[line][pixel]`.
    kept: Vec<f32>,
    density: f64,
    /// Share of attention mass kept, over the rows drawn.
    recall: f64,
}

impl Picture {
    /// Of the queries and keys of one head, in the tiles of the kernel that would run.
    fn new(q: Rows<'_, f32>, k: Rows<'_, f32>, pattern: Pattern, tile: TileShape) -> anyhow::Result<Self> {
        let n = q.rows();
        let options = Options { dense_fallback: false, ..Options::default() };
        let (_, index) = plan_in_tiles(q, k, &[pattern], tile, &options)?.pop().context("one head, one index")?;
        let side = SIDE.min(n);
        let mut picture = Picture {
            side,
            tokens: n,
            mass: vec![0.0; side * side],
            kept: vec![0.0; side * side],
            density: index.total_tiles() as f64 / index.total_dense_tiles() as f64,
            recall: 0.0,
        };
        let mut drawn = 0;
        for line in 0..side {
            let rows = line * n / side..(line + 1) * n / side;
            let step = rows.len().div_ceil(ROWS_A_LINE);
            let rows: Vec<usize> = rows.step_by(step).collect();
            for &row in &rows {
                picture.recall += picture.add_row(line, row, q, k, &index, 1.0 / rows.len() as f64);
                drawn += 1;
            }
        }
        picture.recall /= drawn as f64;
        Ok(picture)
    }

    /// Adds a query row to a line of pixels; returns the share of its attention that the index keeps.
    fn add_row(
        &mut self,
        line: usize,
        row: usize,
        q: Rows<'_, f32>,
        k: Rows<'_, f32>,
        index: &SparseIndex,
        weight: f64,
    ) -> f64 {
        let scale = 1.0 / (q.dim() as f64).sqrt();
        let dot = |key: usize| q.row(row, 0).iter().zip(k.row(key, 0)).map(|(a, b)| a * b).sum::<f32>() as f64 * scale;
        let scores: Vec<f64> = (0..=row).map(dot).collect();
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
        let mut recall = 0.0;
        for (key, score) in scores.iter().enumerate() {
            let p = (score - max).exp() / sum;
            let at = line * self.side + key * self.side / self.tokens;
            self.mass[at] += p * weight;
            if index.contains(row, key) {
                recall += p;
                self.kept[at] += (weight * self.side as f64 / self.tokens as f64) as f32;
            }
        }
        recall
    }

    fn draw(&self, title: &str) -> Canvas {
        const MARGIN: usize = 24;
        let (top, left) = (MARGIN + TEXT_HEIGHT + 8, MARGIN);
        let legend = "blue: attention of keys kept, red: of keys left out, yellow: kept (rows: queries, columns: keys)";
        let width =
            (2 * MARGIN + self.side).max(2 * MARGIN + Canvas::text_width(title).max(Canvas::text_width(legend)));
        let mut canvas = Canvas::new(width, top + self.side + TEXT_HEIGHT + 2 * MARGIN, [255; 3]);
        canvas.text(left, MARGIN, title);
        for line in 0..self.side {
            for pixel in 0..=line {
                let at = line * self.side + pixel;
                canvas.set(left + pixel, top + line, color(self.mass[at], self.kept[at].min(1.0) as f64));
            }
        }
        canvas.fill(left, top + self.side, self.side, 1, [120; 3]);
        canvas.fill(left - 1, top, 1, self.side, [120; 3]);
        canvas.text(left, top + self.side + 8, legend);
        canvas
    }
}

/// Colour of a pixel: how strong its attention is, and whether its keys are kept.
fn color(mass: f64, kept: f64) -> Color {
    let strength = (1.0 - mass.max(1e-12).log10() / FAINTEST).clamp(0.0, 1.0);
    let mix = |from: f64, to: f64, share: f64| from + (to - from) * share;
    // Background: white, yellow where keys are kept. Ink: red where left out, blue where kept.
    let background = [255.0, mix(255.0, 240.0, kept), mix(255.0, 170.0, kept)];
    let ink = [mix(200.0, 10.0, kept), mix(30.0, 40.0, kept), mix(30.0, 150.0, kept)];
    std::array::from_fn(|i| mix(background[i], ink[i], strength) as u8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use speedread_attention::cpu::TILE;

    #[test]
    fn colours_tell_strength_and_keeping() {
        assert_eq!(color(0.0, 0.0), [255, 255, 255]);
        assert_eq!(color(1.0, 1.0), [10, 40, 150]);
        assert_eq!(color(1.0, 0.0), [200, 30, 30]);
        assert_eq!(color(0.0, 1.0), [255, 240, 170]);
    }

    #[test]
    fn a_dense_head_keeps_everything() {
        let (rows, dim) = (100, 8);
        let q: Vec<f32> = (0..rows * dim).map(|i| ((i * 37) % 11) as f32 / 5.0 - 1.0).collect();
        let rows = Rows::contiguous(&q, rows, 1, dim).unwrap();
        let picture = Picture::new(rows, rows, Pattern::Dense, TILE).unwrap();
        assert!((picture.recall - 1.0).abs() < 1e-9 && picture.density == 1.0);
        // Every line's attention adds up.
        for line in picture.mass.chunks(picture.side) {
            assert!((line.iter().sum::<f64>() - 1.0).abs() < 1e-9);
        }
        let narrow = Picture::new(rows, rows, Pattern::AShape { sink: 1, local: 1 }, TILE).unwrap();
        assert!(narrow.recall < 0.999);
    }
}

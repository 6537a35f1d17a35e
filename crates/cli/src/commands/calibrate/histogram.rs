//! Heads by the error of their output: how many of each family lie in each bin, as numbers and as a picture.

use speedread_attention::pattern_file::searched::SearchedHead;
use speedread_calibrate::Family;

use crate::canvas::{Canvas, Color, TEXT_HEIGHT};
use crate::heatmap::{Figure, GAP, categories, draw_legend, legend_width};

/// Where the bins begin; each ends where the next begins, and the last does not end.
const EDGES: [f64; 7] = [0.0, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1];
/// Height of the tallest bar.
const BAR_HEIGHT: usize = 160;
const AXIS: Color = [120; 3];

/// The heads with errors in a range.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bin {
    pub from: f64,
    pub to: f64,
    /// In the order of [`Family::ALL`].
    pub of_family: [usize; Family::ALL.len()],
}

impl Bin {
    pub fn heads(&self) -> usize {
        self.of_family.iter().sum()
    }
}

/// The heads of all layers by the squared error of their output, relative to its squared length.
pub fn bins(layers: &[Vec<SearchedHead>]) -> Vec<Bin> {
    let bin = |(i, &from): (usize, &f64)| {
        let to = EDGES.get(i + 1).copied().unwrap_or(f64::INFINITY);
        let within = || layers.iter().flatten().filter(|head| head.error >= from && head.error < to);
        let heads = |family| within().filter(|head| Family::of(head.pattern) == family).count();
        Bin { from, to, of_family: Family::ALL.map(heads) }
    };
    EDGES.iter().enumerate().map(bin).collect()
}

/// A picture of bins: a bar each, of the families' colours on each other, with its number of heads above it.
pub struct Histogram {
    pub title: String,
    pub bins: Vec<Bin>,
}

impl Histogram {
    const BELOW: &'static str = "squared error of a head's output, relative";
    const BESIDE: &'static str = "heads";

    fn legend() -> Vec<(String, Color)> {
        categories(&Family::ALL.map(|family| family.name().to_owned()))
    }

    /// Labels of the bins' edges, from the left.
    fn edges(&self) -> impl Iterator<Item = String> {
        let last = self.bins.last().map(|bin| bin.to);
        self.bins.iter().map(|bin| bin.from).chain(last).map(|edge| edge.to_string())
    }

    /// Heads of the tallest bar.
    fn most(&self) -> usize {
        self.bins.iter().map(Bin::heads).max().unwrap_or(0).max(1)
    }

    /// Width of a bar and of the gap after it: labels of two edges fit side by side.
    fn step(&self) -> usize {
        self.edges().map(|label| Canvas::text_width(&label)).max().unwrap_or(0) + GAP
    }

    /// Where the bars begin, from the left edge.
    fn left(&self) -> usize {
        // Half of the first edge's label is left of its edge.
        Canvas::text_width(Self::BESIDE).max(Canvas::text_width(&self.most().to_string())) + 2 * GAP
    }
}

impl Figure for Histogram {
    fn size(&self) -> (usize, usize) {
        let texts = [Canvas::text_width(&self.title), self.left() + Canvas::text_width(Self::BELOW)];
        // Half of the last edge's label is right of its edge.
        let bars = self.left() + self.bins.len() * self.step() + self.step() / 2;
        let width = texts.into_iter().chain([bars, legend_width(&Self::legend())]).max().unwrap_or(0);
        // Title, number above the tallest bar, bars, edges, what they are, legend.
        (width, 5 * (TEXT_HEIGHT + GAP) + BAR_HEIGHT)
    }

    fn draw_at(&self, canvas: &mut Canvas, x: usize, y: usize) {
        let (left, step, line, most) = (x + self.left(), self.step(), TEXT_HEIGHT + GAP, self.most());
        let (top, bottom) = (y + 2 * line, y + 2 * line + BAR_HEIGHT);
        canvas.text(x, y, &self.title);
        canvas.text(x, y + line, Self::BESIDE);
        // The axes, and the numbers at both ends of the upright one.
        canvas.fill(left, top, 1, BAR_HEIGHT, AXIS);
        canvas.fill(left, bottom, self.bins.len() * step, 1, AXIS);
        for (heads, at) in [(most, top), (0, bottom)] {
            let label = heads.to_string();
            canvas.fill(left - GAP / 2, at, GAP / 2, 1, AXIS);
            canvas.text(left - GAP - Canvas::text_width(&label), at - TEXT_HEIGHT / 2, &label);
        }
        let legend = Self::legend();
        for (i, bin) in self.bins.iter().enumerate() {
            let from = left + i * step + GAP / 2;
            let height = |heads: usize| (heads * BAR_HEIGHT).div_ceil(most);
            let mut below = 0;
            for (heads, (_, color)) in bin.of_family.iter().zip(&legend) {
                let (lower, upper) = (height(below), height(below + heads));
                canvas.fill(from, bottom - upper, step - GAP, upper - lower, *color);
                below += heads;
            }
            let label = bin.heads().to_string();
            let middle = from + (step - GAP) / 2 - Canvas::text_width(&label) / 2;
            canvas.text(middle, bottom - height(below) - TEXT_HEIGHT, &label);
        }
        for (i, label) in self.edges().enumerate() {
            let at = left + i * step;
            canvas.fill(at, bottom, 1, GAP / 2, AXIS);
            canvas.text(at - Canvas::text_width(&label) / 2, bottom + GAP / 2, &label);
        }
        canvas.text(left, bottom + line, Self::BELOW);
        draw_legend(canvas, x, bottom + 2 * line, &legend);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::heatmap::draw_all;

    fn head(pattern: &str, error: f64) -> SearchedHead {
        SearchedHead { pattern: pattern.parse().unwrap(), error, recall: 0.5, time: 0.25 }
    }

    /// Pixels of a family's colour in the bars of these heads.
    fn area(family: Family, heads: &[SearchedHead]) -> usize {
        let picture = |bins| draw_all(&[Histogram { title: String::new(), bins }]);
        let number = Family::ALL.iter().position(|&f| f == family).unwrap();
        let color = Histogram::legend()[number].1;
        // Without heads only the legend has the colour.
        picture(bins(&[heads.to_vec()])).area(color) - picture(bins(&[])).area(color)
    }

    #[test]
    fn a_head_is_in_the_bin_that_begins_at_its_error() {
        let heads =
            [head("dense", 0.0), head("a-shape:64,640", 1e-3), head("block-sparse:9", 2.5), head("dense", 0.02)];
        let found = bins(&[heads[..2].to_vec(), heads[2..].to_vec()]);
        assert_eq!(found.iter().map(Bin::heads).collect::<Vec<_>>(), [1, 0, 1, 0, 1, 0, 1]);
        assert_eq!((found[2].from, found[2].to, found[2].of_family), (1e-3, 3e-3, [0, 1, 0, 0, 0]));
        assert_eq!((found[6].to, found[6].of_family), (f64::INFINITY, [0, 0, 0, 0, 1]));
    }

    #[test]
    fn bars_are_as_tall_as_their_heads_are_many() {
        let blocks = head("block-sparse:9", 0.5);
        let one = area(Family::BlockSparse, &[blocks, head("dense", 0.0), head("dense", 0.0)]);
        let both = [blocks, blocks, head("dense", 0.0)];
        // The tallest bar is full: one head of two is half of it.
        assert!(one > 1000 && area(Family::BlockSparse, &both) == 2 * one, "{one}");
        // In one bin, on each other.
        let stacked = [head("a-shape:64,640", 0.5), blocks];
        assert_eq!((area(Family::AShape, &stacked), area(Family::BlockSparse, &stacked)), (one, one));
        assert_eq!(area(Family::Slash, &both), 0);
    }
}

//! A grid of coloured cells with labels: scores by length and depth, patterns or recall by layer and head. And figures under each other.

use crate::canvas::{Canvas, Color, TEXT_HEIGHT};

/// A part of a picture.
pub trait Figure {
    /// Width and height.
    fn size(&self) -> (usize, usize);
    /// Draws it with its upper left corner at `x` and `y`.
    fn draw_at(&self, canvas: &mut Canvas, x: usize, y: usize);
}

impl<F: Figure + ?Sized> Figure for Box<F> {
    fn size(&self) -> (usize, usize) {
        (**self).size()
    }

    fn draw_at(&self, canvas: &mut Canvas, x: usize, y: usize) {
        (**self).draw_at(canvas, x, y);
    }
}

/// What a cell shows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Cell {
    /// Nothing is known of it.
    Empty,
    /// A share from 0 (red) over one half (yellow) to 1 (green).
    Value(f64),
    /// One of the map's categories, by number.
    Category(usize),
}

/// A grid of cells.
#[derive(Debug, Clone, Default)]
pub struct HeatMap {
    /// The line above it.
    pub title: String,
    /// What the rows are.
    pub row_title: String,
    /// What the columns are.
    pub column_title: String,
    /// A label a row, from above.
    pub rows: Vec<String>,
    /// A label a column, from the left.
    pub columns: Vec<String>,
    /// Row by row; cells that are missing at the end are empty.
    pub cells: Vec<Cell>,
    /// Names of the categories; they get their colours in this order.
    pub categories: Vec<String>,
    /// Write the values into the cells, as percentages.
    pub numbers: bool,
}

const MARGIN: usize = 16;
/// Between a figure's parts.
pub const GAP: usize = 8;
const LEAST_WIDTH: usize = 26;
const CELL_HEIGHT: usize = TEXT_HEIGHT + 6;
const EMPTY: Color = [225; 3];
/// Colours that differ in lightness too (after Okabe and Ito), so that they are told apart by everyone and in print.
const CATEGORIES: [Color; 7] =
    [[0, 114, 178], [230, 159, 0], [0, 158, 115], [204, 121, 167], [86, 180, 233], [213, 94, 0], [240, 228, 66]];
/// Cells of the scale under a map of values.
const SCALE: usize = 11;

impl HeatMap {
    /// Width of a cell: all labels of the columns fit.
    fn cell_width(&self) -> usize {
        let widest = self.columns.iter().map(|label| Canvas::text_width(label)).max().unwrap_or(0);
        (widest + GAP).max(LEAST_WIDTH).max(if self.numbers { Canvas::text_width("100") + GAP } else { 0 })
    }

    /// Where the cells begin, from the map's left edge.
    fn left(&self) -> usize {
        let labels = self.rows.iter().map(|label| Canvas::text_width(label)).max().unwrap_or(0);
        labels.max(Canvas::text_width(&self.row_title)) + GAP
    }

    /// What the colours mean.
    fn legend(&self) -> Vec<(String, Color)> {
        let mut legend = categories(&self.categories);
        if self.cells.iter().any(|cell| matches!(cell, Cell::Value(_))) {
            let step = |i: usize| i as f64 / (SCALE - 1) as f64;
            legend.extend((0..SCALE).step_by(5).map(|i| (format!("{:.0} %", 100.0 * step(i)), shade(step(i)))));
        }
        legend
    }
}

impl Figure for HeatMap {
    fn size(&self) -> (usize, usize) {
        let cells = self.left() + self.columns.len() * self.cell_width();
        let texts = [Canvas::text_width(&self.title), self.left() + Canvas::text_width(&self.column_title)];
        let width = texts.into_iter().chain([cells, legend_width(&self.legend())]).max().unwrap_or(0);
        // Title, column title, column labels, cells, legend.
        (width, 3 * (TEXT_HEIGHT + GAP) + self.rows.len() * CELL_HEIGHT + GAP + CELL_HEIGHT)
    }

    fn draw_at(&self, canvas: &mut Canvas, x: usize, y: usize) {
        let (width, left, line) = (self.cell_width(), x + self.left(), TEXT_HEIGHT + GAP);
        canvas.text(x, y, &self.title);
        canvas.text(left, y + line, &self.column_title);
        canvas.text(x, y + 2 * line, &self.row_title);
        for (i, label) in self.columns.iter().enumerate() {
            canvas.text(left + i * width + (width - Canvas::text_width(label)) / 2, y + 2 * line, label);
        }
        let top = y + 3 * line - GAP / 2;
        for (row, label) in self.rows.iter().enumerate() {
            let at = top + row * CELL_HEIGHT;
            canvas.text(left - GAP - Canvas::text_width(label), at + 2, label);
            for column in 0..self.columns.len() {
                let cell = self.cells.get(row * self.columns.len() + column).copied().unwrap_or(Cell::Empty);
                let cell_left = left + column * width;
                canvas.fill(cell_left, at, width - 1, CELL_HEIGHT - 1, color(cell));
                if let (true, Cell::Value(value)) = (self.numbers, cell) {
                    let text = format!("{:.0}", 100.0 * value);
                    canvas.text(cell_left + width.saturating_sub(Canvas::text_width(&text)) / 2, at + 2, &text);
                }
            }
        }
        draw_legend(canvas, x, top + self.rows.len() * CELL_HEIGHT + GAP, &self.legend());
    }
}

/// Draws figures under each other; save the canvas as a PNG file.
pub fn draw_all<F: Figure>(figures: &[F]) -> Canvas {
    let sizes: Vec<_> = figures.iter().map(Figure::size).collect();
    let width = sizes.iter().map(|size| size.0).max().unwrap_or(0);
    let height: usize = sizes.iter().map(|size| size.1 + MARGIN).sum();
    let mut canvas = Canvas::new(width + 2 * MARGIN, height + MARGIN, [255; 3]);
    let mut top = MARGIN;
    for (figure, (_, height)) in figures.iter().zip(sizes) {
        figure.draw_at(&mut canvas, MARGIN, top);
        top += height + MARGIN;
    }
    canvas
}

/// Categories with their colours.
pub fn categories(names: &[String]) -> Vec<(String, Color)> {
    names.iter().enumerate().map(|(number, name)| (name.clone(), category(number))).collect()
}

/// Width of a line of names with their colours.
pub fn legend_width(legend: &[(String, Color)]) -> usize {
    legend.iter().map(|(name, _)| entry_width(name)).sum()
}

/// Draws a line of names with their colours.
pub fn draw_legend(canvas: &mut Canvas, mut x: usize, y: usize, legend: &[(String, Color)]) {
    for (name, color) in legend {
        canvas.fill(x, y, TEXT_HEIGHT, TEXT_HEIGHT, *color);
        canvas.text(x + TEXT_HEIGHT + GAP / 2, y, name);
        x += entry_width(name);
    }
}

fn entry_width(name: &str) -> usize {
    TEXT_HEIGHT + GAP / 2 + Canvas::text_width(name) + 2 * GAP
}

fn color(cell: Cell) -> Color {
    match cell {
        Cell::Value(value) if value.is_finite() => shade(value.clamp(0.0, 1.0)),
        Cell::Empty | Cell::Value(_) => EMPTY,
        Cell::Category(number) => category(number),
    }
}

/// The colour of a category; from the eighth on they come again, darker.
fn category(number: usize) -> Color {
    let darker = 1 + number / CATEGORIES.len();
    CATEGORIES[number % CATEGORIES.len()].map(|part| (part as usize / darker) as u8)
}

/// Red, yellow, green.
fn shade(value: f64) -> Color {
    const STOPS: [[f64; 3]; 3] = [[214.0, 72.0, 62.0], [250.0, 216.0, 104.0], [92.0, 176.0, 112.0]];
    let at = 2.0 * value;
    let (from, to) = if at < 1.0 { (STOPS[0], STOPS[1]) } else { (STOPS[1], STOPS[2]) };
    let share = if at < 1.0 { at } else { at - 1.0 };
    std::array::from_fn(|i| (from[i] + (to[i] - from[i]) * share).round() as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map() -> HeatMap {
        HeatMap {
            title: "a title that is wider than all of the cells below it".into(),
            row_title: "layer".into(),
            column_title: "head".into(),
            rows: vec!["0".into(), "1".into()],
            columns: vec!["0".into(), "1".into(), "a long label".into()],
            cells: vec![Cell::Value(0.0), Cell::Value(1.0), Cell::Value(f64::NAN), Cell::Category(9)],
            categories: vec!["vertical-slash".into()],
            numbers: true,
        }
    }

    #[test]
    fn cells_have_the_colours_of_their_values() {
        assert_eq!(color(Cell::Value(0.0)), [214, 72, 62]);
        assert_eq!(color(Cell::Value(0.5)), [250, 216, 104]);
        assert_eq!(color(Cell::Value(7.0)), [92, 176, 112]);
        assert_eq!(color(Cell::Value(f64::NAN)), EMPTY);
        assert_eq!(color(Cell::Category(1)), CATEGORIES[1]);
        assert_ne!(color(Cell::Category(8)), CATEGORIES[1]);
    }

    #[test]
    fn maps_are_drawn_whatever_they_hold() {
        let folder = tempfile::tempdir().unwrap();
        for (name, maps) in [("one", vec![map()]), ("two", vec![map(), HeatMap::default()])] {
            let path = folder.path().join(name);
            draw_all(&maps).save(&path).unwrap();
            assert_eq!(std::fs::read(&path).unwrap()[..8], *b"\x89PNG\r\n\x1a\n");
        }
        let (width, height) = map().size();
        assert!(width >= Canvas::text_width(&map().title) && height > 2 * CELL_HEIGHT);
    }
}

//! A small picture: pixels, labels in a bitmap font (so that no font has to be installed), PNG.

use std::path::Path;

use anyhow::Context;
use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster, get_raster_width};

/// Red, green, blue.
pub type Color = [u8; 3];

/// Height of a line of text.
pub const TEXT_HEIGHT: usize = RasterHeight::Size16.val();

/// An RGB picture.
pub struct Canvas {
    width: usize,
    height: usize,
    pixels: Vec<u8>,
}

impl Canvas {
    /// A picture of one colour.
    pub fn new(width: usize, height: usize, color: Color) -> Self {
        Canvas { width, height, pixels: color.repeat(width * height) }
    }

    /// Sets a pixel; outside the picture nothing happens.
    pub fn set(&mut self, x: usize, y: usize, color: Color) {
        if x < self.width && y < self.height {
            let at = 3 * (y * self.width + x);
            self.pixels[at..at + 3].copy_from_slice(&color);
        }
    }

    /// Pixels of a colour.
    #[cfg(test)]
    pub fn area(&self, color: Color) -> usize {
        self.pixels.chunks_exact(3).filter(|pixel| **pixel == color).count()
    }

    /// Takes light from a pixel: 255 makes it black.
    fn darken(&mut self, x: usize, y: usize, ink: u8) {
        if x < self.width && y < self.height {
            let at = 3 * (y * self.width + x);
            for part in &mut self.pixels[at..at + 3] {
                *part = (u16::from(*part) * u16::from(255 - ink) / 255) as u8;
            }
        }
    }

    /// Fills a rectangle.
    pub fn fill(&mut self, x: usize, y: usize, width: usize, height: usize, color: Color) {
        for row in y..y + height {
            for column in x..x + width {
                self.set(column, row, color);
            }
        }
    }

    /// Writes a line of text, black on what is there.
    pub fn text(&mut self, x: usize, y: usize, text: &str) {
        let step = get_raster_width(FontWeight::Regular, RasterHeight::Size16);
        for (i, c) in text.chars().enumerate() {
            let raster = get_raster(c, FontWeight::Regular, RasterHeight::Size16)
                .or_else(|| get_raster('?', FontWeight::Regular, RasterHeight::Size16));
            let Some(raster) = raster else { continue };
            for (dy, row) in raster.rows().enumerate() {
                for (dx, &ink) in row.iter().enumerate().filter(|&(_, &ink)| ink > 0) {
                    self.darken(x + i * step + dx, y + dy, ink);
                }
            }
        }
    }

    /// Width of a line of text.
    pub fn text_width(text: &str) -> usize {
        text.chars().count() * get_raster_width(FontWeight::Regular, RasterHeight::Size16)
    }

    /// Writes the picture to a file.
    pub fn save(&self, path: &Path) -> anyhow::Result<()> {
        let name = || path.display().to_string();
        let file = std::fs::File::create(path).with_context(name)?;
        let (width, height) = (u32::try_from(self.width)?, u32::try_from(self.height)?);
        let mut encoder = png::Encoder::new(std::io::BufWriter::new(file), width, height);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        let mut writer = encoder.write_header().with_context(name)?;
        writer.write_image_data(&self.pixels).with_context(name)?;
        writer.finish().with_context(name)
    }
}

//! The two kinds of picture: an RGB image and a map of train ids.

use crate::{Error, Result};

/// The train id of pixels that count nowhere: not in a loss, not in a metric.
pub const IGNORE: u8 = 255;

/// An 8-bit RGB image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RgbImage {
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// Row by row from the top, three bytes R, G, B per pixel: `height · width · 3` bytes.
    pub pixels: Vec<u8>,
}

/// A map of train ids, one byte per pixel; [`IGNORE`] (255) is ignored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelMap {
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// Row by row from the top: `height · width` train ids.
    pub ids: Vec<u8>,
}

impl RgbImage {
    /// Takes `height · width · 3` bytes.
    ///
    /// # Errors
    /// Param where the number of bytes is another or a side is 0.
    pub fn new(width: usize, height: usize, pixels: Vec<u8>) -> Result<Self> {
        if width == 0 || height == 0 || pixels.len() != width * height * 3 {
            let got = pixels.len();
            return Err(Error::param("pixels", format!("expected {width}x{height}x3 bytes, all > 0, got {got}")));
        }
        Ok(Self { width, height, pixels })
    }

    /// The colour at column `x`, row `y`; black outside.
    #[must_use]
    pub fn pixel(&self, x: usize, y: usize) -> [u8; 3] {
        let start = (y * self.width + x) * 3;
        match self.pixels.get(start..start + 3) {
            Some(&[r, g, b]) if x < self.width => [r, g, b],
            _ => [0; 3],
        }
    }
}

impl LabelMap {
    /// Takes `height · width` train ids.
    ///
    /// # Errors
    /// Param where the number of ids is another or a side is 0.
    pub fn new(width: usize, height: usize, ids: Vec<u8>) -> Result<Self> {
        if width == 0 || height == 0 || ids.len() != width * height {
            let got = ids.len();
            return Err(Error::param("ids", format!("expected {width}x{height} ids, all > 0, got {got}")));
        }
        Ok(Self { width, height, ids })
    }

    /// The labels painted in their classes' colours; ignored and unknown ids are black.
    #[must_use]
    pub fn colourise(&self, colours: &[[u8; 3]]) -> RgbImage {
        let pixels = self.ids.iter().flat_map(|&id| colours.get(usize::from(id)).copied().unwrap_or([0; 3])).collect();
        RgbImage { width: self.width, height: self.height, pixels }
    }
}

/// The image with its labels' colours laid over it: `(1 − alpha) · image + alpha · colour`; ignored pixels keep the
/// image.
///
/// # Errors
/// Param where the sizes differ or `alpha` is not in 0–1.
pub fn overlay(image: &RgbImage, labels: &LabelMap, colours: &[[u8; 3]], alpha: f32) -> Result<RgbImage> {
    if (image.width, image.height) != (labels.width, labels.height) {
        let (a, b) = (format!("{}x{}", image.width, image.height), format!("{}x{}", labels.width, labels.height));
        return Err(Error::param("labels", format!("expected the image's size {a}, got {b}")));
    }
    if !(0.0..=1.0).contains(&alpha) {
        return Err(Error::param("alpha", format!("expected 0 to 1, got {alpha}")));
    }
    let mut pixels = image.pixels.clone();
    for (pixel, &id) in pixels.chunks_exact_mut(3).zip(&labels.ids) {
        if let Some(colour) = colours.get(usize::from(id)) {
            for (value, &over) in pixel.iter_mut().zip(colour) {
                *value = (f32::from(*value) * (1.0 - alpha) + f32::from(over) * alpha).round() as u8;
            }
        }
    }
    Ok(RgbImage { width: image.width, height: image.height, pixels })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlay_mixes_classes_and_keeps_the_image_under_ignored_pixels() -> Result<()> {
        let image = RgbImage::new(2, 1, vec![100, 100, 100, 40, 50, 60])?;
        let labels = LabelMap::new(2, 1, vec![0, IGNORE])?;
        let mixed = overlay(&image, &labels, &[[200, 0, 100]], 0.5)?;
        assert_eq!(mixed.pixels, [150, 50, 100, 40, 50, 60]);
        assert_eq!(labels.colourise(&[[1, 2, 3]]).pixels, [1, 2, 3, 0, 0, 0]);
        Ok(())
    }

    #[test]
    fn wrong_sizes_are_refused() {
        assert!(RgbImage::new(2, 2, vec![0; 11]).is_err());
        assert!(LabelMap::new(0, 2, vec![]).is_err());
        let image = RgbImage { width: 1, height: 1, pixels: vec![0; 3] };
        let labels = LabelMap { width: 2, height: 1, ids: vec![0; 2] };
        let message = overlay(&image, &labels, &[], 0.5).err().map(|error| error.to_string());
        assert_eq!(message.as_deref(), Some("labels: expected the image's size 1x1, got 2x1"));
    }
}

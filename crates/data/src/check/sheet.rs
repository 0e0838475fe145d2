//! The contact sheet: images beside their labels.

use crate::dataset::Pair;
use crate::label_code::LabelCode;
use crate::{Classes, LabelMap, RgbImage, overlay};

/// Width of one view in pixels; its height follows from the first image.
const VIEW: usize = 240;
/// Pairs of views side by side, and rows.
const COLUMNS: usize = 3;
const ROWS: usize = 5;
const GAP: usize = 4;
/// Weight of the class colour.
const ALPHA: f32 = 0.6;

/// Evenly spaced samples of all splits: each image, and beside it the same with its labels laid over it. Ignored pixels
/// keep the image. None where nothing can be read.
pub(super) fn draw(parts: &[(&[Pair], &LabelCode)], classes: &Classes) -> Option<RgbImage> {
    let all: Vec<(&Pair, &LabelCode)> =
        parts.iter().flat_map(|(pairs, code)| pairs.iter().map(move |pair| (pair, *code))).collect();
    let count = all.len().min(COLUMNS * ROWS);
    let mut tiles: Vec<(RgbImage, RgbImage)> = Vec::new();
    let mut height = 0;
    for number in 0..count {
        let (pair, code) = all[(2 * number + 1) * all.len() / (2 * count)];
        let Ok(sample) = pair.read(code) else { continue };
        if height == 0 {
            height = (VIEW * sample.image.height / sample.image.width).clamp(1, 2 * VIEW);
        }
        let (image, labels) = shrink(&sample.image, &sample.labels, height);
        let painted = overlay(&image, &labels, &classes.colours, ALPHA).ok()?;
        tiles.push((image, painted));
    }
    if tiles.is_empty() {
        return None;
    }
    let rows = tiles.len().div_ceil(COLUMNS);
    let (wide, tall) = (COLUMNS * (2 * VIEW + GAP) + GAP, rows * (height + GAP) + GAP);
    let mut sheet = RgbImage { width: wide, height: tall, pixels: vec![255; wide * tall * 3] };
    for (place, (image, painted)) in tiles.iter().enumerate() {
        let (x, y) = (GAP + place % COLUMNS * (2 * VIEW + GAP), GAP + place / COLUMNS * (height + GAP));
        paste(&mut sheet, image, x, y);
        paste(&mut sheet, painted, x + VIEW, y);
    }
    Some(sheet)
}

/// Fits image and labels into a view: the mean colour of each cell, the label at its centre.
fn shrink(image: &RgbImage, labels: &LabelMap, height: usize) -> (RgbImage, LabelMap) {
    let scale = (image.width as f64 / VIEW as f64).max(image.height as f64 / height as f64);
    let (mut pixels, mut ids) = (vec![255u8; VIEW * height * 3], vec![crate::IGNORE; VIEW * height]);
    for y in 0..height {
        for x in 0..VIEW {
            let (left, top) = ((x as f64 * scale) as usize, (y as f64 * scale) as usize);
            let right = (((x + 1) as f64 * scale) as usize).max(left + 1).min(image.width);
            let bottom = (((y + 1) as f64 * scale) as usize).max(top + 1).min(image.height);
            if left >= right || top >= bottom {
                continue;
            }
            let mut sum = [0usize; 3];
            for row in top..bottom {
                for pixel in
                    image.pixels[(row * image.width + left) * 3..(row * image.width + right) * 3].chunks_exact(3)
                {
                    sum.iter_mut().zip(pixel).for_each(|(sum, value)| *sum += usize::from(*value));
                }
            }
            let cell = (right - left) * (bottom - top);
            let at = y * VIEW + x;
            pixels[at * 3..at * 3 + 3].iter_mut().zip(sum).for_each(|(value, sum)| *value = (sum / cell) as u8);
            ids[at] = labels.ids[(top + bottom) / 2 * labels.width + (left + right) / 2];
        }
    }
    (RgbImage { width: VIEW, height, pixels }, LabelMap { width: VIEW, height, ids })
}

fn paste(sheet: &mut RgbImage, tile: &RgbImage, x: usize, y: usize) {
    for (row, line) in tile.pixels.chunks_exact(tile.width * 3).enumerate() {
        let start = ((y + row) * sheet.width + x) * 3;
        sheet.pixels[start..start + line.len()].copy_from_slice(line);
    }
}

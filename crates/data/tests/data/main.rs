//! Tests of the crate as a stranger uses it: files on disk in, arrays or one-line errors out.

#![allow(clippy::expect_used, clippy::panic, reason = "clippy's exception for tests leaves out their helper functions")]

mod augmentation;
mod checking;
mod datasets;
mod decoding;
#[cfg(feature = "download")]
mod downloads;
mod import;
mod loading;
mod miniatures;
mod mutants;
mod published;
mod sbd;
mod streets;
mod zips;

use std::path::Path;

use dsd_data::{LabelMap, RgbImage, write_palette_png, write_rgb_png};

/// The message of a result that must be an error, after checking that it is one line.
fn message<T>(result: dsd_data::Result<T>) -> String {
    let text = result.err().map(|error| error.to_string()).expect("an error was expected");
    assert!(!text.contains('\n'), "more than one line: {text}");
    text
}

/// An image whose pixels all differ from their neighbours.
fn ramp(width: usize, height: usize) -> RgbImage {
    let pixel = |at: usize| [(at % width * 7 % 256) as u8, (at / width * 5 % 256) as u8, (at * 3 % 256) as u8];
    RgbImage::new(width, height, (0..width * height).flat_map(pixel).collect()).expect("sizes fit")
}

/// Writes an image and its label map, all of one id.
fn write_pair(image: &Path, labels: &Path, width: usize, height: usize, id: u8) {
    for path in [image, labels] {
        std::fs::create_dir_all(path.parent().expect("has a parent")).expect("folder");
    }
    write_rgb_png(image, &ramp(width, height)).expect("image");
    let map = LabelMap::new(width, height, vec![id; width * height]).expect("sizes fit");
    write_palette_png(labels, &map, &[[1, 2, 3], [4, 5, 6]]).expect("labels");
}

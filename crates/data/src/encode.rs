//! Writing PNG files, whole or not at all.

use std::fs;
use std::path::Path;

use crate::{Error, LabelMap, Result, RgbImage};

/// Writes labels as an indexed PNG whose palette holds the classes' colours, as predictions are stored: entry i is
/// class i, every other entry (255 among them) is black.
///
/// # Errors
/// File where it cannot be written; Param where there are more than 256 colours.
pub fn write_palette_png(path: &Path, labels: &LabelMap, colours: &[[u8; 3]]) -> Result<()> {
    if colours.len() > 256 {
        return Err(Error::param("colours", format!("expected at most 256, got {}", colours.len())));
    }
    let mut palette = vec![0u8; 256 * 3];
    for (entry, colour) in palette.chunks_exact_mut(3).zip(colours) {
        entry.copy_from_slice(colour);
    }
    write(path, labels.width, labels.height, &labels.ids, png::ColorType::Indexed, Some(palette))
}

/// Writes labels as an 8-bit grey PNG whose values are `label_ids[train id]`: prediction files for a dataset's own
/// evaluator. A train id beyond the list, 255 among them, stays what it is.
///
/// # Errors
/// File where it cannot be written.
pub fn write_grey_png(path: &Path, labels: &LabelMap, label_ids: &[u8]) -> Result<()> {
    let ids: Vec<u8> = labels.ids.iter().map(|&id| label_ids.get(usize::from(id)).copied().unwrap_or(id)).collect();
    write(path, labels.width, labels.height, &ids, png::ColorType::Grayscale, None)
}

/// Writes an 8-bit RGB PNG.
///
/// # Errors
/// File where it cannot be written.
pub fn write_rgb_png(path: &Path, image: &RgbImage) -> Result<()> {
    write(path, image.width, image.height, &image.pixels, png::ColorType::Rgb, None)
}

fn write(
    path: &Path,
    width: usize,
    height: usize,
    bytes: &[u8],
    colour: png::ColorType,
    palette: Option<Vec<u8>>,
) -> Result<()> {
    let size =
        |side: usize| u32::try_from(side).map_err(|_| Error::file(path, format!("cannot write a side of {side}")));
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, size(width)?, size(height)?);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_color(colour);
    if let Some(palette) = palette {
        encoder.set_palette(palette);
    }
    let failed = |error: png::EncodingError| Error::file(path, format!("cannot encode: {error}"));
    let mut writer = encoder.write_header().map_err(failed)?;
    writer.write_image_data(bytes).map_err(failed)?;
    writer.finish().map_err(failed)?;
    write_whole(path, &file)
}

/// Writes beside the target and renames, so that nobody ever sees half a file.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut name = path.file_name().ok_or_else(|| Error::file(path, "is not a file name"))?.to_os_string();
    name.push(format!(".{}.part", std::process::id()));
    let part = path.with_file_name(name);
    let result = fs::write(&part, bytes).and_then(|()| fs::rename(&part, path));
    result.map_err(|error| {
        let _ = fs::remove_file(&part);
        Error::file(path, format!("cannot write: {error}; check that its folder exists and has room"))
    })
}

//! JPEG decoding that never invents pixels.
//!
//! zune-jpeg 0.5 fills what a truncated file lacks with grey and, as the image crate calls it, says nothing. Here the
//! marker structure is walked to the end-of-image marker first, and the decoder runs in strict mode. What stays unseen
//! is coded data that was shortened in the middle and still ends with its marker: no copy or download does that.

use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use crate::RgbImage;
use crate::decode::{MAX_SIDE, check_size};

/// Decodes a whole JPEG to RGB; the error is the reason without the file's name.
pub(crate) fn decode(bytes: &[u8]) -> Result<RgbImage, String> {
    check_structure(bytes)?;
    let options = DecoderOptions::default()
        .set_strict_mode(true)
        .set_max_width(MAX_SIDE)
        .set_max_height(MAX_SIDE)
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    let damaged = |error: zune_jpeg::errors::DecodeErrors| format!("damaged JPEG: {error}");
    decoder.decode_headers().map_err(damaged)?;
    let info = decoder.info().ok_or("damaged JPEG: no image header")?;
    let (width, height) = (usize::from(info.width), usize::from(info.height));
    check_size(width, height)?;
    let pixels = decoder.decode().map_err(damaged)?;
    RgbImage::new(width, height, pixels).map_err(|error| format!("unsupported kind of JPEG: {error}"))
}

/// Walks from marker to marker until the end-of-image marker.
fn check_structure(bytes: &[u8]) -> Result<(), String> {
    let truncated = |at: usize| {
        let size = bytes.len();
        Err(format!(
            "truncated JPEG: the file ends at byte {size} inside the part that starts at byte {at}, before its end marker; copy or download it again"
        ))
    };
    if bytes.get(..2) != Some(&[0xff, 0xd8]) {
        return Err("not a JPEG file".into());
    }
    let mut at = 2;
    loop {
        let Some(&lead) = bytes.get(at) else { return truncated(at) };
        if lead != 0xff {
            return Err(format!("damaged JPEG: byte {at} is {lead:#04x}, expected a marker"));
        }
        let Some(&marker) = bytes.get(at + 1) else { return truncated(at) };
        match marker {
            0xff => at += 1,               // Fill byte.
            0x01 | 0xd0..=0xd8 => at += 2, // Markers without a body.
            0xd9 => return Ok(()),         // End of image.
            _ => {
                let Some(&[high, low]) = bytes.get(at + 2..at + 4) else { return truncated(at) };
                let end = at + 2 + usize::from(u16::from_be_bytes([high, low])).max(2);
                if end > bytes.len() {
                    return truncated(at);
                }
                // A start of scan is followed by coded data, in which 0xff is escaped by 0x00.
                let next = if marker == 0xda { scan_end(bytes, end) } else { Some(end) };
                match next {
                    Some(next) => at = next,
                    None => return truncated(at),
                }
            }
        }
    }
}

/// Position of the first marker after coded data that is no restart marker.
fn scan_end(bytes: &[u8], from: usize) -> Option<usize> {
    let coded = bytes.get(from..)?;
    let is_marker = |pair: &[u8]| matches!(pair, [0xff, marker] if !matches!(marker, 0x00 | 0xd0..=0xd7 | 0xff));
    coded.windows(2).position(is_marker).map(|offset| from + offset)
}

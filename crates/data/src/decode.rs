//! Reading images and label maps, with limits and with reasons.

use std::fs;
use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use png::{BitDepth, ColorType, Transformations};

use crate::{Error, IdMap, LabelMap, Result, RgbImage, jpeg};

/// Largest width and height read, in pixels.
pub(crate) const MAX_SIDE: usize = 16_384;
/// Largest number of pixels read: a 16384² image would need 0.8 GB; this is 100 megapixels.
const MAX_PIXELS: usize = 100 << 20;
/// Largest file read, in bytes.
const MAX_FILE: u64 = 512 << 20;
const PNG_MAGIC: &[u8] = b"\x89PNG\r\n\x1a\n";

/// Reads a PNG or JPEG file as 8-bit RGB. Transparency is dropped, grey becomes three equal channels, 16 bits become 8.
///
/// # Errors
/// File, naming the path: missing, neither PNG nor JPEG, larger than 16384 pixels a side or 100 megapixels, damaged
/// or cut short.
pub fn read_image(path: &Path) -> Result<RgbImage> {
    let bytes = read_file(path)?;
    guarded(|| decode_image(&bytes)).map_err(|reason| Error::file(path, reason))
}

/// Decodes the bytes of a PNG or JPEG; the error is the reason without a file's name.
pub(crate) fn decode_image(bytes: &[u8]) -> Result<RgbImage, String> {
    if bytes.starts_with(PNG_MAGIC) {
        decode_rgb_png(bytes)
    } else if bytes.starts_with(&[0xff, 0xd8]) {
        jpeg::decode(bytes)
    } else if bytes.is_empty() {
        Err("the file is empty".into())
    } else {
        Err("neither a PNG nor a JPEG file; convert it to one of them".into())
    }
}

/// Reads a PNG label map and turns its raw ids into train ids.
///
/// Grey PNGs of 1, 2, 4, 8 bits (16 where every value is ≤ 255) and palette PNGs are read as *indices*; a palette's
/// colours are never looked at.
///
/// # Errors
/// File, naming the path: missing, not a PNG, an RGB mask, damaged, or an id that `ids` does not know (with the value,
/// its first position and the ids that are allowed).
pub fn read_labels(path: &Path, ids: &IdMap) -> Result<LabelMap> {
    let mut labels = read_indices(path)?;
    ids.apply(&mut labels).map_err(|reason| Error::file(path, reason))?;
    Ok(labels)
}

/// Reads a PNG label map as it is: raw ids.
pub(crate) fn read_indices(path: &Path) -> Result<LabelMap> {
    let bytes = read_file(path)?;
    guarded(|| decode_indices(&bytes)).map_err(|reason| Error::file(path, reason))
}

/// A decoder that panics on a damaged file gives a reason like any other.
pub(crate) fn guarded<T>(decode: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    let outcome = catch_unwind(AssertUnwindSafe(decode));
    outcome.unwrap_or_else(|_| Err("its decoder broke off; the file is damaged, replace it".to_string()))
}

/// Reads a whole file of bounded size.
pub(crate) fn read_file(path: &Path) -> Result<Vec<u8>> {
    let describe = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => Error::file(path, "no such file; check the dataset's folder and lists"),
        _ => Error::file(path, format!("cannot read: {error}")),
    };
    let facts = fs::metadata(path).map_err(describe)?;
    if !facts.is_file() {
        return Err(Error::file(path, "is not a regular file"));
    }
    if facts.len() > MAX_FILE {
        return Err(Error::file(path, format!("has {} bytes, the limit is {MAX_FILE}", facts.len())));
    }
    fs::read(path).map_err(describe)
}

/// Refuses sizes beyond the limits.
pub(crate) fn check_size(width: usize, height: usize) -> Result<(), String> {
    if width == 0 || height == 0 || width > MAX_SIDE || height > MAX_SIDE || width * height > MAX_PIXELS {
        return Err(format!(
            "is {width}x{height} pixels; at most {MAX_SIDE} a side and {MAX_PIXELS} in all can be read"
        ));
    }
    Ok(())
}

/// Raw frame of a PNG after the transformations: (bytes, colour type, bit depth, width, height, bytes per row).
struct Frame {
    bytes: Vec<u8>,
    colour: ColorType,
    depth: BitDepth,
    width: usize,
    height: usize,
    row: usize,
}

fn decode_png(bytes: &[u8], transformations: Transformations) -> Result<Frame, String> {
    let damaged = |error: png::DecodingError| match error {
        png::DecodingError::IoError(ref io) if io.kind() == std::io::ErrorKind::UnexpectedEof => {
            format!(
                "truncated PNG: the file ends at byte {} before its data does; copy or download it again",
                bytes.len()
            )
        }
        other => format!("damaged PNG: {other}"),
    };
    let limits = png::Limits { bytes: MAX_FILE as usize };
    let mut decoder = png::Decoder::new_with_limits(Cursor::new(bytes), limits);
    decoder.set_transformations(transformations);
    decoder.set_ignore_text_chunk(true);
    let header = decoder.read_header_info().map_err(damaged)?;
    check_size(header.width as usize, header.height as usize)?;
    let mut reader = decoder.read_info().map_err(damaged)?;
    let size = reader.output_buffer_size().ok_or("damaged PNG: its size overflows")?;
    let mut buffer = vec![0; size];
    let info = reader.next_frame(&mut buffer).map_err(damaged)?;
    reader.finish().map_err(damaged)?;
    buffer.truncate(info.buffer_size());
    Ok(Frame {
        bytes: buffer,
        colour: info.color_type,
        depth: info.bit_depth,
        width: info.width as usize,
        height: info.height as usize,
        row: info.line_size,
    })
}

fn decode_rgb_png(bytes: &[u8]) -> Result<RgbImage, String> {
    let frame = decode_png(bytes, Transformations::normalize_to_color8())?;
    let pixels = match frame.colour {
        ColorType::Rgb => frame.bytes,
        ColorType::Rgba => frame.bytes.chunks_exact(4).flat_map(|pixel| [pixel[0], pixel[1], pixel[2]]).collect(),
        ColorType::Grayscale => frame.bytes.iter().flat_map(|&grey| [grey; 3]).collect(),
        ColorType::GrayscaleAlpha => frame.bytes.chunks_exact(2).flat_map(|pixel| [pixel[0]; 3]).collect(),
        ColorType::Indexed => return Err("damaged PNG: its palette is missing".into()),
    };
    RgbImage::new(frame.width, frame.height, pixels).map_err(|error| format!("damaged PNG: {error}"))
}

/// The raw indices of a label PNG; the error is the reason without the file's name.
fn decode_indices(bytes: &[u8]) -> Result<LabelMap, String> {
    if bytes.starts_with(&[0xff, 0xd8]) {
        return Err("is a JPEG; label maps must be PNG, since JPEG changes the ids".into());
    }
    if !bytes.starts_with(PNG_MAGIC) {
        return Err("not a PNG file; label maps must be index PNGs".into());
    }
    let frame = decode_png(bytes, Transformations::IDENTITY)?;
    match frame.colour {
        ColorType::Grayscale | ColorType::Indexed => {}
        ColorType::Rgb | ColorType::Rgba => {
            return Err("is an RGB colour mask, not an index map; convert each colour to its class id first \
                        (a one-channel or palette PNG)"
                .into());
        }
        ColorType::GrayscaleAlpha => {
            return Err("has an alpha channel; save the label map as a one-channel PNG".into());
        }
    }
    let ids = unpack(&frame)?;
    LabelMap::new(frame.width, frame.height, ids).map_err(|error| format!("damaged PNG: {error}"))
}

/// One byte per pixel from rows of 1, 2, 4, 8 or 16 bits per pixel, most significant first.
fn unpack(frame: &Frame) -> Result<Vec<u8>, String> {
    let bits = match frame.depth {
        BitDepth::Eight => return Ok(frame.bytes.clone()),
        BitDepth::Sixteen => return narrow(frame),
        BitDepth::One => 1,
        BitDepth::Two => 2,
        BitDepth::Four => 4,
    };
    let per_byte = 8 / bits;
    let mask = (1u8 << bits) - 1;
    let mut ids = Vec::with_capacity(frame.width * frame.height);
    for row in frame.bytes.chunks_exact(frame.row.max(1)) {
        for x in 0..frame.width {
            ids.push((row[x / per_byte] >> (8 - bits * (x % per_byte + 1))) & mask);
        }
    }
    Ok(ids)
}

fn narrow(frame: &Frame) -> Result<Vec<u8>, String> {
    let wide = |pair: &[u8]| u16::from_be_bytes([pair[0], pair[1]]);
    if let Some(index) = frame.bytes.chunks_exact(2).position(|pair| wide(pair) > 255) {
        let value = wide(&frame.bytes[2 * index..2 * index + 2]);
        let (x, y) = (index % frame.width, index / frame.width);
        return Err(format!("16-bit label {value} at column {x}, row {y}; ids must be ≤ 255"));
    }
    Ok(frame.bytes.chunks_exact(2).map(|pair| pair[1]).collect())
}

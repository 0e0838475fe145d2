//! Images and label maps are read exactly or refused by name.

use std::fs;
use std::path::Path;

use dsd_data::{IGNORE, IdMap, LabelMap, read_image, read_labels, write_palette_png, write_rgb_png};
use image::codecs::jpeg::JpegEncoder;

use crate::{message, ramp};

fn write_png(path: &Path, width: u32, height: u32, colour: png::ColorType, depth: png::BitDepth, bytes: &[u8]) {
    let mut encoder = png::Encoder::new(fs::File::create(path).expect("file"), width, height);
    encoder.set_color(colour);
    encoder.set_depth(depth);
    if colour == png::ColorType::Indexed {
        encoder.set_palette(vec![9; 48]);
    }
    encoder.write_header().expect("header").write_image_data(bytes).expect("data");
}

fn jpeg(width: usize, height: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    let image = ramp(width, height);
    let encoder = JpegEncoder::new_with_quality(&mut bytes, 95);
    encode(encoder, &image.pixels, width as u32, height as u32);
    bytes
}

fn encode(mut encoder: JpegEncoder<&mut Vec<u8>>, pixels: &[u8], width: u32, height: u32) {
    encoder.encode(pixels, width, height, image::ExtendedColorType::Rgb8).expect("encodes");
}

#[test]
fn grey_and_palette_label_maps_of_every_depth_are_read_as_indices() {
    let folder = tempfile::tempdir().expect("folder");
    let ids = IdMap::train_ids(255).expect("ids");
    use png::{BitDepth, ColorType};
    // Five pixels a row, so that rows of 1, 2 and 4 bits end inside a byte.
    let rows: [(ColorType, BitDepth, &[u8], [u8; 10]); 8] = [
        (ColorType::Grayscale, BitDepth::One, &[0b1011_0000, 0b0100_1000], [1, 0, 1, 1, 0, 0, 1, 0, 0, 1]),
        (
            ColorType::Grayscale,
            BitDepth::Two,
            &[0b0001_1011, 0b1100_0000, 0b0101_0101, 0b1000_0000],
            [0, 1, 2, 3, 3, 1, 1, 1, 1, 2],
        ),
        (ColorType::Grayscale, BitDepth::Four, &[0x01, 0x23, 0xf0, 0x99, 0x87, 0x60], [0, 1, 2, 3, 15, 9, 9, 8, 7, 6]),
        (ColorType::Grayscale, BitDepth::Eight, &[0, 1, 2, 3, 255, 5, 6, 7, 8, 9], [0, 1, 2, 3, 255, 5, 6, 7, 8, 9]),
        (
            ColorType::Indexed,
            BitDepth::Two,
            &[0b0001_1011, 0b1100_0000, 0b0101_0101, 0b1000_0000],
            [0, 1, 2, 3, 3, 1, 1, 1, 1, 2],
        ),
        (ColorType::Indexed, BitDepth::Four, &[0x01, 0x23, 0xf0, 0x99, 0x87, 0x60], [0, 1, 2, 3, 15, 9, 9, 8, 7, 6]),
        (ColorType::Indexed, BitDepth::Eight, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        (
            ColorType::Grayscale,
            BitDepth::Sixteen,
            &[0, 1, 0, 2, 0, 3, 0, 4, 0, 5, 0, 6, 0, 7, 0, 8, 0, 9, 0, 255],
            [1, 2, 3, 4, 5, 6, 7, 8, 9, 255],
        ),
    ];
    for (colour, depth, bytes, expected) in rows {
        let path = folder.path().join("labels.png");
        write_png(&path, 5, 2, colour, depth, bytes);
        let labels = read_labels(&path, &ids).unwrap_or_else(|error| panic!("{colour:?} {depth:?}: {error}"));
        assert_eq!(labels.ids, expected, "{colour:?} {depth:?}");
    }
}

#[test]
fn label_files_that_are_no_index_maps_say_what_they_are() {
    let folder = tempfile::tempdir().expect("folder");
    let ids = IdMap::train_ids(3).expect("ids");
    let path = folder.path().join("mask.png");
    write_rgb_png(&path, &ramp(4, 4)).expect("writes");
    let text = message(read_labels(&path, &ids));
    assert!(text.contains("mask.png: is an RGB colour mask"), "{text}");

    write_png(&path, 2, 1, png::ColorType::Grayscale, png::BitDepth::Sixteen, &[0, 1, 1, 4]);
    let text = message(read_labels(&path, &ids));
    assert!(text.contains("16-bit label 260 at column 1, row 0"), "{text}");

    write_png(&path, 2, 2, png::ColorType::Grayscale, png::BitDepth::Eight, &[0, 1, 2, 7]);
    let text = message(read_labels(&path, &ids));
    assert!(text.contains("label id 7 at column 1, row 1") && text.contains("0–2; ignored: 255"), "{text}");

    fs::write(&path, jpeg(8, 8)).expect("writes");
    assert!(message(read_labels(&path, &ids)).contains("is a JPEG"));
}

#[test]
fn a_jpeg_cut_at_any_place_is_an_error_and_never_a_grey_area() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("street.jpg");
    let whole = jpeg(64, 48);
    fs::write(&path, &whole).expect("writes");
    let image = read_image(&path).expect("the whole file decodes");
    assert_eq!((image.width, image.height), (64, 48));
    let mut tried = 0;
    for length in (3..whole.len()).step_by(37).chain([whole.len() - 2, whole.len() - 1]) {
        fs::write(&path, &whole[..length]).expect("writes");
        let text = message(read_image(&path));
        assert!(text.contains("street.jpg: ") && text.contains("JPEG"), "cut at {length}: {text}");
        tried += 1;
    }
    assert!(tried > 20, "only {tried} cuts");
}

#[test]
fn images_of_other_kinds_are_refused_by_name() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("a.png");
    assert!(message(read_image(&path)).contains("a.png: no such file"));
    fs::write(&path, b"GIF89a").expect("writes");
    assert!(message(read_image(&path)).contains("neither a PNG nor a JPEG"));
    fs::write(&path, b"").expect("writes");
    assert!(message(read_image(&path)).contains("empty"));
    assert!(message(read_image(folder.path())).contains("not a regular file"));
    // A header that promises 100 000 by 100 000 pixels costs no memory.
    write_rgb_png(&path, &ramp(4, 4)).expect("writes");
    let mut bytes = fs::read(&path).expect("reads");
    let whole = bytes.clone();
    bytes[16..24].copy_from_slice(&[0, 1, 0x86, 0xa0, 0, 1, 0x86, 0xa0]);
    fs::write(&path, &bytes).expect("writes");
    message(read_image(&path));
    fs::write(&path, &whole[..whole.len() - 20]).expect("writes");
    let text = message(read_image(&path));
    assert!(text.contains("a.png: ") && text.contains("PNG"), "{text}");
}

#[test]
fn what_is_written_is_read_back() {
    let folder = tempfile::tempdir().expect("folder");
    let image = ramp(13, 7);
    let path = folder.path().join("image.png");
    write_rgb_png(&path, &image).expect("writes");
    assert_eq!(read_image(&path).expect("reads"), image);
    let labels = LabelMap::new(3, 2, vec![0, 1, 2, IGNORE, 1, 0]).expect("sizes fit");
    write_palette_png(&path, &labels, &[[9, 9, 9]; 3]).expect("writes");
    assert_eq!(read_labels(&path, &IdMap::train_ids(3).expect("ids")).expect("reads"), labels);
    // Read as an image, the palette's colours show.
    assert_eq!(read_image(&path).expect("reads").pixel(0, 0), [9, 9, 9]);
    assert_eq!(fs::read_dir(folder.path()).expect("lists").count(), 1, "no part file is left");
    assert!(message(write_rgb_png(&folder.path().join("none/a.png"), &image)).contains("cannot write"));
}

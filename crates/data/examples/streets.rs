//! Renders contact sheets of the `streets` generator with their labels, and prints the classes' shares and the time
//! per image: `cargo run --release -p dsd-data --example streets -- OUT_DIR [SHEETS] [SEED] [WIDTH]`.

use std::path::PathBuf;
use std::time::Instant;

use dsd_data::{IGNORE, OpenOptions, RgbImage, open, write_rgb_png};

const COLUMNS: usize = 4;
const ROWS: usize = 3;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let out = PathBuf::from(arguments.next().ok_or("give the folder for the sheets")?);
    let sheets: usize = arguments.next().map_or(Ok(2), |text| text.parse())?;
    let seed: u64 = arguments.next().map_or(Ok(0), |text| text.parse())?;
    let width: usize = arguments.next().map_or(Ok(240), |text| text.parse())?;
    std::fs::create_dir_all(&out)?;
    let height = width * 3 / 4;
    let count = (sheets * COLUMNS * ROWS).max(200);
    let options = OpenOptions { seed, count, size: Some([height, width]), ..OpenOptions::default() };
    let dataset = open("streets", None, "train", &options)?;

    for sheet in 0..sheets {
        let (mut pictures, mut labels) = (blank(width, height), blank(width, height));
        for place in 0..COLUMNS * ROWS {
            let sample = dataset.sample(sheet * COLUMNS * ROWS + place)?;
            paste(&mut pictures, &sample.image, place);
            paste(&mut labels, &sample.labels.colourise(&dataset.classes().colours), place);
        }
        write_rgb_png(&out.join(format!("{sheet:02}-images.png")), &pictures)?;
        write_rgb_png(&out.join(format!("{sheet:02}-labels.png")), &labels)?;
    }

    let mut counts = [0u64; 256];
    let mut present = [0u64; 256];
    let start = Instant::now();
    for index in 0..dataset.len() {
        let mut here = [0u64; 256];
        dataset.sample(index)?.labels.ids.iter().for_each(|&id| here[usize::from(id)] += 1);
        for (id, count) in here.iter().enumerate() {
            counts[id] += count;
            present[id] += u64::from(*count > 0);
        }
    }
    let each = start.elapsed().as_secs_f64() * 1e3 / dataset.len() as f64;
    let total = (dataset.len() * width * height) as f64;
    for (id, name) in dataset.classes().names.iter().enumerate() {
        println!(
            "{name:12} {:.4} of pixels, in {:3} of {} images",
            counts[id] as f64 / total,
            present[id],
            dataset.len()
        );
    }
    println!("{:12} {:.4}", "void", counts[usize::from(IGNORE)] as f64 / total);
    println!("{each:.2} ms per image of {width}x{height}");
    Ok(())
}

fn blank(width: usize, height: usize) -> RgbImage {
    let (width, height) = (width * COLUMNS, height * ROWS);
    RgbImage { width, height, pixels: vec![0; width * height * 3] }
}

fn paste(sheet: &mut RgbImage, image: &RgbImage, place: usize) {
    let (left, top) = ((place % COLUMNS) * image.width, (place / COLUMNS) * image.height);
    for (y, row) in image.pixels.chunks_exact(image.width * 3).enumerate() {
        let start = ((top + y) * sheet.width + left) * 3;
        sheet.pixels[start..start + row.len()].copy_from_slice(row);
    }
}

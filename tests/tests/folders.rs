//! Miniature datasets on disk, and runs on them.

use std::fs;
use std::path::Path;

use crate::program::{TINY, json, succeed, text, train};

/// Pairs in a miniature dataset: all of them are in the first batch of [`on`].
pub(crate) const PAIRS: u32 = 4;
const WIDTH: u32 = 64;
const HEIGHT: u32 = 48;

/// Writes an image with a bright lower half.
fn write_image(path: &Path, shade: u32) {
    let pixel = |x: u32, y: u32| {
        let ground = if y >= HEIGHT / 2 { 120 } else { 0 };
        image::Rgb([(2 * x) as u8, (ground + 10 * shade) as u8, (3 * y) as u8])
    };
    image::RgbImage::from_fn(WIDTH, HEIGHT, pixel).save(path).unwrap();
}

/// Writes a label map of this size: id 1 in the lower half and 0 above, one pixel with `stray`.
pub(crate) fn write_labels(path: &Path, width: u32, height: u32, stray: u8) {
    let id = |x: u32, y: u32| if (x, y) == (5, 7) { stray } else { u8::from(y >= height / 2) };
    image::GrayImage::from_fn(width, height, |x, y| image::Luma([id(x, y)])).save(path).unwrap();
}

/// A `folder` dataset with two classes; the same pairs are `train` and `val`. Images have this extension.
pub(crate) fn write_folder(root: &Path, extension: &str) {
    fs::create_dir_all(root.join("images")).unwrap();
    fs::create_dir_all(root.join("labels")).unwrap();
    fs::write(root.join("classes.toml"), "names = [\"wall\", \"ground\"]\n").unwrap();
    let stems: Vec<String> = (0..PAIRS).map(|index| format!("view{index}")).collect();
    for (shade, stem) in (0..).zip(&stems) {
        write_image(&root.join(format!("images/{stem}.{extension}")), shade);
        write_labels(&root.join(format!("labels/{stem}.png")), WIDTH, HEIGHT, 255);
    }
    for split in ["train", "val"] {
        fs::write(root.join(format!("{split}.txt")), stems.join("\n")).unwrap();
    }
}

/// CamVid's SegNet layout, with folders instead of lists.
pub(crate) fn write_camvid(root: &Path) {
    for split in ["train", "val"] {
        let (images, labels) = (root.join(split), root.join(format!("{split}annot")));
        fs::create_dir_all(&images).unwrap();
        fs::create_dir_all(&labels).unwrap();
        for shade in 0..PAIRS {
            write_image(&images.join(format!("{shade}.png")), shade);
            write_labels(&labels.join(format!("{shade}.png")), WIDTH, HEIGHT, 11);
        }
    }
}

/// Overrides that train on a dataset on disk, with all pairs in a batch.
pub(crate) fn on(kind: &str, root: &Path) -> Vec<String> {
    let batch = |role: &str| format!("{role}.batch_size={PAIRS}");
    vec![format!("data.dataset={kind}"), format!("data.root={}", text(root)), batch("teacher"), batch("student")]
}

fn trains(kind: &str, root: &Path, classes: usize) {
    let run = tempfile::tempdir().unwrap();
    let overrides = on(kind, root);
    let overrides: Vec<&str> = overrides.iter().map(String::as_str).collect();
    succeed(&mut train(run.path(), &[&TINY, &overrides, &["task.class_weights=enet"]]));
    let metrics = json(&run.path().join("metrics.json"));
    for role in ["teacher", "baseline", "distilled"] {
        assert!(metrics[role]["pixel_accuracy"].as_f64().is_some(), "{metrics}");
        assert_eq!(metrics[role]["iou"].as_object().unwrap().len(), classes);
    }
    assert!(run.path().join("report.html").is_file());
}

#[test]
fn a_folder_of_own_images_trains() {
    let root = tempfile::tempdir().unwrap();
    write_folder(root.path(), "jpg");
    trains("folder", root.path(), 2);
}

#[test]
fn camvids_layout_trains() {
    let root = tempfile::tempdir().unwrap();
    write_camvid(root.path());
    trains("camvid", root.path(), 11);
}

//! Miniature copies of every form of every published dataset, made in code.

use std::fs;
use std::path::Path;

use dsd_data::{LabelMap, RgbImage, manifest, write_palette_png, write_rgb_png};

use crate::ramp;

/// Width and height of all miniature images.
pub(crate) const SIZE: (usize, usize) = (8, 6);

/// Writes an image, making its folder. The shade makes it differ from others.
pub(crate) fn image(path: &Path, shade: u8) {
    fs::create_dir_all(path.parent().expect("has a parent")).expect("folder");
    let mut pixels = ramp(SIZE.0, SIZE.1).pixels;
    pixels[0] = shade;
    if path.extension().is_some_and(|end| end == "jpg") {
        let file = fs::File::create(path).expect("file");
        let mut encoder = image::codecs::jpeg::JpegEncoder::new_with_quality(file, 95);
        pixels.iter_mut().step_by(7).for_each(|value| *value = value.wrapping_add(shade));
        encoder.encode(&pixels, SIZE.0 as u32, SIZE.1 as u32, image::ExtendedColorType::Rgb8).expect("encodes");
    } else {
        write_rgb_png(path, &RgbImage::new(SIZE.0, SIZE.1, pixels).expect("sizes fit")).expect("image");
    }
}

/// Writes an index PNG that holds these ids, over and over.
pub(crate) fn ids(path: &Path, ids: &[u8]) {
    fs::create_dir_all(path.parent().expect("has a parent")).expect("folder");
    let all = (0..SIZE.0 * SIZE.1).map(|at| ids[at % ids.len()]).collect();
    write_palette_png(path, &LabelMap::new(SIZE.0, SIZE.1, all).expect("sizes fit"), &[[200, 100, 50]])
        .expect("labels");
}

/// Writes an RGB PNG that holds these colours, over and over.
pub(crate) fn colours(path: &Path, colours: &[[u8; 3]]) {
    fs::create_dir_all(path.parent().expect("has a parent")).expect("folder");
    let all = (0..SIZE.0 * SIZE.1).flat_map(|at| colours[at % colours.len()]).collect();
    write_rgb_png(path, &RgbImage::new(SIZE.0, SIZE.1, all).expect("sizes fit")).expect("labels");
}

/// Cityscapes with the label files of one kind: two cities in train, one in val.
pub(crate) fn cityscapes(root: &Path, kind: &str, raw: &[u8]) {
    for (shade, (split, city, frame)) in
        (0..).zip([("train", "aachen", 0), ("train", "aachen", 19), ("train", "bochum", 3), ("val", "lindau", 1)])
    {
        let name = format!("{split}/{city}/{city}_000000_{frame:06}");
        image(&root.join(format!("leftImg8bit/{name}_leftImg8bit.png")), shade);
        ids(&root.join(format!("gtFine/{name}_gtFine_{kind}.png")), raw);
    }
}

/// ADE20K with the folder that its archive has.
pub(crate) fn ade20k(root: &Path, raw: &[u8]) {
    let base = root.join("ADEChallengeData2016");
    for (shade, (folder, name)) in (0..).zip([
        ("training", "ADE_train_00000001"),
        ("training", "ADE_train_00000002"),
        ("validation", "ADE_val_00000001"),
    ]) {
        image(&base.join(format!("images/{folder}/{name}.jpg")), 40 * shade);
        ids(&base.join(format!("annotations/{folder}/{name}.png")), raw);
    }
}

/// VOC 2012: two images in train, one in val, one in none.
pub(crate) fn voc2012(root: &Path, raw: &[u8]) {
    let base = root.join("VOCdevkit/VOC2012");
    for (shade, name) in (0..).zip(["2007_000032", "2007_000039", "2007_000033", "2008_000003"]) {
        image(&base.join(format!("JPEGImages/{name}.jpg")), 40 * shade);
        if shade < 3 {
            ids(&base.join(format!("SegmentationClass/{name}.png")), raw);
        }
    }
    let lists = base.join("ImageSets/Segmentation");
    fs::create_dir_all(&lists).expect("folder");
    fs::write(lists.join("train.txt"), "2007_000032\n2007_000039\n").expect("list");
    fs::write(lists.join("val.txt"), "2007_000033\n").expect("list");
    fs::write(lists.join("trainval.txt"), "2007_000032\n2007_000033\n2007_000039\n").expect("list");
}

/// Frames of CamVid: the first two are train, then one of val and one of test.
pub(crate) const FRAMES: [&str; 4] = ["0001TP_006690", "0016E5_08640", "0016E5_07961", "Seq05VD_f00030"];

/// CamVid's original form: RGB masks in one folder.
pub(crate) fn camvid_original(root: &Path, masks: &[[u8; 3]]) {
    for (shade, frame) in (0..).zip(FRAMES) {
        image(&root.join(format!("701_StillsRaw_full/{frame}.png")), shade);
        colours(&root.join(format!("LabeledApproved_full/{frame}_L.png")), masks);
    }
}

/// CamVid as fastai packs it: positions in codes.txt.
pub(crate) fn camvid_fastai(root: &Path, raw: &[u8]) {
    for (shade, frame) in (0..).zip(FRAMES) {
        image(&root.join(format!("images/{frame}.png")), shade);
        ids(&root.join(format!("labels/{frame}_P.png")), raw);
    }
}

/// CamVid as Kaggle packs it: RGB masks, split folders.
pub(crate) fn camvid_kaggle(root: &Path, masks: &[[u8; 3]]) {
    for (shade, (split, frame)) in (0..).zip(["train", "train", "val", "test"].into_iter().zip(FRAMES)) {
        image(&root.join(format!("{split}/{frame}.png")), shade);
        colours(&root.join(format!("{split}_labels/{frame}_L.png")), masks);
    }
}

/// CamVid as PaddleSeg packs it: one folder of each kind and lists of pairs.
pub(crate) fn camvid_paddle(root: &Path, raw: &[u8]) {
    for (shade, (split, frame)) in (0..).zip(["train", "val", "test"].into_iter().zip(FRAMES)) {
        image(&root.join(format!("images/{frame}.png")), shade);
        ids(&root.join(format!("annot/{frame}.png")), raw);
        fs::write(root.join(format!("{split}.txt")), format!("images/{frame}.png annot/{frame}.png\n")).expect("list");
    }
}

/// Position of a class in a dataset.
pub(crate) fn class(dataset: &str, name: &str) -> u8 {
    let classes = manifest(dataset).and_then(|manifest| manifest.classes()).expect("is known");
    classes.names.iter().position(|known| known == name).expect("is a class") as u8
}

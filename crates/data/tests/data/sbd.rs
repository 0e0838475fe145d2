//! trainaug out of SBD's MATLAB files.

use std::fs;
use std::path::Path;

use dsd_data::{Dataset, Published, add_sbd};

use crate::{message, miniatures};

/// SBD's folder; the label files as octets in a MATLAB 5 file, uncompressed.
fn sbd(root: &Path, names: &[&str], id: u8) {
    let cls = root.join("benchmark_RELEASE/dataset/cls");
    fs::create_dir_all(&cls).expect("folder");
    for name in names {
        fs::write(cls.join(format!("{name}.mat")), mat(id)).expect("writes");
    }
    let (train, val) = names.split_at(1);
    fs::write(root.join("benchmark_RELEASE/dataset/train.txt"), train.join("\n")).expect("list");
    fs::write(root.join("benchmark_RELEASE/dataset/val.txt"), val.join("\n")).expect("list");
}

fn element(kind: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = [kind.to_le_bytes(), (body.len() as u32).to_le_bytes()].concat();
    bytes.extend_from_slice(body);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes
}

/// GTcls.Segmentation of the miniatures' size: the first row is class 0, the others `id`.
fn mat(id: u8) -> Vec<u8> {
    let (width, height) = miniatures::SIZE;
    let head = |class: u8, sizes: [usize; 2], name: &[u8]| {
        let sizes: Vec<u8> = sizes.iter().flat_map(|size| (*size as u32).to_le_bytes()).collect();
        [element(6, &[class, 0, 0, 0, 0, 0, 0, 0]), element(5, &sizes), element(1, name)].concat()
    };
    let columns: Vec<u8> = (0..width).flat_map(|_| (0..height).map(|y| if y == 0 { 0 } else { id })).collect();
    let field = element(14, &[head(9, [height, width], b""), element(2, &columns)].concat());
    let mut name = [0u8; 16];
    name[..12].copy_from_slice(b"Segmentation");
    let body = [head(2, [1, 1], b"GTcls"), element(5, &16u32.to_le_bytes()), element(1, &name), field].concat();
    [&[b' '; 124][..], &[0, 1, b'I', b'M'], &element(14, &body)].concat()
}

#[test]
fn trainaug_is_both_trains_and_sbds_val_without_vocs() {
    let folder = tempfile::tempdir().expect("folder");
    let (root, source) = (folder.path().join("voc"), folder.path().join("sbd"));
    miniatures::voc2012(&root, &[0, 3, 255]);
    // One of VOC's train, one of VOC's val, one that VOC has no labels of.
    sbd(&source, &["2007_000032", "2007_000033", "2008_000003"], 9);
    assert_eq!(add_sbd(&source, &root).expect("adds"), 3);
    let aug = Published::open("voc2012", &root, "trainaug").expect("opens");
    let names: Vec<String> = (0..aug.len()).map(|at| aug.name(at)).collect();
    assert_eq!(names, ["2007_000032", "2007_000039", "2008_000003"]);
    assert_eq!(aug.sample(0).expect("reads").labels.ids[..3], [0, 3, 255], "VOC's own labels");
    let labels = aug.sample(2).expect("reads").labels.ids;
    assert!(labels[..8].iter().all(|id| *id == 0) && labels[8..].iter().all(|id| *id == 9), "{labels:?}");
    assert!(message(add_sbd(&source, &root)).contains("is there already"));
    let left = fs::read_dir(root.join("VOCdevkit/VOC2012")).expect("lists").count();
    assert_eq!(left, 4, "images, two kinds of labels, lists");
}

#[test]
fn a_damaged_or_missing_file_of_sbd_is_named_and_nothing_is_added() {
    let folder = tempfile::tempdir().expect("folder");
    let (root, source) = (folder.path().join("voc"), folder.path().join("sbd"));
    miniatures::voc2012(&root, &[0]);
    assert!(message(add_sbd(folder.path(), &root)).contains("holds no SBD"));
    sbd(&source, &["2007_000032", "2008_000003"], 9);
    let file = source.join("benchmark_RELEASE/dataset/cls/2008_000003.mat");
    fs::write(&file, &mat(9)[..300]).expect("writes");
    assert!(message(add_sbd(&source, &root)).contains("2008_000003.mat: damaged MATLAB file"));
    fs::remove_file(&file).expect("removes");
    assert!(message(add_sbd(&source, &root)).contains("2008_000003.mat: no such file"));
    assert!(!root.join("VOCdevkit/VOC2012/SegmentationClassAug").exists());
}

//! Seeded mutants of every kind of file: each is read or refused in one line, and nothing panics.

use std::fs;
use std::io::Write;
use std::path::Path;

use dsd_data::{DatasetManifest, IdMap, OpenOptions, check, import, open, read_image, read_labels};
use dsd_random::Stream;

use crate::{miniatures, zips};

/// Mutant `index` of some bytes: bits flipped, fields overwritten, parts cut, doubled or moved.
fn mutant(bytes: &[u8], purpose: &str, index: u64) -> Vec<u8> {
    let mut stream = Stream::new(11, purpose, 0, index);
    let mut made = bytes.to_vec();
    for _ in 0..1 + stream.below(3) {
        if made.is_empty() {
            break;
        }
        let at = stream.below(made.len());
        let rest = made.len() - at;
        match stream.below(6) {
            0 => made.truncate(at),
            1 => made[at] ^= 1 << stream.below(8),
            2 => {
                let value = [0, 0xff, 0x7f, 0x80][stream.below(4)];
                let width = [1, 2, 4, 8][stream.below(4)].min(rest);
                made[at..at + width].fill(value);
            }
            3 => {
                let part = made[at..at + 1 + stream.below(rest.min(64))].to_vec();
                let to = stream.below(made.len());
                made.splice(to..to, part);
            }
            4 => drop(made.drain(at..at + 1 + stream.below(rest.min(64)))),
            _ => {
                let other = stream.below(made.len());
                made.swap(at, other);
            }
        }
    }
    made
}

/// Tries mutants; returns how many were refused.
fn try_all(bytes: &[u8], purpose: &str, count: u64, mut read: impl FnMut(&[u8]) -> Result<(), String>) -> u64 {
    let mut refused = 0;
    for index in 0..count {
        if let Err(text) = read(&mutant(bytes, purpose, index)) {
            assert!(!text.contains('\n') && !text.is_empty(), "{purpose} {index}: {text}");
            refused += 1;
        }
    }
    assert!(refused > 0, "{purpose}: no mutant was refused");
    refused
}

fn outcome<T>(result: dsd_data::Result<T>) -> Result<(), String> {
    result.map(|_| ()).map_err(|error| error.to_string())
}

#[test]
fn images_and_label_maps() {
    let folder = tempfile::tempdir().expect("folder");
    let (png, jpeg, labels) = (folder.path().join("a.png"), folder.path().join("a.jpg"), folder.path().join("l.png"));
    miniatures::image(&png, 3);
    miniatures::image(&jpeg, 3);
    miniatures::ids(&labels, &[0, 1, 2, 255]);
    for (path, purpose) in [(&png, "png"), (&jpeg, "jpeg")] {
        let whole = fs::read(path).expect("reads");
        try_all(&whole, purpose, 500, |bytes| {
            fs::write(path, bytes).expect("writes");
            outcome(read_image(path))
        });
    }
    let whole = fs::read(&labels).expect("reads");
    let ids = IdMap::train_ids(3).expect("ids");
    try_all(&whole, "labels", 500, |bytes| {
        fs::write(&labels, bytes).expect("writes");
        outcome(read_labels(&labels, &ids))
    });
}

#[test]
fn lists_and_classes() {
    let folder = tempfile::tempdir().expect("folder");
    let root = folder.path();
    miniatures::camvid_paddle(root, &[0, 1, 11]);
    let list = root.join("train.txt");
    let whole = fs::read(&list).expect("reads").repeat(3);
    try_all(&whole, "pairs", 400, |bytes| {
        fs::write(&list, bytes).expect("writes");
        outcome(open("camvid", Some(root), "train", &OpenOptions::default()))
    });
    miniatures::image(&root.join("images/a.png"), 1);
    miniatures::ids(&root.join("labels/a.png"), &[0]);
    fs::write(root.join("train.txt"), "a\n").expect("writes");
    let classes = "names = [\"road\", \"car\"]\ncolours = [[1, 2, 3], [4, 5, 6]]\nids = [7, 26]\nignore = [0, 255]\n";
    try_all(classes.as_bytes(), "classes", 400, |bytes| {
        fs::write(root.join("classes.toml"), bytes).expect("writes");
        outcome(open("folder", Some(root), "train", &OpenOptions::default()))
    });
    fs::write(root.join("classes.toml"), classes).expect("writes");
    try_all(b"a\na\n\na\n", "stems", 300, |bytes| {
        fs::write(root.join("train.txt"), bytes).expect("writes");
        outcome(open("folder", Some(root), "train", &OpenOptions::default()))
    });
}

#[test]
fn manifests() {
    for (name, text) in [
        ("camvid", include_str!("../../../../datasets/camvid.toml")),
        ("cityscapes", include_str!("../../../../datasets/cityscapes.toml")),
        ("voc2012", include_str!("../../../../datasets/voc2012.toml")),
    ] {
        try_all(text.as_bytes(), name, 300, |bytes| {
            outcome(DatasetManifest::parse(&String::from_utf8_lossy(bytes), Path::new("mutant.toml")))
        });
    }
}

#[test]
fn archives_leave_nothing_behind() {
    let folder = tempfile::tempdir().expect("folder");
    let made = folder.path().join("made");
    miniatures::ade20k(&made, &[0, 1, 150]);
    let entries = zips::entries_of(&made, &made);
    let mut tar = tar::Builder::new(Vec::new());
    tar.append_dir_all("x", &made).expect("packs");
    let tar = tar.into_inner().expect("ends");
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&tar).expect("packs");
    let into = folder.path().join("into");
    fs::create_dir(&into).expect("folder");
    for (name, whole, count) in
        [("a.zip", zips::zip(&entries), 300), ("a.tar", tar, 300), ("a.tgz", gzip.finish().expect("ends"), 300)]
    {
        let path = folder.path().join(name);
        // None is whole: the counts are those of a miniature.
        let refused = try_all(&whole, name, count, |bytes| {
            fs::write(&path, bytes).expect("writes");
            outcome(import("ade20k", std::slice::from_ref(&path), &into.join("ade"), &|_, _, _| {}))
        });
        assert_eq!(refused, count);
        assert_eq!(fs::read_dir(&into).expect("lists").count(), 0, "{name}");
        assert_eq!(fs::read_dir(folder.path()).expect("lists").count(), 3, "{name} wrote elsewhere");
        fs::remove_file(&path).expect("removes");
    }
}

#[test]
fn a_check_of_damaged_files_reports_and_goes_on() {
    let folder = tempfile::tempdir().expect("folder");
    let root = folder.path();
    miniatures::camvid_fastai(root, &[21, 30, 17]);
    let label = root.join(format!("labels/{}_P.png", miniatures::FRAMES[0]));
    let whole = fs::read(&label).expect("reads");
    for index in 0..60 {
        fs::write(&label, mutant(&whole, "check", index)).expect("writes");
        let report = check(root, None, &|_, _, _| {}).unwrap_or_else(|error| panic!("{index}: {error}"));
        assert_eq!(report.splits.len(), 3);
    }
}

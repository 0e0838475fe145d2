//! Zip archives, whole and hostile, written byte by byte.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use dsd_data::{Result, import};

use crate::{message, miniatures};

/// An entry as its sender may write it.
#[derive(Clone)]
struct Entry {
    name: Vec<u8>,
    content: Vec<u8>,
    /// Unix type bits, flags, and what is said of the sizes and the checksum beyond the truth.
    unix_type: u32,
    flags: u16,
    method: u16,
    size_lie: u32,
    crc_lie: u32,
    local_name: Option<Vec<u8>>,
    offset_lie: Option<u32>,
}

fn entry(name: &str, content: &[u8]) -> Entry {
    Entry {
        name: name.into(),
        content: content.to_vec(),
        unix_type: 0x8000,
        flags: 0,
        method: 8,
        size_lie: 0,
        crc_lie: 0,
        local_name: None,
        offset_lie: None,
    }
}

/// The archive of some entries.
fn zip(entries: &[Entry]) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for entry in entries {
        let mut packed = entry.content.clone();
        if entry.method == 8 {
            let mut deflate = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
            deflate.write_all(&entry.content).expect("compresses");
            packed = deflate.finish().expect("compresses");
        }
        let mut crc = flate2::Crc::new();
        crc.update(&entry.content);
        let offset = entry.offset_lie.unwrap_or(file.len() as u32);
        let mut facts = Vec::new();
        facts.extend_from_slice(&[entry.flags.to_le_bytes(), entry.method.to_le_bytes(), [0; 2], [0; 2]].concat());
        facts.extend_from_slice(&(crc.sum() ^ entry.crc_lie).to_le_bytes());
        facts.extend_from_slice(&(packed.len() as u32).to_le_bytes());
        facts.extend_from_slice(&(entry.content.len() as u32 + entry.size_lie).to_le_bytes());
        let local = entry.local_name.as_ref().unwrap_or(&entry.name);
        file.extend_from_slice(
            &[b"PK\x03\x04\x14\0".as_slice(), &facts, &(local.len() as u16).to_le_bytes(), &[0; 2], local].concat(),
        );
        file.extend_from_slice(&packed);
        directory.extend_from_slice(&[b"PK\x01\x02\x14\x03\x14\0".as_slice(), &facts].concat());
        directory.extend_from_slice(&[&(entry.name.len() as u16).to_le_bytes()[..], &[0; 8]].concat());
        directory.extend_from_slice(&(entry.unix_type << 16).to_le_bytes());
        directory.extend_from_slice(&[&offset.to_le_bytes()[..], &entry.name].concat());
    }
    let (start, count) = (file.len() as u32, (entries.len() as u16).to_le_bytes());
    file.extend_from_slice(&directory);
    file.extend_from_slice(&[b"PK\x05\x06\0\0\0\0".as_slice(), &count, &count].concat());
    file.extend_from_slice(&[(directory.len() as u32).to_le_bytes(), start.to_le_bytes()].concat());
    file.extend_from_slice(&[0; 2]);
    file
}

fn from_zip(bytes: &[u8], folder: &Path, to: &Path) -> Result<()> {
    let path = folder.join("made.zip");
    fs::write(&path, bytes).expect("writes");
    import("ade20k", &[path], to, &|_, _, _| {}).map(|_| ())
}

/// Everything below a folder as entries.
fn entries_of(folder: &Path, root: &Path) -> Vec<Entry> {
    let mut paths: Vec<PathBuf> =
        fs::read_dir(folder).expect("lists").map(|entry| entry.expect("entry").path()).collect();
    paths.sort();
    let mut entries = Vec::new();
    for path in paths {
        if path.is_dir() {
            entries.extend(entries_of(&path, root));
        } else {
            let name = path.strip_prefix(root).expect("is below").to_string_lossy().into_owned();
            entries.push(entry(&name, &fs::read(&path).expect("reads")));
        }
    }
    entries
}

#[test]
fn a_zip_is_unpacked_before_its_counts_are_looked_at() {
    let folder = tempfile::tempdir().expect("folder");
    miniatures::ade20k(&folder.path().join("made"), &[0, 1, 150]);
    let mut entries = entries_of(&folder.path().join("made"), &folder.path().join("made"));
    // Folders and stored entries.
    entries.insert(0, Entry { unix_type: 0x4000, method: 0, ..entry("ADEChallengeData2016/", b"") });
    entries[2].method = 0;
    let to = folder.path().join("ade");
    let text = message(from_zip(&zip(&entries), folder.path(), &to));
    assert!(text.contains("the train split has 2 pairs, expected 20210"), "{text}");
    assert!(!to.exists());
}

#[test]
fn hostile_zips_are_refused_by_rule_and_nothing_is_written() {
    let folder = tempfile::tempdir().expect("folder");
    let to = folder.path().join("deep/ade");
    let good = || entry("a/list.txt", b"content");
    let bad = |change: fn(&mut Entry)| {
        let mut made = entry("a/bad.txt", &[7; 4000]);
        change(&mut made);
        made
    };
    let bomb = Entry { ..entry("a/bomb.png", &vec![0; 3 << 20]) };
    let cases: Vec<(Entry, &str)> = vec![
        (bad(|e| e.name = b"../escape.txt".to_vec()), "climbs out"),
        (bad(|e| e.name = b"a/../../escape.txt".to_vec()), "climbs out"),
        (bad(|e| e.name = b"/tmp/dsd-escape.txt".to_vec()), "absolute"),
        (bad(|e| e.name = b"a\\..\\x".to_vec()), "backslash"),
        (bad(|e| e.name = b"C:/x".to_vec()), "colon"),
        (bad(|e| e.name = b"a/nul\0x".to_vec()), "NUL"),
        (bad(|e| e.name = b"a/\xff\xfe".to_vec()), "UTF-8"),
        (bad(|e| e.name = [b'n'; 300].to_vec()), "longer than 255"),
        (bad(|e| e.name = b"a/".repeat(40)), "more than 32 parts"),
        (bad(|e| e.name = b"A/LIST.txt".to_vec()), "occurs twice"),
        (bad(|e| e.name = b"a/folder/".to_vec()), "folder with content"),
        (bad(|e| e.unix_type = 0xa000), "is a link"),
        (bad(|e| e.unix_type = 0x6000), "Unix type"),
        (bad(|e| e.flags = 1), "encrypted"),
        (bad(|e| (e.method, e.flags) = (14, 0)), "compression method 14"),
        (bad(|e| (e.method, e.size_lie) = (0, 5)), "two different sizes"),
        (bad(|e| e.size_lie = 5), "cut short"),
        (bad(|e| e.size_lie = u32::MAX - 4000), "cut short"),
        (bad(|e| e.size_lie = 100 << 20), "grows from"),
        (bad(|e| e.size_lie = (-100i32) as u32), "larger than it declares"),
        (bad(|e| e.crc_lie = 1), "CRC-32 is wrong"),
        (bad(|e| e.local_name = Some(b"a/xad.txt".to_vec())), "its own header"),
        (bad(|e| e.offset_lie = Some(0)), "overlaps"),
        (bad(|e| e.offset_lie = Some(1 << 30)), "overlaps"),
        (bomb, "grows from"),
    ];
    let count = cases.len();
    for (number, (entry, reason)) in cases.into_iter().enumerate() {
        let text = message(from_zip(&zip(&[good(), entry]), folder.path(), &to));
        assert!(text.contains("made.zip") && text.contains(reason), "case {number}, {reason}: {text}");
        let left: Vec<_> = fs::read_dir(to.parent().expect("parent")).expect("lists").collect();
        assert!(left.is_empty(), "case {number} left {left:?}");
    }
    assert_eq!(count, 25);
    println!("figure A1 hostile_zips {count}");
    let whole = zip(&[good()]);
    for length in 0..whole.len() {
        assert!(message(from_zip(&whole[..length], folder.path(), &to)).contains("made.zip"), "cut at {length}");
    }
}

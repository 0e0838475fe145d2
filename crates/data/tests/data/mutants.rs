//! Seeded mutants of lists of pairs, and a check of damaged files: read or refused in one line, and nothing panics. Single
//! files of every kind have the same test in `tests/hostile`.

use std::fs;

use dsd_data::{OpenOptions, check, open};
use dsd_random::Stream;

use crate::miniatures;

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
fn lists_of_pairs() {
    let folder = tempfile::tempdir().expect("folder");
    let root = folder.path();
    miniatures::camvid_paddle(root, &[0, 1, 11]);
    let list = root.join("train.txt");
    let whole = fs::read(&list).expect("reads").repeat(3);
    try_all(&whole, "pairs", 400, |bytes| {
        fs::write(&list, bytes).expect("writes");
        outcome(open("camvid", Some(root), "train", &OpenOptions::default()))
    });
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

//! Logs, end marks and model cards, changed at seeded places: each is an error that names the file, or is read; never a
//! panic. Recipes, checkpoints and what comes from others have the same test in `tests/hostile`.

use std::fs;

use candle_core::{DType, Device};
use dsd_models::{ClassInfo, ModelCard, Normalisation, ParamStore};
use dsd_random::Stream;

use crate::journal::{self, Journal, Line};
use crate::recipe::Recipe;

/// A changed copy: cut, flipped bits, fields of special values, a piece in another place, or a number replaced by one
/// that is too large.
fn mutant(original: &[u8], format: &str, index: u64) -> Vec<u8> {
    let mut stream = Stream::new(13, format, 0, index);
    let mut bytes = original.to_vec();
    let length = bytes.len();
    match index % 5 {
        0 => bytes.truncate(stream.below(length)),
        1 => {
            for _ in 0..1 + stream.below(8) {
                bytes[stream.below(length)] ^= 1 << stream.below(8);
            }
        }
        2 => {
            let value = [0u64, u64::MAX, u64::MAX >> 1, 1 << 63, 0xffff_ffff, 100_000_000][stream.below(6)];
            let width = [1, 2, 4, 8][stream.below(4)].min(length);
            let at = stream.below(length - width + 1);
            bytes[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
        }
        3 => {
            let piece = 16.min(length);
            let (from, to) = (stream.below(length - piece + 1), stream.below(length - piece + 1));
            bytes.copy_within(from..from + piece, to);
        }
        _ => {
            let digits: Vec<usize> = (0..length).filter(|at| bytes[*at].is_ascii_digit()).collect();
            if let Some(at) = digits.get(stream.below(digits.len().max(1))) {
                let value = ["99999999999999999999", "-1", "1e308", "18446744073709551615", "0"][stream.below(5)];
                bytes.splice(*at..=*at, value.bytes());
            }
        }
    }
    bytes
}

/// Reads so many mutants of a file; returns how many were refused, each in one line that has `culprit` in it.
fn read_mutants<T>(
    (format, original, culprit): (&str, &[u8], &str),
    count: u64,
    mut read: impl FnMut(&[u8]) -> Result<T, String>,
) -> u64 {
    read(original).unwrap_or_else(|error| panic!("{format}: {error}"));
    let mut refused = 0;
    for index in 0..count {
        if let Err(message) = read(&mutant(original, format, index)) {
            assert!(message.contains(culprit), "{format} {index}: {message}");
            refused += 1;
        }
    }
    assert!(refused > count / 10, "{format}: only {refused} of {count} mutants were refused");
    refused
}

fn said<T, E: ToString>(result: Result<T, E>) -> Result<T, String> {
    result.map_err(|error| error.to_string())
}

#[test]
fn mutants_of_logs_and_end_marks() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = Journal::open(folder.path()).unwrap();
    for step in 1..6 {
        let role = "teacher".to_string();
        journal.write(&Line::Evaluation { role, step, miou: 0.25, pixel_accuracy: 1.0 / 3.0 }).unwrap();
    }
    let original = fs::read(folder.path().join("log.jsonl")).unwrap();
    read_mutants(("log.jsonl", &original, "log.jsonl"), 400, |bytes| {
        fs::write(folder.path().join("log.jsonl"), bytes).unwrap();
        said(journal::read(folder.path()))
    });

    let metrics = dsd_metrics::ConfusionMatrix::new(2).unwrap().summary(&["a", "b"]).unwrap();
    let done =
        crate::stage::Finished { steps: 3, parameters: 9, best_step: 2, last_miou: Some(0.5), metrics, last: None };
    let original = serde_json::to_vec_pretty(&done).unwrap();
    read_mutants(("done.json", &original, "done.json"), 400, |bytes| {
        fs::write(folder.path().join("done.json"), bytes).unwrap();
        said(crate::stage::finished(folder.path()))
    });
}

#[test]
fn mutants_of_model_cards() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = Recipe::read("smoke", &[]).unwrap();
    let model = recipe.student.model.config().unwrap();
    let store = ParamStore::new(1, DType::F32, &Device::Cpu);
    dsd_models::build(&model, 2, store.builder()).unwrap();
    let class = |name: &str, red: u8| ClassInfo { name: name.to_string(), colour: [red, 0, 0] };
    let card = ModelCard {
        format_version: dsd_models::FORMAT_VERSION,
        model,
        classes: vec![class("road", 1), class("car", 2)],
        normalisation: Normalisation { mean: [0.5; 3], std: [0.25; 3] },
        weights_sha256: String::new(),
        training: serde_json::json!({ "step": 12 }),
    };
    dsd_models::save(folder.path(), &card, &store.tensors()).unwrap();
    let path = folder.path().join(dsd_models::CARD_FILE);
    let original = fs::read(&path).unwrap();
    read_mutants(("model.json", &original, "model."), 300, |bytes| {
        fs::write(&path, bytes).unwrap();
        said(dsd_models::load(folder.path())).map(drop)
    });
}

//! Networks on disk.

use std::fs;
use std::path::Path;

use dsd_models::{CARD_FILE, ClassInfo, FORMAT_VERSION, Mode, ModelCard, Normalisation, WEIGHTS_FILE, load, save};

use super::{CLASSES, Case, cases, images, values};

fn card(case: &Case) -> ModelCard {
    ModelCard {
        format_version: FORMAT_VERSION,
        model: case.config,
        classes: (0..CLASSES as u8).map(|id| ClassInfo { name: format!("class {id}"), colour: [id, 0, 9] }).collect(),
        normalisation: Normalisation { mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225] },
        weights_sha256: String::new(),
        training: serde_json::json!({ "steps": 3 }),
    }
}

fn named(name: &str) -> Case {
    cases().into_iter().find(|case| case.name == name).unwrap()
}

fn smallest() -> Case {
    named("enet")
}

/// The message of the error with which a saved network fails to load after it was changed.
fn damaged(change: impl FnOnce(&Path)) -> String {
    let case = smallest();
    let folder = tempfile::tempdir().unwrap();
    save(folder.path(), &card(&case), &case.store.tensors()).unwrap();
    change(folder.path());
    let message = load(folder.path()).unwrap_err().to_string();
    assert!(!message.contains('\n'), "{message}");
    message
}

#[test]
fn what_was_saved_is_loaded_bit_by_bit() {
    for case in cases() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("made/on/the/way");
        let x = images(2, 33, 40);
        case.network.forward(&x, Mode::Train { seed: 0, step: 0 }).unwrap();
        save(&inner, &card(&case), &case.store.tensors()).unwrap();
        let saved = load(&inner).unwrap();
        assert_eq!(saved.card.weights_sha256.len(), 64);
        assert_eq!(saved.card, ModelCard { weights_sha256: saved.card.weights_sha256.clone(), ..card(&case) });
        let own = case.store.tensors();
        assert_eq!(saved.tensors.keys().collect::<Vec<_>>(), own.keys().collect::<Vec<_>>());
        for (name, tensor) in &saved.tensors {
            assert_eq!(values(tensor), values(&own[name]), "{} {name}", case.name);
        }
        let network = saved.segmenter().unwrap();
        let (loaded, expected) =
            (network.forward(&x, Mode::Eval).unwrap(), case.network.forward(&x, Mode::Eval).unwrap());
        assert_eq!(values(&loaded.logits), values(&expected.logits), "{}", case.name);
        assert!(!loaded.logits.track_op());
        let mut files: Vec<_> = fs::read_dir(&inner).unwrap().map(|file| file.unwrap().file_name()).collect();
        files.sort();
        assert_eq!(files, [CARD_FILE, WEIGHTS_FILE], "nothing else is left behind");
    }
}

#[test]
fn two_saves_of_the_same_network_are_the_same_bytes() {
    let case = smallest();
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for folder in [&first, &second] {
        save(folder.path(), &card(&case), &case.store.tensors()).unwrap();
    }
    for file in [CARD_FILE, WEIGHTS_FILE] {
        assert_eq!(fs::read(first.path().join(file)).unwrap(), fs::read(second.path().join(file)).unwrap(), "{file}");
    }
}

#[test]
fn a_save_that_was_interrupted_between_its_two_files_loses_nothing() {
    let case = smallest();
    let folder = tempfile::tempdir().unwrap();
    let (card_path, weights_path) = (folder.path().join(CARD_FILE), folder.path().join(WEIGHTS_FILE));
    let mut first = card(&case);
    first.training = serde_json::json!("first");
    save(folder.path(), &first, &case.store.tensors()).unwrap();
    let old_card: serde_json::Value = serde_json::from_slice(&fs::read(&card_path).unwrap()).unwrap();
    let old_weights = fs::read(&weights_path).unwrap();

    let doubled = case.store.tensors().into_iter().map(|(name, tensor)| (name, (tensor * 2.0).unwrap())).collect();
    case.store.apply(&doubled).unwrap();
    let mut second = card(&case);
    second.training = serde_json::json!("second");
    save(folder.path(), &second, &case.store.tensors()).unwrap();
    assert_eq!(load(folder.path()).unwrap().card.training, "second");

    // The state between the two renames: the new card with the old one inside, and the old weights.
    let mut between: serde_json::Value = serde_json::from_slice(&fs::read(&card_path).unwrap()).unwrap();
    between["superseded"] = old_card;
    fs::write(&card_path, between.to_string()).unwrap();
    let new_weights = fs::read(&weights_path).unwrap();
    fs::write(&weights_path, old_weights).unwrap();
    assert_eq!(load(folder.path()).unwrap().card.training, "first");
    // And the state after the second rename.
    fs::write(&weights_path, new_weights).unwrap();
    assert_eq!(load(folder.path()).unwrap().card.training, "second");
    save(folder.path(), &first, &case.store.tensors()).unwrap();
    assert!(!fs::read_to_string(&card_path).unwrap().contains("superseded"));
}

#[test]
fn tensors_of_another_network_are_not_saved_and_the_old_ones_stay() {
    let (enet, pspnet) = (smallest(), named("pspnet_resnet18"));
    let folder = tempfile::tempdir().unwrap();
    save(folder.path(), &card(&enet), &enet.store.tensors()).unwrap();
    let message = save(folder.path(), &card(&enet), &pspnet.store.tensors()).unwrap_err().to_string();
    assert!(message.contains("missing: bottleneck1.0") && message.contains("unexpected: aux"), "{message}");
    load(folder.path()).unwrap();
}

#[test]
fn damage_is_refused_with_the_file_and_what_is_wrong() {
    let edit = |from: &'static str, to: &'static str| {
        move |folder: &Path| {
            let path = folder.join(CARD_FILE);
            let text = fs::read_to_string(&path).unwrap();
            assert!(text.contains(from), "{text}");
            fs::write(&path, text.replace(from, to)).unwrap();
        }
    };
    let truncate = |name: &'static str| {
        move |folder: &Path| {
            let path = folder.join(name);
            let bytes = fs::read(&path).unwrap();
            fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        }
    };
    let remove = |name: &'static str| move |folder: &Path| fs::remove_file(folder.join(name)).unwrap();
    for (message, parts) in [
        (damaged(|folder| fs::remove_dir_all(folder).unwrap()), vec!["no such folder"]),
        (damaged(remove(CARD_FILE)), vec![CARD_FILE]),
        (damaged(remove(WEIGHTS_FILE)), vec![WEIGHTS_FILE]),
        (damaged(truncate(CARD_FILE)), vec![CARD_FILE, "a model card"]),
        (damaged(truncate(WEIGHTS_FILE)), vec![WEIGHTS_FILE, "SHA-256", "bytes"]),
        (
            damaged(edit("\"format_version\": 1", "\"format_version\": 2")),
            vec![CARD_FILE, "format_version is 2, expected 1"],
        ),
        (damaged(edit("\"width\": 0.5", "\"width\": 1.0")), vec![WEIGHTS_FILE, "has shape", "expected ["]),
        (damaged(edit("\"width\"", "\"wide\"")), vec![CARD_FILE, "wide"]),
    ] {
        for part in parts {
            assert!(message.contains(part), "{message}: no {part:?}");
        }
    }
}

//! Files of predictions, scored by others.

use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use dsd_data::{Dataset, DatasetManifest, IGNORE, OpenOptions, manifest, open, read_labels, write_grey_png};
use dsd_metrics::{ConfusionMatrix, Summary};
use dsd_models::{ClassInfo, ModelCard, Normalisation, ParamStore};

use crate::program::{dsd, json, succeed, text};

/// A made Cityscapes in miniature with predictions and the figures of Cityscapes' own evaluator: `cityscapes.py`.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("reference").join("cityscapes")
}

/// The figures of prediction files in label ids, one with the name of each image.
fn score(cityscapes: &DatasetManifest, dataset: &dyn Dataset, predictions: &Path) -> Summary {
    let ids = cityscapes.id_map().unwrap();
    let mut matrix = ConfusionMatrix::new(19).unwrap();
    for index in 0..dataset.len() {
        let labels = dataset.sample(index).unwrap().labels;
        let name = dataset.name(index);
        let predicted = read_labels(&predictions.join(format!("{name}.png")), &ids).unwrap();
        assert_eq!((predicted.width, predicted.height), (labels.width, labels.height), "{name}");
        matrix.update(&labels.ids, &predicted.ids, IGNORE).unwrap();
    }
    matrix.summary(&dataset.classes().names).unwrap()
}

#[test]
fn cityscapes_own_evaluator_gives_the_same_figures() {
    let cityscapes = manifest("cityscapes").unwrap();
    let dataset = open("cityscapes", Some(&root()), "val", &OpenOptions::default()).unwrap();
    assert_eq!(dataset.len(), 6);
    let ours = score(cityscapes, dataset.as_ref(), &root().join("predictions"));
    let theirs = json(&root().join("expected.json"));
    let close = |name: &str, ours: Option<f64>, theirs: &serde_json::Value| {
        let same = match (ours, theirs.as_f64()) {
            (Some(ours), Some(theirs)) => (ours - theirs).abs() <= 1e-6,
            (ours, theirs) => ours == theirs,
        };
        assert!(same, "{name}: {ours:?}, the evaluator says {theirs}");
    };
    close("mIoU", ours.miou, &theirs["averageScoreClasses"]);
    let classes = theirs["classScores"].as_object().unwrap();
    assert_eq!(classes.len(), 19);
    for (name, score) in classes {
        close(name, ours.iou.get(name), score);
    }
    // A class that is nowhere, and one that is predicted only.
    assert_eq!((ours.iou.get("train"), ours.iou.get("bus")), (None, Some(0.0)));

    // What is read from prediction files in label ids is written as those files again.
    let folder = tempfile::tempdir().unwrap();
    let mut files = 0;
    for item in fs::read_dir(root().join("predictions")).unwrap() {
        let path = item.unwrap().path();
        let again = folder.path().join(path.file_name().unwrap());
        write_grey_png(&again, &read_labels(&path, &cityscapes.id_map().unwrap()).unwrap(), &cityscapes.label_ids())
            .unwrap();
        assert!(image::open(&again).unwrap() == image::open(&path).unwrap(), "{}", path.display());
        files += 1;
    }
    println!("figure N5 cityscapes_images {files} mIoU and 19 IoUs within 1e-6");
}

#[test]
fn predictions_in_the_evaluators_ids_have_the_score_of_eval() {
    let cityscapes = manifest("cityscapes").unwrap();
    let dataset = open("cityscapes", Some(&root()), "val", &OpenOptions::default()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let model = dsd_models::variant("enet").unwrap();
    let store = ParamStore::new(5, DType::F32, &Device::Cpu);
    dsd_models::build(&model, 19, store.builder()).unwrap();
    let classes = cityscapes.classes().unwrap();
    let named = classes.names.iter().zip(&classes.colours);
    let card = ModelCard {
        format_version: dsd_models::FORMAT_VERSION,
        model,
        classes: named.map(|(name, colour)| ClassInfo { name: name.clone(), colour: *colour }).collect(),
        normalisation: Normalisation { mean: [0.5; 3], std: [0.25; 3] },
        weights_sha256: String::new(),
        training: serde_json::json!({}),
    };
    let saved = folder.path().join("model");
    dsd_models::save(&saved, &card, &store.tensors()).unwrap();

    let out = folder.path().join("out");
    let mut images = Vec::new();
    for city in ["aachen", "bochum"] {
        let listed = fs::read_dir(root().join("leftImg8bit/val").join(city)).unwrap();
        images.extend(listed.map(|item| item.unwrap().path()));
    }
    let mut predict = dsd(&["predict", "--model", text(&saved), "--out", text(&out), "--label-ids", "cityscapes"]);
    succeed(predict.args(&images));
    let mut eval = dsd(&["eval", "--model", text(&saved), "--dataset", "cityscapes", "--json", "--root"]);
    let printed: Summary = serde_json::from_str(&succeed(eval.arg(root()))).unwrap();
    assert_eq!(score(cityscapes, dataset.as_ref(), &out), printed);
    assert!(printed.miou.is_some_and(|miou| miou > 0.0), "{printed:?}");
}

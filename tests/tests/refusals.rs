//! What goes wrong for users, each in one line that names the culprit and what was expected.

use std::fs;
use std::path::{Path, PathBuf};

use crate::folders::{on, write_camvid, write_folder, write_labels};
use crate::program::{TINY, dsd, json, refuse, smoke_run, text, train};

/// Trains on a dataset after one of its files was spoilt; the first batch holds every sample.
fn refuse_dataset(kind: &str, spoil: impl Fn(&Path), culprits: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("data");
    match kind {
        "camvid" => write_camvid(&root),
        _ => write_folder(&root, "jpg"),
    }
    spoil(&root);
    let overrides = on(kind, &root);
    let overrides: Vec<&str> = overrides.iter().map(String::as_str).collect();
    refuse(&mut train(&folder.path().join("run"), &[&TINY, &overrides]), culprits);
}

fn cut(path: &Path, share: f64) {
    let bytes = fs::read(path).unwrap();
    fs::write(path, &bytes[..(bytes.len() as f64 * share) as usize]).unwrap();
}

#[test]
fn a_missing_dataset_is_named_with_what_to_do() {
    let away = |root: &Path| fs::remove_dir_all(root).unwrap();
    refuse_dataset("folder", away, &["data: no such folder", "images/, labels/, classes.toml"]);
    refuse_dataset("camvid", away, &["data: no such folder", "cargo xtask data camvid --from ARCHIVE"]);
    let no_labels = |root: &Path| fs::remove_file(root.join("valannot/2.png")).unwrap();
    refuse_dataset("camvid", no_labels, &["2.png", "has no label map", "valannot"]);
    let no_classes = |root: &Path| fs::remove_file(root.join("classes.toml")).unwrap();
    refuse_dataset("folder", no_classes, &["classes.toml", "cannot read", "names = ["]);
}

#[test]
fn a_label_id_out_of_range_is_named_with_its_place() {
    let stray = |root: &Path| write_labels(&root.join("labels/view2.png"), 64, 48, 7);
    refuse_dataset("folder", stray, &["view2.png", "7", "column 5, row 7"]);
    let stray = |root: &Path| write_labels(&root.join("trainannot/3.png"), 64, 48, 12);
    refuse_dataset("camvid", stray, &["trainannot/3.png", "12", "column 5, row 7"]);
}

#[test]
fn an_image_and_its_label_of_two_sizes_are_both_named() {
    let other_size = |root: &Path| write_labels(&root.join("labels/view1.png"), 62, 48, 0);
    refuse_dataset("folder", other_size, &["view1.jpg", "64x48", "view1.png", "62x48", "bring both to one size"]);
}

#[test]
fn a_truncated_image_is_named() {
    refuse_dataset("folder", |root| cut(&root.join("images/view3.jpg"), 0.6), &["view3.jpg", "truncated JPEG"]);
    refuse_dataset("camvid", |root| cut(&root.join("train/1.png"), 0.6), &["train/1.png", "truncated PNG"]);
    refuse_dataset("camvid", |root| cut(&root.join("trainannot/1.png"), 0.6), &["trainannot/1.png", "truncated PNG"]);
}

#[test]
fn a_wrong_recipe_is_named_by_its_key() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    for (set, culprits) in [
        ("student.stepz=3", &["stepz", "expected one of", "`steps`"] as &[&str]),
        ("learning_rate=1", &["learning_rate", "expected one of", "`student`"]),
        ("student.steps=many", &["steps", "many"]),
        ("student.model=enett", &["enett", "enet", "pspnet_resnet18"]),
        ("data.dataset=city", &["city", "streets, camvid, cityscapes, ade20k, voc2012 or folder"]),
        ("student.optimiser.learning_rate=0", &["student.optimiser.learning_rate is 0", "above 0"]),
        ("version=2", &["version is 2, expected 1"]),
        ("teacher.model.width=-1", &["width is -1", "expected above 0"]),
    ] {
        refuse(&mut train(&out, &[&TINY, &[set]]), culprits);
        assert!(!out.exists(), "{set}: a refused recipe left a folder behind");
    }
    refuse(&mut dsd(&["train", "nowhere.toml"]), &["nowhere.toml", "no such recipe", "quick, smoke"]);
    let own = folder.path().join("own.toml");
    fs::write(&own, "version = 1\nname = \"own\nseed = 1\n").unwrap();
    refuse(&mut dsd(&["train", text(&own)]), &["own.toml", "name = \"own"]);
}

#[test]
fn a_layer_that_a_network_does_not_have_is_named_with_those_it_has() {
    let folder = tempfile::tempdir().unwrap();
    let set = "distillation.0.student=[\"stage2\", \"stage9\", \"head\"]";
    refuse(&mut train(folder.path(), &[&TINY, &[set]]), &["student", "stage9", "it has stage1"]);
}

#[test]
fn a_loss_that_is_not_a_number_is_named_with_network_and_step() {
    let folder = tempfile::tempdir().unwrap();
    for (role, key) in
        [("teacher", "teacher.optimiser.learning_rate=1e30"), ("baseline", "student.optimiser.learning_rate=1e38")]
    {
        let run = folder.path().join(role);
        let more = ["teacher.steps=3", "student.steps=9", "evaluation.every=9"];
        refuse(
            &mut train(&run, &[&TINY, &more, &[key]]),
            &[
                &format!("{role}, step "),
                "the loss term cross_entropy is",
                "the first output that is not finite is that of",
            ],
        );
    }
}

/// A copy of a model of the `smoke` run, to be spoilt.
fn model(role: &str, folder: &Path) -> PathBuf {
    let copy = folder.join("model");
    fs::create_dir(&copy).unwrap();
    for file in ["model.json", "model.safetensors"] {
        fs::copy(smoke_run().0.join(role).join("best").join(file), copy.join(file)).unwrap();
    }
    copy
}

fn refuse_model(role: &str, spoil: impl Fn(&Path), culprits: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let model = model(role, folder.path());
    spoil(&model);
    refuse(&mut dsd(&["eval", "--model", text(&model), "--dataset", "streets", "--count", "1"]), culprits);
}

fn edit_card(model: &Path, edit: impl Fn(&mut serde_json::Value)) {
    let path = model.join("model.json");
    let mut card = json(&path);
    edit(&mut card);
    fs::write(path, card.to_string()).unwrap();
}

#[test]
fn weights_that_are_not_the_models_are_refused() {
    let flip = |model: &Path| {
        let path = model.join("model.safetensors");
        let mut bytes = fs::read(&path).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        fs::write(path, bytes).unwrap();
    };
    refuse_model("distilled", flip, &["model.safetensors", "SHA-256", "expected", "damaged"]);
    let short = |model: &Path| cut(&model.join("model.safetensors"), 0.5);
    refuse_model("distilled", short, &["model.safetensors", "SHA-256", "expected", "damaged"]);
    // The card of a network that is twice as wide.
    let wider = |model: &Path| edit_card(model, |card| card["model"]["width"] = 1.0.into());
    refuse_model("teacher", wider, &["model.safetensors", "wrong shape", "backbone.", "has shape [", "expected ["]);
    // One class fewer: the last layer does not fit.
    let fewer = |model: &Path| {
        edit_card(model, |card| {
            card["classes"].as_array_mut().unwrap().pop();
        });
    };
    refuse_model("distilled", fewer, &["model.safetensors", "wrong shape", "has shape [", "expected ["]);
    let newer = |model: &Path| edit_card(model, |card| card["format_version"] = 99.into());
    refuse_model("distilled", newer, &["model.json", "format_version is 99, expected 1"]);
    refuse_model("distilled", |model| fs::write(model.join("model.json"), "{").unwrap(), &["model.json", "model card"]);
}

#[test]
fn a_model_that_is_not_there_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let nowhere = folder.path().join("nowhere");
    let arguments = ["eval", "--model", text(&nowhere), "--dataset", "streets"];
    refuse(&mut dsd(&arguments), &[text(&nowhere), "no such folder"]);
    let away = |model: &Path| fs::remove_file(model.join("model.safetensors")).unwrap();
    refuse_model("distilled", away, &["model.safetensors", "cannot read the weights"]);
}

#[test]
fn a_dataset_with_other_classes_than_the_models_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("data");
    write_folder(&root, "png");
    let model = smoke_run().0.join("distilled").join("best");
    let arguments = ["eval", "--model", text(&model), "--dataset", "folder", "--root", text(&root)];
    refuse(&mut dsd(&arguments), &["classes", "Sky", "wall, ground"]);
    refuse(&mut dsd(&["eval", "--model", text(&model), "--dataset", "camvid"]), &["camvid", "folder"]);
}

#[test]
fn what_is_no_image_cannot_be_predicted() {
    let folder = tempfile::tempdir().unwrap();
    let note = folder.path().join("note.png");
    fs::write(&note, "This is no picture.\n").unwrap();
    let model = smoke_run().0.join("distilled").join("best");
    let out = folder.path().join("out");
    let predict = |image: &Path| dsd(&["predict", "--model", text(&model), text(image), "--out", text(&out)]);
    refuse(&mut predict(&note), &["note.png", "neither a PNG nor a JPEG", "convert"]);
    refuse(&mut predict(&folder.path().join("gone.png")), &["gone.png", "no such file"]);
}

//! `dsd models import`: from a file without a card to a folder that evaluates and begins.

use std::fs;

use serde_json::Value;

use crate::program::{dsd, json, refuse, smoke_run, succeed, text};

#[test]
fn weights_become_a_folder_that_states_what_it_is_and_where_it_is_from() {
    let folder = tempfile::tempdir().unwrap();
    let trained = smoke_run().0.join("teacher").join("best");
    let card = json(&trained.join("model.json"));
    let classes = card["classes"].as_array().unwrap().len().to_string();
    let settings = card["model"].to_string();
    // The weights alone: nothing says how their input is scaled, nor whose names they have but ours.
    let file = folder.path().join("weights.safetensors");
    fs::copy(trained.join("model.safetensors"), &file).unwrap();
    let (whole, backbone) = (folder.path().join("whole"), folder.path().join("backbone"));
    let import = |to, more: &[&str]| {
        let mut command = dsd(&["models", "import", "--from", text(&file), "--as", &settings, "--to", text(to)]);
        command.args(more);
        command
    };
    let scale = ["--mean", "0.485", "0.456", "0.406", "--std", "0.229", "0.224", "0.225"];
    let with_classes: Vec<&str> = [&["--classes", &classes][..], &scale].concat();

    refuse(&mut import(&whole, &scale), &["--classes is missing"]);
    refuse(&mut import(&whole, &["--classes", &classes]), &["give --mean and --std"]);
    refuse(&mut import(&whole, &[&["--classes", "2"][..], &scale].concat()), &["of a wrong shape", "backbone"]);
    let printed = succeed(&mut import(&whole, &with_classes));
    assert!(printed.contains("missing             0") && printed.contains("this program"), "{printed}");
    let imported: Value = json(&whole.join("model.json"));
    assert_eq!(imported["model"], card["model"]);
    assert_eq!(imported["training"]["imported"]["source"], text(&file));
    // The network is whole: it would be evaluated, were its classes those of the dataset.
    let eval = |model| dsd(&["eval", "--model", text(model), "--dataset", "streets", "--count", "1"]);
    refuse(&mut eval(&whole), &["class 0"]);

    succeed(&mut import(&backbone, &[&["--part", "backbone"][..], &scale].concat()));
    let saved = json(&backbone.join("model.json"));
    assert_eq!((&saved["kind"], &saved["backbone"]), (&Value::from("backbone"), &card["model"]["backbone"]));
    refuse(&mut eval(&backbone), &["kind is \"backbone\"", "a whole network"]);
    // What is not there comes before what has not been said.
    let nowhere = folder.path().join("nowhere.pth");
    refuse(&mut dsd(&["models", "import", "--from", text(&nowhere), "--as", "enet", "--to", "x"]), &["nowhere.pth"]);
    refuse(&mut dsd(&["models", "import", "--from", "hub:a/b", "--as", "resnet18", "--to", "x"]), &["hub:owner/name@"]);
    refuse(&mut dsd(&["models", "import", "--from", text(&file), "--as", "resnet19", "--to", "x"]), &["resnet19"]);
}

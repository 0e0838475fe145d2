//! What networks start from: pretrained backbones, the normalisation that travels with weights, and runs that distil
//! nothing.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::program::{TINY, dsd, json, refuse, smoke_run, succeed, text, train};

/// The teacher of `smoke` as a student, so that both take the same backbone.
const TWINS: &str = "student.model={architecture=\"pspnet\",backbone=\"resnet18\",width=0.5,output_stride=16,\
                     head_channels=64,stem=\"classic\",aux=true}";
const OTHER: &str = "{mean=[0.5,0.4,0.3],std=[0.5,0.25,0.125]}";

/// The saved teacher of the `smoke` run: its backbone serves as a pretrained one.
fn backbone() -> String {
    text(&smoke_run().0.join("teacher").join("best")).to_string()
}

fn eval(model: &Path) -> Value {
    let model = text(model);
    let arguments = ["eval", "--model", model, "--dataset", "streets", "--count", "2", "--size", "48", "64", "--json"];
    serde_json::from_str(&succeed(&mut dsd(&arguments))).unwrap()
}

#[test]
fn a_recipe_without_terms_compares_two_networks() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let pretrained = format!("teacher.pretrained={}", backbone());
    let printed = succeed(&mut train(&run, &[&TINY, &["distillation=[]", TWINS, &pretrained]]));
    let metrics = json(&run.join("metrics.json"));
    let roles: Vec<&String> = metrics.as_object().unwrap().keys().collect();
    assert_eq!(roles, ["baseline", "teacher"]);
    assert!(!run.join("distilled").exists());
    assert!(!printed.contains("distilled"), "{printed}");
    let row = |role: &str| printed.lines().find(|line| line.starts_with(role)).unwrap().to_string();
    assert!(row("teacher").ends_with(&format!("backbone from {}", backbone())), "{printed}");
    assert!(row("baseline").ends_with("from the seed"), "{printed}");
    let page = fs::read_to_string(run.join("report.html")).unwrap();
    assert!(page.contains("Two networks compared") && page.contains("teacher against baseline"));
    assert!(!page.contains("distilled"), "the page speaks of a network that there is not");

    // The change is the teacher's lead over the baseline.
    let percent = |role: &str, class: &str| metrics[role]["iou"][class].as_f64().map(|iou| 100.0 * iou);
    let change = percent("teacher", "Road").unwrap() - percent("baseline", "Road").unwrap();
    let shown = row("Road").split_whitespace().last().unwrap().replace('−', "-");
    assert!((shown.parse::<f64>().unwrap() - change).abs() < 0.006, "{shown} for {change}");
    succeed(train(&run, &[&TINY, &["distillation=[]", TWINS, &pretrained]]).arg("--resume"));
    assert_eq!(succeed(&mut dsd(&["report", text(&run)])), printed);
}

#[test]
fn a_pretrained_backbone_is_where_the_network_starts_and_the_run_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let source = backbone();
    // So slow that nothing moves: what is saved is what the network started from.
    let still = ["teacher.optimiser.learning_rate=1e-30", "student.optimiser.learning_rate=1e-30", "student.steps=1"];
    let (teacher, student) = (format!("teacher.pretrained={source}"), format!("student.pretrained={source}"));
    succeed(&mut train(&run, &[&TINY, &still, &[TWINS, &teacher, &student]]));
    let theirs = dsd_models::load(Path::new(&source)).unwrap();
    let start = json(&run.join("start.json"));
    for (role, of) in [("teacher", "teacher"), ("baseline", "student"), ("distilled", "student")] {
        let saved = dsd_models::load(&run.join(role).join("best")).unwrap();
        let (mut below, mut above) = (0, 0);
        for (name, tensor) in &saved.tensors {
            let is_statistic = name.ends_with("running_mean") || name.ends_with("running_var");
            let values = |tensor: &candle_core::Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let same = values(tensor) == values(&theirs.tensors[name]);
            if name.starts_with("backbone.") && !is_statistic {
                assert!(same, "{role}: {name} is not the pretrained one");
                below += 1;
            } else if name.ends_with("classifier.weight") {
                assert!(!same, "{role}: {name} was taken too");
                above += 1;
            }
        }
        assert!(below > 50 && above > 0, "{role}: {below} and {above} tensors looked at");
        let origin = &start[of]["pretrained"];
        assert_eq!(origin["sha256"], theirs.card.weights_sha256, "{start}");
        assert_eq!(saved.card.training["pretrained"], *origin, "{role}");
    }
}

#[test]
fn each_network_keeps_the_normalisation_that_it_was_trained_with() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let set = format!("student.normalisation={OTHER}");
    succeed(&mut train(&run, &[&TINY, &[&set]]));
    let metrics = json(&run.join("metrics.json"));
    let card = |role: &str| run.join(role).join("best").join("model.json");
    let mean = |role: &str| json(&card(role))["normalisation"]["mean"][1].as_f64().unwrap();
    assert_eq!(["teacher", "baseline", "distilled"].map(|role| (1e4 * mean(role)).round()), [4560.0, 4000.0, 4000.0]);
    for role in ["teacher", "baseline", "distilled"] {
        assert_eq!(eval(&run.join(role).join("best")), metrics[role], "{role}");
    }
    // No option lets another scale in, and it is the card's that counts.
    let out = dsd(&["eval", "--model", text(&run.join("teacher").join("best")), "--mean", "0"]).output().unwrap();
    assert_eq!(out.status.code(), Some(2));
    let mut other = json(&card("teacher"));
    other["normalisation"] = json(&card("baseline"))["normalisation"].clone();
    fs::write(card("teacher"), other.to_string()).unwrap();
    assert_ne!(eval(&run.join("teacher").join("best")), metrics["teacher"]);
}

#[test]
fn a_saved_teacher_with_another_normalisation_teaches_as_if_it_had_been_trained_in_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, taken) = (folder.path().join("whole"), folder.path().join("taken"));
    let own = format!("teacher.normalisation={OTHER}");
    succeed(&mut train(&whole, &[&TINY, &[&own]]));
    let weights = format!("teacher.weights={}", text(&whole.join("teacher").join("best")));
    succeed(&mut train(&taken, &[&TINY, &[&weights]]));
    for role in ["baseline", "distilled"] {
        let bytes = |run: &Path| fs::read(run.join(role).join("best").join("model.safetensors")).unwrap();
        assert!(bytes(&whole) == bytes(&taken), "{role} differs");
    }
    let wrong = "teacher.normalisation={mean=[0.1,0.1,0.1],std=[1.0,1.0,1.0]}";
    refuse(
        &mut train(&folder.path().join("wrong"), &[&TINY, &[&weights, wrong]]),
        &["teacher.normalisation is mean [0.1, 0.1, 0.1]", "were trained with mean [0.5, 0.4, 0.3]"],
    );
}

#[test]
fn a_start_that_cannot_be_is_refused_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let (teacher, student) =
        (format!("teacher.pretrained={}", backbone()), format!("student.pretrained={}", backbone()));
    let other = format!("teacher.normalisation={OTHER}");
    let gone = "teacher.pretrained=gone/resnet18";
    let itself = "student.backbone_learning_rate_factor";
    let (tenth, none, more) = (format!("{itself}=0.1"), format!("{itself}=0"), format!("{itself}=2"));
    for (set, culprits) in [
        (vec![gone], &["gone/resnet18: no such file", "models import", "--set teacher.pretrained=\"\""] as &[&str]),
        (vec![&teacher, "teacher.model.width=1.0"], &["teacher.pretrained", "wrong shape", "expected ["]),
        (vec![&teacher, "teacher.model.backbone=resnet34"], &["teacher.pretrained", "missing", "layer1.2"]),
        (vec![&student], &["student.pretrained", "no backbone"]),
        (vec![&teacher, &other], &["teacher.normalisation is mean [0.5, 0.4, 0.3]", "were trained with mean [0.485,"]),
        (vec![&tenth], &[itself, "no backbone"]),
        (vec![&none], &[itself, "above 0 and at most 1"]),
        (vec![&more], &[itself, "above 0 and at most 1"]),
        (vec!["normalisation.std=[1.0,0.0,1.0]"], &["normalisation.std", "above 0"]),
    ] {
        refuse(&mut train(&out, &[&TINY, &set]), culprits);
        assert!(!out.exists(), "{set:?}: a refused recipe left a folder behind");
    }
    // The way out that the message names.
    succeed(&mut train(&out, &[&TINY, &[gone, "teacher.pretrained="]]));
    assert!(!fs::read_to_string(out.join("recipe.toml")).unwrap().contains("pretrained"));

    // A recipe that says nothing of the scale of its inputs.
    let own = folder.path().join("own.toml");
    let recipe = fs::read_to_string(out.join("recipe.toml")).unwrap();
    let start = recipe.find("[normalisation]").unwrap();
    let end = start + 1 + recipe[start + 1..].find("\n[").unwrap();
    fs::write(&own, format!("{}{}", &recipe[..start], &recipe[end..])).unwrap();
    let second = folder.path().join("second");
    refuse(&mut dsd(&["train", text(&own), "--out", text(&second)]), &["teacher are scaled", "[normalisation]"]);
}

#[test]
fn a_stopped_run_asks_for_the_weights_again_only_for_a_network_that_has_not_begun() {
    let folder = tempfile::tempdir().unwrap();
    let (run, source) = (folder.path().join("run"), folder.path().join("source"));
    fs::create_dir(&source).unwrap();
    for file in ["model.json", "model.safetensors"] {
        fs::copy(Path::new(&backbone()).join(file), source.join(file)).unwrap();
    }
    let sources = ["teacher", "student"].map(|role| format!("{role}.pretrained={}", text(&source)));
    let sources: Vec<&str> = sources.iter().map(String::as_str).chain([TWINS]).collect();
    succeed(&mut train(&run, &[&TINY, &sources]));
    let metrics = json(&run.join("metrics.json"));
    let forget = |role: &str, everything: bool| {
        fs::remove_file(run.join(role).join("done.json")).unwrap();
        if everything {
            fs::remove_dir_all(run.join(role)).unwrap();
        }
    };
    let again = || {
        let mut command = train(&run, &[&TINY, &sources]);
        command.arg("--resume");
        command
    };
    // From the seed and the weights once more: the same to the digit.
    forget("baseline", true);
    succeed(&mut again());
    assert_eq!(json(&run.join("metrics.json")), metrics);
    // A network with a checkpoint goes on without the weights; one without a checkpoint cannot begin.
    fs::remove_dir_all(&source).unwrap();
    forget("baseline", false);
    succeed(&mut again());
    forget("distilled", true);
    refuse(&mut again(), &["student.pretrained", text(&source), "no such file"]);
    // Nor with other weights of the same shapes.
    fs::create_dir(&source).unwrap();
    for file in ["model.json", "model.safetensors"] {
        fs::copy(run.join("teacher").join("best").join(file), source.join(file)).unwrap();
    }
    refuse(&mut again(), &["student.pretrained", "has changed since the run was started", "SHA-256"]);
}

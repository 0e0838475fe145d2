//! A whole comparison: `dsd train --compare compare-quick`, smaller still.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use serde_json::Value;

use crate::program::{dsd, json, refuse, succeed, text};

const METHODS: [&str; 3] = ["baseline", "baseline_longer", "dsd"];
const SEEDS: [u64; 2] = [1, 2];

/// A command line that makes the comparison in `out`, with overrides.
fn compare(out: &Path, overrides: &[&str]) -> Command {
    let mut command = dsd(&["train", "--compare", "compare-quick", "--out", text(out)]);
    let small = ["teacher.steps=2", "student.steps=6", "data.val_count=2", "evaluation.every=3"];
    for set in small.iter().chain(overrides) {
        command.args(["--set", set]);
    }
    command
}

/// The folder of a finished comparison and what it printed; made once, below the target folder.
fn finished() -> (&'static Path, &'static str) {
    static RUN: OnceLock<(PathBuf, String)> = OnceLock::new();
    let (folder, stdout) = RUN.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("comparison");
        if folder.exists() {
            std::fs::remove_dir_all(&folder).unwrap();
        }
        let stdout = succeed(&mut compare(&folder, &[]));
        (folder, stdout)
    });
    (folder, stdout)
}

/// The first logged step of a training.
fn first_step(folder: &Path, method: &str, seed: u64) -> Value {
    let log = std::fs::read_to_string(folder.join(format!("{method}/seed-{seed}/log.jsonl"))).unwrap();
    let line: Value = serde_json::from_str(log.lines().next().unwrap()).unwrap();
    assert_eq!((&line["event"], &line["step"]), (&"step".into(), &1.into()), "{line}");
    line
}

#[test]
fn all_methods_of_a_seed_start_alike_and_see_the_same_batch() {
    let (folder, _) = finished();
    let starts = SEEDS.map(|seed| {
        // Initial weights, dropout and batch make this number: it is the same to its last digit, or one of them differs.
        let values = METHODS.map(|method| first_step(folder, method, seed)["terms"]["cross_entropy"].as_f64().unwrap());
        assert!(values.iter().all(|value| *value == values[0]), "seed {seed}: {values:?}");
        values[0]
    });
    assert_ne!(starts[0], starts[1], "both seeds start alike");
    let terms = |method: &str| first_step(folder, method, 1)["terms"].as_object().unwrap().len();
    assert_eq!([terms("baseline"), terms("dsd")], [1, 3]);
}

#[test]
fn its_figures_are_those_of_its_trainings() {
    let (folder, _) = finished();
    let outcome = json(&folder.join("comparison.json"));
    let plan = json(&folder.join("plan.json"));
    let last = |method: &str, seed: u64| {
        let done = json(&folder.join(format!("{method}/seed-{seed}/done.json")));
        assert_eq!(done["last"]["miou"], done["last_miou"]);
        done["last_miou"].as_f64().unwrap()
    };
    for (index, method) in METHODS.iter().enumerate() {
        let row = &outcome["methods"][index];
        assert_eq!((&row["name"], &row["steps"]), (&Value::from(*method), &plan["methods"][index]["steps"]));
        let is = |figure: &Value, expected: f64| (figure.as_f64().unwrap() - expected).abs() < 1e-12;
        let [one, two] = SEEDS.map(|seed| last(method, seed));
        assert!(is(&row["last_miou"]["mean"], (one + two) / 2.0), "{row}");
        assert!(is(&row["last_miou"]["std"], (one - two).abs() / 2f64.sqrt()), "{row}");
        if *method == "baseline" {
            assert!(row["difference"].is_null());
            continue;
        }
        let [one, two] = SEEDS.map(|seed| last(method, seed) - last("baseline", seed));
        let (mean, reach) = ((one + two) / 2.0, 12.706_204_736 * (one - two).abs() / 2.0);
        assert!(is(&row["difference"]["mean"], mean), "{row}");
        let low = row["difference"]["interval"][0].as_f64().unwrap();
        assert!((low - (mean - reach)).abs() < 1e-9 * (1.0 + reach), "{low}, expected {mean} - {reach}");
    }
    let peak = |index: usize| outcome["methods"][index]["peak_bytes"].as_u64().unwrap();
    assert!(peak(2) > peak(0), "a teacher and its features take no memory: {} and {}", peak(2), peak(0));
}

#[test]
fn it_prints_a_table_after_each_seed_and_again_from_its_folder() {
    let (folder, stdout) = finished();
    for method in METHODS {
        assert_eq!(stdout.lines().filter(|line| line.starts_with(&format!("| {method} |"))).count(), SEEDS.len());
    }
    assert!(stdout.contains("1 of 2 seeds so far. One seed says nothing about chance"), "{stdout}");
    assert_eq!(stdout.lines().last().unwrap(), format!("page: {}", folder.join("comparison.html").display()));
    let page = std::fs::read_to_string(folder.join("comparison.html")).unwrap();
    for outside in ["http://", "https://", "<link", "@import", "src=", "NaN"] {
        assert!(!page.contains(outside), "the page has {outside}");
    }
    for name in METHODS.iter().chain(&["Building", "Bicyclist"]) {
        assert!(page.contains(name), "no {name} on the page");
    }
    let again = succeed(&mut dsd(&["report", text(folder)]));
    assert!(stdout.ends_with(&again), "{again}");
    assert!(std::fs::read_to_string(folder.join("comparison.html")).unwrap() == page, "the page written again differs");
}

#[cfg(unix)]
#[test]
fn a_comparison_that_was_stopped_ends_like_one_that_never_was() {
    use crate::resume::{files, interrupt_in};
    let folder = tempfile::tempdir().unwrap();
    let stopped = folder.path().join("stopped");
    interrupt_in("dsd/seed-1", &stopped, &mut compare(&stopped, &[]));
    // Without the recipe: it is in the folder, and says that this is a comparison.
    succeed(&mut dsd(&["train", "--resume", "--out", text(&stopped)]));

    let (unbroken, _) = finished();
    let aside = ["comparison.json", "comparison.html"];
    let kept = |run: &Path| {
        let mut files = files(run);
        files.retain(|name, _| !aside.contains(&name.as_str()));
        files
    };
    let (one, two) = (kept(unbroken), kept(&stopped));
    assert!(one.keys().eq(two.keys()) && one.len() > 60, "{:?}\n{:?}", one.keys(), two.keys());
    for (name, bytes) in &one {
        assert!(*bytes == two[name], "{name} differs");
    }
    let figures = |run: &Path| {
        let mut outcome = json(&run.join("comparison.json"));
        for method in outcome["methods"].as_array_mut().unwrap() {
            let runs = method["runs"].as_array().unwrap().len();
            for place in (0..runs).map(|index| format!("/runs/{index}")).chain([String::new()]) {
                let figures = method.pointer_mut(&place).unwrap().as_object_mut().unwrap();
                assert!(figures.remove("seconds_per_step").is_some() && figures.remove("peak_bytes").is_some());
            }
        }
        outcome
    };
    assert_eq!(figures(unbroken), figures(&stopped));
}

#[test]
fn it_goes_on_only_with_its_own_recipe_and_only_where_there_are_methods() {
    let (folder, _) = finished();
    refuse(
        compare(folder, &["comparison.method.2.terms.1.weight=5"]).arg("--resume"),
        &["recipe.toml", "comparison.method.2.terms.1.weight (10.0 → 5.0)"],
    );
    refuse(
        compare(folder, &["comparison.seeds=[1, 2, 3]"]).arg("--resume"),
        &["comparison.seeds ([1, 2] → [1, 2, 3])"],
    );
    let new = folder.join("new");
    refuse(&mut dsd(&["train", "--compare", "smoke", "--out", text(&new)]), &["smoke", "has no [comparison]"]);
    let missing = "comparison.method.2.terms.0.student=[\"stage2\", \"stage9\", \"head\"]";
    refuse(&mut compare(&new, &[missing]), &["dsd: the student has no feature stage9"]);
    assert!(!new.exists(), "a refused comparison left a folder behind");
}

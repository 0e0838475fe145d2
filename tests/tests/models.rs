//! What `dsd models` and `dsd recipes` say.

use serde_json::Value;

use crate::program::{dsd, refuse, smoke_run, succeed, text};

#[test]
fn models_lists_every_network_with_its_published_number_of_parameters() {
    let listed: Value = serde_json::from_str(&succeed(&mut dsd(&["models", "--json"]))).unwrap();
    let rows = listed.as_array().unwrap();
    let parameters = |name: &str| {
        let row = rows.iter().find(|row| row["name"] == name).unwrap_or_else(|| panic!("no {name}: {listed}"));
        assert!(row["parameters_source"].as_str().is_some_and(|source| !source.is_empty()), "{row}");
        row["parameters"].as_u64().unwrap() as f64 / 1e6
    };
    // Published: 0.37 M (the ENet paper counts a little more than its table sums to); 13.07 M for 19 classes.
    assert!((0.34..0.38).contains(&parameters("enet")), "{}", parameters("enet"));
    assert!((12.9..13.2).contains(&parameters("pspnet_resnet18")), "{}", parameters("pspnet_resnet18"));
    let table = succeed(&mut dsd(&["models"]));
    // Three lines for each, one above and one below.
    assert_eq!(table.lines().count(), 3 * rows.len() + 2, "{table}");
}

#[test]
fn recipes_are_listed_and_each_can_be_printed() {
    let listed = succeed(&mut dsd(&["recipes"]));
    let names: Vec<&str> = listed.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(names[..5], ["quick", "smoke", "camvid", "camvid-small", "camvid-teacher"]);
    assert!(names.contains(&"compare-camvid") && names.contains(&"ablation-terms"), "{names:?}");
    for name in names {
        let text = succeed(&mut dsd(&["recipes", name]));
        assert!(text.contains(&format!("name = \"{name}\"")), "{text}");
    }
    refuse(&mut dsd(&["recipes", "nowhere"]), &["nowhere", "quick, smoke"]);
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let run = smoke_run().0;
    let model = run.join("teacher").join("best");
    let eval =
        ["eval", "--dataset", "streets", "--count", "1", "--size", "48", "64", "--json", "--model", text(&model)];
    let report = ["report", text(run)];
    for arguments in [&["models"][..], &["models", "--json"], &["recipes"], &["recipes", "quick"], &eval, &report] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = dsd(arguments).stdout(writer).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.is_empty(), "{arguments:?}: {}: {said}", output.status);
    }
}

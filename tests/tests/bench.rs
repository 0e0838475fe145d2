//! What `dsd bench` writes for programs, and what it needs for a comparison.

use serde_json::Value;

use crate::program::{dsd, json, refuse, succeed};

#[test]
fn bench_runs_every_case_and_writes_rows_that_programs_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bench.json");
    let out = path.to_str().unwrap();
    let printed = succeed(&mut dsd(&["bench", "kernels", "ops", "losses", "--seconds", "0.001", "--json", out]));
    let rows = json(&path);
    let rows = rows.as_array().unwrap();
    // 16 convolutions in three passes, 9 operations, 16 losses.
    assert_eq!(rows.len(), 16 * 3 + 9 + 16);
    assert_eq!(printed.lines().count(), rows.len());
    for row in rows {
        assert!(["kernels", "ops", "losses"].contains(&row["bench"].as_str().unwrap()), "{row}");
        assert!(!row["case"].as_str().unwrap().is_empty() && row["ours_ms"].as_f64().unwrap() > 0.0, "{row}");
        assert_eq!((&row["peer_ms"], &row["ratio"]), (&Value::Null, &Value::Null), "no peer ran");
    }
    refuse(&mut dsd(&["bench", "kernel"]), &["kernel", "kernels, ops, losses, step, infer, loader"]);
}

#[test]
fn a_comparison_names_the_interpreter_that_it_needs() {
    let bench = || dsd(&["bench", "infer", "--only", "pspnet_resnet18_half", "--peer", "torch"]);
    refuse(bench().env_remove("DSD_PYTHON"), &["DSD_PYTHON", "torch"]);
    refuse(bench().env("DSD_PYTHON", "nowhere/python"), &["DSD_PYTHON=nowhere/python"]);
    refuse(bench().env("DSD_PYTHON", "false"), &["the peer"]);
}

#[test]
fn ours_and_pytorch_agree_and_are_timed_in_turn() {
    if std::env::var_os("DSD_PYTHON").is_none() {
        println!("skipped: DSD_PYTHON names no Python with torch");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bench.json");
    let size = ["--size", "48", "64", "--batch", "2", "--seconds", "0.001"];
    let asked =
        ["step", "infer", "--peer", "torch", "--only", "pspnet_resnet18_half", "--json", path.to_str().unwrap()];
    succeed(dsd(&["bench"]).args(asked).args(size).stderr(std::process::Stdio::null()));
    let rows = json(&path);
    // A step alone, one with a teacher, inference.
    assert_eq!(rows.as_array().unwrap().len(), 3, "{rows}");
    for row in rows.as_array().unwrap() {
        let (ours, theirs) = (row["ours_ms"].as_f64().unwrap(), row["peer_ms"].as_f64().unwrap());
        assert!((row["ratio"].as_f64().unwrap() - theirs / ours).abs() < 1e-9 * theirs / ours, "{row}");
        assert_eq!(row["peer_peak_mb"].is_number(), row["bench"] == "step" && row["ours_peak_mb"].is_number(), "{row}");
    }
}

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
    // 16 convolutions in three passes, 9 operations, 17 losses.
    assert_eq!(rows.len(), 16 * 3 + 9 + 17);
    assert_eq!(printed.lines().count(), rows.len());
    for row in rows {
        assert!(["kernels", "ops", "losses"].contains(&row["bench"].as_str().unwrap()), "{row}");
        assert!(!row["case"].as_str().unwrap().is_empty() && row["ours_ms"].as_f64().unwrap() > 0.0, "{row}");
        assert_eq!((&row["peer_ms"], &row["ratio"]), (&Value::Null, &Value::Null), "no peer ran");
    }
    refuse(
        &mut dsd(&["bench", "kernel"]),
        &["kernel", "kernels, algorithms, ops, losses, step, growth, infer, loader"],
    );
}

#[test]
fn a_network_is_timed_by_its_convolutions_and_its_step_by_operations() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bench.json");
    let small = ["--size", "32", "48", "--batch", "2", "--seconds", "0.001", "--json", path.to_str().unwrap()];
    succeed(dsd(&["bench", "kernels", "--network", "enet"]).args(small));
    let rows = json(&path);
    let rows = rows.as_array().unwrap();
    let [own, sums] = [false, true].map(|sums| {
        let chosen = rows.iter().filter(|row| row["case"].as_str().unwrap().starts_with("enet, all ") == sums);
        chosen.cloned().collect::<Vec<Value>>()
    });
    // ENet has 3×3, 5×1 and 1×5, 1×1, 2×2 and transposed ones; three passes of each kind, none of them depthwise.
    assert_eq!((own.len() % 3, sums.len()), (0, 9), "{rows:?}");
    let times = |row: &Value| row["times"].as_f64().unwrap_or(1.0);
    let total = |rows: &[Value]| rows.iter().map(|row| row["ours_ms"].as_f64().unwrap() * times(row)).sum::<f64>();
    assert!(own.iter().any(|row| times(row) > 1.0));
    assert!((total(&own) / total(&sums) - 1.0).abs() < 1e-9);
    refuse(&mut dsd(&["bench", "kernels", "--network", "enot"]), &["enot"]);

    let step = ["bench", "step", "--only", "pspnet_resnet18_half", "--profile", "--recompute"];
    let printed = succeed(dsd(&step).args(small));
    for operation in ["conv2d 3x3", "batch_norm", "recompute", "PSD and CSD alone", "the rest"] {
        assert!(printed.contains(operation), "{operation} in {printed}");
    }
    let rows = json(&path);
    let cases: Vec<&str> = rows.as_array().unwrap().iter().map(|row| row["case"].as_str().unwrap()).collect();
    assert_eq!(cases.len(), 3, "a step alone, one with a teacher, what PSD and CSD take of it: {cases:?}");
    assert!(cases.iter().all(|case| case.contains("recomputed")), "{cases:?}");
}

#[test]
fn algorithms_are_timed_with_their_errors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bench.json");
    let only = ["--only", "8,256,8,8", "--seconds", "0.001", "--json", path.to_str().unwrap()];
    succeed(dsd(&["bench", "algorithms"]).args(only));
    let rows = json(&path);
    let rows = rows.as_array().unwrap();
    // Matrix products of all taps and tap by tap, and both tiles of Winograd, in three passes.
    assert_eq!(rows.len(), 12, "{rows:?}");
    for row in rows {
        let errors: Vec<f64> = row["errors"].as_array().unwrap().iter().map(|error| error.as_f64().unwrap()).collect();
        assert!(errors.iter().all(|error| *error > 0.0 && *error < 1e-5), "{row}");
    }
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
    // A step alone, one with a teacher, PSD and CSD of it, inference.
    assert_eq!(rows.as_array().unwrap().len(), 4, "{rows}");
    for row in rows.as_array().unwrap().iter().filter(|row| !row["ratio"].is_null()) {
        let (ours, theirs) = (row["ours_ms"].as_f64().unwrap(), row["peer_ms"].as_f64().unwrap());
        assert!((row["ratio"].as_f64().unwrap() - theirs / ours).abs() < 1e-9 * theirs / ours, "{row}");
        assert_eq!(row["peer_peak_mb"].is_number(), row["bench"] == "step" && row["ours_peak_mb"].is_number(), "{row}");
    }
}

//! What `dsd bench` writes for programs.

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
    // 12 convolutions in three passes, 7 operations, 3 losses.
    assert_eq!(rows.len(), 12 * 3 + 7 + 3);
    assert_eq!(printed.lines().count(), rows.len());
    for row in rows {
        assert!(["kernels", "ops", "losses"].contains(&row["bench"].as_str().unwrap()), "{row}");
        assert!(!row["case"].as_str().unwrap().is_empty() && row["ours_ms"].as_f64().unwrap() > 0.0, "{row}");
        assert_eq!((&row["peer_ms"], &row["ratio"]), (&Value::Null, &Value::Null), "no peer ran");
    }
    refuse(&mut dsd(&["bench", "kernel"]), &["kernel", "kernels, ops, losses, step, infer, loader"]);
}

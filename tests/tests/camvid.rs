//! Real images, where the archive lies beside the workspace: imported, then a few steps on some of them.

use std::fs;
use std::path::Path;

use crate::program::{TINY, dsd, json, refuse, succeed, text, train};

const ARCHIVE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data/camvid-480x360-trainval.tar.gz");
/// Published sizes of the splits in this archive.
const SPLITS: [(&str, usize); 2] = [("train", 367), ("val", 101)];
/// Images of a split that are used.
const USED: usize = 2;

#[test]
fn the_published_archive_is_imported_and_trains() {
    let archive = Path::new(ARCHIVE);
    if !archive.is_file() {
        println!("skipped: no CamVid archive at {ARCHIVE}");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("camvid");
    let import = || dsd(&["data", "camvid", "--from", text(archive), "--to", text(&root)]);
    let printed = succeed(&mut import());
    for (split, count) in SPLITS {
        let row = printed.lines().find(|line| line.starts_with(split)).unwrap_or_else(|| panic!("{printed}"));
        assert!(row.contains(&format!(" {count} pairs")), "{row}");
    }
    refuse(&mut import(), &[text(&root), "already holds something"]);

    for (split, count) in SPLITS {
        let list = root.join(format!("{split}.txt"));
        let lines = fs::read_to_string(&list).unwrap();
        assert_eq!(lines.lines().count(), count, "{}", list.display());
        fs::write(&list, lines.lines().take(USED).collect::<Vec<_>>().join("\n")).unwrap();
    }
    let run = folder.path().join("run");
    let data_root = format!("data.root={}", text(&root));
    let overrides = ["data.dataset=camvid", &data_root, "augmentation.crop=[64, 64]", "student.model=enet"];
    succeed(&mut train(&run, &[&TINY, &overrides]));
    let metrics = json(&run.join("metrics.json"));
    for role in ["teacher", "baseline", "distilled"] {
        assert_eq!(metrics[role]["iou"].as_object().unwrap().len(), 11, "{metrics}");
        assert!(metrics[role]["miou"].as_f64().is_some_and(|miou| (0.0..=1.0).contains(&miou)), "{metrics}");
    }
    // The program's own evaluation, through the dataset's name on the command line.
    let model = run.join("distilled").join("best");
    let size = ["--size", "48", "64"]; // TINY's
    let arguments = ["eval", "--model", text(&model), "--dataset", "camvid", "--root", text(&root), "--json"];
    let arguments = [&arguments[..], &size].concat();
    let printed: serde_json::Value = serde_json::from_str(&succeed(&mut dsd(&arguments))).unwrap();
    assert_eq!(printed, metrics["distilled"]);
}

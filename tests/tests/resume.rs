//! Stopping, continuing and repeating a run: the result is the same to the byte. And what is not continued.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::program::{TINY, dsd, json, refuse, succeed, text, train};

/// All files of a run by their paths in it, apart from those that hold times.
pub(crate) fn files(run: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![run.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for item in fs::read_dir(&folder).unwrap() {
            let path = item.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if path.is_dir() {
                folders.push(path);
            } else if !["times.json", "report.html"].contains(&name) {
                let inside = path.strip_prefix(run).unwrap().to_str().unwrap().to_string();
                found.insert(inside, fs::read(&path).unwrap());
            }
        }
    }
    found
}

/// Two runs left the same files with the same bytes.
pub(crate) fn assert_same(run: &Path, other: &Path) {
    let (one, two) = (files(run), files(other));
    let names = |files: &BTreeMap<String, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&one), names(&two));
    // Each of the networks: model, card, metrics, end mark, a checkpoint of four files; and those of the whole run.
    for name in ["recipe.toml", "log.jsonl", "metrics.json", "distilled/best/model.safetensors", "baseline/done.json"] {
        assert!(one.contains_key(name), "no {name}");
    }
    assert!(one.len() >= 30, "{} files", one.len());
    for (name, bytes) in &one {
        assert!(*bytes == two[name], "{name} differs");
    }
}

#[test]
fn a_run_is_repeated_to_the_byte_by_the_recipe_that_it_kept() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (folder.path().join("first"), folder.path().join("second"));
    succeed(&mut train(&first, &[&TINY]));
    let recipe = first.join("recipe.toml");
    // The number of threads changes nothing.
    let mut again = dsd(&["train", text(&recipe), "--out", text(&second)]);
    succeed(again.env("RAYON_NUM_THREADS", "1"));
    assert_same(&first, &second);
}

/// Starts `command`, which works in `run`, sends it Ctrl-C's signal after the first evaluation of `role`, and waits for
/// its end.
///
/// Nothing here looks at a clock: reading the program's log blocks until the line is there, and the steps that follow
/// an evaluation take many times as long as sending a signal.
#[cfg(unix)]
pub(crate) fn interrupt_in(role: &str, run: &Path, command: &mut std::process::Command) {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};

    let mut child = command.env("DSD_LOG", "info").stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let (mut asked, mut lines) = (false, Vec::new());
    for line in BufReader::new(child.stderr.take().unwrap()).lines() {
        let line = line.unwrap();
        if !asked && line.contains(&format!("{role}, step ")) {
            let sent = Command::new("sh").args(["-c", &format!("kill -INT {}", child.id())]).status().unwrap();
            assert!(sent.success());
            asked = true;
        }
        lines.push(line);
    }
    let code = child.wait().unwrap().code();
    assert_eq!((asked, code), (true, Some(130)), "{}", lines.join("\n"));

    // error: stopped by request at step N of ROLE; continue with --resume --out RUN
    let last = lines.last().unwrap();
    let step = last.strip_prefix("error: stopped by request at step ").and_then(|rest| rest.split(' ').next());
    let step: u64 = step.and_then(|step| step.parse().ok()).unwrap_or_else(|| panic!("{last}"));
    assert!(last.ends_with(&format!("of {role}; continue with --resume --out {}", run.display())), "{last}");
    let saved = run.join(role).join("checkpoints").join(format!("step-{step:08}"));
    assert!(saved.join("manifest.json").is_file(), "no checkpoint {}", saved.display());
    assert!(!run.join("metrics.json").exists() && !run.join("comparison.json").exists());
}

#[cfg(unix)]
#[test]
fn a_run_that_was_stopped_twice_ends_like_one_that_never_was() {
    // Evaluations and checkpoints at different rhythms, and many steps left after the first evaluation.
    let long = [
        "teacher.steps=30",
        "student.steps=30",
        "evaluation.every=3",
        "run.checkpoint_every=4",
        "run.log_every=1",
        "run.workers=2",
        // Adaptors, a memory, a critic and balanced weights go on as well.
        concat!(
            "distillation=[",
            "{ term = 'fitnet', weight = 0.1, student = ['head'], teacher = ['head'] },",
            "{ term = 'memory_contrast', weight = 0.1, student = ['head'], teacher = ['head'],",
            "  pixel_capacity = 64, region_capacity = 16 },",
            "{ term = 'adversarial', weight = 0.01, critic = 'tiny' },",
            "{ term = 'csd', share = 0.2, preset = 'paper_reading' }]"
        ),
        "objective={ balance = 'share', balance_steps = 3, share_every = 10 }",
        // Logits of both networks at 16×16 and more, for the critic.
        "augmentation.crop=[64, 64]",
        "data.size=[64, 96]",
        "teacher.model={ architecture = 'enet' }",
    ];
    let folder = tempfile::tempdir().unwrap();
    let (unbroken, stopped) = (folder.path().join("unbroken"), folder.path().join("stopped"));
    succeed(&mut train(&unbroken, &[&TINY, &long]));
    interrupt_in("teacher", &stopped, &mut train(&stopped, &[&TINY, &long]));
    interrupt_in("distilled", &stopped, train(&stopped, &[&TINY, &long]).arg("--resume"));
    succeed(train(&stopped, &[&TINY, &long]).arg("--resume"));
    assert_same(&unbroken, &stopped);
}

#[test]
fn a_run_is_continued_only_where_one_is_and_only_with_its_own_recipe() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    refuse(train(&run, &[&TINY]).arg("--resume"), &[text(&run), "no run to resume"]);
    succeed(&mut train(&run, &[&TINY]));
    refuse(&mut train(&run, &[&TINY]), &[text(&run), "holds a run already", "--resume"]);
    refuse(
        train(&run, &[&TINY, &["student.steps=3"]]).arg("--resume"),
        &[text(&run.join("recipe.toml")), "student.steps (2 → 3)"],
    );
    // A finished run is not trained again.
    let log = fs::read(run.join("log.jsonl")).unwrap();
    succeed(train(&run, &[&TINY]).arg("--resume"));
    assert!(fs::read(run.join("log.jsonl")).unwrap() == log);
}

#[test]
fn a_folder_in_which_another_process_works_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let held = fs::File::create(folder.path().join("run.lock")).unwrap();
    held.try_lock().unwrap();
    refuse(&mut train(folder.path(), &[&TINY]), &[text(folder.path()), "another process", "--out"]);
    drop(held);
    succeed(&mut train(folder.path(), &[&TINY]));
}

#[test]
fn damaged_checkpoints_are_passed_over_or_named() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let settings = ["teacher.steps=4", "run.checkpoint_every=2"];
    succeed(&mut train(&run, &[&TINY, &settings]));
    let result = json(&run.join("metrics.json"));
    // The student's stages are finished; the teacher's last checkpoint is torn and its end mark gone.
    let checkpoints = run.join("teacher").join("checkpoints");
    let tear = |step: &str| {
        let path = checkpoints.join(step).join("model.safetensors");
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    };
    fs::remove_file(run.join("teacher").join("done.json")).unwrap();
    tear("step-00000004");
    succeed(train(&run, &[&TINY, &settings]).arg("--resume"));
    assert_eq!(json(&run.join("metrics.json")), result, "another result from the checkpoint before");

    fs::remove_file(run.join("teacher").join("done.json")).unwrap();
    tear("step-00000002");
    tear("step-00000004");
    refuse(
        train(&run, &[&TINY, &settings]).arg("--resume"),
        &["step-00000002", "step-00000004", "model.safetensors: damaged"],
    );
}

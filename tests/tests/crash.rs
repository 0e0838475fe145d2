//! Runs that are killed, fail to write, or work with other threads: in the end the same bytes.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use dsd_random::Stream;
use dsd_tests::cases;

use crate::program::{TINY, dsd, refuse, succeed, text, train};
use crate::resume::{assert_same, files};

/// Many saves, evaluations and stages in a short time; the rhythms have no common period.
const BUSY: [&str; 9] = [
    "teacher.steps=7",
    "student.steps=7",
    "evaluation.every=3",
    "run.checkpoint_every=2",
    "run.log_every=1",
    "run.workers=2",
    "data.train_count=5",
    "student.ema=0.9",
    "student.accumulate=2",
];

/// The command that begins the run in this folder or goes on with it.
fn go_on(run: &Path) -> Command {
    let mut command = train(run, &[&TINY, &BUSY]);
    if run.join("recipe.toml").exists() {
        command.arg("--resume");
    }
    command
}

/// Lets a command work until it has said `count` lines about its steps and file operations, and kills it then. `None`
/// where it ended before, with success; else whether a checkpoint was being written.
fn kill_after(mut command: Command, count: usize) -> Option<bool> {
    command.env("DSD_LOG", "dsd_train=trace").stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(|line| line.unwrap());
    let mut seen: Vec<String> = lines.by_ref().take(count).collect();
    if seen.len() == count {
        child.kill().unwrap();
        assert!(!child.wait().unwrap().success());
        return Some(seen.last().is_some_and(|line| line.contains(".tmp")));
    }
    seen.extend(lines);
    assert!(child.wait().unwrap().success(), "{}", seen.join("\n"));
    None
}

/// Kills runs at seeded moments until `kills` of them are made, each run going on from where it was killed until it
/// ends, and compares all files with those of a run that was never killed.
fn kill_and_compare(kills: usize, seed: u64) {
    let folder = tempfile::tempdir().unwrap();
    let unbroken = folder.path().join("unbroken");
    succeed(&mut go_on(&unbroken));
    // How many lines a whole run has: the moments to choose from.
    let mut command = go_on(&folder.path().join("counted"));
    let output = command.env("DSD_LOG", "dsd_train=trace").output().unwrap();
    let moments = String::from_utf8(output.stderr).unwrap().lines().count();
    assert!(moments > 150, "{moments} lines");

    let (mut made, mut in_save, mut runs) = (0, 0, 0);
    while made < kills {
        let run = folder.path().join(format!("killed{runs}"));
        let mut stream = Stream::new(seed, "kills", runs, 0);
        // On average six kills before the end of a run, some of them soon after each other.
        while let Some(saving) = kill_after(go_on(&run), 1 + stream.below(moments / 3)) {
            (made, in_save) = (made + 1, in_save + usize::from(saving));
            assert!(made < 20 * kills.max(10), "run {runs} of seed {seed} makes no progress");
        }
        assert_same(&unbroken, &run);
        fs::remove_dir_all(&run).unwrap();
        runs += 1;
    }
    assert!(in_save > 0, "no kill hit a save");
    let same = files(&unbroken).len();
    println!(
        "figure C1 kills {made} in {runs} runs, {in_save} of them in a save; {same} files with the same bytes each"
    );
}

#[test]
fn runs_killed_at_thirty_moments_end_with_the_bytes_of_one_that_was_not() {
    kill_and_compare(cases(30, 300) as usize, 1);
}

/// The long form: `cargo xtask crash --points N`.
#[test]
#[ignore = "minutes; started by `cargo xtask crash`"]
fn runs_killed_at_many_moments_end_with_the_bytes_of_one_that_was_not() {
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse().ok());
    kill_and_compare(number("DSD_CRASH_POINTS").unwrap_or(300) as usize, number("DSD_CRASH_SEED").unwrap_or(2));
}

/// A shell that lets no file grow beyond so many blocks: a write beyond fails, as on a full disk.
#[cfg(unix)]
fn on_a_full_disk(blocks: usize, command: &Command) -> Command {
    let mut limited = Command::new("sh");
    limited.args(["-c", &format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"")]);
    limited.arg(command.get_program()).args(command.get_args());
    limited.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    limited
}

#[cfg(unix)]
#[test]
fn a_run_that_finds_the_disk_full_says_so_and_goes_on_later() {
    let folder = tempfile::tempdir().unwrap();
    let (unbroken, run) = (folder.path().join("unbroken"), folder.path().join("run"));
    let output = go_on(&unbroken).env("DSD_LOG", "dsd_train=trace").output().unwrap();
    assert!(output.status.success());
    let log = String::from_utf8(output.stderr).unwrap();
    let second_save = log.lines().position(|line| line.contains("step-00000004")).unwrap();
    // From the start, and again after there is a checkpoint.
    refuse(&mut on_a_full_disk(64, &go_on(&run)), &["step-00000002", ".safetensors", "too large"]);
    assert!(kill_after(go_on(&run), second_save + 1).is_some());
    let before = files(&run.join("teacher").join("checkpoints"));
    assert!(before.keys().any(|name| name == "step-00000002/manifest.json"), "{:?}", before.keys());
    refuse(&mut on_a_full_disk(64, &go_on(&run)), &["teacher", ".safetensors", "too large"]);
    succeed(&mut go_on(&run));
    assert_same(&unbroken, &run);
}

#[test]
fn a_folder_that_cannot_be_written_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    refuse(&mut go_on(&file.join("run")), &[text(&file)]);
    let run = folder.path().join("run");
    fs::create_dir_all(run.join("teacher")).unwrap();
    fs::write(run.join("teacher").join("checkpoints"), "").unwrap();
    refuse(&mut go_on(&run), &[text(&run.join("teacher").join("checkpoints"))]);
}

#[test]
fn loader_workers_and_threads_change_no_byte() {
    let folder = tempfile::tempdir().unwrap();
    let mut runs = Vec::new();
    let mut ways = vec![("0", "1"), ("0", "2"), ("2", "1"), ("2", "2")];
    if cases(0, 1) > 0 {
        ways.extend([("1", "1"), ("1", "2"), ("4", "1"), ("4", "2")]);
        ways = ways.repeat(5);
    }
    for (number, (workers, threads)) in ways.iter().enumerate() {
        let run = folder.path().join(number.to_string());
        let set = format!("run.workers={workers}");
        succeed(train(&run, &[&TINY, &BUSY, &[&set]]).env("RAYON_NUM_THREADS", threads));
        runs.push(run);
    }
    for other in &runs[1..] {
        // The recipe says how many workers there were.
        fs::copy(runs[0].join("recipe.toml"), other.join("recipe.toml")).unwrap();
        assert_same(&runs[0], other);
    }
    println!("figure D1 runs_with_other_workers_and_threads {}", runs.len());
}

#[cfg(unix)]
#[test]
fn a_second_process_on_a_run_is_refused_while_the_first_works() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let mut command = go_on(&run);
    command.env("DSD_LOG", "dsd_train=trace").stdout(Stdio::null()).stderr(Stdio::piped());
    let mut first = command.spawn().unwrap();
    let mut lines = BufReader::new(first.stderr.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("teacher, step 1")));
    // Held where it is: many steps before its end, sending a signal takes a small part of one.
    let signal = |name: &str| Command::new("kill").args([name, &first.id().to_string()]).status().unwrap();
    assert!(signal("-STOP").success());
    refuse(&mut dsd(&["train", "--resume", "--out", text(&run)]), &[text(&run), "another process"]);
    first.kill().unwrap();
    first.wait().unwrap();
    drop(lines);
    succeed(&mut go_on(&run));
}

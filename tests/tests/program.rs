//! Finding and running the program, and the one `smoke` run that several tests look at.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

/// Overrides that make a run of `smoke` a matter of a second or two.
pub(crate) const TINY: [&str; 9] = [
    "data.train_count=4",
    "data.val_count=2",
    "data.size=[48, 64]",
    "augmentation.crop=[32, 48]",
    "teacher.steps=2",
    "teacher.batch_size=2",
    "student.steps=2",
    "student.batch_size=2",
    "run.pictures=1",
];

/// The built program.
///
/// This package cannot depend on another one's program, so cargo is asked for it: a moment's work where it is up to
/// date, and never an outdated one.
fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        let test = std::env::current_exe().unwrap();
        // TARGET/PROFILE/deps/TEST
        let profile = test.ancestors().nth(2).unwrap();
        let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        build.args(["build", "--quiet", "--package", "dsd-train", "--bin", "dsd", "--target-dir"]);
        build.arg(profile.parent().unwrap()).current_dir(env!("CARGO_MANIFEST_DIR"));
        if profile.file_name().unwrap() == "release" {
            build.arg("--release");
        }
        assert!(build.status().unwrap().success(), "cargo could not build dsd");
        profile.join(format!("dsd{}", std::env::consts::EXE_SUFFIX))
    })
}

/// A command line of `dsd`, not yet started. It says nothing but errors, and is asked for backtraces, which must not
/// reach the user.
pub(crate) fn dsd(arguments: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.args(arguments).env("RUST_BACKTRACE", "1").env("DSD_LOG", "error");
    command
}

/// A command line that trains `smoke` in `out` with overrides.
pub(crate) fn train(out: &Path, overrides: &[&[&str]]) -> Command {
    let mut command = dsd(&["train", "smoke", "--out", text(out)]);
    for set in overrides.concat() {
        command.args(["--set", set]);
    }
    command
}

/// Runs a command line that has to succeed without a word on standard error; its standard output.
pub(crate) fn succeed(command: &mut Command) -> String {
    let (code, stdout, stderr) = outcome(command);
    assert_eq!((code, stderr.as_str()), (Some(0), ""), "{command:?}");
    stdout
}

/// Runs a command line that has to fail with exit code 1 and exactly one line, `error: …`, which names all of `culprits`.
pub(crate) fn refuse(command: &mut Command, culprits: &[&str]) {
    let (code, stdout, stderr) = outcome(command);
    assert_eq!((code, stdout.as_str()), (Some(1), ""), "{command:?}: {stderr}");
    assert!(stderr.starts_with("error: ") && stderr.ends_with('\n'), "{command:?}: {stderr}");
    assert_eq!(stderr.lines().count(), 1, "{command:?}: {stderr}");
    for culprit in culprits {
        assert!(stderr.contains(culprit), "{command:?}: expected {culprit:?} in: {stderr}");
    }
}

/// Exit code, standard output, standard error.
fn outcome(command: &mut Command) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

/// The folder of a finished `smoke` run and what it printed; trained once, below the target folder.
pub(crate) fn smoke_run() -> (&'static Path, &'static str) {
    static RUN: OnceLock<(PathBuf, String)> = OnceLock::new();
    let (folder, stdout) = RUN.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("smoke");
        if folder.exists() {
            std::fs::remove_dir_all(&folder).unwrap();
        }
        let stdout = succeed(&mut train(&folder, &[]));
        (folder, stdout)
    });
    (folder, stdout)
}

/// A path of the tests as text.
pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A JSON file.
pub(crate) fn json(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

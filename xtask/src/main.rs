//! The project's own commands: `cargo xtask train`, `data`, `bench`, `equality`, `crash`, `reliability`, `test`, `tidy`.
//!
//! Thin on purpose: it calls cargo and the `dsd` program, so that this binary is built in seconds.

mod reliability;
mod tidy;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};

/// The project's own commands.
#[derive(Parser, Debug)]
#[command(name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand, Debug)]
enum Task {
    /// Train by a recipe: `cargo xtask train [RECIPE] [--set KEY=VALUE]… [--out DIR] [--resume]`.
    #[command(disable_help_flag = true)]
    Train(PassedOn),
    /// Import or check a dataset: `cargo xtask data NAME --from ARCHIVE [--to DIR]`, `cargo xtask data check DIR`.
    #[command(disable_help_flag = true)]
    Data(PassedOn),
    /// Time kernels, operations and steps: `cargo xtask bench [GROUP]… [--json FILE]`.
    #[command(disable_help_flag = true)]
    Bench(PassedOn),
    /// Any other command of the program: `cargo xtask dsd predict …`.
    #[command(disable_help_flag = true)]
    Dsd(PassedOn),
    /// Compare every network with another implementation of it and print the table of docs/equality.md.
    Equality,
    /// Kill runs at many seeded moments, let them go on and compare all their files: `cargo xtask crash --points N`.
    Crash {
        /// How many kills.
        #[arg(long, default_value_t = 300)]
        points: usize,
        /// The seed of the moments.
        #[arg(long, default_value_t = 2)]
        seed: u64,
    },
    /// Run the tests behind docs/reliability.md and write how many cases each tried.
    Reliability {
        /// With the counts of the deep tier, and the tests that only it has.
        #[arg(long)]
        deep: bool,
        /// Run nothing; write the page's table again from docs/reliability.json.
        #[arg(long)]
        table: bool,
    },
    /// What CI runs: format, tidy, lints, tests, documentation.
    Test,
    /// Checks of the source tree that no lint knows.
    Tidy,
}

#[derive(clap::Args, Debug)]
struct PassedOn {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

fn main() {
    if let Err(error) = run() {
        eprintln!("error: {error:#}");
        std::process::exit(1);
    }
}

fn run() -> Result<()> {
    match Arguments::parse().task {
        Task::Train(passed) => dsd(Some("train"), &passed.arguments),
        Task::Data(passed) => dsd(Some("data"), &passed.arguments),
        Task::Bench(passed) => dsd(Some("bench"), &passed.arguments),
        Task::Dsd(passed) => dsd(None, &passed.arguments),
        Task::Equality => equality(),
        Task::Crash { points, seed } => crash(points, seed),
        Task::Reliability { table: true, .. } => reliability::write_table(&root()?),
        Task::Reliability { deep, .. } => reliability::run(&root()?, deep, cargo()?),
        Task::Test => test(),
        Task::Tidy => tidy::check(&root()?),
    }
}

/// The workspace's folder: by what `cargo run` says now, for a build folder shared by two checkouts keeps the program of
/// the first.
fn root() -> Result<PathBuf> {
    let here = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    Ok(Path::new(&here).parent().context("xtask lies in no workspace")?.to_path_buf())
}

/// Builds the program and becomes it, so that signals and the exit code are its own.
fn dsd(command: Option<&str>, arguments: &[String]) -> Result<()> {
    let mut cargo = cargo()?;
    cargo.args(["run", "--release", "--package", "dsd-train", "--bin", "dsd", "--"]);
    cargo.args(command).args(arguments);
    if let Some(commit) = commit() {
        cargo.env("DSD_COMMIT", commit);
    }
    become_process(cargo)
}

#[cfg(unix)]
fn become_process(mut command: Command) -> Result<()> {
    use std::os::unix::process::CommandExt;
    Err(command.exec()).context("cannot start cargo")
}

#[cfg(not(unix))]
fn become_process(mut command: Command) -> Result<()> {
    let status = command.status().context("cannot start cargo")?;
    std::process::exit(status.code().unwrap_or(1));
}

/// Everything a landing must pass, cheapest first.
fn test() -> Result<()> {
    step("format", cargo()?.args(["fmt", "--all", "--", "--check"]))?;
    println!("== tidy");
    tidy::check(&root()?)?;
    step(
        "lints",
        cargo()?.args(["clippy", "--release", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"]),
    )?;
    step("tests", cargo()?.args(["test", "--release", "--workspace", "--locked"]))?;
    let mut doc = cargo()?;
    doc.env("RUSTDOCFLAGS", "-D warnings");
    step("documentation", doc.args(["doc", "--release", "--workspace", "--no-deps", "--locked"]))?;
    println!("== all passed");
    Ok(())
}

/// The test that CI runs too, with what it prints.
fn equality() -> Result<()> {
    let mut cargo = cargo()?;
    cargo.args(["test", "--release", "--locked", "--package", "dsd-models", "--test", "networks", "--"]);
    cargo.args(["--exact", "equality::networks_are_equal_to_other_implementations", "--nocapture"]);
    become_process(cargo)
}

/// The long form of a test that CI runs with few kills.
fn crash(points: usize, seed: u64) -> Result<()> {
    let mut cargo = cargo()?;
    cargo.env("DSD_CRASH_POINTS", points.to_string()).env("DSD_CRASH_SEED", seed.to_string());
    cargo.args(["test", "--release", "--workspace", "--locked", "--test", "dsd", "--", "--ignored", "--nocapture"]);
    cargo.args(["--exact", "crash::runs_killed_at_many_moments_end_with_the_bytes_of_one_that_was_not"]);
    become_process(cargo)
}

fn step(name: &str, command: &mut Command) -> Result<()> {
    println!("== {name}");
    let started = std::time::Instant::now();
    let status = command.status().with_context(|| format!("cannot start {command:?}"))?;
    if !status.success() {
        bail!("{name} failed");
    }
    println!("== {name}: {:.0} s", started.elapsed().as_secs_f64());
    Ok(())
}

fn cargo() -> Result<Command> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    Ok(Command::new(cargo))
}

/// The commit that is checked out, marked where files differ from it.
fn commit() -> Option<String> {
    let output = Command::new("git").args(["describe", "--always", "--dirty", "--abbrev=10"]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_string();
    (output.status.success() && !text.is_empty()).then_some(text)
}

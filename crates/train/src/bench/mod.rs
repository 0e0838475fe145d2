//! Benchmarks: kernels, operations, losses, whole training steps and inference.
//!
//! Medians of at least five runs after a warm-up. Inputs are dense and random, so that no zero is skipped; a backward
//! pass gets a dense random gradient. With `--json FILE` an array of `{"bench", "case", "ours_ms", "peer_ms", "ratio"}`
//! is written, ratio = peer / ours, null where no peer ran.

mod cases;
mod loader;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::checkpoint::write_whole;

/// What to time.
#[derive(clap::Args, Debug)]
pub struct BenchArguments {
    /// Groups: kernels, ops, losses, step, infer, loader [default: all but loader].
    groups: Vec<String>,
    /// Only cases whose name contains this text.
    #[arg(long)]
    only: Option<String>,
    /// Write the figures as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// loader: a CamVid folder in the SegNet form [default: generated images].
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// loader: time this peer too, in turns (torch; its interpreter is $DSD_PYTHON or python3).
    #[arg(long, value_parser = ["torch"])]
    peer: Option<String>,
    /// Seconds for each case, at least five runs.
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
}

/// One timed case.
#[derive(Debug, Serialize)]
struct Row {
    bench: &'static str,
    case: String,
    ours_ms: f64,
    peer_ms: Option<f64>,
    ratio: Option<f64>,
}

/// Runs of a case before the ones that count.
const WARM_UP: usize = 2;
/// Runs that count, at least.
const RUNS: usize = 5;
/// Runs that count, at most.
const MOST_RUNS: usize = 200;

/// Collects rows and prints them as they come.
pub(crate) struct Bench {
    bench: &'static str,
    only: Option<String>,
    seconds: f64,
    rows: Vec<Row>,
}

impl Bench {
    /// Times `run`; `work` is the number of floating-point operations of one run, 0 where that says nothing.
    pub(crate) fn case(&mut self, name: &str, work: f64, mut run: impl FnMut() -> crate::Result<()>) -> Result<()> {
        if self.only.as_ref().is_some_and(|only| !name.contains(only.as_str())) {
            return Ok(());
        }
        for _ in 0..WARM_UP {
            run().with_context(|| name.to_string())?;
        }
        let mut times: Vec<Duration> = Vec::new();
        let started = Instant::now();
        while times.len() < RUNS || (times.len() < MOST_RUNS && started.elapsed().as_secs_f64() < self.seconds) {
            let begun = Instant::now();
            run().with_context(|| name.to_string())?;
            times.push(begun.elapsed());
        }
        times.sort();
        let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
        let median = milliseconds(times[times.len() / 2]);
        let (least, most) = (milliseconds(times[0]), milliseconds(times[times.len() - 1]));
        let rate = if work > 0.0 { format!("{:8.1} GFLOP/s", work / median / 1e6) } else { String::new() };
        say_line!("{:8} {name:48} {median:9.2} ms  ({least:.2}–{most:.2}) {rate}", self.bench)?;
        self.rows.push(Row { bench: self.bench, case: name.to_string(), ours_ms: median, peer_ms: None, ratio: None });
        Ok(())
    }
}

type Group = (&'static str, fn(&mut Bench) -> Result<()>);

/// Runs the groups that were asked for.
///
/// # Errors
/// An unknown group; a case that fails, by name; a file that cannot be written.
pub fn run(arguments: &BenchArguments) -> Result<()> {
    let groups: [Group; 5] = [
        ("kernels", cases::kernels),
        ("ops", cases::ops),
        ("losses", cases::losses),
        ("step", cases::step),
        ("infer", cases::infer),
    ];
    let known = |name: &str| name == "loader" || groups.iter().any(|(known, _)| *known == name);
    if let Some(unknown) = arguments.groups.iter().find(|name| !known(name)) {
        bail!("no group {unknown}; there are {}, loader", groups.map(|(name, _)| name).join(", "));
    }
    let mut bench = Bench { bench: "", only: arguments.only.clone(), seconds: arguments.seconds, rows: Vec::new() };
    for (name, group) in groups {
        if arguments.groups.is_empty() || arguments.groups.iter().any(|asked| asked == name) {
            bench.bench = name;
            group(&mut bench)?;
        }
    }
    if arguments.groups.iter().any(|asked| asked == "loader") {
        loader::run(&mut bench, arguments.data.as_deref(), arguments.peer.is_some())?;
    }
    if let Some(path) = &arguments.json {
        write_whole(path, &serde_json::to_vec_pretty(&bench.rows)?)?;
    }
    Ok(())
}

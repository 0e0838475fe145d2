//! Benchmarks: kernels, operations, losses, whole training steps and what they grow with, inference, the loader.
//!
//! Medians of at least five turns after a warm-up. Inputs are dense and random, so that no zero is skipped; a backward
//! pass gets a dense random gradient. With `--json FILE` an array of `{"bench", "case", "ours_ms", "peer_ms", "ratio"}`
//! is written, ratio = peer / ours, null where no peer ran; steps and losses also have `ours_peak_mb` and `peer_peak_mb`.
//! `apart_ns` is how long a message between two threads took there and back, the least and the most of all turns.
//!
//! With `--peer torch` the same case runs in PyTorch, ours and theirs in turn, in each of its ways (memory formats;
//! onnxruntime for inference); the way with the least median counts. A scalar that both compute, such as a loss, has to
//! agree before anything is timed. Of a turn the second half counts.

mod apart;
mod growth;
mod inputs;
mod kernels;
mod loader;
mod losses;
mod memory;
mod networks;
mod operations;
mod peer;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use candle_core::Tensor;
use serde::Serialize;
use serde_json::Value;

use crate::checkpoint::write_whole;
use peer::{Peer, Prepared};

/// What to time.
#[derive(clap::Args, Debug)]
pub struct BenchArguments {
    /// Groups: kernels, algorithms, ops, losses, step, growth, infer, loader [default: kernels, ops, losses, step, infer].
    groups: Vec<String>,
    /// Only cases whose name contains this text; given several times, any of these texts.
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
    /// Write the figures as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// loader: a CamVid folder in the SegNet form [default: generated images].
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Seconds for each case, at least five turns.
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Run the same in PyTorch, in turn; DSD_PYTHON names the interpreter. On 2 threads each.
    #[arg(long, value_enum)]
    peer: Option<PeerKind>,
    /// kernels: the convolutions of this network (`all`: of every one), at --batch and --size, in place of the listed ones.
    #[arg(long)]
    network: Option<String>,
    /// step: blocks computed again in the backward pass instead of kept.
    #[arg(long)]
    recompute: bool,
    /// step: what each kind of operation takes, in three more steps.
    #[arg(long)]
    profile: bool,
    /// Without Winograd's algorithm.
    #[arg(long)]
    exact: bool,
    /// Images of a training step.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..))]
    batch: u16,
    /// Height and width of images [default: 256 256 in a step, 360 480 in inference].
    #[arg(long, num_args = 2, value_names = ["HEIGHT", "WIDTH"], value_parser = clap::value_parser!(u16).range(8..))]
    size: Option<Vec<u16>>,
}

impl BenchArguments {
    /// As many threads as the peer has; `None` without one.
    pub(crate) fn threads(&self) -> Option<usize> {
        self.peer.map(|_| THREADS)
    }
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum PeerKind {
    Torch,
}

/// One timed case.
#[derive(Debug, Default, Serialize)]
struct Row {
    bench: &'static str,
    case: String,
    ours_ms: f64,
    peer_ms: Option<f64>,
    ratio: Option<f64>,
    /// The least and the most of [`apart::round_trip`], before each turn.
    #[serde(skip_serializing_if = "Option::is_none")]
    apart_ns: Option<[f64; 2]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ours_peak_mb: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer_peak_mb: Option<f64>,
    /// kernels: how often the network has this shape.
    #[serde(skip_serializing_if = "Option::is_none")]
    times: Option<usize>,
    /// kernels: the time below which a direct sum cannot come.
    #[serde(skip_serializing_if = "Option::is_none")]
    roof_ms: Option<f64>,
    /// algorithms: the error with inputs of mean zero and after a ReLU.
    #[serde(skip_serializing_if = "Option::is_none")]
    errors: Option<[f64; 2]>,
    /// growth: the exponent of the work.
    #[serde(skip_serializing_if = "Option::is_none")]
    exponent: Option<f64>,
}

/// Runs of a case before the ones that count.
const WARM_UP: usize = 2;
/// Turns, at least.
const TURNS: usize = 5;
/// Turns, at most.
const MOST_TURNS: usize = 200;
/// Seconds of a turn that count, after as many that do not: the threads of the other side's OpenMP loops spin for some
/// milliseconds after it, and the system needs some to spread our own over the processors again.
const TURN: f64 = 0.05;
/// A first run of so many turns counts itself. Those of half a second and of a few seconds do not yet: a step that comes
/// after the other side's takes up to a tenth longer than the step after it, and trainings consist of the latter.
const LONG_RUN: f64 = 100.0;
/// Of all of a case's seconds, the most that a turn takes.
const TURN_SHARE: f64 = 0.05;
/// The roofline: operations and bytes of main memory per second that two cores of the machines that this was written on
/// reach. Winograd's algorithm has fewer operations than are counted; what stays in the cache is faster.
const ROOF_OPERATIONS: f64 = 165e9;
const ROOF_BYTES: f64 = 21e9;
/// Threads of each side of a comparison.
const THREADS: usize = 2;
/// Of the values of both sides: |difference| over 1 + |value|.
const AGREEMENT: f64 = 1e-4;

/// Collects rows and prints them as they come.
struct Bench {
    bench: &'static str,
    only: Vec<String>,
    seconds: f64,
    batch: usize,
    size: Option<[usize; 2]>,
    network: Option<String>,
    recompute: bool,
    profile: bool,
    peer: Option<Peer>,
    rows: Vec<Row>,
}

/// A case.
struct Case<'a> {
    name: &'a str,
    /// Floating-point operations of one run, 0 where that says nothing.
    work: f64,
    /// Bytes that one run has to read and write at least, 0 where that says nothing.
    bytes: f64,
    /// What the peer is asked for; null where it has no such thing.
    peer: Value,
    /// Resident memory in MB before the case was built, where its peak is of interest.
    resident: Option<f64>,
    /// How often a network has it.
    times: usize,
    errors: Option<[f64; 2]>,
}

impl<'a> Case<'a> {
    fn new(name: &'a str, peer: Value) -> Self {
        Self { name, work: 0.0, bytes: 0.0, peer, resident: None, times: 1, errors: None }
    }
}

/// Median, least and most of times in milliseconds.
struct Times {
    median: f64,
    least: f64,
    most: f64,
}

impl Times {
    fn of(mut times: Vec<f64>) -> Self {
        times.sort_by(f64::total_cmp);
        Self { median: times[times.len() / 2], least: times[0], most: times[times.len() - 1] }
    }
}

impl Bench {
    /// Whether a case was asked for.
    fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| name.contains(only))
    }

    /// Gives tensors to the peer, if there is one; where they are.
    fn share(&self, name: &str, tensors: &BTreeMap<String, Tensor>) -> Result<Value> {
        self.peer.as_ref().map_or(Ok(Value::Null), |peer| peer.share(name, tensors))
    }

    /// Times `run`, which gives the value of a scalar or nothing.
    fn case(&mut self, case: Case<'_>, mut run: impl FnMut() -> crate::Result<Option<f64>>) -> Result<()> {
        let Case { name, work, bytes, peer, resident, times, errors } = case;
        if !self.wants(name) {
            return Ok(());
        }
        let mut run = || run().with_context(|| name.to_string());
        let resident = resident.filter(|_| memory::reset_peak());
        let value = run()?;
        for _ in 1..WARM_UP {
            run()?;
        }
        let ours_peak_mb = resident.and_then(|resident| Some(memory::peak()? - resident));
        let prepared = match self.peer.as_mut() {
            Some(other) if !peer.is_null() => Some(other.prepare(&peer).with_context(|| name.to_string())?),
            _ => None,
        };
        let (prepared, absent) = match prepared {
            Some(Ok(prepared)) => (Some(prepared), None),
            Some(Err(reason)) => (None, Some(reason)),
            None => (None, None),
        };
        if let (Some(ours), Some(Prepared { value: Some(theirs), .. })) = (value, &prepared) {
            let agree = (ours - theirs).abs() <= AGREEMENT * (1.0 + theirs.abs());
            ensure!(agree, "{name}: the value is {ours} here, {theirs} there");
        }
        let ways: &[String] = prepared.as_ref().map_or(&[], |prepared| &prepared.ways);
        let (mut ours, mut theirs) = (Vec::new(), vec![Vec::new(); ways.len()]);
        let seconds = TURN.min(self.seconds * TURN_SHARE);
        let mut apart: Option<[f64; 2]> = None;
        let started = Instant::now();
        while ours.len() < TURNS || (ours.len() < MOST_TURNS && started.elapsed().as_secs_f64() < self.seconds) {
            let now = apart::round_trip();
            let [least, most] = apart.unwrap_or([now; 2]);
            apart = Some([least.min(now), most.max(now)]);
            ours.push(turn(&mut run, seconds)?);
            if let Some(other) = self.peer.as_mut() {
                for (way, times) in ways.iter().zip(&mut theirs) {
                    times.push(other.time(way, seconds).with_context(|| name.to_string())?);
                }
            }
        }
        let ours = Times::of(ours);
        let theirs: Vec<(&String, Times)> = ways.iter().zip(theirs.into_iter().map(Times::of)).collect();
        let best = theirs.iter().min_by(|a, b| a.1.median.total_cmp(&b.1.median));
        let ratio = best.map(|(_, times)| times.median / ours.median);
        let rate = if work > 0.0 { format!(" {:8.1} GFLOP/s", work / ours.median / 1e6) } else { String::new() };
        let roof_ms = (bytes > 0.0).then(|| 1e3 * (work / ROOF_OPERATIONS).max(bytes / ROOF_BYTES));
        let Times { median, least, most } = ours;
        let mut line = format!("{:8} {name:48} {median:9.2} ms  ({least:.2}–{most:.2}){rate}", self.bench);
        for (way, Times { median, least, most }) in &theirs {
            line.push_str(&format!("  {way} {median:.2} ms ({least:.2}–{most:.2})"));
        }
        if let Some(ratio) = ratio {
            line.push_str(&format!("  ratio {ratio:.2}"));
        }
        if let Some(roof) = roof_ms {
            line.push_str(&format!("  roof {roof:.2} ms"));
        }
        let peer_peak_mb = prepared.as_ref().and_then(|prepared| prepared.peak_mb);
        for (side, peak) in [("peak", ours_peak_mb), ("peer's peak", peer_peak_mb)] {
            if let Some(peak) = peak {
                line.push_str(&format!("  {side} {peak:.0} MB"));
            }
        }
        if let Some([mean_zero, rectified]) = errors {
            line.push_str(&format!("  error {mean_zero:.1e}, after a ReLU {rectified:.1e}"));
        }
        if let Some([least, most]) = apart {
            line.push_str(&format!("  apart {least:.0}–{most:.0} ns"));
        }
        if let Some(reason) = absent {
            line.push_str(&format!("  no peer: {reason}"));
        }
        say_line!("{line}")?;
        let peer_ms = best.map(|(_, times)| times.median);
        let case = name.to_string();
        let times = (times > 1).then_some(times);
        self.rows.push(Row {
            bench: self.bench,
            case,
            ours_ms: median,
            peer_ms,
            ratio,
            apart_ns: apart,
            ours_peak_mb,
            peer_peak_mb,
            times,
            roof_ms,
            errors,
            exponent: None,
        });
        Ok(())
    }

    /// A row of several cases together.
    fn sum(&mut self, case: String, ours_ms: f64, peer_ms: Option<f64>, work: f64) -> Result<()> {
        let ratio = peer_ms.map(|peer| peer / ours_ms);
        let mut line = format!("{:8} {case:48} {ours_ms:9.2} ms  {:8.1} GFLOP/s", self.bench, work / ours_ms / 1e6);
        if let (Some(peer), Some(ratio)) = (peer_ms, ratio) {
            line.push_str(&format!("  peer {peer:.2} ms  ratio {ratio:.2}"));
        }
        say_line!("{line}")?;
        self.rows.push(Row { bench: self.bench, case, ours_ms, peer_ms, ratio, ..Row::default() });
        Ok(())
    }
}

/// Milliseconds of a run in a turn of so many seconds.
fn turn(run: &mut impl FnMut() -> Result<Option<f64>>, seconds: f64) -> Result<f64> {
    let mut mean = || -> Result<f64> {
        let (begun, mut runs) = (Instant::now(), 0.0);
        while runs == 0.0 || begun.elapsed().as_secs_f64() < seconds {
            run()?;
            runs += 1.0;
        }
        Ok(begun.elapsed().as_secs_f64() / runs)
    };
    let first = mean()?;
    Ok(1e3 * if first > LONG_RUN * seconds { first } else { mean()? })
}

type Group = (&'static str, fn(&mut Bench) -> Result<()>);

/// Runs the groups that were asked for.
///
/// # Errors
/// An unknown group; a case that fails, by name; a file that cannot be written.
pub fn run(arguments: &BenchArguments) -> Result<()> {
    // Those that run where none was asked for, and those that have to be.
    let groups: [(Group, bool); 7] = [
        (("kernels", kernels::kernels), true),
        (("algorithms", kernels::algorithms), false),
        (("ops", operations::ops), true),
        (("losses", losses::losses), true),
        (("step", networks::step), true),
        (("growth", growth::growth), false),
        (("infer", networks::infer), true),
    ];
    let known = |name: &str| name == "loader" || groups.iter().any(|((known, _), _)| *known == name);
    if let Some(unknown) = arguments.groups.iter().find(|name| !known(name)) {
        bail!("no group {unknown}; there are {}, loader", groups.map(|((name, _), _)| name).join(", "));
    }
    // The loader has a peer of its own.
    let others = arguments.groups.is_empty() || arguments.groups.iter().any(|name| name != "loader");
    let peer = match arguments.peer {
        Some(PeerKind::Torch) if others => Some(Peer::start(THREADS)?),
        _ => None,
    };
    dsd_kernels::conv2d::set_exact(arguments.exact);
    let size = arguments.size.as_ref().map(|size| [usize::from(size[0]), usize::from(size[1])]);
    let mut bench = Bench {
        bench: "",
        only: arguments.only.clone(),
        seconds: arguments.seconds,
        batch: usize::from(arguments.batch),
        size,
        network: arguments.network.clone(),
        recompute: arguments.recompute,
        profile: arguments.profile,
        peer,
        rows: Vec::new(),
    };
    for ((name, group), unasked) in groups {
        if (arguments.groups.is_empty() && unasked) || arguments.groups.iter().any(|asked| asked == name) {
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

//! Images per second of decoding, augmenting and batching from files, beside torchvision's reference steps in a torch
//! `DataLoader`.
//!
//! Both sides read the same files with two workers and the same sizes of batch and crop, in turns: a round of ours, a
//! round of theirs. Each round starts its workers anew and does not count the first batches. The time per image of a
//! round is the round's time over its images; told is the median of the rounds.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use dsd_data::{
    Augmentation, Dataset, Loader, LoaderOptions, Normalisation, OpenOptions, ScaleRange, open, write_palette_png,
    write_rgb_png,
};

use super::{Bench, Row};

/// The peer's program.
const PEER: &str = include_str!("loader.py");
const WORKERS: usize = 2;
const ROUNDS: usize = 5;
/// Scenes that are made for a case.
const MADE: usize = 8;

/// One case: files of a size, and how they are cropped.
struct Case {
    name: &'static str,
    size: [usize; 2],
    crop: [usize; 2],
    batch_size: usize,
    /// Batches in a round.
    batches: usize,
}

const CASES: [Case; 2] = [
    Case { name: "480x360, crop 360x360, batch 8", size: [360, 480], crop: [360, 360], batch_size: 8, batches: 20 },
    Case {
        name: "2048x1024, crop 1024x512, batch 4",
        size: [1024, 2048],
        crop: [512, 1024],
        batch_size: 4,
        batches: 8,
    },
];

/// Times the loader; `data` is a CamVid folder for the first case, without it scenes are made as for the second.
pub(super) fn run(bench: &mut Bench, data: Option<&Path>, peer: bool) -> Result<()> {
    for case in CASES {
        if !bench.wants(case.name) {
            continue;
        }
        let folder = tempfile::tempdir().context("no folder for the images")?;
        let (dataset, list) = match data.filter(|_| case.size == CASES[0].size) {
            Some(root) => camvid(root, folder.path())?,
            None => made(&case, folder.path())?,
        };
        let mut theirs = if peer { Some(Peer::start(&case, &list)?) } else { None };
        let images = (case.batches * case.batch_size) as f64;
        let (mut ours_times, mut their_times) = (Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            ours_times.push(1e3 * ours(&case, &dataset, round as u64)? / images);
            if let Some(peer) = &mut theirs {
                their_times.push(1e3 * peer.round(case.batches)? / images);
            }
        }
        let median = |times: &mut Vec<f64>| {
            times.sort_by(f64::total_cmp);
            times.get(times.len() / 2).copied()
        };
        let (Some(ours_ms), peer_ms) = (median(&mut ours_times), median(&mut their_times)) else { continue };
        let spread = |times: &[f64]| match times {
            [least, .., most] => format!("{:.0}–{:.0}", 1e3 / most, 1e3 / least),
            _ => String::new(),
        };
        let beside = peer_ms.map_or(String::new(), |peer_ms| {
            format!("  torch {:7.1} ({})  ratio {:.2}", 1e3 / peer_ms, spread(&their_times), peer_ms / ours_ms)
        });
        say_line!("loader   {:36} {:7.1} images/s ({}){beside}", case.name, 1e3 / ours_ms, spread(&ours_times))?;
        let ratio = peer_ms.map(|peer_ms| peer_ms / ours_ms);
        bench.rows.push(Row {
            bench: "loader",
            case: case.name.to_string(),
            ours_ms,
            peer_ms,
            ratio,
            ..Row::default()
        });
    }
    Ok(())
}

/// Seconds of a round of ours.
fn ours(case: &Case, dataset: &Arc<dyn Dataset>, seed: u64) -> Result<f64> {
    let plain = Augmentation::none(case.crop, Normalisation::IMAGENET);
    let augmentation = Augmentation { scale: ScaleRange { min: 0.5, max: 2.0, step: None }, flip: 0.5, ..plain };
    let options = LoaderOptions { batch_size: case.batch_size, seed, workers: WORKERS, prefetch: 4, first_step: 0 };
    let mut loader = Loader::new(Arc::clone(dataset), Arc::new(augmentation), options)?;
    let mut take = |count: usize| -> Result<()> {
        for batch in loader.by_ref().take(count) {
            std::hint::black_box(batch?);
        }
        Ok(())
    };
    take(2 * WORKERS)?;
    let begun = Instant::now();
    take(case.batches)?;
    Ok(begun.elapsed().as_secs_f64())
}

type Files = (Arc<dyn Dataset>, PathBuf);

/// CamVid's train split, and the list of its files for the peer.
fn camvid(root: &Path, folder: &Path) -> Result<Files> {
    let list = folder.join("pairs.tsv");
    let lines =
        std::fs::read_to_string(root.join("train.txt")).with_context(|| format!("{}: no train.txt", root.display()))?;
    let root = root.canonicalize()?;
    let mut text = String::new();
    for line in lines.lines() {
        let Some((image, label)) = line.split_once(' ') else { continue };
        text += &format!("{}\t{}\n", root.join(image).display(), root.join(label).display());
    }
    std::fs::write(&list, text)?;
    Ok((open("camvid", Some(&root), "train", &OpenOptions::default())?, list))
}

/// Generated scenes as PNG files of the case's size.
fn made(case: &Case, folder: &Path) -> Result<Files> {
    let options = OpenOptions { count: MADE, size: Some(case.size), ..OpenOptions::default() };
    let scenes = open("streets", None, "train", &options)?;
    let (list, mut text, mut stems) = (folder.join("pairs.tsv"), String::new(), String::new());
    for name in ["images", "labels"] {
        std::fs::create_dir(folder.join(name))?;
    }
    for index in 0..scenes.len() {
        let sample = scenes.sample(index)?;
        let place = |kind: &str| folder.join(kind).join(format!("{}.png", sample.name));
        write_rgb_png(&place("images"), &sample.image)?;
        write_palette_png(&place("labels"), &sample.labels, &scenes.classes().colours)?;
        text += &format!("{}\t{}\n", place("images").display(), place("labels").display());
        stems += &format!("{}\n", sample.name);
    }
    std::fs::write(&list, text)?;
    std::fs::write(folder.join("train.txt"), stems)?;
    let names: Vec<String> = scenes.classes().names.iter().map(|name| format!("{name:?}")).collect();
    std::fs::write(folder.join("classes.toml"), format!("names = [{}]\n", names.join(", ")))?;
    Ok((open("folder", Some(folder), "train", &OpenOptions::default())?, list))
}

/// The peer's process.
struct Peer {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Peer {
    fn start(case: &Case, list: &Path) -> Result<Self> {
        let python = std::env::var_os("DSD_PYTHON").unwrap_or_else(|| "python3".into());
        let mut child = Command::new(&python)
            .args(["-c", PEER])
            .arg(list)
            .args([case.batch_size, WORKERS, case.crop[0], case.crop[1]].map(|number| number.to_string()))
            .args(["0.5", "2.0"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {} (DSD_PYTHON)", python.to_string_lossy()))?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            bail!("no pipes to the peer")
        };
        let mut peer = Self { child, input, output: BufReader::new(output) };
        match peer.line()?.as_str() {
            "ready" => Ok(peer),
            other => bail!("the peer says {other:?}; it needs torch, torchvision and PIL"),
        }
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        Ok(line.trim().to_string())
    }

    /// Seconds of a round of theirs.
    fn round(&mut self, batches: usize) -> Result<f64> {
        writeln!(self.input, "{batches}")?;
        self.input.flush()?;
        self.line()?.parse().context("the peer gave no time; its message is above")
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

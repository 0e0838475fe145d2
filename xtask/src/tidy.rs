//! Checks of the source tree that no lint knows: dependency edges, file lengths, file names, unfinished work.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The workspace crates that each crate may depend on; a new edge is a decision.
const EDGES: [(&str, &[&str]); 8] = [
    ("random", &[]),
    ("kernels", &[]),
    ("metrics", &[]),
    ("ops", &["kernels", "random"]),
    ("similarity", &["ops"]),
    ("models", &["ops", "random"]),
    ("data", &["random"]),
    ("train", &["data", "kernels", "metrics", "models", "ops", "random", "similarity"]),
];

/// Lines of a source file: beyond this it holds more than one thing.
const LONGEST: usize = 600;

/// Names that say nothing about what is inside.
const EMPTY_NAMES: [&str; 5] = ["utils", "helpers", "common", "misc", "types"];

/// Methods of candle's tensors whose work the crates on candle do by `dsd_ops`. `clippy.toml` bans them by path, with the
/// reasons; this holds also where a lint is allowed, and for a method that a later version adds to a family.
const CANDLE_METHODS: [&str; 8] = [
    ".conv1d",
    ".conv2d",
    ".conv_transpose",
    ".max_pool2d",
    ".avg_pool2d",
    ".interpolate1d",
    ".interpolate2d",
    ".upsample_",
];
const ON_CANDLE: [&str; 4] = ["ops", "similarity", "models", "train"];
/// What is taken from `candle_nn`: where parameters come from, not what is computed with them.
const CANDLE_NN: [&str; 8] =
    ["VarBuilder", "Init", "init", "var_builder", "SimpleBackend", "FanInOut", "NonLinearity", "NormalOrUniform"];

/// Runs all checks below `root`.
pub(crate) fn check(root: &Path) -> Result<()> {
    let mut faults = Vec::new();
    for (name, allowed) in EDGES {
        edges(root, name, allowed, &mut faults)?;
    }
    let mut files = Vec::new();
    for folder in ["crates", "xtask", "tests"] {
        sources(&root.join(folder), &mut files)?;
    }
    if files.len() < 40 {
        bail!("tidy found only {} source files below {}; it looks in the wrong place", files.len(), root.display());
    }
    for path in &files {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        file(path, &text, &mut faults);
        if ON_CANDLE.iter().any(|name| path.starts_with(root.join("crates").join(name))) {
            fallbacks(path, &text, &mut faults);
        }
    }
    if !faults.is_empty() {
        bail!("tidy:\n  {}", faults.join("\n  "));
    }
    crate::reliability::check(root)?;
    println!("tidy: {} files, {} crates", files.len(), EDGES.len());
    Ok(())
}

/// Compares `[dependencies]` of a crate with the edges that are allowed.
fn edges(root: &Path, name: &str, allowed: &[&str], faults: &mut Vec<String>) -> Result<()> {
    let path = root.join("crates").join(name).join("Cargo.toml");
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let mut inside = false;
    for line in text.lines() {
        if line.starts_with('[') {
            inside = line == "[dependencies]";
        } else if inside && let Some(dependency) = line.strip_prefix("dsd-") {
            let dependency = dependency.split(['.', ' ', '=']).next().unwrap_or_default();
            if !allowed.contains(&dependency) {
                faults.push(format!("{}: a new edge {name} → {dependency}", path.display()));
            }
        }
        if inside && line.starts_with("candle") && ["random", "kernels", "data", "metrics"].contains(&name) {
            faults.push(format!("{}: {name} knows no tensor library", path.display()));
        }
    }
    Ok(())
}

fn file(path: &Path, text: &str, faults: &mut Vec<String>) {
    let shown = path.display();
    let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    if EMPTY_NAMES.contains(&stem.as_str()) {
        faults.push(format!("{shown}: the name says nothing"));
    }
    let count = text.lines().count();
    if count > LONGEST {
        faults.push(format!("{shown}: {count} lines, at most {LONGEST}"));
    }
    if !text.starts_with("//!") && !text.starts_with("#!") {
        faults.push(format!("{shown}: starts without a module comment"));
    }
    // Written in two parts, so that this file does not find itself.
    for mark in [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X:"), concat!("#[ig", "nore]")] {
        if let Some(line) = text.lines().position(|line| line.contains(mark)) {
            faults.push(format!("{shown}:{}: {mark}", line + 1));
        }
    }
}

/// candle's own convolution, pooling, resizing or normalisation.
fn fallbacks(path: &Path, text: &str, faults: &mut Vec<String>) {
    for (index, line) in text.lines().enumerate() {
        let shown = format!("{}:{}", path.display(), index + 1);
        let called = |method: &&&str| {
            let calls = line.match_indices(**method).map(|(at, method)| &line[at + method.len()..]);
            calls
                .into_iter()
                .any(|rest| rest.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '_').starts_with('('))
        };
        if let Some(method) = CANDLE_METHODS.iter().find(called) {
            faults.push(format!("{shown}: candle's {method}; dsd_ops has its own"));
        }
        for (at, found) in line.match_indices("candle_nn::") {
            let rest = line[at + found.len()..].split(';').next().unwrap_or_default();
            let words = rest.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| !word.is_empty());
            for word in words.filter(|word| !CANDLE_NN.contains(word)) {
                faults.push(format!("{shown}: candle_nn's {word}; dsd_ops and dsd_models have their own"));
            }
        }
    }
}

fn sources(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            sources(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    Ok(())
}

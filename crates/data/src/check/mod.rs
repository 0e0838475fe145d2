//! Looking through a dataset before it costs a training run.
//!
//! Every file of every split is decoded once. What is wrong is told in one line each, with what mends it; what is
//! right is counted: pixels of each class, images, sizes. [`CheckReport::sheet`] is a picture to look at.

mod labels;
mod sheet;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::dataset::Pair;
use crate::decode::{read_file, read_indices};
use crate::fingerprint::hash_of;
use crate::label_code::LabelCode;
use crate::manifest::DatasetManifest;
use crate::published::find;
use crate::{Classes, Dataset, Error, Folder, Progress, Published, Result, RgbImage, manifest, manifests};

/// How bad a fault is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Training would stop or learn from wrong labels.
    Error,
    /// Worth a look.
    Warning,
}

/// One thing that is wrong, in one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// How bad it is.
    pub severity: Severity,
    /// A short name of the kind of fault: `size-mismatch`.
    pub kind: &'static str,
    /// What is wrong, where, and what mends it.
    pub text: String,
}

/// What a split holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SplitReport {
    /// Its name.
    pub name: String,
    /// Image and label pairs.
    pub pairs: usize,
    /// Pixels of each class; the last entry counts the ignored.
    pub pixels: Vec<u64>,
    /// Smallest and largest [height, width] of its images.
    pub sizes: Option<([usize; 2], [usize; 2])>,
}

/// What a check found.
#[derive(Clone, Debug)]
pub struct CheckReport {
    /// The dataset: the name that a recipe gives.
    pub dataset: String,
    /// The form in which it lies there.
    pub layout: String,
    /// Its classes.
    pub classes: Classes,
    /// Every split that is there.
    pub splits: Vec<SplitReport>,
    /// What is wrong, the worst first.
    pub faults: Vec<Fault>,
    /// Images with their labels laid over them, to be looked at.
    pub sheet: Option<RgbImage>,
}

impl CheckReport {
    /// Whether a fault is an error.
    #[must_use]
    pub fn failed(&self) -> bool {
        self.faults.iter().any(|fault| fault.severity == Severity::Error)
    }
}

/// Lines of one kind that are told before the rest is only counted.
const TOLD: usize = 5;

/// A split as it is checked.
struct Part {
    name: String,
    pairs: Vec<Pair>,
    code: LabelCode,
    /// Published number of pairs.
    expected: Option<usize>,
    /// Splits that may hold the same images.
    shares: Vec<String>,
    unlabelled: bool,
}

/// What one pair holds.
struct Look {
    /// SHA-256 of the image file; none where it cannot be read.
    hash: Option<String>,
    /// [height, width]; none where it cannot be decoded.
    image: Option<[usize; 2]>,
    /// Pixels of every raw id, for index files.
    raw: Option<Box<[u64; 256]>>,
    /// Pixels of every train id.
    ids: Option<Box<[u64; 256]>>,
    faults: Vec<Fault>,
}

/// Checks the dataset below `root`: the one named (`camvid`, `camvid:exact`, `folder` …) or the one that it looks like.
///
/// # Errors
/// File where `root` holds nothing that is known; Param for an unknown name. Whatever is wrong with single files is a
/// fault in the report.
pub fn check(root: &Path, dataset: Option<&str>, progress: &Progress<'_>) -> Result<CheckReport> {
    let dataset = match dataset {
        Some(name) => name.to_string(),
        None => detect(root)?,
    };
    let mut faults = Vec::new();
    let (layout, classes, parts) = if dataset == "folder" {
        folder_parts(root, &mut faults)?
    } else {
        published_parts(&dataset, root, &mut faults)?
    };
    let mut splits = Vec::new();
    let mut places: BTreeMap<String, Vec<(usize, PathBuf)>> = BTreeMap::new();
    for (number, part) in parts.iter().enumerate() {
        let looks = look_at(part, &|done| progress(&part.name, done, part.pairs.len()));
        splits.push(count(part, &looks, classes.len()));
        tell(looks.iter().flat_map(|look| look.faults.iter().cloned()), &mut faults);
        labels::diagnose(&dataset, &classes, part, &looks, &mut faults)?;
        for (pair, look) in part.pairs.iter().zip(&looks) {
            if let Some(hash) = &look.hash {
                places.entry(hash.clone()).or_default().push((number, pair.image.clone()));
            }
        }
    }
    tell(duplicates(&parts, &places), &mut faults);
    if let Some(train) = splits.iter().find(|split| split.name == "train") {
        let absent: Vec<&str> =
            (0..classes.len()).filter(|&at| train.pixels[at] == 0).map(|at| classes.names[at].as_str()).collect();
        if !absent.is_empty() {
            let text = format!("nothing in train is {}; nothing can be learnt of that", absent.join(", "));
            faults.push(Fault { severity: Severity::Warning, kind: "absent-class", text });
        }
    }
    faults.sort_by_key(|fault| fault.severity);
    let sheet =
        sheet::draw(&parts.iter().map(|part| (part.pairs.as_slice(), &part.code)).collect::<Vec<_>>(), &classes);
    Ok(CheckReport { dataset, layout, classes, splits, faults, sheet })
}

/// The dataset that a folder looks like.
fn detect(root: &Path) -> Result<String> {
    if root.join("classes.toml").is_file() {
        return Ok("folder".to_string());
    }
    if !root.is_dir() {
        return Err(Error::file(root, "no such folder"));
    }
    // The most splits win; of several, the first in the list.
    let mut best: Option<(usize, &str)> = None;
    for facts in manifests()? {
        let found = facts.splits.iter().filter(|split| find(facts, root, split).is_ok()).count();
        if found > best.map_or(0, |(most, _)| most) {
            best = Some((found, &facts.name));
        }
    }
    let names: Vec<&str> = manifests()?.iter().map(|facts| facts.name.as_str()).collect();
    best.map(|(_, name)| name.to_string()).ok_or_else(|| {
        let reason = format!(
            "looks like none of {}, and has no classes.toml; dsd data NAME says which forms are read, --dataset NAME \
             what is missing here",
            names.join(", ")
        );
        Error::file(root, reason)
    })
}

type Parts = (String, Classes, Vec<Part>);

fn published_parts(dataset: &str, root: &Path, faults: &mut Vec<Fault>) -> Result<Parts> {
    let facts: &'static DatasetManifest = manifest(dataset.split(':').next().unwrap_or_default())?;
    let mut parts = Vec::new();
    let mut layout = String::new();
    let mut missing = None;
    for split in &facts.splits {
        let opened = match find(facts, root, split) {
            Ok(_) => Published::open(dataset, root, &split.name),
            Err(error) if split.optional => {
                missing.get_or_insert(error);
                continue;
            }
            Err(error) => Err(error),
        };
        match opened {
            Ok(opened) => {
                let form = opened.place().layout;
                if layout.is_empty() {
                    layout.clone_from(&form.name);
                }
                parts.push(Part {
                    name: split.name.clone(),
                    pairs: opened.pairs().to_vec(),
                    code: facts.code(form.encoding, dataset.split_once(':').map(|(_, policy)| policy))?,
                    expected: Some(facts.count(split, form)),
                    shares: split.shares.clone(),
                    unlabelled: split.unlabelled,
                });
            }
            Err(error) => {
                let text = format!("the {} split cannot be opened: {error}", split.name);
                faults.push(Fault { severity: Severity::Error, kind: "split", text });
                missing = Some(error);
            }
        }
    }
    match missing {
        Some(error) if parts.is_empty() => Err(error),
        _ => Ok((layout, facts.classes()?, parts)),
    }
}

fn folder_parts(root: &Path, faults: &mut Vec<Fault>) -> Result<Parts> {
    let mut parts = Vec::new();
    let mut classes = None;
    for split in ["train", "val", "test"] {
        let own = root.join(format!("{split}.txt")).is_file() || root.join(split).join("images").is_dir();
        if split == "test" && !own {
            continue;
        }
        match Folder::open(root, split, 0, 0.2) {
            Ok(folder) => {
                classes.get_or_insert_with(|| folder.classes().clone());
                let (pairs, code) = folder.parts();
                parts.push(Part {
                    name: split.to_string(),
                    pairs: pairs.to_vec(),
                    code: code.clone(),
                    expected: None,
                    shares: Vec::new(),
                    unlabelled: false,
                });
            }
            Err(error) if parts.is_empty() && split == "val" => return Err(error),
            Err(error) => {
                let text = format!("the {split} split cannot be opened: {error}");
                faults.push(Fault { severity: Severity::Error, kind: "split", text });
            }
        }
    }
    match classes {
        Some(classes) => Ok(("images/, labels/, classes.toml".to_string(), classes, parts)),
        None => Err(Error::file(root, "holds no split that can be opened")),
    }
}

/// Decodes the pairs of a split on all cores; in their order.
fn look_at(part: &Part, progress: &(dyn Fn(usize) + Sync)) -> Vec<Look> {
    let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let looks: Mutex<BTreeMap<usize, Look>> = Mutex::new(BTreeMap::new());
    let work = || {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(pair) = part.pairs.get(index) else { break };
            let look = look(pair, part);
            if let Ok(mut looks) = looks.lock() {
                looks.insert(index, look);
            }
            progress(done.fetch_add(1, Ordering::Relaxed) + 1);
        }
    };
    std::thread::scope(|scope| {
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        (1..threads).for_each(|_| drop(scope.spawn(work)));
        work();
    });
    looks.into_inner().map(|looks| looks.into_values().collect()).unwrap_or_default()
}

fn look(pair: &Pair, part: &Part) -> Look {
    let mut look = Look { hash: None, image: None, raw: None, ids: None, faults: Vec::new() };
    let mut fault = |kind, text| look.faults.push(Fault { severity: Severity::Error, kind, text });
    match read_file(&pair.image) {
        Ok(bytes) => {
            look.hash = Some(hash_of(&bytes));
            match crate::decode::guarded(|| crate::decode::decode_image(&bytes)) {
                Ok(image) => look.image = Some([image.height, image.width]),
                Err(reason) => fault("unreadable", format!("{}: {reason}", pair.image.display())),
            }
        }
        Err(error) => fault("unreadable", error.to_string()),
    }
    let mut size = None;
    match &part.code {
        LabelCode::Ids(map) => match read_indices(&pair.labels) {
            Ok(labels) => {
                let mut raw = Box::new([0u64; 256]);
                labels.ids.iter().for_each(|&id| raw[usize::from(id)] += 1);
                let mut ids = Box::new([0u64; 256]);
                for (id, &count) in (0..=255u8).zip(raw.iter()).filter(|(_, count)| **count > 0) {
                    if let Some(train_id) = map.train_id(id) {
                        ids[usize::from(train_id)] += count;
                    }
                }
                (look.raw, look.ids) = (Some(raw), Some(ids));
                size = Some([labels.height, labels.width]);
            }
            // RGB masks are told together, with what they seem to be.
            Err(error) if labels::is_mask(&error) => fault(labels::MASK, error.to_string()),
            Err(error) => fault("unreadable", error.to_string()),
        },
        LabelCode::Colours(_) => match part.code.read(&pair.labels) {
            Ok(labels) => {
                let mut ids = Box::new([0u64; 256]);
                labels.ids.iter().for_each(|&id| ids[usize::from(id)] += 1);
                look.ids = Some(ids);
                size = Some([labels.height, labels.width]);
            }
            Err(error) => fault("unreadable", error.to_string()),
        },
    }
    if let (Some([a, b]), Some([c, d])) = (look.image, size)
        && [a, b] != [c, d]
    {
        let text = format!(
            "{}: is {b}x{a} pixels, its label map {} is {d}x{c}; scale the image bilinearly or the labels by nearest \
             neighbour to one size",
            pair.image.display(),
            pair.labels.display()
        );
        fault("size-mismatch", text);
    }
    look
}

/// Adds faults; of each kind the first ones, then their number.
fn tell(found: impl IntoIterator<Item = Fault>, faults: &mut Vec<Fault>) {
    let mut kinds: BTreeMap<&'static str, (Severity, usize)> = BTreeMap::new();
    for fault in found {
        let (_, count) = kinds.entry(fault.kind).or_insert((fault.severity, 0));
        *count += 1;
        if *count <= TOLD {
            faults.push(fault);
        }
    }
    for (kind, (severity, count)) in kinds.into_iter().filter(|(_, (_, count))| *count > TOLD) {
        faults.push(Fault { severity, kind, text: format!("… and {} more of this kind", count - TOLD) });
    }
}

fn count(part: &Part, looks: &[Look], classes: usize) -> SplitReport {
    let mut pixels = vec![0u64; classes + 1];
    for ids in looks.iter().filter_map(|look| look.ids.as_ref()) {
        pixels.iter_mut().zip(ids.iter()).take(classes).for_each(|(sum, count)| *sum += count);
        pixels[classes] += ids[usize::from(crate::IGNORE)];
    }
    let sizes = || looks.iter().filter_map(|look| look.image);
    let area = |size: &[usize; 2]| size[0] * size[1];
    let sizes = sizes().min_by_key(area).zip(sizes().max_by_key(area));
    SplitReport { name: part.name.clone(), pairs: part.pairs.len(), pixels, sizes }
}

/// Images that two splits hold which should share none.
fn duplicates<'a>(
    parts: &'a [Part],
    places: &'a BTreeMap<String, Vec<(usize, PathBuf)>>,
) -> impl Iterator<Item = Fault> + 'a {
    let apart = |a: usize, b: usize| {
        a != b && !parts[a].shares.contains(&parts[b].name) && !parts[b].shares.contains(&parts[a].name)
    };
    places.values().filter_map(move |found| {
        let (first, image) = found.first()?;
        let (second, other) = found.iter().find(|(part, _)| apart(*first, *part))?;
        let text = format!(
            "{} of {} is the same image as {} of {}; remove it from one of the two, or the score is of what was trained on",
            other.display(),
            parts[*second].name,
            image.display(),
            parts[*first].name
        );
        Some(Fault { severity: Severity::Error, kind: "duplicate", text })
    })
}

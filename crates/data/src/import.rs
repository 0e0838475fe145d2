//! Importing a published dataset from archives or a folder: unpacked beside the target, verified, then renamed into place.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::archive::{is_archive, unpack};
use crate::dataset::Pair;
use crate::fingerprint::Fingerprint;
use crate::manifest::DatasetManifest;
use crate::published::find;
use crate::{Dataset, Error, Published, Result, manifest};

/// What an import found and verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportReport {
    /// Where the dataset lies now.
    pub root: PathBuf,
    /// Name of the form that was found.
    pub layout: String,
    /// Verified number of pairs per split, in the manifest's order; none where the source lacks the split.
    pub splits: Vec<(String, Option<usize>)>,
    /// Every archive with its SHA-256 in lower-case hexadecimal and, where its hash is one of the manifest's, what it is.
    pub archives: Vec<(PathBuf, String, Option<String>)>,
}

/// How far an import is: what it does, done, of how many.
pub type Progress<'a> = dyn Fn(&str, usize, usize) + Sync + 'a;

/// Imports the dataset `name` from `.tar`, `.tar.gz`, `.tgz` or `.zip` archives that belong together, or from one folder.
///
/// Everything is unpacked into a folder beside `to`, every pair of every split is decoded and checked (equal sizes,
/// the manifest's size, known label ids, the manifest's counts), and only then renamed to `to`. After an error nothing
/// is left behind. Only splits that the manifest calls optional may be missing. A folder stays as it is; what belongs
/// to the dataset is copied.
///
/// # Errors
/// Param for an unknown dataset; File, Line or Archive, naming the culprit; File where `to` already holds something.
pub fn import(name: &str, from: &[PathBuf], to: &Path, progress: &Progress<'_>) -> Result<ImportReport> {
    let facts = manifest(name)?;
    let (parent, folder) = check_target(to)?;
    let Some(first) = from.first() else {
        return Err(Error::param("from", "expected an archive or a folder"));
    };
    if let Some(missing) = from.iter().find(|path| !path.exists()) {
        return Err(Error::file(missing, "no such archive or folder"));
    }
    let staging = Staging::beside(&parent, &folder)?;
    let mut archives = Vec::new();
    if first.is_dir() {
        if from.len() > 1 {
            return Err(Error::param("from", "expected one folder, or archives only"));
        }
        copy(facts, &locate(facts, first).ok_or_else(|| no_layout(facts, first))?, &staging.path)?;
    } else {
        for (done, path) in from.iter().enumerate() {
            if !is_archive(path) {
                let reason =
                    "expected a .tar, .tar.gz, .tgz or .zip archive or a folder; unpack it and give the folder";
                return Err(Error::file(path, reason));
            }
            progress("archives unpacked", done, from.len());
            let print = Fingerprint::of(path)?;
            let known = facts.archives.iter().find(|archive| print.difference(archive).is_none());
            archives.push((path.clone(), print.sha256, known.map(|archive| archive.description.clone())));
            unpack(path, &staging.path, facts.limits)?;
        }
    }
    let base = locate(facts, &staging.path).ok_or_else(|| no_layout(facts, first))?;
    // The staging folder is gone when its user reads the error: name the file as the source knows it.
    let (layout, splits) = verify(facts, &base, progress).map_err(|error| error.moved(&staging.path, first))?;
    if to.exists() {
        // An empty folder, as checked above.
        fs::remove_dir(to).map_err(|error| Error::file(to, format!("cannot replace: {error}")))?;
    }
    fs::rename(&base, to).map_err(|error| Error::file(to, format!("cannot move the import here: {error}")))?;
    Ok(ImportReport { root: to.to_path_buf(), layout, splits, archives })
}

/// Parent folder (made where missing) and name of a target that is absent or an empty folder.
fn check_target(to: &Path) -> Result<(PathBuf, String)> {
    let occupied = match fs::read_dir(to) {
        Ok(mut entries) => entries.next().is_some(),
        Err(_) => to.exists(),
    };
    if occupied {
        return Err(Error::file(to, "already holds something; remove it or choose another folder with --to"));
    }
    let name = to.file_name().ok_or_else(|| Error::file(to, "is not the name of a folder"))?;
    let parent = match to.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        _ => PathBuf::from("."),
    };
    fs::create_dir_all(&parent).map_err(|error| Error::file(&parent, format!("cannot create: {error}")))?;
    Ok((parent, name.to_string_lossy().into_owned()))
}

/// A folder that is removed again with everything left in it.
pub(crate) struct Staging {
    pub(crate) path: PathBuf,
}

impl Staging {
    pub(crate) fn beside(parent: &Path, name: &str) -> Result<Self> {
        let path = parent.join(format!(".{name}.import-{}", std::process::id()));
        fs::create_dir(&path).map_err(|error| Error::file(&path, format!("cannot create: {error}")))?;
        Ok(Self { path })
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

fn no_layout(facts: &DatasetManifest, from: &Path) -> Error {
    let forms: Vec<String> =
        facts.layouts.iter().map(|layout| format!("{} ({})", layout.name, layout.description)).collect();
    Error::file(from, format!("holds no {} in a known form: {}", facts.title, forms.join("; ")))
}

/// The dataset's folder: `root`, or a folder at most two levels below, with every split that is not optional.
fn locate(facts: &'static DatasetManifest, root: &Path) -> Option<PathBuf> {
    let base = |folder: &Path| {
        let mut needed = facts.splits.iter().filter(|split| !split.optional);
        let base = find(facts, folder, needed.next()?).ok()?.base;
        needed.all(|split| find(facts, folder, split).is_ok_and(|place| place.base == base)).then_some(base)
    };
    let mut level = vec![root.to_path_buf()];
    for _ in 0..3 {
        if let Some(found) = level.iter().find_map(|folder| base(folder)) {
            return Some(found);
        }
        let below = level.iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten();
        level = below.map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
        level.sort();
    }
    None
}

/// The splits that a folder holds: name and content, none where an optional one is missing.
fn splits(facts: &'static DatasetManifest, base: &Path) -> Result<Vec<(&'static str, Option<Published>)>> {
    let open = |split: &'static crate::SplitFacts| {
        if split.optional && find(facts, base, split).is_err() {
            return Ok((split.name.as_str(), None));
        }
        Published::open(&facts.name, base, &split.name).map(|opened| (split.name.as_str(), Some(opened)))
    };
    facts.splits.iter().map(open).collect()
}

/// Copies the samples and lists of every split, and nothing else that may lie there.
fn copy(facts: &'static DatasetManifest, base: &Path, to: &Path) -> Result<()> {
    let mut done = BTreeSet::new();
    for (_, split) in splits(facts, base)? {
        let Some(split) = split else { continue };
        let files = split.pairs().iter().flat_map(|pair| [&pair.image, &pair.labels]).chain(&split.place().list);
        for file in files {
            let Ok(below) = file.strip_prefix(base) else {
                return Err(Error::file(file, format!("lies outside {}; copy it there", base.display())));
            };
            if done.insert(below.to_path_buf()) {
                let target = to.join(below);
                let failed = |error: std::io::Error| Error::file(file, format!("cannot copy: {error}"));
                fs::create_dir_all(target.parent().unwrap_or(to)).map_err(failed)?;
                fs::copy(file, target).map_err(failed)?;
            }
        }
    }
    Ok(())
}

/// The form's name, and the number of pairs of each split.
type Verified = (String, Vec<(String, Option<usize>)>);

/// Decodes every pair of every split that is present.
fn verify(facts: &'static DatasetManifest, base: &Path, progress: &Progress<'_>) -> Result<Verified> {
    let mut found = Vec::new();
    let mut layout = String::new();
    let mut seen = BTreeSet::new();
    for (name, split) in splits(facts, base)? {
        let Some(split) = split else {
            found.push((name.to_string(), None));
            continue;
        };
        let form = split.place().layout;
        let expected = facts.count(facts.split(name)?, form);
        if split.len() != expected {
            let got = split.len();
            let reason =
                format!("the {name} split has {got} pairs, expected {expected}; get the complete {}", facts.title);
            return Err(Error::file(base.join(name), reason));
        }
        if layout.is_empty() {
            layout.clone_from(&form.name);
        }
        // Splits may share samples: each is decoded once.
        let fresh: Vec<usize> =
            split.pairs().iter().enumerate().filter_map(|(at, pair)| seen.insert(pair.clone()).then_some(at)).collect();
        decode(facts, &split, &fresh, &|done| progress(name, done, fresh.len()))?;
        found.push((name.to_string(), Some(split.len())));
    }
    Ok((layout, found))
}

/// Decodes samples on all cores; the error is that of the first bad one in order.
fn decode(
    facts: &DatasetManifest,
    split: &Published,
    samples: &[usize],
    progress: &(dyn Fn(usize) + Sync),
) -> Result<()> {
    let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let worst: Mutex<Option<(usize, Error)>> = Mutex::new(None);
    let work = || {
        while let Some(&index) = samples.get(next.fetch_add(1, Ordering::Relaxed)) {
            let fits = split.sample(index).and_then(|sample| {
                let size = [sample.image.height, sample.image.width];
                match (facts.size, split.pairs().get(index)) {
                    (Some(want), Some(Pair { image, .. })) if want != size => {
                        let reason = format!("is {}x{} pixels, expected {}x{}", size[1], size[0], want[1], want[0]);
                        Err(Error::file(image, reason))
                    }
                    _ => Ok(()),
                }
            });
            if let (Err(error), Ok(mut worst)) = (fits, worst.lock()) {
                if worst.as_ref().is_none_or(|(first, _)| index < *first) {
                    *worst = Some((index, error));
                }
                // What was taken before this one still ends; nothing new begins.
                next.store(samples.len(), Ordering::Relaxed);
            }
            progress(done.fetch_add(1, Ordering::Relaxed) + 1);
        }
    };
    std::thread::scope(|scope| {
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        (1..threads).for_each(|_| drop(scope.spawn(work)));
        work();
    });
    match worst.into_inner() {
        Ok(None) => Ok(()),
        Ok(Some((_, error))) => Err(error),
        Err(_) => Err(Error::LoaderStopped),
    }
}

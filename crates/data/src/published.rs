//! The one reader of published datasets: a manifest, a folder, a split.
//!
//! The first of the manifest's layouts that fits the folder is taken. The samples of a split are, in this order: the
//! lines of the layout's list; the files of the split's folder; the files whose stems lie in the split's ranges.
//!
//! A list of pairs has an image, white space and a label map on each line. Lists of the SegNet tutorial start with
//! `/SegNet/CamVid/`; such paths are taken relative to the folder that holds the list.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Component, Path, PathBuf};

use crate::dataset::{Pair, pair_at};
use crate::label_code::LabelCode;
use crate::manifest::{DatasetManifest, Each, Entries, Layout, SplitFacts};
use crate::pattern::{Key, Pattern};
use crate::{Classes, Dataset, Error, Result, Sample, manifest};

/// One split of a published dataset on disk.
#[derive(Clone, Debug)]
pub struct Published {
    classes: Classes,
    code: LabelCode,
    pairs: Vec<Pair>,
    place: Place,
}

/// The form in which a split was found, and where.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// The dataset's own folder: the root given or one below it.
    pub(crate) base: PathBuf,
    pub(crate) layout: &'static Layout,
    /// The list that names the samples, where there is one.
    pub(crate) list: Option<PathBuf>,
}

impl Published {
    /// Opens a split of the dataset `name` (NAME or NAME:POLICY) below `root`. Every listed file must exist; none is
    /// decoded yet.
    ///
    /// # Errors
    /// Param for an unknown dataset, policy or split; File or Line for a missing folder, list or file or a malformed
    /// line.
    pub fn open(name: &str, root: &Path, split: &str) -> Result<Self> {
        let (name, policy) = name.split_once(':').map_or((name, None), |(name, policy)| (name, Some(policy)));
        let facts = manifest(name)?;
        facts.policy(policy)?;
        let split = facts.split(split)?;
        let place = find(facts, root, split)?;
        let pairs = pairs(&place, split)?;
        Ok(Self { classes: facts.classes()?, code: facts.code(place.layout.encoding, policy)?, pairs, place })
    }

    /// Image and label file of every sample, in order.
    pub(crate) fn pairs(&self) -> &[Pair] {
        &self.pairs
    }

    /// Form and folder.
    pub(crate) fn place(&self) -> &Place {
        &self.place
    }
}

impl Dataset for Published {
    fn len(&self) -> usize {
        self.pairs.len()
    }

    fn classes(&self) -> &Classes {
        &self.classes
    }

    fn sample(&self, index: usize) -> Result<Sample> {
        pair_at(&self.pairs, index)?.read(&self.code)
    }

    fn name(&self, index: usize) -> String {
        self.pairs.get(index).map(Pair::name).unwrap_or_default()
    }
}

/// What stands for `{split}`.
fn folder(split: &SplitFacts) -> &str {
    split.folder.as_deref().unwrap_or(&split.name)
}

/// The first layout and folder that hold the split.
pub(crate) fn find(facts: &'static DatasetManifest, root: &Path, split: &SplitFacts) -> Result<Place> {
    if !root.is_dir() {
        let name = &facts.name;
        let reason = format!(
            "no such folder; import {name} first (cargo xtask data {name} --from ARCHIVE_OR_FOLDER) or correct the root"
        );
        return Err(Error::file(root, reason));
    }
    let forms = facts.layouts.iter().filter(|layout| layout.holds(&split.name));
    let mut expected = Vec::new();
    let mut unlabelled = None;
    for layout in forms {
        for below in &layout.roots {
            let base = if below == "." { root.to_path_buf() } else { root.join(below) };
            let list = layout.list.as_ref().map(|list| base.join(list.replace("{split}", folder(split))));
            if let Some(list) = list.filter(|list| list.is_file()) {
                return Ok(Place { base, layout, list: Some(list) });
            }
            if by_folder(layout, split) && has_folders(layout, &base, split) {
                let place = Place { base, layout, list: None };
                if has_labels(&place, split) {
                    return Ok(place);
                }
                unlabelled.get_or_insert(place);
            }
        }
        expected.push(format!("{} ({})", layout.name, layout.description));
    }
    if let Some(place) = unlabelled {
        return Ok(place);
    }
    let reason = format!("holds no {} split of {}; known forms: {}", split.name, facts.name, expected.join("; "));
    Err(Error::file(root, reason))
}

/// Whether the samples of a split can be told from the files alone.
fn by_folder(layout: &Layout, split: &SplitFacts) -> bool {
    layout.images.iter().any(|pattern| pattern.names_split())
        || !split.stems.is_empty()
        || (layout.each == Each::Labels && layout.list.is_none())
}

/// Whether both fixed folders are there.
fn has_folders(layout: &Layout, base: &Path, split: &SplitFacts) -> bool {
    let there = |patterns: &[Pattern]| patterns.iter().any(|pattern| base.join(pattern.fixed(folder(split))).is_dir());
    there(&layout.images) && there(&layout.labels)
}

/// Whether a label file of this form is there. Forms may share their folders and differ in how label files end.
fn has_labels(place: &Place, split: &SplitFacts) -> bool {
    let mut files = place.layout.labels.iter().map(|labels| labels.files(&place.base, folder(split)));
    files.any(|files| files.is_ok_and(|files| !files.is_empty()))
}

fn pairs(place: &Place, split: &SplitFacts) -> Result<Vec<Pair>> {
    match &place.list {
        Some(list) if place.layout.entries == Entries::Pairs => read_pairs(list, &place.base),
        Some(list) => {
            let mut pairs = Vec::new();
            for (number, stem) in stems(list)? {
                let key = Key { dir: String::new(), stem };
                let pair = pair_of(place, split, &key).map_err(|reason| Error::line(list, number, reason))?;
                pairs.push(pair);
            }
            if pairs.is_empty() {
                return Err(Error::file(list, "lists no sample"));
            }
            Ok(pairs)
        }
        None => enumerate(place, split),
    }
}

/// The lines of a list of stems, with their numbers.
pub(crate) fn stems(list: &Path) -> Result<Vec<(usize, String)>> {
    let text = fs::read_to_string(list).map_err(|error| Error::file(list, format!("cannot read: {error}")))?;
    let mut stems = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let stem = line.trim();
        if stem.contains(['/', '\\']) || stem.contains("..") {
            return Err(Error::line(list, number, format!("expected a file stem without a folder, got {stem:?}")));
        }
        if !stem.is_empty() {
            stems.push((number, stem.to_string()));
        }
    }
    Ok(stems)
}

/// Both files of a sample, or what is missing.
fn pair_of(place: &Place, split: &SplitFacts, key: &Key) -> Result<Pair, String> {
    let (image, labels) = (image_of(place, split, key)?, label_of(place, split, key)?);
    Ok(Pair { image, labels })
}

fn image_of(place: &Place, split: &SplitFacts, key: &Key) -> Result<PathBuf, String> {
    first(place, &place.layout.images, split, key).map_err(|usual| format!("no image {}", usual.display()))
}

fn label_of(place: &Place, split: &SplitFacts, key: &Key) -> Result<PathBuf, String> {
    first(place, &place.layout.labels, split, key)
        .map_err(|usual| format!("has no label map; expected {}", usual.display()))
}

fn first(place: &Place, patterns: &[Pattern], split: &SplitFacts, key: &Key) -> Result<PathBuf, PathBuf> {
    let paths = || patterns.iter().flat_map(|pattern| pattern.paths(&place.base, folder(split), key));
    paths().find(|path| path.is_file()).ok_or_else(|| paths().next().unwrap_or_default())
}

/// The samples of a split by its files.
fn enumerate(place: &Place, split: &SplitFacts) -> Result<Vec<Pair>> {
    let layout = place.layout;
    let patterns = if layout.each == Each::Images { &layout.images } else { &layout.labels };
    let ranged = !patterns.iter().any(|pattern| pattern.names_split()) && !split.stems.is_empty();
    let here = |stem: &str| split.stems.iter().any(|[first, last]| (first.as_str()..=last.as_str()).contains(&stem));
    let without: BTreeSet<String> = match layout.without.as_ref().map(|list| place.base.join(list)) {
        Some(list) => stems(&list)?.into_iter().map(|(_, stem)| stem).collect(),
        None => BTreeSet::new(),
    };
    let mut pairs = Vec::new();
    let mut seen: BTreeSet<Key> = BTreeSet::new();
    for pattern in patterns {
        for (key, path) in pattern.files(&place.base, folder(split))? {
            if without.contains(&key.stem) || (ranged && !here(&key.stem)) {
                continue;
            }
            let named = |reason| Error::file(&path, reason);
            let pair = match layout.each {
                Each::Images => Pair { labels: label_of(place, split, &key).map_err(named)?, image: path.clone() },
                Each::Labels => Pair { image: image_of(place, split, &key).map_err(named)?, labels: path.clone() },
            };
            if !seen.insert(key) {
                return Err(Error::file(&path, "another image has the same stem; remove one of the two"));
            }
            pairs.push(pair);
        }
    }
    if pairs.is_empty() {
        let place =
            place.base.join(layout.images.first().map(|pattern| pattern.fixed(folder(split))).unwrap_or_default());
        return Err(Error::file(place, format!("holds no image of the {} split", split.name)));
    }
    Ok(pairs)
}

/// Reads a list of pairs.
fn read_pairs(list: &Path, base: &Path) -> Result<Vec<Pair>> {
    let text = fs::read_to_string(list).map_err(|error| Error::file(list, format!("cannot read: {error}")))?;
    let mut pairs = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        match fields.as_slice() {
            [] => {}
            [image, labels] => {
                let find = |name: &str| {
                    resolve(base, name).ok_or_else(|| {
                        Error::line(list, number, format!("no file {name} below {}; correct the list", base.display()))
                    })
                };
                pairs.push(Pair { image: find(image)?, labels: find(labels)? });
            }
            _ => {
                let reason =
                    format!("expected an image and a label path with a space between, got {} words", fields.len());
                return Err(Error::line(list, number, reason));
            }
        }
    }
    if pairs.is_empty() {
        return Err(Error::file(list, "lists no pair"));
    }
    Ok(pairs)
}

/// The file that a list's entry means: relative to `base`, as an absolute path, or the longest end of it that lies
/// below `base`. Entries that climb out with `..` mean nothing.
fn resolve(base: &Path, entry: &str) -> Option<PathBuf> {
    let path = Path::new(entry);
    if path.components().any(|part| part == Component::ParentDir) {
        return None;
    }
    let whole = Some(base.join(path)).filter(|path| path.is_file());
    let parts: Vec<Component<'_>> = path.components().collect();
    // A path of one part names its file already; shorter ends of a longer one must keep a folder.
    let mut ends = (1..parts.len().saturating_sub(1)).map(|from| base.join(parts[from..].iter().collect::<PathBuf>()));
    whole.or_else(|| ends.find(|candidate| candidate.is_file()))
}

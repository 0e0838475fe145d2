//! Your own data: `images/`, `labels/` with the same stems, and `classes.toml`.
//!
//! ```toml
//! names = ["road", "car"]                     # train id 0, 1, …
//! colours = [[128, 64, 128], [64, 0, 128]]    # optional, for pictures
//! ids = [7, 26]                               # optional: the id of each class in the label files; 0, 1, … without it
//! ignore = [0, 255]                           # optional: an id or a list of ids that count nowhere; 255 without it
//! ```
//!
//! A split NAME is, in this order: the stems listed in `NAME.txt`; `NAME/images/` and `NAME/labels/`; for `train` and
//! `val` a seeded share of `images/`; for `all` the whole of `images/`.

use std::fs;
use std::path::Path;

use dsd_random::Stream;
use serde::Deserialize;

use crate::dataset::{Pair, pair_at, pairs_in_folders};
use crate::label_code::LabelCode;
use crate::pattern::IMAGE_EXTENSIONS;
use crate::{Classes, Dataset, Error, IGNORE, IdMap, Result, Sample};

/// One split of a folder dataset.
#[derive(Clone, Debug)]
pub struct Folder {
    classes: Classes,
    code: LabelCode,
    pairs: Vec<Pair>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ClassesFile {
    names: Vec<String>,
    colours: Option<Vec<[u8; 3]>>,
    ids: Option<Vec<u8>>,
    ignore: Option<IgnoredIds>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum IgnoredIds {
    One(u8),
    Many(Vec<u8>),
}

impl Folder {
    /// Opens a split. `validation_fraction` (0 to 1 exclusive) and `seed` divide `images/` where nothing else says
    /// what is `train` and what is `val`.
    ///
    /// # Errors
    /// File or Line, naming the file: missing folder, `classes.toml`, list, image or label map, or a bad line;
    /// Param for a fraction out of range.
    pub fn open(root: &Path, split: &str, seed: u64, validation_fraction: f64) -> Result<Self> {
        if !root.is_dir() {
            return Err(Error::file(root, "no such folder; give the folder that holds images/, labels/, classes.toml"));
        }
        let (classes, ids) = read_classes(&root.join("classes.toml"))?;
        let pairs = pairs_of_split(root, split, seed, validation_fraction)?;
        Ok(Self { classes, code: LabelCode::Ids(ids), pairs })
    }

    /// Image and label file of every sample, and how the labels are read.
    pub(crate) fn parts(&self) -> (&[Pair], &LabelCode) {
        (&self.pairs, &self.code)
    }
}

impl Dataset for Folder {
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

fn read_classes(path: &Path) -> Result<(Classes, IdMap)> {
    let text = fs::read_to_string(path).map_err(|error| {
        Error::file(path, format!("cannot read: {error}; write there: names = [\"first class\", \"second class\"]"))
    })?;
    let file: ClassesFile = toml::from_str(&text).map_err(|error| Error::file(path, error.to_string()))?;
    let in_file = |error: Error| Error::file(path, error.to_string());
    let count = file.names.len();
    let colours = file.colours.unwrap_or_else(|| (0..count).map(distinct_colour).collect());
    let classes = Classes::new(file.names, colours).map_err(in_file)?;
    let ids = file.ids.unwrap_or_else(|| (0..=IGNORE).take(count).collect());
    if ids.len() != count {
        return Err(Error::file(path, format!("ids: expected one per class ({count}), got {}", ids.len())));
    }
    let ignored = match file.ignore {
        Some(IgnoredIds::One(id)) => vec![id],
        Some(IgnoredIds::Many(ids)) => ids,
        None if ids.contains(&IGNORE) => vec![],
        None => vec![IGNORE],
    };
    Ok((classes, IdMap::new(&ids, &ignored).map_err(in_file)?))
}

/// A colour that is easy to tell from those of the neighbouring ids: hue by the golden angle, two brightnesses.
fn distinct_colour(index: usize) -> [u8; 3] {
    let hue = (index as f64 * 0.618_033_988_75 + 0.58).fract() * 6.0;
    let value = if index.is_multiple_of(2) { 224.0 } else { 150.0 };
    [5.0, 3.0, 1.0].map(|offset: f64| {
        let k = (offset + hue) % 6.0;
        (value * (1.0 - 0.65 * k.min(4.0 - k).clamp(0.0, 1.0))) as u8
    })
}

fn pairs_of_split(root: &Path, split: &str, seed: u64, validation_fraction: f64) -> Result<Vec<Pair>> {
    let list = root.join(format!("{split}.txt"));
    if list.is_file() {
        return read_stems(&list, root);
    }
    let folder = root.join(split);
    if folder.join("images").is_dir() {
        return pairs_in_folders(&folder.join("images"), &folder.join("labels"));
    }
    if !matches!(split, "train" | "val" | "all") {
        let reason = format!("has no {split}.txt and no {split}/images/; add one or choose train, val or all");
        return Err(Error::file(root, reason));
    }
    let pairs = pairs_in_folders(&root.join("images"), &root.join("labels"))?;
    if split == "all" {
        return Ok(pairs);
    }
    if !(validation_fraction > 0.0 && validation_fraction < 1.0) {
        let reason = format!("expected more than 0 and less than 1, got {validation_fraction}");
        return Err(Error::param("validation_fraction", reason));
    }
    if pairs.len() < 2 {
        return Err(Error::file(root.join("images"), "holds one image; at least 2 are needed for train and val"));
    }
    let count = ((pairs.len() as f64 * validation_fraction).round() as usize).clamp(1, pairs.len() - 1);
    let mut order: Vec<usize> = (0..pairs.len()).collect();
    Stream::new(seed, "split", 0, 0).shuffle(&mut order);
    let mut chosen = if split == "val" { order[..count].to_vec() } else { order[count..].to_vec() };
    chosen.sort_unstable();
    Ok(chosen.into_iter().map(|index| pairs[index].clone()).collect())
}

/// Reads a list of stems, one a line.
fn read_stems(list: &Path, root: &Path) -> Result<Vec<Pair>> {
    let text = fs::read_to_string(list).map_err(|error| Error::file(list, format!("cannot read: {error}")))?;
    let mut pairs = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let stem = line.trim();
        if stem.is_empty() {
            continue;
        }
        if stem.contains(['/', '\\']) || stem.contains("..") {
            return Err(Error::line(list, number, format!("expected a file stem without a folder, got {stem:?}")));
        }
        let named = |extension: &&str| root.join("images").join(format!("{stem}.{extension}"));
        let Some(image) = IMAGE_EXTENSIONS.iter().map(named).find(|path| path.is_file()) else {
            let reason = format!("no image {stem}.png or {stem}.jpg in {}", root.join("images").display());
            return Err(Error::line(list, number, reason));
        };
        let labels = root.join("labels").join(format!("{stem}.png"));
        if !labels.is_file() {
            return Err(Error::line(list, number, format!("no label map {}", labels.display())));
        }
        pairs.push(Pair { image, labels });
    }
    if pairs.is_empty() {
        return Err(Error::file(list, "lists no stem"));
    }
    Ok(pairs)
}

//! CamVid in the SegNet layout.
//!
//! A split NAME is the list `NAME.txt` (one line: image, space, label map) or the folders `NAME/` and `NAMEannot/`.
//! Images are PNG or JPEG, label maps index PNGs with ids 0 to 10 and 11 for void. The lists of the SegNet tutorial
//! start with `/SegNet/CamVid/`; such paths are taken relative to the folder that holds the list.

use std::fs;
use std::path::{Component, Path, PathBuf};

use crate::dataset::{Pair, pair_at, pairs_in_folders};
use crate::{Classes, Dataset, Error, IdMap, Result, Sample, camvid_manifest};

/// One split of CamVid on disk.
#[derive(Clone, Debug)]
pub struct CamVid {
    classes: Classes,
    ids: IdMap,
    pairs: Vec<Pair>,
}

impl CamVid {
    /// Opens a split below `root` or `root/CamVid`. Every listed file must exist; none is decoded yet.
    ///
    /// # Errors
    /// Param for an unknown split; File or Line for a missing folder, list or file or a malformed line.
    pub fn open(root: &Path, split: &str) -> Result<Self> {
        let manifest = camvid_manifest()?;
        if !manifest.splits.iter().any(|facts| facts.name == split) {
            let names: Vec<&str> = manifest.splits.iter().map(|facts| facts.name.as_str()).collect();
            return Err(Error::param("split", format!("{split:?} is not known; choose one of {}", names.join(", "))));
        }
        let pairs = pairs_of_split(root, split)?;
        Ok(Self { classes: manifest.classes()?, ids: manifest.id_map()?, pairs })
    }

    /// Image and label file of every sample, in order.
    pub(crate) fn pairs(&self) -> &[Pair] {
        &self.pairs
    }
}

impl Dataset for CamVid {
    fn len(&self) -> usize {
        self.pairs.len()
    }

    fn classes(&self) -> &Classes {
        &self.classes
    }

    fn sample(&self, index: usize) -> Result<Sample> {
        pair_at(&self.pairs, index)?.read(&self.ids)
    }

    fn name(&self, index: usize) -> String {
        self.pairs.get(index).map(Pair::name).unwrap_or_default()
    }
}

/// True where the folder holds the split as a list or as a folder.
pub(crate) fn has_split(folder: &Path, split: &str) -> bool {
    folder.join(format!("{split}.txt")).is_file() || folder.join(split).is_dir()
}

fn pairs_of_split(root: &Path, split: &str) -> Result<Vec<Pair>> {
    if !root.is_dir() {
        let reason = "no such folder; import CamVid first (cargo xtask data camvid --from ARCHIVE) or correct the root";
        return Err(Error::file(root, reason));
    }
    let base = [root.to_path_buf(), root.join("CamVid")].into_iter().find(|folder| has_split(folder, split));
    let Some(base) = base else {
        let reason = format!("holds neither {split}.txt nor {split}/; expected the SegNet layout of CamVid there");
        return Err(Error::file(root, reason));
    };
    let list = base.join(format!("{split}.txt"));
    if list.is_file() {
        return read_list(&list, &base);
    }
    pairs_in_folders(&base.join(split), &base.join(format!("{split}annot")))
}

/// Reads the list of a split.
fn read_list(list: &Path, base: &Path) -> Result<Vec<Pair>> {
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

/// The file that a list's entry means: relative to `base`, as an absolute path, or below `base` what follows the last
/// folder called CamVid. Entries that climb out with `..` mean nothing.
fn resolve(base: &Path, entry: &str) -> Option<PathBuf> {
    let path = Path::new(entry);
    if path.components().any(|part| part == Component::ParentDir) {
        return None;
    }
    let parts: Vec<Component<'_>> = path.components().collect();
    let after = parts.iter().rposition(|part| part.as_os_str() == "CamVid").map(|at| parts[at + 1..].iter().collect());
    let tail: Option<PathBuf> = after.map(|tail: PathBuf| base.join(tail));
    [Some(base.join(path)), tail].into_iter().flatten().find(|candidate| candidate.is_file())
}

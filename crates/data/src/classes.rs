//! Classes, the map from a label file's ids to train ids, and the manifests that declare them.

use std::path::Path;
use std::sync::OnceLock;

use serde::Deserialize;

use crate::{Error, IGNORE, LabelMap, Result};

/// The classes of a dataset; a class's position is its train id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Classes {
    /// Names, in the order of the train ids.
    pub names: Vec<String>,
    /// One RGB colour per class, for pictures only.
    pub colours: Vec<[u8; 3]>,
}

impl Classes {
    /// Checks that there are 1 to 255 classes with distinct names and one colour each.
    ///
    /// # Errors
    /// Param, naming what is wrong.
    pub fn new(names: Vec<String>, colours: Vec<[u8; 3]>) -> Result<Self> {
        if names.is_empty() || names.len() > usize::from(IGNORE) {
            return Err(Error::param("names", format!("expected 1 to 255 classes, got {}", names.len())));
        }
        if colours.len() != names.len() {
            let (want, got) = (names.len(), colours.len());
            return Err(Error::param("colours", format!("expected one per class ({want}), got {got}")));
        }
        for (index, name) in names.iter().enumerate() {
            if name.trim().is_empty() || names[..index].contains(name) {
                return Err(Error::param("names", format!("class {index} ({name:?}) is empty or named twice")));
            }
        }
        Ok(Self { names, colours })
    }

    /// Number of classes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Never true for classes made by [`Classes::new`].
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }
}

/// Which id of a label file is which train id, which ids are ignored, and which must not occur.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdMap {
    /// Train id (or [`IGNORE`]) of every raw id; none where the raw id is not allowed.
    table: Vec<Option<u8>>,
}

impl IdMap {
    /// `ids[k]` is the raw id of class k; each of `ignored` becomes [`IGNORE`].
    ///
    /// # Errors
    /// Param where an id is listed twice or there are more than 255.
    pub fn new(ids: &[u8], ignored: &[u8]) -> Result<Self> {
        if ids.len() > usize::from(IGNORE) {
            return Err(Error::param("ids", format!("expected at most 255, got {}", ids.len())));
        }
        let mut table = vec![None; 256];
        for (train_id, &raw) in (0u8..).zip(ids) {
            if table[usize::from(raw)].replace(train_id).is_some() {
                return Err(Error::param("ids", format!("id {raw} belongs to two classes")));
            }
        }
        for &raw in ignored {
            if table[usize::from(raw)].replace(IGNORE).is_some_and(|old| old != IGNORE) {
                return Err(Error::param("ignore", format!("id {raw} is a class and ignored at once")));
            }
        }
        Ok(Self { table })
    }

    /// Raw ids 0 to `classes − 1` are the train ids and 255 is ignored: label maps that hold train ids already.
    ///
    /// # Errors
    /// Param where there are more than 255 classes.
    pub fn train_ids(classes: usize) -> Result<Self> {
        let ids: Vec<u8> = (0..=IGNORE).take(classes).collect();
        if ids.len() != classes || classes > usize::from(IGNORE) {
            return Err(Error::param("classes", format!("expected at most 255, got {classes}")));
        }
        Self::new(&ids, &[IGNORE])
    }

    /// Rewrites raw ids as train ids; the error names the first value that is not allowed.
    pub(crate) fn apply(&self, labels: &mut LabelMap) -> Result<(), String> {
        for (position, id) in labels.ids.iter_mut().enumerate() {
            match self.table[usize::from(*id)] {
                Some(train_id) => *id = train_id,
                None => {
                    let (x, y) = (position % labels.width, position / labels.width);
                    return Err(format!(
                        "label id {id} at column {x}, row {y} is none of this dataset's ids ({}); \
                         correct the label map or the dataset's id list",
                        self.allowed()
                    ));
                }
            }
        }
        Ok(())
    }

    /// The allowed raw ids in words: `0–10; ignored: 11, 255`.
    fn allowed(&self) -> String {
        let of = |ignored: bool| {
            let ids = (0u8..=255).zip(&self.table).filter(|(_, to)| to.is_some_and(|to| (to == IGNORE) == ignored));
            ranges(&ids.map(|(raw, _)| raw).collect::<Vec<_>>())
        };
        let (classes, ignored) = (of(false), of(true));
        if ignored.is_empty() { classes } else { format!("{classes}; ignored: {ignored}") }
    }
}

/// Ascending ids with runs written as ranges.
fn ranges(ids: &[u8]) -> String {
    let mut parts: Vec<(u8, u8)> = Vec::new();
    for &id in ids {
        match parts.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(id) => *last = id,
            _ => parts.push((id, id)),
        }
    }
    let word = |&(first, last): &(u8, u8)| if first == last { first.to_string() } else { format!("{first}–{last}") };
    parts.iter().map(word).collect::<Vec<_>>().join(", ")
}

/// A dataset's manifest (`datasets/NAME.toml`): classes, ids, splits, source, licence.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatasetManifest {
    /// Format version of the manifest; 1.
    pub version: u32,
    /// Short name, as on the command line.
    pub name: String,
    /// Full title.
    pub title: String,
    /// Width of every image in pixels.
    pub width: usize,
    /// Height of every image in pixels.
    pub height: usize,
    ignore_ids: Vec<u8>,
    #[serde(rename = "classes")]
    class_list: Vec<ClassEntry>,
    /// Splits with the number of pairs in each.
    pub splits: Vec<SplitFacts>,
    /// Where it comes from and under which licence.
    pub source: SourceFacts,
    /// Archives whose content was verified.
    pub archives: Vec<ArchiveFacts>,
    /// Channel statistics of the train split.
    pub statistics: Statistics,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ClassEntry {
    name: String,
    id: u8,
    colour: [u8; 3],
}

/// A split and its size.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SplitFacts {
    /// Name of the split.
    pub name: String,
    /// Number of image and label pairs.
    pub count: usize,
}

/// Origin of a dataset.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceFacts {
    /// The paper.
    pub title: String,
    /// The authors' page.
    pub homepage: String,
    /// Who arranged the files as they are read here.
    pub layout: String,
    /// Terms of use.
    pub licence: String,
}

/// An archive whose content was verified.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArchiveFacts {
    /// What is in it.
    pub description: String,
    /// Its usual file name.
    pub file: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// SHA-256 in lower-case hexadecimal.
    pub sha256: String,
}

/// Channel statistics, RGB, in 0–1.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Statistics {
    /// Mean per channel.
    pub mean: [f32; 3],
    /// Standard deviation per channel over all pixels.
    pub std: [f32; 3],
}

impl DatasetManifest {
    /// Reads a manifest's text; `path` is named in errors only.
    ///
    /// # Errors
    /// File, with the parser's reason: bad TOML, an unknown key, a missing key, another version.
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        let manifest: Self = toml::from_str(text).map_err(|error| Error::file(path, error.to_string()))?;
        if manifest.version != 1 {
            return Err(Error::file(path, format!("version {} is not known, expected 1", manifest.version)));
        }
        manifest.classes()?;
        manifest.id_map()?;
        Ok(manifest)
    }

    /// The classes in train-id order.
    ///
    /// # Errors
    /// Param where the manifest's classes are not valid; never after [`DatasetManifest::parse`].
    pub fn classes(&self) -> Result<Classes> {
        let names = self.class_list.iter().map(|class| class.name.clone()).collect();
        Classes::new(names, self.class_list.iter().map(|class| class.colour).collect())
    }

    /// The map from label ids to train ids.
    ///
    /// # Errors
    /// Param where the manifest's ids clash; never after [`DatasetManifest::parse`].
    pub fn id_map(&self) -> Result<IdMap> {
        IdMap::new(&self.class_list.iter().map(|class| class.id).collect::<Vec<_>>(), &self.ignore_ids)
    }
}

/// CamVid's manifest, which is part of the program.
///
/// # Errors
/// File where the manifest that was compiled in is not valid; the tests exclude this.
pub fn camvid_manifest() -> Result<&'static DatasetManifest> {
    static MANIFEST: OnceLock<DatasetManifest> = OnceLock::new();
    if let Some(manifest) = MANIFEST.get() {
        return Ok(manifest);
    }
    let text = include_str!("../../../datasets/camvid.toml");
    let manifest = DatasetManifest::parse(text, Path::new("datasets/camvid.toml"))?;
    Ok(MANIFEST.get_or_init(|| manifest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn camvids_manifest_declares_the_segnet_classes_and_splits() -> Result<()> {
        let manifest = camvid_manifest()?;
        let classes = manifest.classes()?;
        assert_eq!(classes.len(), 11);
        assert_eq!(classes.names[3], "Road");
        assert_eq!(classes.colours[10], [0, 128, 192]);
        let counts: Vec<usize> = manifest.splits.iter().map(|split| split.count).collect();
        assert_eq!(counts, [367, 101, 233]);
        Ok(())
    }

    #[test]
    fn ids_are_mapped_and_a_foreign_id_is_named_with_its_place() -> Result<()> {
        let map = camvid_manifest()?.id_map()?;
        let mut labels = LabelMap::new(3, 1, vec![0, 11, 10])?;
        assert_eq!(map.apply(&mut labels), Ok(()));
        assert_eq!(labels.ids, [0, IGNORE, 10]);
        let mut labels = LabelMap::new(2, 2, vec![0, 1, 2, 12])?;
        let reason = map.apply(&mut labels).err().unwrap_or_default();
        assert!(
            reason.starts_with("label id 12 at column 1, row 1 is none of this dataset's ids (0–10; ignored: 11, 255)"),
            "{reason}"
        );
        Ok(())
    }

    #[test]
    fn sparse_ids_and_clashes() -> Result<()> {
        let map = IdMap::new(&[7, 8, 11], &[0, 1])?;
        assert_eq!(map.allowed(), "7–8, 11; ignored: 0–1");
        assert!(IdMap::new(&[7, 7], &[]).is_err());
        assert!(IdMap::new(&[7], &[7]).is_err());
        assert!(IdMap::train_ids(256).is_err());
        assert_eq!(IdMap::train_ids(2)?.allowed(), "0–1; ignored: 255");
        assert!(Classes::new(vec!["a".into(), "a".into()], vec![[0; 3]; 2]).is_err());
        Ok(())
    }

    #[test]
    fn a_manifest_with_an_unknown_key_is_refused_in_one_line() {
        let error = DatasetManifest::parse("version = 1\ncolour = 3\n", Path::new("x.toml"));
        let message = error.err().map(|error| error.to_string()).unwrap_or_default();
        assert!(message.starts_with("x.toml: ") && message.contains("colour") && !message.contains('\n'), "{message}");
    }
}

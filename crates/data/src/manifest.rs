//! The manifests of the published datasets: all that is known about one of them.
//!
//! `datasets/NAME.toml` declares classes with their file ids and colours, splits with their sizes, the forms in which
//! the files lie on disk, archives with size and hash, source and licence. The readers, the import, the download and
//! `dsd data check` take everything from there and know no dataset by name.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::OnceLock;

use serde::Deserialize;

use crate::label_code::LabelCode;
use crate::pattern::Pattern;
use crate::{Classes, ColourMap, Error, IGNORE, IdMap, Result};

/// A dataset's manifest (`datasets/NAME.toml`).
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatasetManifest {
    /// Format version of the manifest; 2.
    pub version: u32,
    /// Short name, as on the command line.
    pub name: String,
    /// Full title.
    pub title: String,
    /// [height, width] of every image in pixels, where all have one size.
    pub size: Option<[usize; 2]>,
    #[serde(rename = "classes")]
    class_list: Vec<ClassEntry>,
    ignore_ids: Vec<u8>,
    /// Ways to merge the raw classes; the first is used where none is named.
    #[serde(default)]
    pub policies: Vec<String>,
    #[serde(default)]
    raw_classes: Vec<RawClass>,
    /// Splits with the number of pairs in each.
    pub splits: Vec<SplitFacts>,
    /// Forms on disk; the first that fits a folder is taken.
    pub layouts: Vec<Layout>,
    /// Where it comes from and under which licence.
    pub source: SourceFacts,
    /// What an archive of it may hold at most.
    pub limits: ArchiveLimits,
    /// Its archives.
    #[serde(default)]
    pub archives: Vec<ArchiveFacts>,
    /// Channel statistics of the train split.
    pub statistics: Option<Statistics>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ClassEntry {
    name: String,
    id: u8,
    colour: [u8; 3],
}

/// A class of the original labels, finer than what is trained.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawClass {
    name: String,
    id: u8,
    colour: [u8; 3],
    /// The class it belongs to; none: it is ignored.
    class: Option<String>,
    /// The policies under which it belongs there; none named: all.
    policies: Option<Vec<String>>,
}

/// A split and its size.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SplitFacts {
    /// Name of the split.
    pub name: String,
    /// Number of image and label pairs.
    pub count: usize,
    /// What stands for `{split}` in a layout's patterns; the name where it is absent.
    pub folder: Option<String>,
    /// First and last stem of ranges that make up the split, in forms where neither a folder nor a list says so.
    #[serde(default)]
    pub stems: Vec<[String; 2]>,
    /// True where an import may lack it.
    #[serde(default)]
    pub optional: bool,
    /// Splits that hold some of the same images by design.
    #[serde(default)]
    pub shares: Vec<String>,
    /// True where every published label is ignored.
    #[serde(default)]
    pub unlabelled: bool,
}

/// How a label file says which class a pixel is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Encoding {
    /// The ids of the manifest's classes; palette and grey files alike.
    #[default]
    Ids,
    /// Positions in the manifest's list of classes, 255 ignored.
    TrainIds,
    /// The ids of the raw classes.
    RawIds,
    /// The colours of the raw classes.
    Colours,
}

/// How the lines of a split's list look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Entries {
    #[default]
    Stems,
    Pairs,
}

/// Which files are counted where no list names the samples.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Each {
    #[default]
    Images,
    Labels,
}

/// A form in which a dataset lies on disk.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layout {
    /// Its name.
    pub name: String,
    /// What lies where, in words.
    pub description: String,
    /// The splits that it may hold; none named: all.
    splits: Option<Vec<String>>,
    /// Folders, relative to the root given, that may be the dataset's.
    #[serde(default = "here")]
    pub(crate) roots: Vec<String>,
    pub(crate) images: Vec<Pattern>,
    pub(crate) labels: Vec<Pattern>,
    pub(crate) list: Option<String>,
    #[serde(default)]
    pub(crate) entries: Entries,
    #[serde(default)]
    pub(crate) each: Each,
    /// A list of stems that are left out.
    pub(crate) without: Option<String>,
    /// How its label files say what a pixel is.
    #[serde(default)]
    pub encoding: Encoding,
    /// Sizes of its splits where they are not the manifest's.
    #[serde(default)]
    counts: BTreeMap<String, usize>,
}

fn here() -> Vec<String> {
    vec![".".to_string()]
}

impl Layout {
    /// Whether it may hold the split.
    pub(crate) fn holds(&self, split: &str) -> bool {
        self.splits.as_ref().is_none_or(|splits| splits.iter().any(|name| name == split))
    }
}

/// Origin of a dataset.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceFacts {
    /// The paper.
    pub title: String,
    /// The authors' page.
    pub homepage: String,
    /// Terms of use.
    pub licence: String,
    /// What a person has to do to get it, step by step; empty where the program can download it.
    #[serde(default)]
    pub by_hand: Vec<String>,
}

/// Bounds of an archive's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArchiveLimits {
    /// Most files and folders.
    pub entries: usize,
    /// Most bytes of one file.
    pub file_bytes: u64,
    /// Most bytes of all files together.
    pub total_bytes: u64,
}

/// An archive of a dataset.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArchiveFacts {
    /// What is in it.
    pub description: String,
    /// Its usual file name.
    pub file: String,
    /// Where it can be downloaded without registration.
    pub url: Option<String>,
    /// Its size in bytes, where known.
    pub bytes: Option<u64>,
    /// SHA-256 in lower-case hexadecimal, where known.
    pub sha256: Option<String>,
    /// SHA-1 in lower-case hexadecimal, where that is what its users have published.
    pub sha1: Option<String>,
    /// Not a part of the dataset itself: the name of the addition that it is for.
    pub extra: Option<String>,
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
    /// File, with the parser's reason: bad TOML, an unknown key, a missing key, another version, or declarations that
    /// contradict each other.
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        let manifest: Self = toml::from_str(text).map_err(|error| Error::file(path, error.to_string()))?;
        if manifest.version != 2 {
            return Err(Error::file(path, format!("version {} is not known, expected 2", manifest.version)));
        }
        manifest.check().map_err(|error| Error::file(path, error.to_string()))?;
        Ok(manifest)
    }

    fn check(&self) -> Result<()> {
        self.classes()?;
        let known = |name: &String| self.splits.iter().any(|split| split.name == *name);
        if let Some(name) = self.splits.iter().flat_map(|split| &split.shares).find(|name| !known(name)) {
            return Err(Error::param("splits", format!("no split is called {name}")));
        }
        for raw in &self.raw_classes {
            if let Some(class) = raw.class.as_ref().filter(|class| self.class_list.iter().all(|c| c.name != **class)) {
                return Err(Error::param("raw_classes", format!("{} belongs to {class}, which is no class", raw.name)));
            }
            if let Some(policy) = raw.policies.iter().flatten().find(|policy| !self.policies.contains(policy)) {
                return Err(Error::param("raw_classes", format!("{}: no policy is called {policy}", raw.name)));
            }
        }
        for layout in &self.layouts {
            if let Some(name) = layout.splits.iter().flatten().chain(layout.counts.keys()).find(|name| !known(name)) {
                return Err(Error::param("layouts", format!("{}: no split is called {name}", layout.name)));
            }
            if layout.images.is_empty() || layout.labels.is_empty() || layout.roots.is_empty() {
                return Err(Error::param("layouts", format!("{}: images, labels or roots is empty", layout.name)));
            }
            self.code(layout.encoding, None)?;
        }
        if let Some(split) = self.splits.iter().find(|split| self.layouts.iter().all(|form| !form.holds(&split.name))) {
            return Err(Error::param("layouts", format!("none holds the split {}", split.name)));
        }
        Ok(())
    }

    /// The classes in train-id order.
    ///
    /// # Errors
    /// Param where the manifest's classes are not valid; never after [`DatasetManifest::parse`].
    pub fn classes(&self) -> Result<Classes> {
        let names = self.class_list.iter().map(|class| class.name.clone()).collect();
        Classes::new(names, self.class_list.iter().map(|class| class.colour).collect())
    }

    /// The id of every class in label files, in train-id order: what the dataset's own evaluator reads.
    #[must_use]
    pub fn label_ids(&self) -> Vec<u8> {
        self.class_list.iter().map(|class| class.id).collect()
    }

    /// The map from label ids to train ids.
    ///
    /// # Errors
    /// Param where the manifest's ids clash; never after [`DatasetManifest::parse`].
    pub fn id_map(&self) -> Result<IdMap> {
        IdMap::new(&self.label_ids(), &self.ignore_ids)
    }

    /// The name of one policy, or of the first; none where the dataset has none.
    ///
    /// # Errors
    /// Param, with the names that there are.
    pub fn policy(&self, asked: Option<&str>) -> Result<Option<&str>> {
        let Some(asked) = asked else { return Ok(self.policies.first().map(String::as_str)) };
        match self.policies.iter().find(|policy| *policy == asked) {
            Some(policy) => Ok(Some(policy)),
            None if self.policies.is_empty() => {
                Err(Error::param("dataset", format!("{} has no policies; leave out :{asked}", self.name)))
            }
            None => {
                let names = self.policies.join(", ");
                Err(Error::param("dataset", format!("{} has no policy {asked:?}; choose one of {names}", self.name)))
            }
        }
    }

    /// How label files of an encoding are read under a policy.
    pub(crate) fn code(&self, encoding: Encoding, policy: Option<&str>) -> Result<LabelCode> {
        let policy = self.policy(policy)?;
        let train_id = |raw: &RawClass| {
            let here = raw.policies.as_ref().is_none_or(|names| names.iter().any(|name| Some(name.as_str()) == policy));
            let class = raw.class.as_ref().filter(|_| here);
            let place = class.and_then(|class| self.class_list.iter().position(|entry| entry.name == *class));
            place.and_then(|place| u8::try_from(place).ok()).unwrap_or(IGNORE)
        };
        Ok(match encoding {
            Encoding::Ids => LabelCode::Ids(self.id_map()?),
            Encoding::TrainIds => LabelCode::Ids(IdMap::train_ids(self.class_list.len())?),
            Encoding::RawIds => {
                LabelCode::Ids(IdMap::merged(self.raw_classes.iter().map(|raw| (raw.id, train_id(raw))))?)
            }
            Encoding::Colours => {
                let raw = self.raw_classes.iter().map(|raw| (raw.colour, train_id(raw)));
                let own = (0u8..).zip(&self.class_list).map(|(place, class)| (class.colour, place));
                LabelCode::Colours(if self.raw_classes.is_empty() {
                    ColourMap::new(own)?
                } else {
                    ColourMap::new(raw)?
                })
            }
        })
    }

    /// Facts about a split.
    ///
    /// # Errors
    /// Param, with the splits that there are.
    pub fn split(&self, name: &str) -> Result<&SplitFacts> {
        self.splits.iter().find(|split| split.name == name).ok_or_else(|| {
            let names: Vec<&str> = self.splits.iter().map(|split| split.name.as_str()).collect();
            Error::param("split", format!("{name:?} is not known; choose one of {}", names.join(", ")))
        })
    }

    /// The published number of pairs of a split in a layout.
    #[must_use]
    pub fn count(&self, split: &SplitFacts, layout: &Layout) -> usize {
        layout.counts.get(&split.name).copied().unwrap_or(split.count)
    }
}

/// The manifests inside the program, by name.
const SHIPPED: [(&str, &str); 4] = [
    ("camvid", include_str!("../../../datasets/camvid.toml")),
    ("cityscapes", include_str!("../../../datasets/cityscapes.toml")),
    ("ade20k", include_str!("../../../datasets/ade20k.toml")),
    ("voc2012", include_str!("../../../datasets/voc2012.toml")),
];

/// The manifests of the published datasets, which are part of the program.
///
/// # Errors
/// File where a manifest that was compiled in is not valid; the tests exclude this.
pub fn manifests() -> Result<&'static [DatasetManifest]> {
    static MANIFESTS: OnceLock<Vec<DatasetManifest>> = OnceLock::new();
    if let Some(manifests) = MANIFESTS.get() {
        return Ok(manifests);
    }
    let parse = |(name, text): (&str, &str)| DatasetManifest::parse(text, Path::new(&format!("datasets/{name}.toml")));
    let manifests: Vec<DatasetManifest> = SHIPPED.into_iter().map(parse).collect::<Result<_>>()?;
    Ok(MANIFESTS.get_or_init(|| manifests))
}

/// The manifest of a published dataset by its name.
///
/// # Errors
/// Param, with the names that there are.
pub fn manifest(name: &str) -> Result<&'static DatasetManifest> {
    manifests()?.iter().find(|manifest| manifest.name == name).ok_or_else(|| {
        let names = SHIPPED.map(|(name, _)| name).join(", ");
        Error::param("dataset", format!("{name:?} is not published under this name; choose one of {names}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manifests_declare_the_published_classes_and_splits() -> Result<()> {
        let facts = [
            ("camvid", 11, "Road", 3, [128, 64, 128], vec![367, 101, 233]),
            ("cityscapes", 19, "bicycle", 18, [119, 11, 32], vec![2975, 500, 1525, 19998]),
            ("ade20k", 150, "flag", 149, [92, 0, 255], vec![20210, 2000]),
            ("voc2012", 21, "tvmonitor", 20, [0, 64, 128], vec![1464, 1449, 2913, 10582]),
        ];
        for (name, count, class, place, colour, counts) in facts {
            let manifest = manifest(name)?;
            let classes = manifest.classes()?;
            assert_eq!((classes.len(), classes.names[place].as_str(), classes.colours[place]), (count, class, colour));
            assert_eq!(manifest.splits.iter().map(|split| split.count).collect::<Vec<_>>(), counts);
        }
        assert!(manifest("kitti").is_err());
        Ok(())
    }

    #[test]
    fn a_manifest_that_contradicts_itself_is_refused_in_one_line() -> Result<()> {
        let text = SHIPPED[0].1;
        for (from, to, expected) in [
            ("version = 2", "version = 1", "version 1 is not known"),
            ("title =", "colour = 3\ntitle =", "colour"),
            ("class = \"Pole\"", "class = \"Pylon\"", "Pylon, which is no class"),
            ("policies = [\"merge\"]", "policies = [\"fold\"]", "no policy is called fold"),
            ("counts = { train", "counts = { traim", "no split is called traim"),
            ("id = 9,", "id = 8,", "belongs to two classes"),
            ("{split}/{stem}.{image}", "{split}/{stem}{stem}.{image}", "{stem}"),
            ("{split}annot/{stem}.png", "../{split}annot/{stem}.png", ".."),
        ] {
            assert!(text.contains(from), "{from}");
            let error = DatasetManifest::parse(&text.replace(from, to), Path::new("x.toml"));
            let message = error.err().map(|error| error.to_string()).unwrap_or_default();
            assert!(message.starts_with("x.toml: ") && message.contains(expected), "{expected}: {message}");
            assert!(!message.contains('\n'), "{message}");
        }
        Ok(())
    }
}

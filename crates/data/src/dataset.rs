//! What a dataset is, and opening one by name.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::label_code::LabelCode;
use crate::pattern::IMAGE_EXTENSIONS;
use crate::streets::{Streets, StreetsConfig};
use crate::{Classes, Error, Folder, LabelMap, Published, Resized, Result, RgbImage, manifests, read_image};

/// One image with its labels, of the same size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Short name, unique in its dataset: usually the image's file stem.
    pub name: String,
    /// The image.
    pub image: RgbImage,
    /// Train ids.
    pub labels: LabelMap,
}

/// An ordered list of labelled images. A sample is a function of its index alone.
pub trait Dataset: Send + Sync {
    /// Number of samples.
    fn len(&self) -> usize;

    /// True where there is no sample; [`open`] refuses such a dataset.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The classes; a label's train id is a position in them.
    fn classes(&self) -> &Classes;

    /// Reads, generates or decodes one sample; image and labels have equal sizes and every id is a class or 255.
    ///
    /// # Errors
    /// Index beyond the end; otherwise File, naming the file and what is wrong with it.
    fn sample(&self, index: usize) -> Result<Sample>;

    /// The sample's name without reading it; empty beyond the end.
    fn name(&self, index: usize) -> String;
}

/// Settings of [`open`] that only some datasets look at.
#[derive(Clone, Debug, PartialEq)]
pub struct OpenOptions {
    /// `streets`: the seed of the scenes. `folder`: the seed of a split made by fraction.
    pub seed: u64,
    /// `streets`: number of images.
    pub count: usize,
    /// [height, width] in pixels that samples are brought to ([`Resized`]); `streets` are drawn in it. `None`: that of the
    /// files; `streets`: [180, 240].
    pub size: Option<[usize; 2]>,
    /// `folder` without lists or split folders: the share of pairs that belongs to `val`, 0 to 1 exclusive.
    pub validation_fraction: f64,
}

impl Default for OpenOptions {
    /// Seed 0, 240 scenes, sizes as they are, a fifth for validation.
    fn default() -> Self {
        Self { seed: 0, count: 240, size: None, validation_fraction: 0.2 }
    }
}

/// Opens a dataset by its kind: `streets` (generated; needs no root), `folder`, or the name of a published one, with
/// a policy after a colon where it has several: `camvid:exact`.
///
/// # Errors
/// Param for an unknown kind, a missing root or an option out of range; File or Line where the files on disk do not
/// fit the layout, naming the culprit and the fix.
pub fn open(kind: &str, root: Option<&Path>, split: &str, options: &OpenOptions) -> Result<Arc<dyn Dataset>> {
    let rooted = || root.ok_or_else(|| Error::param("root", format!("dataset {kind:?} needs the folder it lies in")));
    let dataset: Arc<dyn Dataset> = match kind {
        "streets" => {
            let [height, width] = options.size.unwrap_or([180, 240]);
            let config = StreetsConfig { seed: options.seed, count: options.count, width, height };
            return Ok(Arc::new(Streets::new(config, split)?));
        }
        "folder" => Arc::new(Folder::open(rooted()?, split, options.seed, options.validation_fraction)?),
        other => {
            let published = manifests()?.iter().map(|manifest| manifest.name.as_str());
            let known = other.split(':').next().unwrap_or_default();
            if published.clone().all(|name| name != known) {
                let names: Vec<&str> = ["streets"].into_iter().chain(published).collect();
                return Err(Error::param(
                    "dataset",
                    format!("{other:?} is not known; choose {} or folder", names.join(", ")),
                ));
            }
            Arc::new(Published::open(other, rooted()?, split)?)
        }
    };
    Ok(match options.size {
        Some(size) => Arc::new(Resized::new(dataset, size)?),
        None => dataset,
    })
}

/// An image file and its label file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Pair {
    /// The image, PNG or JPEG.
    pub(crate) image: PathBuf,
    /// The label map, PNG.
    pub(crate) labels: PathBuf,
}

impl Pair {
    /// The image's file stem.
    pub(crate) fn name(&self) -> String {
        self.image.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default()
    }

    /// Reads both files and checks that they have one size.
    pub(crate) fn read(&self, code: &LabelCode) -> Result<Sample> {
        let image = read_image(&self.image)?;
        let labels = code.read(&self.labels)?;
        if (image.width, image.height) != (labels.width, labels.height) {
            let reason = format!(
                "is {}x{} pixels, its label map {} is {}x{}; bring both to one size",
                image.width,
                image.height,
                self.labels.display(),
                labels.width,
                labels.height
            );
            return Err(Error::file(&self.image, reason));
        }
        Ok(Sample { name: self.name(), image, labels })
    }
}

/// The pair at `index`, or the error that says how many there are.
pub(crate) fn pair_at(pairs: &[Pair], index: usize) -> Result<&Pair> {
    pairs.get(index).ok_or(Error::Index { index, count: pairs.len() })
}

/// Files in `folder` with one of the extensions, sorted by name. Other files are left alone.
pub(crate) fn files_with(folder: &Path, extensions: &[&str]) -> Result<Vec<PathBuf>> {
    let failed = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => Error::file(folder, "no such folder; check the dataset's root and split"),
        _ => Error::file(folder, format!("cannot list: {error}")),
    };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let extension = path.extension().map(|text| text.to_string_lossy().to_ascii_lowercase());
        if extension.is_some_and(|text| extensions.contains(&text.as_str())) && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Pairs every image in `images` with the PNG of the same stem in `labels`.
pub(crate) fn pairs_in_folders(images: &Path, labels: &Path) -> Result<Vec<Pair>> {
    let mut pairs: Vec<Pair> = Vec::new();
    for image in files_with(images, IMAGE_EXTENSIONS)? {
        let stem = image.file_stem().unwrap_or_default().to_os_string();
        let mut name = stem.clone();
        name.push(".png");
        let label = labels.join(name);
        if !label.is_file() {
            return Err(Error::file(&image, format!("has no label map; expected {}", label.display())));
        }
        if pairs.last().is_some_and(|last| last.image.file_stem() == Some(&stem)) {
            return Err(Error::file(&image, "another image has the same stem; remove one of the two"));
        }
        pairs.push(Pair { image, labels: label });
    }
    if pairs.is_empty() {
        return Err(Error::file(images, "holds no png or jpg image"));
    }
    Ok(pairs)
}

//! Segmentation datasets as plain arrays: decoding, label checks, augmentation and a deterministic loader.
//!
//! Three kinds of dataset open through [`open`]: `streets` (generated street scenes, no download), published ones by
//! name (each described by a manifest, [`manifest`]) and `folder` (your own images and labels). Each gives [`Sample`]s: an 8-bit RGB image and a map of
//! train ids in which [`IGNORE`] marks pixels that count nowhere. [`Loader`] turns a dataset into an endless sequence
//! of augmented batches in which batch k depends on the seed and k alone, whatever the number of worker threads and
//! wherever a run was resumed.
//!
//! ```
//! use dsd_data::{Augmentation, Loader, LoaderOptions, Normalisation, OpenOptions, open};
//! use std::sync::Arc;
//!
//! let options = OpenOptions { count: 8, size: Some([48, 64]), ..OpenOptions::default() };
//! let dataset = open("streets", None, "train", &options)?;
//! let augmentation = Arc::new(Augmentation::none([48, 64], Normalisation::IMAGENET));
//! let mut loader = Loader::new(dataset, augmentation, LoaderOptions { batch_size: 2, ..LoaderOptions::default() })?;
//! let batch = loader.next().ok_or(dsd_data::Error::LoaderStopped)??;
//! assert_eq!(batch.images.len(), 2 * 3 * 48 * 64);
//! assert_eq!(batch.labels.len(), 2 * 48 * 64);
//! # Ok::<(), dsd_data::Error>(())
//! ```

mod archive;
mod augment;
mod check;
mod classes;
mod dataset;
mod decode;
#[cfg(feature = "download")]
mod download;
mod encode;
mod error;
mod fingerprint;
mod folder;
mod import;
mod jpeg;
mod label_code;
mod loader;
mod manifest;
mod masks;
mod mat;
mod pattern;
mod pixels;
mod published;
mod resized;
mod sbd;
pub mod streets;

pub use augment::{Augmentation, Normalisation, ScaleRange, normalise};
pub use check::{CheckReport, Fault, Severity, SplitReport, check};
pub use classes::{Classes, IdMap};
pub use dataset::{Dataset, OpenOptions, Sample, open};
pub use decode::{read_image, read_labels};
#[cfg(feature = "download")]
pub use download::{Patience, download};
pub use encode::{write_grey_png, write_palette_png, write_rgb_png};
pub use error::{Error, Result};
pub use folder::Folder;
pub use import::{ImportReport, Progress, import};
pub use label_code::ColourMap;
pub use loader::{Batch, Loader, LoaderOptions, epoch_order};
pub use manifest::{
    ArchiveFacts, ArchiveLimits, DatasetManifest, Encoding, Layout, SourceFacts, SplitFacts, Statistics, manifest,
    manifests,
};
pub use masks::convert_masks;
pub use pixels::{IGNORE, LabelMap, RgbImage, overlay};
pub use published::Published;
pub use resized::Resized;
pub use sbd::add_sbd;

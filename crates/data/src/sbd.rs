//! SBD, the addition to Pascal VOC 2012 that makes `trainaug`: Hariharan et al., *Semantic Contours from Inverse
//! Detectors*, ICCV 2011.
//!
//! trainaug is SBD's train and val and VOC's train, without VOC's val: 10,582 images. Labels of VOC's train stay VOC's
//! own, with their ignored borders; the others are SBD's, which have none. This is what the usual folder
//! SegmentationClassAug holds, which need not be made where it is at hand.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::archive::{is_archive, unpack};
use crate::decode::{guarded, read_file};
use crate::encode::write_whole;
use crate::import::Staging;
use crate::published::{find, stems};
use crate::{Error, Result, manifest, mat, write_palette_png};

/// Adds the split `trainaug` to VOC 2012 below `root`, from SBD's `benchmark.tgz` or the folder that it unpacks to.
/// Returns the number of images in the split.
///
/// # Errors
/// File, Line or Archive, naming what is missing, damaged or there already; nothing is added then.
pub fn add_sbd(from: &Path, root: &Path) -> Result<usize> {
    let facts = manifest("voc2012")?;
    let base = find(facts, root, facts.split("train")?)?.base;
    let (labels, lists) = (base.join("SegmentationClassAug"), base.join("ImageSets/Segmentation"));
    let list = lists.join("trainaug.txt");
    if let Some(there) = [&labels, &list].into_iter().find(|path| path.exists()) {
        return Err(Error::file(there, "is there already; remove it to make it again"));
    }
    let staging = Staging::beside(&base, "SegmentationClassAug")?;
    let source = if from.is_dir() {
        from.to_path_buf()
    } else if is_archive(from) {
        let source = made(staging.path.join("source"))?;
        unpack(from, &source, facts.limits)?;
        source
    } else {
        return Err(Error::file(from, "expected benchmark.tgz or the folder that it unpacks to"));
    };
    let cls = ["cls", "dataset/cls", "benchmark_RELEASE/dataset/cls"].map(|below| source.join(below));
    let cls = cls.into_iter().find(|folder| folder.is_dir()).ok_or_else(|| {
        Error::file(from, "holds no SBD; expected benchmark_RELEASE/dataset/cls with train.txt and val.txt beside it")
    })?;
    let names =
        |list: PathBuf| -> Result<BTreeSet<String>> { Ok(stems(&list)?.into_iter().map(|(_, stem)| stem).collect()) };
    let parent = cls.parent().unwrap_or(&source);
    let mut sbd = names(parent.join("train.txt"))?;
    sbd.extend(names(parent.join("val.txt"))?);
    let (train, val) = (names(lists.join("train.txt"))?, names(lists.join("val.txt"))?);

    let fresh = made(staging.path.join("labels"))?;
    for stem in sbd.iter().filter(|stem| !train.contains(*stem) && !val.contains(*stem)) {
        let file = cls.join(format!("{stem}.mat"));
        let bytes = read_file(&file)?;
        let labels = guarded(|| mat::labels(&bytes, &["GTcls", "Segmentation"]));
        let labels = labels.map_err(|reason| Error::file(&file, reason).moved(&staging.path, from))?;
        write_palette_png(&fresh.join(format!("{stem}.png")), &labels, &facts.classes()?.colours)?;
    }
    let all: BTreeSet<&String> = sbd.union(&train).filter(|stem| !val.contains(*stem)).collect();
    let lines: String = all.iter().map(|stem| format!("{stem}\n")).collect();
    fs::rename(&fresh, &labels).map_err(|error| Error::file(&labels, format!("cannot move here: {error}")))?;
    // The list last: with it the split is whole.
    write_whole(&list, lines.as_bytes())?;
    Ok(all.len())
}

/// Makes a folder and gives its name.
fn made(folder: PathBuf) -> Result<PathBuf> {
    fs::create_dir_all(&folder).map_err(|error| Error::file(&folder, format!("cannot create: {error}")))?;
    Ok(folder)
}

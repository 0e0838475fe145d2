//! Importing CamVid from an archive or a folder: unpacked beside the target, verified, then renamed into place.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::archive::{LIMITS, is_archive, unpack};
use crate::camvid::has_split;
use crate::{CamVid, Dataset, Error, Result, camvid_manifest};

/// What an import found and verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportReport {
    /// Where the dataset lies now.
    pub root: PathBuf,
    /// Verified number of pairs per split, in the manifest's order; none where the source lacks the split.
    pub splits: Vec<(String, Option<usize>)>,
    /// Description of the archive where its SHA-256 is one of the manifest's.
    pub known_archive: Option<String>,
    /// SHA-256 of the archive in lower-case hexadecimal; none for a folder.
    pub sha256: Option<String>,
}

/// Imports CamVid in the SegNet layout from a `.tar`, `.tar.gz`, `.tgz` or a folder.
///
/// Everything is unpacked into a folder beside `to`, every pair of every split is decoded and checked (equal sizes,
/// the manifest's size, ids 0 to 11 or 255, the manifest's counts), and only then renamed to `to`. After an error nothing is
/// left behind. `train` and `val` must be there; `test` may be missing.
///
/// # Errors
/// File, Line or Archive, naming the culprit; File where `to` already holds something.
pub fn import_camvid(from: &Path, to: &Path) -> Result<ImportReport> {
    let (root, name) = check_target(to)?;
    if !from.exists() {
        return Err(Error::file(from, "no such archive or folder"));
    }
    let staging = Staging::beside(&root, &name)?;
    let mut sha256 = None;
    if from.is_dir() {
        copy_layout(&find_layout(from)?, &staging.path)?;
    } else if is_archive(from) {
        sha256 = Some(digest(from)?);
        unpack(from, &staging.path, LIMITS)?;
    } else {
        let reason = "expected a .tar, .tar.gz or .tgz archive or a folder; unpack it and give the folder";
        return Err(Error::file(from, reason));
    }
    let layout = find_layout(&staging.path).map_err(|_| no_layout(from))?;
    // The staging folder is gone when its user reads the error: name the file as the source knows it.
    let splits = verify(&layout).map_err(|error| error.moved(&staging.path, from))?;
    if to.exists() {
        // An empty folder, as checked above.
        fs::remove_dir(to).map_err(|error| Error::file(to, format!("cannot replace: {error}")))?;
    }
    fs::rename(&layout, to).map_err(|error| Error::file(to, format!("cannot move the import here: {error}")))?;
    let known = camvid_manifest()?.archives.iter().find(|archive| Some(&archive.sha256) == sha256.as_ref());
    Ok(ImportReport {
        root: to.to_path_buf(),
        splits,
        known_archive: known.map(|archive| archive.description.clone()),
        sha256,
    })
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
struct Staging {
    path: PathBuf,
}

impl Staging {
    fn beside(parent: &Path, name: &str) -> Result<Self> {
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

fn no_layout(from: &Path) -> Error {
    Error::file(
        from,
        "holds no CamVid in the SegNet layout (train/, trainannot/, val/, valannot/ and train.txt, val.txt)",
    )
}

/// The folder that holds the splits: `root`, or a folder at most two levels below.
fn find_layout(root: &Path) -> Result<PathBuf> {
    let mut level = vec![root.to_path_buf()];
    for _ in 0..3 {
        if let Some(found) = level.iter().find(|folder| has_split(folder, "train") && has_split(folder, "val")) {
            return Ok(found.clone());
        }
        let below = level.iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten();
        level = below.map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
        level.sort();
    }
    Err(no_layout(root))
}

/// Copies the lists and split folders; files only, nothing else that may lie there.
fn copy_layout(from: &Path, to: &Path) -> Result<()> {
    let failed = |path: &Path| {
        let path = path.to_path_buf();
        move |error: std::io::Error| Error::file(&path, format!("cannot copy: {error}"))
    };
    for split in camvid_manifest()?.splits.iter().map(|facts| &facts.name) {
        let list = from.join(format!("{split}.txt"));
        if list.is_file() {
            fs::copy(&list, to.join(format!("{split}.txt"))).map_err(failed(&list))?;
        }
        for folder in [split.clone(), format!("{split}annot")] {
            let source = from.join(&folder);
            if !source.is_dir() {
                continue;
            }
            fs::create_dir(to.join(&folder)).map_err(failed(&source))?;
            for entry in fs::read_dir(&source).map_err(failed(&source))? {
                let entry = entry.map_err(failed(&source))?;
                if entry.path().is_file() {
                    let target = to.join(&folder).join(entry.file_name());
                    fs::copy(entry.path(), target).map_err(failed(&entry.path()))?;
                }
            }
        }
    }
    Ok(())
}

/// Decodes every pair of every split that is present.
fn verify(layout: &Path) -> Result<Vec<(String, Option<usize>)>> {
    let manifest = camvid_manifest()?;
    let mut found = Vec::new();
    for facts in &manifest.splits {
        if !has_split(layout, &facts.name) {
            found.push((facts.name.clone(), None));
            continue;
        }
        let split = CamVid::open(layout, &facts.name)?;
        if split.len() != facts.count {
            let reason = format!(
                "the {} split has {} pairs, expected {}; get the complete SegNet split",
                facts.name,
                split.len(),
                facts.count
            );
            return Err(Error::file(layout.join(&facts.name), reason));
        }
        for (index, pair) in split.pairs().iter().enumerate() {
            let image = split.sample(index)?.image;
            if (image.width, image.height) != (manifest.width, manifest.height) {
                let (got, want) =
                    (format!("{}x{}", image.width, image.height), format!("{}x{}", manifest.width, manifest.height));
                return Err(Error::file(&pair.image, format!("is {got} pixels, expected {want}")));
            }
        }
        found.push((facts.name.clone(), Some(split.len())));
    }
    Ok(found)
}

/// SHA-256 of a file in lower-case hexadecimal.
fn digest(path: &Path) -> Result<String> {
    let failed = |error: std::io::Error| Error::file(path, format!("cannot read: {error}"));
    let mut file = File::open(path).map_err(failed)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0u8; 1 << 16];
    loop {
        let count = file.read(&mut buffer).map_err(failed)?;
        if count == 0 {
            break;
        }
        hash.update(&buffer[..count]);
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

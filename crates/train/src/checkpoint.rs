//! Checkpoints: everything a stage needs to go on, written whole or not at all and verified when read.
//!
//! `checkpoints/step-00000200/` holds `model.safetensors`, `optimiser.safetensors`, `state.json` and, written last,
//! `manifest.json` with the size and SHA-256 of the others. The folder is made under another name, synced and renamed.
//! Reading goes from the newest to the oldest and takes the first that verifies completely.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{Error, Result};

/// Checkpoints that are kept.
const KEPT: usize = 2;

/// The counters of a stage.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Steps that are finished.
    pub step: u64,
    /// Updates that the optimiser has made.
    pub updates: u64,
    /// The step of the last evaluation.
    pub evaluated: u64,
    /// Mean IoU of the last evaluation.
    pub last_miou: Option<f64>,
    /// Step and mean IoU of the best evaluation.
    pub best: Option<(u64, f64)>,
    /// Seconds of training so far, evaluation included.
    pub seconds: f64,
}

/// A checkpoint in memory.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// Parameters and running statistics by name.
    pub model: BTreeMap<String, Tensor>,
    /// The optimiser's tensors by name.
    pub optimiser: BTreeMap<String, Tensor>,
    /// The counters.
    pub state: State,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    version: u32,
    files: BTreeMap<String, Entry>,
}

#[derive(Serialize, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
struct Entry {
    bytes: u64,
    sha256: String,
}

const MANIFEST_VERSION: u32 = 1;

/// Writes a checkpoint below `folder` and removes the oldest beyond the last two.
///
/// # Errors
/// [`Error::File`]; what was there before is untouched.
pub fn save(folder: &Path, checkpoint: &Checkpoint) -> Result<()> {
    let name = format!("step-{:08}", checkpoint.state.step);
    let target = folder.join(&name);
    let temporary = folder.join(format!("{name}.tmp"));
    make_folder(folder)?;
    remove_folder(&temporary)?;
    make_folder(&temporary)?;

    let mut files = BTreeMap::new();
    let state = serde_json::to_vec(&checkpoint.state).map_err(|error| Error::file(&target, error))?;
    for (file, bytes) in [
        ("model.safetensors", safetensors_bytes(&target, &checkpoint.model)?),
        ("optimiser.safetensors", safetensors_bytes(&target, &checkpoint.optimiser)?),
        ("state.json", state),
    ] {
        write_synced(&temporary.join(file), &bytes)?;
        files.insert(file.to_string(), entry(&bytes));
    }
    let manifest = Manifest { version: MANIFEST_VERSION, files };
    let bytes = serde_json::to_vec_pretty(&manifest).map_err(|error| Error::file(&target, error))?;
    write_synced(&temporary.join("manifest.json"), &bytes)?;
    sync_folder(&temporary)?;
    // A stage that was rewound writes the same step again; the old one goes first.
    remove_folder(&target)?;
    fs::rename(&temporary, &target).map_err(|error| Error::file(&target, error))?;
    sync_folder(folder)?;

    let names = list(folder)?;
    for old in names.iter().rev().skip(KEPT) {
        remove_folder(&folder.join(old))?;
    }
    Ok(())
}

/// The newest checkpoint below `folder` that verifies, and a line for each that did not.
///
/// # Errors
/// [`Error::File`] where the folder cannot be listed, or where there are checkpoints and none of them verifies.
pub fn load_newest(folder: &Path) -> Result<(Option<Checkpoint>, Vec<String>)> {
    let mut skipped = Vec::new();
    for name in list(folder)?.iter().rev() {
        match load(&folder.join(name)) {
            Ok(checkpoint) => return Ok((Some(checkpoint), skipped)),
            Err(error) => skipped.push(error.to_string()),
        }
    }
    if skipped.is_empty() { Ok((None, skipped)) } else { Err(Error::file(folder, skipped.join("; "))) }
}

/// Reads and verifies one checkpoint.
///
/// # Errors
/// [`Error::File`] naming the file that is missing, has another size or another hash.
pub fn load(folder: &Path) -> Result<Checkpoint> {
    let path = folder.join("manifest.json");
    let manifest: Manifest = serde_json::from_slice(&read(&path)?).map_err(|error| Error::file(&path, error))?;
    if manifest.version != MANIFEST_VERSION {
        let message = format!("manifest version {}, expected {MANIFEST_VERSION}", manifest.version);
        return Err(Error::file(&path, message));
    }
    let verified = |file: &str| -> Result<(PathBuf, Vec<u8>)> {
        let path = folder.join(file);
        let expected = manifest
            .files
            .get(file)
            .ok_or_else(|| Error::file(&folder.join("manifest.json"), format!("does not list {file}")))?;
        let bytes = read(&path)?;
        let found = entry(&bytes);
        if &found != expected {
            let message = format!(
                "damaged: {} bytes with SHA-256 {}, expected {} bytes with {}",
                found.bytes, found.sha256, expected.bytes, expected.sha256
            );
            return Err(Error::file(&path, message));
        }
        Ok((path, bytes))
    };
    let tensors = |file: &str| -> Result<BTreeMap<String, Tensor>> {
        let (path, bytes) = verified(file)?;
        let loaded =
            candle_core::safetensors::load_buffer(&bytes, &Device::Cpu).map_err(|error| Error::file(&path, error))?;
        Ok(loaded.into_iter().collect())
    };
    let model = tensors("model.safetensors")?;
    let optimiser = tensors("optimiser.safetensors")?;
    let (path, bytes) = verified("state.json")?;
    let state = serde_json::from_slice(&bytes).map_err(|error| Error::file(&path, error))?;
    Ok(Checkpoint { model, optimiser, state })
}

/// Writes a file whole or not at all: beside it first, synced, then renamed over it.
///
/// # Errors
/// [`Error::File`].
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(|error| Error::file(path, error))?;
    file.write_all(bytes).map_err(|error| Error::file(path, error))?;
    readable(file.as_file(), path)?;
    file.as_file().sync_all().map_err(|error| Error::file(path, error))?;
    file.persist(path).map_err(|error| Error::file(path, error.error))?;
    sync_folder(folder)
}

/// Temporary files are private to their owner; what is kept may be read like any other file.
#[cfg(unix)]
fn readable(file: &File, path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.set_permissions(fs::Permissions::from_mode(0o644)).map_err(|error| Error::file(path, error))
}

#[cfg(not(unix))]
fn readable(_file: &File, _path: &Path) -> Result<()> {
    Ok(())
}

fn safetensors_bytes(target: &Path, tensors: &BTreeMap<String, Tensor>) -> Result<Vec<u8>> {
    safetensors::serialize(tensors, None).map_err(|error| Error::file(target, error))
}

fn entry(bytes: &[u8]) -> Entry {
    let sha256 = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    Entry { bytes: bytes.len() as u64, sha256 }
}

fn list(folder: &Path) -> Result<Vec<String>> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let mut names = Vec::new();
    for item in fs::read_dir(folder).map_err(|error| Error::file(folder, error))? {
        let name = item.map_err(|error| Error::file(folder, error))?.file_name().to_string_lossy().into_owned();
        if name.strip_prefix("step-").is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_digit())) {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|error| Error::file(path, error))
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = File::create(path).map_err(|error| Error::file(path, error))?;
    file.write_all(bytes).map_err(|error| Error::file(path, error))?;
    file.sync_all().map_err(|error| Error::file(path, error))
}

/// Makes a folder and the folders above it.
pub(crate) fn make_folder(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).map_err(|error| Error::file(folder, error))
}

fn remove_folder(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::file(folder, error)),
    }
}

fn sync_folder(folder: &Path) -> Result<()> {
    File::open(folder).and_then(|handle| handle.sync_all()).map_err(|error| Error::file(folder, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint(step: u64) -> Checkpoint {
        let tensor = Tensor::from_vec(vec![step as f32, 2.0, 3.0], 3, &Device::Cpu).unwrap();
        Checkpoint {
            model: BTreeMap::from([("weight".to_string(), tensor.clone())]),
            optimiser: BTreeMap::from([("weight.velocity".to_string(), tensor)]),
            state: State { step, updates: step, best: Some((step, 0.1 + 0.2)), seconds: 1.5, ..State::default() },
        }
    }

    #[test]
    fn a_checkpoint_comes_back_bit_equal_and_only_the_last_two_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        for step in [10, 20, 30] {
            save(folder.path(), &checkpoint(step)).unwrap();
        }
        assert_eq!(list(folder.path()).unwrap(), ["step-00000020", "step-00000030"]);
        let (loaded, skipped) = load_newest(folder.path()).unwrap();
        let loaded = loaded.unwrap();
        assert!(skipped.is_empty());
        assert_eq!(loaded.state, checkpoint(30).state);
        assert_eq!(loaded.model["weight"].to_vec1::<f32>().unwrap(), [30.0, 2.0, 3.0]);
        assert_eq!(loaded.optimiser["weight.velocity"].to_vec1::<f32>().unwrap(), [30.0, 2.0, 3.0]);
    }

    #[test]
    fn damage_is_named_and_the_checkpoint_before_is_used() {
        for file in ["model.safetensors", "optimiser.safetensors", "state.json", "manifest.json"] {
            let folder = tempfile::tempdir().unwrap();
            save(folder.path(), &checkpoint(10)).unwrap();
            save(folder.path(), &checkpoint(20)).unwrap();
            let path = folder.path().join("step-00000020").join(file);
            let mut bytes = fs::read(&path).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            fs::write(&path, bytes).unwrap();
            let (loaded, skipped) = load_newest(folder.path()).unwrap();
            assert_eq!(loaded.unwrap().state.step, 10, "{file}");
            assert_eq!(skipped.len(), 1);
            assert!(skipped[0].contains("step-00000020"), "{skipped:?}");
        }
    }

    #[test]
    fn an_unfinished_checkpoint_is_not_seen_and_none_is_no_error() {
        let folder = tempfile::tempdir().unwrap();
        assert!(load_newest(folder.path()).unwrap().0.is_none());
        fs::create_dir(folder.path().join("step-00000010.tmp")).unwrap();
        assert!(load_newest(folder.path()).unwrap().0.is_none());
        save(folder.path(), &checkpoint(10)).unwrap();
        assert_eq!(load_newest(folder.path()).unwrap().0.unwrap().state.step, 10);
    }
}

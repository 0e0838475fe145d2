//! Checkpoints: everything a stage needs to go on, written whole or not at all and verified when read.
//!
//! `checkpoints/step-00000200/` holds one `SECTION.safetensors` for each named group of tensors (`model`, `optimiser`,
//! …), `state.json` with the counters and, written last, `manifest.json` with the size and SHA-256 of the others. The
//! bytes are a function of the run alone: no time, no path.
//!
//! Writing: all files into `step-00000200.tmp/`, each synced; the folder synced; renamed; the folder above synced; only
//! then the oldest removed. Where the step has a good checkpoint already, that one is called `step-00000200.old` until
//! the new one is in place. Reading goes from the newest to the oldest and takes the first that verifies completely, so
//! that after a failure or a crash at any moment there is the checkpoint before or the new one.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::files::{Disk, Files, parent};
use crate::{Error, Result};

/// Checkpoints that are kept.
const KEPT: usize = 2;
/// The largest manifest and state that are read, in bytes.
const TEXT_LIMIT: u64 = 1 << 20;
/// The most files that a checkpoint may have.
const FILES_LIMIT: usize = 64;

const MANIFEST: &str = "manifest.json";
const STATE: &str = "state.json";
const TENSORS: &str = ".safetensors";

/// The counters of a stage.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Steps that are finished.
    pub step: u64,
    /// Updates that the optimiser has made.
    pub updates: u64,
    /// Steps that changed nothing because a number in them was not finite.
    pub skipped: u64,
    /// How many of them were the last ones.
    pub skipped_in_a_row: u64,
    /// The step of the last evaluation.
    pub evaluated: u64,
    /// Mean IoU of the last evaluation.
    pub last_miou: Option<f64>,
    /// Step and mean IoU of the best evaluation.
    pub best: Option<(u64, f64)>,
}

/// Tensors by name.
pub type Section = BTreeMap<String, Tensor>;

/// A checkpoint in memory: counters and named groups of tensors.
///
/// A group is written under its name and comes back under it; a new group needs no new format.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// The counters.
    pub state: State,
    sections: BTreeMap<String, Section>,
}

impl Checkpoint {
    /// A checkpoint without tensors.
    #[must_use]
    pub fn new(state: State) -> Self {
        Self { state, sections: BTreeMap::new() }
    }

    /// The same with a group of tensors; its name is of lower case letters, digits and `_`.
    #[must_use]
    pub fn with(mut self, section: &str, tensors: Section) -> Self {
        self.sections.insert(section.to_string(), tensors);
        self
    }

    /// A group of tensors.
    ///
    /// # Errors
    /// [`Error::Setting`] naming the group and those that are there.
    pub fn section(&self, name: &str) -> Result<&Section> {
        self.sections.get(name).ok_or_else(|| {
            let have: Vec<&str> = self.sections.keys().map(String::as_str).collect();
            Error::Setting(format!("the checkpoint of step {} has {}, no {name}", self.state.step, have.join(", ")))
        })
    }
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

const MANIFEST_VERSION: u32 = 2;

/// Writes a checkpoint below `folder` and removes the oldest beyond the last two.
///
/// # Errors
/// [`Error::File`]; what was there before can still be read.
pub fn save(folder: &Path, checkpoint: &Checkpoint) -> Result<()> {
    save_to(&Disk, folder, checkpoint)
}

/// The newest checkpoint below `folder` that verifies, and a line for each that did not.
///
/// # Errors
/// [`Error::File`] where the folder cannot be listed, or where there are checkpoints and none of them verifies.
pub fn load_newest(folder: &Path) -> Result<(Option<Checkpoint>, Vec<String>)> {
    load_newest_from(&Disk, folder)
}

/// Reads and verifies one checkpoint.
///
/// # Errors
/// [`Error::File`] naming the file that is missing, has another size or another hash.
pub fn load(folder: &Path) -> Result<Checkpoint> {
    load_from(&Disk, folder)
}

fn save_to(files: &dyn Files, folder: &Path, checkpoint: &Checkpoint) -> Result<()> {
    let step = checkpoint.state.step;
    let place = |kind: Kind| folder.join(Name { step, kind }.text());
    let (target, temporary, old) = (place(Kind::Whole), place(Kind::Temporary), place(Kind::Old));
    let at = |path: &Path| {
        let path = path.to_path_buf();
        move |error: std::io::Error| Error::file(&path, error)
    };

    let mut contents = BTreeMap::new();
    for (name, tensors) in &checkpoint.sections {
        if !is_section(name) {
            return Err(Error::Setting(format!("checkpoint section {name:?}: expected letters a–z, digits and _")));
        }
        let bytes = safetensors::serialize(tensors, None).map_err(|error| Error::file(&target, error))?;
        contents.insert(format!("{name}{TENSORS}"), bytes);
    }
    let state = serde_json::to_vec(&checkpoint.state).map_err(|error| Error::file(&target, error))?;
    contents.insert(STATE.to_string(), state);
    let entries = contents.iter().map(|(name, bytes)| (name.clone(), entry(bytes))).collect();
    let manifest = manifest_bytes(&target, &Manifest { version: MANIFEST_VERSION, files: entries })?;

    files.make_folder(folder).map_err(at(folder))?;
    let good = load_from(files, &target).is_ok();
    if good && files.read(&target.join(MANIFEST), TEXT_LIMIT).is_ok_and(|there| there == manifest) {
        files.sync_folder(folder).map_err(at(folder))?;
        return prune(files, folder, step);
    }
    files.remove_folder(&temporary).map_err(at(&temporary))?;
    files.make_folder(&temporary).map_err(at(&temporary))?;
    for (name, bytes) in contents.iter().chain([(&MANIFEST.to_string(), &manifest)]) {
        let path = temporary.join(name);
        files.write(&path, bytes).map_err(at(&path))?;
    }
    files.sync_folder(&temporary).map_err(at(&temporary))?;
    if good {
        files.remove_folder(&old).map_err(at(&old))?;
        files.rename(&target, &old).map_err(at(&target))?;
        files.sync_folder(folder).map_err(at(folder))?;
    } else {
        files.remove_folder(&target).map_err(at(&target))?;
    }
    files.rename(&temporary, &target).map_err(at(&target))?;
    files.sync_folder(folder).map_err(at(folder))?;
    prune(files, folder, step)
}

/// Removes what the checkpoint of `step`, which is in place, makes superfluous: later ones, from which the stage could
/// not go on; the remains of interrupted saves; the oldest.
fn prune(files: &dyn Files, folder: &Path, step: u64) -> Result<()> {
    let names = list(files, folder)?;
    let whole = names.iter().filter(|name| name.kind == Kind::Whole && name.step <= step);
    let oldest = whole.rev().nth(KEPT - 1).map_or(0, |name| name.step);
    for name in &names {
        if name.kind != Kind::Whole || name.step > step || name.step < oldest {
            let path = folder.join(name.text());
            files.remove_folder(&path).map_err(|error| Error::file(&path, error))?;
        }
    }
    Ok(())
}

fn load_newest_from(files: &dyn Files, folder: &Path) -> Result<(Option<Checkpoint>, Vec<String>)> {
    let mut skipped = Vec::new();
    for name in list(files, folder)?.iter().rev().filter(|name| name.kind != Kind::Temporary) {
        match load_from(files, &folder.join(name.text())) {
            Ok(checkpoint) => return Ok((Some(checkpoint), skipped)),
            Err(error) => skipped.push(error.to_string()),
        }
    }
    if skipped.is_empty() { Ok((None, skipped)) } else { Err(Error::file(folder, skipped.join("; "))) }
}

fn load_from(files: &dyn Files, folder: &Path) -> Result<Checkpoint> {
    let path = folder.join(MANIFEST);
    let bytes = files.read(&path, TEXT_LIMIT).map_err(|error| Error::file(&path, error))?;
    let manifest: Manifest = serde_json::from_slice(&bytes).map_err(|error| Error::file(&path, error))?;
    if manifest.version != MANIFEST_VERSION {
        let message = format!("manifest version {}, expected {MANIFEST_VERSION}", manifest.version);
        return Err(Error::file(&path, message));
    }
    // The manifest has no hash of its own; a change that leaves the same meaning is a change all the same.
    if manifest_bytes(&path, &manifest)? != bytes {
        return Err(Error::file(&path, "damaged: not as this program writes it"));
    }
    if manifest.files.len() > FILES_LIMIT {
        return Err(Error::file(&path, format!("{} files, expected at most {FILES_LIMIT}", manifest.files.len())));
    }
    let mut state = None;
    let mut sections = BTreeMap::new();
    for (name, expected) in &manifest.files {
        let section = name.strip_suffix(TENSORS).filter(|section| is_section(section));
        if section.is_none() && name != STATE {
            return Err(Error::file(&path, format!("lists {name:?}, which is no file of a checkpoint")));
        }
        let path = folder.join(name);
        let limit = if section.is_some() { expected.bytes } else { expected.bytes.min(TEXT_LIMIT) };
        let bytes = files.read(&path, limit).map_err(|error| Error::file(&path, format!("damaged: {error}")))?;
        let found = entry(&bytes);
        if &found != expected {
            let message = format!(
                "damaged: {} bytes with SHA-256 {}, expected {} bytes with {}",
                found.bytes, found.sha256, expected.bytes, expected.sha256
            );
            return Err(Error::file(&path, message));
        }
        match section {
            None => state = Some(serde_json::from_slice(&bytes).map_err(|error| Error::file(&path, error))?),
            Some(section) => {
                let tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu)
                    .map_err(|error| Error::file(&path, error))?;
                sections.insert(section.to_string(), tensors.into_iter().collect());
            }
        }
    }
    let state = state.ok_or_else(|| Error::file(&path, format!("does not list {STATE}")))?;
    Ok(Checkpoint { state, sections })
}

/// Which of the folders of a step a name is, in the order in which they are trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Temporary,
    Old,
    Whole,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Name {
    step: u64,
    kind: Kind,
}

impl Name {
    fn text(self) -> String {
        let ending = match self.kind {
            Kind::Temporary => ".tmp",
            Kind::Old => ".old",
            Kind::Whole => "",
        };
        format!("step-{:08}{ending}", self.step)
    }

    fn parse(text: &str) -> Option<Self> {
        let digits = text.strip_prefix("step-")?;
        let (digits, kind) = match digits.split_once('.') {
            None => (digits, Kind::Whole),
            Some((digits, "old")) => (digits, Kind::Old),
            Some((digits, "tmp")) => (digits, Kind::Temporary),
            Some(_) => return None,
        };
        // Only what this program writes: `step-1` beside `step-00000001` would be two names of one checkpoint.
        Some(Self { step: digits.parse().ok()?, kind }).filter(|name| name.text() == text)
    }
}

/// The checkpoint folders below `folder`, oldest first.
fn list(files: &dyn Files, folder: &Path) -> Result<Vec<Name>> {
    let names = files.names(folder).map_err(|error| Error::file(folder, error))?;
    let mut names: Vec<Name> = names.iter().filter_map(|name| Name::parse(name)).collect();
    names.sort_unstable();
    Ok(names)
}

fn is_section(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
}

fn manifest_bytes(path: &Path, manifest: &Manifest) -> Result<Vec<u8>> {
    serde_json::to_vec_pretty(manifest).map_err(|error| Error::file(path, error))
}

fn entry(bytes: &[u8]) -> Entry {
    let sha256 = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    Entry { bytes: bytes.len() as u64, sha256 }
}

/// Writes a file whole or not at all: beside it first, synced, then renamed over it.
///
/// # Errors
/// [`Error::File`].
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    tracing::trace!("replace {}", path.display());
    let failed = |error: std::io::Error| Error::file(path, error);
    let folder = parent(path);
    let mut file = tempfile::Builder::new().prefix(LEFTOVER).tempfile_in(folder).map_err(failed)?;
    file.write_all(bytes).map_err(failed)?;
    readable(file.as_file()).map_err(failed)?;
    file.as_file().sync_all().map_err(failed)?;
    file.persist(path).map_err(|error| failed(error.error))?;
    Disk.sync_folder(folder).map_err(|error| Error::file(folder, error))
}

/// How the names of temporary files begin, here and where models are saved.
const LEFTOVER: &str = ".tmp";

/// Removes what saves that were killed left in a run's folder and in those of its stages, named below it. Only the process that holds
/// the run may ask for it.
///
/// # Errors
/// [`Error::File`].
pub(crate) fn sweep(run: &Path, stages: &[String]) -> Result<()> {
    let stages: Vec<PathBuf> = stages.iter().map(|stage| run.join(stage)).collect();
    let folders = stages.iter().flat_map(|stage| [stage.clone(), stage.join("best")]);
    for folder in std::iter::once(run.to_path_buf()).chain(folders) {
        for name in Disk.names(&folder).map_err(|error| Error::file(&folder, error))? {
            let path: PathBuf = folder.join(&name);
            if name.starts_with(LEFTOVER) && path.is_file() {
                std::fs::remove_file(&path).map_err(|error| Error::file(&path, error))?;
            }
        }
    }
    for stage in stages {
        let folder = stage.join("checkpoints");
        for name in list(&Disk, &folder)?.iter().filter(|name| name.kind == Kind::Temporary) {
            let path = folder.join(name.text());
            Disk.remove_folder(&path).map_err(|error| Error::file(&path, error))?;
        }
    }
    Ok(())
}

/// Temporary files are private to their owner; what is kept may be read like any other file.
#[cfg(unix)]
fn readable(file: &std::fs::File) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.set_permissions(std::fs::Permissions::from_mode(0o644))
}

#[cfg(not(unix))]
fn readable(_file: &std::fs::File) -> std::io::Result<()> {
    Ok(())
}

/// Makes a folder and the folders above it, on the disk when this returns.
pub(crate) fn make_folder(folder: &Path) -> Result<()> {
    Disk.make_folder(folder).map_err(|error| Error::file(folder, error))
}

#[cfg(test)]
mod memory;
#[cfg(test)]
mod tests;

//! Unpacking a tar or zip archive that nobody vouches for.
//!
//! The archive is read twice: first every entry is checked against the rules, and one bad entry refuses the whole
//! archive before anything is written; then the files are unpacked into a folder of our own. Rules: regular files and
//! folders only; relative UTF-8 names without `..`, drive or NUL, at most 255 bytes a part and 32 parts; no two names
//! that differ in case only; bounded number of entries, bytes per file and bytes in all. Mode bits are ignored.

mod zip;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufReader, Read, Write};
use std::path::{Component, Path, PathBuf};

use flate2::read::MultiGzDecoder;
use tar::EntryType;

use crate::{ArchiveLimits, Error, Result};

/// True where the name ends like an archive that [`unpack`] reads.
pub(crate) fn is_archive(path: &Path) -> bool {
    [".tar", ".tar.gz", ".tgz", ".zip"].iter().any(|end| ends_with(path, end))
}

fn ends_with(path: &Path, end: &str) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().to_ascii_lowercase().ends_with(end))
}

/// What an entry is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Folder,
    /// With its declared size in bytes.
    File(u64),
}

/// Is called with the checked name of every file and folder, and with its content.
type Visit<'a> = dyn FnMut(&Path, Kind, &mut dyn Read) -> Result<()> + 'a;

/// Checks the whole archive, then unpacks it into the existing folder `into`. A file in no folder that is there already
/// is left out: several archives of a dataset bring the same licence and readme.
pub(crate) fn unpack(archive: &Path, into: &Path, limits: ArchiveLimits) -> Result<()> {
    plan(archive, limits)?;
    let mut total = 0u64;
    each_entry(archive, limits, &mut |name, kind, content| {
        let target = into.join(name);
        let failed = |error: std::io::Error| Error::file(&target, format!("cannot write: {error}"));
        let Kind::File(declared) = kind else {
            return fs::create_dir_all(&target).map_err(failed);
        };
        if name.components().count() == 1 && target.is_file() {
            return Ok(());
        }
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent).map_err(failed)?;
        }
        let mut file = File::create_new(&target).map_err(failed)?;
        let broken = |error: std::io::Error| Error::archive(archive, name.display().to_string(), damage(&error));
        // Bytes on disk are counted, whatever the header says.
        let mut buffer = vec![0u8; 1 << 16];
        let mut written = 0u64;
        loop {
            let count = content.read(&mut buffer).map_err(broken)?;
            if count == 0 {
                break;
            }
            written += count as u64;
            total += count as u64;
            if written > declared || total > limits.total_bytes {
                return Err(Error::archive(archive, name.display().to_string(), "is larger than it declares"));
            }
            file.write_all(&buffer[..count]).map_err(failed)?;
        }
        if written < declared {
            return Err(Error::archive(archive, name.display().to_string(), "is cut short"));
        }
        Ok(())
    })
}

/// Checks every entry and writes nothing.
fn plan(archive: &Path, limits: ArchiveLimits) -> Result<()> {
    let mut names = BTreeSet::new();
    let mut total = 0u64;
    let mut count = 0usize;
    each_entry(archive, limits, &mut |name, kind, _| {
        let refuse = |reason: String| Err(Error::archive(archive, name.display().to_string(), reason));
        let size = if let Kind::File(size) = kind { size } else { 0 };
        count += 1;
        total = total.saturating_add(size);
        if count > limits.entries {
            return refuse(format!("the archive has more than {} entries", limits.entries));
        }
        if size > limits.file_bytes {
            return refuse(format!("has {size} bytes, the limit is {}", limits.file_bytes));
        }
        if total > limits.total_bytes {
            return refuse(format!("the archive unpacks to more than {} bytes", limits.total_bytes));
        }
        if !names.insert(name.to_string_lossy().to_lowercase()) && kind != Kind::Folder {
            return refuse("the name occurs twice (or differs in case only)".into());
        }
        Ok(())
    })?;
    if count == 0 {
        return Err(Error::file(archive, "is an empty archive"));
    }
    Ok(())
}

fn each_entry(archive: &Path, limits: ArchiveLimits, visit: &mut Visit<'_>) -> Result<()> {
    let file = File::open(archive).map_err(|error| Error::file(archive, format!("cannot open: {error}")))?;
    if ends_with(archive, ".zip") {
        return zip::each_entry(archive, file, limits, visit);
    }
    let damaged = |error: std::io::Error| Error::file(archive, damage(&error));
    let file = BufReader::new(file);
    // Headers and padding come on top of the content.
    let ceiling = limits.total_bytes.saturating_add(2048 * limits.entries as u64);
    let reader: Box<dyn Read> = if ends_with(archive, ".tar") {
        Box::new(file.take(ceiling))
    } else {
        Box::new(MultiGzDecoder::new(file).take(ceiling))
    };
    let mut tar = tar::Archive::new(reader);
    for entry in tar.entries().map_err(damaged)? {
        let mut entry = entry.map_err(damaged)?;
        let spelled = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let kind = match entry.header().entry_type() {
            EntryType::Regular | EntryType::Continuous => Kind::File(entry.size()),
            EntryType::Directory => Kind::Folder,
            EntryType::XGlobalHeader => continue,
            other => {
                let reason = format!("is a {other:?}; only regular files and folders are accepted");
                return Err(Error::archive(archive, spelled, reason));
            }
        };
        let name = checked_name(&entry.path_bytes()).map_err(|reason| Error::archive(archive, spelled, reason))?;
        if let Some(name) = name {
            visit(&name, kind, &mut entry)?;
        }
    }
    Ok(())
}

/// What an archive that cannot be read on is told.
fn damage(error: &std::io::Error) -> String {
    format!("the archive is damaged or cut short ({error}); copy or download it again")
}

/// The entry's path below the target; none for the root itself.
fn checked_name(bytes: &[u8]) -> Result<Option<PathBuf>, String> {
    let name = std::str::from_utf8(bytes).map_err(|_| "the name is not UTF-8")?;
    if name.contains('\0') || name.contains('\\') || name.contains(':') {
        return Err("the name holds a NUL, a backslash or a colon".into());
    }
    let mut path = PathBuf::new();
    for part in Path::new(name).components() {
        match part {
            Component::Normal(part) if part.len() <= 255 => path.push(part),
            Component::Normal(_) => return Err("a part of the name is longer than 255 bytes".into()),
            Component::CurDir => {}
            Component::ParentDir => return Err("the name climbs out with ..".into()),
            Component::RootDir | Component::Prefix(_) => return Err("the name is absolute".into()),
        }
    }
    if path.components().count() > 32 {
        return Err("the name has more than 32 parts".into());
    }
    Ok(if path.as_os_str().is_empty() { None } else { Some(path) })
}

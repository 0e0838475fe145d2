//! The few things that checkpoints ask of a file system, so that tests can put a failing one in its place.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

/// A file system. Everything is a whole file or a whole folder; there are no open handles.
pub(crate) trait Files {
    /// Makes a folder and those above it; nothing where it exists.
    fn make_folder(&self, folder: &Path) -> io::Result<()>;
    /// Makes or replaces a file; its bytes are on the disk when this returns, its name only after
    /// [`Files::sync_folder`].
    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()>;
    /// Gives a folder another name that is free.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Returns when what was made, renamed and removed in this folder is on the disk.
    fn sync_folder(&self, folder: &Path) -> io::Result<()>;
    /// Removes a folder with its files; nothing where there is none.
    fn remove_folder(&self, folder: &Path) -> io::Result<()>;
    /// The names in a folder, in any order; none where there is no such folder.
    fn names(&self, folder: &Path) -> io::Result<Vec<String>>;
    /// A file of at most `limit` bytes.
    fn read(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>>;
}

/// The machine's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Disk;

impl Files for Disk {
    fn make_folder(&self, folder: &Path) -> io::Result<()> {
        let missing: Vec<&Path> =
            folder.ancestors().take_while(|above| !above.as_os_str().is_empty() && !above.exists()).collect();
        fs::create_dir_all(folder)?;
        // The folder's own name lies in the folder above.
        missing.iter().rev().try_for_each(|made| self.sync_folder(parent(made)))
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        tracing::trace!("write {}", path.display());
        let mut file = File::create(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        tracing::trace!("rename {} to {}", from.display(), to.display());
        fs::rename(from, to)
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        // Systems that cannot open a folder have no such call.
        tracing::trace!("sync {}", folder.display());
        if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
    }

    fn remove_folder(&self, folder: &Path) -> io::Result<()> {
        tracing::trace!("remove {}", folder.display());
        match fs::remove_dir_all(folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn names(&self, folder: &Path) -> io::Result<Vec<String>> {
        let items = match fs::read_dir(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            items => items?,
        };
        items.map(|item| Ok(item?.file_name().to_string_lossy().into_owned())).collect()
    }

    fn read(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
        let about = fs::metadata(path)?;
        // A pipe or a device could be read for ever.
        if !about.is_file() {
            return Err(io::Error::other("not a file"));
        }
        if about.len() > limit {
            return Err(io::Error::other(format!("{} bytes, expected at most {limit}", about.len())));
        }
        let mut bytes = Vec::with_capacity(usize::try_from(about.len()).map_err(io::Error::other)?);
        File::open(path)?.take(limit).read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

/// The folder that holds this name.
pub(crate) fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

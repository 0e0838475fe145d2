//! A file system in memory for tests: operations that fail where they are told to, and the states in which a loss of
//! power can leave a disk.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use crate::files::{Files, parent};

/// How an operation fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It is not done, and neither is any after it: the process is gone.
    Crash,
    /// It is not done.
    Error,
    /// The disk is full: a file is made and stays empty, a folder is not made.
    Full,
    /// A file has half of its bytes, a folder that is removed keeps half of its files.
    Short,
}

/// What was done, in order.
#[derive(Clone, Debug)]
pub(crate) enum Operation {
    MakeFolder(PathBuf),
    Write(PathBuf, Vec<u8>),
    Rename(PathBuf, PathBuf),
    SyncFolder(PathBuf),
    RemoveFolder(PathBuf),
}

/// Files and folders by path.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    files: RefCell<BTreeMap<PathBuf, Vec<u8>>>,
    folders: RefCell<BTreeSet<PathBuf>>,
    operations: RefCell<Vec<Operation>>,
    fault: Cell<Option<(usize, Fault)>>,
    failed: Cell<bool>,
}

impl Memory {
    pub(crate) fn copy(&self) -> Self {
        let (files, folders) = (self.files.borrow().clone(), self.folders.borrow().clone());
        Self { files: RefCell::new(files), folders: RefCell::new(folders), ..Self::default() }
    }

    /// Counts operations from here.
    pub(crate) fn forget(&self) {
        self.operations.borrow_mut().clear();
    }

    pub(crate) fn operations(&self) -> Vec<Operation> {
        self.operations.borrow().clone()
    }

    /// Lets the operation of this number fail, from 0.
    pub(crate) fn fail(&self, at: usize, fault: Fault) {
        self.fault.set(Some((at, fault)));
    }

    pub(crate) fn failed(&self) -> bool {
        self.failed.get()
    }

    pub(crate) fn mend(&self) {
        self.fault.set(None);
    }

    /// Notes an operation, and does it unless it has to fail.
    fn run(&self, operation: Operation) -> io::Result<()> {
        let number = self.operations.borrow().len();
        self.operations.borrow_mut().push(operation.clone());
        match self.fault.get() {
            Some((at, fault)) if number == at || (number > at && fault == Fault::Crash) => {
                self.failed.set(true);
                if fault == Fault::Full || fault == Fault::Short {
                    self.do_half(&operation, fault);
                }
                Err(io::Error::other(format!("{fault:?}")))
            }
            _ => self.apply(&operation),
        }
    }

    fn do_half(&self, operation: &Operation, fault: Fault) {
        match operation {
            Operation::Write(path, bytes) => {
                let length = if fault == Fault::Full { 0 } else { bytes.len() / 2 };
                self.files.borrow_mut().insert(path.clone(), bytes[..length].to_vec());
            }
            Operation::RemoveFolder(folder) if fault == Fault::Short => self.remove_some(folder, 2),
            _ => {}
        }
    }

    fn remove_some(&self, folder: &Path, count: usize) {
        let mut files = self.files.borrow_mut();
        let inside: Vec<PathBuf> = files.keys().filter(|path| parent(path) == folder).take(count).cloned().collect();
        files.retain(|path, _| !inside.contains(path));
    }

    fn apply(&self, operation: &Operation) -> io::Result<()> {
        let (mut files, mut folders) = (self.files.borrow_mut(), self.folders.borrow_mut());
        match operation {
            Operation::MakeFolder(folder) => {
                folders.insert(folder.clone());
            }
            Operation::Write(path, bytes) => {
                if !folders.contains(parent(path)) {
                    return Err(io::ErrorKind::NotFound.into());
                }
                files.insert(path.clone(), bytes.clone());
            }
            Operation::Rename(from, to) => {
                if !folders.remove(from) {
                    return Err(io::ErrorKind::NotFound.into());
                }
                if !folders.insert(to.clone()) {
                    return Err(io::ErrorKind::DirectoryNotEmpty.into());
                }
                let moved: Vec<PathBuf> = files.keys().filter(|path| parent(path) == from).cloned().collect();
                for path in moved {
                    let bytes = files.remove(&path).unwrap();
                    files.insert(to.join(path.file_name().unwrap()), bytes);
                }
            }
            Operation::SyncFolder(_) => {}
            Operation::RemoveFolder(folder) => {
                folders.remove(folder);
                files.retain(|path, _| parent(path) != folder);
            }
        }
        Ok(())
    }
}

impl Files for Memory {
    fn make_folder(&self, folder: &Path) -> io::Result<()> {
        self.run(Operation::MakeFolder(folder.to_path_buf()))
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        self.run(Operation::Write(path.to_path_buf(), bytes.to_vec()))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.run(Operation::Rename(from.to_path_buf(), to.to_path_buf()))
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        self.run(Operation::SyncFolder(folder.to_path_buf()))
    }

    fn remove_folder(&self, folder: &Path) -> io::Result<()> {
        self.run(Operation::RemoveFolder(folder.to_path_buf()))
    }

    fn names(&self, folder: &Path) -> io::Result<Vec<String>> {
        let folders = self.folders.borrow();
        let inside = folders.iter().filter(|path| parent(path) == folder);
        Ok(inside.map(|path| path.file_name().unwrap().to_str().unwrap().to_string()).collect())
    }

    fn read(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
        let bytes = self.files.borrow().get(path).cloned().ok_or(io::ErrorKind::NotFound)?;
        if bytes.len() as u64 > limit { Err(io::Error::other("too long")) } else { Ok(bytes) }
    }
}

/// The folder in which an operation changes a name.
fn place(operation: &Operation) -> &Path {
    let (Operation::MakeFolder(path)
    | Operation::Write(path, _)
    | Operation::Rename(path, _)
    | Operation::SyncFolder(path)
    | Operation::RemoveFolder(path)) = operation;
    parent(path)
}

/// The disks that can be found after the power went in the middle of operations that began with the disk `start`.
///
/// Of the names that were changed since their folder was last synced, each change may have reached the disk or not; the
/// file that was being written is absent, empty, cut after any 4 KiB, full of zeros or whole; the folder that was being
/// removed has lost any number of its files.
pub(crate) fn power_states(start: &Memory, operations: &[Operation]) -> Vec<(Memory, String)> {
    let mut states = Vec::new();
    for done in 0..=operations.len() {
        let (before, running) = (&operations[..done], operations.get(done));
        let synced = |index: usize| {
            before[index..]
                .iter()
                .any(|later| matches!(later, Operation::SyncFolder(folder) if folder == place(&before[index])))
        };
        let open: Vec<usize> = (0..done).filter(|index| !synced(*index)).collect();
        for chosen in 0..1u64 << open.len() {
            let disk = || {
                let disk = start.copy();
                for (index, operation) in before.iter().enumerate() {
                    let kept = open.iter().position(|open| *open == index).is_none_or(|bit| chosen >> bit & 1 == 1);
                    if kept {
                        // What depends on a change that did not reach the disk did not either.
                        let _ = disk.apply(operation);
                    }
                }
                disk
            };
            let describe = |more: &str| format!("{done} operations done, open {open:?} as {chosen:b}, {more}");
            states.push((disk(), describe("none running")));
            match running {
                Some(Operation::Write(path, bytes)) => {
                    let cuts = (0..bytes.len()).step_by(4096).chain([bytes.len()]).map(|cut| bytes[..cut].to_vec());
                    for content in cuts.chain([vec![0; bytes.len()]]) {
                        let disk = disk();
                        let _ = disk.apply(&Operation::Write(path.clone(), content));
                        states.push((disk, describe("writing")));
                    }
                }
                Some(Operation::RemoveFolder(folder)) => {
                    for count in 1..5 {
                        let disk = disk();
                        disk.remove_some(folder, count);
                        states.push((disk, describe("removing")));
                    }
                }
                _ => {}
            }
        }
    }
    states
}

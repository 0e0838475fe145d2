//! Where a dataset's files lie: `gtFine/{split}/{dir}/{stem}_gtFine_labelIds.png`.
//!
//! `{split}` is the split's folder, `{dir}` any one folder, `{stem}` what image and label have in common, and `{image}`
//! one of the extensions of images. `{stem}` stands once, in the last part; `{dir}` at most once, alone.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::{Error, Result};

/// Extensions of images.
pub(crate) const IMAGE_EXTENSIONS: &[&str] = &["png", "jpg", "jpeg"];

/// A pattern of paths relative to a dataset's folder.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Pattern {
    folders: Vec<String>,
    /// What comes before the stem.
    before: String,
    /// What may come after it.
    after: Vec<String>,
}

/// What a file's path says about its sample.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    /// The folder at `{dir}`; empty without one.
    pub(crate) dir: String,
    pub(crate) stem: String,
}

impl TryFrom<String> for Pattern {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<Self, String> {
        let mut folders: Vec<String> = text.split('/').map(str::to_string).collect();
        let file = folders.pop().unwrap_or_default();
        let parts: Vec<&str> = file.split("{stem}").collect();
        let [before, after] = parts[..] else {
            return Err(format!("{text}: expected {{stem}} once, in the last part"));
        };
        if folders.iter().any(|folder| folder.contains("{stem}") || folder == ".." || folder.is_empty()) {
            return Err(format!("{text}: a folder is empty, .. or holds {{stem}}"));
        }
        if folders.iter().filter(|folder| folder.contains("{dir}")).count() > 1 {
            return Err(format!("{text}: expected {{dir}} at most once"));
        }
        let after = match after.strip_suffix("{image}") {
            Some(start) => IMAGE_EXTENSIONS.iter().map(|extension| format!("{start}{extension}")).collect(),
            None => vec![after.to_string()],
        };
        Ok(Self { folders, before: before.to_string(), after })
    }
}

impl Pattern {
    /// The files of a split below `base`, sorted by folder and stem. Folders that are not there hold nothing.
    pub(crate) fn files(&self, base: &Path, split: &str) -> Result<Vec<(Key, PathBuf)>> {
        let mut places = vec![(String::new(), base.to_path_buf())];
        for folder in &self.folders {
            if folder == "{dir}" {
                let mut below = Vec::new();
                for (_, place) in &places {
                    for path in entries(place)?.into_iter().filter(|path| path.is_dir()) {
                        if let Some(name) = path.file_name().and_then(|name| name.to_str()) {
                            below.push((name.to_string(), path.clone()));
                        }
                    }
                }
                places = below;
            } else {
                places.iter_mut().for_each(|(_, place)| place.push(folder.replace("{split}", split)));
            }
        }
        let mut found = Vec::new();
        for (dir, place) in places {
            for path in entries(&place)? {
                let Some(stem) = path.file_name().and_then(|name| name.to_str()).and_then(|name| self.stem(name))
                else {
                    continue;
                };
                if path.is_file() {
                    found.push((Key { dir: dir.clone(), stem: stem.to_string() }, path.clone()));
                }
            }
        }
        found.sort();
        Ok(found)
    }

    /// The stem in a file's name; extensions match in either case.
    fn stem<'a>(&self, name: &'a str) -> Option<&'a str> {
        let rest = name.strip_prefix(&self.before)?;
        let end = |after: &String| {
            let at = rest.len().checked_sub(after.len())?;
            let (stem, tail) = (rest.get(..at)?, rest.get(at..)?);
            (tail.eq_ignore_ascii_case(after) && !stem.is_empty()).then_some(stem)
        };
        self.after.iter().find_map(end)
    }

    /// The paths that the pattern means for a sample, most usual first.
    pub(crate) fn paths(&self, base: &Path, split: &str, key: &Key) -> Vec<PathBuf> {
        let folder = self.folder(base, split, &key.dir);
        self.after.iter().map(|after| folder.join(format!("{}{}{after}", self.before, key.stem))).collect()
    }

    fn folder(&self, base: &Path, split: &str, dir: &str) -> PathBuf {
        let parts = self.folders.iter().map(|folder| folder.replace("{split}", split).replace("{dir}", dir));
        parts.fold(base.to_path_buf(), |path, part| path.join(part))
    }

    /// The folder up to the first part that varies within a split, relative.
    pub(crate) fn fixed(&self, split: &str) -> PathBuf {
        let fixed = self.folders.iter().take_while(|folder| *folder != "{dir}");
        fixed.map(|folder| folder.replace("{split}", split)).collect()
    }

    /// Whether splits are apart in folders.
    pub(crate) fn names_split(&self) -> bool {
        self.folders.iter().any(|folder| folder.contains("{split}"))
    }
}

/// What lies in a folder; nothing where there is none.
fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let failed = |error: std::io::Error| Error::file(folder, format!("cannot list: {error}"));
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    fs::read_dir(folder).map_err(failed)?.map(|entry| entry.map(|entry| entry.path()).map_err(failed)).collect()
}

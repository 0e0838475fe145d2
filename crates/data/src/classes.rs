//! Classes, and the map from a label file's ids to train ids.

use crate::{Error, IGNORE, LabelMap, Result};

/// The classes of a dataset; a class's position is its train id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Classes {
    /// Names, in the order of the train ids.
    pub names: Vec<String>,
    /// One RGB colour per class, for pictures only.
    pub colours: Vec<[u8; 3]>,
}

impl Classes {
    /// Checks that there are 1 to 255 classes with distinct names and one colour each.
    ///
    /// # Errors
    /// Param, naming what is wrong.
    pub fn new(names: Vec<String>, colours: Vec<[u8; 3]>) -> Result<Self> {
        if names.is_empty() || names.len() > usize::from(IGNORE) {
            return Err(Error::param("names", format!("expected 1 to 255 classes, got {}", names.len())));
        }
        if colours.len() != names.len() {
            let (want, got) = (names.len(), colours.len());
            return Err(Error::param("colours", format!("expected one per class ({want}), got {got}")));
        }
        for (index, name) in names.iter().enumerate() {
            if name.trim().is_empty() || names[..index].contains(name) {
                return Err(Error::param("names", format!("class {index} ({name:?}) is empty or named twice")));
            }
        }
        Ok(Self { names, colours })
    }

    /// Number of classes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Never true for classes made by [`Classes::new`].
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }
}

/// Which id of a label file is which train id, which ids are ignored, and which must not occur.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdMap {
    /// Train id (or [`IGNORE`]) of every raw id; none where the raw id is not allowed.
    table: Vec<Option<u8>>,
}

impl IdMap {
    /// `ids[k]` is the raw id of class k; each of `ignored` becomes [`IGNORE`].
    ///
    /// # Errors
    /// Param where an id is listed twice or there are more than 255.
    pub fn new(ids: &[u8], ignored: &[u8]) -> Result<Self> {
        if ids.len() > usize::from(IGNORE) {
            return Err(Error::param("ids", format!("expected at most 255, got {}", ids.len())));
        }
        let mut table = vec![None; 256];
        for (train_id, &raw) in (0u8..).zip(ids) {
            if table[usize::from(raw)].replace(train_id).is_some() {
                return Err(Error::param("ids", format!("id {raw} belongs to two classes")));
            }
        }
        for &raw in ignored {
            if table[usize::from(raw)].replace(IGNORE).is_some_and(|old| old != IGNORE) {
                return Err(Error::param("ignore", format!("id {raw} is a class and ignored at once")));
            }
        }
        Ok(Self { table })
    }

    /// Raw ids with their train ids, several raw ids to one class where classes are merged; [`IGNORE`] as the train id of
    /// those that count nowhere.
    ///
    /// # Errors
    /// Param where a raw id is listed twice.
    pub fn merged(entries: impl IntoIterator<Item = (u8, u8)>) -> Result<Self> {
        let mut table = vec![None; 256];
        for (raw, train_id) in entries {
            if table[usize::from(raw)].replace(train_id).is_some() {
                return Err(Error::param("ids", format!("id {raw} belongs to two classes")));
            }
        }
        Ok(Self { table })
    }

    /// Raw ids 0 to `classes − 1` are the train ids and 255 is ignored: label maps that hold train ids already.
    ///
    /// # Errors
    /// Param where there are more than 255 classes.
    pub fn train_ids(classes: usize) -> Result<Self> {
        let ids: Vec<u8> = (0..=IGNORE).take(classes).collect();
        if ids.len() != classes || classes > usize::from(IGNORE) {
            return Err(Error::param("classes", format!("expected at most 255, got {classes}")));
        }
        Self::new(&ids, &[IGNORE])
    }

    /// The train id of a raw id, [`IGNORE`] for an ignored one; none where it must not occur.
    #[must_use]
    pub fn train_id(&self, raw: u8) -> Option<u8> {
        self.table[usize::from(raw)]
    }

    /// Rewrites raw ids as train ids; the error names the first value that is not allowed.
    pub(crate) fn apply(&self, labels: &mut LabelMap) -> Result<(), String> {
        for (position, id) in labels.ids.iter_mut().enumerate() {
            match self.table[usize::from(*id)] {
                Some(train_id) => *id = train_id,
                None => {
                    let (x, y) = (position % labels.width, position / labels.width);
                    return Err(format!(
                        "label id {id} at column {x}, row {y} is none of this dataset's ids ({}); \
                         correct the label map or the dataset's id list",
                        self.allowed()
                    ));
                }
            }
        }
        Ok(())
    }

    /// The allowed raw ids in words: `0–10; ignored: 11, 255`.
    pub(crate) fn allowed(&self) -> String {
        let of = |ignored: bool| {
            let ids = (0u8..=255).zip(&self.table).filter(|(_, to)| to.is_some_and(|to| (to == IGNORE) == ignored));
            ranges(&ids.map(|(raw, _)| raw).collect::<Vec<_>>())
        };
        let (classes, ignored) = (of(false), of(true));
        if ignored.is_empty() { classes } else { format!("{classes}; ignored: {ignored}") }
    }
}

/// Ascending ids with runs written as ranges.
fn ranges(ids: &[u8]) -> String {
    let mut parts: Vec<(u8, u8)> = Vec::new();
    for &id in ids {
        match parts.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(id) => *last = id,
            _ => parts.push((id, id)),
        }
    }
    let word = |&(first, last): &(u8, u8)| if first == last { first.to_string() } else { format!("{first}–{last}") };
    parts.iter().map(word).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_mapped_and_a_foreign_id_is_named_with_its_place() -> Result<()> {
        let map = crate::manifest("camvid")?.id_map()?;
        let mut labels = LabelMap::new(3, 1, vec![0, 11, 10])?;
        assert_eq!(map.apply(&mut labels), Ok(()));
        assert_eq!(labels.ids, [0, IGNORE, 10]);
        let mut labels = LabelMap::new(2, 2, vec![0, 1, 2, 12])?;
        let reason = map.apply(&mut labels).err().unwrap_or_default();
        assert!(
            reason.starts_with("label id 12 at column 1, row 1 is none of this dataset's ids (0–10; ignored: 11, 255)"),
            "{reason}"
        );
        Ok(())
    }

    #[test]
    fn sparse_ids_and_clashes() -> Result<()> {
        let map = IdMap::new(&[7, 8, 11], &[0, 1])?;
        assert_eq!(map.allowed(), "7–8, 11; ignored: 0–1");
        assert!(IdMap::new(&[7, 7], &[]).is_err());
        assert!(IdMap::new(&[7], &[7]).is_err());
        assert!(IdMap::train_ids(256).is_err());
        assert_eq!(IdMap::train_ids(2)?.allowed(), "0–1; ignored: 255");
        assert!(Classes::new(vec!["a".into(), "a".into()], vec![[0; 3]; 2]).is_err());
        Ok(())
    }
}

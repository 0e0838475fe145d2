//! `log.jsonl`: one line per logged step and per evaluation, with full-precision numbers and nothing that depends on
//! the clock, so that a continued run leaves the same lines as one that was never stopped.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// A line of the log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum Line {
    /// A training step.
    Step {
        /// `teacher`, `baseline` or `distilled`.
        role: String,
        /// Steps finished, from 1.
        step: u64,
        /// The learning rate of the step.
        learning_rate: f64,
        /// The weighted sum.
        total: f64,
        /// Each term before its weight.
        terms: BTreeMap<String, f64>,
    },
    /// An evaluation.
    Evaluation {
        /// `teacher`, `baseline` or `distilled`.
        role: String,
        /// Steps finished, from 1.
        step: u64,
        /// Mean IoU on the validation split, 0–1.
        miou: f64,
        /// Pixel accuracy on the validation split, 0–1.
        pixel_accuracy: f64,
    },
}

impl Line {
    fn place(&self) -> (&str, u64) {
        match self {
            Self::Step { role, step, .. } | Self::Evaluation { role, step, .. } => (role, *step),
        }
    }
}

/// The open log of a run.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    file: File,
}

impl Journal {
    /// Opens the log of a run for appending.
    pub(crate) fn open(folder: &Path) -> Result<Self> {
        let path = folder.join("log.jsonl");
        let file =
            OpenOptions::new().create(true).append(true).open(&path).map_err(|error| Error::file(&path, error))?;
        Ok(Self { path, file })
    }

    /// Appends a line.
    pub(crate) fn write(&mut self, line: &Line) -> Result<()> {
        let mut text = serde_json::to_string(line).map_err(|error| Error::file(&self.path, error))?;
        text.push('\n');
        self.file.write_all(text.as_bytes()).map_err(|error| Error::file(&self.path, error))
    }

    /// Drops what a stage wrote after `step`: a continued stage writes those lines again.
    pub(crate) fn rewind(&mut self, role: &str, step: u64) -> Result<()> {
        let folder = self.path.parent().unwrap_or(Path::new("."));
        let mut text = String::new();
        for (kept, line) in read_texts(folder)? {
            let (line_role, line_step) = line.place();
            if line_role != role || line_step <= step {
                // As it was written: a number that is read and written again can change in its last digit.
                text.push_str(&kept);
                text.push('\n');
            }
        }
        crate::checkpoint::write_whole(&self.path, text.as_bytes())?;
        *self = Self::open(folder)?;
        Ok(())
    }
}

/// The lines of a run's log; a last line that was cut off by a crash is left out.
pub(crate) fn read(folder: &Path) -> Result<Vec<Line>> {
    Ok(read_texts(folder)?.into_iter().map(|(_, line)| line).collect())
}

/// The lines of a run's log with their texts.
fn read_texts(folder: &Path) -> Result<Vec<(String, Line)>> {
    let path = folder.join("log.jsonl");
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::file(&path, error)),
    };
    let texts: Vec<String> =
        BufReader::new(file).lines().collect::<std::io::Result<_>>().map_err(|error| Error::file(&path, error))?;
    let mut lines = Vec::with_capacity(texts.len());
    let count = texts.len();
    for (index, text) in texts.into_iter().enumerate() {
        match serde_json::from_str(&text) {
            Ok(line) => lines.push((text, line)),
            Err(_) if index + 1 == count => {}
            Err(error) => return Err(Error::file(&path, format!("line {}: {error}", index + 1))),
        }
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evaluation(role: &str, step: u64) -> Line {
        Line::Evaluation { role: role.to_string(), step, miou: 0.1, pixel_accuracy: 1.0 / 3.0 }
    }

    #[test]
    fn rewinding_one_stage_keeps_the_others_and_a_torn_last_line_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(folder.path()).unwrap();
        for line in [evaluation("teacher", 9), evaluation("baseline", 1), evaluation("baseline", 2)] {
            journal.write(&line).unwrap();
        }
        journal.file.write_all(b"{\"event\":\"eval").unwrap();
        journal.rewind("baseline", 1).unwrap();
        journal.write(&evaluation("baseline", 2)).unwrap();
        let expected = vec![evaluation("teacher", 9), evaluation("baseline", 1), evaluation("baseline", 2)];
        assert_eq!(read(folder.path()).unwrap(), expected);
    }

    #[test]
    fn rewinding_keeps_lines_to_the_byte() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(folder.path()).unwrap();
        // Numbers on which a JSON reader without full precision is off by one unit in the last place.
        for miou in [0.16466283798217773, 0.3, 1.0 / 3.0] {
            let line = Line::Evaluation { role: "teacher".to_string(), step: 1, miou, pixel_accuracy: miou };
            journal.write(&line).unwrap();
        }
        let before = std::fs::read(&journal.path).unwrap();
        journal.rewind("baseline", 0).unwrap();
        journal.rewind("teacher", 1).unwrap();
        assert_eq!(std::fs::read(&journal.path).unwrap(), before);
    }
}

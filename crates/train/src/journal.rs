//! `log.jsonl`: one line per logged step and per evaluation, with full-precision numbers and nothing that depends on
//! the clock, so that a continued run leaves the same lines as one that was never stopped.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::checkpoint::State;
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
        /// Each term times its weight, schedule included; they add up to `total`.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        weighted: BTreeMap<String, f64>,
        /// Each term's share of the gradient's norm, in the steps in which it was measured.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        shares: BTreeMap<String, f64>,
    },
    /// A training step that changed nothing, because a number in it was not finite.
    Skipped {
        /// `teacher`, `baseline` or `distilled`.
        role: String,
        /// Steps finished, this one included.
        step: u64,
        /// The term, or `gradient norm`.
        term: String,
        /// Its value: JSON has no number for it.
        value: String,
        /// Where the first number that is not finite came up.
        place: String,
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

    /// Returns when all lines are on the disk.
    pub(crate) fn sync(&self) -> Result<()> {
        self.file.sync_all().map_err(|error| Error::file(&self.path, error))
    }

    /// Drops what a stage wrote after the state from which it goes on: it writes those lines again.
    pub(crate) fn rewind(&mut self, role: &str, state: &State) -> Result<()> {
        let folder = self.path.parent().unwrap_or(Path::new("."));
        let mut text = String::new();
        let (lines, damage) = read_texts(folder)?;
        if let Some(damage) = damage {
            // What a checkpoint counts as done was on the disk before it: this lies behind it and is written again.
            tracing::warn!("dropped the end of the log: {damage}");
        }
        for (kept, line) in lines {
            let done = match &line {
                Line::Step { role: of, step, .. } | Line::Skipped { role: of, step, .. } => {
                    of != role || *step <= state.step
                }
                Line::Evaluation { role: of, step, .. } => of != role || *step <= state.evaluated,
            };
            if done {
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
    match read_texts(folder)? {
        (lines, None) => Ok(lines.into_iter().map(|(_, line)| line).collect()),
        (_, Some(damage)) => Err(damage),
    }
}

/// A line with the text that it was read from.
type WithText = (String, Line);

/// The lines of a run's log, up to the first that is none, and what is wrong with that one.
fn read_texts(folder: &Path) -> Result<(Vec<WithText>, Option<Error>)> {
    let path = folder.join("log.jsonl");
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok((Vec::new(), None)),
        Err(error) => return Err(Error::file(&path, error)),
    };
    let mut lines = Vec::new();
    for (index, bytes) in bytes.split_inclusive(|byte| *byte == b'\n').enumerate() {
        // Only the last one can lack its end: the process was killed while it wrote.
        let Some(bytes) = bytes.strip_suffix(b"\n") else { break };
        let wrong = |error: String| Some(Error::file(&path, format!("line {}: {error}", index + 1)));
        match (std::str::from_utf8(bytes), serde_json::from_slice(bytes)) {
            (Ok(text), Ok(line)) => lines.push((text.to_string(), line)),
            (Err(error), _) => return Ok((lines, wrong(error.to_string()))),
            (_, Err(error)) => return Ok((lines, wrong(error.to_string()))),
        }
    }
    Ok((lines, None))
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
        let at = |step| State { step, evaluated: step, ..State::default() };
        journal.rewind("baseline", &at(1)).unwrap();
        journal.write(&evaluation("baseline", 2)).unwrap();
        let expected = vec![evaluation("teacher", 9), evaluation("baseline", 1), evaluation("baseline", 2)];
        assert_eq!(read(folder.path()).unwrap(), expected);
    }

    #[test]
    fn an_evaluation_that_is_made_again_is_logged_once() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(folder.path()).unwrap();
        journal.write(&evaluation("teacher", 2)).unwrap();
        // Stopped within the evaluation of step 4: the checkpoint of step 4 knows that of step 2.
        journal.write(&evaluation("teacher", 4)).unwrap();
        journal.rewind("teacher", &State { step: 4, evaluated: 2, ..State::default() }).unwrap();
        assert_eq!(read(folder.path()).unwrap(), [evaluation("teacher", 2)]);
    }

    #[test]
    fn a_damaged_line_is_an_error_to_a_reader_and_the_end_of_the_log_to_a_continued_run() {
        for damage in [b"{\"event\":\n".as_slice(), b"\0\0\0\n", b"\xff\n"] {
            let folder = tempfile::tempdir().unwrap();
            let mut journal = Journal::open(folder.path()).unwrap();
            journal.write(&evaluation("teacher", 2)).unwrap();
            journal.file.write_all(damage).unwrap();
            journal.write(&evaluation("teacher", 4)).unwrap();
            let message = read(folder.path()).unwrap_err().to_string();
            assert!(message.contains("log.jsonl: line 2"), "{message}");
            journal.rewind("teacher", &State { step: 2, evaluated: 2, ..State::default() }).unwrap();
            assert_eq!(read(folder.path()).unwrap(), [evaluation("teacher", 2)]);
        }
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
        journal.rewind("baseline", &State::default()).unwrap();
        journal.rewind("teacher", &State { step: 1, evaluated: 1, ..State::default() }).unwrap();
        assert_eq!(std::fs::read(&journal.path).unwrap(), before);
    }
}

//! How long a stage has worked, over all its sittings, and how much memory it held: `times.json`. It lies beside the
//! stage's other files and not in them, so that those are the same bytes however long a machine took.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::checkpoint::write_whole;
use crate::{Error, Result, memory};

const FILE: &str = "times.json";

/// What a stage took so far.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Times {
    /// Seconds of training, evaluation included.
    pub(crate) seconds: f64,
    /// Seconds of the training steps alone, waiting for their batches included.
    pub(crate) step_seconds: f64,
    /// The most memory that the program held during a training step, bytes; none where nothing counts it.
    pub(crate) peak_bytes: Option<u64>,
}

/// The clock of a stage that is being trained.
#[derive(Debug)]
pub(crate) struct Clock {
    path: PathBuf,
    times: Times,
    before: f64,
    started: Instant,
    step_started: Instant,
}

impl Clock {
    /// Goes on from what the stage's folder says.
    pub(crate) fn start(folder: &Path) -> Self {
        let (times, now) = (read(folder).unwrap_or_default(), Instant::now());
        Self { path: folder.join(FILE), times, before: times.seconds, started: now, step_started: now }
    }

    /// A training step begins, with waiting for its batch.
    pub(crate) fn begin_step(&mut self) {
        memory::begin();
        self.step_started = Instant::now();
    }

    /// The training step that has begun is finished.
    pub(crate) fn end_step(&mut self) {
        self.times.step_seconds += self.step_started.elapsed().as_secs_f64();
        self.times.peak_bytes = self.times.peak_bytes.max(memory::peak());
    }

    /// Writes what was taken so far.
    ///
    /// # Errors
    /// [`Error::File`].
    pub(crate) fn keep(&self) -> Result<()> {
        let times = Times { seconds: self.before + self.started.elapsed().as_secs_f64(), ..self.times };
        let bytes = serde_json::to_vec_pretty(&times).map_err(|error| Error::file(&self.path, error))?;
        write_whole(&self.path, &bytes)
    }
}

/// What a stage took so far; `None` where nothing says so.
pub(crate) fn read(folder: &Path) -> Option<Times> {
    let times: Times = serde_json::from_slice(&std::fs::read(folder.join(FILE)).ok()?).ok()?;
    Some(times).filter(|times| times.seconds.is_finite() && times.seconds >= 0.0)
}

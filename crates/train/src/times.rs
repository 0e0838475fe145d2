//! How long a stage has worked, over all its sittings: `times.json`. It lies beside the stage's other files and not in
//! them, so that those are the same bytes however long a machine took.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::checkpoint::write_whole;
use crate::{Error, Result};

const FILE: &str = "times.json";

#[derive(Serialize, Deserialize)]
struct Times {
    /// Seconds of training, evaluation included.
    seconds: f64,
}

/// The clock of a stage that is being trained.
#[derive(Debug)]
pub(crate) struct Clock {
    path: PathBuf,
    before: f64,
    started: Instant,
}

impl Clock {
    /// Goes on from what the stage's folder says.
    pub(crate) fn start(folder: &Path) -> Self {
        Self { path: folder.join(FILE), before: seconds(folder).unwrap_or(0.0), started: Instant::now() }
    }

    /// Writes the time so far.
    ///
    /// # Errors
    /// [`Error::File`].
    pub(crate) fn keep(&self) -> Result<()> {
        let times = Times { seconds: self.before + self.started.elapsed().as_secs_f64() };
        let bytes = serde_json::to_vec_pretty(&times).map_err(|error| Error::file(&self.path, error))?;
        write_whole(&self.path, &bytes)
    }
}

/// Seconds of training that a stage has taken, evaluation included; `None` where nothing says so.
pub(crate) fn seconds(folder: &Path) -> Option<f64> {
    let times: Times = serde_json::from_slice(&std::fs::read(folder.join(FILE)).ok()?).ok()?;
    Some(times.seconds).filter(|seconds| seconds.is_finite() && *seconds >= 0.0)
}

//! How long a stage has worked, over all its sittings, and how much memory it held: `times.json`. It lies beside the
//! stage's other files and not in them, so that those are the same bytes however long a machine took.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::checkpoint::write_whole;
use crate::{Error, Result, memory};

const FILE: &str = "times.json";

/// What a stage took so far.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Times {
    /// Seconds of training, evaluation included.
    pub(crate) seconds: f64,
    /// Training steps by how long they took, waiting for their batches included: the whole number nearest to the
    /// logarithm of their seconds to the base [`STEP_BASE`].
    steps: BTreeMap<i32, u64>,
    /// The most memory that the program held during a training step, bytes; none where nothing counts it.
    pub(crate) peak_bytes: Option<u64>,
}

/// From one count of steps to the next: a median is right to half a per cent.
const STEP_BASE: f64 = 1.01;

impl Times {
    /// The median of the seconds of a training step, which no pause of the machine moves.
    pub(crate) fn step_seconds(&self) -> Option<f64> {
        let half = self.steps.values().sum::<u64>().div_ceil(2);
        let mut passed = 0;
        let median = self.steps.iter().find(|(_, count)| {
            passed += **count;
            passed >= half
        })?;
        Some(STEP_BASE.powi(*median.0))
    }

    fn add_step(&mut self, seconds: f64) {
        *self.steps.entry(seconds.max(1e-9).log(STEP_BASE).round() as i32).or_default() += 1;
    }
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
        Self { path: folder.join(FILE), before: times.seconds, times, started: now, step_started: now }
    }

    /// A training step begins, with waiting for its batch.
    pub(crate) fn begin_step(&mut self) {
        memory::begin();
        self.step_started = Instant::now();
    }

    /// The training step that has begun is finished.
    pub(crate) fn end_step(&mut self) {
        self.times.add_step(self.step_started.elapsed().as_secs_f64());
        self.times.peak_bytes = self.times.peak_bytes.max(memory::peak());
    }

    /// Writes what was taken so far.
    ///
    /// # Errors
    /// [`Error::File`].
    pub(crate) fn keep(&self) -> Result<()> {
        let times = Times { seconds: self.before + self.started.elapsed().as_secs_f64(), ..self.times.clone() };
        let bytes = serde_json::to_vec_pretty(&times).map_err(|error| Error::file(&self.path, error))?;
        write_whole(&self.path, &bytes)
    }
}

/// What a stage took so far; `None` where nothing says so.
pub(crate) fn read(folder: &Path) -> Option<Times> {
    let times: Times = serde_json::from_slice(&std::fs::read(folder.join(FILE)).ok()?).ok()?;
    Some(times).filter(|times| times.seconds.is_finite() && times.seconds >= 0.0)
}

#[cfg(test)]
mod tests {
    use super::Times;

    #[test]
    fn a_pause_does_not_move_the_median() {
        let mut times = Times::default();
        assert_eq!(times.step_seconds(), None);
        for seconds in [0.2, 0.21, 0.19, 60.0, 0.2] {
            times.add_step(seconds);
        }
        let told = serde_json::to_string(&times).unwrap();
        let median = serde_json::from_str::<Times>(&told).unwrap().step_seconds().unwrap();
        assert!((median / 0.2 - 1.0).abs() < 0.006, "{median}");
    }
}

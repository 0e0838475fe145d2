//! What a run was made with, so that its figures can be judged.

use serde::{Deserialize, Serialize};

/// What a run was made with: `environment.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Environment {
    /// Version of this program.
    pub dsd_version: String,
    /// Commit of the sources, from `DSD_COMMIT`; `cargo xtask train` sets it.
    pub commit: String,
    /// Processors that the run could use.
    pub processors: usize,
    /// Name of the processor, where known.
    pub processor: String,
}

impl Environment {
    /// What this program runs on.
    #[must_use]
    pub fn here() -> Self {
        let processor = std::fs::read_to_string("/proc/cpuinfo")
            .ok()
            .and_then(|text| {
                let line = text.lines().find(|line| line.starts_with("model name"))?.to_string();
                line.split_once(':').map(|(_, name)| name.trim().to_string())
            })
            .unwrap_or_else(|| std::env::consts::ARCH.to_string());
        Self {
            dsd_version: env!("CARGO_PKG_VERSION").to_string(),
            commit: std::env::var("DSD_COMMIT").unwrap_or_else(|_| "unknown".to_string()),
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            processor,
        }
    }
}

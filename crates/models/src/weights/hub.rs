//! Files of the Hugging Face hub, through the cache that its other clients use (`HF_HOME`, `HF_HUB_CACHE`).

use std::path::PathBuf;

use hf_hub::progress::{DownloadEvent, ProgressEvent, ProgressHandler};
use hf_hub::{HFClient, HFError};
use indicatif::{ProgressBar, ProgressStyle};

use crate::weights::source::Place;
use crate::{Error, Result};

/// The names under which weights usually are.
const USUAL_FILES: [&str; 2] = ["model.safetensors", "pytorch_model.bin"];
/// Settings that are fetched beside the weights, where there are any.
const SETTINGS: [&str; 2] = ["model.json", "config.json"];

/// How the hub is reached.
#[derive(Clone, Debug, Default)]
pub(crate) struct Access {
    /// Absent: `HF_ENDPOINT`, or the public hub.
    pub(crate) endpoint: Option<String>,
    /// Absent: the cache of the environment.
    pub(crate) cache: Option<PathBuf>,
    /// Only what is in the cache.
    pub(crate) offline: bool,
}

impl Access {
    /// What the environment says; `HF_HUB_OFFLINE` with anything but nothing, 0, no, off or false keeps to the cache.
    pub(crate) fn of_environment() -> Self {
        let offline = std::env::var("HF_HUB_OFFLINE").unwrap_or_default().to_ascii_lowercase();
        Self { offline: !["", "0", "no", "off", "false"].contains(&offline.as_str()), ..Self::default() }
    }
}

/// The path of a file in the cache, fetched if it is not there.
pub(crate) fn fetch(place: &Place, access: &Access) -> Result<PathBuf> {
    let Place { owner, name, revision, file } = place;
    let fault = |error: &dyn std::fmt::Display| {
        let message = error.to_string();
        let message = message.lines().next().unwrap_or_default().to_string();
        let offline = if access.offline { " (HF_HUB_OFFLINE keeps to the cache)" } else { "" };
        Error::source(&format!("hub:{owner}/{name}@{revision}"), format!("{message}{offline}"))
    };
    let mut builder = HFClient::builder();
    if let Some(endpoint) = &access.endpoint {
        builder = builder.endpoint(endpoint);
    }
    if let Some(cache) = &access.cache {
        builder = builder.cache_dir(cache);
    }
    let client = builder.build_sync().map_err(|error| fault(&error))?;
    let repository = client.model(owner, name);
    let get = |file: &str| {
        repository
            .download_file()
            .filename(file)
            .revision(revision.as_str())
            .local_files_only(access.offline)
            .progress(Bar::new(file))
            .send()
    };
    let files: Vec<&str> = file.as_deref().map_or(USUAL_FILES.to_vec(), |file| vec![file]);
    let mut last = None;
    for file in files {
        match get(file) {
            Ok(path) => {
                let folder = file.rsplit_once('/').map_or(String::new(), |(folder, _)| format!("{folder}/"));
                for settings in SETTINGS {
                    // Most repositories lack one of them or both.
                    drop(get(&format!("{folder}{settings}")));
                }
                return Ok(path);
            }
            Err(error @ (HFError::EntryNotFound { .. } | HFError::LocalEntryNotFound { .. })) => last = Some(error),
            Err(error) => return Err(fault(&error)),
        }
    }
    Err(last.map_or_else(|| fault(&"no file"), |error| fault(&error)))
}

/// A bar on standard error, silent where that is no terminal.
struct Bar(ProgressBar);

impl Bar {
    fn new(file: &str) -> Self {
        let bar = ProgressBar::new(0).with_message(file.to_string());
        if let Ok(style) = ProgressStyle::with_template("{msg} {bytes}/{total_bytes} {wide_bar} {eta}") {
            bar.set_style(style);
        }
        Self(bar)
    }
}

impl ProgressHandler for Bar {
    fn on_progress(&self, event: &ProgressEvent) {
        let ProgressEvent::Download(event) = event else { return };
        match event {
            DownloadEvent::Start { total_bytes, .. } => self.0.set_length(*total_bytes),
            DownloadEvent::Progress { files } => {
                for file in files {
                    self.0.set_position(file.bytes_completed);
                }
            }
            DownloadEvent::AggregateProgress { bytes_completed, .. } => self.0.set_position(*bytes_completed),
            DownloadEvent::Complete => self.0.finish_and_clear(),
        }
    }
}

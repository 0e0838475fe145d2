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

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::io::{BufRead, BufReader, Write};
    use std::net::{TcpListener, TcpStream};
    use std::path::Path;

    use super::*;
    use crate::saved::sha256;
    use crate::weights::source::read;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    /// Tag and content of the files of the repository `owner/name`, by name.
    type Files = BTreeMap<&'static str, (String, Vec<u8>)>;

    /// A hub with one repository on this machine; it ends with the test.
    fn hub(files: Files) -> String {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                answer(&mut connection.unwrap(), &files);
            }
        });
        endpoint
    }

    fn answer(connection: &mut TcpStream, files: &Files) {
        let mut lines = BufReader::new(connection.try_clone().unwrap()).lines().map_while(std::io::Result::ok);
        let request = lines.next().unwrap_or_default();
        let _ = lines.find(String::is_empty);
        let name = request.split(' ').nth(1).and_then(|path| path.strip_prefix("/owner/name/resolve/main/"));
        let head = |status: &str, etag: &str, length: usize| {
            format!(
                "HTTP/1.1 {status}\r\netag: \"{etag}\"\r\nx-repo-commit: {COMMIT}\r\ncontent-length: {length}\r\n\
                 connection: close\r\n\r\n"
            )
        };
        match name.and_then(|name| files.get(name)) {
            Some((etag, content)) => {
                connection.write_all(head("200 OK", etag, content.len()).as_bytes()).unwrap();
                if request.starts_with("GET") {
                    connection.write_all(content).unwrap();
                }
            }
            None => connection.write_all(head("404 Not Found", "", 0).as_bytes()).unwrap(),
        }
    }

    fn place() -> Place {
        Place::parse("owner/name@main").unwrap()
    }

    fn access(endpoint: String, cache: &Path, offline: bool) -> Access {
        Access { endpoint: Some(endpoint), cache: Some(cache.to_path_buf()), offline }
    }

    #[test]
    fn a_file_is_fetched_once_and_then_found_offline_with_timms_settings_beside_it() {
        let content = b"the weights".to_vec();
        let settings = br#"{"pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}}"#.to_vec();
        let files = BTreeMap::from([
            ("pytorch_model.bin", (sha256(&content), content.clone())),
            ("config.json", ("a".repeat(40), settings)),
        ]);
        let cache = tempfile::tempdir().unwrap();
        let path = fetch(&place(), &access(hub(files), cache.path(), false)).unwrap();
        assert!(path.ends_with(format!("models--owner--name/snapshots/{COMMIT}/pytorch_model.bin")), "{path:?}");
        let nowhere = "http://127.0.0.1:1".to_string();
        let again = fetch(&place(), &access(nowhere, cache.path(), true)).unwrap();
        assert_eq!(path, again);
        let opened = read(&again, "hub:owner/name@main".to_string()).unwrap();
        assert_eq!((opened.bytes.as_slice(), opened.sha256.clone()), (content.as_slice(), sha256(&content)));
        assert_eq!(opened.normalisation.unwrap().mean, [0.5; 3]);
    }

    #[test]
    fn content_that_is_not_what_it_is_called_is_refused() {
        let files = BTreeMap::from([("model.safetensors", (sha256(b"the weights"), b"other bytes".to_vec()))]);
        let cache = tempfile::tempdir().unwrap();
        let path = fetch(&place(), &access(hub(files), cache.path(), false)).unwrap();
        let message = read(&path, String::new()).err().unwrap().to_string();
        assert!(message.contains("SHA-256") && message.contains("in the cache"), "{message}");
    }

    #[test]
    fn what_is_in_a_made_cache_needs_no_hub_and_what_is_nowhere_is_an_error() {
        let cache = tempfile::tempdir().unwrap();
        let offline = access("http://127.0.0.1:1".to_string(), cache.path(), true);
        let message = fetch(&place(), &offline).unwrap_err().to_string();
        assert!(message.contains("hub:owner/name@main") && message.contains("HF_HUB_OFFLINE"), "{message}");
        let repository = cache.path().join("models--owner--name");
        let snapshot = repository.join("snapshots").join(COMMIT);
        fs::create_dir_all(repository.join("refs")).unwrap();
        fs::create_dir_all(&snapshot).unwrap();
        fs::write(repository.join("refs/main"), COMMIT).unwrap();
        fs::write(snapshot.join("model.safetensors"), b"x").unwrap();
        assert_eq!(fetch(&place(), &offline).unwrap(), snapshot.join("model.safetensors"));

        let empty = tempfile::tempdir().unwrap();
        let message = fetch(&place(), &access(hub(Files::new()), empty.path(), false)).unwrap_err().to_string();
        assert!(message.contains("hub:owner/name@main") && message.contains("not found"), "{message}");
    }
}

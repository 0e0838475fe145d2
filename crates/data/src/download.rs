//! Downloading an archive whose size or hash is published. Only verified bytes get the final name.
//!
//! The body goes to `FILE.part`, which is locked while a process works on it; `FILE.part.etag` holds the server's name
//! for that version. What is there already is continued by a range request that the server must answer for the same
//! version. Losing the connection is answered by trying again with growing waits as long as bytes keep coming. When all
//! is there, size and hash are compared with the manifest; then the file is synced and renamed. Redirects are followed
//! within one host only, and never from https to http.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ureq::Agent;
use ureq::http::Response;
use ureq::http::header::{CONTENT_ENCODING, CONTENT_RANGE, ETAG, IF_RANGE, LOCATION, RANGE, RETRY_AFTER};

use crate::fingerprint::Fingerprint;
use crate::{ArchiveFacts, Error, Progress, Result};

/// How patient a download is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Failures in a row, without a new byte between them, after which it gives up.
    pub attempts: u32,
    /// Wait after the first failure; it doubles with each further one.
    pub first_wait: Duration,
    /// Longest wait, whatever the server asks for.
    pub longest_wait: Duration,
    /// Longest time without a byte.
    pub silence: Duration,
}

impl Default for Patience {
    /// 6 failures; waits from 1 s to 60 s; 60 s of silence.
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { attempts: 6, first_wait: seconds(1), longest_wait: seconds(60), silence: seconds(60) }
    }
}

/// Most redirects of one request.
const REDIRECTS: usize = 5;

/// Why an attempt failed.
enum Failure {
    /// Trying again may help; the server may have said when.
    Passing(String, Option<Duration>),
    /// It will not.
    Final(String),
}

/// Downloads an archive into `folder` under its usual name, of at most `most` bytes where its size is not published.
/// A file that is there under this name is verified and kept.
///
/// # Errors
/// Param where the manifest has no URL or no hash; File where the server, the network or the disk fails, where another
/// process is downloading the same file, or where the bytes are not those that were published.
pub fn download(
    facts: &ArchiveFacts,
    folder: &Path,
    most: u64,
    patience: Patience,
    progress: &Progress<'_>,
) -> Result<PathBuf> {
    let Some(url) = &facts.url else { return Err(Error::param("url", format!("{} has none", facts.file))) };
    if facts.sha256.is_none() && facts.sha1.is_none() {
        return Err(Error::param("url", format!("no hash of {} is published; fetch it by hand", facts.file)));
    }
    let failed = |path: &Path| {
        let path = path.to_path_buf();
        move |error: std::io::Error| Error::file(&path, format!("cannot write: {error}"))
    };
    fs::create_dir_all(folder).map_err(failed(folder))?;
    let target = folder.join(&facts.file);
    if target.exists() {
        return match Fingerprint::of(&target)?.difference(facts) {
            None => Ok(target),
            Some(reason) => Err(Error::file(&target, format!("{reason}; remove it to download it again"))),
        };
    }
    let path = folder.join(format!("{}.part", facts.file));
    let part = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
    let mut part = part.map_err(failed(&path))?;
    if part.try_lock().is_err() {
        return Err(Error::file(&path, "another process is downloading this file; wait for it"));
    }
    let transfer = Transfer {
        facts,
        url,
        most: facts.bytes.unwrap_or(most),
        etag: folder.join(format!("{}.part.etag", facts.file)),
    };
    // A part from before may be of another file of that name; one fresh start settles it.
    let mut fresh = part.seek(SeekFrom::End(0)).map_err(failed(&path))? == 0;
    loop {
        transfer.fill(&mut part, &path, patience, progress)?;
        part.sync_all().map_err(failed(&path))?;
        let Some(reason) = Fingerprint::of(&path)?.difference(facts) else { break };
        part.set_len(0).map_err(failed(&path))?;
        if fresh {
            let _ = fs::remove_file(&path);
            let _ = fs::remove_file(&transfer.etag);
            return Err(Error::file(&target, format!("what {url} sends {reason}; nothing was kept")));
        }
        fresh = true;
    }
    fs::rename(&path, &target).map_err(failed(&target))?;
    let _ = fs::remove_file(&transfer.etag);
    if let Ok(folder) = File::open(folder) {
        // Not every system can sync a folder; the file itself is synced.
        let _ = folder.sync_all();
    }
    Ok(target)
}

struct Transfer<'a> {
    facts: &'a ArchiveFacts,
    url: &'a str,
    most: u64,
    etag: PathBuf,
}

impl Transfer<'_> {
    /// Asks until the part is whole.
    fn fill(&self, part: &mut File, path: &Path, patience: Patience, progress: &Progress<'_>) -> Result<()> {
        let agent = agent(patience);
        let (mut failures, mut wait, mut furthest) = (0, patience.first_wait, 0);
        loop {
            let here = |error: std::io::Error| Error::file(path, format!("cannot write: {error}"));
            let have = part.seek(SeekFrom::End(0)).map_err(here)?;
            if self.facts.bytes == Some(have) {
                return Ok(());
            }
            let outcome = self.attempt(&agent, part, have, progress);
            let (reason, asked) = match outcome {
                Ok(()) => return Ok(()),
                Err(Failure::Final(reason)) => return Err(Error::file(self.url, reason)),
                Err(Failure::Passing(reason, asked)) => (reason, asked),
            };
            let have = part.seek(SeekFrom::End(0)).map_err(here)?;
            if have > furthest {
                (failures, wait, furthest) = (0, patience.first_wait, have);
            }
            failures += 1;
            if failures >= patience.attempts {
                let reason = format!(
                    "{reason}; gave up after {failures} failures in a row; the same command continues at byte {have}"
                );
                return Err(Error::file(self.url, reason));
            }
            std::thread::sleep(asked.unwrap_or(wait).min(patience.longest_wait));
            wait = wait.saturating_mul(2).min(patience.longest_wait);
        }
    }

    /// One request from byte `have` on, and its body.
    fn attempt(&self, agent: &Agent, part: &mut File, have: u64, progress: &Progress<'_>) -> Result<(), Failure> {
        let written = |error: std::io::Error| Failure::Final(format!("cannot write the part: {error}"));
        let known = fs::read_to_string(&self.etag).ok().filter(|etag| have > 0 && !etag.is_empty());
        let mut response = self.ask(agent, have, known.as_deref())?;
        let status = response.status().as_u16();
        let text = |response: &Response<_>, name| -> Option<String> {
            response
                .headers()
                .get(name)
                .and_then(|value: &ureq::http::HeaderValue| value.to_str().ok())
                .map(str::to_string)
        };
        let start = match status {
            200 => 0,
            206 => match text(&response, CONTENT_RANGE).as_deref().and_then(range) {
                Some((start, total)) if start == have && self.fits(total) => have,
                _ => return Err(Failure::Final("answers with another range than was asked for".into())),
            },
            // More than there is was asked for: the part is another version. From the start.
            416 if have > 0 => {
                part.set_len(0).map_err(written)?;
                return Err(Failure::Passing("has no such range".into(), None));
            }
            408 | 425 | 429 | 500..=599 => {
                let asked = text(&response, RETRY_AFTER).and_then(|value| value.trim().parse().ok());
                return Err(Failure::Passing(format!("answers with status {status}"), asked.map(Duration::from_secs)));
            }
            _ => return Err(Failure::Final(format!("answers with status {status}; fetch the file by hand"))),
        };
        if text(&response, CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
            return Err(Failure::Final("sends the file in another encoding".into()));
        }
        if let (0, Some(length)) = (start, response.body().content_length())
            && !self.fits(Some(length))
        {
            let expected = self.facts.bytes.map_or(format!("at most {}", self.most), |bytes| bytes.to_string());
            return Err(Failure::Final(format!(
                "announces {length} bytes, expected {expected}; it is another file now"
            )));
        }
        match text(&response, ETAG).filter(|etag| !etag.starts_with("W/")) {
            Some(etag) => fs::write(&self.etag, etag).map_err(written)?,
            None => drop(fs::remove_file(&self.etag)),
        }
        part.set_len(start).map_err(written)?;
        part.seek(SeekFrom::Start(start)).map_err(written)?;
        let announced = response.body().content_length();
        let mut body = response.body_mut().as_reader();
        let (mut at, mut buffer) = (start, vec![0u8; 1 << 16]);
        loop {
            let count =
                body.read(&mut buffer).map_err(|error| Failure::Passing(format!("breaks off: {error}"), None))?;
            if count == 0 {
                break;
            }
            at += count as u64;
            if at > self.most {
                part.set_len(0).map_err(written)?;
                return Err(Failure::Final(format!("sends more than {} bytes", self.most)));
            }
            part.write_all(&buffer[..count]).map_err(written)?;
            progress(
                &self.facts.file,
                (at >> 10) as usize,
                (self.facts.bytes.or(announced).unwrap_or(0) >> 10) as usize,
            );
        }
        match self.facts.bytes {
            Some(bytes) if at < bytes => Err(Failure::Passing(format!("ends after {at} of {bytes} bytes"), None)),
            _ => Ok(()),
        }
    }

    fn fits(&self, total: Option<u64>) -> bool {
        match (self.facts.bytes, total) {
            (Some(bytes), Some(total)) => bytes == total,
            (None, Some(total)) => total <= self.most,
            (_, None) => true,
        }
    }

    /// The answer to a request, after redirects within the host.
    fn ask(&self, agent: &Agent, have: u64, etag: Option<&str>) -> Result<Response<ureq::Body>, Failure> {
        let mut url = self.url.to_string();
        for _ in 0..=REDIRECTS {
            if url.starts_with("https:") && !cfg!(feature = "https") {
                let reason = format!(
                    "needs TLS, which is not built in: build with --features https, or: curl -C - -O {url} and --from {}",
                    self.facts.file
                );
                return Err(Failure::Final(reason));
            }
            let mut request = agent.get(&url);
            // Without a strong name of the version a part cannot be told to be of the same: the hash decides.
            if have > 0 {
                request = request.header(RANGE, format!("bytes={have}-"));
                if let Some(etag) = etag {
                    request = request.header(IF_RANGE, etag);
                }
            }
            let response = request.call().map_err(|error| Failure::Passing(error.to_string(), None))?;
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(response);
            }
            let to = response.headers().get(LOCATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
            url = redirected(&url, to).map_err(Failure::Final)?;
        }
        Err(Failure::Final(format!("redirects more than {REDIRECTS} times")))
    }
}

fn agent(patience: Patience) -> Agent {
    let silence = Some(patience.silence);
    let config = Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .max_response_header_size(64 << 10)
        .timeout_connect(silence)
        .timeout_recv_response(silence)
        .timeout_per_read(silence);
    config.build().new_agent()
}

/// First byte and total of `bytes 100-199/200`; the total may be unknown.
fn range(text: &str) -> Option<(u64, Option<u64>)> {
    let (span, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, _) = span.split_once('-')?;
    Some((first.parse().ok()?, if total == "*" { None } else { Some(total.parse().ok()?) }))
}

/// Where a redirect leads: within the same host, and not from https to http.
fn redirected(from: &str, to: &str) -> Result<String, String> {
    let (scheme, rest) = from.split_once("://").ok_or("is no URL")?;
    let host = rest.split('/').next().unwrap_or_default();
    if to.starts_with('/') && !to.starts_with("//") {
        return Ok(format!("{scheme}://{host}{to}"));
    }
    let (to_scheme, to_rest) = to.split_once("://").ok_or_else(|| format!("redirects to {to:?}, which is no URL"))?;
    let to_host = to_rest.split('/').next().unwrap_or_default();
    let name = |host: &str| host.split(':').next().unwrap_or_default().to_string();
    if to_scheme == scheme && to_host == host || (scheme, to_scheme) == ("http", "https") && name(host) == name(to_host)
    {
        return Ok(to.to_string());
    }
    Err(format!("redirects to {to}, which is another host or less safe; fetch the file by hand"))
}

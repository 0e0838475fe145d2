//! Where weights come from: a file, the folder of a saved or imported model, the hub.

use std::fs;
use std::path::{Path, PathBuf};

use crate::saved::{io, sha256};
use crate::{CARD_FILE, Error, Normalisation, Result, WEIGHTS_FILE};

/// What a place on the hub begins with.
const HUB: &str = "hub:";
/// The settings that timm puts beside its weights on the hub.
const TIMM_SETTINGS: &str = "config.json";

/// A source that was read.
pub(crate) struct Opened {
    /// Where it is, for messages.
    pub(crate) origin: String,
    pub(crate) bytes: Vec<u8>,
    pub(crate) sha256: String,
    /// As a card or settings beside the weights state it.
    pub(crate) normalisation: Option<Normalisation>,
}

pub(crate) fn open(source: &str) -> Result<Opened> {
    let (path, origin) = find(source)?;
    read(&path, origin)
}

/// The file, fetched from the hub where the source is a place there, and where it is, for messages.
pub(crate) fn find(source: &str) -> Result<(PathBuf, String)> {
    if let Some(place) = source.strip_prefix(HUB) {
        return Ok((fetched(&Place::parse(place)?)?, source.to_string()));
    }
    let path = Path::new(source);
    let path = if path.is_dir() { path.join(WEIGHTS_FILE) } else { path.to_path_buf() };
    fs::metadata(&path).map_err(io(&path, "cannot read the weights"))?;
    let origin = path.display().to_string();
    Ok((path, origin))
}

/// Reads a file and what the files beside it say of it.
pub(crate) fn read(path: &Path, origin: String) -> Result<Opened> {
    let bytes = fs::read(path).map_err(io(path, "cannot read the weights"))?;
    let sha256 = sha256(&bytes);
    check_blob(path, &sha256)?;
    let folder = path.parent().unwrap_or(Path::new("."));
    // The card speaks for the folder's own weights alone, and then it has to be right.
    let card = if path.file_name() == Some(WEIGHTS_FILE.as_ref()) { json(&folder.join(CARD_FILE)) } else { None };
    let normalisation = match card.filter(|card| card.get("weights_sha256").is_some()) {
        Some(card) => Some(of_card(path, card, &sha256)?),
        None => json(&folder.join(TIMM_SETTINGS)).and_then(|settings| of_timm(&settings)),
    };
    Ok(Opened { origin, bytes, sha256, normalisation })
}

fn json(path: &Path) -> Option<serde_json::Value> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// The normalisation in the card, or in the card that it is replacing, whichever has the hash of the weights.
fn of_card(path: &Path, card: serde_json::Value, sha256: &str) -> Result<Normalisation> {
    let fault = |what: &'static str, expected: String, got: String| {
        Err(Error::File { path: path.to_path_buf(), what, expected, got })
    };
    let fits = |card: &&serde_json::Value| card.get("weights_sha256").and_then(|hash| hash.as_str()) == Some(sha256);
    let Some(fitting) = [Some(&card), card.get("superseded")].into_iter().flatten().find(fits) else {
        let expected = card.get("weights_sha256").map(ToString::to_string).unwrap_or_default();
        return fault("SHA-256 of the file", format!("{expected} as in {CARD_FILE}"), sha256.to_string());
    };
    match serde_json::from_value(fitting.get("normalisation").cloned().unwrap_or_default()) {
        Ok(normalisation) => Ok(normalisation),
        Err(error) => fault("normalisation in the card", "mean and std".to_string(), error.to_string()),
    }
}

fn of_timm(settings: &serde_json::Value) -> Option<Normalisation> {
    let settings = settings.get("pretrained_cfg")?;
    let part = |key: &str| serde_json::from_value::<[f32; 3]>(settings.get(key)?.clone()).ok();
    Some(Normalisation { mean: part("mean")?, std: part("std")? })
}

/// The hub's cache names large files by their SHA-256: such a name has to be true.
fn check_blob(path: &Path, sha256: &str) -> Result<()> {
    let blob = fs::canonicalize(path).ok();
    let name = blob.as_deref().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
    match name.filter(|name| name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit())) {
        Some(name) if name != sha256 => Err(Error::File {
            path: path.to_path_buf(),
            what: "SHA-256 of the file",
            expected: format!("{name} by its name in the cache (delete it, and it is fetched again)"),
            got: sha256.to_string(),
        }),
        _ => Ok(()),
    }
}

/// `owner/name@revision` or `owner/name@revision/file`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) owner: String,
    pub(crate) name: String,
    pub(crate) revision: String,
    /// Absent: the usual names in turn.
    pub(crate) file: Option<String>,
}

impl Place {
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let fault = || {
            Error::source(&format!("{HUB}{text}"), "expected hub:owner/name@revision or hub:owner/name@revision/file")
        };
        let (repository, rest) = text.split_once('@').ok_or_else(fault)?;
        let (owner, name) = repository.split_once('/').ok_or_else(fault)?;
        let (revision, file) = rest.split_once('/').map_or((rest, None), |(revision, file)| (revision, Some(file)));
        let plain = |part: &str| {
            !part.is_empty()
                && part != ".."
                && part.chars().all(|sign| sign.is_ascii_alphanumeric() || "-_.".contains(sign))
        };
        let file_is_plain = file.is_none_or(|file| file.split('/').all(plain));
        if ![owner, name, revision].into_iter().all(plain) || !file_is_plain {
            return Err(fault());
        }
        let [owner, name, revision] = [owner, name, revision].map(str::to_string);
        Ok(Self { owner, name, revision, file: file.map(str::to_string) })
    }
}

#[cfg(feature = "hub")]
fn fetched(place: &Place) -> Result<PathBuf> {
    crate::weights::hub::fetch(place, &crate::weights::hub::Access::of_environment())
}

#[cfg(not(feature = "hub"))]
fn fetched(place: &Place) -> Result<PathBuf> {
    let Place { owner, name, revision, .. } = place;
    Err(Error::source(
        &format!("{HUB}{owner}/{name}@{revision}"),
        "this program was built without access to the hub; build it with --features hub, or download the file and give \
         its path",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_on_the_hub_has_owner_name_and_revision() {
        let place = Place::parse("timm/tf_efficientnet_lite0.in1k@main").unwrap();
        assert_eq!((place.owner.as_str(), place.name.as_str()), ("timm", "tf_efficientnet_lite0.in1k"));
        assert_eq!((place.revision.as_str(), place.file), ("main", None));
        let file = Place::parse("a/b@0123abc/sub/w.pth").unwrap().file;
        assert_eq!(file.as_deref(), Some("sub/w.pth"));
        for text in ["", "a", "a/b", "a/b@", "@x", "/b@x", "a/@x", "a/b@x/", "a/b@x/../y", "a/b/c@x", "a/b@x y"] {
            assert!(Place::parse(text).is_err(), "{text}");
        }
    }
}

//! A trained network on disk: `model.safetensors` (all parameters and running statistics, by name) and `model.json`
//! (the [`ModelCard`]). The two files alone are enough to use it.
//!
//! Each file is written beside its final name, flushed to the disk and renamed. So that a crash between the two
//! renames loses nothing either, the card is replaced first and carries the card that it replaces until the weights
//! have followed; loading takes the card whose SHA-256 is that of the weights.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result, WeightMismatch};
use crate::{ModelConfig, Segmenter, build, parameter_shapes, tensor_builder};

/// The format that is written, and the only one that is read.
pub const FORMAT_VERSION: u32 = 1;
/// The name of the file of the weights.
pub const WEIGHTS_FILE: &str = "model.safetensors";
/// The name of the file of the [`ModelCard`].
pub const CARD_FILE: &str = "model.json";
/// Where the card is that [`save`] is replacing.
const SUPERSEDED: &str = "superseded";

/// All that is needed to use a network, apart from its weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelCard {
    /// [`FORMAT_VERSION`].
    pub format_version: u32,
    /// The network.
    pub model: ModelConfig,
    /// Its classes, in the order of the logits.
    pub classes: Vec<ClassInfo>,
    /// How its input is normalised.
    pub normalisation: Normalisation,
    /// SHA-256 of the file of the weights, lower case hexadecimal; [`save`] fills it in.
    #[serde(default)]
    pub weights_sha256: String,
    /// How it was trained; free for the trainer.
    #[serde(default)]
    pub training: serde_json::Value,
}

/// A class of a dataset.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClassInfo {
    /// Its name.
    pub name: String,
    /// Its colour in label images, RGB.
    pub colour: [u8; 3],
}

/// Input = (RGB in 0–1 − mean) / std, per channel.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Normalisation {
    /// Of R, G, B in 0–1.
    pub mean: [f32; 3],
    /// Of R, G, B in 0–1.
    pub std: [f32; 3],
}

/// A network that was loaded: verified, and ready to be built.
#[derive(Clone, Debug)]
pub struct SavedModel {
    /// What it is.
    pub card: ModelCard,
    /// Its parameters and running statistics by name: plain tensors on the CPU.
    pub tensors: BTreeMap<String, Tensor>,
}

impl SavedModel {
    /// The network for evaluation; it builds no graph.
    ///
    /// # Errors
    /// None that [`load`] would not have found.
    pub fn segmenter(&self) -> Result<Box<dyn Segmenter>> {
        build(&self.card.model, self.card.classes.len(), self.builder())
    }

    fn builder(&self) -> VarBuilder<'static> {
        let dtype = self.tensors.values().next().map_or(DType::F32, Tensor::dtype);
        tensor_builder(self.tensors.clone(), dtype, &Device::Cpu)
    }
}

/// Writes a network into a folder, which is made if it does not exist, and replaces the one that is there. The hash of
/// the weights and the format version in the card are filled in.
///
/// # Errors
/// [`Error::FileWeights`] where the tensors are not those of the network in the card; [`Error::Io`]. The network that
/// was in the folder can still be loaded then.
pub fn save(folder: &Path, card: &ModelCard, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
    let (card_path, weights_path) = (folder.join(CARD_FILE), folder.join(WEIGHTS_FILE));
    verify(&weights_path, card, tensors)?;
    let weights = safetensors::serialize(tensors, None).map_err(candle_core::Error::from)?;
    let mut card = card.clone();
    card.format_version = FORMAT_VERSION;
    card.weights_sha256 = sha256(&weights);
    fs::create_dir_all(folder).map_err(io(folder, "cannot make the folder"))?;

    let new = json(&card_path, &card)?;
    let mut transition = new.clone();
    if let (Some(object), Ok(mut old)) = (transition.as_object_mut(), read_json(&card_path)) {
        // Whatever is there may itself be the remains of an interrupted save: both of its cards stay reachable.
        if let Some(older) = old.as_object_mut().and_then(|old| old.remove(SUPERSEDED)) {
            let weights_now = fs::read(&weights_path).map(|bytes| sha256(&bytes)).unwrap_or_default();
            if older.get("weights_sha256").and_then(|hash| hash.as_str()) == Some(weights_now.as_str()) {
                old = older;
            }
        }
        object.insert(SUPERSEDED.to_string(), old);
        write_whole(folder, &card_path, &pretty(&card_path, &transition)?)?;
    }
    write_whole(folder, &weights_path, &weights)?;
    write_whole(folder, &card_path, &pretty(&card_path, &new)?)
}

/// Reads a network and verifies version, hash, names and shapes.
///
/// # Errors
/// [`Error::Io`] for a folder or file that is not there, [`Error::File`] for one that is damaged or of another
/// version, [`Error::FileWeights`] for weights of another network. Each names the file.
pub fn load(folder: &Path) -> Result<SavedModel> {
    let (card_path, weights_path) = (folder.join(CARD_FILE), folder.join(WEIGHTS_FILE));
    if !folder.is_dir() {
        let source = std::io::Error::new(std::io::ErrorKind::NotFound, "no such folder");
        return Err(io(folder, "cannot read the model")(source));
    }
    let mut current = read_json(&card_path)?;
    let superseded = current.as_object_mut().and_then(|card| card.remove(SUPERSEDED));
    let card = parse_card(&card_path, current)?;
    let weights = fs::read(&weights_path).map_err(io(&weights_path, "cannot read the weights"))?;
    let hash = sha256(&weights);
    let card = if card.weights_sha256 == hash {
        card
    } else {
        let older = superseded.and_then(|older| parse_card(&card_path, older).ok());
        let older = older.filter(|older| older.weights_sha256 == hash);
        older.ok_or_else(|| Error::File {
            path: weights_path.clone(),
            what: "SHA-256 of the file",
            expected: format!("{} as in {CARD_FILE} (the file is damaged, or not this model's)", card.weights_sha256),
            got: format!("{hash} ({} bytes)", weights.len()),
        })?
    };
    let damaged = |error: candle_core::Error| Error::File {
        path: weights_path.clone(),
        what: "content",
        expected: "safetensors".to_string(),
        got: error.to_string(),
    };
    let tensors = candle_core::safetensors::load_buffer(&weights, &Device::Cpu).map_err(damaged)?;
    let tensors: BTreeMap<String, Tensor> = tensors.into_iter().collect();
    verify(&weights_path, &card, &tensors)?;
    Ok(SavedModel { card, tensors })
}

/// Whether the tensors are those of the network in the card.
fn verify(path: &Path, card: &ModelCard, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
    let shapes = parameter_shapes(&card.model, card.classes.len())?;
    let expected = shapes.iter().map(|(name, shape)| (name.as_str(), shape.as_slice()));
    let mismatch = WeightMismatch::between(expected, tensors);
    if !mismatch.is_empty() {
        return Err(Error::FileWeights { path: path.to_path_buf(), mismatch });
    }
    let mut dtypes = tensors.values().map(Tensor::dtype);
    let first = dtypes.next().unwrap_or(DType::F32);
    match std::iter::once(first)
        .chain(dtypes)
        .find(|&dtype| dtype != first || ![DType::F32, DType::F64].contains(&dtype))
    {
        None => Ok(()),
        Some(other) => Err(Error::File {
            path: path.to_path_buf(),
            what: "element type of a tensor",
            expected: "f32 or f64, the same for all".to_string(),
            got: other.as_str().to_string(),
        }),
    }
}

fn parse_card(path: &Path, value: serde_json::Value) -> Result<ModelCard> {
    if let Some(kind) = value.get("kind") {
        return Err(Error::File {
            path: path.to_path_buf(),
            what: "kind",
            expected: "a whole network (the weights of a backbone are for training one to begin with)".to_string(),
            got: kind.to_string(),
        });
    }
    let version = value.get("format_version").cloned().unwrap_or_default();
    if version != FORMAT_VERSION {
        return Err(Error::File {
            path: path.to_path_buf(),
            what: "format_version",
            expected: FORMAT_VERSION.to_string(),
            got: if version.is_null() { "missing".to_string() } else { version.to_string() },
        });
    }
    let card: ModelCard = serde_json::from_value(value).map_err(bad_json(path))?;
    parameter_shapes(&card.model, card.classes.len()).map_err(|error| Error::File {
        path: path.to_path_buf(),
        what: "network",
        expected: "one that can be built".to_string(),
        got: error.to_string(),
    })?;
    Ok(card)
}

fn read_json(path: &Path) -> Result<serde_json::Value> {
    let bytes = fs::read(path).map_err(io(path, "cannot read the model card"))?;
    serde_json::from_slice(&bytes).map_err(bad_json(path))
}

fn json(path: &Path, card: &ModelCard) -> Result<serde_json::Value> {
    serde_json::to_value(card).map_err(bad_json(path))
}

fn pretty(path: &Path, value: &serde_json::Value) -> Result<Vec<u8>> {
    let mut text = serde_json::to_vec_pretty(value).map_err(bad_json(path))?;
    text.push(b'\n');
    Ok(text)
}

fn bad_json(path: &Path) -> impl Fn(serde_json::Error) -> Error {
    let path = path.to_path_buf();
    move |error| Error::File {
        path: path.clone(),
        what: "content",
        expected: "a model card".to_string(),
        got: error.to_string(),
    }
}

pub(crate) fn io(path: &Path, action: &'static str) -> impl FnOnce(std::io::Error) -> Error {
    let path: PathBuf = path.to_path_buf();
    move |source| Error::Io { path, action, source }
}

/// Replaces a file of the folder: after a crash at any moment there is the old content or the new.
pub(crate) fn write_whole(folder: &Path, path: &Path, content: &[u8]) -> Result<()> {
    let mut file =
        tempfile::NamedTempFile::new_in(folder).map_err(io(path, "cannot make a temporary file beside it"))?;
    let written = file.write_all(content).and_then(|()| file.as_file().sync_all());
    written.map_err(io(path, "cannot write"))?;
    make_readable(file.as_file()).map_err(io(path, "cannot set the permissions"))?;
    file.persist(path).map_err(|error| io(path, "cannot put the new file in place")(error.error))?;
    // A rename is on the disk when its folder is; systems that cannot open a folder have no such call.
    #[cfg(unix)]
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(io(folder, "cannot flush the folder"))?;
    Ok(())
}

/// Temporary files are private to the user; a model is an ordinary file.
#[cfg(unix)]
fn make_readable(file: &File) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.set_permissions(fs::Permissions::from_mode(0o644))
}

#[cfg(not(unix))]
fn make_readable(_: &File) -> std::io::Result<()> {
    Ok(())
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

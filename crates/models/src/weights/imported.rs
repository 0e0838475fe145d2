//! A backbone on disk: `model.safetensors`, with the names that it has inside a network, and a `model.json` of its own
//! kind. [`load`](crate::weights::load) takes such a folder; [`crate::load`] refuses it, as it is no network.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::backbone::{Architecture, Stem};
use crate::saved::{io, sha256, write_whole};
use crate::weights::Report;
use crate::{CARD_FILE, EncoderDecoderConfig, Error, FORMAT_VERSION, ModelConfig, Normalisation, Result, WEIGHTS_FILE};

/// The value of `kind` in the card of a backbone; cards of networks have no such key.
pub(crate) const BACKBONE: &str = "backbone";

/// A backbone and what is needed to use it, apart from its weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackboneCard {
    /// [`FORMAT_VERSION`].
    pub format_version: u32,
    /// `backbone`.
    pub kind: String,
    /// Which one.
    pub backbone: Architecture,
    /// All channel counts are multiplied by this.
    pub width: f64,
    /// The first layers of a ResNet; absent for others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stem: Option<Stem>,
    /// How its input is normalised.
    pub normalisation: Normalisation,
    /// SHA-256 of the file of the weights, lower case hexadecimal; [`save_backbone`] fills it in.
    #[serde(default)]
    pub weights_sha256: String,
    /// Where the weights came from.
    pub imported: Imported,
}

/// Where imported weights came from and what was done to them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Imported {
    /// The source as it was given.
    pub source: String,
    /// SHA-256 of the source's file.
    pub sha256: String,
    /// Whose names its tensors had.
    pub names: String,
    /// What was changed on the way, a sentence each.
    pub notes: Vec<String>,
}

impl From<&Report> for Imported {
    fn from(report: &Report) -> Self {
        Self {
            source: report.source.clone(),
            sha256: report.sha256.clone(),
            names: report.scheme.name().to_string(),
            notes: report.notes.clone(),
        }
    }
}

impl BackboneCard {
    /// The card of the backbone of a network.
    ///
    /// # Errors
    /// [`Error::Config`] for a network without a backbone of its own name.
    pub fn new(config: &ModelConfig, normalisation: Normalisation, imported: Imported) -> Result<Self> {
        let settings = config.encoder_decoder().ok_or_else(|| {
            Error::config("part", "everything: the network has no backbone of its own name", BACKBONE)
        })?;
        Ok(Self {
            format_version: FORMAT_VERSION,
            kind: BACKBONE.to_string(),
            backbone: settings.backbone,
            width: settings.width,
            stem: settings.stem,
            normalisation,
            weights_sha256: String::new(),
            imported,
        })
    }
}

/// A network with this backbone and as little else as there can be: for weights of the backbone alone.
#[must_use]
pub fn backbone_alone(backbone: Architecture, width: f64, stem: Option<Stem>) -> ModelConfig {
    ModelConfig::Fcn(EncoderDecoderConfig {
        backbone,
        output_stride: 32,
        width,
        head_channels: 1,
        stem,
        aux: false,
        dropout: 0.0,
    })
}

/// Writes a backbone into a folder, which is made if it does not exist.
///
/// # Errors
/// [`Error::Io`].
pub fn save_backbone(folder: &Path, card: &BackboneCard, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
    let (card_path, weights_path) = (folder.join(CARD_FILE), folder.join(WEIGHTS_FILE));
    let weights = safetensors::serialize(tensors, None).map_err(candle_core::Error::from)?;
    let card = BackboneCard { weights_sha256: sha256(&weights), ..card.clone() };
    let mut text = serde_json::to_vec_pretty(&card).map_err(|error| Error::File {
        path: card_path.clone(),
        what: "content",
        expected: "a card".to_string(),
        got: error.to_string(),
    })?;
    text.push(b'\n');
    fs::create_dir_all(folder).map_err(io(folder, "cannot make the folder"))?;
    write_whole(folder, &weights_path, &weights)?;
    write_whole(folder, &card_path, &text)
}

//! Networks as data: what a recipe or a saved model says, and the network that it stands for.

use std::collections::BTreeMap;
use std::fmt;

use candle_nn::VarBuilder;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};

use crate::backbone::{Backbone, ResNet, ResNetConfig, ResNetDepth, Stem};
use crate::decoder::{Decoder, PyramidPooling, PyramidPoolingConfig};
use crate::enet::{Enet, EnetConfig};
use crate::params::ShapeRecorder;
use crate::{AuxHead, Classifier, EncoderDecoder, Error, Result, Segmenter, variant};

/// A network, named by the key `architecture`. The number of classes belongs to the dataset and is given apart.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "architecture", rename_all = "lowercase")]
#[non_exhaustive]
pub enum ModelConfig {
    /// A dilated ResNet with pyramid pooling.
    Pspnet(PspnetConfig),
    /// ENet.
    Enet(EnetConfig),
}

/// Settings of PSPNet on a ResNet.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PspnetConfig {
    /// Which ResNet.
    pub backbone: ResNetDepth,
    /// Input pixels per position of the logits: 8, 16 or 32.
    #[serde(default = "PspnetConfig::default_output_stride")]
    pub output_stride: usize,
    /// All channel counts of the backbone are multiplied by this and rounded.
    #[serde(default = "PspnetConfig::default_width")]
    pub width: f64,
    /// Channels of the pyramid branches, of the feature `head` and of the auxiliary head.
    #[serde(default = "PspnetConfig::default_head_channels")]
    pub head_channels: usize,
    /// The first layers of the backbone.
    #[serde(default = "PspnetConfig::default_stem")]
    pub stem: Stem,
    /// Whether there is an auxiliary head on `stage3`.
    #[serde(default = "PspnetConfig::default_aux")]
    pub aux: bool,
    /// Probability with which a channel before a classifier is dropped while training.
    #[serde(default = "PspnetConfig::default_dropout")]
    pub dropout: f64,
}

impl PspnetConfig {
    fn default_output_stride() -> usize {
        8
    }

    fn default_width() -> f64 {
        1.0
    }

    fn default_head_channels() -> usize {
        128
    }

    fn default_stem() -> Stem {
        Stem::Deep
    }

    fn default_aux() -> bool {
        true
    }

    fn default_dropout() -> f64 {
        0.1
    }
}

/// The stage that carries the auxiliary head, counted from 0: `stage3`.
const AUX_STAGE: usize = 2;

/// The network of a configuration on the parameters of a builder.
///
/// # Errors
/// A setting out of its range; a parameter of another shape; with a frozen builder, a parameter that is missing.
pub fn build(config: &ModelConfig, num_classes: usize, vb: VarBuilder) -> Result<Box<dyn Segmenter>> {
    if num_classes == 0 || num_classes > 255 {
        return Err(Error::config("number of classes", "1 to 255", num_classes));
    }
    match config {
        ModelConfig::Pspnet(config) => Ok(Box::new(pspnet(config, num_classes, &vb)?)),
        ModelConfig::Enet(config) => Ok(Box::new(Enet::new(config, num_classes, vb)?)),
    }
}

fn pspnet(config: &PspnetConfig, num_classes: usize, vb: &VarBuilder) -> Result<EncoderDecoder> {
    let &PspnetConfig { backbone: depth, output_stride, width, head_channels, stem, aux, dropout } = config;
    let backbone = ResNet::new(&ResNetConfig { depth, stem, output_stride, width }, vb.pp("backbone"))?;
    let channels = backbone.out_channels().to_vec();
    let in_channels = channels.last().copied().unwrap_or_default();
    let decoder = PyramidPooling::new(&PyramidPoolingConfig { in_channels, head_channels, dropout }, vb.pp("decoder"))?;
    let classify = Classifier::new(decoder.out_channels(), num_classes, vb.pp("classifier"))?;
    let network = EncoderDecoder::new(Box::new(backbone), Box::new(decoder), classify);
    if !aux {
        return Ok(network);
    }
    let head = AuxHead::new(channels[AUX_STAGE], head_channels, num_classes, dropout, vb.pp("aux"))?;
    network.with_aux(AUX_STAGE, head)
}

/// Names and shapes of all tensors of a network, running statistics included. Nothing is allocated.
///
/// # Errors
/// A setting out of its range.
pub fn parameter_shapes(config: &ModelConfig, num_classes: usize) -> Result<BTreeMap<String, Vec<usize>>> {
    Ok(recorded(config, num_classes)?.shapes())
}

/// The number of trained values of a network; running statistics do not count. Nothing is allocated.
///
/// # Errors
/// A setting out of its range.
pub fn parameter_count(config: &ModelConfig, num_classes: usize) -> Result<usize> {
    Ok(recorded(config, num_classes)?.parameter_count())
}

fn recorded(config: &ModelConfig, num_classes: usize) -> Result<ShapeRecorder> {
    let recorder = ShapeRecorder::default();
    build(config, num_classes, recorder.builder())?;
    Ok(recorder)
}

/// A network as a recipe writes it: the name of a variant or a table with `architecture` and its settings.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum ModelChoice {
    /// The name of one of [`crate::variants`].
    Named(String),
    /// The settings themselves.
    Table(ModelConfig),
}

impl ModelChoice {
    /// The settings that are meant.
    ///
    /// # Errors
    /// [`Error::UnknownVariant`], with the names there are.
    pub fn config(&self) -> Result<ModelConfig> {
        match self {
            Self::Named(name) => variant(name).ok_or_else(|| Error::unknown_variant(name)),
            Self::Table(config) => Ok(*config),
        }
    }
}

// Not derived: an untagged enum would hide which key of the table is wrong.
impl<'de> Deserialize<'de> for ModelChoice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Choice;
        impl<'de> Visitor<'de> for Choice {
            type Value = ModelChoice;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("the name of a model or a table with `architecture`")
            }

            fn visit_str<E: serde::de::Error>(self, name: &str) -> std::result::Result<ModelChoice, E> {
                if variant(name).is_none() {
                    return Err(E::custom(Error::unknown_variant(name)));
                }
                Ok(ModelChoice::Named(name.to_string()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> std::result::Result<ModelChoice, A::Error> {
                ModelConfig::deserialize(MapAccessDeserializer::new(map)).map(ModelChoice::Table)
            }
        }
        deserializer.deserialize_any(Choice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    struct Recipe {
        model: ModelChoice,
    }

    fn parsed(model: &str) -> std::result::Result<ModelConfig, String> {
        let recipe: Recipe = toml::from_str(&format!("model = {model}")).map_err(|error| error.to_string())?;
        recipe.model.config().map_err(|error| error.to_string())
    }

    #[test]
    fn a_name_and_a_table_mean_the_same() {
        let table = r#"{ architecture = "pspnet", backbone = "resnet18", output_stride = 8, width = 1,
            head_channels = 128, stem = "deep", aux = true, dropout = 0.1 }"#;
        assert_eq!(parsed(table), parsed("\"pspnet_resnet18\""));
        assert_eq!(parsed(r#"{ architecture = "pspnet", backbone = "resnet18" }"#), parsed("\"pspnet_resnet18\""));
        assert_eq!(parsed(r#"{ architecture = "enet" }"#), parsed("\"enet\""));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (model, expected) in [
            ("\"pspnet_resnet19\"", "pspnet_resnet18_half"),
            (r#"{ architecture = "pspnet", backbone = "resnet18", stride = 8 }"#, "stride"),
            (r#"{ architecture = "enet", aux = true }"#, "aux"),
            (r#"{ architecture = "unet" }"#, "pspnet"),
            (r#"{ backbone = "resnet18" }"#, "architecture"),
            ("3", "the name of a model"),
        ] {
            let message = parsed(model).unwrap_err();
            assert!(message.contains(expected), "{model}: {message}");
        }
    }

    #[test]
    fn settings_out_of_range_are_refused() {
        let config =
            |settings: &str| parsed(&format!("{{ architecture = \"pspnet\", backbone = \"resnet18\", {settings} }}"));
        for (settings, field) in [
            ("output_stride = 4", "output_stride"),
            ("width = 0.0", "width"),
            ("width = nan", "width"),
            ("head_channels = 0", "head_channels"),
            ("dropout = 1.0", "dropout"),
        ] {
            let message = parameter_count(&config(settings).unwrap(), 3).unwrap_err().to_string();
            assert!(message.contains(field), "{settings}: {message}");
        }
        assert!(parameter_count(&config("aux = false").unwrap(), 0).is_err());
    }
}

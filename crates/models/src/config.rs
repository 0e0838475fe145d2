//! Networks as data: what a recipe or a saved model says, and the network that it stands for.

use std::collections::BTreeMap;
use std::fmt;

use candle_nn::VarBuilder;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};

use crate::backbone::{Architecture, Stem, backbone};
use crate::decoder::{
    Aspp, AsppConfig, Decoder, LrAspp, LrAsppConfig, PyramidPooling, PyramidPoolingConfig, Reduction,
};
use crate::enet::{Enet, EnetConfig};
use crate::espnet::{Espnet, EspnetConfig};
use crate::espnetv2::{EspnetV2, EspnetV2Config};
use crate::params::ShapeRecorder;
use crate::{AuxHead, Classifier, EncoderDecoder, Error, Result, Segmenter, variant};

/// A network, named by the key `architecture`. The number of classes belongs to the dataset and is given apart.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "architecture", rename_all = "lowercase")]
#[non_exhaustive]
pub enum ModelConfig {
    /// Any backbone with pyramid pooling.
    Pspnet(EncoderDecoderConfig),
    /// Any backbone with atrous spatial pyramid pooling.
    Deeplabv3(EncoderDecoderConfig),
    /// Any backbone with one convolution.
    Fcn(EncoderDecoderConfig),
    /// Any backbone with the light head of MobileNetV3.
    Lraspp(EncoderDecoderConfig),
    /// ENet.
    Enet(EnetConfig),
    /// ESPNet-C and ESPNet.
    Espnet(EspnetConfig),
    /// ESPNetv2.
    EspnetV2(EspnetV2Config),
}

impl ModelConfig {
    /// The settings of a network made of a backbone, a decoder and a head; absent for one that is one piece.
    #[must_use]
    pub fn encoder_decoder(&self) -> Option<&EncoderDecoderConfig> {
        match self {
            Self::Pspnet(settings) | Self::Deeplabv3(settings) | Self::Fcn(settings) | Self::Lraspp(settings) => {
                Some(settings)
            }
            Self::Enet(_) | Self::Espnet(_) | Self::EspnetV2(_) => None,
        }
    }

    /// The same, to be changed.
    #[must_use]
    pub fn encoder_decoder_mut(&mut self) -> Option<&mut EncoderDecoderConfig> {
        match self {
            Self::Pspnet(settings) | Self::Deeplabv3(settings) | Self::Fcn(settings) | Self::Lraspp(settings) => {
                Some(settings)
            }
            Self::Enet(_) | Self::Espnet(_) | Self::EspnetV2(_) => None,
        }
    }
}

/// Settings of a network made of a backbone, a decoder and a head.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EncoderDecoderConfig {
    /// Which backbone.
    pub backbone: Architecture,
    /// Input pixels per position of the last stage: 8, 16 or 32.
    #[serde(default = "EncoderDecoderConfig::default_output_stride")]
    pub output_stride: usize,
    /// All channel counts of the backbone are multiplied by this, rounded as its paper rounds.
    #[serde(default = "EncoderDecoderConfig::default_width")]
    pub width: f64,
    /// Channels of the decoder's branches, of the feature `head` and of the auxiliary head.
    #[serde(default = "EncoderDecoderConfig::default_head_channels")]
    pub head_channels: usize,
    /// The first layers of a ResNet (absent: deep); other backbones have one form only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stem: Option<Stem>,
    /// Whether there is an auxiliary head on the last stage but one.
    #[serde(default = "EncoderDecoderConfig::default_aux")]
    pub aux: bool,
    /// Probability with which a channel before a classifier is dropped while training.
    #[serde(default = "EncoderDecoderConfig::default_dropout")]
    pub dropout: f64,
}

impl EncoderDecoderConfig {
    fn default_output_stride() -> usize {
        8
    }

    fn default_width() -> f64 {
        1.0
    }

    fn default_head_channels() -> usize {
        128
    }

    fn default_aux() -> bool {
        true
    }

    fn default_dropout() -> f64 {
        0.1
    }
}

/// The network of a configuration on the parameters of a builder.
///
/// # Errors
/// A setting out of its range; a parameter of another shape; with a frozen builder, a parameter that is missing.
pub fn build(config: &ModelConfig, num_classes: usize, vb: VarBuilder) -> Result<Box<dyn Segmenter>> {
    if num_classes == 0 || num_classes > 255 {
        return Err(Error::config("number of classes", "1 to 255", num_classes));
    }
    match config {
        ModelConfig::Pspnet(settings)
        | ModelConfig::Deeplabv3(settings)
        | ModelConfig::Fcn(settings)
        | ModelConfig::Lraspp(settings) => Ok(Box::new(encoder_decoder(config, settings, num_classes, &vb)?)),
        ModelConfig::Enet(config) => Ok(Box::new(Enet::new(config, num_classes, vb)?)),
        ModelConfig::Espnet(config) => Ok(Box::new(Espnet::new(config, num_classes, vb)?)),
        ModelConfig::EspnetV2(config) => Ok(Box::new(EspnetV2::new(config, num_classes, vb)?)),
    }
}

fn encoder_decoder(
    config: &ModelConfig,
    settings: &EncoderDecoderConfig,
    num_classes: usize,
    vb: &VarBuilder,
) -> Result<EncoderDecoder> {
    let &EncoderDecoderConfig { output_stride, head_channels, aux, dropout, .. } = settings;
    let backbone = backbone(settings, vb.pp("backbone"))?;
    let channels = backbone.out_channels().to_vec();
    let (low_level, aux_stage) = (backbone.low_level(), backbone.aux_stage());
    let in_channels = channels.last().copied().unwrap_or_default();
    let decoder = vb.pp("decoder");
    let decoder: Box<dyn Decoder> = match config {
        ModelConfig::Deeplabv3(_) => {
            Box::new(Aspp::new(&AsppConfig { in_channels, head_channels, output_stride, dropout }, decoder)?)
        }
        ModelConfig::Fcn(_) => Box::new(Reduction::new(in_channels, head_channels, dropout, decoder)?),
        ModelConfig::Lraspp(_) => {
            Box::new(LrAspp::new(&LrAsppConfig { in_channels, head_channels, low_level, dropout }, decoder)?)
        }
        _ => Box::new(PyramidPooling::new(&PyramidPoolingConfig { in_channels, head_channels, dropout }, decoder)?),
    };
    let classify = Classifier::new(decoder.out_channels(), num_classes, vb.pp("classifier"))?;
    let mut network = EncoderDecoder::new(backbone, decoder, classify);
    if matches!(config, ModelConfig::Lraspp(_)) {
        let low = Classifier::new(channels[low_level], num_classes, vb.pp("low_classifier"))?;
        network = network.with_low_level(low_level, low)?;
    }
    if aux {
        let head = AuxHead::new(channels[aux_stage], head_channels, num_classes, dropout, vb.pp("aux"))?;
        network = network.with_aux(aux_stage, head)?;
    }
    Ok(network)
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
            head_channels = 128, aux = true, dropout = 0.1, stem = "deep" }"#;
        assert_eq!(parsed(table), parsed("\"pspnet_resnet18\""));
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

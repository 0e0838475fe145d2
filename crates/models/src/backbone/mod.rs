//! Backbones: from an image to features at named stages.

mod efficientnet_lite;
mod inverted_residual;
mod mobilenetv2;
mod mobilenetv3;
mod resnet;
mod squeeze_excite;

use candle_core::Tensor;
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};

pub use efficientnet_lite::EfficientNetLite0;
pub use mobilenetv2::MobileNetV2;
pub use mobilenetv3::MobileNetV3Large;
pub(crate) use resnet::scaled;
pub use resnet::{ResNet, ResNetConfig, ResNetDepth, Stem};

use crate::{EncoderDecoderConfig, Error, Feature, Mode, Result};

/// The name of a backbone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Architecture {
    /// ResNet-18.
    #[serde(rename = "resnet18")]
    ResNet18,
    /// ResNet-34.
    #[serde(rename = "resnet34")]
    ResNet34,
    /// ResNet-50.
    #[serde(rename = "resnet50")]
    ResNet50,
    /// ResNet-101.
    #[serde(rename = "resnet101")]
    ResNet101,
    /// MobileNetV2.
    #[serde(rename = "mobilenetv2")]
    MobileNetV2,
    /// MobileNetV3-Large.
    #[serde(rename = "mobilenetv3_large")]
    MobileNetV3Large,
    /// EfficientNet-Lite0.
    #[serde(rename = "efficientnet_lite0")]
    EfficientNetLite0,
}

/// What all backbones but ResNets can be told.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BackboneConfig {
    /// Input pixels per position of the last stage: 8, 16 or 32.
    pub output_stride: usize,
    /// All channel counts are multiplied by this, rounded as the paper rounds; above 0.
    pub width: f64,
}

/// The backbone that a network's settings name, on the parameters of a builder.
///
/// # Errors
/// A setting out of its range; a parameter of another shape.
pub fn backbone(settings: &EncoderDecoderConfig, vb: VarBuilder) -> Result<Box<dyn Backbone>> {
    let &EncoderDecoderConfig { backbone, output_stride, width, stem, .. } = settings;
    let config = BackboneConfig { output_stride, width };
    let depth = match backbone {
        Architecture::ResNet18 => ResNetDepth::ResNet18,
        Architecture::ResNet34 => ResNetDepth::ResNet34,
        Architecture::ResNet50 => ResNetDepth::ResNet50,
        Architecture::ResNet101 => ResNetDepth::ResNet101,
        _ if stem.is_some() => return Err(Error::config("stem", "absent for a backbone that is no ResNet", "a stem")),
        Architecture::MobileNetV2 => return Ok(Box::new(MobileNetV2::new(&config, vb)?)),
        Architecture::MobileNetV3Large => return Ok(Box::new(MobileNetV3Large::new(&config, vb)?)),
        Architecture::EfficientNetLite0 => return Ok(Box::new(EfficientNetLite0::new(&config, vb)?)),
    };
    let config = ResNetConfig { depth, stem: stem.unwrap_or(Stem::Deep), output_stride, width };
    Ok(Box::new(ResNet::new(&config, vb)?))
}

/// A network that turns images into features of falling resolution.
pub trait Backbone: Send + Sync {
    /// `[N,3,H,W]` → the features `stage1` … `stage4` (strides 4, 8, 16, 32 or the output stride) in order, of [`Backbone::out_channels`] channels at
    /// [`Backbone::strides`]; a size that a stride does not divide is rounded up.
    ///
    /// # Errors
    /// A shape or element type that does not fit.
    fn forward(&self, images: &Tensor, mode: Mode) -> Result<Vec<Feature>>;

    /// Channels of each feature.
    fn out_channels(&self) -> &[usize];

    /// Input pixels per position of each feature.
    fn strides(&self) -> &[usize];

    /// Which feature a decoder takes for detail: the first at stride 8.
    fn low_level(&self) -> usize {
        self.strides().iter().position(|&stride| stride == 8).unwrap_or_default()
    }

    /// Which feature an auxiliary head stands on: the last but one.
    fn aux_stage(&self) -> usize {
        self.strides().len().saturating_sub(2)
    }
}

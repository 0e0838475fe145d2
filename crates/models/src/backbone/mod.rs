//! Backbones: from an image to features at named stages.

mod resnet;

use candle_core::Tensor;

pub(crate) use resnet::scaled;
pub use resnet::{ResNet, ResNetConfig, ResNetDepth, Stem};

use crate::{Feature, Mode, Result};

/// A network that turns images into features of falling resolution.
pub trait Backbone: Send + Sync {
    /// `[N,3,H,W]` → the features `stage1`, `stage2`, … in order, of [`Backbone::out_channels`] channels at
    /// [`Backbone::strides`]; a size that a stride does not divide is rounded up.
    ///
    /// # Errors
    /// A shape or element type that does not fit.
    fn forward(&self, images: &Tensor, mode: Mode) -> Result<Vec<Feature>>;

    /// Channels of each feature.
    fn out_channels(&self) -> &[usize];

    /// Input pixels per position of each feature.
    fn strides(&self) -> &[usize];
}

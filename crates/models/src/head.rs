//! Heads: from a feature to logits.

use candle_core::Tensor;
use candle_nn::VarBuilder;

use crate::decoder::Reduction;
use crate::layers::{Conv2d, Conv2dConfig};
use crate::{Mode, Result};

/// A 1×1 convolution with bias to one channel per class.
#[derive(Debug)]
pub struct Classifier {
    conv: Conv2d,
}

impl Classifier {
    /// Parameters `weight` and `bias`.
    ///
    /// # Errors
    /// A parameter of another shape.
    pub fn new(in_channels: usize, num_classes: usize, vb: VarBuilder) -> Result<Self> {
        Ok(Self { conv: Conv2d::new(Conv2dConfig::same(in_channels, num_classes, 1).bias(), vb)? })
    }

    /// `[N,C,H,W]` → logits `[N,classes,H,W]`.
    ///
    /// # Errors
    /// Those of the convolution.
    pub fn forward(&self, feature: &Tensor) -> Result<Tensor> {
        self.conv.forward(feature)
    }
}

/// The head that helps a middle stage to learn: 3×3 convolution, normalisation, ReLU, dropout, 1×1 convolution.
///
/// Source: Zhao et al., Pyramid Scene Parsing Network, CVPR 2017, section 3.3; channels as the main head's.
#[derive(Debug)]
pub struct AuxHead {
    reduction: Reduction,
    classify: Classifier,
}

impl AuxHead {
    /// Parameters `conv`, `bn` and `classifier`.
    ///
    /// # Errors
    /// No channels, a dropout outside [0, 1); a parameter of another shape.
    pub fn new(in_channels: usize, channels: usize, num_classes: usize, dropout: f64, vb: VarBuilder) -> Result<Self> {
        let classify = Classifier::new(channels, num_classes, vb.pp("classifier"))?;
        Ok(Self { reduction: Reduction::new(in_channels, channels, dropout, vb)?, classify })
    }

    /// `[N,C,H,W]` → logits `[N,classes,H,W]`.
    ///
    /// # Errors
    /// Those of the layers.
    pub fn forward(&self, feature: &Tensor, mode: Mode) -> Result<Tensor> {
        self.classify.forward(&self.reduction.reduce(feature, mode)?)
    }
}

//! Pyramid pooling, the decoder of PSPNet.
//!
//! Source: Zhao et al., Pyramid Scene Parsing Network, CVPR 2017, fig. 3 and section 3.2. The channel counts are those
//! of the published distillation codes, not of the paper: each pyramid branch has as many channels as the result (the
//! paper has a quarter of the input). With them, deep stem and 19 classes, PSPNet-ResNet-101 has 65.71 M parameters
//! (70.44 M with the auxiliary head) at 512 head channels, PSPNet-ResNet-18 12.77 M (13.07 M) at 128.
//!
//! Against other forms of the module: those codes put the feature after the branches, here it comes first, and the
//! SKD and IFVD codes have a leaky ReLU of slope 0.01 after their fused normalisation, here it is a ReLU;
//! the CIRKD code has a quarter of the input channels in each branch, the feature first; segmentation_models_pytorch
//! has a quarter too, the feature last, and no normalisation after the 1×1 bin.
//!
//! Logits, all gradients and running statistics agree with PyTorch in f64 (`tests/reference/networks.py`).

use candle_nn::VarBuilder;
use dsd_ops::Activation;

use crate::decoder::{Decoder, deepest};
use crate::layers::{Conv2dConfig, ConvBn, Dropout2d};
use crate::{Error, Feature, Mode, Result};

/// Bins of the pyramid along each axis.
pub const PYRAMID_BINS: [usize; 4] = [1, 2, 3, 6];

/// Settings of [`PyramidPooling`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PyramidPoolingConfig {
    /// Channels of the last feature of the backbone.
    pub in_channels: usize,
    /// Channels of each branch and of the result.
    pub head_channels: usize,
    /// Probability with which a channel of the result is dropped while training.
    pub dropout: f64,
}

/// Averages of the last feature over 1, 2², 3² and 6² bins, each reduced by a 1×1 convolution and resized back, beside
/// the feature itself; a 3×3 convolution merges them.
#[derive(Debug)]
pub struct PyramidPooling {
    branches: Vec<(usize, ConvBn)>,
    merge: ConvBn,
    dropout: Dropout2d,
    head_channels: usize,
}

impl PyramidPooling {
    /// The decoder whose parameters `vb` holds: `stages.0` … `stages.3` and `bottleneck`.
    ///
    /// # Errors
    /// A setting out of its range; a parameter of another shape.
    pub fn new(config: &PyramidPoolingConfig, vb: VarBuilder) -> Result<Self> {
        let &PyramidPoolingConfig { in_channels, head_channels, dropout } = config;
        if head_channels == 0 {
            return Err(Error::config("head_channels", "at least 1", head_channels));
        }
        let branches = PYRAMID_BINS.into_iter().enumerate().map(|(index, bins)| {
            let vb = vb.pp(format!("stages.{index}"));
            let layer = Conv2dConfig::same(in_channels, head_channels, 1);
            Ok((bins, ConvBn::new(layer, Activation::Relu, vb.pp("conv"), vb.pp("bn"))?))
        });
        let branches = branches.collect::<Result<_>>()?;
        let vb = vb.pp("bottleneck");
        let merged = in_channels + PYRAMID_BINS.len() * head_channels;
        let layer = Conv2dConfig::same(merged, head_channels, 3);
        let merge = ConvBn::new(layer, Activation::Relu, vb.pp("conv"), vb.pp("bn"))?;
        Ok(Self { branches, merge, dropout: Dropout2d::new(dropout, &vb)?, head_channels })
    }
}

impl Decoder for PyramidPooling {
    fn forward(&self, features: &[Feature], mode: Mode) -> Result<Feature> {
        let Feature { stride, tensor, .. } = deepest(features)?;
        let (_, _, height, width) = dsd_ops::check::nchw("pyramid pooling", "feature", tensor)?;
        let mut parts = vec![tensor.clone()];
        for (bins, layer) in &self.branches {
            let pooled = dsd_ops::adaptive_avg_pool2d(tensor, [*bins; 2])?; // [N,C,bins,bins]
            let reduced = layer.forward(&pooled, mode)?; // [N,head,bins,bins]
            parts.push(dsd_ops::resize_bilinear(&reduced, [height, width], true)?);
        }
        let merged = self.merge.forward(&dsd_ops::concat(&parts, 1)?, mode)?; // [N,head,H,W]
        Ok(Feature::new("head", *stride, self.dropout.forward(&merged, mode)?))
    }

    fn out_channels(&self) -> usize {
        self.head_channels
    }
}

//! Lite reduced atrous spatial pyramid pooling, the decoder of MobileNetV3.
//!
//! Source: Howard et al., Searching for MobileNetV3, ICCV 2019, section 6.4 and fig. 10, in torchvision's form
//! (`LRASPPHead`): the gate sees the whole image instead of windows of 49×49. The second classifier of that figure, on
//! the feature at stride 8, is [`crate::EncoderDecoder::with_low_level`]. Torchvision's head has no dropout; here it has
//! the one in the settings. Its parameters, below `classifier.`, are these:
//!
//! | torchvision | here |
//! |---|---|
//! | `cbr.0`, `cbr.1` | `reduce.conv`, `reduce.bn` |
//! | `scale.1` | `scale` |
//! | `low_classifier`, `high_classifier` | `low_classifier` and `classifier`, not part of the decoder |

use candle_nn::VarBuilder;
use dsd_ops::Activation;

use crate::decoder::{Decoder, deepest};
use crate::layers::{Conv2d, Conv2dConfig, ConvBn, Dropout2d};
use crate::{Error, Feature, Mode, Result};

/// Settings of [`LrAspp`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LrAsppConfig {
    /// Channels of the last feature of the backbone.
    pub in_channels: usize,
    /// Channels of the result.
    pub head_channels: usize,
    /// The feature of the backbone to whose size the result is brought, counted from 0.
    pub low_level: usize,
    /// Probability with which a channel of the result is dropped while training.
    pub dropout: f64,
}

/// The last feature reduced by a 1×1 convolution, each channel scaled by a gate that sees the whole image, at the size
/// of a feature with more detail.
#[derive(Debug)]
pub struct LrAspp {
    reduce: ConvBn,
    scale: Conv2d,
    dropout: Dropout2d,
    low_level: usize,
    head_channels: usize,
}

impl LrAspp {
    /// The decoder whose parameters `vb` holds: `reduce` and `scale`.
    ///
    /// # Errors
    /// A setting out of its range; a parameter of another shape.
    pub fn new(config: &LrAsppConfig, vb: VarBuilder) -> Result<Self> {
        let &LrAsppConfig { in_channels, head_channels, low_level, dropout } = config;
        if head_channels == 0 {
            return Err(Error::config("head_channels", "at least 1", head_channels));
        }
        let pointwise = Conv2dConfig::same(in_channels, head_channels, 1);
        let reduce = vb.pp("reduce");
        Ok(Self {
            dropout: Dropout2d::new(dropout, &reduce)?,
            reduce: ConvBn::new(pointwise, Activation::Relu, reduce.pp("conv"), reduce.pp("bn"))?,
            scale: Conv2d::new(pointwise, vb.pp("scale"))?,
            low_level,
            head_channels,
        })
    }
}

impl Decoder for LrAspp {
    fn forward(&self, features: &[Feature], mode: Mode) -> Result<Feature> {
        let high = &deepest(features)?.tensor;
        let Some(Feature { stride, tensor: low, .. }) = features.get(self.low_level) else {
            return Err(Error::config("low-level stage", format!("below {}", features.len()), self.low_level));
        };
        let (_, _, height, width) = dsd_ops::check::nchw("lite atrous pooling", "low-level feature", low)?;
        let pooled = dsd_ops::adaptive_avg_pool2d(high, [1; 2])?; // [N,in,1,1]
        let gate = dsd_ops::sigmoid(&self.scale.forward(&pooled)?)?; // [N,head,1,1]
        let gated = dsd_ops::scale_channels(&self.reduce.forward(high, mode)?, &gate)?; // [N,head,h,w]
        let head = dsd_ops::resize_bilinear(&gated, [height, width], false)?; // [N,head,H,W]
        Ok(Feature::new("head", *stride, self.dropout.forward(&head, mode)?))
    }

    fn out_channels(&self) -> usize {
        self.head_channels
    }
}

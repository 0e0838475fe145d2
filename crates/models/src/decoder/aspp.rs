//! Atrous spatial pyramid pooling, the decoder of DeepLabV3.
//!
//! Source: Chen et al., Rethinking Atrous Convolution for Semantic Image Segmentation, arXiv 1706.05587, fig. 5 and
//! section 3.3, in torchvision's form (`DeepLabHead`). The rates are the paper's: 6, 12, 18 at output stride 16, twice
//! that at 8; at 32, which the paper does not have, half of it. (Torchvision's DeepLabV3 on MobileNetV3 has 12, 24, 36
//! at output stride 16.)
//!
//! Differs from torchvision in dropout alone: it drops single values with probability 0.5, here whole channels are
//! dropped with the probability in the settings. Its parameters, below `classifier.`, are these:
//!
//! | torchvision | here |
//! |---|---|
//! | `0.convs.0` … `0.convs.3`, `.0` and `.1` of each | `branches.0` … `branches.3`, `conv` and `bn` of each |
//! | `0.convs.4.1`, `0.convs.4.2` | `pooling.conv`, `pooling.bn` |
//! | `0.project.0`, `0.project.1` | `project.conv`, `project.bn` |
//! | `1`, `2` | `bottleneck.conv`, `bottleneck.bn` |
//! | `4` | the classifier, not part of the decoder |

use candle_nn::VarBuilder;
use dsd_ops::Activation;

use crate::decoder::{Decoder, deepest};
use crate::layers::{Conv2dConfig, ConvBn, Dropout2d};
use crate::{Error, Feature, Mode, Result};

/// Dilations of the three 3×3 convolutions at output stride 16.
const RATES: [usize; 3] = [6, 12, 18];
/// The output stride at which [`RATES`] hold.
const RATES_STRIDE: usize = 16;

/// Settings of [`Aspp`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AsppConfig {
    /// Channels of the last feature of the backbone.
    pub in_channels: usize,
    /// Channels of each branch and of the result.
    pub head_channels: usize,
    /// Of the backbone: the rates are 12, 24, 36 at 8, 6, 12, 18 at 16 and 3, 6, 9 at 32.
    pub output_stride: usize,
    /// Probability with which a channel of the merged branches is dropped while training.
    pub dropout: f64,
}

/// The last feature at five ranges side by side (one position, three dilated neighbourhoods, the whole image), merged
/// by a 1×1 and a 3×3 convolution.
#[derive(Debug)]
pub struct Aspp {
    branches: Vec<ConvBn>,
    pooling: ConvBn,
    project: ConvBn,
    dropout: Dropout2d,
    bottleneck: ConvBn,
    head_channels: usize,
}

impl Aspp {
    /// The decoder whose parameters `vb` holds: `branches.0` … `branches.3`, `pooling`, `project`, `bottleneck`.
    ///
    /// # Errors
    /// A setting out of its range; a parameter of another shape.
    pub fn new(config: &AsppConfig, vb: VarBuilder) -> Result<Self> {
        let &AsppConfig { in_channels, head_channels, output_stride, dropout } = config;
        if head_channels == 0 {
            return Err(Error::config("head_channels", "at least 1", head_channels));
        }
        if ![8, 16, 32].contains(&output_stride) {
            return Err(Error::config("output_stride", "8, 16 or 32", output_stride));
        }
        let layer = |config, vb: VarBuilder| ConvBn::new(config, Activation::Relu, vb.pp("conv"), vb.pp("bn"));
        let pointwise = Conv2dConfig::same(in_channels, head_channels, 1);
        let dilated = RATES.map(|rate| {
            Conv2dConfig::same(in_channels, head_channels, 3).dilation(rate * RATES_STRIDE / output_stride)
        });
        let branches = std::iter::once(pointwise).chain(dilated).enumerate();
        let branches = branches.map(|(index, config)| layer(config, vb.pp(format!("branches.{index}"))));
        let branches: Vec<ConvBn> = branches.collect::<Result<_>>()?;
        let merged = (branches.len() + 1) * head_channels;
        let project = vb.pp("project");
        Ok(Self {
            branches,
            pooling: layer(pointwise, vb.pp("pooling"))?,
            dropout: Dropout2d::new(dropout, &project)?,
            project: layer(Conv2dConfig::same(merged, head_channels, 1), project)?,
            bottleneck: layer(Conv2dConfig::same(head_channels, head_channels, 3), vb.pp("bottleneck"))?,
            head_channels,
        })
    }
}

impl Decoder for Aspp {
    fn forward(&self, features: &[Feature], mode: Mode) -> Result<Feature> {
        let Feature { stride, tensor, .. } = deepest(features)?;
        let (_, _, height, width) = dsd_ops::check::nchw("atrous pooling", "feature", tensor)?;
        let mut parts = Vec::with_capacity(self.branches.len() + 1);
        for branch in &self.branches {
            parts.push(branch.forward(tensor, mode)?); // [N,head,H,W]
        }
        let pooled = self.pooling.forward(&dsd_ops::adaptive_avg_pool2d(tensor, [1; 2])?, mode)?; // [N,head,1,1]
        // One value per channel: whichever way it is resized, it is repeated.
        parts.push(dsd_ops::resize_bilinear(&pooled, [height, width], false)?);
        let projected = self.project.forward(&dsd_ops::concat(&parts, 1)?, mode)?; // [N,head,H,W]
        let head = self.bottleneck.forward(&self.dropout.forward(&projected, mode)?, mode)?; // [N,head,H,W]
        Ok(Feature::new("head", *stride, head))
    }

    fn out_channels(&self) -> usize {
        self.head_channels
    }
}

//! MobileNetV2, dilated where a decoder needs resolution.
//!
//! Source: Sandler et al., MobileNetV2, CVPR 2018, table 2. Parameter names are those of torchvision's `mobilenet_v2`
//! (`features.N.conv…`) without its last convolution, `features.18`, and classifier.
//!
//! The first block that keeps its resolution has the dilation of the blocks before it, all later ones have the new one.
//! Features, all gradients and running statistics agree with torchvision in f64, dilated ones with torchvision's network
//! whose strides and dilations were changed by hand (`tests/reference/mobile.py`).
//!
//! Initial weights are torchvision's: Kaiming normal by fan-out, groups not regarded.

use candle_core::Tensor;
use candle_nn::VarBuilder;
use dsd_ops::Activation;

use crate::backbone::inverted_residual::{BlockPaths, BlockShape, Style, Trunk, divisible};
use crate::backbone::{Backbone, BackboneConfig};
use crate::init::KAIMING_FAN_OUT;
use crate::{Feature, Mode, Result};

/// A stage: expansion, channels, blocks, stride of the first block, and the feature after it.
type Stage = (usize, usize, usize, usize, Option<&'static str>);

/// The paper's table.
const STAGES: [Stage; 7] = [
    (1, 16, 1, 1, None),
    (6, 24, 2, 2, Some("stage1")),
    (6, 32, 3, 2, Some("stage2")),
    (6, 64, 4, 2, None),
    (6, 96, 3, 1, Some("stage3")),
    (6, 160, 3, 2, None),
    (6, 320, 1, 1, Some("stage4")),
];
/// Channels of the stem at width 1.
const STEM_CHANNELS: usize = 32;
const STYLE: Style = Style {
    eps: 1e-5,
    momentum: 0.1,
    tensorflow_same: false,
    depthwise_weights: KAIMING_FAN_OUT,
    dilates_at_once: false,
};

/// MobileNetV2 without its classifier and the convolution before it. Features `stage1` … `stage4` of 24, 32, 96 and 320
/// channels at width 1.
#[derive(Debug)]
pub struct MobileNetV2 {
    trunk: Trunk,
}

impl MobileNetV2 {
    /// The network whose parameters `vb` holds.
    ///
    /// # Errors
    /// A setting out of its range; a parameter of another shape.
    pub fn new(config: &BackboneConfig, vb: VarBuilder) -> Result<Self> {
        let vb = vb.pp("features");
        let stem = [vb.pp("0.0"), vb.pp("0.1")];
        let channels = divisible(STEM_CHANNELS, config.width)?;
        let mut trunk = Trunk::new(config, STYLE, channels, Activation::Relu6, stem)?;
        let mut number = 1;
        for (expansion, channels, count, stride, feature) in STAGES {
            for position in 0..count {
                let shape = BlockShape {
                    kernel: 3,
                    stride: if position == 0 { stride } else { 1 },
                    expand: expansion != 1,
                    expanded: trunk.channels() * expansion,
                    squeeze: None,
                    out_channels: divisible(channels, config.width)?,
                    activation: Activation::Relu6,
                };
                trunk.block(&shape, paths(&vb.pp(number).pp("conv"), shape.expand))?;
                number += 1;
            }
            if let Some(name) = feature {
                trunk.exit(name);
            }
        }
        Ok(Self { trunk })
    }
}

/// torchvision counts the layers of a block; the last convolution and its normalisation are two of them.
fn paths<'a>(vb: &VarBuilder<'a>, expand: bool) -> BlockPaths<'a> {
    let depthwise = usize::from(expand);
    let pair = |index: usize| [vb.pp(index).pp(0), vb.pp(index).pp(1)];
    BlockPaths {
        expand: pair(0),
        depthwise: pair(depthwise),
        squeeze: vb.pp("squeeze"),
        project: [vb.pp(depthwise + 1), vb.pp(depthwise + 2)],
    }
}

impl Backbone for MobileNetV2 {
    fn forward(&self, images: &Tensor, mode: Mode) -> Result<Vec<Feature>> {
        self.trunk.forward(images, mode)
    }

    fn out_channels(&self) -> &[usize] {
        &self.trunk.out_channels
    }

    fn strides(&self) -> &[usize] {
        &self.trunk.strides
    }
}

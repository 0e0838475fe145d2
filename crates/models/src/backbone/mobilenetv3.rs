//! MobileNetV3-Large, dilated where a decoder needs resolution.
//!
//! Source: Howard et al., Searching for MobileNetV3, ICCV 2019, table 1. Parameter names are those of torchvision's
//! `mobilenet_v3_large` (`features.N.block…`) without its classifier. As there, the number added to variances is 1e-3
//! and the part of a batch in the running statistics 0.01.
//!
//! Dilation is torchvision's: a block that keeps its resolution has the new dilation at once. Output stride 16 is its
//! dilated form, in which the last three blocks have dilation 2 (its LR-ASPP, DeepLabV3). Output stride 8, which
//! torchvision does not have, is the same rule one stage earlier: dilation 2 in `features.7` to `features.12`, 4 in
//! `features.13` to `features.15`. Features, all gradients and running statistics agree with torchvision in f64
//! (`tests/reference/mobile.py`).
//!
//! Initial weights are torchvision's: Kaiming normal by fan-out, groups not regarded; biases 0.

use candle_core::Tensor;
use candle_nn::VarBuilder;
use dsd_ops::Activation::{self, HardSwish, Relu};

use crate::backbone::inverted_residual::{BlockPaths, BlockShape, Style, Trunk, divisible};
use crate::backbone::{Backbone, BackboneConfig};
use crate::init::KAIMING_FAN_OUT;
use crate::{Feature, Mode, Result};

/// A block: kernel, expanded channels, channels, squeeze-and-excitation, activation, stride, and the feature after it.
type Block = (usize, usize, usize, bool, Activation, usize, Option<&'static str>);

/// The paper's table; `stage2_first` is what LR-ASPP takes for detail.
const BLOCKS: [Block; 15] = [
    (3, 16, 16, false, Relu, 1, None),
    (3, 64, 24, false, Relu, 2, None),
    (3, 72, 24, false, Relu, 1, Some("stage1")),
    (5, 72, 40, true, Relu, 2, Some("stage2_first")),
    (5, 120, 40, true, Relu, 1, None),
    (5, 120, 40, true, Relu, 1, Some("stage2")),
    (3, 240, 80, false, HardSwish, 2, None),
    (3, 200, 80, false, HardSwish, 1, None),
    (3, 184, 80, false, HardSwish, 1, None),
    (3, 184, 80, false, HardSwish, 1, None),
    (3, 480, 112, true, HardSwish, 1, None),
    (3, 672, 112, true, HardSwish, 1, Some("stage3")),
    (5, 672, 160, true, HardSwish, 2, None),
    (5, 960, 160, true, HardSwish, 1, None),
    (5, 960, 160, true, HardSwish, 1, None),
];
/// Channels of the stem at width 1.
const STEM_CHANNELS: usize = 16;
/// Channels of the last convolution over those that it takes.
const LAST_EXPANSION: usize = 6;
/// Channels of a block over the inner ones of its squeeze-and-excitation.
const SQUEEZE: usize = 4;
const STYLE: Style = Style {
    eps: 1e-3,
    momentum: 0.01,
    tensorflow_same: false,
    depthwise_weights: KAIMING_FAN_OUT,
    dilates_at_once: true,
};

/// MobileNetV3-Large without its classifier. Features `stage1`, `stage2_first`, `stage2`, `stage3` and `stage4` of 24, 40,
/// 40, 112 and 960 channels at width 1; `stage4` is what the last 1×1 convolution gives.
#[derive(Debug)]
pub struct MobileNetV3Large {
    trunk: Trunk,
}

impl MobileNetV3Large {
    /// The network whose parameters `vb` holds.
    ///
    /// # Errors
    /// A setting out of its range; a parameter of another shape.
    pub fn new(config: &BackboneConfig, vb: VarBuilder) -> Result<Self> {
        let vb = vb.pp("features");
        let stem = [vb.pp("0.0"), vb.pp("0.1")];
        let channels = divisible(STEM_CHANNELS, config.width)?;
        let mut trunk = Trunk::new(config, STYLE, channels, HardSwish, stem)?;
        for (index, (kernel, expanded, channels, squeeze, activation, stride, feature)) in
            BLOCKS.into_iter().enumerate()
        {
            let expanded = divisible(expanded, config.width)?;
            let shape = BlockShape {
                kernel,
                stride,
                expand: expanded != trunk.channels(),
                expanded,
                squeeze: if squeeze { Some(divisible(expanded / SQUEEZE, 1.0)?) } else { None },
                out_channels: divisible(channels, config.width)?,
                activation,
            };
            trunk.block(&shape, paths(&vb.pp(index + 1).pp("block"), &shape))?;
            if let Some(name) = feature {
                trunk.exit(name);
            }
        }
        let last = vb.pp(BLOCKS.len() + 1);
        trunk.last(trunk.channels() * LAST_EXPANSION, HardSwish, [last.pp(0), last.pp(1)])?;
        trunk.exit("stage4");
        Ok(Self { trunk })
    }
}

/// torchvision counts those layers of a block that there are.
fn paths<'a>(vb: &VarBuilder<'a>, shape: &BlockShape) -> BlockPaths<'a> {
    let depthwise = usize::from(shape.expand);
    let project = depthwise + 1 + usize::from(shape.squeeze.is_some());
    let pair = |index: usize| [vb.pp(index).pp(0), vb.pp(index).pp(1)];
    BlockPaths { expand: pair(0), depthwise: pair(depthwise), squeeze: vb.pp(depthwise + 1), project: pair(project) }
}

impl Backbone for MobileNetV3Large {
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

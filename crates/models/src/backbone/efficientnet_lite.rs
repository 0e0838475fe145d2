//! EfficientNet-Lite0, dilated where a decoder needs resolution.
//!
//! Sources: Tan and Le, EfficientNet, ICML 2019, table 1; the Lite form (no squeeze-and-excitation, ReLU6, stem of 32
//! channels at every width) is that of the TensorFlow repository `tpu/models/official/efficientnet/lite`. Parameter
//! names are those of timm's `tf_efficientnet_lite0` without `conv_head`, `bn2` and `classifier`. Padding is
//! TensorFlow's "SAME", the number added to variances 1e-3.
//!
//! Dilation is timm's: the first block that keeps its resolution has the dilation of the blocks before it, all later
//! ones have the new one. Features, all gradients and running statistics agree with timm in f64
//! (`tests/reference/mobile.py`).
//!
//! Initial weights are timm's: normal with variance 2 / fan-out, where groups count, so that depthwise ones have
//! 2 / k².

use candle_core::Tensor;
use candle_nn::init::{FanInOut, NonLinearity, NormalOrUniform};
use candle_nn::{Init, VarBuilder};
use dsd_ops::Activation;

use crate::backbone::inverted_residual::{BlockPaths, BlockShape, Style, Trunk, divisible};
use crate::backbone::{Backbone, BackboneConfig};
use crate::{Feature, Mode, Result};

/// A stage: blocks, kernel, stride of the first block, expansion, channels, and the feature after it.
type Stage = (usize, usize, usize, usize, usize, Option<&'static str>);

/// EfficientNet-B0's stages 2 to 8.
const STAGES: [Stage; 7] = [
    (1, 3, 1, 1, 16, None),
    (2, 3, 2, 6, 24, Some("stage1")),
    (2, 5, 2, 6, 40, Some("stage2")),
    (3, 3, 2, 6, 80, None),
    (3, 5, 1, 6, 112, Some("stage3")),
    (4, 5, 2, 6, 192, None),
    (1, 3, 1, 6, 320, Some("stage4")),
];
/// Channels of the stem at every width.
const STEM_CHANNELS: usize = 32;
const STYLE: Style = Style {
    eps: 1e-3,
    momentum: 0.1,
    tensorflow_same: true,
    // The fan-out of one group of a depthwise convolution is its fan-in.
    depthwise_weights: Init::Kaiming {
        dist: NormalOrUniform::Normal,
        fan: FanInOut::FanIn,
        non_linearity: NonLinearity::ReLU,
    },
    dilates_at_once: false,
};

/// EfficientNet-Lite0 without its classifier and the convolution before it. Features `stage1` … `stage4` of 24, 40, 112
/// and 320 channels at width 1.
#[derive(Debug)]
pub struct EfficientNetLite0 {
    trunk: Trunk,
}

impl EfficientNetLite0 {
    /// The network whose parameters `vb` holds.
    ///
    /// # Errors
    /// A setting out of its range; a parameter of another shape.
    pub fn new(config: &BackboneConfig, vb: VarBuilder) -> Result<Self> {
        let stem = [vb.pp("conv_stem"), vb.pp("bn1")];
        let mut trunk = Trunk::new(config, STYLE, STEM_CHANNELS, Activation::Relu6, stem)?;
        for (stage, (count, kernel, stride, expansion, channels, feature)) in STAGES.into_iter().enumerate() {
            for position in 0..count {
                let shape = BlockShape {
                    kernel,
                    stride: if position == 0 { stride } else { 1 },
                    expand: expansion != 1,
                    expanded: trunk.channels() * expansion,
                    squeeze: None,
                    out_channels: divisible(channels, config.width)?,
                    activation: Activation::Relu6,
                };
                trunk.block(&shape, paths(&vb.pp(format!("blocks.{stage}.{position}")), shape.expand))?;
            }
            if let Some(name) = feature {
                trunk.exit(name);
            }
        }
        Ok(Self { trunk })
    }

    /// The results of the 16 blocks in order, for comparison with other implementations block by block.
    ///
    /// # Errors
    /// A shape or element type that does not fit.
    pub fn block_outputs(&self, images: &Tensor, mode: Mode) -> Result<Vec<Tensor>> {
        self.trunk.block_outputs(images, mode)
    }
}

/// timm counts the normalisations of a block and calls a last convolution `conv_pwl` only where there was one before.
fn paths<'a>(vb: &VarBuilder<'a>, expand: bool) -> BlockPaths<'a> {
    let layer = |conv: &str, norm: &str| [vb.pp(conv), vb.pp(norm)];
    let (depthwise, project) = match expand {
        true => (layer("conv_dw", "bn2"), layer("conv_pwl", "bn3")),
        false => (layer("conv_dw", "bn1"), layer("conv_pw", "bn2")),
    };
    BlockPaths { expand: layer("conv_pw", "bn1"), depthwise, squeeze: vb.pp("se"), project }
}

impl Backbone for EfficientNetLite0 {
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

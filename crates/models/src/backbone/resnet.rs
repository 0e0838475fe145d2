//! ResNet, dilated where a decoder needs resolution.
//!
//! Sources: He et al., Deep Residual Learning for Image Recognition, CVPR 2016, table 1 (stride in the 3×3 convolution
//! of a bottleneck, as torchvision has it); Yu et al., Dilated Residual Networks, CVPR 2017. Parameter names are those
//! of torchvision (`layer1.0.conv1.weight`); the deep stem, which torchvision lacks, is `conv1`, `bn1` … `conv3`,
//! `bn3`.
//!
//! Logits, all gradients and running statistics agree with PyTorch in f64 (`tests/reference/networks.py`).
//!
//! A stage that keeps its resolution multiplies the dilation instead: its first 3×3 convolution, the one that would
//! have had the stride, keeps the dilation of the stage before, all later ones have the new one. So every tap looks at
//! the positions at which it would have looked with the stride, in bottlenecks and basic blocks alike (torchvision
//! states the rule for bottlenecks only; CIRKD's code uses it for both, SKD's and IFVD's dilate a stage from its first
//! convolution on).

use std::sync::Arc;

use candle_core::Tensor;
use candle_nn::VarBuilder;
use dsd_ops::{Activation, PoolOptions};
use serde::{Deserialize, Serialize};

use crate::backbone::Backbone;
use crate::blocks::{self, Block};
use crate::layers::{Conv2dConfig, ConvBn, add_relu};
use crate::{Error, Feature, Mode, Result};

/// Which ResNet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResNetDepth {
    /// Basic blocks 2, 2, 2, 2.
    ResNet18,
    /// Basic blocks 3, 4, 6, 3.
    ResNet34,
    /// Bottlenecks 3, 4, 6, 3.
    ResNet50,
    /// Bottlenecks 3, 4, 23, 3.
    ResNet101,
}

impl ResNetDepth {
    /// Blocks of each stage.
    fn blocks(self) -> [usize; 4] {
        match self {
            Self::ResNet18 => [2, 2, 2, 2],
            Self::ResNet34 | Self::ResNet50 => [3, 4, 6, 3],
            Self::ResNet101 => [3, 4, 23, 3],
        }
    }

    /// Output channels of a block over its inner ones: 4 for bottlenecks, 1 for basic blocks.
    fn expansion(self) -> usize {
        match self {
            Self::ResNet18 | Self::ResNet34 => 1,
            Self::ResNet50 | Self::ResNet101 => 4,
        }
    }
}

/// The layers before the first stage; each ends at stride 4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stem {
    /// One 7×7 convolution with stride 2 to 64 channels, 3×3 max pool with stride 2.
    Classic,
    /// Three 3×3 convolutions to 64, 64 and 128 channels, the first with stride 2, 3×3 max pool with stride 2.
    Deep,
}

/// Settings of a [`ResNet`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ResNetConfig {
    /// Which one.
    pub depth: ResNetDepth,
    /// Its first layers.
    pub stem: Stem,
    /// Input pixels per position of the last stage: 8, 16 or 32.
    pub output_stride: usize,
    /// All channel counts are multiplied by this and rounded; above 0.
    pub width: f64,
}

/// Inner channels of the stages at width 1.
const STAGE_CHANNELS: [usize; 4] = [64, 128, 256, 512];
/// Stride of the stages at output stride 32.
const STAGE_STRIDES: [usize; 4] = [1, 2, 2, 2];
/// Stride after the stem.
const STEM_STRIDE: usize = 4;

/// A channel count at this width: rounded, at least 1.
pub(crate) fn scaled(channels: usize, width: f64) -> Result<usize> {
    if !(width.is_finite() && width > 0.0 && width <= 16.0) {
        return Err(Error::config("width", "above 0 and at most 16", width));
    }
    Ok(((channels as f64 * width).round() as usize).max(1))
}

/// A dilated ResNet without its classifier. Features `stage1` … `stage4`.
#[derive(Debug)]
pub struct ResNet {
    stem: Vec<ConvBn>,
    stages: Vec<Vec<Arc<ResidualBlock>>>,
    out_channels: Vec<usize>,
    strides: Vec<usize>,
}

impl ResNet {
    /// The network whose parameters `vb` holds.
    ///
    /// # Errors
    /// A setting out of its range; a parameter of another shape.
    pub fn new(config: &ResNetConfig, vb: VarBuilder) -> Result<Self> {
        if ![8, 16, 32].contains(&config.output_stride) {
            return Err(Error::config("output_stride", "8, 16 or 32", config.output_stride));
        }
        let (stem, mut in_channels) = stem(config, &vb)?;
        let expansion = config.depth.expansion();
        let (mut stages, mut out_channels, mut strides) = (vec![], vec![], vec![]);
        let (mut total_stride, mut dilation) = (STEM_STRIDE, 1);
        for (index, count) in config.depth.blocks().into_iter().enumerate() {
            let inner = scaled(STAGE_CHANNELS[index], config.width)?;
            let first_dilation = dilation;
            let mut stride = STAGE_STRIDES[index];
            if total_stride * stride > config.output_stride {
                dilation *= stride;
                stride = 1;
            }
            total_stride *= stride;
            let vb = vb.pp(format!("layer{}", index + 1));
            let mut blocks = Vec::with_capacity(count);
            for position in 0..count {
                let first = position == 0;
                let shape = BlockShape {
                    in_channels,
                    inner,
                    out_channels: inner * expansion,
                    stride: if first { stride } else { 1 },
                    first_dilation: if first { first_dilation } else { dilation },
                    dilation,
                    // A later stage always changes its channels, but a small width may round the change away.
                    project: first && (index > 0 || in_channels != inner * expansion),
                };
                blocks.push(Arc::new(ResidualBlock::new(&shape, expansion > 1, vb.pp(position))?));
                in_channels = shape.out_channels;
            }
            stages.push(blocks);
            out_channels.push(in_channels);
            strides.push(total_stride);
        }
        Ok(Self { stem, stages, out_channels, strides })
    }
}

fn stem(config: &ResNetConfig, vb: &VarBuilder) -> Result<(Vec<ConvBn>, usize)> {
    let base = scaled(64, config.width)?;
    let layers = match config.stem {
        Stem::Classic => vec![Conv2dConfig::same(3, base, 7).stride(2)],
        Stem::Deep => {
            let wide = scaled(128, config.width)?;
            vec![
                Conv2dConfig::same(3, base, 3).stride(2),
                Conv2dConfig::same(base, base, 3),
                Conv2dConfig::same(base, wide, 3),
            ]
        }
    };
    let out_channels = layers.last().map_or(3, |layer| layer.out_channels);
    let stem = layers.into_iter().zip(1..).map(|(layer, number)| {
        let (conv, norm) = (vb.pp(format!("conv{number}")), vb.pp(format!("bn{number}")));
        ConvBn::new(layer.kaiming_fan_out(), Activation::Relu, conv, norm)
    });
    Ok((stem.collect::<Result<_>>()?, out_channels))
}

impl Backbone for ResNet {
    fn forward(&self, images: &Tensor, mode: Mode) -> Result<Vec<Feature>> {
        let mut x = images.clone();
        for layer in &self.stem {
            x = layer.forward(&x, mode)?; // [N,64 or 128,H/2,W/2]
        }
        let pool = PoolOptions { kernel: [3; 2], stride: [2; 2], padding: [1; 2], ceil_mode: false };
        x = dsd_ops::max_pool2d(&x, pool)?; // [N,64 or 128,H/4,W/4]
        let mut features = Vec::with_capacity(self.stages.len());
        for (index, (blocks, stride)) in self.stages.iter().zip(&self.strides).enumerate() {
            for block in blocks {
                x = blocks::run(block, &x, mode)?;
            }
            features.push(Feature::new(&format!("stage{}", index + 1), *stride, x.clone()));
        }
        Ok(features)
    }

    fn out_channels(&self) -> &[usize] {
        &self.out_channels
    }

    fn strides(&self) -> &[usize] {
        &self.strides
    }
}

struct BlockShape {
    in_channels: usize,
    inner: usize,
    out_channels: usize,
    stride: usize,
    first_dilation: usize,
    dilation: usize,
    project: bool,
}

/// A residual block: relu(residual(x) + shortcut(x)).
#[derive(Debug)]
struct ResidualBlock {
    residual: Vec<ConvBn>,
    shortcut: Option<ConvBn>,
}

impl ResidualBlock {
    fn new(shape: &BlockShape, bottleneck: bool, vb: VarBuilder) -> Result<Self> {
        let &BlockShape { in_channels, inner, out_channels, stride, first_dilation, dilation, project } = shape;
        let strided = |channels| Conv2dConfig::same(channels, inner, 3).stride(stride).dilation(first_dilation);
        let layers = if bottleneck {
            vec![Conv2dConfig::same(in_channels, inner, 1), strided(inner), Conv2dConfig::same(inner, out_channels, 1)]
        } else {
            vec![strided(in_channels), Conv2dConfig::same(inner, out_channels, 3).dilation(dilation)]
        };
        let last = layers.len();
        let residual = layers.into_iter().zip(1..).map(|(layer, number)| {
            let (conv, norm) = (vb.pp(format!("conv{number}")), vb.pp(format!("bn{number}")));
            let activation = if number == last { Activation::Identity } else { Activation::Relu };
            ConvBn::new(layer.kaiming_fan_out(), activation, conv, norm)
        });
        let residual = residual.collect::<Result<_>>()?;
        let shortcut = if project {
            let layer = Conv2dConfig::same(in_channels, out_channels, 1).stride(stride).kaiming_fan_out();
            Some(ConvBn::new(layer, Activation::Identity, vb.pp("downsample.0"), vb.pp("downsample.1"))?)
        } else {
            None
        };
        Ok(Self { residual, shortcut })
    }
}

impl Block for ResidualBlock {
    fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        let mut residual = x.clone();
        for layer in &self.residual {
            residual = layer.forward(&residual, mode)?;
        }
        let shortcut = match &self.shortcut {
            Some(layer) => layer.forward(x, mode)?,
            None => x.clone(),
        };
        add_relu(&residual, &shortcut)
    }
}

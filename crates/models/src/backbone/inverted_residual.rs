//! What the mobile networks are made of: a strided stem, inverted residual blocks, perhaps a 1×1 convolution at the end.
//!
//! Source of the block: Sandler et al., MobileNetV2, CVPR 2018, figure 3b: 1×1 convolution to more channels, depthwise
//! convolution, 1×1 convolution without activation to few channels, shortcut between the few.
//!
//! A block whose stride goes beyond the output stride keeps its resolution and multiplies the dilation; whether its own
//! depthwise convolution already has the new one is a matter of [`Style`]. Shortcuts are those of the network with all
//! its strides, so that the same weights stand for the same function at every output stride. No path is dropped at
//! random while training.

use std::sync::Arc;

use candle_core::Tensor;
use candle_nn::{Init, VarBuilder};
use dsd_ops::Activation;

use crate::backbone::BackboneConfig;
use crate::backbone::squeeze_excite::SqueezeExcite;
use crate::blocks::{self, Block};
use crate::layers::{Conv2dConfig, ConvBn};
use crate::{Error, Feature, Mode, Result};

/// Channel counts of mobile networks are multiples of this.
const CHANNEL_DIVISOR: usize = 8;

/// The multiple of 8 nearest to `channels · width`, at least 8, and one more where it would be below 90 % of that.
///
/// Source: `_make_divisible` of the TensorFlow MobileNets, which torchvision and timm have taken over.
pub(super) fn divisible(channels: usize, width: f64) -> Result<usize> {
    if !(width.is_finite() && width > 0.0 && width <= 16.0) {
        return Err(Error::config("width", "above 0 and at most 16", width));
    }
    let wanted = channels as f64 * width;
    let half = CHANNEL_DIVISOR as f64 / 2.0;
    let rounded = ((wanted + half) as usize / CHANNEL_DIVISOR * CHANNEL_DIVISOR).max(CHANNEL_DIVISOR);
    Ok(if (rounded as f64) < 0.9 * wanted { rounded + CHANNEL_DIVISOR } else { rounded })
}

/// What all layers of a network have in common.
#[derive(Clone, Copy, Debug)]
pub(super) struct Style {
    /// Added to a variance before its root.
    pub(super) eps: f64,
    /// The part of the batch in a new running statistic.
    pub(super) momentum: f64,
    /// TensorFlow's padding instead of an even one.
    pub(super) tensorflow_same: bool,
    /// Initial weights of depthwise convolutions; all others begin with Kaiming normal by fan-out.
    pub(super) depthwise_weights: Init,
    /// Whether the first block that keeps its resolution has the new dilation too, and not only those after it.
    pub(super) dilates_at_once: bool,
}

impl Style {
    fn layer(&self, layer: Conv2dConfig, activation: Activation, [conv, norm]: Paths) -> Result<ConvBn> {
        let layer = if self.tensorflow_same { layer.tensorflow_same() } else { layer };
        Ok(ConvBn::new(layer, activation, conv, norm)?.with_eps(self.eps).with_momentum(self.momentum))
    }
}

/// Where a convolution and its normalisation have their parameters.
pub(super) type Paths<'a> = [VarBuilder<'a>; 2];

/// Where the layers of a block have their parameters.
pub(super) struct BlockPaths<'a> {
    pub(super) expand: Paths<'a>,
    pub(super) depthwise: Paths<'a>,
    pub(super) squeeze: VarBuilder<'a>,
    pub(super) project: Paths<'a>,
}

/// A block, as the table of a paper has it.
#[derive(Clone, Copy, Debug)]
pub(super) struct BlockShape {
    /// Of the depthwise convolution.
    pub(super) kernel: usize,
    /// Of the depthwise convolution, in the network with output stride 32.
    pub(super) stride: usize,
    /// Whether there is a first convolution, to the expanded channels.
    pub(super) expand: bool,
    /// Channels of the depthwise convolution.
    pub(super) expanded: usize,
    /// Inner channels of squeeze-and-excitation, where there is one.
    pub(super) squeeze: Option<usize>,
    /// Channels that go out.
    pub(super) out_channels: usize,
    /// After the first two convolutions.
    pub(super) activation: Activation,
}

/// x or nothing, plus project(scale(depthwise(expand(x)))).
#[derive(Debug)]
struct InvertedResidual {
    expand: Option<ConvBn>,
    depthwise: ConvBn,
    squeeze: Option<SqueezeExcite>,
    project: ConvBn,
    residual: bool,
}

impl Block for InvertedResidual {
    fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        let mut y = match &self.expand {
            Some(layer) => layer.forward(x, mode)?, // [N,expanded,H,W]
            None => x.clone(),
        };
        y = self.depthwise.forward(&y, mode)?; // [N,expanded,H',W']
        if let Some(layer) = &self.squeeze {
            y = layer.forward(&y)?;
        }
        y = self.project.forward(&y, mode)?; // [N,out,H',W']
        Ok(if self.residual { dsd_ops::add(&y, x)? } else { y })
    }
}

/// A mobile network without its classifier, put together block by block.
#[derive(Debug)]
pub(super) struct Trunk {
    style: Style,
    output_stride: usize,
    stride: usize,
    dilation: usize,
    channels: usize,
    stem: ConvBn,
    blocks: Vec<Arc<InvertedResidual>>,
    last: Option<ConvBn>,
    exits: Vec<(usize, &'static str)>,
    pub(super) out_channels: Vec<usize>,
    pub(super) strides: Vec<usize>,
}

impl Trunk {
    /// The stem: a 3×3 convolution with stride 2.
    pub(super) fn new(
        config: &BackboneConfig,
        style: Style,
        channels: usize,
        activation: Activation,
        paths: Paths,
    ) -> Result<Self> {
        if ![8, 16, 32].contains(&config.output_stride) {
            return Err(Error::config("output_stride", "8, 16 or 32", config.output_stride));
        }
        let layer = Conv2dConfig::same(3, channels, 3).stride(2).kaiming_fan_out();
        Ok(Self {
            style,
            output_stride: config.output_stride,
            stride: 2,
            dilation: 1,
            channels,
            stem: style.layer(layer, activation, paths)?,
            blocks: vec![],
            last: None,
            exits: vec![],
            out_channels: vec![],
            strides: vec![],
        })
    }

    /// Channels that the next block takes.
    pub(super) fn channels(&self) -> usize {
        self.channels
    }

    /// Adds a block.
    pub(super) fn block(&mut self, shape: &BlockShape, paths: BlockPaths) -> Result<()> {
        let &BlockShape { kernel, expanded, out_channels, activation, .. } = shape;
        let (mut stride, mut dilation) = (shape.stride, self.dilation);
        if self.stride * stride > self.output_stride {
            self.dilation *= stride;
            stride = 1;
            if self.style.dilates_at_once {
                dilation = self.dilation;
            }
        }
        self.stride *= stride;
        let expand = match shape.expand {
            true => {
                let layer = Conv2dConfig::same(self.channels, expanded, 1).kaiming_fan_out();
                Some(self.style.layer(layer, activation, paths.expand)?)
            }
            false => None,
        };
        let depthwise = Conv2dConfig::same(expanded, expanded, kernel).stride(stride).dilation(dilation);
        let depthwise = Conv2dConfig { weights: self.style.depthwise_weights, ..depthwise.groups(expanded) };
        let project = Conv2dConfig::same(expanded, out_channels, 1).kaiming_fan_out();
        self.blocks.push(Arc::new(InvertedResidual {
            expand,
            depthwise: self.style.layer(depthwise, activation, paths.depthwise)?,
            squeeze: shape.squeeze.map(|inner| SqueezeExcite::new(expanded, inner, paths.squeeze)).transpose()?,
            project: self.style.layer(project, Activation::Identity, paths.project)?,
            residual: shape.stride == 1 && self.channels == out_channels,
        }));
        self.channels = out_channels;
        Ok(())
    }

    /// Adds the 1×1 convolution after the last block.
    pub(super) fn last(&mut self, channels: usize, activation: Activation, paths: Paths) -> Result<()> {
        let layer = Conv2dConfig::same(self.channels, channels, 1).kaiming_fan_out();
        self.last = Some(self.style.layer(layer, activation, paths)?);
        self.channels = channels;
        Ok(())
    }

    /// Makes the result so far a feature of this name.
    pub(super) fn exit(&mut self, name: &'static str) {
        self.exits.push((self.blocks.len(), name));
        self.out_channels.push(self.channels);
        self.strides.push(self.stride);
    }

    /// The features in order.
    pub(super) fn forward(&self, images: &Tensor, mode: Mode) -> Result<Vec<Feature>> {
        let mut features = Vec::with_capacity(self.exits.len());
        self.each_block(images, mode, |count, x| {
            for ((after, name), stride) in self.exits.iter().zip(&self.strides) {
                if *after == count {
                    features.push(Feature::new(name, *stride, x.clone()));
                }
            }
        })?;
        Ok(features)
    }

    /// The result of every block, that of the last with the convolution after it.
    pub(super) fn block_outputs(&self, images: &Tensor, mode: Mode) -> Result<Vec<Tensor>> {
        let mut outputs = Vec::with_capacity(self.blocks.len());
        self.each_block(images, mode, |_, x| outputs.push(x.clone()))?;
        Ok(outputs)
    }

    fn each_block(&self, images: &Tensor, mode: Mode, mut visit: impl FnMut(usize, &Tensor)) -> Result<()> {
        let mut x = self.stem.forward(images, mode)?; // [N,stem,H/2,W/2]
        for (block, count) in self.blocks.iter().zip(1..) {
            x = blocks::run(block, &x, mode)?;
            if let (Some(last), true) = (&self.last, count == self.blocks.len()) {
                x = last.forward(&x, mode)?;
            }
            visit(count, &x);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::divisible;

    #[test]
    fn channels_are_multiples_of_eight_never_below_nine_tenths() {
        for (channels, width, expected) in
            [(32, 1.0, 32), (16, 0.5, 8), (24, 0.5, 16), (320, 0.5, 160), (24, 0.75, 24), (16, 0.1, 8), (96, 0.35, 32)]
        {
            assert_eq!(divisible(channels, width).unwrap(), expected, "{channels} at {width}");
        }
        assert!(divisible(32, 0.0).is_err() && divisible(32, f64::NAN).is_err());
    }
}

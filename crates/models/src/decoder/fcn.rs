//! One convolution, the decoder of a fully convolutional network and the form of all auxiliary heads.
//!
//! Source: Long et al., Fully Convolutional Networks for Semantic Segmentation, CVPR 2015, in torchvision's form
//! (`FCNHead`): 3×3 convolution, normalisation, ReLU, dropout, then the classifier. Torchvision drops single values,
//! here whole channels are dropped. Its parameters `0`, `1` and `4` are `conv`, `bn` and the classifier here.

use candle_core::Tensor;
use candle_nn::VarBuilder;
use dsd_ops::Activation;

use crate::decoder::{Decoder, deepest};
use crate::layers::{Conv2dConfig, ConvBn, Dropout2d};
use crate::{Error, Feature, Mode, Result};

/// A 3×3 convolution with normalisation, ReLU and dropout.
#[derive(Debug)]
pub struct Reduction {
    reduce: ConvBn,
    dropout: Dropout2d,
    head_channels: usize,
}

impl Reduction {
    /// The decoder whose parameters `vb` holds: `conv` and `bn`.
    ///
    /// # Errors
    /// No head channels, a dropout outside [0, 1); a parameter of another shape.
    pub fn new(in_channels: usize, head_channels: usize, dropout: f64, vb: VarBuilder) -> Result<Self> {
        if head_channels == 0 {
            return Err(Error::config("head_channels", "at least 1", head_channels));
        }
        let layer = Conv2dConfig::same(in_channels, head_channels, 3);
        let reduce = ConvBn::new(layer, Activation::Relu, vb.pp("conv"), vb.pp("bn"))?;
        Ok(Self { reduce, dropout: Dropout2d::new(dropout, &vb)?, head_channels })
    }

    /// `[N,in,H,W]` → `[N,head,H,W]`.
    pub(crate) fn reduce(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        self.dropout.forward(&self.reduce.forward(x, mode)?, mode)
    }
}

impl Decoder for Reduction {
    fn forward(&self, features: &[Feature], mode: Mode) -> Result<Feature> {
        let Feature { stride, tensor, .. } = deepest(features)?;
        Ok(Feature::new("head", *stride, self.reduce(tensor, mode)?))
    }

    fn out_channels(&self) -> usize {
        self.head_channels
    }
}

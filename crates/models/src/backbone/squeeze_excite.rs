//! Squeeze-and-excitation: every channel is scaled by a number that the means of all channels decide.
//!
//! s = hard_sigmoid(W₂ · relu(W₁ · mean_{h,w} x + b₁) + b₂);   y[n,c,h,w] = x[n,c,h,w] · s[n,c]
//!
//! Sources: Hu et al., Squeeze-and-Excitation Networks, CVPR 2018, equations 2 to 4; the hard sigmoid is that of Howard
//! et al., Searching for MobileNetV3, ICCV 2019, section 5.2. Parameter names are those of torchvision.

use candle_core::Tensor;
use candle_nn::{Init, VarBuilder};
use dsd_ops::Conv2dOptions;

use crate::Result;
use crate::init::KAIMING_FAN_OUT;

/// Squeeze-and-excitation with the hard sigmoid.
#[derive(Debug)]
pub(super) struct SqueezeExcite {
    reduce: Dense,
    expand: Dense,
}

impl SqueezeExcite {
    /// Parameters `fc1` and `fc2`, each a 1×1 convolution with bias; Kaiming normal by fan-out, biases 0.
    pub(super) fn new(channels: usize, inner: usize, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            reduce: Dense::new(channels, inner, vb.pp("fc1"))?,
            expand: Dense::new(inner, channels, vb.pp("fc2"))?,
        })
    }

    /// `[N,C,H,W]` → `[N,C,H,W]`.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mean = dsd_ops::adaptive_avg_pool2d(x, [1, 1])?; // [N,C,1,1]
        let inner = dsd_ops::relu(&self.reduce.forward(&mean)?)?; // [N,inner,1,1]
        let scale = dsd_ops::hard_sigmoid(&self.expand.forward(&inner)?)?; // [N,C,1,1]
        Ok(dsd_ops::scale_channels(x, &scale)?)
    }
}

/// A 1×1 convolution whose bias begins at 0.
#[derive(Debug)]
struct Dense {
    weight: Tensor,
    bias: Tensor,
}

impl Dense {
    fn new(in_channels: usize, out_channels: usize, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            weight: vb.get_with_hints((out_channels, in_channels, 1, 1), "weight", KAIMING_FAN_OUT)?,
            bias: vb.get_with_hints(out_channels, "bias", Init::Const(0.0))?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(dsd_ops::conv2d(x, &self.weight, Some(&self.bias), Conv2dOptions::default())?)
    }
}

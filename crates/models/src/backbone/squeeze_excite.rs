//! Squeeze-and-excitation: every channel is scaled by a number that the means of all channels decide.
//!
//! s = hard_sigmoid(W₂ · relu(W₁ · mean_{h,w} x + b₁) + b₂);   y[n,c,h,w] = x[n,c,h,w] · s[n,c]
//!
//! Sources: Hu et al., Squeeze-and-Excitation Networks, CVPR 2018, equations 2 to 4; the hard sigmoid is that of Howard
//! et al., Searching for MobileNetV3, ICCV 2019, section 5.2. Parameter names are those of torchvision.

use candle_core::Tensor;
use candle_nn::VarBuilder;

use crate::Result;
use crate::layers::{Conv2d, Conv2dConfig};

/// Squeeze-and-excitation with the hard sigmoid.
#[derive(Debug)]
pub(super) struct SqueezeExcite {
    reduce: Conv2d,
    expand: Conv2d,
}

impl SqueezeExcite {
    /// Parameters `fc1` and `fc2`, each a 1×1 convolution with bias; Kaiming normal by fan-out, biases 0.
    pub(super) fn new(channels: usize, inner: usize, vb: VarBuilder) -> Result<Self> {
        let layer = |from, to| Conv2dConfig::same(from, to, 1).kaiming_fan_out().zero_bias();
        Ok(Self {
            reduce: Conv2d::new(layer(channels, inner), vb.pp("fc1"))?,
            expand: Conv2d::new(layer(inner, channels), vb.pp("fc2"))?,
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

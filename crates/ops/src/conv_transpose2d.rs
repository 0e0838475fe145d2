//! Transposed 2-D convolution with gradients for input, weight and bias.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Shape, Tensor, WithDType};
use dsd_kernels::conv_transpose2d::{self as kernel, ConvTranspose2dShape};
use dsd_kernels::conv2d::Element;

use crate::conv2d::{Stored, by_dtype, renamed, wrap};
use crate::storage::{slice, tensor};
use crate::{Result, check};

const OP: &str = "conv_transpose2d";

/// Settings of [`conv_transpose2d`]; pairs are (vertical, horizontal).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvTranspose2dOptions {
    /// Output pixels from one input pixel to the next, ≥ 1.
    pub stride: [usize; 2],
    /// Output rows or columns cut off on both sides.
    pub padding: [usize; 2],
    /// Output rows or columns added at the end, below the stride.
    pub output_padding: [usize; 2],
    /// Output pixels from one kernel tap to the next, ≥ 1.
    pub dilation: [usize; 2],
    /// Groups of channels that do not see each other, ≥ 1.
    pub groups: usize,
}

impl Default for ConvTranspose2dOptions {
    /// Stride 1, no padding, no output padding, dilation 1, one group.
    fn default() -> Self {
        Self { stride: [1, 1], padding: [0, 0], output_padding: [0, 0], dilation: [1, 1], groups: 1 }
    }
}

/// Transposed 2-D convolution: the linear map whose transpose is [`crate::conv2d`] with the same weight.
///
/// # Shapes
/// `x` `[N,C,H,W]` f32 or f64; `weight` `[C,K/groups,kh,kw]` and `bias` `[K]` of the same type.
///
/// # Returns
/// `[N,K,Ho,Wo]` with Ho = (H − 1)·stride − 2·padding + dilation·(kh − 1) + output_padding + 1.
///
/// # Gradient
/// Reaches `x`, `weight` and `bias`; that of `x` is computed only where `x` needs one.
///
/// # Errors
/// Shape, DType or Param, naming the argument.
///
/// # Example
/// ```
/// use candle_core::{Device, Tensor};
/// let x = Tensor::new(&[[[[1f32, 2.0]]]], &Device::Cpu)?;
/// let weight = Tensor::ones((1, 1, 1, 2), candle_core::DType::F32, &Device::Cpu)?;
/// let options = dsd_ops::ConvTranspose2dOptions { stride: [1, 2], ..Default::default() };
/// let y = dsd_ops::conv_transpose2d(&x, &weight, None, options)?;
/// assert_eq!(y.flatten_all()?.to_vec1::<f32>()?, [1.0, 1.0, 2.0, 2.0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn conv_transpose2d(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    options: ConvTranspose2dOptions,
) -> Result<Tensor> {
    let shape = checked_shape(x, weight, bias, options)?;
    let (x, weight) = (x.contiguous()?, weight.contiguous()?);
    Ok(match bias {
        Some(bias) => x.apply_op3(&weight, &bias.contiguous()?, Forward(shape))?,
        None => x.apply_op2(&weight, Forward(shape))?,
    })
}

fn checked_shape(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    options: ConvTranspose2dOptions,
) -> Result<ConvTranspose2dShape> {
    let (batch, in_channels, in_height, in_width) = check::nchw(OP, "x", x)?;
    let (weight_channels, group_out_channels, kernel_height, kernel_width) = check::nchw(OP, "weight", weight)?;
    check::dtype(OP, "weight", weight, x.dtype())?;
    let ConvTranspose2dOptions { stride, padding, output_padding, dilation, groups } = options;
    if groups == 0 || !in_channels.is_multiple_of(groups) {
        return Err(check::param(OP, "groups", format!("a divisor of the {in_channels} channels of x"), groups));
    }
    if weight_channels != in_channels {
        return Err(check::shape(OP, "weight", format!("[{in_channels},K/groups,kh,kw]"), weight));
    }
    let out_channels = group_out_channels * groups;
    if let Some(bias) = bias {
        check::dtype(OP, "bias", bias, x.dtype())?;
        check::same_shape(OP, "bias", bias, &[out_channels])?;
    }
    let kernel = [kernel_height, kernel_width];
    let shape = ConvTranspose2dShape {
        batch,
        in_channels,
        in_height,
        in_width,
        out_channels,
        kernel,
        stride,
        padding,
        output_padding,
        dilation,
        groups,
    };
    shape.adjoint().map_err(|error| renamed(error, OP))?;
    Ok(shape)
}

struct Forward(ConvTranspose2dShape);

fn forward<T: WithDType + Element>(
    shape: &ConvTranspose2dShape,
    x: Stored<'_>,
    weight: Stored<'_>,
    bias: Option<Stored<'_>>,
) -> candle_core::Result<(CpuStorage, Shape)> {
    let adjoint = shape.adjoint().map_err(wrap)?;
    let bias = bias.map(|bias| slice::<T>(bias.0, bias.1)).transpose()?;
    let y = kernel::forward_vec(shape, slice(x.0, x.1)?, slice(weight.0, weight.1)?, bias).map_err(wrap)?;
    Ok(tensor(y, (shape.batch, shape.out_channels, adjoint.in_height, adjoint.in_width)))
}

impl Forward {
    /// The gradients of `x` and `weight`; None for those that are not tracked.
    fn gradients(
        &self,
        x: &Tensor,
        weight: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let grad_x = match x.track_op() {
            true => Some(weight.apply_op2_no_bwd(grad, &BackwardInput(self.0))?),
            false => None,
        };
        let grad_weight = match weight.track_op() {
            true => Some(x.apply_op2_no_bwd(grad, &BackwardWeight(self.0))?),
            false => None,
        };
        Ok((grad_x, grad_weight))
    }
}

impl CustomOp2 for Forward {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        by_dtype!(x, forward(&self.0, (x, x_layout), (weight, weight_layout), None))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        self.gradients(x, weight, &grad.contiguous()?)
    }
}

impl CustomOp3 for Forward {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        by_dtype!(x, forward(&self.0, (x, x_layout), (weight, weight_layout), Some((bias, bias_layout))))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let (grad_x, grad_weight) = self.gradients(x, weight, &grad)?;
        let grad_bias = match bias.track_op() {
            true => Some(grad.apply_op1_no_bwd(&BackwardBias(self.0))?),
            false => None,
        };
        Ok((grad_x, grad_weight, grad_bias))
    }
}

struct BackwardInput(ConvTranspose2dShape);

fn backward_input<T: WithDType + Element>(
    shape: &ConvTranspose2dShape,
    weight: Stored<'_>,
    grad_y: Stored<'_>,
) -> candle_core::Result<(CpuStorage, Shape)> {
    let (weight, grad_y) = (slice::<T>(weight.0, weight.1)?, slice(grad_y.0, grad_y.1)?);
    let grad_x = kernel::backward_input_vec(shape, weight, grad_y).map_err(wrap)?;
    Ok(tensor(grad_x, (shape.batch, shape.in_channels, shape.in_height, shape.in_width)))
}

impl CustomOp2 for BackwardInput {
    fn name(&self) -> &'static str {
        "conv_transpose2d_backward_input"
    }

    fn cpu_fwd(
        &self,
        weight: &CpuStorage,
        weight_layout: &Layout,
        grad_y: &CpuStorage,
        grad_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        by_dtype!(weight, backward_input(&self.0, (weight, weight_layout), (grad_y, grad_layout)))
    }
}

struct BackwardWeight(ConvTranspose2dShape);

fn backward_weight<T: WithDType + Element>(
    shape: &ConvTranspose2dShape,
    x: Stored<'_>,
    grad_y: Stored<'_>,
) -> candle_core::Result<(CpuStorage, Shape)> {
    let adjoint = shape.adjoint().map_err(wrap)?;
    let mut grad_weight = vec![T::ZERO; adjoint.weight_len()];
    kernel::backward_weight(shape, slice(x.0, x.1)?, slice(grad_y.0, grad_y.1)?, &mut grad_weight).map_err(wrap)?;
    let [kernel_height, kernel_width] = shape.kernel;
    Ok(tensor(grad_weight, (shape.in_channels, shape.out_channels / shape.groups, kernel_height, kernel_width)))
}

impl CustomOp2 for BackwardWeight {
    fn name(&self) -> &'static str {
        "conv_transpose2d_backward_weight"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        grad_y: &CpuStorage,
        grad_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        by_dtype!(x, backward_weight(&self.0, (x, x_layout), (grad_y, grad_layout)))
    }
}

struct BackwardBias(ConvTranspose2dShape);

fn backward_bias<T: WithDType + Element>(
    shape: &ConvTranspose2dShape,
    grad_y: Stored<'_>,
) -> candle_core::Result<(CpuStorage, Shape)> {
    let mut grad_bias = vec![T::ZERO; shape.out_channels];
    kernel::backward_bias(shape, slice(grad_y.0, grad_y.1)?, &mut grad_bias).map_err(wrap)?;
    Ok(tensor(grad_bias, shape.out_channels))
}

impl CustomOp1 for BackwardBias {
    fn name(&self) -> &'static str {
        "conv_transpose2d_backward_bias"
    }

    fn cpu_fwd(&self, grad_y: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        by_dtype!(grad_y, backward_bias(&self.0, (grad_y, layout)))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    #[test]
    fn mistakes_name_the_argument() {
        let zeros = |shape: &[usize]| Tensor::zeros(shape, candle_core::DType::F32, &Device::Cpu).unwrap();
        let (x, weight) = (zeros(&[2, 4, 5, 6]), zeros(&[4, 3, 3, 3]));
        let default = ConvTranspose2dOptions::default();
        let expect = |weight: &Tensor, bias: Option<&Tensor>, options: ConvTranspose2dOptions, message: &str| {
            let error = conv_transpose2d(&x, weight, bias, options).unwrap_err().to_string();
            assert!(error.starts_with("conv_transpose2d: ") && error.contains(message), "{error}");
        };
        expect(&zeros(&[3, 4, 3, 3]), None, default, "weight has shape [3, 4, 3, 3], expected [4,K/groups,kh,kw]");
        expect(&weight, Some(&zeros(&[4])), default, "bias has shape [4], expected [3]");
        expect(&weight, None, ConvTranspose2dOptions { groups: 3, ..default }, "groups is 3");
        expect(&weight, None, ConvTranspose2dOptions { stride: [2, 0], ..default }, "horizontal stride is 0");
        let extra = ConvTranspose2dOptions { stride: [2, 2], output_padding: [2, 0], ..default };
        expect(&weight, None, extra, "vertical output padding is 2, expected below the stride, 2");
        expect(&weight, None, ConvTranspose2dOptions { padding: [4, 0], ..default }, "output height is 7 minus 8");
    }

    #[test]
    fn an_input_that_is_no_variable_gets_no_gradient() {
        let x = Tensor::ones((1, 1, 2, 2), candle_core::DType::F32, &Device::Cpu).unwrap();
        let weight = Var::ones((1, 1, 2, 2), candle_core::DType::F32, &Device::Cpu).unwrap();
        let options = ConvTranspose2dOptions { stride: [2, 2], ..ConvTranspose2dOptions::default() };
        let y = conv_transpose2d(&x, &weight, None, options).unwrap();
        assert_eq!(y.dims(), [1, 1, 4, 4]);
        let grads = y.sum_all().unwrap().backward().unwrap();
        assert!(grads.get(&x).is_none());
        let grad = grads.get(&weight).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(grad, [4.0; 4]);
    }
}

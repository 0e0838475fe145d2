//! Transposed 2-D convolution with gradients for input, weight and bias.

use candle_core::Tensor;
use dsd_kernels::conv_transpose2d::{self as kernel, ConvTranspose2dShape};
use dsd_kernels::conv2d::Element;

use crate::convolution::{self, Convolution, renamed};
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
    convolution::apply(shape, x, weight, bias)
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

impl Convolution for ConvTranspose2dShape {
    const OP: &'static str = OP;

    fn input(&self) -> [usize; 4] {
        [self.batch, self.in_channels, self.in_height, self.in_width]
    }

    fn output(&self) -> dsd_kernels::Result<[usize; 4]> {
        let adjoint = self.adjoint()?;
        Ok([self.batch, self.out_channels, adjoint.in_height, adjoint.in_width])
    }

    fn weight(&self) -> [usize; 4] {
        [self.in_channels, self.out_channels / self.groups, self.kernel[0], self.kernel[1]]
    }

    fn forward<T: Element>(&self, x: &[T], weight: &[T], bias: Option<&[T]>) -> dsd_kernels::Result<Vec<T>> {
        kernel::forward_vec(self, x, weight, bias)
    }

    fn backward_input<T: Element>(&self, weight: &[T], grad_y: &[T]) -> dsd_kernels::Result<Vec<T>> {
        kernel::backward_input_vec(self, weight, grad_y)
    }

    fn backward_weight<T: Element>(&self, x: &[T], grad_y: &[T], grad_weight: &mut [T]) -> dsd_kernels::Result<()> {
        kernel::backward_weight(self, x, grad_y, grad_weight)
    }

    fn backward_bias<T: Element>(&self, grad_y: &[T], grad_bias: &mut [T]) -> dsd_kernels::Result<()> {
        kernel::backward_bias(self, grad_y, grad_bias)
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

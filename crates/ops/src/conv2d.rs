//! 2-D convolution with gradients for input, weight and bias.

use candle_core::Tensor;
use dsd_kernels::conv2d::{self as kernel, Conv2dShape, Element};

use crate::convolution::{self, Convolution, renamed};
use crate::{Result, check};

const OP: &str = "conv2d";

/// Settings of [`conv2d`]; pairs are (vertical, horizontal).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv2dOptions {
    /// Input pixels from one output pixel to the next, ≥ 1.
    pub stride: [usize; 2],
    /// Zeros put before the first and after the last input row or column.
    pub padding: [usize; 2],
    /// Zeros put after the last input row or column beyond `padding`: TensorFlow's "SAME" needs one more there.
    pub extra_padding: [usize; 2],
    /// Input pixels from one kernel tap to the next, ≥ 1.
    pub dilation: [usize; 2],
    /// Groups of channels that do not see each other, ≥ 1; as many as input channels is a depthwise convolution.
    pub groups: usize,
}

impl Default for Conv2dOptions {
    /// Stride 1, no padding, dilation 1, one group.
    fn default() -> Self {
        Self { stride: [1, 1], padding: [0, 0], extra_padding: [0, 0], dilation: [1, 1], groups: 1 }
    }
}

/// 2-D convolution (cross-correlation, as every network library means it).
///
/// `y[n,k,i,j] = bias[k] + Σ_{c,u,v} weight[k,c,u,v] · x[n, c, i·s + u·d − p, j·s + v·d − p]`, zero outside the input.
///
/// # Shapes
/// `x` `[N,C,H,W]` f32 or f64; `weight` `[K,C/groups,kh,kw]` and `bias` `[K]` of the same type.
///
/// # Returns
/// `[N,K,Ho,Wo]` with Ho = (H + 2p + e − d·(kh − 1) − 1) / s + 1, rounded down, where e is the extra padding.
///
/// # Gradient
/// Reaches `x`, `weight` and `bias`; that of `x` is computed only where `x` needs one.
///
/// # Numerics
/// f32 may use Winograd's algorithm for 3×3 kernels, see [`dsd_kernels::conv2d::set_exact`].
///
/// # Errors
/// Shape, DType or Param, naming the argument.
///
/// # Example
/// ```
/// use candle_core::{Device, Tensor};
/// let x = Tensor::ones((1, 1, 3, 3), candle_core::DType::F32, &Device::Cpu)?;
/// let weight = Tensor::ones((1, 1, 2, 2), candle_core::DType::F32, &Device::Cpu)?;
/// let y = dsd_ops::conv2d(&x, &weight, None, dsd_ops::Conv2dOptions::default())?;
/// assert_eq!(y.flatten_all()?.to_vec1::<f32>()?, [4.0; 4]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn conv2d(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, options: Conv2dOptions) -> Result<Tensor> {
    let shape = checked_shape(x, weight, bias, options)?;
    convolution::apply(shape, x, weight, bias)
}

fn checked_shape(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, options: Conv2dOptions) -> Result<Conv2dShape> {
    let (batch, in_channels, in_height, in_width) = check::nchw(OP, "x", x)?;
    let (out_channels, weight_channels, kernel_height, kernel_width) = check::nchw(OP, "weight", weight)?;
    check::dtype(OP, "weight", weight, x.dtype())?;
    let Conv2dOptions { stride, padding, extra_padding, dilation, groups } = options;
    if groups == 0 || !in_channels.is_multiple_of(groups) {
        return Err(check::param(OP, "groups", format!("a divisor of the {in_channels} channels of x"), groups));
    }
    if !out_channels.is_multiple_of(groups) {
        return Err(check::param(OP, "groups", format!("a divisor of the {out_channels} filters of weight"), groups));
    }
    if weight_channels != in_channels / groups {
        let expected = format!("[K,{},kh,kw] for {in_channels} channels in {groups} groups", in_channels / groups);
        return Err(check::shape(OP, "weight", expected, weight));
    }
    if let Some(bias) = bias {
        check::dtype(OP, "bias", bias, x.dtype())?;
        check::same_shape(OP, "bias", bias, &[out_channels])?;
    }
    let kernel = [kernel_height, kernel_width];
    let shape = Conv2dShape {
        batch,
        in_channels,
        in_height,
        in_width,
        out_channels,
        kernel,
        stride,
        padding,
        extra_padding,
        dilation,
        groups,
    };
    shape.check().map_err(|error| renamed(error, OP))?;
    Ok(shape)
}

impl Convolution for Conv2dShape {
    const OP: &'static str = OP;

    fn input(&self) -> [usize; 4] {
        [self.batch, self.in_channels, self.in_height, self.in_width]
    }

    fn output(&self) -> dsd_kernels::Result<[usize; 4]> {
        Ok([self.batch, self.out_channels, self.out_height(), self.out_width()])
    }

    fn weight(&self) -> [usize; 4] {
        [self.out_channels, self.in_channels / self.groups, self.kernel[0], self.kernel[1]]
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
    use candle_core::{DType, Device, Var};

    use super::*;

    #[test]
    fn mistakes_name_the_argument() {
        let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
        let (x, weight) = (zeros(&[2, 4, 5, 6]), zeros(&[8, 4, 3, 3]));
        let default = Conv2dOptions::default();
        let expect = |x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, options: Conv2dOptions, message: &str| {
            let error = conv2d(x, weight, bias, options).unwrap_err().to_string();
            assert!(error.starts_with("conv2d: ") && error.contains(message), "{error}");
        };
        expect(&zeros(&[4, 5, 6]), &weight, None, default, "x has shape [4, 5, 6], expected [N,C,H,W]");
        expect(&x, &zeros(&[8, 2, 3, 3]), None, default, "weight has shape [8, 2, 3, 3], expected [K,4,kh,kw]");
        expect(&x, &weight.to_dtype(DType::F64).unwrap(), None, default, "weight is f64, expected f32");
        expect(&x, &weight, Some(&zeros(&[4])), default, "bias has shape [4], expected [8]");
        expect(&x, &weight, None, Conv2dOptions { groups: 3, ..default }, "groups is 3, expected a divisor of the 4");
        expect(&x, &weight, None, Conv2dOptions { stride: [0, 1], ..default }, "vertical stride is 0");
        expect(&x, &weight, None, Conv2dOptions { dilation: [1, 3], ..default }, "kernel width is 3 with dilation 3");
        expect(&x.to_dtype(DType::U8).unwrap(), &weight, None, default, "x is u8, expected f32 or f64");
    }

    #[test]
    fn an_input_that_is_no_variable_gets_no_gradient() {
        let x = Tensor::ones((1, 1, 3, 3), DType::F32, &Device::Cpu).unwrap();
        let weight = Var::ones((1, 1, 3, 3), DType::F32, &Device::Cpu).unwrap();
        let bias = Var::zeros(1, DType::F32, &Device::Cpu).unwrap();
        let options = Conv2dOptions { padding: [1, 1], ..Conv2dOptions::default() };
        let y = conv2d(&x, &weight, Some(&bias), options).unwrap();
        let grads = y.sum_all().unwrap().backward().unwrap();
        assert!(grads.get(&x).is_none());
        let of = |var: &Var| grads.get(var).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(of(&weight), [4.0, 6.0, 4.0, 6.0, 9.0, 6.0, 4.0, 6.0, 4.0]);
        assert_eq!(of(&bias), [9.0]);
    }

    #[test]
    fn a_strided_input_is_read_as_it_looks() {
        let x = Tensor::arange(0f64, 12.0, &Device::Cpu).unwrap().reshape((1, 1, 3, 4)).unwrap();
        let weight = Tensor::ones((1, 1, 1, 1), DType::F64, &Device::Cpu).unwrap();
        let turned = x.transpose(2, 3).unwrap();
        let y = conv2d(&turned, &weight, None, Conv2dOptions::default()).unwrap();
        let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f64>().unwrap();
        assert_eq!(values(&y), values(&turned));
    }
}

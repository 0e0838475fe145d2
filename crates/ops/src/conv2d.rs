//! 2-D convolution with gradients for input, weight and bias.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Shape, Tensor, WithDType};
use dsd_kernels::conv2d::{self as kernel, Conv2dShape, Element};

use crate::check;
use crate::storage::{slice, tensor};
use crate::{Error, Result};

const OP: &str = "conv2d";

/// Settings of [`conv2d`]; pairs are (vertical, horizontal).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv2dOptions {
    /// Input pixels from one output pixel to the next, ≥ 1.
    pub stride: [usize; 2],
    /// Zeros put before the first and after the last input row or column.
    pub padding: [usize; 2],
    /// Input pixels from one kernel tap to the next, ≥ 1.
    pub dilation: [usize; 2],
    /// Groups of channels that do not see each other, ≥ 1; as many as input channels is a depthwise convolution.
    pub groups: usize,
}

impl Default for Conv2dOptions {
    /// Stride 1, no padding, dilation 1, one group.
    fn default() -> Self {
        Self { stride: [1, 1], padding: [0, 0], dilation: [1, 1], groups: 1 }
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
/// `[N,K,Ho,Wo]` with Ho = (H + 2p − d·(kh − 1) − 1) / s + 1, rounded down.
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
    let (x, weight) = (x.contiguous()?, weight.contiguous()?);
    Ok(match bias {
        Some(bias) => x.apply_op3(&weight, &bias.contiguous()?, Forward(shape))?,
        None => x.apply_op2(&weight, Forward(shape))?,
    })
}

fn checked_shape(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, options: Conv2dOptions) -> Result<Conv2dShape> {
    let (batch, in_channels, in_height, in_width) = check::nchw(OP, "x", x)?;
    let (out_channels, weight_channels, kernel_height, kernel_width) = check::nchw(OP, "weight", weight)?;
    check::dtype(OP, "weight", weight, x.dtype())?;
    let Conv2dOptions { stride, padding, dilation, groups } = options;
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
        dilation,
        groups,
    };
    shape.check().map_err(|error| renamed(error, OP))?;
    Ok(shape)
}

/// The kernels' complaint about a setting as this crate's error.
pub(crate) fn renamed(error: dsd_kernels::Error, op: &'static str) -> Error {
    match error {
        dsd_kernels::Error::Param { argument, expected, got, .. } => Error::Param { op, argument, expected, got },
        other => Error::Kernel(other),
    }
}

/// A kernel's error inside a custom operation.
pub(crate) fn wrap(error: dsd_kernels::Error) -> candle_core::Error {
    Error::Kernel(error).into()
}

/// Calls a generic function with the element type of a storage.
macro_rules! by_dtype {
    ($storage:expr, $function:ident($($argument:expr),*)) => {
        match candle_core::backend::BackendStorage::dtype($storage) {
            candle_core::DType::F32 => $function::<f32>($($argument),*),
            candle_core::DType::F64 => $function::<f64>($($argument),*),
            other => candle_core::bail!("{other:?} is neither f32 nor f64"),
        }
    };
}
pub(crate) use by_dtype;

/// An argument of a custom operation.
pub(crate) type Stored<'a> = (&'a CpuStorage, &'a Layout);

struct Forward(Conv2dShape);

fn forward<T: WithDType + Element>(
    shape: &Conv2dShape,
    x: Stored<'_>,
    weight: Stored<'_>,
    bias: Option<Stored<'_>>,
) -> candle_core::Result<(CpuStorage, Shape)> {
    let bias = bias.map(|bias| slice::<T>(bias.0, bias.1)).transpose()?;
    let y = kernel::forward_vec(shape, slice(x.0, x.1)?, slice(weight.0, weight.1)?, bias).map_err(wrap)?;
    Ok(tensor(y, (shape.batch, shape.out_channels, shape.out_height(), shape.out_width())))
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

struct BackwardInput(Conv2dShape);

fn backward_input<T: WithDType + Element>(
    shape: &Conv2dShape,
    weight: Stored<'_>,
    grad_y: Stored<'_>,
) -> candle_core::Result<(CpuStorage, Shape)> {
    let (weight, grad_y) = (slice::<T>(weight.0, weight.1)?, slice(grad_y.0, grad_y.1)?);
    let grad_x = kernel::backward_input_vec(shape, weight, grad_y).map_err(wrap)?;
    Ok(tensor(grad_x, (shape.batch, shape.in_channels, shape.in_height, shape.in_width)))
}

impl CustomOp2 for BackwardInput {
    fn name(&self) -> &'static str {
        "conv2d_backward_input"
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

struct BackwardWeight(Conv2dShape);

fn backward_weight<T: WithDType + Element>(
    shape: &Conv2dShape,
    x: Stored<'_>,
    grad_y: Stored<'_>,
) -> candle_core::Result<(CpuStorage, Shape)> {
    let mut grad_weight = vec![T::ZERO; shape.weight_len()];
    kernel::backward_weight(shape, slice(x.0, x.1)?, slice(grad_y.0, grad_y.1)?, &mut grad_weight).map_err(wrap)?;
    let [kernel_height, kernel_width] = shape.kernel;
    Ok(tensor(grad_weight, (shape.out_channels, shape.in_channels / shape.groups, kernel_height, kernel_width)))
}

impl CustomOp2 for BackwardWeight {
    fn name(&self) -> &'static str {
        "conv2d_backward_weight"
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

struct BackwardBias(Conv2dShape);

fn backward_bias<T: WithDType + Element>(
    shape: &Conv2dShape,
    grad_y: Stored<'_>,
) -> candle_core::Result<(CpuStorage, Shape)> {
    let mut grad_bias = vec![T::ZERO; shape.out_channels];
    kernel::backward_bias(shape, slice(grad_y.0, grad_y.1)?, &mut grad_bias).map_err(wrap)?;
    Ok(tensor(grad_bias, shape.out_channels))
}

impl CustomOp1 for BackwardBias {
    fn name(&self) -> &'static str {
        "conv2d_backward_bias"
    }

    fn cpu_fwd(&self, grad_y: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        by_dtype!(grad_y, backward_bias(&self.0, (grad_y, layout)))
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

//! What convolution and transposed convolution share: one graph node with three gradients, over the passes of a shape.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Shape, Tensor, WithDType};
use dsd_kernels::conv2d::Element;

use crate::storage::{by_dtype, slice, tensor, with_slices};
use crate::tape::{self, Reads};
use crate::{Error, Result};

/// The sizes and settings of a convolution, and its passes.
pub(crate) trait Convolution: Copy + Send + Sync + 'static {
    /// The operation's name in errors and graphs.
    const OP: &'static str;
    /// The shape of `x`.
    fn input(&self) -> [usize; 4];
    /// The shape of `weight`.
    fn weight(&self) -> [usize; 4];
    /// The shape of the result.
    fn output(&self) -> dsd_kernels::Result<[usize; 4]>;
    fn forward<T: Element>(&self, x: &[T], weight: &[T], bias: Option<&[T]>) -> dsd_kernels::Result<Vec<T>>;
    fn backward_input<T: Element>(&self, weight: &[T], grad_y: &[T]) -> dsd_kernels::Result<Vec<T>>;
    fn backward_weight<T: Element>(&self, x: &[T], grad_y: &[T], grad_weight: &mut [T]) -> dsd_kernels::Result<()>;
    fn backward_bias<T: Element>(&self, grad_y: &[T], grad_bias: &mut [T]) -> dsd_kernels::Result<()>;
}

/// The convolution of checked arguments.
pub(crate) fn apply<C: Convolution>(shape: C, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (x, weight) = (x.contiguous()?, weight.contiguous()?);
    Ok(match bias {
        Some(bias) => tape::apply3(&x, &weight, &bias.contiguous()?, Node(shape), Reads::Inputs)?,
        None => tape::apply2(&x, &weight, Node(shape), Reads::Inputs)?,
    })
}

/// The kernels' complaint about a setting as this crate's error.
pub(crate) fn renamed(error: dsd_kernels::Error, op: &'static str) -> Error {
    match error {
        dsd_kernels::Error::Param { argument, expected, got, .. } => Error::Param { op, argument, expected, got },
        other => Error::Kernel(other),
    }
}

/// An argument of a custom operation.
type Stored<'a> = (&'a CpuStorage, &'a Layout);

struct Node<C>(C);

impl<C: Convolution> Node<C> {
    fn forward<T: WithDType + Element>(
        &self,
        x: Stored<'_>,
        weight: Stored<'_>,
        bias: Option<Stored<'_>>,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let bias = bias.map(|bias| slice::<T>(bias.0, bias.1)).transpose()?;
        let y = self.0.forward(slice(x.0, x.1)?, slice(weight.0, weight.1)?, bias).map_err(Error::from)?;
        let [n, k, height, width] = self.0.output().map_err(Error::from)?;
        Ok(tensor(y, (n, k, height, width)))
    }

    /// The gradients of `x`, `weight` and `bias`; None for those that are not tracked.
    fn backward<T: WithDType + Element>(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
        grad: &Tensor,
    ) -> candle_core::Result<[Option<Tensor>; 3]> {
        let device = grad.device();
        let mut gradients = [const { None }; 3];
        if x.track_op() {
            let grad_x =
                with_slices::<T, _, _>([weight, grad], |[weight, grad]| Ok(self.0.backward_input(weight, grad)?))?;
            gradients[0] = Some(Tensor::from_vec(grad_x, &self.0.input(), device)?);
        }
        if weight.track_op() {
            let dims = self.0.weight();
            let mut grad_weight = vec![T::ZERO; dims.iter().product()];
            with_slices::<T, _, _>([x, grad], |[x, grad]| Ok(self.0.backward_weight(x, grad, &mut grad_weight)?))?;
            gradients[1] = Some(Tensor::from_vec(grad_weight, &dims, device)?);
        }
        if let Some(bias) = bias.filter(|bias| bias.track_op()) {
            let mut grad_bias = vec![T::ZERO; bias.elem_count()];
            with_slices::<T, _, _>([grad], |[grad]| Ok(self.0.backward_bias(grad, &mut grad_bias)?))?;
            gradients[2] = Some(Tensor::from_vec(grad_bias, bias.shape(), device)?);
        }
        Ok(gradients)
    }
}

impl<C: Convolution> CustomOp2 for Node<C> {
    fn name(&self) -> &'static str {
        C::OP
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        by_dtype!(C::OP, x.dtype(), self.forward((x, x_layout), (weight, weight_layout), None))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let [grad_x, grad_weight, _] = by_dtype!(C::OP, x.dtype(), self.backward(x, weight, None, &grad))?;
        Ok((grad_x, grad_weight))
    }
}

impl<C: Convolution> CustomOp3 for Node<C> {
    fn name(&self) -> &'static str {
        C::OP
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
        let bias = Some((bias, bias_layout));
        by_dtype!(C::OP, x.dtype(), self.forward((x, x_layout), (weight, weight_layout), bias))
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
        let [grad_x, grad_weight, grad_bias] =
            by_dtype!(C::OP, x.dtype(), self.backward(x, weight, Some(bias), &grad))?;
        Ok((grad_x, grad_weight, grad_bias))
    }
}

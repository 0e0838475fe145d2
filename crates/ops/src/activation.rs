//! Activations, softmax and log-softmax over the channels.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Shape, Tensor, WithDType};
use dsd_kernels::activation::{self as kernels, Element, Planes, Softmax};

use crate::storage::{by_dtype, from_elements, with_slices};
use crate::tape::{self, Reads};
use crate::{Error, Result, check, storage};

pub use dsd_kernels::activation::Activation;

/// max(x, 0), element by element.
///
/// # Shapes
/// x: any, f32 or f64. The result has the same.
/// # Gradient
/// 1 where x > 0, else 0 (also at 0, as PyTorch has it).
/// # Numerics
/// A NaN stays one.
/// # Errors
/// DType.
/// # Example
/// ```
/// # use candle_core::{Device, Tensor};
/// let x = Tensor::new(&[-1f32, 0.0, 2.0], &Device::Cpu)?;
/// assert_eq!(dsd_ops::relu(&x)?.to_vec1::<f32>()?, [0.0, 0.0, 2.0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn relu(x: &Tensor) -> Result<Tensor> {
    pointwise("relu", x, Activation::Relu)
}

/// min(max(x, 0), 6), element by element.
///
/// # Shapes
/// x: any, f32 or f64. The result has the same.
/// # Gradient
/// 1 where 0 < x < 6, else 0 (also at both ends, as PyTorch has it).
/// # Numerics
/// A NaN stays one.
/// # Errors
/// DType.
pub fn relu6(x: &Tensor) -> Result<Tensor> {
    pointwise("relu6", x, Activation::Relu6)
}

/// x · min(max(x + 3, 0), 6) / 6, element by element: an approximation of x · sigmoid(x).
///
/// # Shapes
/// x: any, f32 or f64. The result has the same.
/// # Gradient
/// x / 3 + 1/2 where −3 < x < 3, 0 at −3 and below, 1 at 3 and above, as PyTorch has it.
/// # Numerics
/// A NaN stays one.
/// # Errors
/// DType.
/// # Source
/// Howard et al., Searching for MobileNetV3, ICCV 2019, section 5.2.
pub fn hard_swish(x: &Tensor) -> Result<Tensor> {
    pointwise("hard_swish", x, Activation::HardSwish)
}

/// min(max(x + 3, 0), 6) / 6, element by element: an approximation of sigmoid(x).
///
/// # Shapes
/// x: any, f32 or f64. The result has the same.
/// # Gradient
/// 1/6 where −3 < x < 3, else 0 (also at both ends, as PyTorch has it).
/// # Numerics
/// A NaN stays one.
/// # Errors
/// DType.
/// # Source
/// Howard et al., Searching for MobileNetV3, ICCV 2019, section 5.2.
pub fn hard_sigmoid(x: &Tensor) -> Result<Tensor> {
    pointwise("hard_sigmoid", x, Activation::HardSigmoid)
}

/// 1 / (1 + e⁻ˣ), element by element.
///
/// # Shapes
/// x: any, f32 or f64. The result has the same.
/// # Gradient
/// y · (1 − y).
/// # Numerics
/// Any x is fine; a NaN stays one. In f32 within 2e-7.
/// # Errors
/// DType.
pub fn sigmoid(x: &Tensor) -> Result<Tensor> {
    pointwise("sigmoid", x, Activation::Sigmoid)
}

fn pointwise(op: &'static str, x: &Tensor, activation: Activation) -> Result<Tensor> {
    check::float(op, "x", x)?;
    Ok(tape::apply1(&x.contiguous()?, Pointwise { op, activation }, reads(activation))?)
}

/// x where x > 0, else weight · x, with one weight for all channels or one for each.
///
/// # Shapes
/// x: `[N,C,…]`, f32 or f64. weight: `[C]` or `[1]`, of the type of x. The result has the shape of x.
/// # Gradient
/// Reaches x and weight. At x = 0 it is weight · g for x and 0 for weight, as PyTorch has it.
/// # Errors
/// Shape or DType.
/// # Source
/// He et al., Delving Deep into Rectifiers, ICCV 2015, eq. 1.
pub fn prelu(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    const OP: &str = "prelu";
    check::float(OP, "x", x)?;
    let channels = planes(OP, x)?.channels;
    check::dtype(OP, "weight", weight, x.dtype())?;
    if weight.dims() != [1] && weight.dims() != [channels] {
        return Err(check::shape(OP, "weight", format!("[{channels}] or [1]"), weight));
    }
    Ok(tape::apply2(&x.contiguous()?, &weight.contiguous()?, Prelu, Reads::Inputs)?)
}

/// exp(xᶜ) / Σ exp(x) over the channels, axis 1.
///
/// # Shapes
/// x: `[N,C,…]`, f32 or f64. The result has the same.
/// # Numerics
/// The largest value is subtracted first: any finite x is fine.
/// # Errors
/// Shape or DType.
/// # Example
/// ```
/// # use candle_core::{Device, Tensor};
/// let x = Tensor::new(&[[0f64, 3f64.ln()]], &Device::Cpu)?;
/// let y = dsd_ops::softmax_channels(&x)?.to_vec2::<f64>()?;
/// assert!((y[0][0] - 0.25).abs() < 1e-15 && (y[0][1] - 0.75).abs() < 1e-15);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn softmax_channels(x: &Tensor) -> Result<Tensor> {
    channelwise("softmax_channels", x, Softmax::Probability)
}

/// xᶜ − ln Σ exp(x) over the channels, axis 1, in nats.
///
/// # Shapes
/// x: `[N,C,…]`, f32 or f64. The result has the same.
/// # Numerics
/// The largest value is subtracted first: any finite x is fine.
/// # Errors
/// Shape or DType.
pub fn log_softmax_channels(x: &Tensor) -> Result<Tensor> {
    channelwise("log_softmax_channels", x, Softmax::Logarithm)
}

fn channelwise(op: &'static str, x: &Tensor, kind: Softmax) -> Result<Tensor> {
    check::float(op, "x", x)?;
    planes(op, x)?;
    Ok(tape::apply1(&x.contiguous()?, Channelwise { op, kind }, Reads::Output)?)
}

/// The sizes of `[N,C,…]` with the axes after C as one.
pub(crate) fn planes(op: &'static str, x: &Tensor) -> Result<Planes> {
    match x.dims() {
        [batch, channels, rest @ ..] if x.elem_count() > 0 => {
            Ok(Planes { batch: *batch, channels: *channels, pixels: rest.iter().product() })
        }
        _ => Err(check::shape(op, "x", "[N,C,…] with no size 0", x)),
    }
}

/// [`planes`] of a shape that was checked before.
pub(crate) fn planes_of(shape: &Shape) -> Planes {
    let dims = shape.dims();
    Planes { batch: dims[0], channels: dims[1], pixels: dims[2..].iter().product() }
}

/// What the gradient of an activation is a function of: its value, or its argument.
fn reads(activation: Activation) -> Reads {
    match activation {
        Activation::Identity | Activation::Relu | Activation::Relu6 | Activation::Sigmoid => Reads::Output,
        Activation::HardSwish | Activation::HardSigmoid => Reads::Inputs,
    }
}

struct Pointwise {
    op: &'static str,
    activation: Activation,
}

impl Pointwise {
    fn forward<T: WithDType + Element>(&self, s: &CpuStorage, l: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let x = storage::slice::<T>(s, l)?;
        let mut y = dsd_kernels::zeros(x.len());
        kernels::forward(self.activation, x, &mut y).map_err(Error::from)?;
        Ok(storage::tensor(y, l.shape()))
    }

    fn backward<T: WithDType + Element>(&self, [x, y, g]: [&Tensor; 3]) -> candle_core::Result<Tensor> {
        // The one that is kept stands for both: the other is not read.
        let kept = if reads(self.activation) == Reads::Output { y } else { x };
        let dx = with_slices::<T, _, _>([kept, g], |[kept, g]| {
            let mut dx = dsd_kernels::zeros(kept.len());
            kernels::backward(self.activation, kept, kept, g, &mut dx)?;
            Ok(dx)
        })?;
        from_elements(dx, x.shape())
    }
}

impl CustomOp1 for Pointwise {
    fn name(&self) -> &'static str {
        self.op
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        by_dtype!(self.op, s.dtype(), self.forward(s, l))
    }

    fn bwd(&self, x: &Tensor, y: &Tensor, g: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let g = g.contiguous()?;
        by_dtype!(self.op, y.dtype(), self.backward([x, y, &g])).map(Some)
    }
}

struct Prelu;

impl Prelu {
    fn forward<T: WithDType + Element>(
        &self,
        (s, l): (&CpuStorage, &Layout),
        (weight, weight_layout): (&CpuStorage, &Layout),
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (x, weight) = (storage::slice::<T>(s, l)?, storage::slice::<T>(weight, weight_layout)?);
        let mut y = dsd_kernels::zeros(x.len());
        kernels::prelu_forward(planes_of(l.shape()), x, weight, &mut y).map_err(Error::from)?;
        Ok(storage::tensor(y, l.shape()))
    }

    fn backward<T: WithDType + Element>(
        &self,
        x: &Tensor,
        weight: &Tensor,
        g: &Tensor,
    ) -> candle_core::Result<(Tensor, Tensor)> {
        let (dx, dweight) = with_slices::<T, _, _>([x, weight, g], |[elements, weight, g]| {
            let (mut dx, mut dweight) = (dsd_kernels::zeros(elements.len()), vec![T::ZERO; weight.len()]);
            kernels::prelu_backward(planes_of(x.shape()), elements, weight, g, &mut dx, &mut dweight)?;
            Ok((dx, dweight))
        })?;
        Ok((from_elements(dx, x.shape())?, from_elements(dweight, weight.shape())?))
    }
}

impl CustomOp2 for Prelu {
    fn name(&self) -> &'static str {
        "prelu"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        by_dtype!("prelu", s1.dtype(), self.forward((s1, l1), (s2, l2)))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _: &Tensor,
        g: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let g = g.contiguous()?;
        let (dx, dweight) = by_dtype!("prelu", x.dtype(), self.backward(x, weight, &g))?;
        Ok((x.track_op().then_some(dx), weight.track_op().then_some(dweight)))
    }
}

struct Channelwise {
    op: &'static str,
    kind: Softmax,
}

impl Channelwise {
    fn forward<T: WithDType + Element>(&self, s: &CpuStorage, l: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let x = storage::slice::<T>(s, l)?;
        let mut y = dsd_kernels::zeros(x.len());
        kernels::softmax_forward(self.kind, planes_of(l.shape()), x, &mut y).map_err(Error::from)?;
        Ok(storage::tensor(y, l.shape()))
    }

    fn backward<T: WithDType + Element>(&self, y: &Tensor, g: &Tensor) -> candle_core::Result<Tensor> {
        let dx = with_slices::<T, _, _>([y, g], |[elements, g]| {
            let mut dx = dsd_kernels::zeros(elements.len());
            kernels::softmax_backward(self.kind, planes_of(y.shape()), elements, g, &mut dx)?;
            Ok(dx)
        })?;
        from_elements(dx, y.shape())
    }
}

impl CustomOp1 for Channelwise {
    fn name(&self) -> &'static str {
        self.op
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        by_dtype!(self.op, s.dtype(), self.forward(s, l))
    }

    fn bwd(&self, _: &Tensor, y: &Tensor, g: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let g = g.contiguous()?;
        by_dtype!(self.op, y.dtype(), self.backward(y, &g)).map(Some)
    }
}

#[cfg(test)]
mod tests;

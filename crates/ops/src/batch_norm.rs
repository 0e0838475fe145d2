//! Batch norm, fused with the activation after it: one node of the graph that keeps no activation of its own.

use std::sync::{Arc, OnceLock};

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp3, InplaceOp1, Layout, Shape, Tensor, WithDType, bail};
use dsd_kernels::activation::{Activation, Element, Planes};
use dsd_kernels::batch_norm::{self as kernels, Affine, Source, Statistics};

use crate::storage::{by_dtype, from_elements, with_slices};
use crate::tape::{self, Reads};
use crate::{Error, Result, check, storage};

/// The running statistics of a batch norm layer, updated in place by [`batch_norm_train`].
///
/// new = (1 − momentum) · old + momentum · batch, with the batch's mean and its *unbiased* variance: PyTorch's
/// convention.
#[derive(Clone, Copy, Debug)]
pub struct RunningStatistics<'a> {
    /// `[C]`, a plain contiguous tensor (not computed from variables). All tensors that share its storage see the update.
    pub mean: &'a Tensor,
    /// `[C]`, like `mean`.
    pub var: &'a Tensor,
    /// The part of the batch in the new value, in [0, 1].
    pub momentum: f64,
}

/// Batch norm by the statistics of the batch itself, for training, with the activation after it.
///
/// # Shapes
/// x: `[N,C,H,W]`, f32 or f64. weight, bias, running mean and var: `[C]`, of the type of x. The result has the shape
/// of x.
/// # Gradient
/// Reaches x (through the statistics as well), weight and bias.
/// # Numerics
/// Statistics are merged in f64 from blocks centred on their own mean, so a mean that is large beside the deviation
/// costs no digits. With one value per channel (N·H·W = 1) the result is activation(bias), the gradients of x and
/// weight are 0, the running mean is updated and the running var left as it is; PyTorch raises an error there.
/// # Errors
/// Shape, DType or Param.
/// # Source
/// Ioffe and Szegedy, Batch Normalization, ICML 2015.
pub fn batch_norm_train(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    running: Option<RunningStatistics<'_>>,
    eps: f64,
    activation: Activation,
) -> Result<Tensor> {
    train("batch_norm_train", x, [weight, bias], None, running, eps, activation)
}

/// [`batch_norm_train`] with a [`crate::prelu`] after it, as one node of the graph.
///
/// # Shapes
/// As there. slopes: `[C]` or `[1]`, of the type of x.
/// # Gradient
/// Reaches x, weight, bias and slopes. Where the normalised value is 0 it passes slope · g, as PyTorch has it.
/// # Errors
/// Shape, DType or Param.
pub fn batch_norm_prelu_train(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    slopes: &Tensor,
    running: Option<RunningStatistics<'_>>,
    eps: f64,
) -> Result<Tensor> {
    train("batch_norm_prelu_train", x, [weight, bias], Some(slopes), running, eps, Activation::Identity)
}

fn train(
    op: &'static str,
    x: &Tensor,
    affine: [&Tensor; 2],
    slopes: Option<&Tensor>,
    running: Option<RunningStatistics<'_>>,
    eps: f64,
    activation: Activation,
) -> Result<Tensor> {
    let (n, c, h, w) = check_arguments(op, x, affine, slopes, eps)?;
    if let Some(running) = &running {
        check_statistics(op, x, c, running.mean, running.var)?;
        for (argument, tensor) in [("mean", running.mean), ("var", running.var)] {
            if !tensor.is_contiguous() {
                return Err(check::param(op, argument, "a contiguous tensor", "strided"));
            }
        }
        if !(0.0..=1.0).contains(&running.momentum) {
            return Err(check::param(op, "momentum", "a number in [0, 1]", running.momentum));
        }
    }
    let saved = Arc::new(OnceLock::new());
    let node = BatchNorm { op, eps, activation, source: Source::Batch, statistics: saved.clone(), prelu: false };
    let y = node.apply(x, affine, slopes)?;
    if let (Some(running), Some(batch)) = (running, saved.get()) {
        let count = (n * h * w) as f64;
        let unbiased = |var: &f64| (count > 1.0).then_some(var * (count / (count - 1.0)));
        let update = |values| UpdateRunning { values, momentum: running.momentum };
        running.mean.inplace_op1(&update(batch.mean.iter().copied().map(Some).collect()))?;
        running.var.inplace_op1(&update(batch.var.iter().map(unbiased).collect()))?;
    }
    Ok(y)
}

/// Batch norm by given statistics, for evaluation or with frozen statistics, with the activation after it.
///
/// # Shapes
/// x: `[N,C,H,W]`, f32 or f64. weight, bias, mean, var: `[C]`, of the type of x. The result has the shape of x.
/// # Gradient
/// Reaches x, weight and bias; mean and var are constants.
/// # Errors
/// Shape, DType or Param.
pub fn batch_norm_eval(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    mean: &Tensor,
    var: &Tensor,
    eps: f64,
    activation: Activation,
) -> Result<Tensor> {
    evaluate("batch_norm_eval", x, [weight, bias], None, [mean, var], eps, activation)
}

/// [`batch_norm_eval`] with a [`crate::prelu`] after it, as one node of the graph.
///
/// # Shapes
/// As there. slopes: `[C]` or `[1]`, of the type of x.
/// # Gradient
/// Reaches x, weight, bias and slopes; mean and var are constants.
/// # Errors
/// Shape, DType or Param.
pub fn batch_norm_prelu_eval(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    slopes: &Tensor,
    mean: &Tensor,
    var: &Tensor,
    eps: f64,
) -> Result<Tensor> {
    evaluate("batch_norm_prelu_eval", x, [weight, bias], Some(slopes), [mean, var], eps, Activation::Identity)
}

fn evaluate(
    op: &'static str,
    x: &Tensor,
    affine: [&Tensor; 2],
    slopes: Option<&Tensor>,
    [mean, var]: [&Tensor; 2],
    eps: f64,
    activation: Activation,
) -> Result<Tensor> {
    let (_, c, _, _) = check_arguments(op, x, affine, slopes, eps)?;
    check_statistics(op, x, c, mean, var)?;
    let wide = |tensor: &Tensor| tensor.to_dtype(candle_core::DType::F64)?.to_vec1::<f64>();
    let statistics = Statistics { mean: wide(mean)?, var: wide(var)? };
    let statistics = Arc::new(OnceLock::from(statistics));
    BatchNorm { op, eps, activation, source: Source::Running, statistics, prelu: false }.apply(x, affine, slopes)
}

fn check_arguments(
    op: &'static str,
    x: &Tensor,
    [weight, bias]: [&Tensor; 2],
    slopes: Option<&Tensor>,
    eps: f64,
) -> Result<(usize, usize, usize, usize)> {
    let sizes = check::nchw(op, "x", x)?;
    for (argument, tensor) in [("weight", weight), ("bias", bias)] {
        check::dtype(op, argument, tensor, x.dtype())?;
        check::same_shape(op, argument, tensor, &[sizes.1])?;
    }
    if let Some(slopes) = slopes {
        check::dtype(op, "slopes", slopes, x.dtype())?;
        if slopes.dims() != [1] && slopes.dims() != [sizes.1] {
            return Err(check::shape(op, "slopes", format!("[{}] or [1]", sizes.1), slopes));
        }
    }
    check::positive(op, "eps", eps)?;
    Ok(sizes)
}

fn check_statistics(op: &'static str, x: &Tensor, channels: usize, mean: &Tensor, var: &Tensor) -> Result<()> {
    for (argument, tensor) in [("mean", mean), ("var", var)] {
        check::dtype(op, argument, tensor, x.dtype())?;
        check::same_shape(op, argument, tensor, &[channels])?;
    }
    Ok(())
}

/// The node. In training its statistics are found by the forward pass. Its three inputs are x, weight and bias; with a
/// PReLU they are x, weight and bias in one tensor, and the slopes.
struct BatchNorm {
    op: &'static str,
    eps: f64,
    activation: Activation,
    source: Source,
    statistics: Arc<OnceLock<Statistics>>,
    prelu: bool,
}

impl BatchNorm {
    fn apply(self, x: &Tensor, [weight, bias]: [&Tensor; 2], slopes: Option<&Tensor>) -> Result<Tensor> {
        let x = x.contiguous()?;
        Ok(match slopes {
            None => tape::apply3(&x, &weight.contiguous()?, &bias.contiguous()?, self, Reads::Inputs)?,
            Some(slopes) => {
                let node = Self { prelu: true, ..self };
                tape::apply3(&x, &crate::concat(&[weight, bias], 0)?, &slopes.contiguous()?, node, Reads::Inputs)?
            }
        })
    }

    fn affine<'a, T>(&self, second: &'a [T], third: &'a [T]) -> Affine<'a, T> {
        let (weight, bias, slopes) = if self.prelu {
            let (weight, bias) = second.split_at(second.len() / 2);
            (weight, bias, Some(third))
        } else {
            (second, third, None)
        };
        Affine { weight, bias, eps: self.eps, activation: self.activation, slopes }
    }

    fn found(&self) -> candle_core::Result<&Statistics> {
        match self.statistics.get() {
            Some(statistics) => Ok(statistics),
            None => bail!("{}: backward before forward", self.op),
        }
    }

    fn forward<T: WithDType + Element>(
        &self,
        (x, layout): (&CpuStorage, &Layout),
        (second, second_layout): (&CpuStorage, &Layout),
        (third, third_layout): (&CpuStorage, &Layout),
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let x = storage::slice::<T>(x, layout)?;
        let affine = self.affine(storage::slice(second, second_layout)?, storage::slice(third, third_layout)?);
        let sizes = sizes(layout.shape())?;
        let y = match self.source {
            Source::Batch => {
                let (y, statistics) = kernels::forward_train_vec(sizes, x, affine).map_err(Error::from)?;
                self.statistics.get_or_init(|| statistics);
                y
            }
            Source::Running => kernels::forward_eval_vec(sizes, x, affine, self.found()?).map_err(Error::from)?,
        };
        Ok(storage::tensor(y, layout.shape()))
    }

    fn backward<T: WithDType + Element>(
        &self,
        [x, second, third, g]: [&Tensor; 4],
    ) -> candle_core::Result<[Option<Tensor>; 3]> {
        let sizes = sizes(x.shape())?;
        let statistics = self.found()?;
        let wants_x = x.track_op();
        let gradients = with_slices::<T, _, _>([x, second, third, g], |[x, second, third, g]| {
            let affine = self.affine(second, third);
            Ok(kernels::backward_vec(sizes, [x, g], affine, statistics, self.source, wants_x)?)
        })?;
        let dx = gradients.x.map(|dx| from_elements(dx, x.shape())).transpose()?;
        let [dsecond, dthird] = if self.prelu {
            [[gradients.weight, gradients.bias].concat(), gradients.slopes]
        } else {
            [gradients.weight, gradients.bias]
        };
        let dsecond = second.track_op().then(|| from_elements(dsecond, second.shape())).transpose()?;
        let dthird = third.track_op().then(|| from_elements(dthird, third.shape())).transpose()?;
        Ok([dx, dsecond, dthird])
    }
}

impl CustomOp3 for BatchNorm {
    fn name(&self) -> &'static str {
        self.op
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        by_dtype!(self.op, s1.dtype(), self.forward((s1, l1), (s2, l2), (s3, l3)))
    }

    fn bwd(
        &self,
        x: &Tensor,
        second: &Tensor,
        third: &Tensor,
        _: &Tensor,
        g: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let g = g.contiguous()?;
        let [dx, dsecond, dthird] = by_dtype!(self.op, x.dtype(), self.backward([x, second, third, &g]))?;
        Ok((dx, dsecond, dthird))
    }
}

fn sizes(shape: &Shape) -> candle_core::Result<Planes> {
    let (batch, channels, h, w) = shape.dims4()?;
    Ok(Planes { batch, channels, pixels: h * w })
}

struct UpdateRunning {
    values: Vec<Option<f64>>,
    momentum: f64,
}

impl UpdateRunning {
    fn run<T: dsd_kernels::Float>(&self, running: &mut [T], layout: &Layout) -> candle_core::Result<()> {
        let Some((from, to)) = layout.contiguous_offsets() else {
            bail!("batch norm: a running statistic is strided, expected a contiguous tensor")
        };
        Ok(kernels::update_running(&mut running[from..to], &self.values, self.momentum).map_err(Error::from)?)
    }
}

impl InplaceOp1 for UpdateRunning {
    fn name(&self) -> &'static str {
        "update_running_statistics"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        match storage {
            CpuStorage::F32(running) => self.run(running, layout),
            CpuStorage::F64(running) => self.run(running, layout),
            other => Err(crate::storage::unsupported("batch_norm_train", other.dtype()).into()),
        }
    }
}

#[cfg(test)]
mod tests;

//! Batch norm, fused with the activation after it: one node of the graph that keeps no activation of its own.

use std::sync::{Arc, OnceLock};

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp3, InplaceOp1, Layout, Shape, Tensor, WithDType, bail};
use dsd_kernels::activation::{Activation, Planes};
use dsd_kernels::batch_norm::{self as kernels, Affine, Gradients, Source, Statistics};

use crate::storage::{by_dtype, from_elements, with_slices};
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
    const OP: &str = "batch_norm_train";
    let (n, c, h, w) = check_arguments(OP, x, weight, bias, eps)?;
    if let Some(running) = &running {
        check_statistics(OP, x, c, running.mean, running.var)?;
        for (argument, tensor) in [("mean", running.mean), ("var", running.var)] {
            if !tensor.is_contiguous() {
                return Err(check::param(OP, argument, "a contiguous tensor", "strided"));
            }
        }
        if !(0.0..=1.0).contains(&running.momentum) {
            return Err(check::param(OP, "momentum", "a number in [0, 1]", running.momentum));
        }
    }
    let saved = Arc::new(OnceLock::new());
    let op = BatchNorm { op: OP, eps, activation, source: Source::Batch, statistics: saved.clone() };
    let y = x.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, op)?;
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
    const OP: &str = "batch_norm_eval";
    let (_, c, _, _) = check_arguments(OP, x, weight, bias, eps)?;
    check_statistics(OP, x, c, mean, var)?;
    let wide = |tensor: &Tensor| tensor.to_dtype(candle_core::DType::F64)?.to_vec1::<f64>();
    let statistics = Statistics { mean: wide(mean)?, var: wide(var)? };
    let statistics = Arc::new(OnceLock::from(statistics));
    let op = BatchNorm { op: OP, eps, activation, source: Source::Running, statistics };
    Ok(x.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, op)?)
}

fn check_arguments(
    op: &'static str,
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
) -> Result<(usize, usize, usize, usize)> {
    let sizes = check::nchw(op, "x", x)?;
    for (argument, tensor) in [("weight", weight), ("bias", bias)] {
        check::dtype(op, argument, tensor, x.dtype())?;
        check::same_shape(op, argument, tensor, &[sizes.1])?;
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

/// The node. In training its statistics are found by the forward pass.
struct BatchNorm {
    op: &'static str,
    eps: f64,
    activation: Activation,
    source: Source,
    statistics: Arc<OnceLock<Statistics>>,
}

impl BatchNorm {
    fn affine<'a, T>(&self, weight: &'a [T], bias: &'a [T]) -> Affine<'a, T> {
        Affine { weight, bias, eps: self.eps, activation: self.activation }
    }

    fn found(&self) -> candle_core::Result<&Statistics> {
        match self.statistics.get() {
            Some(statistics) => Ok(statistics),
            None => bail!("{}: backward before forward", self.op),
        }
    }

    fn forward<T: WithDType + dsd_kernels::Float>(
        &self,
        (x, layout): (&CpuStorage, &Layout),
        (weight, weight_layout): (&CpuStorage, &Layout),
        (bias, bias_layout): (&CpuStorage, &Layout),
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let x = storage::slice::<T>(x, layout)?;
        let affine = self.affine(storage::slice(weight, weight_layout)?, storage::slice(bias, bias_layout)?);
        let sizes = sizes(layout.shape())?;
        let mut y = vec![T::ZERO; x.len()];
        match self.source {
            Source::Batch => {
                let statistics = kernels::forward_train(sizes, x, affine, &mut y).map_err(Error::from)?;
                self.statistics.get_or_init(|| statistics);
            }
            Source::Running => {
                kernels::forward_eval(sizes, x, affine, self.found()?, &mut y).map_err(Error::from)?;
            }
        }
        Ok(storage::tensor(y, layout.shape()))
    }

    fn backward<T: WithDType + dsd_kernels::Float>(
        &self,
        [x, weight, bias, y, g]: [&Tensor; 5],
    ) -> candle_core::Result<[Option<Tensor>; 3]> {
        let sizes = sizes(x.shape())?;
        let statistics = self.found()?;
        let mut dx = x.track_op().then(|| vec![T::ZERO; x.elem_count()]);
        let (mut dweight, mut dbias) = (vec![T::ZERO; sizes.channels], vec![T::ZERO; sizes.channels]);
        with_slices::<T, _, _>([x, weight, bias, y, g], |[x, weight, bias, y, g]| {
            let gradients = Gradients { x: dx.as_deref_mut(), weight: &mut dweight, bias: &mut dbias };
            Ok(kernels::backward(sizes, x, y, g, self.affine(weight, bias), statistics, self.source, gradients)?)
        })?;
        let dx = dx.map(|dx| from_elements(dx, x.shape())).transpose()?;
        let dweight = weight.track_op().then(|| from_elements(dweight, weight.shape())).transpose()?;
        let dbias = bias.track_op().then(|| from_elements(dbias, bias.shape())).transpose()?;
        Ok([dx, dweight, dbias])
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
        weight: &Tensor,
        bias: &Tensor,
        y: &Tensor,
        g: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let g = g.contiguous()?;
        let [dx, dweight, dbias] = by_dtype!(self.op, x.dtype(), self.backward([x, weight, bias, y, &g]))?;
        Ok((dx, dweight, dbias))
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
            bail!("batch_norm_train: a running statistic is strided, expected a contiguous tensor")
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

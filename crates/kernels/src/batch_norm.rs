//! Batch norm over `[N,C,…]` fused with the activation after it: one pass for the statistics, one for the output.
//!
//! y = activation((x − mean) · rstd · weight + bias), rstd = 1 / √(var + eps), mean and biased variance of each channel
//! over N, H and W. Only the statistics are kept for the backward pass; with g masked by the activation (judged by y)
//! and m = N·H·W:
//!
//! dbias = Σ g; dweight = rstd · Σ g·(x − mean); dx = weight · rstd · (g − dbias/m − (x − mean) · rstd · dweight/m)
//!
//! Sergey Ioffe, Christian Szegedy: Batch Normalization, ICML 2015. The variance is computed block by block about the
//! block's own mean and merged in f64 (Chan, Golub, LeVeque 1979), so that a large mean costs no digits.

mod loops;

use crate::activation::{Activation, Planes, vectorised};
use crate::error::{check_length, param};
use crate::parallel::{Shared, for_each_task};
use crate::{Float, Result};
use loops::{Gradient, GradientSums, Moments, Normalise, moments};

/// Mean and biased variance of each channel.
#[derive(Clone, Debug, PartialEq)]
pub struct Statistics {
    /// `[C]`.
    pub mean: Vec<f64>,
    /// `[C]`, divided by N·H·W.
    pub var: Vec<f64>,
}

/// The learned scale and shift of each channel, and what is the same for all of them.
#[derive(Clone, Copy, Debug)]
pub struct Affine<'a, T> {
    /// `[C]`.
    pub weight: &'a [T],
    /// `[C]`.
    pub bias: &'a [T],
    /// Added to the variance.
    pub eps: f64,
    /// What follows.
    pub activation: Activation,
}

/// Which statistics the output came from: those of x itself, through which a gradient flows, or given ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Those of x, as in training.
    Batch,
    /// Constants, as in evaluation.
    Running,
}

/// Elements that make a task worth its start.
const TASK: usize = 1 << 14;

/// Normalises x by its own statistics into `y` and returns them.
///
/// # Errors
/// Length.
pub fn forward_train<T: Float>(sizes: Planes, x: &[T], affine: Affine<'_, T>, y: &mut [T]) -> Result<Statistics> {
    check_forward(sizes, x, &affine, y)?;
    let mut statistics = Statistics { mean: vec![0.0; sizes.channels], var: vec![0.0; sizes.channels] };
    let (mean, var) = (Shared::new(&mut statistics.mean), Shared::new(&mut statistics.var));
    let y = Shared::new(y);
    for_each_channel(sizes, |channel| {
        let merged = planes(sizes, channel)
            .map(|from| moments(&x[from..from + sizes.pixels]))
            .fold(Moments::default(), Moments::merge);
        normalise(sizes, channel, x, affine, merged.mean, merged.variance(), &y);
        #[allow(unsafe_code, reason = "each channel writes its own two numbers")]
        // SAFETY: one element at the index of the channel, and each channel is visited once.
        unsafe {
            mean.part(channel, 1)[0] = merged.mean;
            var.part(channel, 1)[0] = merged.variance();
        }
    });
    Ok(statistics)
}

/// Normalises x by given statistics into `y`.
///
/// # Errors
/// Length.
pub fn forward_eval<T: Float>(
    sizes: Planes,
    x: &[T],
    affine: Affine<'_, T>,
    statistics: &Statistics,
    y: &mut [T],
) -> Result<()> {
    check_forward(sizes, x, &affine, y)?;
    check_statistics(sizes, statistics)?;
    let y = Shared::new(y);
    for_each_channel(sizes, |channel| {
        normalise(sizes, channel, x, affine, statistics.mean[channel], statistics.var[channel], &y);
    });
    Ok(())
}

/// Where the gradients of [`backward`] go.
#[derive(Debug)]
pub struct Gradients<'a, T> {
    /// `[N,C,…]`; none where nobody asks for it.
    pub x: Option<&'a mut [T]>,
    /// `[C]`.
    pub weight: &'a mut [T],
    /// `[C]`.
    pub bias: &'a mut [T],
}

/// The gradients of [`forward_train`] or [`forward_eval`] from x, the output `y` and the output's gradient `g`.
///
/// With one value per channel and its own statistics the gradients of x and weight are exactly 0.
///
/// # Errors
/// Length.
pub fn backward<T: Float>(
    sizes: Planes,
    x: &[T],
    y: &[T],
    g: &[T],
    affine: Affine<'_, T>,
    statistics: &Statistics,
    source: Source,
    gradients: Gradients<'_, T>,
) -> Result<()> {
    check_forward(sizes, x, &affine, y)?;
    check_statistics(sizes, statistics)?;
    check_length(OP, "gradient", g.len(), sizes.elements())?;
    check_length(OP, "weight gradient", gradients.weight.len(), sizes.channels)?;
    check_length(OP, "bias gradient", gradients.bias.len(), sizes.channels)?;
    if let Some(dx) = &gradients.x {
        check_length(OP, "input gradient", dx.len(), sizes.elements())?;
    }
    let count = (sizes.batch * sizes.pixels) as f64;
    let alone = source == Source::Batch && sizes.batch * sizes.pixels == 1;
    let (dweight, dbias) = (Shared::new(gradients.weight), Shared::new(gradients.bias));
    let dx = gradients.x.map(Shared::new);
    for_each_channel(sizes, |channel| {
        let exact = statistics.mean[channel];
        let rstd = 1.0 / (statistics.var[channel] + affine.eps).sqrt();
        // x − mean in the element type; what the rounding of the mean took is put back in f64.
        let mean = T::from_f64(exact);
        let lost = exact - mean.to_f64();
        let (mut sum, mut product) = (0.0, 0.0);
        for from in planes(sizes, channel) {
            let to = from + sizes.pixels;
            let part =
                GradientSums { x: &x[from..to], y: &y[from..to], g: &g[from..to], mean, activation: affine.activation };
            let (g, gx) = vectorised(part);
            sum += g;
            product += gx;
        }
        product = if alone { 0.0 } else { product - lost * sum };
        #[allow(unsafe_code, reason = "each channel writes its own two numbers")]
        // SAFETY: one element at the index of the channel, and each channel is visited once.
        unsafe {
            dbias.part(channel, 1)[0] = T::from_f64(sum);
            dweight.part(channel, 1)[0] = T::from_f64(product * rstd);
        }
        let Some(dx) = &dx else { return };
        let scale = if alone { 0.0 } else { affine.weight[channel].to_f64() * rstd };
        let (slope, offset) = match source {
            Source::Running => (0.0, 0.0),
            Source::Batch => {
                let slope = -scale * rstd * rstd * product / count;
                (slope, -scale * sum / count - slope * lost)
            }
        };
        let (scale, slope, offset) = (T::from_f64(scale), T::from_f64(slope), T::from_f64(offset));
        for from in planes(sizes, channel) {
            let to = from + sizes.pixels;
            #[allow(unsafe_code, reason = "channels write disjoint planes")]
            // SAFETY: the plane belongs to this channel alone, and each channel is visited once.
            let dx = unsafe { dx.part(from, sizes.pixels) };
            let (x, y, g) = (&x[from..to], &y[from..to], &g[from..to]);
            vectorised(Gradient { x, y, g, mean, scale, slope, offset, activation: affine.activation, dx });
        }
    });
    Ok(())
}

/// new = (1 − momentum) · old + momentum · batch: what the next evaluation uses.
///
/// `values` has one batch value per channel; a value that is none (the unbiased variance of a single number) leaves
/// the old one.
///
/// # Errors
/// Length.
pub fn update_running<T: Float>(running: &mut [T], values: &[Option<f64>], momentum: f64) -> Result<()> {
    check_length(OP, "running statistics", running.len(), values.len())?;
    for (running, value) in running.iter_mut().zip(values) {
        if let Some(value) = value {
            *running = T::from_f64((1.0 - momentum) * running.to_f64() + momentum * value);
        }
    }
    Ok(())
}

const OP: &str = "batch_norm";

fn check_forward<T: Float>(sizes: Planes, x: &[T], affine: &Affine<'_, T>, y: &[T]) -> Result<()> {
    check_length(OP, "x", x.len(), sizes.elements())?;
    check_length(OP, "weight", affine.weight.len(), sizes.channels)?;
    check_length(OP, "bias", affine.bias.len(), sizes.channels)?;
    check_length(OP, "output", y.len(), sizes.elements())?;
    if sizes.batch * sizes.pixels == 0 {
        return Err(param(OP, "x", "at least one value per channel", "none"));
    }
    Ok(())
}

fn check_statistics(sizes: Planes, statistics: &Statistics) -> Result<()> {
    check_length(OP, "mean", statistics.mean.len(), sizes.channels)?;
    check_length(OP, "var", statistics.var.len(), sizes.channels)
}

/// Where each image's plane of a channel starts.
fn planes(sizes: Planes, channel: usize) -> impl Iterator<Item = usize> {
    (0..sizes.batch).map(move |image| (image * sizes.channels + channel) * sizes.pixels)
}

/// Runs `task` once for each channel, several channels one after the other where they are small.
fn for_each_channel(sizes: Planes, task: impl Fn(usize) + Sync + Send) {
    let per_task = (TASK / (sizes.batch * sizes.pixels)).max(1);
    for_each_task(sizes.channels.div_ceil(per_task), |group| {
        (group * per_task..((group + 1) * per_task).min(sizes.channels)).for_each(&task);
    });
}

/// The output of one channel.
fn normalise<T: Float>(
    sizes: Planes,
    channel: usize,
    x: &[T],
    affine: Affine<'_, T>,
    exact: f64,
    var: f64,
    y: &Shared<'_, T>,
) {
    let scale = affine.weight[channel].to_f64() / (var + affine.eps).sqrt();
    let mean = T::from_f64(exact);
    let offset = T::from_f64(affine.bias[channel].to_f64() - scale * (exact - mean.to_f64()));
    let scale = T::from_f64(scale);
    for from in planes(sizes, channel) {
        #[allow(unsafe_code, reason = "channels write disjoint planes")]
        // SAFETY: the plane belongs to this channel alone, and each channel is visited once.
        let y = unsafe { y.part(from, sizes.pixels) };
        let x = &x[from..from + sizes.pixels];
        vectorised(Normalise { x, mean, scale, offset, activation: affine.activation, y });
    }
}

#[cfg(test)]
mod tests;

//! Batch norm over `[N,C,…]` fused with the activation after it: one pass for the statistics, one for the output.
//!
//! y = activation((x − mean) · rstd · weight + bias), rstd = 1 / √(var + eps), mean and biased variance of each channel
//! over N, H and W. Only the statistics are kept for the backward pass; with g taken through the activation and
//! m = N·H·W:
//!
//! dbias = Σ g; dweight = rstd · Σ g·(x − mean); dx = weight · rstd · (g − dbias/m − (x − mean) · rstd · dweight/m)
//!
//! Sergey Ioffe, Christian Szegedy: Batch Normalization, ICML 2015. The variance is computed block by block about the
//! block's own mean and merged in f64 (Chan, Golub, LeVeque 1979), so that a large mean costs no digits.

mod loops;

use std::mem::MaybeUninit;

use crate::activation::{Activation, Element, Planes, vectorised};
use crate::error::{check_length, param};
use crate::fresh::{uninit, written};
use crate::parallel::{Shared, for_each_task};
use crate::{Float, Result};
use loops::{Channel, Gradient, GradientSums, Moments, Next, Normalise, moments};

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
    /// The slopes below zero of a PReLU that follows in place of `activation`: `[C]`, or one for all channels.
    pub slopes: Option<&'a [T]>,
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
pub fn forward_train<T: Element>(sizes: Planes, x: &[T], affine: Affine<'_, T>, y: &mut [T]) -> Result<Statistics> {
    check_forward(sizes, x, &affine, y.len())?;
    Ok(train(sizes, x, affine, uninit(y)))
}

/// [`forward_train`] into a new vector.
///
/// # Errors
/// Length.
#[allow(unsafe_code, reason = "all channels together write the whole output")]
pub fn forward_train_vec<T: Element>(sizes: Planes, x: &[T], affine: Affine<'_, T>) -> Result<(Vec<T>, Statistics)> {
    check_forward(sizes, x, &affine, sizes.elements())?;
    // SAFETY: every channel is visited, and writes all of its planes.
    Ok(unsafe { written(sizes.elements(), |y| train(sizes, x, affine, y)) })
}

/// Writes every element of `y`.
fn train<T: Element>(sizes: Planes, x: &[T], affine: Affine<'_, T>, y: &mut [MaybeUninit<T>]) -> Statistics {
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
    statistics
}

/// Normalises x by given statistics into `y`.
///
/// # Errors
/// Length.
pub fn forward_eval<T: Element>(
    sizes: Planes,
    x: &[T],
    affine: Affine<'_, T>,
    statistics: &Statistics,
    y: &mut [T],
) -> Result<()> {
    check_forward(sizes, x, &affine, y.len())?;
    check_statistics(sizes, statistics)?;
    evaluate(sizes, x, affine, statistics, uninit(y));
    Ok(())
}

/// [`forward_eval`] into a new vector.
///
/// # Errors
/// Length.
#[allow(unsafe_code, reason = "all channels together write the whole output")]
pub fn forward_eval_vec<T: Element>(
    sizes: Planes,
    x: &[T],
    affine: Affine<'_, T>,
    statistics: &Statistics,
) -> Result<Vec<T>> {
    check_forward(sizes, x, &affine, sizes.elements())?;
    check_statistics(sizes, statistics)?;
    // SAFETY: every channel is visited, and writes all of its planes.
    Ok(unsafe { written(sizes.elements(), |y| evaluate(sizes, x, affine, statistics, y)) }.0)
}

/// Writes every element of `y`.
fn evaluate<T: Element>(
    sizes: Planes,
    x: &[T],
    affine: Affine<'_, T>,
    statistics: &Statistics,
    y: &mut [MaybeUninit<T>],
) {
    let y = Shared::new(y);
    for_each_channel(sizes, |channel| {
        normalise(sizes, channel, x, affine, statistics.mean[channel], statistics.var[channel], &y);
    });
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
    /// As long as the slopes; empty without.
    pub slopes: &'a mut [T],
}

/// The gradients of [`forward_train`] or [`forward_eval`] from x and the output's gradient `g`; what went into the
/// activation is computed again, to the same bit.
///
/// With one value per channel and its own statistics the gradients of x and weight are exactly 0.
///
/// # Errors
/// Length.
pub fn backward<T: Element>(
    sizes: Planes,
    x: &[T],
    g: &[T],
    affine: Affine<'_, T>,
    statistics: &Statistics,
    source: Source,
    gradients: Gradients<'_, T>,
) -> Result<()> {
    check_backward(sizes, x, g, &affine, statistics)?;
    check_length(OP, "weight gradient", gradients.weight.len(), sizes.channels)?;
    check_length(OP, "bias gradient", gradients.bias.len(), sizes.channels)?;
    check_length(OP, "slopes' gradient", gradients.slopes.len(), affine.slopes.map_or(0, <[T]>::len))?;
    if let Some(dx) = &gradients.x {
        check_length(OP, "input gradient", dx.len(), sizes.elements())?;
    }
    let Gradients { x: dx, weight, bias, slopes } = gradients;
    differentiate(sizes, [x, g], affine, statistics, source, dx.map(uninit), [weight, bias, slopes]);
    Ok(())
}

/// The gradients of [`backward_vec`].
#[derive(Debug)]
pub struct NewGradients<T> {
    /// `[N,C,…]`; none where nobody asked for it.
    pub x: Option<Vec<T>>,
    /// `[C]`.
    pub weight: Vec<T>,
    /// `[C]`.
    pub bias: Vec<T>,
    /// As long as the slopes; empty without.
    pub slopes: Vec<T>,
}

/// [`backward`] into new vectors; that of x only where `wants_x` says so.
///
/// # Errors
/// Length.
#[allow(unsafe_code, reason = "all channels together write the whole gradient")]
pub fn backward_vec<T: Element>(
    sizes: Planes,
    [x, g]: [&[T]; 2],
    affine: Affine<'_, T>,
    statistics: &Statistics,
    source: Source,
    wants_x: bool,
) -> Result<NewGradients<T>> {
    check_backward(sizes, x, g, &affine, statistics)?;
    let zeros = |len: usize| vec![T::ZERO; len];
    let (mut weight, mut bias) = (zeros(sizes.channels), zeros(sizes.channels));
    let mut slopes = zeros(affine.slopes.map_or(0, <[T]>::len));
    let mut run = |dx: Option<&mut [MaybeUninit<T>]>| {
        differentiate(sizes, [x, g], affine, statistics, source, dx, [&mut weight, &mut bias, &mut slopes]);
    };
    let x = if wants_x {
        // SAFETY: every channel is visited, and writes all of its planes.
        Some(unsafe { written(sizes.elements(), |dx| run(Some(dx))) }.0)
    } else {
        run(None);
        None
    };
    Ok(NewGradients { x, weight, bias, slopes })
}

/// Writes every element of `dx`.
fn differentiate<T: Element>(
    sizes: Planes,
    [x, g]: [&[T]; 2],
    affine: Affine<'_, T>,
    statistics: &Statistics,
    source: Source,
    dx: Option<&mut [MaybeUninit<T>]>,
    [dweight, dbias, dslopes]: [&mut [T]; 3],
) {
    let count = (sizes.batch * sizes.pixels) as f64;
    let alone = source == Source::Batch && sizes.batch * sizes.pixels == 1;
    let (dweight, dbias) = (Shared::new(dweight), Shared::new(dbias));
    let mut slope_sums = vec![0.0; sizes.channels];
    let slope_sum = Shared::new(&mut slope_sums);
    let dx = dx.map(Shared::new);
    for_each_channel(sizes, |channel| {
        let exact = statistics.mean[channel];
        let rstd = 1.0 / (statistics.var[channel] + affine.eps).sqrt();
        // x − mean in the element type; what the rounding of the mean took is put back in f64.
        let normalised = affine.channel(channel, exact, statistics.var[channel]);
        let lost = exact - normalised.mean.to_f64();
        let next = affine.next(channel);
        let (mut sum, mut product, mut slopes) = (0.0, 0.0, 0.0);
        for from in planes(sizes, channel) {
            let to = from + sizes.pixels;
            let (x, g) = (&x[from..to], &g[from..to]);
            let [g, gx, slope] = vectorised(GradientSums { x, g, channel: normalised, next });
            sum += g;
            product += gx;
            slopes += slope;
        }
        product = if alone { 0.0 } else { product - lost * sum };
        #[allow(unsafe_code, reason = "each channel writes its own three numbers")]
        // SAFETY: one element at the index of the channel, and each channel is visited once.
        unsafe {
            slope_sum.part(channel, 1)[0] = slopes;
            dbias.part(channel, 1)[0] = T::from_f64(sum);
            dweight.part(channel, 1)[0] = T::from_f64(product * rstd);
        }
        let Some(dx) = &dx else { return };
        let scale = if alone { 0.0 } else { affine.weight[channel].to_f64() * rstd };
        let (slope, shift) = match source {
            Source::Running => (0.0, 0.0),
            Source::Batch => {
                let slope = -scale * rstd * rstd * product / count;
                (slope, -scale * sum / count - slope * lost)
            }
        };
        let (factor, slope, shift) = (T::from_f64(scale), T::from_f64(slope), T::from_f64(shift));
        for from in planes(sizes, channel) {
            let to = from + sizes.pixels;
            #[allow(unsafe_code, reason = "channels write disjoint planes")]
            // SAFETY: the plane belongs to this channel alone, and each channel is visited once.
            let dx = unsafe { dx.part(from, sizes.pixels) };
            let (x, g) = (&x[from..to], &g[from..to]);
            vectorised(Gradient { x, g, channel: normalised, factor, slope, shift, next, dx });
        }
    });
    match dslopes {
        [one] => *one = T::from_f64(slope_sums.iter().sum()),
        each => each.iter_mut().zip(&slope_sums).for_each(|(slope, sum)| *slope = T::from_f64(*sum)),
    }
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

fn check_forward<T: Float>(sizes: Planes, x: &[T], affine: &Affine<'_, T>, y: usize) -> Result<()> {
    check_length(OP, "x", x.len(), sizes.elements())?;
    check_length(OP, "weight", affine.weight.len(), sizes.channels)?;
    check_length(OP, "bias", affine.bias.len(), sizes.channels)?;
    if let Some(slopes) = affine.slopes.filter(|slopes| slopes.len() != 1) {
        check_length(OP, "slopes", slopes.len(), sizes.channels)?;
    }
    check_length(OP, "output", y, sizes.elements())?;
    if sizes.batch * sizes.pixels == 0 {
        return Err(param(OP, "x", "at least one value per channel", "none"));
    }
    Ok(())
}

fn check_backward<T: Float>(
    sizes: Planes,
    x: &[T],
    g: &[T],
    affine: &Affine<'_, T>,
    statistics: &Statistics,
) -> Result<()> {
    check_forward(sizes, x, affine, sizes.elements())?;
    check_statistics(sizes, statistics)?;
    check_length(OP, "gradient", g.len(), sizes.elements())
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

impl<T: Float> Affine<'_, T> {
    /// How a channel with this mean and variance is normalised.
    fn channel(&self, channel: usize, exact: f64, var: f64) -> Channel<T> {
        let scale = self.weight[channel].to_f64() / (var + self.eps).sqrt();
        let mean = T::from_f64(exact);
        let offset = T::from_f64(self.bias[channel].to_f64() - scale * (exact - mean.to_f64()));
        Channel { mean, scale: T::from_f64(scale), offset }
    }

    /// What follows the normalisation of a channel.
    fn next(&self, channel: usize) -> Next<T> {
        let slope = |slopes: &[T]| if let [one] = slopes { *one } else { slopes[channel] };
        Next { activation: self.activation, slope: self.slopes.map(slope) }
    }
}

/// The output of one channel.
fn normalise<T: Element>(
    sizes: Planes,
    channel: usize,
    x: &[T],
    affine: Affine<'_, T>,
    mean: f64,
    var: f64,
    y: &Shared<'_, MaybeUninit<T>>,
) {
    let normalised = affine.channel(channel, mean, var);
    for from in planes(sizes, channel) {
        #[allow(unsafe_code, reason = "channels write disjoint planes")]
        // SAFETY: the plane belongs to this channel alone, and each channel is visited once.
        let y = unsafe { y.part(from, sizes.pixels) };
        let x = &x[from..from + sizes.pixels];
        vectorised(Normalise { x, channel: normalised, next: affine.next(channel), y });
    }
}

#[cfg(test)]
mod tests;

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
use std::ops::Range;

use rayon::prelude::*;

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
    let y = Shared::new(y);
    let merged = in_two_sweeps(
        sizes,
        |_, elements| moments(&x[elements]),
        |channel, planes| {
            let merged = planes.fold(Moments::default(), Moments::merge);
            (merged, affine.channel(channel, merged.mean, merged.variance()))
        },
        |channel, elements, (_, normalised)| normalise(x, elements, *normalised, affine.next(channel), &y),
    );
    Statistics {
        mean: merged.iter().map(|(moments, _)| moments.mean).collect(),
        var: merged.iter().map(|(moments, _)| moments.variance()).collect(),
    }
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
    for_each_plane(sizes, |plane, elements| {
        let channel = plane % sizes.channels;
        let normalised = affine.channel(channel, statistics.mean[channel], statistics.var[channel]);
        normalise(x, elements, normalised, affine.next(channel), &y);
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
    let dx = dx.map(Shared::new);
    let normalised = |channel| affine.channel(channel, statistics.mean[channel], statistics.var[channel]);
    let merge = |channel, planes: &mut dyn Iterator<Item = [f64; 3]>| {
        let [mut sum, mut product, mut slopes] = [0.0; 3];
        for [g, gx, slope] in planes {
            sum += g;
            product += gx;
            slopes += slope;
        }
        let (exact, normalised) = (statistics.mean[channel], normalised(channel));
        // x − mean is in the element type; what the rounding of the mean took is put back in f64.
        let lost = exact - normalised.mean.to_f64();
        product = if alone { 0.0 } else { product - lost * sum };
        let rstd = 1.0 / (statistics.var[channel] + affine.eps).sqrt();
        let scale = if alone { 0.0 } else { affine.weight[channel].to_f64() * rstd };
        let (slope, shift) = match source {
            Source::Running => (0.0, 0.0),
            Source::Batch => {
                let slope = -scale * rstd * rstd * product / count;
                (slope, -scale * sum / count - slope * lost)
            }
        };
        Terms { normalised, of_x: [scale, slope, shift].map(T::from_f64), bias: sum, weight: product * rstd, slopes }
    };
    let sums = |channel, elements: Range<usize>| {
        let (x, g) = (&x[elements.clone()], &g[elements]);
        vectorised(GradientSums { x, g, channel: normalised(channel), next: affine.next(channel) })
    };
    let gradient = |channel, elements: Range<usize>, terms: &Terms<T>| {
        let Some(dx) = &dx else { return };
        #[allow(unsafe_code, reason = "tasks write disjoint planes")]
        // SAFETY: each plane is visited once.
        let dx = unsafe { dx.part(elements.start, elements.len()) };
        let (x, g, [factor, slope, shift]) = (&x[elements.clone()], &g[elements], terms.of_x);
        vectorised(Gradient { x, g, channel: terms.normalised, factor, slope, shift, next: affine.next(channel), dx });
    };
    let terms = in_two_sweeps(sizes, sums, merge, gradient);
    for (channel, terms) in terms.iter().enumerate() {
        dbias[channel] = T::from_f64(terms.bias);
        dweight[channel] = T::from_f64(terms.weight);
    }
    match dslopes {
        [one] => *one = T::from_f64(terms.iter().map(|terms| terms.slopes).sum()),
        each => each.iter_mut().zip(&terms).for_each(|(slope, terms)| *slope = T::from_f64(terms.slopes)),
    }
}

/// What the gradients of one channel are made of.
struct Terms<T> {
    normalised: Channel<T>,
    /// Factor, slope and shift of [`Gradient`].
    of_x: [T; 3],
    bias: f64,
    weight: f64,
    slopes: f64,
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

/// Elements of a tensor from which on it does not stay in a third-level cache between two sweeps,
const LARGE: usize = 4 << 20;
/// and of a plane that is worth to be read by itself.
const LARGE_PLANE: usize = 4 << 10;

/// Runs `first` for every plane (its channel, its elements), merges what it gives for the images of each channel in order,
/// and runs `second` for every plane with that; returns what was merged.
///
/// Most often the planes are gone through twice in the order in which they lie in memory: the convolutions before and after
/// share out their pixels so, and most of what a thread reads it has written itself. Large ones channel by channel, so
/// that the second sweep finds them in the cache.
fn in_two_sweeps<S: Copy + Default + Send + Sync, C: Send + Sync>(
    sizes: Planes,
    first: impl Fn(usize, Range<usize>) -> S + Send + Sync,
    merge: impl Fn(usize, &mut dyn Iterator<Item = S>) -> C + Send + Sync,
    second: impl Fn(usize, Range<usize>, &C) + Send + Sync,
) -> Vec<C> {
    let Planes { batch, channels, pixels } = sizes;
    let planes = |channel: usize| (0..batch).map(move |image| image * channels + channel);
    let elements = |plane: usize| plane * pixels..(plane + 1) * pixels;
    if sizes.elements() >= LARGE && pixels >= LARGE_PLANE {
        let run = |channel: usize| {
            let merged = merge(channel, &mut planes(channel).map(|plane| first(channel, elements(plane))));
            planes(channel).for_each(|plane| second(channel, elements(plane), &merged));
            merged
        };
        return (0..channels).into_par_iter().with_max_len(1).map(run).collect();
    }
    let mut found = vec![S::default(); batch * channels];
    let places = Shared::new(&mut found);
    for_each_plane(sizes, |plane, elements| {
        let result = first(plane % channels, elements);
        #[allow(unsafe_code, reason = "each plane has its own place")]
        // SAFETY: one element at the index of the plane, and each plane is visited once.
        unsafe {
            places.part(plane, 1)[0] = result;
        }
    });
    let merge = |channel| merge(channel, &mut planes(channel).map(|plane| found[plane]));
    let merged: Vec<C> = (0..channels).map(merge).collect();
    for_each_plane(sizes, |plane, elements| second(plane % channels, elements, &merged[plane % channels]));
    merged
}

/// Runs `task` for each plane with its elements, in the order in which they lie in memory. Several small planes are one
/// task.
fn for_each_plane(sizes: Planes, task: impl Fn(usize, Range<usize>) + Sync + Send) {
    let (count, per_task) = (sizes.batch * sizes.channels, (TASK / sizes.pixels).max(1));
    for_each_task(count.div_ceil(per_task), |group| {
        for plane in group * per_task..((group + 1) * per_task).min(count) {
            task(plane, plane * sizes.pixels..(plane + 1) * sizes.pixels);
        }
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

/// The outputs of one plane.
fn normalise<T: Element>(
    x: &[T],
    elements: Range<usize>,
    channel: Channel<T>,
    next: Next<T>,
    y: &Shared<'_, MaybeUninit<T>>,
) {
    #[allow(unsafe_code, reason = "tasks write disjoint planes")]
    // SAFETY: each plane is visited once.
    let y = unsafe { y.part(elements.start, elements.len()) };
    vectorised(Normalise { x: &x[elements], channel, next, y });
}

#[cfg(test)]
mod tests;

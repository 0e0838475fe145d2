//! Activations, PReLU, softmax and log-softmax over the channels of `[N,C,…]`.

mod elementary;
mod softmax;

use rayon::prelude::*;

use crate::error::check_length;
use crate::{Float, Result};

pub use elementary::Element;
pub(crate) use elementary::{Kernel, vectorised};
pub(crate) use softmax::{FLUSH, TILE, Tile, flush, for_each_tile, largest, tile_count};
pub use softmax::{Softmax, softmax_backward, softmax_forward};

/// The sizes of a `[N,C,…]` array whose trailing axes are one: N images of C planes of H·W elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Planes {
    /// N.
    pub batch: usize,
    /// C.
    pub channels: usize,
    /// H·W.
    pub pixels: usize,
}

impl Planes {
    /// N·C·H·W.
    #[must_use]
    pub fn elements(self) -> usize {
        self.batch * self.channels * self.pixels
    }
}

/// What follows a batch norm in the same pass. The derivative is 0 at both corners, as PyTorch has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// y = x.
    Identity,
    /// y = max(x, 0).
    Relu,
    /// y = min(max(x, 0), 6).
    Relu6,
}

impl Activation {
    /// The activation of one value. A NaN stays one.
    #[inline(always)]
    pub fn apply<T: Float>(self, value: T) -> T {
        match self {
            Self::Identity => value,
            Self::Relu => relu(value),
            Self::Relu6 => relu6(value),
        }
    }

    /// True where the gradient passes, judged by the activation's output `y`.
    #[inline(always)]
    pub fn passes<T: Float>(self, y: T) -> bool {
        match self {
            Self::Identity => true,
            Self::Relu => passes_relu(y),
            Self::Relu6 => passes_relu6(y),
        }
    }
}

// Written as comparisons that are false for a NaN, so that it goes through instead of becoming 0.
#[inline(always)]
pub(crate) fn relu<T: Float>(value: T) -> T {
    if value <= T::ZERO { T::ZERO } else { value }
}

#[inline(always)]
pub(crate) fn relu6<T: Float>(value: T) -> T {
    let six = T::from_f64(6.0);
    let low = relu(value);
    if low >= six { six } else { low }
}

#[inline(always)]
pub(crate) fn passes_relu<T: Float>(y: T) -> bool {
    y > T::ZERO
}

#[inline(always)]
pub(crate) fn passes_relu6<T: Float>(y: T) -> bool {
    // No short circuit: two comparisons and an AND vectorise, a branch does not.
    (y > T::ZERO) & (y < T::from_f64(6.0))
}

/// Elements per task of an elementwise pass.
const CHUNK: usize = 1 << 15;

/// y = activation(x), element by element.
///
/// # Errors
/// Length.
pub fn forward<T: Float>(activation: Activation, x: &[T], y: &mut [T]) -> Result<()> {
    check_length("activation", "output", y.len(), x.len())?;
    y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(y, x)| match activation {
        Activation::Identity => y.copy_from_slice(x),
        Activation::Relu => y.iter_mut().zip(x).for_each(|(y, x)| *y = relu(*x)),
        Activation::Relu6 => y.iter_mut().zip(x).for_each(|(y, x)| *y = relu6(*x)),
    });
    Ok(())
}

/// dx = g where the activation passes its gradient, else 0; `y` is the output of [`forward`].
///
/// # Errors
/// Length.
pub fn backward<T: Float>(activation: Activation, y: &[T], g: &[T], dx: &mut [T]) -> Result<()> {
    check_length("activation", "gradient", g.len(), y.len())?;
    check_length("activation", "input gradient", dx.len(), y.len())?;
    #[inline(always)]
    fn gate<T: Float>(y: &[T], g: &[T], dx: &mut [T], passes: impl Fn(T) -> bool) {
        for ((dx, g), y) in dx.iter_mut().zip(g).zip(y) {
            *dx = if passes(*y) { *g } else { T::ZERO };
        }
    }
    dx.par_chunks_mut(CHUNK).zip(g.par_chunks(CHUNK)).zip(y.par_chunks(CHUNK)).for_each(
        |((dx, g), y)| match activation {
            Activation::Identity => dx.copy_from_slice(g),
            Activation::Relu => gate(y, g, dx, passes_relu),
            Activation::Relu6 => gate(y, g, dx, passes_relu6),
        },
    );
    Ok(())
}

/// The one slope, or the slope of each channel.
#[inline(always)]
fn slope<T: Float>(weight: &[T], channel: usize) -> T {
    if let [one] = weight { *one } else { weight[channel] }
}

fn check_slopes(weight: usize, channels: usize) -> Result<()> {
    if weight == 1 { Ok(()) } else { check_length("prelu", "weight", weight, channels) }
}

/// y = x where x > 0, else weight · x, with one slope for all channels or one for each.
///
/// # Errors
/// Length.
pub fn prelu_forward<T: Float>(sizes: Planes, x: &[T], weight: &[T], y: &mut [T]) -> Result<()> {
    check_length("prelu", "x", x.len(), sizes.elements())?;
    check_length("prelu", "output", y.len(), sizes.elements())?;
    check_slopes(weight.len(), sizes.channels)?;
    if x.is_empty() {
        return Ok(());
    }
    y.par_chunks_mut(sizes.pixels).zip(x.par_chunks(sizes.pixels)).enumerate().for_each(|(plane, (y, x))| {
        let slope = slope(weight, plane % sizes.channels);
        for (y, x) in y.iter_mut().zip(x) {
            *y = if *x > T::ZERO { *x } else { slope * *x };
        }
    });
    Ok(())
}

/// The gradients of [`prelu_forward`]: dx = g · (1 where x > 0, else weight); dweight = Σ g · x over x ≤ 0.
///
/// # Errors
/// Length.
pub fn prelu_backward<T: Float>(
    sizes: Planes,
    x: &[T],
    weight: &[T],
    g: &[T],
    dx: &mut [T],
    dweight: &mut [T],
) -> Result<()> {
    check_length("prelu", "x", x.len(), sizes.elements())?;
    check_length("prelu", "gradient", g.len(), sizes.elements())?;
    check_length("prelu", "input gradient", dx.len(), sizes.elements())?;
    check_slopes(weight.len(), sizes.channels)?;
    check_length("prelu", "weight gradient", dweight.len(), weight.len())?;
    dweight.fill(T::ZERO);
    if x.is_empty() {
        return Ok(());
    }
    let planes = dx.par_chunks_mut(sizes.pixels).zip(g.par_chunks(sizes.pixels)).zip(x.par_chunks(sizes.pixels));
    let sums: Vec<f64> = planes
        .enumerate()
        .map(|(plane, ((dx, g), x))| {
            let slope = slope(weight, plane % sizes.channels);
            let mut total = 0.0;
            for ((dx, g), x) in dx.chunks_mut(BLOCK).zip(g.chunks(BLOCK)).zip(x.chunks(BLOCK)) {
                let mut lanes = [T::ZERO; LANES];
                for ((dx, g), x) in dx.chunks_mut(LANES).zip(g.chunks(LANES)).zip(x.chunks(LANES)) {
                    for (((dx, g), x), lane) in dx.iter_mut().zip(g).zip(x).zip(&mut lanes) {
                        let positive = *x > T::ZERO;
                        *dx = if positive { *g } else { slope * *g };
                        *lane += if positive { T::ZERO } else { *g * *x };
                    }
                }
                total += sum(&lanes);
            }
            total
        })
        .collect();
    for (slot, dweight) in dweight.iter_mut().enumerate() {
        let own = sums.iter().enumerate().filter(|(plane, _)| weight.len() == 1 || plane % sizes.channels == slot);
        *dweight = T::from_f64(own.map(|(_, sum)| sum).sum());
    }
    Ok(())
}

/// Partial sums that one pass keeps, so that additions do not wait for each other.
pub(crate) const LANES: usize = 32;
/// Elements that are added up in the element type before the sum goes to f64.
pub(crate) const BLOCK: usize = 4096;

/// The lanes in order, in f64.
#[inline(always)]
pub(crate) fn sum<T: Float>(lanes: &[T]) -> f64 {
    lanes.iter().fold(0.0, |sum, lane| sum + lane.to_f64())
}

#[cfg(test)]
mod tests;

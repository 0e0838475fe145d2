//! Activations, PReLU, softmax and log-softmax over the channels of `[N,C,…]`.

mod elementary;
pub(crate) mod gate;
mod prelu;
mod softmax;

use std::mem::MaybeUninit;

use rayon::prelude::*;

use crate::error::check_length;
use crate::fresh::written;
use crate::{Float, Result};

pub use elementary::Element;
pub(crate) use elementary::{Kernel, vectorised};
pub(crate) use gate::{Gate, with_gate};
pub use prelu::{prelu_backward, prelu_forward};
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

/// A function of each element, by itself or in the same pass as the batch norm before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// y = x.
    Identity,
    /// y = max(x, 0). The derivative at 0 is 0, as PyTorch has it.
    Relu,
    /// y = min(max(x, 0), 6). The derivative at both corners is 0, as PyTorch has it.
    Relu6,
    /// y = x · min(max(x + 3, 0), 6) / 6. The derivative at −3 is 0 and at 3 is 1, as PyTorch has it.
    ///
    /// Howard et al., Searching for MobileNetV3, ICCV 2019, section 5.2.
    HardSwish,
    /// y = min(max(x + 3, 0), 6) / 6. The derivative at both corners is 0, as PyTorch has it.
    HardSigmoid,
    /// y = 1 / (1 + e⁻ˣ).
    Sigmoid,
}

impl Activation {
    /// The activation of one value. A NaN stays one.
    #[inline(always)]
    pub fn apply<T: Element>(self, z: T) -> T {
        with_gate!(self, gate => gate.value(z))
    }

    /// The gradient of one value `z`, from its activation `y` and the gradient `g` of `y`.
    #[inline(always)]
    pub fn gradient<T: Element>(self, z: T, y: T, g: T) -> T {
        with_gate!(self, gate => gate.gradient(z, y, g))
    }
}

/// Elements per task of an elementwise pass.
const CHUNK: usize = 1 << 15;

/// y = activation(x), element by element.
///
/// # Errors
/// Length.
pub fn forward<T: Element>(activation: Activation, x: &[T], y: &mut [T]) -> Result<()> {
    check_length("activation", "output", y.len(), x.len())?;
    y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(y, x)| vectorised(Values { activation, x, y }));
    Ok(())
}

/// dx = g · activation′(x); `y` is the output of [`forward`].
///
/// # Errors
/// Length.
pub fn backward<T: Element>(activation: Activation, x: &[T], y: &[T], g: &[T], dx: &mut [T]) -> Result<()> {
    check_length("activation", "x", x.len(), y.len())?;
    check_length("activation", "gradient", g.len(), y.len())?;
    check_length("activation", "input gradient", dx.len(), y.len())?;
    let (x, y, g) = (x.par_chunks(CHUNK), y.par_chunks(CHUNK), g.par_chunks(CHUNK));
    dx.par_chunks_mut(CHUNK)
        .zip(x.zip(y).zip(g))
        .for_each(|(dx, ((x, y), g))| vectorised(Slopes { activation, x, y, g, dx }));
    Ok(())
}

/// y = max(a + b, 0), element by element: where a residual branch comes back. The gradient of a and that of b are both
/// g where y > 0, else 0: [`backward`] with [`Activation::Relu`].
///
/// # Errors
/// Length.
pub fn add_relu<T: Element>(a: &[T], b: &[T], y: &mut [T]) -> Result<()> {
    check_length("add_relu", "b", b.len(), a.len())?;
    check_length("add_relu", "output", y.len(), a.len())?;
    y.par_chunks_mut(CHUNK).zip(a.par_chunks(CHUNK).zip(b.par_chunks(CHUNK))).for_each(|(y, (a, b))| {
        for ((y, a), b) in y.iter_mut().zip(a).zip(b) {
            *y = gate::Relu.value(*a + *b);
        }
    });
    Ok(())
}

/// a + b, element by element.
///
/// # Errors
/// Length.
pub fn add_vec<T: Element>(a: &[T], b: &[T]) -> Result<Vec<T>> {
    check_length("add", "b", b.len(), a.len())?;
    #[allow(unsafe_code, reason = "the sum is all that is written")]
    // SAFETY: the chunks of the three slices cover them, and every element of a chunk is written.
    let (y, ()) = unsafe {
        written(a.len(), |y: &mut [MaybeUninit<T>]| {
            y.par_chunks_mut(CHUNK).zip(a.par_chunks(CHUNK).zip(b.par_chunks(CHUNK))).for_each(|(y, (a, b))| {
                for ((y, a), b) in y.iter_mut().zip(a).zip(b) {
                    y.write(*a + *b);
                }
            });
        })
    };
    Ok(y)
}

struct Values<'a, T> {
    activation: Activation,
    x: &'a [T],
    y: &'a mut [T],
}

impl<T: Element> Kernel for Values<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        with_gate!(self.activation, gate => {
            for (y, x) in self.y.iter_mut().zip(self.x) {
                *y = gate.value(*x);
            }
        });
    }
}

struct Slopes<'a, T> {
    activation: Activation,
    x: &'a [T],
    y: &'a [T],
    g: &'a [T],
    dx: &'a mut [T],
}

impl<T: Element> Kernel for Slopes<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        with_gate!(self.activation, gate => {
            for (((dx, x), y), g) in self.dx.iter_mut().zip(self.x).zip(self.y).zip(self.g) {
                *dx = gate.gradient(*x, *y, *g);
            }
        });
    }
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

//! 2-D convolution: the output and the gradients of input, weight and bias, for every stride, padding, dilation and
//! number of groups.
//!
//! f64 runs the plain formulas; f32 runs the fastest algorithm that fits the shape ([`Algorithm::choose`]). All of
//! them split the work by sizes alone, so results are the same bits for any number of threads.

mod depthwise;
mod dispatch;
mod few_pixels;
mod implicit;
mod inner_products;
mod input_gradient;
mod lowering;
mod products;
mod reference;
mod scratch;
mod shape;
mod tap_by_tap;
mod weight_gradient;
mod winograd;

use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;

use crate::Result;
use crate::error::check_length;
pub use shape::Conv2dShape;

static EXACT: AtomicBool = AtomicBool::new(false);

/// Whether Winograd's algorithm is avoided, for the whole process; off at the start.
///
/// Winograd computes a 3×3 convolution with up to four times fewer multiplications. Its rounding error is several
/// times that of the direct sum (up to 5e-6 of the largest value with 512 channels, docs/algorithms/winograd.md). What
/// is compared digit by digit with another implementation may want the direct sum.
pub fn set_exact(exact: bool) {
    EXACT.store(exact, Ordering::Relaxed);
}

/// Whether Winograd's algorithm is avoided ([`set_exact`]).
#[must_use]
pub fn exact() -> bool {
    EXACT.load(Ordering::Relaxed)
}

/// How a pass is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Algorithm {
    /// The plain formula. Any shape; the only one for f64.
    Reference,
    /// Blocked matrix products that read the input through its taps. Any shape.
    Gemm,
    /// Matrix products for each tap, over the pixels for which it reads inside of the input. Stride 1.
    TapByTap,
    /// Loops over rows, one plane at a time. One input channel per group.
    Depthwise,
    /// Winograd's F(2×2, 3×3), for small maps. 3×3 kernels with stride 1, one group and padding ≤ 2·dilation.
    WinogradF2,
    /// Winograd's F(4×4, 3×3). The same shapes.
    WinogradF4,
    /// Winograd's F(2×2, 2×2) with kernel and input exchanged: 3×3 kernels with stride 1, one group, padding = dilation, on
    /// maps of at most 2·dilation rows and columns.
    WinogradPairs,
}

impl Algorithm {
    /// The algorithm that f32 outputs and gradients of the input of `shape` are computed by.
    #[must_use]
    pub fn choose(shape: &Conv2dShape) -> Self {
        dispatch::choose(winograd::Task::Convolution, shape, exact())
    }

    /// The algorithm that f32 gradients of the weight of `shape` are computed by.
    #[must_use]
    pub fn choose_weight_gradient(shape: &Conv2dShape) -> Self {
        dispatch::choose(winograd::Task::WeightGradient, shape, exact())
    }
}

/// The element types that convolutions know: f32, computed fast, and f64, computed by the plain formula.
pub trait Element: dispatch::Passes {}
impl Element for f32 {}
impl Element for f64 {}

/// The output of a convolution.
///
/// # Shapes
/// `x` `[N,C,H,W]`, `weight` [K,C/groups,kh,kw], `bias` \[K\], `y` `[N,K,Ho,Wo]`; `y` is overwritten.
///
/// # Errors
/// [`crate::Error::Param`] for an impossible shape, [`crate::Error::Length`] for a slice that does not have its size.
pub fn forward<T: Element>(shape: &Conv2dShape, x: &[T], weight: &[T], bias: Option<&[T]>, y: &mut [T]) -> Result<()> {
    shape.check()?;
    shape.check_weight("weight", weight.len())?;
    forward_with(T::choose(shape), shape, x, weight, bias, y)
}

/// [`forward`] by the algorithm named.
///
/// # Errors
/// As [`forward`]; [`crate::Error::Param`] where the algorithm cannot compute the shape or the element type.
pub fn forward_with<T: Element>(
    algorithm: Algorithm,
    shape: &Conv2dShape,
    x: &[T],
    weight: &[T],
    bias: Option<&[T]>,
    y: &mut [T],
) -> Result<()> {
    shape.check()?;
    shape.check_input("x", x.len())?;
    shape.check_weight("weight", weight.len())?;
    if let Some(bias) = bias {
        shape.check_bias(bias.len())?;
    }
    shape.check_output("y", y.len())?;
    T::forward(algorithm, shape, x, weight, bias, y)
}

/// [`forward`] into a new vector, without clearing it first where the algorithm writes every element anyway.
///
/// # Errors
/// As [`forward`].
pub fn forward_vec<T: Element>(shape: &Conv2dShape, x: &[T], weight: &[T], bias: Option<&[T]>) -> Result<Vec<T>> {
    shape.check()?;
    shape.check_input("x", x.len())?;
    shape.check_weight("weight", weight.len())?;
    if let Some(bias) = bias {
        shape.check_bias(bias.len())?;
    }
    T::forward_vec(shape, x, weight, bias)
}

/// The gradient of the input: `weight` [K,C/groups,kh,kw] and `grad_y` `[N,K,Ho,Wo]` give `grad_x` `[N,C,H,W]`, which is
/// overwritten.
///
/// # Errors
/// As [`forward`].
pub fn backward_input<T: Element>(shape: &Conv2dShape, weight: &[T], grad_y: &[T], grad_x: &mut [T]) -> Result<()> {
    shape.check()?;
    shape.check_weight("weight", weight.len())?;
    backward_input_with(T::choose(shape), shape, weight, grad_y, grad_x)
}

/// [`backward_input`] by the algorithm named.
///
/// # Errors
/// As [`forward_with`].
pub fn backward_input_with<T: Element>(
    algorithm: Algorithm,
    shape: &Conv2dShape,
    weight: &[T],
    grad_y: &[T],
    grad_x: &mut [T],
) -> Result<()> {
    shape.check()?;
    shape.check_weight("weight", weight.len())?;
    shape.check_output("grad_y", grad_y.len())?;
    shape.check_input("grad_x", grad_x.len())?;
    T::backward_input(algorithm, shape, weight, grad_y, grad_x)
}

/// [`backward_input`] into a new vector, without clearing it first where the algorithm writes every element anyway.
///
/// # Errors
/// As [`forward`].
pub fn backward_input_vec<T: Element>(shape: &Conv2dShape, weight: &[T], grad_y: &[T]) -> Result<Vec<T>> {
    shape.check()?;
    shape.check_weight("weight", weight.len())?;
    shape.check_output("grad_y", grad_y.len())?;
    T::backward_input_vec(shape, weight, grad_y)
}

/// The gradient of the weight: `x` `[N,C,H,W]` and `grad_y` `[N,K,Ho,Wo]` give `grad_weight` [K,C/groups,kh,kw], which is
/// overwritten.
///
/// # Errors
/// As [`forward`].
pub fn backward_weight<T: Element>(shape: &Conv2dShape, x: &[T], grad_y: &[T], grad_weight: &mut [T]) -> Result<()> {
    shape.check()?;
    backward_weight_with(T::choose_weight_gradient(shape), shape, x, grad_y, grad_weight)
}

/// [`backward_weight`] by the algorithm named.
///
/// # Errors
/// As [`forward_with`].
pub fn backward_weight_with<T: Element>(
    algorithm: Algorithm,
    shape: &Conv2dShape,
    x: &[T],
    grad_y: &[T],
    grad_weight: &mut [T],
) -> Result<()> {
    shape.check()?;
    shape.check_input("x", x.len())?;
    shape.check_output("grad_y", grad_y.len())?;
    shape.check_weight("grad_weight", grad_weight.len())?;
    T::backward_weight(algorithm, shape, x, grad_y, grad_weight)
}

/// The gradient of the bias: `grad_y` `[N,K,Ho,Wo]` summed over images and pixels, in f64, gives `grad_bias` \[K\], which
/// is overwritten.
///
/// # Errors
/// As [`forward`].
pub fn backward_bias<T: Element>(shape: &Conv2dShape, grad_y: &[T], grad_bias: &mut [T]) -> Result<()> {
    shape.check()?;
    shape.check_output("grad_y", grad_y.len())?;
    check_length("conv2d", "grad_bias", grad_bias.len(), shape.out_channels)?;
    plane_sums(grad_y, shape.out_height() * shape.out_width(), grad_bias);
    Ok(())
}

/// Sums the planes of a [N,K,plane] tensor per channel.
pub(crate) fn plane_sums<T: Element>(planes: &[T], plane: usize, sums: &mut [T]) {
    let channels = sums.len();
    sums.par_iter_mut().enumerate().for_each(|(k, sum)| {
        let planes = planes.chunks_exact(plane).skip(k).step_by(channels);
        *sum = T::from_f64(planes.map(plane_sum).sum());
    });
}

/// The sum of a plane: eight partial sums that run side by side.
fn plane_sum<T: Element>(plane: &[T]) -> f64 {
    let mut lanes = [0f64; 8];
    let chunks = plane.chunks_exact(8);
    let rest: f64 = chunks.remainder().iter().map(|value| value.to_f64()).sum();
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane += value.to_f64();
        }
    }
    lanes.iter().sum::<f64>() + rest
}

#[cfg(test)]
mod tests;

//! Winograd's minimal filtering for 3×3 kernels with stride 1: F(4×4, 3×3), F(2×2, 3×3), and pairs of pixels for dilations
//! of half the map and more.
//!
//! A tile d of A×A inputs (A = M + 2) and a filter g of 3×3 give M×M outputs
//!
//! ```text
//! Y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A = Aᵀ [U ⊙ V] A
//! ```
//!
//! with A² multiplications in place of 9 M². Summed over input channels before the last step, ⊙ becomes A² matrix
//! products over channels, one for each place in the transformed tile; they take most of the time. The matrices and
//! the points they come from are in [`points`].
//!
//! * forward: as above;
//! * gradient of the input: the same on the gradient of the output, with the filters turned by 180°, input and output
//!   channels exchanged, and 2·dilation − padding zeros around ([`convolve`]);
//! * gradient of the weights: the adjoint ∂g = Gᵀ [Σ over tiles (A ∂Y Aᵀ) ⊙ (Bᵀ d B)] G ([`weight_gradient`]).
//!
//! Channels come in blocks of 16, one cache line. V is \[place\]\[channel block\]\[tile\]; of some output blocks, U is
//! \[place\]\[output block\]\[input channel\] and M \[place\]\[output block\]\[tile\]. Each step reads and writes whole
//! blocks, so the products need no packing, and goes through memory in order: a processor guesses the next address from the
//! last ones, and what it asks for beyond the end may be another thread's. What fills up a block beyond the last channel is
//! in no sum that is kept.
//!
//! Source: Lavin and Gray, "Fast algorithms for convolutional neural networks", CVPR 2016. Differs from it: the points
//! of F(4,3), the gradient of the weights (they use F(3,4)), dilation.
//!
//! Errors against f64: docs/algorithms/winograd.md; with 512 channels F(4×4) stays within 5e-6 of the largest value, F(2×2)
//! within 1e-6, as a direct sum in f32.

mod blocks;
mod convolve;
mod grid;
mod limits;
mod points;
mod product;
mod scratch;
mod transform;
mod weight_gradient;

use std::mem::MaybeUninit;

use grid::Layer;
use limits::Limits;
use points::{F2, F4, Pairs};

use super::Conv2dShape;
use crate::lanes::{Instructions, WIDTH};

/// How a pass is run.
#[derive(Clone, Copy, Debug)]
struct Settings {
    instructions: Instructions,
    limits: Limits,
}

impl Settings {
    fn new() -> Self {
        Self { instructions: Instructions::detect(), limits: Limits::DEFAULT }
    }
}

/// A variant, by the outputs of its tile, M×M.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tile {
    Two,
    Four,
    /// Two by two, which are all that a phase has.
    Pair,
}

/// What a shape is computed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Task {
    /// The output, or the gradient of the input.
    Convolution,
    WeightGradient,
}

/// True for the shapes that these tiles can compute.
pub(super) fn computes(tile: Tile, shape: &Conv2dShape) -> bool {
    let size = [shape.in_height, shape.in_width];
    let fits = |axis: usize| {
        let (padding, dilation) = (shape.padding[axis], shape.dilation[axis]);
        let inside = match tile {
            Tile::Pair => padding == dilation && size[axis] <= 2 * dilation,
            Tile::Two | Tile::Four => padding <= 2 * dilation,
        };
        inside && shape.extra_padding[axis] == 0
    };
    shape.kernel == [3, 3] && shape.stride == [1, 1] && shape.groups == 1 && fits(0) && fits(1) && shape.batch > 0
}

/// What a multiplication costs where there are more transformed weights than stay in the second-level cache.
const UNCACHED: f64 = 1.2;
const CACHED_WEIGHTS: f64 = 256e3;

/// What a pass costs, in multiplications of a matrix product; `None` where these tiles cannot compute it. The transforms of a tile are worth so many for each output
/// and channel, those of the weights as much as the products of so many tiles: numbers that fit what layers of 8 to 64
/// channels took.
pub(super) fn cost(tile: Tile, task: Task, shape: &Conv2dShape) -> Option<f64> {
    if !computes(tile, shape) {
        return None;
    }
    let (side, places, transform): (u32, u32, u32) = match tile {
        Tile::Two => (2, 16, 36),
        Tile::Four => (4, 36, 22),
        Tile::Pair => (2, 9, 20),
    };
    let weights = match task {
        Task::Convolution => 10,
        Task::WeightGradient => 20,
    };
    let tiles = |size: usize, dilation: usize| size.div_ceil(dilation).div_ceil(side as usize) * dilation;
    let tiles =
        shape.batch * tiles(shape.out_height(), shape.dilation[0]) * tiles(shape.out_width(), shape.dilation[1]);
    // Channels come in whole vectors.
    let [c, k] = [shape.in_channels, shape.out_channels].map(|channels| channels.next_multiple_of(WIDTH) as f64);
    let products = (tiles + weights) as f64 * f64::from(places) * c * k;
    let slower = if f64::from(places) * c * k > CACHED_WEIGHTS { UNCACHED } else { 1.0 };
    Some(slower * products + tiles as f64 * f64::from(side * side * transform) * (c + k))
}

/// Writes the convolution of `x` [N,C,H,W] by `weight` [K,C,3,3], and `bias`, to all of `y` [N,K,Ho,Wo]; `shape` is one
/// that the tile [`computes`].
pub(super) fn forward(
    tile: Tile,
    shape: &Conv2dShape,
    x: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    y: &mut [MaybeUninit<f32>],
) {
    convolve(Settings::new(), tile, &Layer::forward(shape), x, weight, bias, y);
}

/// Writes the gradient of the input to all of `grad_x` [N,C,H,W]; `shape` is one that the tile [`computes`].
pub(super) fn backward_input(
    tile: Tile,
    shape: &Conv2dShape,
    weight: &[f32],
    grad_y: &[f32],
    grad_x: &mut [MaybeUninit<f32>],
) {
    convolve(Settings::new(), tile, &Layer::backward_input(shape), grad_y, weight, None, grad_x);
}

/// Overwrites `grad_weight` [K,C,3,3] with the gradient of the weights; `shape` is one that the tile [`computes`].
pub(super) fn backward_weight(tile: Tile, shape: &Conv2dShape, x: &[f32], grad_y: &[f32], grad_weight: &mut [f32]) {
    weight_gradient(Settings::new(), tile, &Layer::forward(shape), x, grad_y, grad_weight);
}

fn convolve(
    settings: Settings,
    tile: Tile,
    layer: &Layer,
    x: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    y: &mut [MaybeUninit<f32>],
) {
    match tile {
        Tile::Two => convolve::run::<F2, 2, 4, 4>(settings, layer, x, weight, bias, y),
        Tile::Four => convolve::run::<F4, 4, 6, 6>(settings, layer, x, weight, bias, y),
        Tile::Pair => convolve::run::<Pairs, 2, 2, 3>(settings, &layer.at_the_edge(), x, weight, bias, y),
    }
}

fn weight_gradient(settings: Settings, tile: Tile, layer: &Layer, x: &[f32], grad_y: &[f32], grad_weight: &mut [f32]) {
    match tile {
        Tile::Two => weight_gradient::run::<F2, 2, 4, 4>(settings, layer, x, grad_y, grad_weight),
        Tile::Four => weight_gradient::run::<F4, 4, 6, 6>(settings, layer, x, grad_y, grad_weight),
        Tile::Pair => weight_gradient::run::<Pairs, 2, 2, 3>(settings, &layer.at_the_edge(), x, grad_y, grad_weight),
    }
}

#[cfg(test)]
mod tests;

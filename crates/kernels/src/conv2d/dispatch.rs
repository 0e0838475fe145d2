//! Which algorithm computes what.

use std::mem::MaybeUninit;

use super::winograd::{self, Task, Tile};
use super::{Algorithm, Conv2dShape, depthwise, implicit, input_gradient, reference, tap_by_tap, weight_gradient};
use crate::fresh::{uninit, written};
use crate::lanes::Instructions;
use crate::{Float, Result};

/// The passes, for arguments that have been checked.
pub trait Passes: Float {
    /// The fastest algorithm for the output and for the gradient of the input.
    fn choose(shape: &Conv2dShape) -> Algorithm;
    /// The fastest algorithm for the gradient of the weight.
    fn choose_weight_gradient(shape: &Conv2dShape) -> Algorithm;
    /// The output.
    fn forward(
        algorithm: Algorithm,
        shape: &Conv2dShape,
        x: &[Self],
        weight: &[Self],
        bias: Option<&[Self]>,
        y: &mut [Self],
    ) -> Result<()>;
    /// The gradient of the input.
    fn backward_input(
        algorithm: Algorithm,
        shape: &Conv2dShape,
        weight: &[Self],
        grad_y: &[Self],
        grad_x: &mut [Self],
    ) -> Result<()>;
    /// The gradient of the weight.
    fn backward_weight(
        algorithm: Algorithm,
        shape: &Conv2dShape,
        x: &[Self],
        grad_y: &[Self],
        grad_weight: &mut [Self],
    ) -> Result<()>;
    /// The output by the fastest algorithm, in a new vector.
    fn forward_vec(shape: &Conv2dShape, x: &[Self], weight: &[Self], bias: Option<&[Self]>) -> Result<Vec<Self>> {
        let mut y = vec![Self::ZERO; shape.output_len()];
        Self::forward(Self::choose(shape), shape, x, weight, bias, &mut y)?;
        Ok(y)
    }
    /// The gradient of the input by the fastest algorithm, in a new vector.
    fn backward_input_vec(shape: &Conv2dShape, weight: &[Self], grad_y: &[Self]) -> Result<Vec<Self>> {
        let mut grad_x = vec![Self::ZERO; shape.input_len()];
        Self::backward_input(Self::choose(shape), shape, weight, grad_y, &mut grad_x)?;
        Ok(grad_x)
    }
}

/// What it takes to pack a weight, in multiplications.
const PACKED_WEIGHT: usize = 33;
/// What [`Algorithm::TapByTap`] takes for a product, whose sums pass through the cache once for each tap,
const BY_TAP: f64 = 1.1;
/// and besides for each pair of pixels and channel of the two.
const PAIR: usize = 10;

/// The algorithm of f32 passes: the cheapest, counted in multiplications of a matrix product.
pub(super) fn choose(task: Task, shape: &Conv2dShape, exact: bool) -> Algorithm {
    if depthwise::applies(shape) && shape.in_channels > 1 {
        return Algorithm::Depthwise;
    }
    // A product of fewer than four rows is no faster than one of four.
    let [c, k] = [shape.group_in_channels(), shape.group_out_channels()].map(|channels| channels.max(4));
    let weights = shape.groups * c * k;
    let pixels = shape.batch * shape.out_height() * shape.out_width();
    let product = (pixels + PACKED_WEIGHT) as f64 * (shape.taps() * weights) as f64;
    let by_taps = tap_by_tap::computes(shape).then(|| {
        let (taps, pairs) = tap_by_tap::live(shape);
        let packed = (taps * PACKED_WEIGHT * weights) as f64;
        packed + pairs as f64 * (BY_TAP * weights as f64 + (shape.groups * PAIR * (c + k)) as f64)
    });
    let tiles = [Tile::Four, Tile::Two, Tile::Pair].into_iter().filter(|_| !exact);
    let by_tiles = tiles.filter_map(|tile| Some((winograd::cost(tile, task, shape)?, with_tile(tile))));
    let others = by_taps.map(|cost| (cost, Algorithm::TapByTap)).into_iter().chain(by_tiles);
    others.fold((product, Algorithm::Gemm), |best, other| if other.0 < best.0 { other } else { best }).1
}

/// Winograd's algorithm with this tile.
fn with_tile(tile: Tile) -> Algorithm {
    match tile {
        Tile::Two => Algorithm::WinogradF2,
        Tile::Four => Algorithm::WinogradF4,
        Tile::Pair => Algorithm::WinogradPairs,
    }
}

/// The tile of one of Winograd's algorithms that can compute the shape.
fn tile(algorithm: Algorithm, shape: &Conv2dShape) -> Result<Tile> {
    let tile = match algorithm {
        Algorithm::WinogradF2 => Tile::Two,
        Algorithm::WinogradF4 => Tile::Four,
        Algorithm::WinogradPairs => Tile::Pair,
        other => return Err(shape.not_for(other)),
    };
    if winograd::computes(tile, shape) { Ok(tile) } else { Err(shape.not_for(algorithm)) }
}

/// Writes the output to all of `y`, by any algorithm but the plain formula: the blocks of a product cover all rows and
/// columns of every group and image, the row loops every row of every plane, the tiles every pixel.
fn fill_output(
    algorithm: Algorithm,
    shape: &Conv2dShape,
    x: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    y: &mut [MaybeUninit<f32>],
) -> Result<()> {
    match algorithm {
        Algorithm::Depthwise if depthwise::applies(shape) => depthwise::forward(shape, x, weight, bias, y),
        Algorithm::Gemm => implicit::forward(Instructions::detect(), shape, x, weight, bias, y),
        Algorithm::TapByTap if tap_by_tap::computes(shape) => {
            tap_by_tap::forward(Instructions::detect(), shape, x, weight, bias, y);
        }
        other => winograd::forward(tile(other, shape)?, shape, x, weight, bias, y),
    }
    Ok(())
}

/// Writes the gradient of the input to all of `grad_x`, by any algorithm but the plain formula: the remainder classes
/// cover all pixels of every plane, taps or no taps.
fn fill_input_gradient(
    algorithm: Algorithm,
    shape: &Conv2dShape,
    weight: &[f32],
    grad_y: &[f32],
    grad_x: &mut [MaybeUninit<f32>],
) -> Result<()> {
    match algorithm {
        Algorithm::Depthwise if depthwise::applies(shape) => depthwise::backward_input(shape, weight, grad_y, grad_x),
        Algorithm::Gemm => input_gradient::backward_input(Instructions::detect(), shape, weight, grad_y, grad_x),
        Algorithm::TapByTap if tap_by_tap::computes(shape) => {
            tap_by_tap::backward_input(Instructions::detect(), shape, weight, grad_y, grad_x);
        }
        other => winograd::backward_input(tile(other, shape)?, shape, weight, grad_y, grad_x),
    }
    Ok(())
}

impl Passes for f32 {
    fn choose(shape: &Conv2dShape) -> Algorithm {
        Algorithm::choose(shape)
    }

    fn choose_weight_gradient(shape: &Conv2dShape) -> Algorithm {
        Algorithm::choose_weight_gradient(shape)
    }

    #[allow(unsafe_code, reason = "these algorithms write their whole output")]
    fn forward_vec(shape: &Conv2dShape, x: &[f32], weight: &[f32], bias: Option<&[f32]>) -> Result<Vec<f32>> {
        let fill = |y: &mut [MaybeUninit<f32>]| fill_output(Self::choose(shape), shape, x, weight, bias, y);
        // SAFETY: what `choose` gives for f32 is never the plain formula, so `fill_output` writes every element.
        let (y, filled) = unsafe { written(shape.output_len(), fill) };
        filled.map(|()| y)
    }

    #[allow(unsafe_code, reason = "these algorithms write their whole output")]
    fn backward_input_vec(shape: &Conv2dShape, weight: &[f32], grad_y: &[f32]) -> Result<Vec<f32>> {
        let algorithm = Self::choose(shape);
        let fill = |grad_x: &mut [MaybeUninit<f32>]| fill_input_gradient(algorithm, shape, weight, grad_y, grad_x);
        // SAFETY: as above.
        let (grad_x, filled) = unsafe { written(shape.input_len(), fill) };
        filled.map(|()| grad_x)
    }

    fn forward(
        algorithm: Algorithm,
        shape: &Conv2dShape,
        x: &[f32],
        weight: &[f32],
        bias: Option<&[f32]>,
        y: &mut [f32],
    ) -> Result<()> {
        if algorithm == Algorithm::Reference {
            reference::forward(shape, x, weight, bias, y);
            return Ok(());
        }
        fill_output(algorithm, shape, x, weight, bias, uninit(y))
    }

    fn backward_input(
        algorithm: Algorithm,
        shape: &Conv2dShape,
        weight: &[f32],
        grad_y: &[f32],
        grad_x: &mut [f32],
    ) -> Result<()> {
        if algorithm == Algorithm::Reference {
            reference::backward_input(shape, weight, grad_y, grad_x);
            return Ok(());
        }
        fill_input_gradient(algorithm, shape, weight, grad_y, uninit(grad_x))
    }

    fn backward_weight(
        algorithm: Algorithm,
        shape: &Conv2dShape,
        x: &[f32],
        grad_y: &[f32],
        grad_weight: &mut [f32],
    ) -> Result<()> {
        match algorithm {
            Algorithm::Reference => reference::backward_weight(shape, x, grad_y, grad_weight),
            Algorithm::Depthwise if depthwise::applies(shape) => {
                depthwise::backward_weight(Instructions::detect(), shape, x, grad_y, grad_weight);
            }
            Algorithm::Gemm => {
                weight_gradient::backward_weight(Instructions::detect(), shape, x, grad_y, grad_weight);
            }
            Algorithm::TapByTap if tap_by_tap::computes(shape) => {
                tap_by_tap::backward_weight(Instructions::detect(), shape, x, grad_y, grad_weight);
            }
            other => winograd::backward_weight(tile(other, shape)?, shape, x, grad_y, grad_weight),
        }
        Ok(())
    }
}

impl Passes for f64 {
    fn choose(_shape: &Conv2dShape) -> Algorithm {
        Algorithm::Reference
    }

    fn choose_weight_gradient(_shape: &Conv2dShape) -> Algorithm {
        Algorithm::Reference
    }

    fn forward(
        algorithm: Algorithm,
        shape: &Conv2dShape,
        x: &[f64],
        weight: &[f64],
        bias: Option<&[f64]>,
        y: &mut [f64],
    ) -> Result<()> {
        plain_only(algorithm, shape)?;
        reference::forward(shape, x, weight, bias, y);
        Ok(())
    }

    fn backward_input(
        algorithm: Algorithm,
        shape: &Conv2dShape,
        weight: &[f64],
        grad_y: &[f64],
        grad_x: &mut [f64],
    ) -> Result<()> {
        plain_only(algorithm, shape)?;
        reference::backward_input(shape, weight, grad_y, grad_x);
        Ok(())
    }

    fn backward_weight(
        algorithm: Algorithm,
        shape: &Conv2dShape,
        x: &[f64],
        grad_y: &[f64],
        grad_weight: &mut [f64],
    ) -> Result<()> {
        plain_only(algorithm, shape)?;
        reference::backward_weight(shape, x, grad_y, grad_weight);
        Ok(())
    }
}

fn plain_only(algorithm: Algorithm, shape: &Conv2dShape) -> Result<()> {
    if algorithm == Algorithm::Reference { Ok(()) } else { Err(shape.not_for(algorithm)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn same(input: [usize; 4], out_channels: usize, dilation: usize) -> Conv2dShape {
        let shape = Conv2dShape::new([1, 1, 3, 3], 1, [3, 3]).unwrap();
        let [batch, in_channels, in_height, in_width] = input;
        let sizes = Conv2dShape { batch, in_channels, in_height, in_width, out_channels, ..shape };
        Conv2dShape { padding: [dilation; 2], dilation: [dilation; 2], ..sizes }
    }

    #[track_caller]
    fn assert_chosen(shape: &Conv2dShape, expected: Algorithm) {
        for task in [Task::Convolution, Task::WeightGradient] {
            assert_eq!(choose(task, shape, false), expected, "{task:?} {shape:?}");
        }
    }

    #[test]
    fn winograd_takes_3x3_with_stride_1_and_channels_enough() {
        let good = same([2, 64, 32, 32], 64, 1);
        assert_chosen(&good, Algorithm::WinogradF4);
        assert_chosen(&same([2, 64, 32, 32], 64, 4), Algorithm::WinogradF4);
        for other in [
            Conv2dShape { kernel: [3, 1], ..good },
            Conv2dShape { kernel: [1, 1], padding: [0, 0], ..good },
            Conv2dShape { stride: [2, 1], ..good },
            Conv2dShape { groups: 2, ..good },
            Conv2dShape { padding: [3, 1], ..good },
            Conv2dShape { in_channels: 3, ..good },
            Conv2dShape { out_channels: 1, ..good },
            Conv2dShape { in_channels: 6, out_channels: 12, ..good },
        ] {
            assert_chosen(&other, Algorithm::Gemm);
        }
        // Half a block of channels costs half.
        assert_chosen(&Conv2dShape { in_channels: 8, out_channels: 16, ..good }, Algorithm::WinogradF4);
        assert_eq!(choose(Task::Convolution, &good, true), Algorithm::Gemm);
    }

    #[test]
    fn maps_of_a_few_pixels_take_small_tiles() {
        for (size, algorithm) in [
            (1, Algorithm::TapByTap),
            (2, Algorithm::WinogradPairs),
            (4, Algorithm::WinogradF2),
            (7, Algorithm::WinogradF4),
        ] {
            assert_eq!(choose(Task::Convolution, &same([4, 256, size, size], 256, 1), false), algorithm, "{size}");
        }
    }

    #[test]
    fn dilations_near_the_size_of_the_map_leave_out_what_reads_padding() {
        for (channels, dilation, algorithm) in [
            ([256, 256], 4, Algorithm::WinogradF4),
            ([256, 256], 8, Algorithm::WinogradF4),
            ([256, 256], 16, Algorithm::WinogradPairs),
            ([32, 32], 18, Algorithm::WinogradPairs),
            // The rates of a pyramid of dilated convolutions,
            ([2048, 256], 12, Algorithm::TapByTap),
            ([2048, 256], 24, Algorithm::TapByTap),
            // and one at which the middle tap alone is left.
            ([2048, 256], 36, Algorithm::TapByTap),
        ] {
            assert_chosen(&same([4, channels[0], 32, 32], channels[1], dilation), algorithm);
        }
        let exact = |dilation: usize| choose(Task::Convolution, &same([4, 256, 32, 32], 256, dilation), true);
        assert_eq!([1, 2, 12].map(exact), [Algorithm::Gemm, Algorithm::Gemm, Algorithm::TapByTap]);
    }
}

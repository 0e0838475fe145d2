//! Which algorithm computes what.

use std::mem::MaybeUninit;

use super::winograd::{self, Task, Tile};
use super::{Algorithm, Conv2dShape, depthwise, implicit, input_gradient, reference, weight_gradient};
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

/// The algorithm of f32 passes.
pub(super) fn choose(task: Task, shape: &Conv2dShape, exact: bool) -> Algorithm {
    if depthwise::applies(shape) && shape.in_channels > 1 {
        return Algorithm::Depthwise;
    }
    match winograd::faster(task, shape) {
        Some(Tile::Two) if !exact => Algorithm::WinogradF2,
        Some(Tile::Four) if !exact => Algorithm::WinogradF4,
        Some(Tile::Pair) if !exact => Algorithm::WinogradPairs,
        _ => Algorithm::Gemm,
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

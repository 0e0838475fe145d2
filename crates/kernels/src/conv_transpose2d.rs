//! Transposed 2-D convolution, expressed by the passes of an ordinary one.
//!
//! A transposed convolution from C to K channels is the input gradient of the convolution from K to C channels with the
//! same kernel, stride, padding, dilation and groups: [`ConvTranspose2dShape::adjoint`]. Its output is that
//! convolution's `backward_input`, its input gradient that convolution's `forward`, and its weight gradient that
//! convolution's `backward_weight` with the two activations exchanged.

use rayon::prelude::*;

use crate::conv2d::{self, Conv2dShape, Element};
use crate::error::{check_length, param};
use crate::{Error, Result};

const OP: &str = "conv_transpose2d";

/// The sizes and settings of a transposed 2-D convolution; pairs are (vertical, horizontal).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvTranspose2dShape {
    /// N, images.
    pub batch: usize,
    /// C, channels of the input; a multiple of `groups`.
    pub in_channels: usize,
    /// H, rows of the input.
    pub in_height: usize,
    /// W, columns of the input.
    pub in_width: usize,
    /// K, channels of the output; a multiple of `groups`.
    pub out_channels: usize,
    /// Rows and columns of the kernel, ≥ 1.
    pub kernel: [usize; 2],
    /// Output pixels from one input pixel to the next, ≥ 1.
    pub stride: [usize; 2],
    /// Output rows or columns cut off on both sides.
    pub padding: [usize; 2],
    /// Output rows or columns added at the end, below the stride.
    pub output_padding: [usize; 2],
    /// Output pixels from one kernel tap to the next, ≥ 1.
    pub dilation: [usize; 2],
    /// Groups of channels that do not see each other, ≥ 1.
    pub groups: usize,
}

impl ConvTranspose2dShape {
    /// The ordinary convolution whose input gradient this is: from `[N,K,Ho,Wo]` to `[N,C,H,W]`.
    ///
    /// # Errors
    /// [`Error::Param`] for a size, stride or dilation of 0, groups that do not divide both channel counts, an output
    /// padding that is too large, and an output without pixels.
    pub fn adjoint(&self) -> Result<Conv2dShape> {
        for (argument, value) in [("in_height", self.in_height), ("in_width", self.in_width)] {
            if value == 0 {
                return Err(param(OP, argument, "at least 1", value));
            }
        }
        let out = [self.out_size(0)?, self.out_size(1)?];
        let shape = Conv2dShape {
            batch: self.batch,
            in_channels: self.out_channels,
            in_height: out[0],
            in_width: out[1],
            out_channels: self.in_channels,
            kernel: self.kernel,
            stride: self.stride,
            padding: self.padding,
            extra_padding: [0, 0],
            dilation: self.dilation,
            groups: self.groups,
        };
        // The adjoint's names for the channels are exchanged; say the right one.
        shape.check().map_err(|error| match error {
            Error::Param { argument, expected, got, .. } => {
                let argument = match argument {
                    "in_channels" => "out_channels",
                    "out_channels" => "in_channels",
                    other => other,
                };
                Error::Param { op: OP, argument, expected, got }
            }
            other => other,
        })?;
        Ok(shape)
    }

    fn out_size(&self, axis: usize) -> Result<usize> {
        let size = if axis == 0 { self.in_height } else { self.in_width };
        let (stride, dilation, kernel) = (self.stride[axis], self.dilation[axis], self.kernel[axis]);
        let names = [
            ("vertical stride", "vertical dilation", "kernel height", "vertical output padding", "output height"),
            ("horizontal stride", "horizontal dilation", "kernel width", "horizontal output padding", "output width"),
        ];
        let (stride_name, dilation_name, kernel_name, extra_name, out_name) = names[axis];
        for (argument, value) in [(stride_name, stride), (dilation_name, dilation), (kernel_name, kernel)] {
            if value == 0 {
                return Err(param(OP, argument, "at least 1", value));
            }
        }
        let extra = self.output_padding[axis];
        if extra >= stride {
            return Err(param(OP, extra_name, format!("below the stride, {stride}"), extra));
        }
        let full = (size - 1)
            .checked_mul(stride)
            .and_then(|span| (kernel - 1).checked_mul(dilation).and_then(|reach| span.checked_add(reach)))
            .and_then(|span| span.checked_add(extra + 1));
        let cut = self.padding[axis].checked_mul(2);
        match (full, cut) {
            (Some(full), Some(cut)) if full > cut => Ok(full - cut),
            (full, cut) => {
                let got = format!("{} minus {}", full.unwrap_or(usize::MAX), cut.unwrap_or(usize::MAX));
                Err(param(OP, out_name, "at least 1", got))
            }
        }
    }

    fn check_bias(&self, argument: &'static str, len: usize) -> Result<()> {
        check_length(OP, argument, len, self.out_channels)
    }
}

/// The output.
///
/// # Shapes
/// `x` `[N,C,H,W]`, `weight` [C,K/groups,kh,kw], `bias` \[K\]; `y` `[N,K,Ho,Wo]` with
/// Ho = (H − 1)·stride − 2·padding + dilation·(kh − 1) + output_padding + 1, which is overwritten.
///
/// # Errors
/// [`Error::Param`] for an impossible shape, [`Error::Length`] for a slice that does not have its size.
pub fn forward<T: Element>(
    shape: &ConvTranspose2dShape,
    x: &[T],
    weight: &[T],
    bias: Option<&[T]>,
    y: &mut [T],
) -> Result<()> {
    let adjoint = shape.adjoint()?;
    check_lengths(&adjoint, ("x", x.len()), ("weight", weight.len()), ("y", y.len()))?;
    if let Some(bias) = bias {
        shape.check_bias("bias", bias.len())?;
    }
    conv2d::backward_input(&adjoint, weight, x, y)?;
    add_bias(&adjoint, bias, y);
    Ok(())
}

/// [`forward`] into a new vector, without clearing it first where that is not needed.
///
/// # Errors
/// As [`forward`].
pub fn forward_vec<T: Element>(
    shape: &ConvTranspose2dShape,
    x: &[T],
    weight: &[T],
    bias: Option<&[T]>,
) -> Result<Vec<T>> {
    let adjoint = shape.adjoint()?;
    check_lengths(&adjoint, ("x", x.len()), ("weight", weight.len()), ("y", adjoint.input_len()))?;
    if let Some(bias) = bias {
        shape.check_bias("bias", bias.len())?;
    }
    let mut y = conv2d::backward_input_vec(&adjoint, weight, x)?;
    add_bias(&adjoint, bias, &mut y);
    Ok(y)
}

fn add_bias<T: Element>(adjoint: &Conv2dShape, bias: Option<&[T]>, y: &mut [T]) {
    if let Some(bias) = bias {
        y.par_chunks_mut(adjoint.in_height * adjoint.in_width).enumerate().for_each(|(plane, y)| {
            let bias = bias[plane % bias.len()];
            y.iter_mut().for_each(|value| *value += bias);
        });
    }
}

/// The gradient of the input: `weight` and `grad_y` `[N,K,Ho,Wo]` give `grad_x` `[N,C,H,W]`, which is overwritten.
///
/// # Errors
/// As [`forward`].
pub fn backward_input<T: Element>(
    shape: &ConvTranspose2dShape,
    weight: &[T],
    grad_y: &[T],
    grad_x: &mut [T],
) -> Result<()> {
    let adjoint = shape.adjoint()?;
    check_lengths(&adjoint, ("grad_x", grad_x.len()), ("weight", weight.len()), ("grad_y", grad_y.len()))?;
    conv2d::forward(&adjoint, grad_y, weight, None, grad_x)
}

/// [`backward_input`] into a new vector, without clearing it first where that is not needed.
///
/// # Errors
/// As [`forward`].
pub fn backward_input_vec<T: Element>(shape: &ConvTranspose2dShape, weight: &[T], grad_y: &[T]) -> Result<Vec<T>> {
    let adjoint = shape.adjoint()?;
    let (x_len, y_len) = (adjoint.output_len(), grad_y.len());
    check_lengths(&adjoint, ("grad_x", x_len), ("weight", weight.len()), ("grad_y", y_len))?;
    conv2d::forward_vec(&adjoint, grad_y, weight, None)
}

/// The gradient of the weight: `x` `[N,C,H,W]` and `grad_y` `[N,K,Ho,Wo]` give `grad_weight` [C,K/groups,kh,kw], which is
/// overwritten.
///
/// # Errors
/// As [`forward`].
pub fn backward_weight<T: Element>(
    shape: &ConvTranspose2dShape,
    x: &[T],
    grad_y: &[T],
    grad_weight: &mut [T],
) -> Result<()> {
    let adjoint = shape.adjoint()?;
    check_lengths(&adjoint, ("x", x.len()), ("grad_weight", grad_weight.len()), ("grad_y", grad_y.len()))?;
    conv2d::backward_weight(&adjoint, grad_y, x, grad_weight)
}

/// The gradient of the bias: `grad_y` `[N,K,Ho,Wo]` summed over images and pixels gives `grad_bias` \[K\], which is
/// overwritten.
///
/// # Errors
/// As [`forward`].
pub fn backward_bias<T: Element>(shape: &ConvTranspose2dShape, grad_y: &[T], grad_bias: &mut [T]) -> Result<()> {
    let adjoint = shape.adjoint()?;
    check_length(OP, "grad_y", grad_y.len(), adjoint.input_len())?;
    shape.check_bias("grad_bias", grad_bias.len())?;
    conv2d::plane_sums(grad_y, adjoint.in_height * adjoint.in_width, grad_bias);
    Ok(())
}

fn check_lengths(
    adjoint: &Conv2dShape,
    x: (&'static str, usize),
    weight: (&'static str, usize),
    y: (&'static str, usize),
) -> Result<()> {
    check_length(OP, x.0, x.1, adjoint.output_len())?;
    check_length(OP, weight.0, weight.1, adjoint.weight_len())?;
    check_length(OP, y.0, y.1, adjoint.input_len())
}

#[cfg(test)]
mod tests {
    use dsd_random::Stream;

    use super::*;

    const PLAIN: ConvTranspose2dShape = ConvTranspose2dShape {
        batch: 2,
        in_channels: 4,
        in_height: 5,
        in_width: 7,
        out_channels: 6,
        kernel: [3, 3],
        stride: [1, 1],
        padding: [0, 0],
        output_padding: [0, 0],
        dilation: [1, 1],
        groups: 1,
    };

    fn settings() -> [ConvTranspose2dShape; 7] {
        [
            PLAIN,
            ConvTranspose2dShape { stride: [2, 2], padding: [1, 1], output_padding: [1, 1], ..PLAIN },
            ConvTranspose2dShape { stride: [2, 2], padding: [1, 1], output_padding: [0, 1], groups: 2, ..PLAIN },
            ConvTranspose2dShape { kernel: [2, 2], stride: [2, 2], ..PLAIN },
            ConvTranspose2dShape { kernel: [4, 1], stride: [3, 2], padding: [1, 0], output_padding: [2, 1], ..PLAIN },
            ConvTranspose2dShape { padding: [2, 4], dilation: [2, 3], ..PLAIN },
            ConvTranspose2dShape { out_channels: 4, groups: 4, stride: [2, 2], ..PLAIN },
        ]
    }

    /// Every input element times every tap, added where it lands.
    fn scattered(shape: &ConvTranspose2dShape, x: &[f64], weight: &[f64], bias: &[f64]) -> Vec<f64> {
        let (height, width) = (shape.out_size(0).unwrap(), shape.out_size(1).unwrap());
        let (group_in, group_out) = (shape.in_channels / shape.groups, shape.out_channels / shape.groups);
        let mut y = vec![0.0; shape.batch * shape.out_channels * height * width];
        for (index, value) in y.iter_mut().enumerate() {
            *value = bias[index / (height * width) % shape.out_channels];
        }
        for (index, value) in x.iter().enumerate() {
            let (row, j) = (index / shape.in_width, index % shape.in_width);
            let (plane, i) = (row / shape.in_height, row % shape.in_height);
            let (n, c) = (plane / shape.in_channels, plane % shape.in_channels);
            for local in 0..group_out {
                let k = c / group_in * group_out + local;
                for u in 0..shape.kernel[0] {
                    for v in 0..shape.kernel[1] {
                        let factor = weight[((c * group_out + local) * shape.kernel[0] + u) * shape.kernel[1] + v];
                        let row = (i * shape.stride[0] + u * shape.dilation[0]).checked_sub(shape.padding[0]);
                        let column = (j * shape.stride[1] + v * shape.dilation[1]).checked_sub(shape.padding[1]);
                        if let (Some(row), Some(column)) = (row, column)
                            && row < height
                            && column < width
                        {
                            y[((n * shape.out_channels + k) * height + row) * width + column] += factor * value;
                        }
                    }
                }
            }
        }
        y
    }

    fn draw(stream: &mut Stream, len: usize) -> Vec<f64> {
        (0..len).map(|_| f64::from(stream.normal() as f32)).collect()
    }

    fn narrow(wide: &[f64]) -> Vec<f32> {
        wide.iter().map(|&value| value as f32).collect()
    }

    #[test]
    fn output_and_gradients_are_those_of_the_scattered_sum() {
        for (index, shape) in settings().iter().enumerate() {
            let adjoint = shape.adjoint().unwrap();
            let mut stream = Stream::new(2, "transpose", 0, index as u64);
            let (x, weight) = (draw(&mut stream, adjoint.output_len()), draw(&mut stream, adjoint.weight_len()));
            let (bias, grad_y) = (draw(&mut stream, shape.out_channels), draw(&mut stream, adjoint.input_len()));
            let expected = scattered(shape, &x, &weight, &bias);

            let mut y = vec![f64::NAN; expected.len()];
            forward(shape, &x, &weight, Some(&bias), &mut y).unwrap();
            let mut y_f32 = vec![f32::NAN; expected.len()];
            forward(shape, &narrow(&x), &narrow(&weight), Some(&narrow(&bias)), &mut y_f32).unwrap();
            for ((y, y_f32), expected) in y.iter().zip(&y_f32).zip(&expected) {
                assert!((y - expected).abs() < 1e-12, "{shape:?}: {y} is not {expected}");
                assert!((f64::from(*y_f32) - expected).abs() < 1e-4, "{shape:?}: {y_f32} is not {expected}");
            }

            // The output is linear in x, weight and bias, so ⟨y, grad_y⟩ of unit vectors are the gradients.
            let (mut grad_x, mut grad_weight) = (vec![f64::NAN; x.len()], vec![f64::NAN; weight.len()]);
            let mut grad_bias = vec![f64::NAN; bias.len()];
            backward_input(shape, &weight, &grad_y, &mut grad_x).unwrap();
            assert_eq!(forward_vec(shape, &x, &weight, Some(&bias)).unwrap(), y);
            assert_eq!(backward_input_vec(shape, &weight, &grad_y).unwrap(), grad_x);
            backward_weight(shape, &x, &grad_y, &mut grad_weight).unwrap();
            backward_bias(shape, &grad_y, &mut grad_bias).unwrap();
            let against = |y: &[f64]| y.iter().zip(&grad_y).map(|(a, b)| a * b).sum::<f64>();
            let unit = |len: usize, at: usize| (0..len).map(|i| f64::from(u8::from(i == at))).collect::<Vec<_>>();
            let none = vec![0.0; bias.len()];
            for at in (0..x.len()).step_by(13) {
                let expected = against(&scattered(shape, &unit(x.len(), at), &weight, &none));
                assert!((grad_x[at] - expected).abs() < 1e-10, "{shape:?}: x[{at}]");
            }
            for at in (0..weight.len()).step_by(5) {
                let expected = against(&scattered(shape, &x, &unit(weight.len(), at), &none));
                assert!((grad_weight[at] - expected).abs() < 1e-10, "{shape:?}: weight[{at}]");
            }
            for at in 0..bias.len() {
                let zero = vec![0.0; x.len()];
                let expected = against(&scattered(shape, &zero, &weight, &unit(bias.len(), at)));
                assert!((grad_bias[at] - expected).abs() < 1e-10, "{shape:?}: bias[{at}]");
            }
        }
    }

    #[test]
    fn impossible_settings_name_what_is_wrong() {
        let cases = [
            (ConvTranspose2dShape { output_padding: [0, 1], ..PLAIN }, "horizontal output padding is 1"),
            (ConvTranspose2dShape { stride: [0, 1], ..PLAIN }, "vertical stride is 0"),
            (ConvTranspose2dShape { padding: [4, 0], ..PLAIN }, "output height is 7 minus 8"),
            (ConvTranspose2dShape { groups: 3, ..PLAIN }, "in_channels is 4, expected a multiple of groups = 3"),
            (ConvTranspose2dShape { in_height: 0, ..PLAIN }, "in_height is 0"),
        ];
        for (shape, message) in cases {
            let error = shape.adjoint().unwrap_err().to_string();
            assert!(error.contains(message) && error.starts_with(OP), "{error} does not contain {message}");
        }
        let error = forward(&PLAIN, &[0f32; 3], &[0.0; 216], None, &mut [0.0; 756]).unwrap_err().to_string();
        assert_eq!(error, "conv_transpose2d: x has 3 elements, expected 280");
    }
}

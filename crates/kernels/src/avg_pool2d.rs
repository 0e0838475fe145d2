//! Average pool and adaptive average pool, and their gradients.
//!
//! PyTorch's rules. With `count_include_pad` the divisor is the size of the window within the padded input, without it
//! the number of input pixels in the window. Bin i of an adaptive pool covers ⌊i · in / out⌋ to ⌈(i + 1) · in / out⌉.
//! All divisors are products of a vertical and a horizontal part, so each pool is a separable map.

use crate::error::{check_length, param};
use crate::max_pool2d::Pool2d;
use crate::resize::separable::{Axis, apply};
use crate::{Float, Result};

/// Average pool of `planes` planes of `input` (height, width), `[planes, H, W]` to `[planes, H', W']`.
///
/// # Errors
/// Param where the windows do not fit; Length where `x` does not match.
pub fn avg_pool2d<T: Float>(
    x: &[T],
    planes: usize,
    input: [usize; 2],
    pool: Pool2d,
    count_include_pad: bool,
) -> Result<Vec<T>> {
    const OP: &str = "avg_pool2d";
    let output = pool.output_size(OP, input)?;
    check_length(OP, "x", x.len(), planes * input[0] * input[1])?;
    let [rows, columns] = [0, 1].map(|axis| window_axis(pool, axis, input, output, count_include_pad));
    Ok(apply(&rows, &columns, x, planes))
}

/// The gradient of [`avg_pool2d`] for its input: `gradient` is `[planes, H', W']`, the result `[planes, H, W]`.
///
/// # Errors
/// As for the forward pass.
pub fn avg_pool2d_backward<T: Float>(
    gradient: &[T],
    planes: usize,
    input: [usize; 2],
    pool: Pool2d,
    count_include_pad: bool,
) -> Result<Vec<T>> {
    const OP: &str = "avg_pool2d_backward";
    let output = pool.output_size(OP, input)?;
    check_length(OP, "gradient", gradient.len(), planes * output[0] * output[1])?;
    let [rows, columns] = [0, 1].map(|axis| window_axis(pool, axis, input, output, count_include_pad).transposed());
    Ok(apply(&rows, &columns, gradient, planes))
}

/// Average pool of `planes` planes of `input` (height, width) into `output` bins, which may be more than there are
/// pixels.
///
/// # Errors
/// Param where a size is 0; Length where `x` does not match.
pub fn adaptive_avg_pool2d<T: Float>(x: &[T], planes: usize, input: [usize; 2], output: [usize; 2]) -> Result<Vec<T>> {
    const OP: &str = "adaptive_avg_pool2d";
    check_sizes(OP, input, output)?;
    check_length(OP, "x", x.len(), planes * input[0] * input[1])?;
    let [rows, columns] = [0, 1].map(|axis| adaptive_axis(input[axis], output[axis]));
    Ok(apply(&rows, &columns, x, planes))
}

/// The gradient of [`adaptive_avg_pool2d`] for its input: `gradient` is `[planes, H', W']`, the result `[planes, H, W]`.
///
/// # Errors
/// As for the forward pass.
pub fn adaptive_avg_pool2d_backward<T: Float>(
    gradient: &[T],
    planes: usize,
    input: [usize; 2],
    output: [usize; 2],
) -> Result<Vec<T>> {
    const OP: &str = "adaptive_avg_pool2d_backward";
    check_sizes(OP, input, output)?;
    check_length(OP, "gradient", gradient.len(), planes * output[0] * output[1])?;
    let [rows, columns] = [0, 1].map(|axis| adaptive_axis(input[axis], output[axis]).transposed());
    Ok(apply(&rows, &columns, gradient, planes))
}

fn check_sizes(op: &'static str, input: [usize; 2], output: [usize; 2]) -> Result<()> {
    for (name, size) in [("input size", input), ("output size", output)] {
        if size.contains(&0) {
            return Err(param(op, name, "at least 1 by 1", format!("{size:?}")));
        }
    }
    Ok(())
}

fn window_axis(pool: Pool2d, axis: usize, input: [usize; 2], output: [usize; 2], count_include_pad: bool) -> Axis {
    let size = input[axis];
    let spans = (0..output[axis]).map(|place| {
        let (from, to) = pool.window(axis, place, size);
        // The padded input ends `padding` after the input; positions are counted from the start of the left padding.
        let start = place * pool.stride[axis];
        let padded = (start + pool.kernel[axis]).min(size + 2 * pool.padding[axis]) - start;
        let divisor = if count_include_pad { padded } else { to - from };
        (from, std::iter::repeat_n(1.0 / divisor as f64, to - from))
    });
    Axis::new(size, spans)
}

fn adaptive_axis(input: usize, output: usize) -> Axis {
    let spans = (0..output).map(|place| {
        let (from, to) = (place * input / output, ((place + 1) * input).div_ceil(output));
        (from, std::iter::repeat_n(1.0 / (to - from) as f64, to - from))
    });
    Axis::new(input, spans)
}

#[cfg(test)]
mod tests {
    use dsd_random::Stream;

    use super::*;

    fn pool(kernel: [usize; 2], stride: [usize; 2], padding: [usize; 2], ceil_mode: bool) -> Pool2d {
        Pool2d { kernel, stride, padding, ceil_mode }
    }

    fn assert_close(got: &[f64], expected: &[f64], tolerance: f64, what: &str) {
        assert_eq!(got.len(), expected.len(), "{what}");
        for (place, (got, expected)) in got.iter().zip(expected).enumerate() {
            let error = (got - expected).abs();
            assert!(error <= tolerance * (1.0 + expected.abs()), "{what}, element {place}: {got}, expected {expected}");
        }
    }

    /// The mean over windows by the definition; `bounds` gives from, to and divisor of a window of an axis.
    fn mean(
        x: &[f64],
        planes: usize,
        input: [usize; 2],
        output: [usize; 2],
        bounds: impl Fn(usize, usize) -> (usize, usize, usize),
    ) -> Vec<f64> {
        let mut means = Vec::new();
        for plane in 0..planes {
            for row in 0..output[0] {
                for column in 0..output[1] {
                    let (top, bottom, rows) = bounds(0, row);
                    let (left, right, columns) = bounds(1, column);
                    let mut sum = 0.0;
                    for h in top..bottom {
                        for w in left..right {
                            sum += x[(plane * input[0] + h) * input[1] + w];
                        }
                    }
                    means.push(sum / (rows * columns) as f64);
                }
            }
        }
        means
    }

    #[test]
    fn hand_values_with_padding_and_both_divisors() {
        let x: Vec<f64> = (1..=9).map(f64::from).collect();
        let options = pool([3, 3], [2, 2], [1, 1], false);
        let included = avg_pool2d(&x, 1, [3, 3], options, true).unwrap();
        assert_close(&included, &[12.0 / 9.0, 16.0 / 9.0, 24.0 / 9.0, 28.0 / 9.0], 1e-15, "included");
        let excluded = avg_pool2d(&x, 1, [3, 3], options, false).unwrap();
        assert_close(&excluded, &[3.0, 4.0, 6.0, 7.0], 1e-15, "excluded");
    }

    #[test]
    fn a_window_cut_by_ceil_mode_divides_by_what_is_left_of_it() {
        let x: Vec<f64> = (1..=6).map(f64::from).collect();
        for count_include_pad in [false, true] {
            let means = avg_pool2d(&x, 1, [2, 3], pool([2, 2], [2, 2], [0, 0], true), count_include_pad).unwrap();
            assert_close(&means, &[3.0, 4.5], 1e-15, "2 by 3");
        }
        // Width 4, padding 1: the last window begins at 3 and the padded input ends at 5, so its divisor is 2.
        let means = avg_pool2d(&[1.0, 2.0, 3.0, 4.0], 1, [1, 4], pool([1, 3], [1, 2], [0, 1], true), true).unwrap();
        assert_close(&means, &[1.0, 3.0, 2.0], 1e-15, "1 by 4");
    }

    #[test]
    fn one_pixel_stays_what_it_is() {
        let options = pool([1, 1], [1, 1], [0, 0], false);
        assert_eq!(avg_pool2d(&[3.5f32], 1, [1, 1], options, true).unwrap(), [3.5]);
        assert_eq!(adaptive_avg_pool2d(&[3.5f32], 1, [1, 1], [2, 3]).unwrap(), [3.5; 6]);
        assert_eq!(adaptive_avg_pool2d_backward(&[1.0f32; 6], 1, [1, 1], [2, 3]).unwrap(), [6.0]);
    }

    #[test]
    fn adaptive_bins_overlap_where_sizes_do_not_divide() {
        // 5 pixels in 3 bins: 0..2, 1..4, 3..5.
        let means = adaptive_avg_pool2d(&[1.0, 2.0, 4.0, 8.0, 16.0], 1, [1, 5], [1, 3]).unwrap();
        assert_close(&means, &[1.5, 14.0 / 3.0, 12.0], 1e-15, "forward");
        let gradient = adaptive_avg_pool2d_backward(&[6.0, 6.0, 6.0], 1, [1, 5], [1, 3]).unwrap();
        assert_close(&gradient, &[3.0, 5.0, 2.0, 5.0, 3.0], 1e-15, "backward");
    }

    #[test]
    fn pixels_between_the_windows_have_no_gradient_and_touch_nothing() {
        let options = pool([1, 1], [2, 2], [0, 0], false);
        let nan = f32::NAN;
        let x = [1.0, nan, 2.0, nan, nan, nan, 3.0, nan, 4.0];
        assert_eq!(avg_pool2d(&x, 1, [3, 3], options, true).unwrap(), [1.0, 2.0, 3.0, 4.0]);
        let gradient = avg_pool2d_backward(&[1.0f32, 2.0, 3.0, 4.0], 1, [3, 3], options, true).unwrap();
        assert_eq!(gradient, [1.0, 0.0, 2.0, 0.0, 0.0, 0.0, 3.0, 0.0, 4.0]);
    }

    fn check_against_definition(
        what: &str,
        stream: &mut Stream,
        planes: usize,
        [input, output]: [[usize; 2]; 2],
        forward: (impl Fn(&[f64]) -> Vec<f64>, impl Fn(&[f32]) -> Vec<f32>),
        backward: (impl Fn(&[f64]) -> Vec<f64>, impl Fn(&[f32]) -> Vec<f32>),
        bounds: impl Fn(usize, usize) -> (usize, usize, usize),
    ) {
        let x: Vec<f64> = (0..planes * input[0] * input[1]).map(|_| f64::from(stream.normal() as f32)).collect();
        let gradient: Vec<f64> =
            (0..planes * output[0] * output[1]).map(|_| f64::from(stream.normal() as f32)).collect();
        let narrow = |wide: &[f64]| wide.iter().map(|&value| value as f32).collect::<Vec<_>>();
        let widen = |narrow: Vec<f32>| narrow.into_iter().map(f64::from).collect::<Vec<_>>();
        let y = forward.0(&x);
        assert_close(&y, &mean(&x, planes, input, output, bounds), 1e-13, what);
        assert_close(&widen(forward.1(&narrow(&x))), &y, 2e-6, what);
        let x_gradient = backward.0(&gradient);
        assert_close(&widen(backward.1(&narrow(&gradient))), &x_gradient, 2e-6, what);
        let inner = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        assert_close(&[inner(&y, &gradient)], &[inner(&x, &x_gradient)], 1e-12, what);
    }

    #[test]
    fn adaptive_pools_equal_the_definition_and_have_adjoint_gradients() {
        let mut stream = Stream::new(2, "adaptive", 0, 0);
        for input in [[7, 5], [1, 9], [6, 6], [45, 61], [2, 3]] {
            for bins in [[1, 1], [2, 2], [3, 3], [6, 6], [6, 1], [3, 20]] {
                check_against_definition(
                    &format!("{input:?} to {bins:?}"),
                    &mut stream,
                    3,
                    [input, bins],
                    (
                        |x| adaptive_avg_pool2d(x, 3, input, bins).unwrap(),
                        |x| adaptive_avg_pool2d(x, 3, input, bins).unwrap(),
                    ),
                    (
                        |g| adaptive_avg_pool2d_backward(g, 3, input, bins).unwrap(),
                        |g| adaptive_avg_pool2d_backward(g, 3, input, bins).unwrap(),
                    ),
                    |axis, place| {
                        let from = place * input[axis] / bins[axis];
                        let to = ((place + 1) * input[axis]).div_ceil(bins[axis]);
                        (from, to, to - from)
                    },
                );
            }
        }
    }

    #[test]
    fn pools_equal_the_definition_and_have_adjoint_gradients() {
        let mut stream = Stream::new(3, "avg_pool2d", 0, 0);
        for case in 0..200 {
            let input = [1 + stream.below(13), 1 + stream.below(20)];
            let kernel = [1 + stream.below(5), 1 + stream.below(10)];
            let stride = [1 + stream.below(4), 1 + stream.below(4)];
            let padding = [stream.below(kernel[0] / 2 + 1), stream.below(kernel[1] / 2 + 1)];
            let options = pool(kernel, stride, padding, stream.chance(0.5));
            let include = stream.chance(0.5);
            let Ok(output) = options.output_size("test", input) else { continue };
            check_against_definition(
                &format!("case {case}: {input:?} {options:?} {include}"),
                &mut stream,
                2,
                [input, output],
                (
                    |x| avg_pool2d(x, 2, input, options, include).unwrap(),
                    |x| avg_pool2d(x, 2, input, options, include).unwrap(),
                ),
                (
                    |g| avg_pool2d_backward(g, 2, input, options, include).unwrap(),
                    |g| avg_pool2d_backward(g, 2, input, options, include).unwrap(),
                ),
                |axis, place| {
                    let [size, kernel, padding] = [input[axis], kernel[axis], padding[axis]].map(|value| value as i64);
                    let start = (place * stride[axis]) as i64 - padding;
                    let end = (start + kernel).min(size + padding);
                    let (from, to) = (start.max(0), end.min(size));
                    let divisor = if include { end - start } else { to - from };
                    (from as usize, to as usize, divisor as usize)
                },
            );
        }
    }

    #[test]
    fn bad_arguments_are_named() {
        let error = adaptive_avg_pool2d(&[0.0f32; 4], 1, [2, 2], [0, 1]).unwrap_err().to_string();
        assert_eq!(error, "adaptive_avg_pool2d: output size is [0, 1], expected at least 1 by 1");
        assert!(adaptive_avg_pool2d(&[0.0f32; 5], 1, [2, 2], [1, 1]).is_err());
        let options = pool([2, 2], [2, 2], [0, 0], false);
        assert!(avg_pool2d(&[0.0f32; 4], 2, [2, 2], options, true).is_err());
        assert!(avg_pool2d_backward(&[0.0f32; 2], 1, [2, 2], options, true).is_err());
    }
}

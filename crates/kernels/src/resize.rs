//! Bilinear and nearest resize of planes, and their gradients.
//!
//! Both are separable. With scale = in / out, the source position of output position d is
//! - bilinear, `align_corners`: d · (in − 1) / (out − 1), or 0 where out is 1;
//! - bilinear otherwise: max(0, (d + ½) · scale − ½);
//! - nearest: ⌊d · scale⌋ in f32, at most in − 1.
//!
//! These are PyTorch's rules (`F.interpolate` with `size`, modes `bilinear` and `nearest`). The bilinear weights are
//! computed in f64 and rounded once.

pub(crate) mod separable;

use crate::error::{check_length, param};
use crate::{Float, Result};
use separable::{Axis, apply};

/// Bilinear resize of `planes` planes from `input` to `output` (height, width), `[planes, H, W]` to `[planes, H', W']`.
///
/// # Errors
/// Param where a size is 0; Length where `x` does not match.
pub fn resize_bilinear<T: Float>(
    x: &[T],
    planes: usize,
    input: [usize; 2],
    output: [usize; 2],
    align_corners: bool,
) -> Result<Vec<T>> {
    const OP: &str = "resize_bilinear";
    check(OP, "x", x, planes, input, input, output)?;
    let [rows, columns] = [0, 1].map(|axis| bilinear_axis(input[axis], output[axis], align_corners));
    Ok(apply(&rows, &columns, x, planes))
}

/// The gradient of [`resize_bilinear`] for its input: `gradient` is `[planes, H', W']`, the result `[planes, H, W]`.
///
/// # Errors
/// As for the forward pass.
pub fn resize_bilinear_backward<T: Float>(
    gradient: &[T],
    planes: usize,
    input: [usize; 2],
    output: [usize; 2],
    align_corners: bool,
) -> Result<Vec<T>> {
    const OP: &str = "resize_bilinear_backward";
    check(OP, "gradient", gradient, planes, output, input, output)?;
    let [rows, columns] = [0, 1].map(|axis| bilinear_axis(input[axis], output[axis], align_corners).transposed());
    Ok(apply(&rows, &columns, gradient, planes))
}

/// Nearest resize of `planes` planes from `input` to `output` (height, width), PyTorch's "nearest".
///
/// # Errors
/// Param where a size is 0; Length where `x` does not match.
pub fn resize_nearest<T: Float>(x: &[T], planes: usize, input: [usize; 2], output: [usize; 2]) -> Result<Vec<T>> {
    check("resize_nearest", "x", x, planes, input, input, output)?;
    let [rows, columns] = [0, 1].map(|axis| nearest_axis(input[axis], output[axis]));
    Ok(apply(&rows, &columns, x, planes))
}

/// The gradient of [`resize_nearest`] for its input: each input sums over the outputs that copied it.
///
/// # Errors
/// As for the forward pass.
pub fn resize_nearest_backward<T: Float>(
    gradient: &[T],
    planes: usize,
    input: [usize; 2],
    output: [usize; 2],
) -> Result<Vec<T>> {
    check("resize_nearest_backward", "gradient", gradient, planes, output, input, output)?;
    let [rows, columns] = [0, 1].map(|axis| nearest_axis(input[axis], output[axis]).transposed());
    Ok(apply(&rows, &columns, gradient, planes))
}

fn check<T>(
    op: &'static str,
    argument: &'static str,
    elements: &[T],
    planes: usize,
    own: [usize; 2],
    input: [usize; 2],
    output: [usize; 2],
) -> Result<()> {
    for (name, size) in [("input size", input), ("output size", output)] {
        if size.contains(&0) {
            return Err(param(op, name, "at least 1 by 1", format!("{size:?}")));
        }
    }
    check_length(op, argument, elements.len(), planes * own[0] * own[1])
}

fn bilinear_axis(input: usize, output: usize, align_corners: bool) -> Axis {
    let source = |place: usize| {
        if align_corners {
            (place * (input - 1)) as f64 / (output - 1).max(1) as f64
        } else {
            (((2 * place + 1) * input) as f64 / (2 * output) as f64 - 0.5).max(0.0)
        }
    };
    let spans = (0..output).map(|place| {
        let position = source(place);
        let first = (position as usize).min(input - 1); // a cast of a number ≥ 0 rounds down
        let share = position - first as f64;
        let (here, next) = if share > 0.0 && first + 1 < input { (1.0 - share, Some(share)) } else { (1.0, None) };
        (first, std::iter::once(here).chain(next))
    });
    Axis::new(input, spans)
}

fn nearest_axis(input: usize, output: usize) -> Axis {
    // In f32 as PyTorch does it: for some sizes the exact quotient would fall on the other side of an integer.
    let scale = input as f32 / output as f32;
    let spans = (0..output).map(|place| (((place as f32 * scale) as usize).min(input - 1), [1.0]));
    Axis::new(input, spans)
}

#[cfg(test)]
mod tests {
    use dsd_random::Stream;

    use super::*;

    fn assert_close(got: &[f64], expected: &[f64], tolerance: f64, what: &str) {
        assert_eq!(got.len(), expected.len(), "{what}");
        for (place, (got, expected)) in got.iter().zip(expected).enumerate() {
            let error = (got - expected).abs();
            assert!(error <= tolerance * (1.0 + expected.abs()), "{what}, element {place}: {got}, expected {expected}");
        }
    }

    #[test]
    fn hand_values_both_ways() {
        // (input, align_corners, output)
        let rows: [(&[f64], bool, &[f64]); 9] = [
            (&[0.0, 1.0], false, &[0.0, 0.25, 0.75, 1.0]),
            (&[0.0, 1.0], true, &[0.0, 1.0 / 3.0, 2.0 / 3.0, 1.0]),
            (&[0.0, 1.0, 2.0, 3.0], false, &[0.5, 2.5]),
            (&[0.0, 1.0, 2.0, 3.0], true, &[0.0, 3.0]),
            (&[0.0, 1.0, 2.0, 4.0, 8.0], true, &[0.0, 2.0, 8.0]),
            (&[1.0, 2.0, 4.0], false, &[2.0]),
            (&[1.0, 2.0, 4.0], true, &[1.0]),
            (&[7.0], false, &[7.0, 7.0, 7.0]),
            (&[7.0], true, &[7.0, 7.0, 7.0]),
        ];
        for (x, align_corners, expected) in rows {
            let what = format!("{x:?} align_corners {align_corners}");
            let along = resize_bilinear(x, 1, [1, x.len()], [1, expected.len()], align_corners).unwrap();
            assert_close(&along, expected, 1e-15, &what);
            let down = resize_bilinear(x, 1, [x.len(), 1], [expected.len(), 1], align_corners).unwrap();
            assert_close(&down, expected, 1e-15, &what);
        }
        let square = resize_bilinear(&[0.0, 1.0, 2.0, 3.0], 1, [2, 2], [3, 3], true).unwrap();
        assert_close(&square, &[0.0, 0.5, 1.0, 1.0, 1.5, 2.0, 2.0, 2.5, 3.0], 1e-15, "2 by 2 to 3 by 3");
    }

    #[test]
    fn nearest_copies_the_pixel_below_the_quotient() {
        let copy = |x: &[f32], output| resize_nearest(x, 1, [1, x.len()], [1, output]).unwrap();
        assert_eq!(copy(&[0.0, 1.0, 2.0], 7), [0.0, 0.0, 0.0, 1.0, 1.0, 2.0, 2.0]);
        assert_eq!(copy(&[0.0, 1.0, 2.0, 3.0, 4.0], 3), [0.0, 1.0, 3.0]);
        assert_eq!(copy(&[5.0], 2), [5.0, 5.0]);
        let gradient = resize_nearest_backward(&[1.0f32, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0], 1, [1, 3], [1, 7]).unwrap();
        assert_eq!(gradient, [7.0, 24.0, 96.0]);
        let gradient = resize_nearest_backward(&[1.0f32, 2.0, 4.0], 1, [1, 5], [1, 3]).unwrap();
        assert_eq!(gradient, [1.0, 2.0, 0.0, 4.0, 0.0]);
    }

    #[test]
    fn the_same_size_is_the_same_image_bit_for_bit() {
        let x = [1.5f32, f32::INFINITY, f32::NEG_INFINITY, 1e-45, f32::NAN, -0.0];
        let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<_>>();
        for align_corners in [false, true] {
            let same = resize_bilinear(&x, 1, [2, 3], [2, 3], align_corners).unwrap();
            assert_eq!(bits(same), bits(x.to_vec()));
            let same = resize_bilinear_backward(&x, 1, [2, 3], [2, 3], align_corners).unwrap();
            assert_eq!(bits(same), bits(x.to_vec()));
        }
        assert_eq!(bits(resize_nearest(&x, 2, [1, 3], [1, 3]).unwrap()), bits(x.to_vec()));
    }

    #[test]
    fn a_constant_stays_constant() {
        for (input, output) in [([3, 5], [7, 4]), ([6, 6], [45, 60]), ([9, 1], [2, 2])] {
            for align_corners in [false, true] {
                let y = resize_bilinear(&vec![2.0f64; input[0] * input[1]], 1, input, output, align_corners).unwrap();
                assert_close(&y, &vec![2.0; output[0] * output[1]], 1e-15, "constant");
            }
        }
    }

    /// One pixel by the definition, from the four pixels around its source position.
    fn pixel(image: &[f64], [height, width]: [usize; 2], output: [usize; 2], align: bool, place: [usize; 2]) -> f64 {
        let [(top, down), (left, right)] = [0, 1].map(|axis| {
            let (size, out) = ([height, width][axis] as f64, output[axis] as f64);
            let d = place[axis] as f64;
            let position = match (align, output[axis]) {
                (true, 1) => 0.0,
                (true, _) => d * ((size - 1.0) / (out - 1.0)),
                (false, _) => ((d + 0.5) * (size / out) - 0.5).max(0.0),
            };
            let first = position.floor().min(size - 1.0);
            (first as usize, position - first)
        });
        let at = |h: usize, w: usize| image[h.min(height - 1) * width + w.min(width - 1)];
        (at(top, left) * (1.0 - right) + at(top, left + 1) * right) * (1.0 - down)
            + (at(top + 1, left) * (1.0 - right) + at(top + 1, left + 1) * right) * down
    }

    #[test]
    fn fast_equals_the_definition_and_gradients_are_adjoint() {
        let mut stream = Stream::new(4, "resize", 0, 0);
        for case in 0..300 {
            let [input, output] = [0, 1].map(|_| [1 + stream.below(20), 1 + stream.below(33)]);
            let planes = 1 + stream.below(3);
            let what = format!("case {case}: {input:?} to {output:?}");
            let mut random = |size: [usize; 2]| -> Vec<f64> {
                (0..planes * size[0] * size[1]).map(|_| f64::from(stream.normal() as f32)).collect()
            };
            let (x, gradient) = (random(input), random(output));
            let narrow = |wide: &[f64]| wide.iter().map(|&value| value as f32).collect::<Vec<_>>();
            let widen = |narrow: Vec<f32>| narrow.into_iter().map(f64::from).collect::<Vec<_>>();
            let (x32, gradient32) = (narrow(&x), narrow(&gradient));
            let inner = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
            for align in [false, true] {
                let y = resize_bilinear(&x, planes, input, output, align).unwrap();
                let expected: Vec<f64> = (0..planes * output[0] * output[1])
                    .map(|index| {
                        let (plane, rest) = (index / (output[0] * output[1]), index % (output[0] * output[1]));
                        let image = &x[plane * input[0] * input[1]..][..input[0] * input[1]];
                        pixel(image, input, output, align, [rest / output[1], rest % output[1]])
                    })
                    .collect();
                assert_close(&y, &expected, 1e-12, &what);
                let y32 = resize_bilinear(&x32, planes, input, output, align).unwrap();
                assert_close(&widen(y32), &expected, 2e-6, &what);
                let back = resize_bilinear_backward(&gradient, planes, input, output, align).unwrap();
                assert_close(&[inner(&y, &gradient)], &[inner(&x, &back)], 1e-12, &what);
                let back32 = resize_bilinear_backward(&gradient32, planes, input, output, align).unwrap();
                assert_close(&widen(back32), &back, 2e-6, &what);
            }
            let y = resize_nearest(&x, planes, input, output).unwrap();
            assert_close(&widen(resize_nearest(&x32, planes, input, output).unwrap()), &y, 0.0, &what);
            let back = resize_nearest_backward(&gradient, planes, input, output).unwrap();
            assert_close(&[inner(&y, &gradient)], &[inner(&x, &back)], 1e-12, &what);
        }
    }

    #[test]
    fn bad_arguments_are_named() {
        let error = resize_nearest(&[0.0f32; 4], 1, [2, 2], [3, 0]).unwrap_err().to_string();
        assert_eq!(error, "resize_nearest: output size is [3, 0], expected at least 1 by 1");
        assert!(resize_bilinear(&[0.0f32; 5], 1, [2, 2], [3, 3], true).is_err());
        assert!(resize_bilinear_backward(&[0.0f32; 4], 1, [2, 2], [3, 3], true).is_err());
        assert!(resize_bilinear::<f32>(&[], 1, [0, 2], [3, 3], true).is_err());
    }
}

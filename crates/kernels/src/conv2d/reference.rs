//! The three passes of a convolution as the formulas say, for any setting and both float types.
//!
//! y[n,k,i,j] = b[k] + Σ_{c,u,v} w[k,c,u,v] · x[n, c, i·s + u·d − p, j·s + v·d − p], zero outside the input; c runs
//! over the channels of k's group. The other two passes are its derivatives.

use rayon::prelude::*;

use super::Conv2dShape;
use crate::Float;

/// The output.
pub(super) fn forward<T: Float>(shape: &Conv2dShape, x: &[T], weight: &[T], bias: Option<&[T]>, y: &mut [T]) {
    let (height, width) = (shape.in_height, shape.in_width);
    let (out_height, out_width) = (shape.out_height(), shape.out_width());
    let (group_in, group_out) = (shape.group_in_channels(), shape.group_out_channels());
    y.par_chunks_mut(out_height * out_width).enumerate().for_each(|(plane, y)| {
        let (n, k) = (plane / shape.out_channels, plane % shape.out_channels);
        y.fill(bias.map_or(T::ZERO, |bias| bias[k]));
        for c in 0..group_in {
            let from = (n * shape.in_channels + k / group_out * group_in + c) * height * width;
            let x = &x[from..from + height * width];
            for u in 0..shape.kernel[0] {
                for v in 0..shape.kernel[1] {
                    let factor = weight[((k * group_in + c) * shape.kernel[0] + u) * shape.kernel[1] + v];
                    for i in shape.inside(0, u) {
                        let row = &x[shape.source(0, u, i) * width..][..width];
                        for j in shape.inside(1, v) {
                            y[i * out_width + j] += factor * row[shape.source(1, v, j)];
                        }
                    }
                }
            }
        }
    });
}

/// The gradient of the input.
pub(super) fn backward_input<T: Float>(shape: &Conv2dShape, weight: &[T], grad_y: &[T], grad_x: &mut [T]) {
    let width = shape.in_width;
    let (out_height, out_width) = (shape.out_height(), shape.out_width());
    let (group_in, group_out) = (shape.group_in_channels(), shape.group_out_channels());
    grad_x.par_chunks_mut(shape.in_height * width).enumerate().for_each(|(plane, grad_x)| {
        let (n, channel) = (plane / shape.in_channels, plane % shape.in_channels);
        let (group, c) = (channel / group_in, channel % group_in);
        grad_x.fill(T::ZERO);
        for k in group * group_out..(group + 1) * group_out {
            let from = (n * shape.out_channels + k) * out_height * out_width;
            let grad_y = &grad_y[from..from + out_height * out_width];
            for u in 0..shape.kernel[0] {
                for v in 0..shape.kernel[1] {
                    let factor = weight[((k * group_in + c) * shape.kernel[0] + u) * shape.kernel[1] + v];
                    for i in shape.inside(0, u) {
                        let row = &mut grad_x[shape.source(0, u, i) * width..][..width];
                        for j in shape.inside(1, v) {
                            row[shape.source(1, v, j)] += factor * grad_y[i * out_width + j];
                        }
                    }
                }
            }
        }
    });
}

/// The gradient of the weight.
pub(super) fn backward_weight<T: Float>(shape: &Conv2dShape, x: &[T], grad_y: &[T], grad_weight: &mut [T]) {
    let (height, width) = (shape.in_height, shape.in_width);
    let (out_height, out_width) = (shape.out_height(), shape.out_width());
    let (group_in, group_out) = (shape.group_in_channels(), shape.group_out_channels());
    grad_weight.par_chunks_mut(shape.taps()).enumerate().for_each(|(filter, grad_weight)| {
        let (k, c) = (filter / group_in, filter % group_in);
        grad_weight.fill(T::ZERO);
        for n in 0..shape.batch {
            let from = (n * shape.in_channels + k / group_out * group_in + c) * height * width;
            let x = &x[from..from + height * width];
            let from = (n * shape.out_channels + k) * out_height * out_width;
            let grad_y = &grad_y[from..from + out_height * out_width];
            for u in 0..shape.kernel[0] {
                for v in 0..shape.kernel[1] {
                    let mut sum = T::ZERO;
                    for i in shape.inside(0, u) {
                        let row = &x[shape.source(0, u, i) * width..][..width];
                        for j in shape.inside(1, v) {
                            sum += grad_y[i * out_width + j] * row[shape.source(1, v, j)];
                        }
                    }
                    grad_weight[u * shape.kernel[1] + v] += sum;
                }
            }
        }
    });
}

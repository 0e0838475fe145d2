//! Convolutions with one input channel per group, by sums of shifted rows.
//!
//! There is no matrix product to gain here: each plane is read once, convolved with its own few numbers and written
//! once. A plane is copied with its zero border (and split by stride remainders) into a buffer that stays in the cache.
//! There a tap is an offset, so several output rows, border columns included, are computed as one long row.

use std::mem::MaybeUninit;

use super::Conv2dShape;
use super::input_gradient::{classes, interleave};
use super::lowering::{Border, kernel_taps};
use super::scratch::with_buffer;
use crate::activation::BLOCK;
use crate::fresh::write_copy;
use crate::gemm::Simd;
use crate::parallel::{Shared, for_each_task};
use crate::simd::multiversion;

/// Planes per task.
const PLANES: usize = 4;
/// Elements of a long row at least: its buffer stays in the first-level cache.
const LONG_ROW: usize = 1024;
/// Vector lanes of the sums of products.
const LANES: usize = 8;
/// Taps that are summed in one pass at most: as many vectors as stay in registers.
const MOST_TAPS: usize = 9;

/// True where this algorithm can compute the shape.
pub(super) fn applies(shape: &Conv2dShape) -> bool {
    shape.group_in_channels() == 1
}

/// out[j] += Σ_t factors[t] · copy[offsets[t] + j].
#[inline(always)]
fn add_some<const TAPS: usize>(copy: &[f32], offsets: &[usize], factors: &[f32], out: &mut [f32]) {
    let width = out.len();
    let rows: [&[f32]; TAPS] = std::array::from_fn(|tap| &copy[offsets[tap]..][..width]);
    let factors: [f32; TAPS] = std::array::from_fn(|tap| factors[tap]);
    for j in 0..width {
        let mut sum = out[j];
        for tap in 0..TAPS {
            sum += factors[tap] * rows[tap][j];
        }
        out[j] = sum;
    }
}

multiversion! {
    /// out[j] += Σ_t factors[t] · copy[offsets[t] + j].
    fn add_taps(copy: &[f32], offsets: &[usize], factors: &[f32], out: &mut [f32]) {
        let mut tap = 0;
        while tap < offsets.len() {
            let (offsets, factors) = (&offsets[tap..], &factors[tap..]);
            tap += match offsets.len() {
                9.. => {
                    add_some::<9>(copy, offsets, factors, out);
                    9
                }
                3..9 => {
                    add_some::<3>(copy, offsets, factors, out);
                    3
                }
                _ => {
                    add_some::<1>(copy, offsets, factors, out);
                    1
                }
            };
        }
    }
}

/// sums[t] += Σ_j grad[j] · copy[offsets[t] + j]; the length of `grad` is a multiple of 8.
fn add_products(simd: Simd, grad: &[f32], copy: &[f32], offsets: &[usize], sums: &mut [f64]) {
    for (offsets, sums) in offsets.chunks(MOST_TAPS).zip(sums.chunks_mut(MOST_TAPS)) {
        match offsets.len() {
            1 => products_of::<1>(simd, grad, copy, offsets, sums),
            2 => products_of::<2>(simd, grad, copy, offsets, sums),
            3 => products_of::<3>(simd, grad, copy, offsets, sums),
            4 => products_of::<4>(simd, grad, copy, offsets, sums),
            5 => products_of::<5>(simd, grad, copy, offsets, sums),
            6 => products_of::<6>(simd, grad, copy, offsets, sums),
            7 => products_of::<7>(simd, grad, copy, offsets, sums),
            8 => products_of::<8>(simd, grad, copy, offsets, sums),
            _ => products_of::<MOST_TAPS>(simd, grad, copy, offsets, sums),
        }
    }
}

/// One vector of partial sums for each tap, in f64 after each block.
fn products_of<const TAPS: usize>(simd: Simd, grad: &[f32], copy: &[f32], offsets: &[usize], sums: &mut [f64]) {
    for (index, grad) in grad.chunks(BLOCK).enumerate() {
        let grad = grad.as_chunks::<LANES>().0;
        let rows: [&[[f32; LANES]]; TAPS] =
            std::array::from_fn(|tap| &copy[offsets[tap] + index * BLOCK..].as_chunks::<LANES>().0[..grad.len()]);
        let lanes = match simd {
            Simd::Portable => products_portable(grad, rows),
            #[cfg(target_arch = "x86_64")]
            #[allow(unsafe_code, reason = "detection stands behind this variant")]
            // SAFETY: this variant exists only where AVX2 and FMA were found.
            Simd::Avx2(_) => unsafe { products_avx2(grad, rows) },
        };
        for (sum, lanes) in sums.iter_mut().zip(lanes) {
            *sum += lanes.iter().map(|&lane| f64::from(lane)).sum::<f64>();
        }
    }
}

fn products_portable<const TAPS: usize>(grad: &[[f32; LANES]], rows: [&[[f32; LANES]]; TAPS]) -> [[f32; LANES]; TAPS] {
    rows.map(|row| {
        let mut lanes = [0f32; LANES];
        for (grad, row) in grad.iter().zip(row) {
            for lane in 0..LANES {
                lanes[lane] += grad[lane] * row[lane];
            }
        }
        lanes
    })
}

/// All taps in one pass: nine sums in registers hide the latency of the additions.
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code, reason = "vector loads and stores of whole arrays")]
#[target_feature(enable = "avx2,fma")]
fn products_avx2<const TAPS: usize>(grad: &[[f32; LANES]], rows: [&[[f32; LANES]]; TAPS]) -> [[f32; LANES]; TAPS] {
    use std::arch::x86_64::{_mm256_fmadd_ps, _mm256_loadu_ps, _mm256_setzero_ps, _mm256_storeu_ps};
    assert!(rows.iter().all(|row| row.len() == grad.len()));
    let mut sums = [_mm256_setzero_ps(); TAPS];
    for (index, grad) in grad.iter().enumerate() {
        // SAFETY: an array of 8 elements.
        let grad = unsafe { _mm256_loadu_ps(grad.as_ptr()) };
        for tap in 0..TAPS {
            // SAFETY: all rows have as many arrays as `grad` by the assertion, and an array has 8 elements.
            let row = unsafe { _mm256_loadu_ps(rows[tap].get_unchecked(index).as_ptr()) };
            sums[tap] = _mm256_fmadd_ps(grad, row, sums[tap]);
        }
    }
    let mut lanes = [[0f32; LANES]; TAPS];
    for (lanes, sum) in lanes.iter_mut().zip(sums) {
        // SAFETY: an array of 8 elements.
        unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), sum) };
    }
    lanes
}

/// Calls `body` with ranges of rows whose long row has about [`LONG_ROW`] elements.
fn for_long_rows(rows: usize, row_step: usize, mut body: impl FnMut(std::ops::Range<usize>)) {
    let step = LONG_ROW.div_ceil(row_step);
    for first in (0..rows).step_by(step) {
        body(first..(first + step).min(rows));
    }
}

/// The output, bias included; every element of `y` is written.
pub(super) fn forward(
    shape: &Conv2dShape,
    x: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    y: &mut [MaybeUninit<f32>],
) {
    let out = [shape.out_height(), shape.out_width()];
    let taps = kernel_taps(shape);
    let border = Border::new([shape.in_height, shape.in_width], shape.padding, shape.stride, out, &taps);
    let offsets: Vec<usize> = taps.iter().map(|&tap| border.tap_offset(tap)).collect();
    let (plane, out_plane) = (shape.in_height * shape.in_width, out[0] * out[1]);
    let multiplier = shape.group_out_channels();
    let planes = shape.batch * shape.in_channels;
    let step = border.row_step();
    let y = Shared::new(y);
    for_each_task(planes.div_ceil(PLANES), |task| {
        with_buffer(border.plane_len() + LONG_ROW + step, |buffer| {
            let (copy, long) = buffer.split_at_mut(border.plane_len());
            for index in task * PLANES..((task + 1) * PLANES).min(planes) {
                border.copy_plane(&x[index * plane..(index + 1) * plane], copy);
                let (n, c) = (index / shape.in_channels, index % shape.in_channels);
                for k in c * multiplier..(c + 1) * multiplier {
                    let factors = &weight[k * taps.len()..(k + 1) * taps.len()];
                    #[allow(unsafe_code, reason = "tasks write disjoint planes")]
                    // SAFETY: an input plane belongs to one task, so its output planes do.
                    let y = unsafe { y.part((n * shape.out_channels + k) * out_plane, out_plane) };
                    for_long_rows(out[0], step, |rows| {
                        let long = &mut long[..(rows.len() - 1) * step + out[1]];
                        long.fill(bias.map_or(0.0, |bias| bias[k]));
                        add_taps(&copy[rows.start * step..], &offsets, factors, long);
                        for (y, long) in y[rows.start * out[1]..].chunks_exact_mut(out[1]).zip(long.chunks(step)) {
                            write_copy(y, &long[..out[1]]);
                        }
                    });
                }
            }
        });
    });
}

/// The gradient of the input: each class of input pixels by remainder is a sum of shifted rows of the output gradient.
/// Every element of `grad_x` is written.
pub(super) fn backward_input(shape: &Conv2dShape, weight: &[f32], grad_y: &[f32], grad_x: &mut [MaybeUninit<f32>]) {
    let (classes, before) = classes(shape);
    let [stride_rows, stride] = shape.stride;
    let [class_rows, class_width] = [shape.in_height.div_ceil(stride_rows), shape.in_width.div_ceil(stride)];
    let out = [shape.out_height(), shape.out_width()];
    let all_taps: Vec<[usize; 2]> = classes.iter().flat_map(|class| class.taps.iter().map(|tap| tap.1)).collect();
    let border = Border::new(out, before, [1, 1], [class_rows, class_width], &all_taps);
    let offsets: Vec<Vec<usize>> =
        classes.iter().map(|class| class.taps.iter().map(|tap| border.tap_offset(tap.1)).collect()).collect();
    let (plane, out_plane) = (shape.in_height * shape.in_width, out[0] * out[1]);
    let multiplier = shape.group_out_channels();
    let planes = shape.batch * shape.in_channels;
    let step = border.row_step();
    let grad_x = Shared::new(grad_x);
    for_each_task(planes.div_ceil(PLANES), |task| {
        let copies_len = multiplier * border.plane_len();
        with_buffer(copies_len + stride * (LONG_ROW + step), |buffer| {
            let (copies, long) = buffer.split_at_mut(copies_len);
            let mut factors = Vec::new();
            for index in task * PLANES..((task + 1) * PLANES).min(planes) {
                let (n, c) = (index / shape.in_channels, index % shape.in_channels);
                for (copy, k) in copies.chunks_exact_mut(border.plane_len()).zip(c * multiplier..) {
                    let from = (n * shape.out_channels + k) * out_plane;
                    border.copy_plane(&grad_y[from..from + out_plane], copy);
                }
                #[allow(unsafe_code, reason = "tasks write disjoint planes")]
                // SAFETY: each plane belongs to one task.
                let grad_x = unsafe { grad_x.part(index * plane, plane) };
                for rest_row in 0..stride_rows {
                    for_long_rows(class_rows, step, |rows| {
                        let len = (rows.len() - 1) * step + class_width;
                        for (rest, long) in long.chunks_exact_mut(LONG_ROW + step).enumerate() {
                            let class = rest_row * stride + rest;
                            long[..len].fill(0.0);
                            for (copy, k) in copies.chunks_exact(border.plane_len()).zip(c * multiplier..) {
                                factors.clear();
                                let filter = &weight[k * shape.taps()..(k + 1) * shape.taps()];
                                factors.extend(classes[class].taps.iter().map(|tap| filter[tap.0]));
                                add_taps(&copy[rows.start * step..], &offsets[class], &factors, &mut long[..len]);
                            }
                        }
                        for (local, class_row) in rows.enumerate() {
                            let row = class_row * stride_rows + rest_row;
                            if row < shape.in_height {
                                let grad_x = &mut grad_x[row * shape.in_width..(row + 1) * shape.in_width];
                                let part =
                                    |rest: usize| &long[rest * (LONG_ROW + step) + local * step..][..class_width];
                                interleave(grad_x, stride, part);
                            }
                        }
                    });
                }
            }
        });
    });
}

/// The gradient of the weight.
pub(super) fn backward_weight(simd: Simd, shape: &Conv2dShape, x: &[f32], grad_y: &[f32], grad_weight: &mut [f32]) {
    let out = [shape.out_height(), shape.out_width()];
    let taps = kernel_taps(shape);
    let border = Border::new([shape.in_height, shape.in_width], shape.padding, shape.stride, out, &taps);
    let offsets: Vec<usize> = taps.iter().map(|&tap| border.tap_offset(tap)).collect();
    let (plane, out_plane) = (shape.in_height * shape.in_width, out[0] * out[1]);
    let multiplier = shape.group_out_channels();
    let filter = taps.len();
    let step = border.row_step();
    // The output gradient in the layout of the copy: zeros between the rows and after the last.
    let long_len = (out[0] * step).next_multiple_of(LANES);
    let copy_len = border.plane_len() + step + LANES;
    let per_task = PLANES.div_ceil(shape.batch);
    let grad_weight = Shared::new(grad_weight);
    for_each_task(shape.in_channels.div_ceil(per_task), |task| {
        let mut sums = vec![0f64; multiplier * filter];
        with_buffer(copy_len + long_len, |buffer| {
            // Elements that are read but multiplied by zero must not be NaN.
            buffer.fill(0.0);
            let (copy, long) = buffer.split_at_mut(copy_len);
            for c in task * per_task..((task + 1) * per_task).min(shape.in_channels) {
                sums.fill(0.0);
                for n in 0..shape.batch {
                    let from = (n * shape.in_channels + c) * plane;
                    border.copy_plane(&x[from..from + plane], &mut copy[..border.plane_len()]);
                    for (k, sums) in sums.chunks_exact_mut(filter).enumerate() {
                        let from = (n * shape.out_channels + c * multiplier + k) * out_plane;
                        let grad_y = grad_y[from..from + out_plane].chunks_exact(out[1]);
                        for (long, grad_y) in long.chunks_mut(step).zip(grad_y) {
                            long[..out[1]].copy_from_slice(grad_y);
                        }
                        add_products(simd, long, copy, &offsets, sums);
                    }
                }
                #[allow(unsafe_code, reason = "tasks write disjoint filters")]
                // SAFETY: the filters of an input channel belong to one task.
                let out = unsafe { grad_weight.part(c * multiplier * filter, multiplier * filter) };
                for (out, sum) in out.iter_mut().zip(&sums) {
                    *out = *sum as f32;
                }
            }
        });
    });
}

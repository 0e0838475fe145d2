//! Convolutions with one input channel per group, by sums of shifted rows.
//!
//! There is no matrix product to gain here: each plane is read once, convolved with its own few numbers and written
//! once. A plane is copied with its zero border (and split by stride remainders) into a buffer that stays in the cache.
//! There a tap is an offset, and eight neighbouring outputs read eight neighbouring elements for each tap. Where the
//! vectors of a plane lie is the same for all planes: a list of [`Places`]. Loads are what limits this, so with stride 1
//! and kernels 3 or 5 high the vectors of four rows are computed together ([`Stacks`]): they share most of what they read.

mod places;
mod products;
mod sums;

use std::mem::MaybeUninit;

use super::Conv2dShape;
use super::input_gradient::classes;
use super::lowering::{Border, kernel_taps};
use super::scratch::with_buffer;
use crate::lanes::{Instructions, WIDTH};
use crate::parallel::{Shared, for_each_task};
use places::{Places, Stacks, overlapping};
use products::{Factors, Products, StackedProducts};
use sums::{StackedSums, Sums, Tap};

/// Elements per task, of as many whole planes, if those are not more than [`MOST_PLANES`].
const ELEMENTS: usize = 32 << 10;
const MOST_PLANES: usize = 32;

/// Planes of `len` elements per task.
fn planes_per_task(len: usize) -> usize {
    (ELEMENTS / len.max(1)).clamp(1, MOST_PLANES)
}

/// True where this algorithm can compute the shape.
pub(super) fn applies(shape: &Conv2dShape) -> bool {
    shape.group_in_channels() == 1
}

/// The sums of one plane, every tap with its offset and factor: by stacks of vectors where the taps are a grid, and one
/// vector after the other.
struct PlaneSums {
    instructions: Instructions,
    kernel: [usize; 2],
    /// The offset of each tap, row by row of the kernel.
    offsets: Vec<usize>,
    stacks: Stacks,
}

impl PlaneSums {
    /// Of `out` rows and columns that read a `border`'s copy at `offsets`.
    fn new(shape: &Conv2dShape, border: &Border, offsets: Vec<usize>, [rows, width]: [usize; 2]) -> Self {
        let stacks = stacks(shape, border, [rows, width], &overlapping(width), true);
        Self { instructions: Instructions::detect(), kernel: shape.kernel, offsets, stacks }
    }

    /// Writes start + Σ over t of factors\[t\] · copy\[offsets\[t\]..\] to all of `out`.
    fn run(&self, copy: &[f32], factors: &[f32], start: f32, out: &mut [MaybeUninit<f32>]) {
        let (columns, stacks) = (&self.offsets[..self.kernel[1]], &self.stacks);
        match self.kernel[0] {
            3 => self.instructions.run(StackedSums::<3> { copy, columns, factors, start, stacks, out }),
            5 => self.instructions.run(StackedSums::<5> { copy, columns, factors, start, stacks, out }),
            _ => {}
        }
        if !stacks.single.list.is_empty() {
            let taps = self.offsets.iter().zip(factors).map(|(&offset, &factor)| Tap { offset, factor });
            let taps = [taps.collect()];
            self.instructions.run(Sums { copy, taps: &taps, start, places: &stacks.single, out });
        }
    }
}

/// The vectors at the columns `starts` of all rows of a plane. They are stacked where the taps of a column lie in one
/// sub-plane, and where there is code for their number.
fn stacks(shape: &Conv2dShape, border: &Border, [rows, width]: [usize; 2], starts: &[usize], overlap: bool) -> Stacks {
    let stackable = shape.stride[0] == 1 && matches!(shape.kernel[0], 3 | 5);
    let dilation = shape.dilation[0];
    Stacks::new(rows, width, starts, border.row_step(), stackable.then_some(dilation), overlap)
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
    let kernel = kernel_taps(shape);
    let border = Border::new([shape.in_height, shape.in_width], shape.padding, shape.stride, out, &kernel);
    let offsets: Vec<usize> = kernel.iter().map(|&tap| border.tap_offset(tap)).collect();
    let sums = PlaneSums::new(shape, &border, offsets, out);
    let len = [shape.in_height * shape.in_width, out[0] * out[1]];
    let planes = Planes { border: &border, sums: &sums, channels: shape.in_channels, len };
    planes.convolve(weight, bias, x, y);
}

/// Planes of which each is convolved with its own filters.
struct Planes<'a> {
    border: &'a Border,
    sums: &'a PlaneSums,
    /// Planes of an image that are read.
    channels: usize,
    /// Elements of a plane that is read, and of one that is written.
    len: [usize; 2],
}

impl Planes<'_> {
    /// Writes to all of `to` what the filters make of the planes of `from`.
    fn convolve(&self, filters: &[f32], bias: Option<&[f32]>, from: &[f32], to: &mut [MaybeUninit<f32>]) {
        let Self { border, sums, channels, len: [plane, out_plane] } = *self;
        let taps = sums.offsets.len();
        let out_channels = filters.len() / taps;
        let multiplier = out_channels / channels;
        let planes = from.len() / plane;
        let per_task = planes_per_task(plane);
        let to = Shared::new(to);
        for_each_task(planes.div_ceil(per_task), |task| {
            with_buffer(border.plane_len() + WIDTH, |copy| {
                copy.fill(0.0);
                for index in task * per_task..((task + 1) * per_task).min(planes) {
                    border.copy_inside(&from[index * plane..(index + 1) * plane], &mut copy[..border.plane_len()]);
                    let (n, c) = (index / channels, index % channels);
                    for k in c * multiplier..(c + 1) * multiplier {
                        let factors = &filters[k * taps..(k + 1) * taps];
                        #[allow(unsafe_code, reason = "tasks write disjoint planes")]
                        // SAFETY: a plane that is read belongs to one task, so those that it gives do.
                        let out = unsafe { to.part((n * out_channels + k) * out_plane, out_plane) };
                        sums.run(copy, factors, bias.map_or(0.0, |bias| bias[k]), out);
                    }
                }
            });
        });
    }
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
    if shape.stride == [1, 1] && shape.group_out_channels() == 1 {
        // A convolution by the turned filters: from the last tap to the first, offsets go up.
        let offsets = classes[0].taps.iter().rev().map(|tap| border.tap_offset(tap.1)).collect();
        let sums = PlaneSums::new(shape, &border, offsets, [shape.in_height, shape.in_width]);
        let len = [out[0] * out[1], shape.in_height * shape.in_width];
        let planes = Planes { border: &border, sums: &sums, channels: shape.in_channels, len };
        return with_buffer(weight.len(), |turned| {
            for (turned, filter) in turned.chunks_exact_mut(shape.taps()).zip(weight.chunks_exact(shape.taps())) {
                turned.iter_mut().zip(filter.iter().rev()).for_each(|(turned, factor)| *turned = *factor);
            }
            planes.convolve(turned, None, grad_y, grad_x);
        });
    }
    // The rows of one remainder after the other.
    let (starts, width) = (overlapping(class_width), shape.in_width);
    let places: Vec<Places> = (0..stride_rows)
        .map(|rest| {
            let rows = (shape.in_height - rest.min(shape.in_height)).div_ceil(stride_rows);
            Places::new(0..rows, &starts, border.row_step(), width, |row, column| {
                (row * stride_rows + rest) * width + column * stride
            })
        })
        .collect();
    let (plane, out_plane) = (shape.in_height * width, out[0] * out[1]);
    let multiplier = shape.group_out_channels();
    let planes = shape.batch * shape.in_channels;
    let instructions = Instructions::detect();
    let per_task = planes_per_task(plane);
    let grad_x = Shared::new(grad_x);
    for_each_task(planes.div_ceil(per_task), |task| {
        let mut taps = vec![Vec::new(); stride];
        with_buffer(multiplier * border.plane_len() + WIDTH, |copies| {
            copies.fill(0.0);
            for index in task * per_task..((task + 1) * per_task).min(planes) {
                let (n, c) = (index / shape.in_channels, index % shape.in_channels);
                for (copy, k) in copies.chunks_exact_mut(border.plane_len()).zip(c * multiplier..(c + 1) * multiplier) {
                    let from = (n * shape.out_channels + k) * out_plane;
                    border.copy_inside(&grad_y[from..from + out_plane], copy);
                }
                #[allow(unsafe_code, reason = "tasks write disjoint planes")]
                // SAFETY: each plane belongs to one task.
                let out = unsafe { grad_x.part(index * plane, plane) };
                for (classes, places) in classes.chunks(stride).zip(&places) {
                    for (taps, class) in taps.iter_mut().zip(classes) {
                        taps.clear();
                        for copy in 0..multiplier {
                            let filter = &weight[(c * multiplier + copy) * shape.taps()..][..shape.taps()];
                            taps.extend(class.taps.iter().map(|&(tap, place)| Tap {
                                offset: copy * border.plane_len() + border.tap_offset(place),
                                factor: filter[tap],
                            }));
                        }
                    }
                    instructions.run(Sums { copy: copies, taps: &taps, start: 0.0, places, out });
                }
            }
        });
    });
}

/// The gradient of the weight.
pub(super) fn backward_weight(
    instructions: Instructions,
    shape: &Conv2dShape,
    x: &[f32],
    grad_y: &[f32],
    grad_weight: &mut [f32],
) {
    let out = [shape.out_height(), shape.out_width()];
    let kernel = kernel_taps(shape);
    let border = Border::new([shape.in_height, shape.in_width], shape.padding, shape.stride, out, &kernel);
    let offsets: Vec<usize> = kernel.iter().map(|&tap| border.tap_offset(tap)).collect();
    let starts: Vec<usize> = (0..out[1]).step_by(WIDTH).collect();
    let stacks = stacks(shape, &border, out, &starts, false);
    let columns = &offsets[..shape.kernel[1]];
    let (plane, out_plane) = (shape.in_height * shape.in_width, out[0] * out[1]);
    let multiplier = shape.group_out_channels();
    let filter = offsets.len();
    let per_task = planes_per_task(plane).div_ceil(shape.batch);
    let grad_weight = Shared::new(grad_weight);
    for_each_task(shape.in_channels.div_ceil(per_task), |task| {
        let mut sums = vec![0f64; multiplier * filter];
        with_buffer(border.plane_len() + WIDTH, |copy| {
            // The edges, and elements that are read but multiplied by zero and must not be NaN.
            copy.fill(0.0);
            for c in task * per_task..((task + 1) * per_task).min(shape.in_channels) {
                sums.fill(0.0);
                for n in 0..shape.batch {
                    let from = (n * shape.in_channels + c) * plane;
                    border.copy_inside(&x[from..from + plane], &mut copy[..border.plane_len()]);
                    for (k, sums) in sums.chunks_exact_mut(filter).enumerate() {
                        let from = (n * shape.out_channels + c * multiplier + k) * out_plane;
                        let factors = Factors { grad: &grad_y[from..from + out_plane], copy };
                        let stacks = &stacks;
                        match shape.kernel[0] {
                            3 => instructions.run(StackedProducts::<3> { factors, stacks, columns, sums }),
                            5 => instructions.run(StackedProducts::<5> { factors, stacks, columns, sums }),
                            _ => {}
                        }
                        instructions.run(Products { factors, places: &stacks.single, offsets: &offsets, sums });
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

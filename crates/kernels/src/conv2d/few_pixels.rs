//! Kernels of 1×1 on maps of a few pixels, as in a pyramid of pooled maps.
//!
//! There are more weights than anything else there, and each meets few pixels: to pack them takes as long as to multiply,
//! or longer. So the output is a product that reads the rows of the weights where they lie, and the gradient of the input
//! that of the transposed matrices, dXᵀ[pixel, c] = Σ_k dYᵀ[pixel, k] · W[k, c], which copies them row by row.

use std::mem::MaybeUninit;
use std::ops::Range;

use super::Conv2dShape;
use super::lowering::pack_pixels;
use super::scratch::{Lists, with_buffer, with_lists};
use crate::gemm::{Block, Columns, PACKED_ROWS, PANEL_COLUMNS, RowPanels, Rows, Scattered, target};
use crate::lanes::Instructions;
use crate::parallel::{Shared, for_each_task};
use crate::prefetch::prefetch;

/// Pixels of all images at most.
const PIXELS: usize = 256;
/// Tasks of an output; each packs all pixels.
const ROW_TASKS: usize = 4;
/// Tasks that a gradient should have, and input channels of a task at least.
const TASKS: usize = 8;
const CHANNELS: usize = 64;
/// Rows of weights between the one that is copied and the one that is fetched into the cache meanwhile.
const AHEAD: usize = 8;

/// True for the shapes that this is made for.
pub(super) fn applies(shape: &Conv2dShape) -> bool {
    let plain = shape.kernel == [1, 1] && shape.stride == [1, 1] && shape.padding == [0, 0];
    plain && shape.extra_padding == [0, 0] && shape.batch * shape.in_height * shape.in_width <= PIXELS
}

/// Where all pixels of one channel lie in a tensor with `of` channels.
fn pixel_places(shape: &Conv2dShape, of: usize, channel: usize) -> impl Iterator<Item = usize> {
    let plane = shape.in_height * shape.in_width;
    (0..shape.batch).flat_map(move |image| {
        let first = (image * of + channel) * plane;
        first..first + plane
    })
}

/// The output of a shape to which this [`applies`], bias included; every element of `y` is written.
pub(super) fn forward(
    instructions: Instructions,
    shape: &Conv2dShape,
    x: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    y: &mut [MaybeUninit<f32>],
) {
    let (rows, channels) = (shape.group_out_channels(), shape.group_in_channels());
    let plane = shape.in_height * shape.in_width;
    let pixels = shape.batch * plane;
    let row_panels = RowPanels::new(rows);
    let count = row_panels.count();
    let tasks = ROW_TASKS.min(count);
    let y = Shared::new(y);
    let run = |task: usize, Lists { columns, rows: starts, sources, panels, .. }: &mut Lists, packed: &mut [f32]| {
        let (group, part) = (task / tasks, task % tasks);
        columns.clear();
        columns.extend(pixel_places(shape, shape.out_channels, group * rows));
        for first in (0..channels).step_by(PACKED_ROWS) {
            let depth = PACKED_ROWS.min(channels - first);
            sources.clear();
            sources.extend(pixel_places(shape, shape.in_channels, group * channels + first));
            starts.clear();
            starts.extend((0..depth).map(|channel| channel * plane));
            pack_pixels(x, sources, starts, packed);
            starts.clear();
            starts.extend((0..rows).map(|row| (group * rows + row) * channels));
            sources.clear();
            sources.extend(first..first + depth);
            let block = Block {
                row_panels,
                panels: part * count / tasks..(part + 1) * count / tasks,
                a: Rows::InPlace(Scattered { elements: weight, rows: starts, places: sources, far: true }),
                b: Columns::packed(packed, depth, pixels, panels),
                columns,
                row_stride: plane,
                add: first > 0,
                bias: bias.map(|bias| &bias[group * rows..(group + 1) * rows]),
            };
            #[allow(unsafe_code, reason = "tasks write disjoint rows")]
            // SAFETY: two tasks differ in their group or in their panels; the first block writes all of a task's rows.
            unsafe {
                block.run(instructions, y);
            }
        }
    };
    let len = PACKED_ROWS.min(channels) * pixels.next_multiple_of(PANEL_COLUMNS);
    for_each_task(shape.groups * tasks, |task| {
        with_lists(|lists| with_buffer(len, |packed| run(task, lists, packed)));
    });
}

/// The gradient of the input of a shape to which this [`applies`]; every element of `grad_x` is written.
pub(super) fn backward_input(
    instructions: Instructions,
    shape: &Conv2dShape,
    weight: &[f32],
    grad_y: &[f32],
    grad_x: &mut [MaybeUninit<f32>],
) {
    let (rows, channels) = (shape.group_out_channels(), shape.group_in_channels());
    let task_channels = channels.div_ceil(TASKS).next_multiple_of(PANEL_COLUMNS).max(CHANNELS);
    let tasks = channels.div_ceil(task_channels);
    let plane = shape.in_height * shape.in_width;
    let pixels = shape.batch * plane;
    let grad_x = Shared::new(grad_x);
    for_each_task(shape.groups * tasks, |task| {
        let (group, first) = (task / tasks, task % tasks * task_channels);
        let columns = first..(first + task_channels).min(channels);
        let weight = &weight[group * rows * channels..(group + 1) * rows * channels];
        with_buffer(pixels * columns.len(), |sums| {
            multiply(instructions, shape, group, weight, grad_y, columns.clone(), sums);
            for image in 0..shape.batch {
                let from = (image * shape.in_channels + group * channels + columns.start) * plane;
                #[allow(unsafe_code, reason = "tasks write disjoint planes")]
                // SAFETY: these channels belong to this task.
                let out = unsafe { grad_x.part(from, columns.len() * plane) };
                for (pixel, sums) in sums.chunks_exact(columns.len()).skip(image * plane).take(plane).enumerate() {
                    for (out, sum) in out.iter_mut().skip(pixel).step_by(plane).zip(sums) {
                        out.write(*sum);
                    }
                }
            }
        });
    });
}

/// Writes the gradient of some channels of a group, transposed: \[pixel\]\[channel\].
fn multiply(
    instructions: Instructions,
    shape: &Conv2dShape,
    group: usize,
    weight: &[f32],
    grad_y: &[f32],
    channels: Range<usize>,
    sums: &mut [f32],
) {
    let plane = shape.in_height * shape.in_width;
    let (rows, width) = (shape.group_out_channels(), channels.len());
    let row_panels = RowPanels::new(shape.batch * plane);
    let mut run = |Lists { columns, rows: starts, sources: places, panels, .. }: &mut Lists, packed: &mut [f32]| {
        columns.clear();
        columns.extend(0..width);
        starts.clear();
        starts.extend(pixel_places(shape, shape.out_channels, 0));
        for first in (0..rows).step_by(PACKED_ROWS) {
            let depth = PACKED_ROWS.min(rows - first);
            pack_rows(
                &weight[first * shape.group_in_channels()..],
                shape.group_in_channels(),
                &channels,
                depth,
                packed,
            );
            places.clear();
            places.extend((first..first + depth).map(|row| (group * rows + row) * plane));
            let block = Block {
                row_panels,
                panels: 0..row_panels.count(),
                a: Rows::InPlace(Scattered { elements: grad_y, rows: starts, places, far: false }),
                b: Columns::packed(packed, depth, width, panels),
                columns,
                row_stride: width,
                add: first > 0,
                bias: None,
            };
            #[allow(unsafe_code, reason = "the sums are borrowed mutably")]
            // SAFETY: nobody else uses them; the first block writes all of them.
            unsafe {
                block.run(instructions, target(sums));
            }
        }
    };
    let len = PACKED_ROWS.min(rows) * width.next_multiple_of(PANEL_COLUMNS);
    with_lists(|lists| with_buffer(len, |packed| run(lists, packed)));
}

/// Packs some columns of the first `depth` rows of a matrix `width` wide, sixteen to a panel. The last columns of the last
/// panel may have any value.
fn pack_rows(matrix: &[f32], width: usize, columns: &Range<usize>, depth: usize, packed: &mut [f32]) {
    for z in 0..depth {
        let row = |z: usize| &matrix[z * width + columns.start..z * width + columns.end];
        if z + AHEAD < depth {
            prefetch(row(z + AHEAD));
        }
        let (whole, rest) = row(z).as_chunks::<PANEL_COLUMNS>();
        let mut panels = packed.chunks_exact_mut(depth * PANEL_COLUMNS);
        for (from, panel) in whole.iter().zip(&mut panels) {
            panel.as_chunks_mut::<PANEL_COLUMNS>().0[z] = *from;
        }
        if let Some(panel) = panels.next().filter(|_| !rest.is_empty()) {
            panel[z * PANEL_COLUMNS..][..rest.len()].copy_from_slice(rest);
        }
    }
}

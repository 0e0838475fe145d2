//! Each tap as matrix products of its own, over the pixels for which it reads inside of the input.
//!
//! Where dilations are near the size of the map, as in pyramids of dilated convolutions, most taps read padding at most
//! pixels. Here nothing is multiplied by it: an output pixel and the input pixel that a tap reads for it are a pair, and
//!
//! ```text
//! forward                y[k, output]  += Σ_c W[k, c, tap] · x[c, input]
//! gradient of the input  dx[c, input]  += Σ_k W[k, c, tap] · dy[k, output]
//! gradient of the weight dW[k, c, tap]  = Σ_pairs dy[k, output] · x[c, input]
//! ```
//!
//! for the pairs that there are. Strides of 1 only, so that the pairs of a row are neighbours in both maps.

use std::mem::MaybeUninit;
use std::ops::Range;

use super::Conv2dShape;
use super::lowering::copy_spans;
use super::products::Planes;
use super::scratch::{Lists, with_buffer, with_lists, with_three_lists};
use super::weight_gradient::{Output, Side, multiply, packs_second};
use crate::gemm::{Block, Columns, PACKED_ROWS, PANEL_COLUMNS, RowPanels, Rows, Run, Target, target};
use crate::lanes::Instructions;
use crate::parallel::{Shared, for_each_task};

/// Pixels of a task, about,
const TASK_PIXELS: usize = 192;
/// and rows of its products at most: so many sums stay in the second-level cache.
const TASK_ROWS: usize = 384;
/// Tasks that a pass should have at least.
const TASKS: usize = 8;
/// Input channels of a task of the gradient of the weight.
const TASK_CHANNELS: usize = 128;

/// True for the shapes that have such pairs.
pub(super) fn computes(shape: &Conv2dShape) -> bool {
    shape.stride == [1, 1]
}

/// How many taps have pairs, and how many pairs there are, of all images and taps.
pub(super) fn live(shape: &Conv2dShape) -> (usize, usize) {
    let [rows, columns] = [0, 1].map(|axis| {
        let read = (0..shape.kernel[axis]).map(|tap| shape.inside(axis, tap).len());
        (read.clone().filter(|read| *read > 0).count(), read.sum::<usize>())
    });
    (rows.0 * columns.0, shape.batch * rows.1 * columns.1)
}

/// Pairs of one row.
#[derive(Clone, Copy)]
struct Span {
    /// The rows of the two maps,
    output_row: usize,
    input_row: usize,
    /// where the first pixels lie in a plane,
    output: usize,
    input: usize,
    /// and how many there are.
    len: usize,
}

impl Span {
    fn turned(self) -> Self {
        Self {
            output_row: self.input_row,
            input_row: self.output_row,
            output: self.input,
            input: self.output,
            len: self.len,
        }
    }
}

/// The pairs of a tap, by rows.
fn spans(shape: &Conv2dShape, tap: usize) -> impl Iterator<Item = Span> {
    let shape = *shape;
    let [tap_row, tap_column] = [tap / shape.kernel[1], tap % shape.kernel[1]];
    let columns = shape.inside(1, tap_column);
    let rows = if columns.is_empty() { 0..0 } else { shape.inside(0, tap_row) };
    rows.map(move |output_row| {
        let input_row = shape.source(0, tap_row, output_row);
        let input = input_row * shape.in_width + shape.source(1, tap_column, columns.start);
        let output = output_row * shape.out_width() + columns.start;
        Span { output_row, input_row, output, input, len: columns.len() }
    })
}

/// The taps that have any.
fn live_taps(shape: &Conv2dShape) -> Vec<usize> {
    (0..shape.taps()).filter(|tap| spans(shape, *tap).next().is_some()).collect()
}

/// The output, bias included; every element of `y` is written.
pub(super) fn forward(
    instructions: Instructions,
    shape: &Conv2dShape,
    x: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    y: &mut [MaybeUninit<f32>],
) {
    let pass = Pass { instructions, shape, read: x, weight, bias, backward: false };
    pass.run(y);
}

/// The gradient of the input; every element of `grad_x` is written.
pub(super) fn backward_input(
    instructions: Instructions,
    shape: &Conv2dShape,
    weight: &[f32],
    grad_y: &[f32],
    grad_x: &mut [MaybeUninit<f32>],
) {
    let pass = Pass { instructions, shape, read: grad_y, weight, bias: None, backward: true };
    pass.run(grad_x);
}

/// A pass that reads the pixels of one map and writes to those of the other.
struct Pass<'a> {
    instructions: Instructions,
    shape: &'a Conv2dShape,
    read: &'a [f32],
    weight: &'a [f32],
    bias: Option<&'a [f32]>,
    /// From the gradient of the output to that of the input.
    backward: bool,
}

impl Pass<'_> {
    fn run(&self, written: &mut [MaybeUninit<f32>]) {
        let shape = self.shape;
        let taps = live_taps(shape);
        let input = (shape.in_channels, [shape.in_height, shape.in_width]);
        let output = (shape.out_channels, [shape.out_height(), shape.out_width()]);
        let [(read_of, read_size), (of, size)] = if self.backward { [output, input] } else { [input, output] };
        let (channels, rows) = (read_of / shape.groups, of / shape.groups);
        let row_panels = RowPanels::new(rows);
        let written = Shared::new(written);
        with_buffer(taps.len() * channels * rows, |packed| {
            for group in 0..shape.groups {
                self.pack_weights(group, &taps, (rows, channels), packed);
                let from = Planes {
                    elements: self.read,
                    batch: shape.batch,
                    of: read_of,
                    first: group * channels,
                    channels,
                    size: read_size,
                };
                let first = group * rows;
                let to = Written { of, first, size, elements: written };
                let bias = self.bias.map(|bias| &bias[first..first + rows]);
                let products = Products { pass: self, taps: &taps, from, to, row_panels, rows, packed, bias };
                products.run();
            }
        });
    }

    /// Packs the weights of a group: by blocks of channels, in a block by taps, of each tap all panels.
    fn pack_weights(&self, group: usize, taps: &[usize], (rows, channels): (usize, usize), packed: &mut [f32]) {
        let row_panels = RowPanels::new(rows);
        let all = self.shape.taps();
        let packed = Shared::new(packed);
        for_each_task(row_panels.count(), |index| {
            let panel = row_panels.rows(index);
            for block in blocks(channels) {
                for (place, &tap) in taps.iter().enumerate() {
                    let from = block.start * taps.len() * rows + (place * rows + panel.start) * block.len();
                    #[allow(unsafe_code, reason = "tasks pack disjoint panels")]
                    // SAFETY: a panel belongs to one task; the parts of its blocks and taps do not overlap.
                    let out = unsafe { packed.part(from, panel.len() * block.len()) };
                    if self.backward {
                        for (channel, out) in block.clone().zip(out.chunks_exact_mut(panel.len())) {
                            let first = (group * channels + channel) * rows + panel.start;
                            let weights = self.weight[first * all..(first + panel.len()) * all].iter();
                            out.iter_mut().zip(weights.skip(tap).step_by(all)).for_each(|(out, weight)| *out = *weight);
                        }
                    } else {
                        for (place, row) in panel.clone().enumerate() {
                            let first = (group * rows + row) * channels + block.start;
                            let weights = self.weight[first * all..(first + block.len()) * all].iter();
                            let out = out.iter_mut().skip(place).step_by(panel.len());
                            out.zip(weights.skip(tap).step_by(all)).for_each(|(out, weight)| *out = *weight);
                        }
                    }
                }
            }
        });
    }
}

/// Channels that are summed over at once.
fn blocks(channels: usize) -> impl Iterator<Item = Range<usize>> {
    (0..channels).step_by(PACKED_ROWS).map(move |first| first..(first + PACKED_ROWS).min(channels))
}

/// Some channels of a tensor that tasks write to.
#[derive(Clone, Copy)]
struct Written<'a> {
    /// Channels of the tensor.
    of: usize,
    first: usize,
    /// Rows and columns.
    size: [usize; 2],
    elements: Target<'a>,
}

/// The products of one group.
struct Products<'a> {
    pass: &'a Pass<'a>,
    taps: &'a [usize],
    from: Planes<'a>,
    to: Written<'a>,
    row_panels: RowPanels,
    rows: usize,
    /// The weights ([`Pass::pack_weights`]).
    packed: &'a [f32],
    bias: Option<&'a [f32]>,
}

impl Products<'_> {
    /// Computes all of them. A task has some rows of some images, or some images, and some panels of weights.
    fn run(&self) {
        let [height, width] = self.to.size;
        let pixels = TASK_PIXELS.min((self.from.batch * height * width / TASKS).max(PANEL_COLUMNS));
        let map_rows = height.div_ceil(height.div_ceil((pixels / width).clamp(1, height)));
        let images = (pixels / (height * width)).clamp(1, self.from.batch);
        let (across, down) = (height.div_ceil(map_rows), self.from.batch.div_ceil(images));
        let count = self.row_panels.count();
        let parts = self.rows.div_ceil(TASK_ROWS).max(TASKS.div_ceil(across * down)).min(count);
        for_each_task(across * down * parts, |task| {
            let (region, part) = (task / parts, task % parts);
            let (image, row) = (region / across * images, region % across * map_rows);
            let images = image..(image + images).min(self.from.batch);
            let map_rows = row..(row + map_rows).min(height);
            let panels = part * count / parts..(part + 1) * count / parts;
            #[allow(unsafe_code, reason = "tasks write disjoint rows")]
            // SAFETY: two tasks differ in their images, in their rows of the map or in their panels.
            unsafe {
                self.run_task(images, map_rows, panels);
            }
        });
    }

    /// # Safety
    /// Nobody else uses these rows of these images in the channels of these panels meanwhile.
    #[allow(unsafe_code, reason = "hands its contract on")]
    unsafe fn run_task(&self, images: Range<usize>, map_rows: Range<usize>, panels: Range<usize>) {
        let [height, width] = self.to.size;
        let rows = self.row_panels.rows(panels.start).start..self.row_panels.rows(panels.end - 1).end;
        for image in images.clone() {
            for row in rows.clone() {
                let plane = (image * self.to.of + self.to.first + row) * height * width;
                // SAFETY: the task's own by contract.
                let part = unsafe { self.to.elements.part(plane + map_rows.start * width, map_rows.len() * width) };
                part.fill(MaybeUninit::new(self.bias.map_or(0.0, |bias| bias[row])));
            }
        }
        let most = images.len() * map_rows.len() * width;
        // An odd number of cache lines, so that channels fall on different ones of the cache.
        let stride = (most.div_ceil(PANEL_COLUMNS) | 1) * PANEL_COLUMNS;
        let run = |Lists { columns, rows, runs, panels: list, .. }: &mut Lists, copy: &mut [f32]| {
            rows.clear();
            rows.extend((0..PACKED_ROWS.min(self.from.channels)).map(|channel| channel * stride));
            for block in blocks(self.from.channels) {
                for (place, &tap) in self.taps.iter().enumerate() {
                    self.list_pairs(tap, &images, &map_rows, columns, runs);
                    if runs.is_empty() {
                        continue;
                    }
                    copy_spans(&self.from, runs, block.clone(), copy, stride);
                    let all = Run { first: 0, len: columns.len() };
                    let first = (block.start * self.taps.len() + place * block.len()) * self.rows;
                    let product = Block {
                        row_panels: self.row_panels,
                        panels: panels.clone(),
                        a: Rows::Packed(&self.packed[first..first + self.rows * block.len()]),
                        b: Columns::in_place(copy, &rows[..block.len()], &[all], list),
                        columns,
                        row_stride: height * width,
                        add: true,
                        bias: None,
                    };
                    // SAFETY: the contract is handed on unchanged; all of these rows have been written above.
                    unsafe { product.run(self.pass.instructions, self.to.elements) };
                }
            }
        };
        let len = PACKED_ROWS.min(self.from.channels) * stride + PANEL_COLUMNS;
        with_lists(|lists| with_buffer(len, |copy| run(lists, copy)));
    }

    /// Lists the pairs of a tap whose pixel to write is in these rows: where in the output that is, and the other one in
    /// the first channel of all images.
    fn list_pairs(
        &self,
        tap: usize,
        images: &Range<usize>,
        map_rows: &Range<usize>,
        columns: &mut Vec<usize>,
        runs: &mut Vec<Run>,
    ) {
        columns.clear();
        runs.clear();
        let plane = self.from.size[0] * self.from.size[1];
        let to_plane = self.to.size[0] * self.to.size[1];
        for image in images.clone() {
            let from = (image * self.from.of + self.from.first) * plane;
            let to = (image * self.to.of + self.to.first) * to_plane;
            let spans = spans(self.pass.shape, tap).map(|span| if self.pass.backward { span.turned() } else { span });
            for span in spans.filter(|span| map_rows.contains(&span.output_row)) {
                columns.extend(to + span.output..to + span.output + span.len);
                add_run(runs, from + span.input, span.len);
            }
        }
    }
}

/// Adds a run to a list, as part of the last one where they are neighbours.
fn add_run(runs: &mut Vec<Run>, first: usize, len: usize) {
    match runs.last_mut() {
        Some(last) if last.first + last.len == first => last.len += len,
        _ => runs.push(Run { first, len }),
    }
}

/// The gradient of the weight.
pub(super) fn backward_weight(
    instructions: Instructions,
    shape: &Conv2dShape,
    x: &[f32],
    grad_y: &[f32],
    grad_weight: &mut [f32],
) {
    let (rows, channels, taps) = (shape.group_out_channels(), shape.group_in_channels(), shape.taps());
    let tasks = channels.div_ceil(TASK_CHANNELS).max(TASKS.min(channels.div_ceil(PANEL_COLUMNS)));
    let live = live_taps(shape);
    for (group, grad_weight) in grad_weight.chunks_exact_mut(rows * channels * taps).enumerate() {
        let sums = target(grad_weight);
        for_each_task(tasks, |task| {
            let channels = task * channels / tasks..(task + 1) * channels / tasks;
            #[allow(unsafe_code, reason = "tasks write disjoint columns")]
            // SAFETY: these columns belong to this task.
            unsafe {
                sum_channels(instructions, shape, group, [x, grad_y], &live, channels, sums);
            }
        });
    }
}

/// Writes the gradient of a group's weights for some of its input channels.
///
/// # Safety
/// Nobody else uses the columns of these channels meanwhile.
#[allow(unsafe_code, reason = "hands its contract on; columns come from the shared slice")]
unsafe fn sum_channels(
    instructions: Instructions,
    shape: &Conv2dShape,
    group: usize,
    [x, grad_y]: [&[f32]; 2],
    live: &[usize],
    channels: Range<usize>,
    grad_weight: Target<'_>,
) {
    let (rows, all) = (shape.group_out_channels(), shape.group_in_channels());
    let x_plane = shape.in_height * shape.in_width;
    let y_plane = shape.out_height() * shape.out_width();
    let transposed = !packs_second([rows, channels.len()]);
    let width = if transposed { rows } else { channels.len() };
    let len = rows * channels.len();
    let sum_tap = |[x_lists, y_lists, sums]: [&mut Lists; 3], tap: usize, buffer: &mut [f32]| {
        let out = Output { columns: 0..width, row_stride: width, elements: target(buffer) };
        for image in 0..shape.batch {
            let x_first = image * shape.in_channels + group * all + channels.start;
            let y_first = image * shape.out_channels + group * rows;
            for lists in [&mut *x_lists, &mut *y_lists] {
                lists.rows.clear();
                lists.runs.clear();
            }
            x_lists.rows.extend((0..channels.len()).map(|channel| (x_first + channel) * x_plane));
            y_lists.rows.extend((0..rows).map(|row| (y_first + row) * y_plane));
            for span in spans(shape, tap) {
                add_run(&mut x_lists.runs, span.input, span.len);
                add_run(&mut y_lists.runs, span.output, span.len);
            }
            let x_side = Side { elements: x, rows: &x_lists.rows, runs: &x_lists.runs, far: true };
            let y_side = Side { elements: grad_y, rows: &y_lists.rows, runs: &y_lists.runs, far: true };
            let sides = if transposed { [x_side, y_side] } else { [y_side, x_side] };
            // SAFETY: the buffer is this task's own; the first image writes all of it.
            unsafe { multiply(instructions, sums, sides, image > 0, &out) };
        }
    };
    with_buffer(live.len() * len, |buffer| {
        with_three_lists(|[x, y, sums]| {
            for (&tap, buffer) in live.iter().zip(buffer.chunks_exact_mut(len)) {
                sum_tap([&mut *x, &mut *y, &mut *sums], tap, buffer);
            }
        });
        let taps = shape.taps();
        for row in 0..rows {
            // SAFETY: these columns are the caller's own.
            let out = unsafe { grad_weight.part((row * all + channels.start) * taps, channels.len() * taps) };
            if live.len() < taps {
                out.fill(MaybeUninit::new(0.0));
            }
            for (&tap, sums) in live.iter().zip(buffer.chunks_exact(len)) {
                let (from, step) = if transposed { (row, rows) } else { (row * channels.len(), 1) };
                let sums = sums[from..].iter().step_by(step);
                for (out, sum) in out.iter_mut().skip(tap).step_by(taps).zip(sums) {
                    out.write(*sum);
                }
            }
        }
    });
}

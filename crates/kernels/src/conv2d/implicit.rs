//! The output as a matrix product whose second matrix is packed from the input on the fly.
//!
//! Y[k, pixel] = Σ_(c,tap) W[k, (c,tap)] · X[c, pixel + tap]. The weights are packed once per call; a task
//! takes a range of pixels, packs the columns it needs and multiplies.

use std::mem::MaybeUninit;
use std::ops::Range;

use super::Conv2dShape;
use super::lowering::{Border, View, images_per_round, kernel_taps};
use super::scratch::with_buffer;
use crate::gemm::{Block, PANEL_COLUMNS, RowPanels, Simd, Target, pack_panel};
use crate::parallel::{Shared, for_each_task};

/// Matrix rows per packed block: a panel of 16 columns then takes 16 KiB, half of the first-level cache.
const DEPTH_BLOCK: usize = 256;
/// Output pixels per task at most.
pub(super) const TASK_PIXELS: usize = 192;

/// Packs the weights of all depth blocks: block b starts at b · 256 · rows, its panels follow each other.
pub(super) fn pack_weights(
    row_panels: RowPanels,
    rows: usize,
    depth: usize,
    packed: &mut [f32],
    fill: impl Fn(Range<usize>, Range<usize>, &mut [f32]) + Sync,
) {
    const PANELS_PER_TASK: usize = 4;
    let packed = Shared::new(packed);
    for_each_task(row_panels.count().div_ceil(PANELS_PER_TASK), |task| {
        for index in task * PANELS_PER_TASK..((task + 1) * PANELS_PER_TASK).min(row_panels.count()) {
            let panel = row_panels.rows(index);
            for start in (0..depth).step_by(DEPTH_BLOCK) {
                let block = start..(start + DEPTH_BLOCK).min(depth);
                #[allow(unsafe_code, reason = "tasks pack disjoint panels")]
                // SAFETY: a panel belongs to one task; (block, panel) ranges do not overlap.
                let out = unsafe { packed.part(start * rows + panel.start * block.len(), panel.len() * block.len()) };
                fill(panel.clone(), block, out);
            }
        }
    });
}

/// A product of packed weights and the columns of a view.
pub(super) struct Product<'a> {
    pub(super) simd: Simd,
    pub(super) view: &'a View<'a>,
    pub(super) weights: &'a [f32],
    pub(super) row_panels: RowPanels,
    pub(super) rows: usize,
    pub(super) depth: usize,
    pub(super) bias: Option<&'a [f32]>,
    pub(super) row_stride: usize,
}

impl Product<'_> {
    /// Computes the rows of `panels` and the columns `pixels` into `out`, pixel i at `columns[i]`.
    ///
    /// # Safety
    /// Nobody else uses these rows and columns of `out` meanwhile.
    #[allow(unsafe_code, reason = "hands its contract on")]
    pub(super) unsafe fn run(&self, panels: Range<usize>, pixels: Range<usize>, columns: &[usize], out: Target<'_>) {
        let sources = self.view.sources(pixels);
        let mut offsets = Vec::with_capacity(DEPTH_BLOCK);
        let padded = sources.len().next_multiple_of(PANEL_COLUMNS);
        with_buffer(padded * self.depth.min(DEPTH_BLOCK), |packed| {
            for start in (0..self.depth).step_by(DEPTH_BLOCK) {
                let block = start..(start + DEPTH_BLOCK).min(self.depth);
                let b = &mut packed[..padded * block.len()];
                self.view.pack_pixels(&sources, block.clone(), &mut offsets, b);
                let product = Block {
                    depth: block.len(),
                    row_panels: self.row_panels,
                    panels: panels.clone(),
                    a: &self.weights[start * self.rows..block.end * self.rows],
                    b,
                    columns,
                    row_stride: self.row_stride,
                    add: start > 0,
                    bias: self.bias,
                };
                // SAFETY: the contract is handed on unchanged.
                unsafe { product.run(self.simd, out) };
            }
        });
    }

    /// Computes all rows and the first `pixels` columns, which are the planes of whole images: pixel p of image n goes
    /// to n · `image_stride` + `base` + p.
    pub(super) fn run_images(&self, pixels: usize, plane: usize, base: usize, image_stride: usize, out: Target<'_>) {
        let step = pixels.div_ceil(8).next_multiple_of(PANEL_COLUMNS).clamp(3 * PANEL_COLUMNS, TASK_PIXELS);
        let ranges = pixels.div_ceil(step);
        // Few pixels and many rows: the tasks share the rows out as well.
        let parts = 4usize.div_ceil(ranges).min(self.row_panels.count());
        for_each_task(ranges * parts, |task| {
            let (range, part) = (task / parts, task % parts);
            let pixels = range * step..((range + 1) * step).min(pixels);
            let count = self.row_panels.count();
            let panels = part * count / parts..(part + 1) * count / parts;
            let columns: Vec<usize> =
                pixels.clone().map(|pixel| base + pixel / plane * image_stride + pixel % plane).collect();
            #[allow(unsafe_code, reason = "tasks compute disjoint parts of the output")]
            // SAFETY: two tasks differ in their pixels or in their rows.
            unsafe {
                self.run(panels, pixels, &columns, out);
            }
        });
    }
}

/// The output, bias included; every element of `y` is written.
pub(super) fn forward(
    simd: Simd,
    shape: &Conv2dShape,
    x: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    y: &mut [MaybeUninit<f32>],
) {
    let (rows, depth) = (shape.group_out_channels(), shape.group_in_channels() * shape.taps());
    let out = [shape.out_height(), shape.out_width()];
    let plane = out[0] * out[1];
    let row_panels = RowPanels::new(rows);
    let y = Shared::new(y);
    with_buffer(rows * depth, |packed| {
        for group in 0..shape.groups {
            let weight = &weight[group * rows * depth..(group + 1) * rows * depth];
            pack_weights(row_panels, rows, depth, packed, |panel, block, out| {
                let mut slices: [&[f32]; 6] = [&[]; 6];
                let height = panel.len();
                for (slice, row) in slices.iter_mut().zip(panel) {
                    *slice = &weight[row * depth + block.start..row * depth + block.end];
                }
                pack_panel(&slices[..height], out);
            });
            let weights = &*packed;
            let bias = bias.map(|bias| &bias[group * rows..(group + 1) * rows]);
            with_input_view(shape, group, x, |images, view| {
                let product = Product { simd, view, weights, row_panels, rows, depth, bias, row_stride: plane };
                let image_stride = shape.out_channels * plane;
                let base = images.start * image_stride + group * rows * plane;
                product.run_images(images.len() * plane, plane, base, image_stride, y);
            });
        }
    });
}

/// Calls `body` with views of the input of one group for ranges of images that together are the batch.
pub(super) fn with_input_view(
    shape: &Conv2dShape,
    group: usize,
    x: &[f32],
    mut body: impl FnMut(Range<usize>, &View<'_>),
) {
    let taps = kernel_taps(shape);
    let out = [shape.out_height(), shape.out_width()];
    let plane = shape.in_height * shape.in_width;
    let channels = shape.group_in_channels();
    if shape.padding == [0, 0] && shape.extra_padding == [0, 0] && shape.stride[1] == 1 {
        let view = View {
            elements: &x[group * channels * plane..],
            image_stride: shape.in_channels * plane,
            channel_stride: plane,
            row_step: shape.stride[0] * shape.in_width,
            taps: taps.iter().map(|tap| tap[0] * shape.in_width + tap[1]).collect(),
            out,
        };
        return body(0..shape.batch, &view);
    }
    let border = Border::new([shape.in_height, shape.in_width], shape.padding, shape.stride, out, &taps);
    let image_len = channels * border.plane_len();
    let images = images_per_round(shape.batch, image_len);
    with_buffer(images * image_len, |copy| {
        for first in (0..shape.batch).step_by(images) {
            let round = first..(first + images).min(shape.batch);
            let channel_range = group * channels..(group + 1) * channels;
            let copy = &mut copy[..round.len() * image_len];
            border.copy_planes(x, shape.in_channels, round.clone(), channel_range, copy);
            let view = View {
                elements: copy,
                image_stride: image_len,
                channel_stride: border.plane_len(),
                row_step: border.row_step(),
                taps: taps.iter().map(|&tap| border.tap_offset(tap)).collect(),
                out,
            };
            body(round, &view);
        }
    });
}

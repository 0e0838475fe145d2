//! The output as matrix products, the weights of all channels and taps times the input ([`products`](super::products)).

use std::mem::MaybeUninit;
use std::ops::Range;

use super::Conv2dShape;
use super::few_pixels;
use super::lowering::kernel_taps;
use super::products::{Planes, Reading, Regions, Sums, Weights};
use crate::gemm::{PANEL_ROWS, RowPanels, pack_panel};
use crate::lanes::Instructions;
use crate::parallel::Shared;

/// The output, bias included; every element of `y` is written.
pub(super) fn forward(
    instructions: Instructions,
    shape: &Conv2dShape,
    x: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    y: &mut [MaybeUninit<f32>],
) {
    if few_pixels::applies(shape) {
        return few_pixels::forward(instructions, shape, x, weight, bias, y);
    }
    let (rows, channels) = (shape.group_out_channels(), shape.group_in_channels());
    let depth = channels * shape.taps();
    let out = [shape.out_height(), shape.out_width()];
    let taps = kernel_taps(shape);
    let row_panels = RowPanels::new(rows);
    let y = Shared::new(y);
    for group in 0..shape.groups {
        let planes = Planes {
            elements: x,
            batch: shape.batch,
            of: shape.in_channels,
            first: group * channels,
            channels,
            size: [shape.in_height, shape.in_width],
        };
        let reading = Reading { before: shape.padding, stride: shape.stride, out, taps: &taps };
        let regions = Regions::for_products(planes, reading, rows, taps.len());
        let weight = &weight[group * rows * depth..(group + 1) * rows * depth];
        let fill = |panel: Range<usize>, block: Range<usize>, out: &mut [f32]| {
            let mut slices: [&[f32]; PANEL_ROWS] = [&[]; PANEL_ROWS];
            let height = panel.len();
            for (slice, row) in slices.iter_mut().zip(panel) {
                *slice = &weight[row * depth + block.start..row * depth + block.end];
            }
            pack_panel(&slices[..height], out);
        };
        let pack = |packed: &mut [f32], parallel| regions.pack_weights((rows, taps.len()), (packed, parallel), fill);
        let bias = bias.map(|bias| &bias[group * rows..(group + 1) * rows]);
        let offsets = regions.tap_offsets(taps.iter().copied());
        let sums = Sums { instructions, row_panels, rows, taps: offsets, first_weight: 0, bias };
        regions.fill(&sums, Weights { len: rows * depth, pack }, [shape.out_channels, group * rows], y);
    }
}

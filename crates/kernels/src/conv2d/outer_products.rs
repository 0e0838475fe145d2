//! The weight gradient of few pixels: a sum of outer products.
//!
//! dW[k, (c,tap)] = Σ_pixels dY[k, pixel] · X[c, pixel + tap], as a matrix product whose depth is the pixels. Both matrices
//! are packed by gathering, which is little work beside the sums, of which there are many more than pixels.

use std::ops::Range;

use super::products::{Planes, Regions};
use super::scratch::{Lists, with_buffer, with_lists};
use crate::gemm::{Block, Columns, PACKED_ROWS, PANEL_COLUMNS, PANEL_ROWS, RowPanels, Simd, pack_panel, target};
use crate::parallel::for_each_task;

/// The most pixels with which this is faster than sums over vectors of them; a packed matrix has no more rows.
pub(super) const MOST_PIXELS: usize = 192;
const _: () = assert!(MOST_PIXELS <= PACKED_ROWS);

/// Writes the gradient of a group's weights to all of `grad_weight`; all pixels are one of the `regions`, whose blocks
/// of channels are the tasks.
pub(super) fn backward_weight(
    simd: Simd,
    regions: &Regions<'_>,
    taps: &[usize],
    channels: usize,
    grad_y: Planes<'_>,
    grad_weight: &mut [f32],
) {
    let region = regions.region(0);
    let mut runs = Vec::new();
    regions.list_runs(&region, &mut runs);
    let sources: Vec<usize> = runs.iter().flat_map(|run| run.first..run.first + run.len).collect();
    let (rows, pixels) = (grad_y.channels, sources.len());
    let row_panels = RowPanels::new(rows);
    let grad_weight = target(grad_weight);
    with_buffer(rows * pixels, |a| {
        for index in 0..row_panels.count() {
            let panel = row_panels.rows(index);
            pack_rows(&grad_y, panel.clone(), &mut a[panel.start * pixels..panel.end * pixels]);
        }
        let a = &*a;
        for_each_task(channels.div_ceil(regions.block()), |task| {
            let channels = task * regions.block()..((task + 1) * regions.block()).min(channels);
            let own = channels.start * taps.len()..channels.end * taps.len();
            let block = |copy: &mut [f32], Lists { columns, panels, .. }: &mut Lists| {
                columns.clear();
                columns.extend(own);
                let x = regions.copy(&region, channels.clone(), copy);
                with_buffer(columns.len().next_multiple_of(PANEL_COLUMNS) * pixels, |b| {
                    let offset =
                        |column: usize| column / taps.len() * regions.channel_stride() + taps[column % taps.len()];
                    for (index, b) in b.chunks_exact_mut(PANEL_COLUMNS * pixels).enumerate() {
                        for column in 0..PANEL_COLUMNS.min(columns.len() - index * PANEL_COLUMNS) {
                            let x = &x[offset(index * PANEL_COLUMNS + column)..];
                            for (b, source) in b.chunks_exact_mut(PANEL_COLUMNS).zip(&sources) {
                                b[column] = x[*source];
                            }
                        }
                    }
                    let block = Block {
                        row_panels,
                        panels: 0..row_panels.count(),
                        a,
                        b: Columns::packed(b, pixels, columns.len(), panels),
                        columns,
                        row_stride: grad_weight.len() / rows,
                        add: false,
                        bias: None,
                    };
                    #[allow(unsafe_code, reason = "tasks write disjoint columns")]
                    // SAFETY: these columns belong to this task.
                    unsafe {
                        block.run(simd, grad_weight);
                    }
                });
            };
            with_buffer(regions.copy_len(), |copy| with_lists(|lists| block(copy, lists)));
        });
    });
}

/// Packs some channels of all images into a panel `[pixels][channels]`.
fn pack_rows(grad_y: &Planes<'_>, channels: Range<usize>, panel: &mut [f32]) {
    let plane = grad_y.size[0] * grad_y.size[1];
    let height = channels.len();
    for (image, panel) in panel.chunks_exact_mut(plane * height).enumerate() {
        let mut slices: [&[f32]; PANEL_ROWS] = [&[]; PANEL_ROWS];
        for (slice, channel) in slices.iter_mut().zip(channels.clone()) {
            *slice = grad_y.plane(image, channel);
        }
        pack_panel(&slices[..height], panel);
    }
}

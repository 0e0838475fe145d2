//! The weight gradient as a matrix product over all output pixels.
//!
//! dW[k, (c,tap)] = Σ_pixels dY[k, pixel] · X[c, pixel + tap]. The output gradient is packed once per call; a task takes
//! a range of (c,tap) columns, packs them by transposing 8×8 blocks of the input, and adds over the pixels. Where there
//! are few columns the pixels are split as well, by a number that depends on the sizes alone, and the partial sums are
//! added in order.

use std::mem::MaybeUninit;
use std::ops::Range;

use super::Conv2dShape;
use super::implicit::with_input_view;
use super::lowering::View;
use super::scratch::with_buffer;
use crate::gemm::{Block, PANEL_COLUMNS, RowPanels, Simd, Target, pack_panel, target};
use crate::parallel::{Shared, for_each_task};

/// Pixels per packed block.
const PIXEL_BLOCK: usize = 256;
/// Columns of a task at most.
const TASK_COLUMNS: usize = 144;
/// Tasks that a call should have at least.
const TASKS: usize = 8;
/// Pixels that a task should add over at least.
const TASK_PIXELS: usize = 2048;

/// How the work of one call is cut, a function of the sizes alone.
struct Cut {
    rows: usize,
    depth: usize,
    step: usize,
    columns: usize,
    splits: usize,
}

impl Cut {
    fn new(shape: &Conv2dShape) -> Self {
        let (rows, depth) = (shape.group_out_channels(), shape.group_in_channels() * shape.taps());
        let step = TASK_COLUMNS.min(depth.div_ceil(4).next_multiple_of(PANEL_COLUMNS)).max(2 * PANEL_COLUMNS);
        let columns = depth.div_ceil(step);
        let pixels = shape.batch * shape.out_height() * shape.out_width();
        let splits = TASKS.div_ceil(columns).min(pixels / TASK_PIXELS).max(1);
        Self { rows, depth, step, columns, splits }
    }

    fn columns(&self, index: usize) -> Range<usize> {
        index * self.step..((index + 1) * self.step).min(self.depth)
    }
}

/// The gradient of the weight.
pub(super) fn backward_weight(simd: Simd, shape: &Conv2dShape, x: &[f32], grad_y: &[f32], grad_weight: &mut [f32]) {
    let cut = Cut::new(shape);
    let group_len = cut.rows * cut.depth;
    for group in 0..shape.groups {
        let grad_weight = &mut grad_weight[group * group_len..(group + 1) * group_len];
        if cut.splits == 1 {
            accumulate(simd, shape, group, &cut, x, grad_y, grad_weight);
            continue;
        }
        with_buffer(cut.splits * group_len, |partial| {
            accumulate(simd, shape, group, &cut, x, grad_y, partial);
            let (first, others) = partial.split_at(group_len);
            grad_weight.copy_from_slice(first);
            for other in others.chunks_exact(group_len) {
                for (sum, value) in grad_weight.iter_mut().zip(other) {
                    *sum += value;
                }
            }
        });
    }
}

/// Fills `sums` `[splits][rows][depth]` with the partial sums of one group.
fn accumulate(simd: Simd, shape: &Conv2dShape, group: usize, cut: &Cut, x: &[f32], grad_y: &[f32], sums: &mut [f32]) {
    let row_panels = RowPanels::new(cut.rows);
    let plane = shape.out_height() * shape.out_width();
    let sums = target(sums);
    with_input_view(shape, group, x, |images, view| {
        let pixels = images.len() * plane;
        with_buffer(pixels * cut.rows, |packed| {
            pack_gradient(shape, group, images.clone(), row_panels, grad_y, packed);
            let a = &*packed;
            let blocks = pixels.div_ceil(PIXEL_BLOCK);
            for_each_task(cut.columns * cut.splits, |task| {
                let (columns, split) = (cut.columns(task / cut.splits), task % cut.splits);
                let blocks = blocks * split / cut.splits..blocks * (split + 1) / cut.splits;
                let from = split * cut.rows * cut.depth;
                if blocks.is_empty() {
                    // A later round has fewer images than splits; an empty first one leaves zeros.
                    if images.start == 0 {
                        clear(cut, from, &columns, sums);
                    }
                    return;
                }
                let product = Pixels { simd, view, a, row_panels, rows: cut.rows, row_stride: cut.depth };
                product.add(blocks, pixels, columns, from, images.start > 0, sums);
            });
        });
    });
}

fn clear(cut: &Cut, from: usize, columns: &Range<usize>, sums: Target<'_>) {
    for row in 0..cut.rows {
        #[allow(unsafe_code, reason = "tasks write disjoint columns")]
        // SAFETY: this split and these columns belong to the calling task.
        let out = unsafe { sums.part(from + row * cut.depth + columns.start, columns.len()) };
        out.fill(MaybeUninit::new(0.0));
    }
}

/// Packs the output gradient: pixel block b starts at b · 256 · rows, its panels `[pixels][height]` follow each other.
fn pack_gradient(
    shape: &Conv2dShape,
    group: usize,
    images: Range<usize>,
    row_panels: RowPanels,
    grad_y: &[f32],
    packed: &mut [f32],
) {
    let plane = shape.out_height() * shape.out_width();
    let rows = shape.group_out_channels();
    let pixels = images.len() * plane;
    let packed = Shared::new(packed);
    for_each_task(pixels.div_ceil(PIXEL_BLOCK), |task| {
        let block = task * PIXEL_BLOCK..((task + 1) * PIXEL_BLOCK).min(pixels);
        #[allow(unsafe_code, reason = "tasks pack disjoint blocks")]
        // SAFETY: block ranges do not overlap.
        let packed = unsafe { packed.part(block.start * rows, block.len() * rows) };
        for index in 0..row_panels.count() {
            let panel = row_panels.rows(index);
            let out = &mut packed[panel.start * block.len()..panel.end * block.len()];
            let mut pixel = block.start;
            while pixel < block.end {
                let image = images.start + pixel / plane;
                let run = (plane - pixel % plane).min(block.end - pixel);
                let mut slices: [&[f32]; 6] = [&[]; 6];
                for (slice, k) in slices.iter_mut().zip(panel.clone()) {
                    let from = (image * shape.out_channels + group * rows + k) * plane + pixel % plane;
                    *slice = &grad_y[from..from + run];
                }
                let at = (pixel - block.start) * panel.len();
                pack_panel(&slices[..panel.len()], &mut out[at..at + run * panel.len()]);
                pixel += run;
            }
        }
    });
}

/// The product of a packed gradient and the transposed matrix of a view.
struct Pixels<'a> {
    simd: Simd,
    view: &'a View<'a>,
    a: &'a [f32],
    row_panels: RowPanels,
    rows: usize,
    row_stride: usize,
}

impl Pixels<'_> {
    /// Sums over the pixel blocks `blocks` into the matrix that starts at `from` in `sums`.
    fn add(
        &self,
        blocks: Range<usize>,
        pixels: usize,
        columns: Range<usize>,
        from: usize,
        add: bool,
        sums: Target<'_>,
    ) {
        let targets: Vec<usize> = columns.clone().map(|column| from + column).collect();
        with_buffer(PIXEL_BLOCK * columns.len().next_multiple_of(PANEL_COLUMNS), |packed| {
            for block in blocks.clone() {
                let pixels = block * PIXEL_BLOCK..((block + 1) * PIXEL_BLOCK).min(pixels);
                let sources = self.view.sources(pixels.clone());
                let b = &mut packed[..pixels.len() * columns.len().next_multiple_of(PANEL_COLUMNS)];
                self.view.pack_rows(self.simd, &sources, columns.clone(), b);
                let product = Block {
                    depth: pixels.len(),
                    row_panels: self.row_panels,
                    panels: 0..self.row_panels.count(),
                    a: &self.a[pixels.start * self.rows..pixels.end * self.rows],
                    b,
                    columns: &targets,
                    row_stride: self.row_stride,
                    add: add || block > blocks.start,
                    bias: None,
                };
                #[allow(unsafe_code, reason = "tasks sum disjoint columns")]
                // SAFETY: this split and these columns belong to the calling task.
                unsafe {
                    product.run(self.simd, sums);
                }
            }
        });
    }
}

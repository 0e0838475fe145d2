//! The weight gradient as matrix products whose depth is the pixels.
//!
//! dW[k, (c,tap)] = Σ_pixels dY[k, pixel] · X[c, pixel + tap]. A task goes through some regions of the images and a block
//! of input channels. X is read through its (channel, tap) columns, in a copy with the zero border or where it lies. The
//! side with fewer rows, channels of dY or columns of X, is packed in panels of 16, pixel by pixel; the other is read as it
//! is. If that is X, the product is the transpose, which is turned at the end. Where packing and panels that are not full
//! would weigh more, nothing is packed ([`inner_products`](super::inner_products)). Where there are few channels several
//! tasks share the pixels out, by a number that depends on the sizes alone, and their sums are added in order.

use std::ops::Range;

use super::Conv2dShape;
use super::inner_products::{LANES, add_products, list_pairs, totals};
use super::lowering::kernel_taps;
use super::products::{Planes, Reading, Regions};
use super::scratch::{Lists, with_buffer, with_three_lists};
use crate::gemm::{Block, Columns, PACKED_ROWS, PANEL_COLUMNS, RowPanels, Rows, Run, Scattered, Target, target};
use crate::lanes::{Instructions, Lanes, Stage, WIDTH};
use crate::parallel::for_each_task;
use crate::prefetch::prefetch;

/// Columns (channel, tap) of a task at most, and channels.
const TASK_COLUMNS: usize = 192;
const TASK_CHANNELS: usize = 128;
/// Pixels of a region, about.
const PIXELS: usize = 512;
/// Pixels of a task at least, where several share them out.
const TASK_PIXELS: usize = 192;
/// Tasks that a call should have at least.
const TASKS: usize = 8;
/// Products that could be made in the time that it takes to pack one element.
const PACKING: usize = 16;
/// What a product takes of two matrices that are both read where they lie,
const INNER: f64 = 1.125;
/// if all rows of both lie planes apart, where they likely push each other out of the first-level cache,
const INNER_PLANES: f64 = 1.4;
/// and each sum besides, whose lanes are set to zero and added;
const INNER_SUM: f64 = 192.0;
/// and the sums of a task at most that stay in its second-level cache.
const INNER_SUMS: usize = 8 << 10;
/// Elements of all sums, where several tasks share the pixels out.
const SUMS: usize = 2 << 20;

/// The gradient of the weight.
pub(super) fn backward_weight(
    instructions: Instructions,
    shape: &Conv2dShape,
    x: &[f32],
    grad_y: &[f32],
    grad_weight: &mut [f32],
) {
    let (rows, channels) = (shape.group_out_channels(), shape.group_in_channels());
    let taps = kernel_taps(shape);
    let out = [shape.out_height(), shape.out_width()];
    let batch = shape.batch;
    let depth = channels * taps.len();
    let pixels = batch * out[0] * out[1];
    let most = TASK_CHANNELS.min(TASK_COLUMNS / taps.len()).max(1);
    let splits = (pixels / TASK_PIXELS).clamp(1, TASKS).min((SUMS / (rows * depth)).max(1));
    let blocks = channels.div_ceil(most).max(TASKS.div_ceil(splits).min(channels.div_ceil(PANEL_COLUMNS)));
    let block = channels.div_ceil(blocks);
    let blocks = channels.div_ceil(block);
    let splits = splits.min(TASKS.div_ceil(blocks));
    for (group, grad_weight) in grad_weight.chunks_exact_mut(rows * depth).enumerate() {
        let size = [shape.in_height, shape.in_width];
        let x = Planes { elements: x, batch, of: shape.in_channels, first: group * channels, channels, size };
        let grad_y =
            Planes { elements: grad_y, batch, of: shape.out_channels, first: group * rows, channels: rows, size: out };
        let reading = Reading { before: shape.padding, stride: shape.stride, out, taps: &taps };
        let regions = Regions::new(x, reading, block, (pixels / splits).min(PIXELS));
        let taps = regions.tap_offsets(taps.iter().copied());
        let splits = splits.min(regions.count());
        let pass = Pass { instructions, regions: &regions, grad_y, taps: &taps, depth };
        // The first task of some columns writes to the result, the others to sums of their own.
        with_buffer((splits - 1) * rows * depth, |others| {
            let (sums, more) = (target(grad_weight), target(others));
            for_each_task(blocks * splits, |task| {
                let (index, split) = (task / splits, task % splits);
                let channels = index * block..((index + 1) * block).min(channels);
                let regions = split * regions.count() / splits..(split + 1) * regions.count() / splits;
                let sums = if split == 0 { sums } else { more.after((split - 1) * rows * depth) };
                #[allow(unsafe_code, reason = "tasks write disjoint columns")]
                // SAFETY: these columns of these sums belong to this task.
                unsafe {
                    pass.run(regions, channels, sums)
                };
            });
            for other in others.chunks_exact(rows * depth) {
                for (sum, value) in grad_weight.iter_mut().zip(other) {
                    *sum += value;
                }
            }
        });
    }
}

/// What the tasks of one group share.
struct Pass<'a> {
    instructions: Instructions,
    regions: &'a Regions<'a>,
    grad_y: Planes<'a>,
    /// Where the taps lie in a copy of X.
    taps: &'a [usize],
    /// Columns of the gradient.
    depth: usize,
}

impl Pass<'_> {
    /// Writes the sums over some regions for some input channels.
    ///
    /// # Safety
    /// Nobody else uses these columns of `sums` meanwhile.
    #[allow(unsafe_code, reason = "hands its contract on; columns come from the shared slice")]
    unsafe fn run(&self, regions: Range<usize>, channels: Range<usize>, sums: Target<'_>) {
        let (rows, taps) = (self.grad_y.channels, self.taps.len());
        let columns = channels.start * taps..channels.end * taps;
        if self.in_place(&regions, [rows, columns.len()]) {
            return with_buffer(rows * columns.len() * LANES, |lanes| {
                lanes.fill(0.0);
                self.for_each_region(regions, &channels, |_, sides, lists| {
                    let [y, x] = sides;
                    list_pairs([&y, &x], &mut lists.pairs);
                    add_products(self.instructions, sides, &lists.pairs, lanes);
                });
                for (row, lanes) in lanes.chunks_exact(columns.len() * LANES).enumerate() {
                    // SAFETY: these columns are the caller's own.
                    let out = unsafe { sums.part(row * self.depth + columns.start, columns.len()) };
                    out.iter_mut().zip(totals(lanes)).for_each(|(out, total)| {
                        out.write(total);
                    });
                }
            });
        }
        if packs_second([rows, columns.len()]) {
            let out = Output { columns, row_stride: self.depth, elements: sums };
            // SAFETY: the contract is handed on unchanged.
            unsafe { self.sum(regions, channels, false, &out) };
            return;
        }
        with_buffer(columns.len() * rows, |buffer| {
            let out = Output { columns: 0..rows, row_stride: rows, elements: target(buffer) };
            // SAFETY: the buffer is this task's own.
            unsafe { self.sum(regions, channels, true, &out) };
            for row in 0..rows {
                // SAFETY: these columns are the caller's own.
                let out = unsafe { sums.part(row * self.depth + columns.start, columns.len()) };
                for (out, sums) in out.iter_mut().zip(buffer.chunks_exact(rows)) {
                    out.write(sums[row]);
                }
            }
        });
    }

    /// Writes the sums over some regions, or their transpose.
    ///
    /// # Safety
    /// Nobody else uses these columns of the output meanwhile.
    #[allow(unsafe_code, reason = "hands its contract on")]
    unsafe fn sum(&self, regions: Range<usize>, channels: Range<usize>, transposed: bool, out: &Output<'_>) {
        let first = regions.start;
        self.for_each_region(regions, &channels, |index, [y, x], lists| {
            let sides = if transposed { [x, y] } else { [y, x] };
            // SAFETY: the contract is handed on unchanged.
            unsafe { multiply(self.instructions, lists, sides, index > first, out) };
        });
    }

    /// Calls `body` with each region, its gradient of the output and its columns of X, and lists to use.
    fn for_each_region(
        &self,
        regions: Range<usize>,
        channels: &Range<usize>,
        mut body: impl FnMut(usize, [Side<'_>; 2], &mut Lists),
    ) {
        let (rows, taps) = (self.grad_y.channels, self.taps.len());
        let [height, width] = self.grad_y.size;
        let plane = height * width;
        let mut run = |index: usize, [x, y, others]: [&mut Lists; 3], copy: &mut [f32]| {
            let region = self.regions.region(index);
            let (elements, stride) = self.regions.read(&region, channels.clone(), copy);
            self.regions.list_runs(&region, &mut x.runs);
            x.rows.clear();
            x.rows.extend((0..channels.len() * taps).map(|column| column / taps * stride + self.taps[column % taps]));
            let x_side = Side { elements, rows: &x.rows, runs: &x.runs, far: taps == 1 };

            let image_rows = region.rows.start * width..region.rows.end * width;
            let image =
                |image: usize| Run { first: image * self.grad_y.of * plane + image_rows.start, len: image_rows.len() };
            y.runs.clear();
            y.runs.extend(region.images.clone().map(image));
            y.rows.clear();
            y.rows.extend((0..rows).map(|row| (self.grad_y.first + row) * plane));
            let y_side = Side { elements: self.grad_y.elements, rows: &y.rows, runs: &y.runs, far: true };
            body(index, [y_side, x_side], others);
        };
        with_three_lists(|[x, y, others]| {
            with_buffer(self.regions.copy_len() + PANEL_COLUMNS, |copy| {
                regions.for_each(|index| run(index, [x, y, others], copy));
            });
        });
    }

    /// Whether both matrices are read where they lie by a task that has `regions`, the one with `rows` and the one with
    /// `columns`.
    fn in_place(&self, regions: &Range<usize>, [rows, columns]: [usize; 2]) -> bool {
        let [height, width] = self.grad_y.size;
        let pixels = (self.grad_y.batch * height * width * regions.len()).div_ceil(self.regions.count());
        // Vectors that reach over the ends of rows are not full.
        let filled = width.next_multiple_of(LANES) as f64 / width as f64;
        let each = if self.taps.len() == 1 { INNER_PLANES } else { INNER };
        let product = filled * each + INNER_SUM / pixels as f64;
        let packed = work(rows, columns).min(work(columns, rows));
        rows * columns <= INNER_SUMS && product * ((rows * columns) as f64) < packed as f64
    }
}

/// What the products of a pixel take if the rows of one matrix are packed: that is work, and so are the rows that the last
/// panel is short of.
fn work(in_place: usize, packed: usize) -> usize {
    in_place * packed.next_multiple_of(PANEL_COLUMNS) + PACKING * packed
}

/// Whether the second of two matrices with these rows is the one to pack.
pub(super) fn packs_second([first, second]: [usize; 2]) -> bool {
    work(first, second) <= work(second, first)
}

/// Writes the products of the rows of two matrices, or adds them: each the sum over all pixels, the rows of the first read
/// where they lie, those of the second packed.
///
/// # Safety
/// Nobody else uses these rows and columns of the output meanwhile; where `add` they have been written.
#[allow(unsafe_code, reason = "hands its contract on")]
pub(super) unsafe fn multiply(
    instructions: Instructions,
    Lists { sources, columns, panels, .. }: &mut Lists,
    [a, b]: [Side<'_>; 2],
    add: bool,
    out: &Output<'_>,
) {
    sources.clear();
    sources.extend(a.runs.iter().flat_map(|run| run.first..run.first + run.len));
    columns.clear();
    columns.extend(out.columns.clone());
    for (block, places) in sources.chunks(PACKED_ROWS).enumerate() {
        with_buffer(b.rows.len().next_multiple_of(PANEL_COLUMNS) * places.len(), |packed| {
            let first = block * PACKED_ROWS;
            instructions.run(Pack { side: b, pixels: first..first + places.len(), packed });
            let row_panels = RowPanels::new(a.rows.len());
            let product = Block {
                row_panels,
                panels: 0..row_panels.count(),
                a: Rows::InPlace(Scattered { elements: a.elements, rows: a.rows, places, far: a.far }),
                b: Columns::packed(packed, places.len(), b.rows.len(), panels),
                columns,
                row_stride: out.row_stride,
                add: add || block > 0,
                bias: None,
            };
            // SAFETY: the contract is handed on unchanged.
            unsafe { product.run(instructions, out.elements) };
        });
    }
}

/// Where sums go: row r of column c at r · `row_stride` + c.
pub(super) struct Output<'a> {
    pub(super) columns: Range<usize>,
    pub(super) row_stride: usize,
    pub(super) elements: Target<'a>,
}

/// One of the two matrices: row r has at each pixel of the runs what lies so far after its own start.
#[derive(Clone, Copy)]
pub(super) struct Side<'a> {
    pub(super) elements: &'a [f32],
    pub(super) rows: &'a [usize],
    pub(super) runs: &'a [Run],
    /// Whether each row is in another plane.
    pub(super) far: bool,
}

/// Packs the rows of a matrix as columns: pixel by pixel what each has there, sixteen to a panel. The last columns of the
/// last panel may have any value.
struct Pack<'a> {
    side: Side<'a>,
    /// Those of the runs' pixels that are packed.
    pixels: Range<usize>,
    packed: &'a mut [f32],
}

impl Stage for Pack<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Side { elements, rows, runs, far } = self.side;
        let panels = self.packed.chunks_exact_mut(self.pixels.len() * PANEL_COLUMNS);
        for (index, (columns, panel)) in rows.chunks(PANEL_COLUMNS).zip(panels).enumerate() {
            // Past the last column: that again.
            let mut offsets = [columns[columns.len() - 1]; PANEL_COLUMNS];
            offsets[..columns.len()].copy_from_slice(columns);
            // Those after them, where the processor does not fetch them by itself.
            let next = if far { rows.get((index + 1) * PANEL_COLUMNS..) } else { None }.unwrap_or(&[]);
            let (mut before, mut rest) = (0, panel);
            for run in runs {
                let inside = |pixel: usize| pixel.clamp(before, before + run.len) - before;
                let (start, end) = (run.first + inside(self.pixels.start), run.first + inside(self.pixels.end));
                let (out, others) = rest.split_at_mut((end - start) * PANEL_COLUMNS);
                for row in next.iter().take(PANEL_COLUMNS) {
                    prefetch(&elements[row + start..row + end]);
                }
                pack_run::<L>(&elements[start..], &offsets, out.as_chunks_mut::<PANEL_COLUMNS>().0);
                (before, rest) = (before + run.len, others);
            }
        }
    }
}

/// out[pixel][column] = x[offsets[column] + pixel].
#[allow(unsafe_code, reason = "bounds that are asserted once")]
#[inline(always)]
fn pack_run<L: Lanes>(x: &[f32], offsets: &[usize; PANEL_COLUMNS], out: &mut [[f32; PANEL_COLUMNS]]) {
    let pixels = out.len();
    for offset in offsets {
        assert!(offset + pixels <= x.len());
    }
    let mut done = 0;
    while done < pixels && pixels >= WIDTH {
        // The last vectors overlap those before them.
        let start = done.min(pixels - WIDTH);
        for half in 0..PANEL_COLUMNS / WIDTH {
            let mut rows = [&[0.0; WIDTH]; WIDTH];
            for row in 0..WIDTH {
                // SAFETY: as the assertion says.
                rows[row] = unsafe { &*x.as_ptr().add(offsets[half * WIDTH + row] + start).cast() };
            }
            let vectors = L::load_columns(rows);
            for pixel in 0..WIDTH {
                vectors[pixel].store(&mut out[start + pixel].as_chunks_mut::<WIDTH>().0[half]);
            }
        }
        done = start + WIDTH;
    }
    for pixel in done..pixels {
        for column in 0..PANEL_COLUMNS {
            out[pixel][column] = x[offsets[column] + pixel];
        }
    }
}

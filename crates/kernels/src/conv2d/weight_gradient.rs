//! The weight gradient as sums of products of rows.
//!
//! dW[k, (c,tap)] = Σ_pixels dY[k, pixel] · X[c, pixel + tap]. A task goes through some regions of the images and a block
//! of input channels, copies what they read of X with the zero border into a buffer that stays in its cache, and a few
//! rows of dY at a time; eight neighbouring pixels of either are multiplied together, and added over the pixels in
//! vectors that stay in registers. Where there are few channels several tasks share the pixels out, by a number that
//! depends on the sizes alone, and their sums are added in order.

use std::ops::Range;

use super::Conv2dShape;
use super::lowering::kernel_taps;
use super::outer_products;
use super::products::{Planes, Reading, Region, Regions};
use super::scratch::with_buffer;
use crate::lanes::{Instructions, Lanes, Stage, WIDTH, load_at};
use crate::parallel::{Shared, for_each_task};

/// Channels of dY, and columns (channel, tap), whose sums stay in registers.
const ROWS: usize = 4;
const COLUMNS: usize = 3;
/// Columns of a task at most, and channels.
const TASK_COLUMNS: usize = 192;
const TASK_CHANNELS: usize = 64;
/// Vectors that could be multiplied in the time that it takes to go from one run of pixels to the next.
const BETWEEN_RUNS: usize = 1;
/// Pixels of a region.
const PIXELS: usize = 512;
/// Tasks that a call should have at least.
const TASKS: usize = 8;
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
    // Few pixels: more channels, so that copying dY is worth it.
    let most = TASK_CHANNELS.max(TASK_CHANNELS * PIXELS / pixels).min(TASK_COLUMNS / taps.len()).max(1);
    let splits = (pixels / outer_products::MOST_PIXELS).clamp(1, TASKS).min((SUMS / (rows * depth)).max(1));
    let blocks = channels.div_ceil(most).max(TASKS.div_ceil(splits).min(channels.div_ceil(COLUMNS)));
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
        let offsets = regions.tap_offsets(taps.iter().copied());
        if pixels <= outer_products::MOST_PIXELS {
            let simd = instructions.simd();
            outer_products::backward_weight(simd, &regions, &offsets, channels, grad_y, grad_weight);
            continue;
        }
        let splits = splits.min(regions.count());
        let pass = Pass { instructions, regions: &regions, grad_y, taps: &offsets };
        with_buffer(splits * grad_weight.len(), |partial| {
            let shared = Shared::new(partial);
            for_each_task(blocks * splits, |task| {
                let (index, split) = (task / splits, task % splits);
                let channels = index * block..((index + 1) * block).min(channels);
                let columns = channels.start * taps.len()..channels.end * taps.len();
                let regions = split * regions.count() / splits..(split + 1) * regions.count() / splits;
                with_buffer(rows.div_ceil(ROWS) * columns.len() * ROWS, |sums| {
                    sums.fill(0.0);
                    pass.add(regions, channels, sums);
                    for (index, sums) in sums.chunks_exact(columns.len() * ROWS).enumerate() {
                        for row in index * ROWS..rows.min((index + 1) * ROWS) {
                            let from = (split * rows + row) * depth + columns.start;
                            #[allow(unsafe_code, reason = "tasks write disjoint columns")]
                            // SAFETY: this split and these columns belong to this task.
                            let out = unsafe { shared.part(from, columns.len()) };
                            for (out, sums) in out.iter_mut().zip(sums.as_chunks::<ROWS>().0) {
                                *out = sums[row % ROWS];
                            }
                        }
                    }
                });
            });
            let (first, others) = partial.split_at(grad_weight.len());
            grad_weight.copy_from_slice(first);
            for other in others.chunks_exact(grad_weight.len()) {
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
}

impl Pass<'_> {
    /// Adds the products of some regions and input channels to `sums` `[⌈rows / 4⌉][channels · taps][4]`.
    fn add(&self, regions: Range<usize>, channels: Range<usize>, sums: &mut [f32]) {
        if self.regions.are_whole_images() {
            // X and dY as they are.
            for index in regions {
                let region = self.regions.region(index);
                let (x, [channel_stride, image_stride]) = self.regions.in_place(&region, channels.start);
                let columns = Columns::new((0..channels.len()).map(|channel| channel * channel_stride).collect());
                self.add_region(&region, (x, image_stride), &columns, sums);
            }
            return;
        }
        let taps = self.taps.len();
        let column = |column: usize| column / taps * self.regions.channel_stride() + self.taps[column % taps];
        let columns = Columns::new((0..channels.len() * taps).map(column).collect());
        with_buffer(self.regions.copy_len() + 2 * WIDTH, |copy| {
            // Elements that are read but multiplied by zero must not be NaN.
            copy.fill(0.0);
            for index in regions {
                let region = self.regions.region(index);
                let x = self.regions.copy(&region, channels.clone(), copy);
                self.add_region(&region, (x, self.regions.image_stride()), &columns, sums);
            }
        });
    }

    fn add_region(&self, region: &Region, (x, image_stride): (&[f32], usize), columns: &Columns, sums: &mut [f32]) {
        let channels = self.grad_y.channels;
        let panels = sums.chunks_exact_mut(columns.offsets.len() * ROWS).zip((0..channels).step_by(ROWS));
        if let Some(runs) = self.runs_in_place(region, image_stride) {
            let stride = self.grad_y.size[0] * self.grad_y.size[1];
            let y = &self.grad_y.elements[self.grad_y.first * stride..];
            for (sums, row) in panels {
                let (y, rows) = (&y[row * stride..], ROWS.min(channels - row));
                self.instructions.run(Products { x, y, stride, rows, columns, runs: &runs, sums });
            }
            return;
        }
        let runs = self.runs(region);
        let padded = runs.last().map_or(0, |run| run.y + run.vectors * WIDTH);
        // An odd number of vectors, so that rows fall on different lines of the cache.
        let stride = ((padded / WIDTH) | 1) * WIDTH;
        with_buffer(ROWS * stride, |y| {
            for (sums, row) in panels {
                let rows = ROWS.min(channels - row);
                for (row, y) in (row..row + rows).zip(y.chunks_exact_mut(stride)) {
                    self.copy_channel(region, row, &runs, y);
                }
                self.instructions.run(Products { x, y, stride, rows, columns, runs: &runs, sums });
            }
        });
    }

    /// The pixels of a region where dY can be read as it is: rows follow each other in X as they do there, and are whole
    /// vectors.
    fn runs_in_place(&self, region: &Region, image_stride: usize) -> Option<Vec<Run>> {
        let [height, width] = self.grad_y.size;
        let pixels = region.rows.len() * width;
        let place = |image: usize| Run {
            x: (image - region.images.start) * image_stride,
            y: image * self.grad_y.of * height * width + region.rows.start * width,
            vectors: pixels / WIDTH,
        };
        let fits = self.regions.row_step() == width && pixels.is_multiple_of(WIDTH);
        fits.then(|| region.images.clone().map(place).collect())
    }

    /// The pixels of a region: each row by itself, or as one run all rows of an image and what lies between them in X.
    fn runs(&self, region: &Region) -> Vec<Run> {
        let (width, step) = (self.grad_y.size[1], self.regions.row_step());
        let rows = region.rows.len();
        let through = ((rows - 1) * step + width).div_ceil(WIDTH);
        let by_rows = rows * (width.div_ceil(WIDTH) + BETWEEN_RUNS);
        let (per_image, vectors) = if through <= by_rows { (1, through) } else { (rows, width.div_ceil(WIDTH)) };
        let mut runs = Vec::with_capacity(region.images.len() * per_image);
        for image in 0..region.images.len() {
            for row in 0..per_image {
                let x = image * self.regions.image_stride() + row * step;
                runs.push(Run { x, y: runs.len() * vectors * WIDTH, vectors });
            }
        }
        runs
    }

    /// Copies a channel of dY to where the runs read it; what lies between rows is zero.
    fn copy_channel(&self, region: &Region, channel: usize, runs: &[Run], out: &mut [f32]) {
        let width = self.grad_y.size[1];
        let runs_per_image = runs.len() / region.images.len();
        for (image, runs) in region.images.clone().zip(runs.chunks_exact(runs_per_image)) {
            let plane = self.grad_y.plane(image, channel);
            let mut rows = plane[region.rows.start * width..region.rows.end * width].chunks_exact(width);
            for run in runs {
                let out = &mut out[run.y..run.y + run.vectors * WIDTH];
                let step = if runs_per_image == 1 { self.regions.row_step() } else { out.len() };
                for out in out.chunks_mut(step) {
                    let Some(row) = rows.next() else {
                        out.fill(0.0);
                        continue;
                    };
                    out[..width].copy_from_slice(row);
                    out[width..].fill(0.0);
                }
            }
        }
    }
}

/// Neighbouring pixels: where they lie in X and in dY.
#[derive(Clone, Copy)]
struct Run {
    x: usize,
    y: usize,
    vectors: usize,
}

/// Where the columns (channel, tap) begin in X.
struct Columns {
    offsets: Vec<usize>,
    /// The largest.
    reach: usize,
}

impl Columns {
    fn new(offsets: Vec<usize>) -> Self {
        let reach = offsets.iter().copied().max().unwrap_or(0);
        Self { offsets, reach }
    }
}

/// sums[c][r] += Σ over the runs of y[r · stride + place] · x[columns[c] + place].
struct Products<'a> {
    x: &'a [f32],
    y: &'a [f32],
    stride: usize,
    rows: usize,
    columns: &'a Columns,
    runs: &'a [Run],
    sums: &'a mut [f32],
}

impl Stage for Products<'_> {
    #[inline(always)]
    fn run<L: Lanes>(mut self) {
        for run in self.runs {
            assert!(run.x + self.columns.reach + run.vectors * WIDTH <= self.x.len());
            assert!(run.y + run.vectors * WIDTH + (self.rows - 1) * self.stride <= self.y.len());
        }
        match self.rows {
            1 => self.columns::<L, 1>(),
            2 => self.columns::<L, 2>(),
            3 => self.columns::<L, 3>(),
            _ => self.columns::<L, ROWS>(),
        }
    }
}

impl Products<'_> {
    #[inline(always)]
    fn columns<L: Lanes, const R: usize>(&mut self) {
        let mut first = 0;
        while first < self.columns.offsets.len() {
            // Four left are two and two, not three and one.
            match self.columns.offsets.len() - first {
                1 => first += self.tile::<L, R, 1>(first),
                2 | 4 => first += self.tile::<L, R, 2>(first),
                _ => first += self.tile::<L, R, COLUMNS>(first),
            }
        }
    }

    #[allow(unsafe_code, reason = "bounds that are asserted once")]
    #[inline(always)]
    fn tile<L: Lanes, const R: usize, const C: usize>(&mut self, first: usize) -> usize {
        let mut columns = [0; C];
        columns.copy_from_slice(&self.columns.offsets[first..first + C]);
        let mut sums = [[L::zero(); ROWS]; C];
        for run in self.runs {
            for place in (0..run.vectors * WIDTH).step_by(WIDTH) {
                let mut x = [L::zero(); C];
                for c in 0..C {
                    // SAFETY: asserted in `run` for every run and the farthest column.
                    x[c] = unsafe { load_at::<L>(self.x, run.x + columns[c] + place) };
                }
                for r in 0..R {
                    // SAFETY: asserted in `run` for every run and the last row.
                    let y = unsafe { load_at::<L>(self.y, r * self.stride + run.y + place) };
                    for c in 0..C {
                        sums[c][r] = y.mul_add(x[c], sums[c][r]);
                    }
                }
            }
        }
        let out = &mut self.sums.as_chunks_mut::<ROWS>().0[first..first + C];
        for c in 0..C {
            let sums = L::sums(sums[c]);
            for r in 0..ROWS {
                out[c][r] += sums[r];
            }
        }
        C
    }
}

//! Outputs as matrix products whose second matrix is the input, seen through its taps.
//!
//! Out[row, pixel] = Σ_(channel, tap) A[row, (channel, tap)] · in[channel, pixel + tap]. A task takes some rows of an
//! image, or some small images: a [`Regions`] region. It copies what they read of a block of channels, with the zero
//! border, into a buffer that stays in its cache, and multiplies there, each row of the second matrix being a part of
//! the copy that begins at its tap. Nothing is unrolled, except where rows are so short that vectors would reach over
//! their ends: then panels are packed from the copy.

use std::ops::Range;

use super::lowering::{AHEAD, Border, pack_pixels};
use super::scratch::{Buffer, Lists, with_buffer, with_lists};
use crate::gemm::{Block, Columns, PACKED_ROWS, PANEL_COLUMNS, RowPanels, Rows, Run, Target};
use crate::lanes::Instructions;
use crate::parallel::{Prepared, Shared, for_each_task_if};
use crate::prefetch::prefetch;

/// Output elements of a region at most, so that they stay in the second-level cache,
const REGION_OUTPUTS: usize = 64 << 10;
/// if that is between these many pixels.
const REGION_PIXELS: [usize; 2] = [192, 1024];
/// Elements of the copy of a region at most, for the same reason.
const REGION_COPY: usize = 32 << 10;
/// Regions that a pass should have at least, if they would have this many pixels.
const REGIONS: usize = 8;
const FEW_PIXELS: usize = 48;
/// Elements of a cache line.
const LINE: usize = 16;

/// Some channels of a tensor [N,C,H,W].
#[derive(Clone, Copy)]
pub(super) struct Planes<'a> {
    pub(super) elements: &'a [f32],
    pub(super) batch: usize,
    /// Channels of the tensor.
    pub(super) of: usize,
    pub(super) first: usize,
    pub(super) channels: usize,
    /// Rows and columns.
    pub(super) size: [usize; 2],
}

impl<'a> Planes<'a> {
    pub(super) fn plane(&self, image: usize, channel: usize) -> &'a [f32] {
        let len = self.size[0] * self.size[1];
        &self.elements[(image * self.of + self.first + channel) * len..][..len]
    }
}

/// How the outputs of a pass are shared out.
pub(super) struct Regions<'a> {
    planes: Planes<'a>,
    /// Rows and columns of the output.
    out: [usize; 2],
    /// Images and rows of a region.
    images: usize,
    rows: usize,
    /// The copy of a region's planes.
    border: Border,
    channel_stride: usize,
    /// Channels that are copied at a time.
    block: usize,
}

/// Some images, and some of their rows.
#[derive(Clone, Debug)]
pub(super) struct Region {
    pub(super) images: Range<usize>,
    pub(super) rows: Range<usize>,
}

/// Rows of the output from the inputs at some taps.
pub(super) struct Sums<'a> {
    pub(super) instructions: Instructions,
    pub(super) row_panels: RowPanels,
    pub(super) rows: usize,
    /// Where the taps lie in the copy.
    pub(super) taps: Vec<usize>,
    /// Where its packed [`Weights`] begin.
    pub(super) first_weight: usize,
    pub(super) bias: Option<&'a [f32]>,
}

/// The weights of all sums of a pass.
pub(super) struct Weights<F> {
    pub(super) len: usize,
    /// Packs them, in parallel or not, by [`Regions::pack_weights`].
    pub(super) pack: F,
}

/// Where sums go: row r of pixel p is at `columns[p]` + r · `row_stride`.
pub(super) struct Output<'a> {
    pub(super) columns: &'a [usize],
    pub(super) row_stride: usize,
    pub(super) elements: Target<'a>,
}

/// What outputs read.
#[derive(Clone, Copy)]
pub(super) struct Reading<'a> {
    /// Zeros before the first row and column.
    pub(super) before: [usize; 2],
    /// From one output to the next.
    pub(super) stride: [usize; 2],
    /// Rows and columns of the output.
    pub(super) out: [usize; 2],
    /// The taps of all sums.
    pub(super) taps: &'a [[usize; 2]],
}

impl<'a> Regions<'a> {
    /// For `rows` rows of products, each from at most `taps` taps.
    pub(super) fn for_products(planes: Planes<'a>, reading: Reading<'_>, rows: usize, taps: usize) -> Self {
        let block = (PACKED_ROWS / taps).clamp(1, planes.channels);
        let copied = block * reading.stride[0] * reading.stride[1];
        let most = (REGION_OUTPUTS / rows.max(block)).min(REGION_COPY / copied);
        let pixels = most.clamp(REGION_PIXELS[0], REGION_PIXELS[1]);
        let pixels = pixels.min((planes.batch * reading.out[0] * reading.out[1] / REGIONS).max(FEW_PIXELS));
        Self::new(planes, reading, block, pixels)
    }

    /// Of about `pixels` outputs, which copy `block` channels at a time.
    pub(super) fn new(planes: Planes<'a>, reading: Reading<'_>, block: usize, pixels: usize) -> Self {
        let Reading { before, stride, out, taps } = reading;
        let plane = out[0] * out[1];
        let rows = (pixels / out[1]).clamp(1, out[0]);
        let rows = out[0].div_ceil(out[0].div_ceil(rows));
        let images = (pixels / plane).clamp(1, planes.batch);
        let border = Border::new(planes.size, before, stride, [rows, out[1]], taps);
        // An odd number of cache lines, so that channels fall on different ones of the cache.
        let channel_stride = ((images * border.plane_len()).div_ceil(LINE) | 1) * LINE;
        Self { planes, out, images, rows, border, channel_stride, block }
    }

    /// What a region reads of some channels: where it lies, if rows follow each other there as in a copy, else a copy in
    /// `buffer`; and how far channels lie apart.
    pub(super) fn read<'b>(
        &'b self,
        region: &Region,
        channels: Range<usize>,
        buffer: &'b mut [f32],
    ) -> (&'b [f32], usize) {
        if self.border.is_contiguous() && region.images.len() == 1 {
            let plane = self.planes.size[0] * self.planes.size[1];
            let channel = region.images.start * self.planes.of + self.planes.first + channels.start;
            let from = channel * plane + region.rows.start * self.planes.size[1];
            return (&self.planes.elements[from..], plane);
        }
        (self.copy(region, channels, buffer), self.channel_stride)
    }

    /// From one image of a copy to the next: each channel of all images lies together, so that images without a border
    /// follow each other.
    pub(super) fn image_stride(&self) -> usize {
        self.border.plane_len()
    }

    /// Elements of a copy.
    pub(super) fn copy_len(&self) -> usize {
        self.block * self.channel_stride + LINE
    }

    pub(super) fn count(&self) -> usize {
        self.planes.batch.div_ceil(self.images) * self.out[0].div_ceil(self.rows)
    }

    pub(super) fn region(&self, index: usize) -> Region {
        let across = self.out[0].div_ceil(self.rows);
        let (image, row) = (index / across * self.images, index % across * self.rows);
        Region {
            images: image..(image + self.images).min(self.planes.batch),
            rows: row..(row + self.rows).min(self.out[0]),
        }
    }

    /// Where each of these taps lies in a copy.
    pub(super) fn tap_offsets(&self, taps: impl Iterator<Item = [usize; 2]>) -> Vec<usize> {
        taps.map(|tap| self.border.tap_offset(tap)).collect()
    }

    /// Packs weights for [`Self::run`]: those of a block of channels one after the other, its panels following each
    /// other. `fill` gets a panel's rows, a range of the depth (channel, tap), and where they go.
    pub(super) fn pack_weights(
        &self,
        (rows, taps): (usize, usize),
        (packed, parallel): (&mut [f32], bool),
        fill: impl Fn(Range<usize>, Range<usize>, &mut [f32]) + Sync,
    ) {
        const PANELS_PER_TASK: usize = 4;
        let row_panels = RowPanels::new(rows);
        let depth = self.planes.channels * taps;
        let step = (self.block * taps).max(1);
        let packed = Shared::new(packed);
        for_each_task_if(parallel, row_panels.count().div_ceil(PANELS_PER_TASK), |task| {
            for index in task * PANELS_PER_TASK..((task + 1) * PANELS_PER_TASK).min(row_panels.count()) {
                let panel = row_panels.rows(index);
                for start in (0..depth).step_by(step) {
                    let block = start..(start + step).min(depth);
                    let (from, len) = (start * rows + panel.start * block.len(), panel.len() * block.len());
                    #[allow(unsafe_code, reason = "tasks pack disjoint panels")]
                    // SAFETY: a panel belongs to one task; (block, panel) ranges do not overlap.
                    let out = unsafe { packed.part(from, len) };
                    fill(panel.clone(), block, out);
                }
            }
        });
    }

    /// Runs `task(…, 0) … task(…, count - 1)` with packed weights; together they compute all outputs.
    pub(super) fn for_each_task(
        &self,
        count: usize,
        weights: Weights<impl Fn(&mut [f32], bool) + Sync + Send>,
        task: impl Fn(&[f32], usize) + Sync + Send,
    ) {
        let bytes = weights.len * size_of::<f32>();
        let prepared = Prepared { bytes, uses: self.planes.batch * self.out[0] * self.out[1] };
        let prepare = |parallel| {
            let mut packed = Buffer::take(weights.len);
            (weights.pack)(&mut packed, parallel);
            packed
        };
        prepared.for_each_task(count, prepare, |packed, number| task(packed, number));
    }

    /// Computes all regions of `sums` into the channels from `first` on of a tensor with `channels` of them.
    pub(super) fn fill(
        &self,
        sums: &Sums<'_>,
        weights: Weights<impl Fn(&mut [f32], bool) + Sync + Send>,
        [channels, first]: [usize; 2],
        elements: Target<'_>,
    ) {
        let [height, width] = self.out;
        // Few pixels and many rows: the tasks share the rows out as well.
        let (regions, count) = (self.count(), sums.row_panels.count());
        let parts = 4usize.div_ceil(regions).min(count);
        self.for_each_task(regions * parts, weights, |weights, task| {
            let (region, part) = (self.region(task / parts), task % parts);
            let panels = part * count / parts..(part + 1) * count / parts;
            with_lists(|Lists { columns, .. }| {
                columns.clear();
                for image in region.images.clone() {
                    let from = (image * channels + first) * height * width;
                    columns.extend(from + region.rows.start * width..from + region.rows.end * width);
                }
                let output = Output { columns, row_stride: height * width, elements };
                #[allow(unsafe_code, reason = "tasks compute disjoint parts of the output")]
                // SAFETY: two tasks differ in their region or in their rows.
                unsafe {
                    self.run(&region, panels, weights, std::slice::from_ref(sums), &[output]);
                }
            });
        });
    }

    /// Computes the rows of `panels` of all `sums` in a region into `outputs`. Sums without taps are left as they are.
    ///
    /// # Safety
    /// Nobody else uses these rows and columns of the outputs meanwhile.
    #[allow(unsafe_code, reason = "hands its contract on")]
    pub(super) unsafe fn run(
        &self,
        region: &Region,
        panels: Range<usize>,
        weights: &[f32],
        sums: &[Sums<'_>],
        outputs: &[Output<'_>],
    ) {
        with_lists(|lists| {
            // SAFETY: the contract is handed on unchanged.
            unsafe { self.run_with(lists, region, panels, weights, sums, outputs) }
        });
    }

    /// # Safety
    /// As [`Self::run`].
    #[allow(unsafe_code, reason = "hands its contract on")]
    unsafe fn run_with(
        &self,
        Lists { rows, sources, runs, panels: list, .. }: &mut Lists,
        region: &Region,
        panels: Range<usize>,
        weights: &[f32],
        sums: &[Sums<'_>],
        outputs: &[Output<'_>],
    ) {
        self.list_runs(region, runs);
        let pixels: usize = runs.iter().map(|run| run.len).sum();
        let padded: usize = runs.iter().map(|run| run.len.next_multiple_of(PANEL_COLUMNS)).sum();
        // Panels at the ends of rows that are filled up cost as much as whole ones.
        let in_place = padded * 8 <= pixels * 9;
        sources.clear();
        if !in_place {
            sources.extend(runs.iter().flat_map(|run| run.first..run.first + run.len));
        }
        let packed_len = PACKED_ROWS * sources.len().next_multiple_of(PANEL_COLUMNS);
        with_buffer(self.copy_len() + PANEL_COLUMNS, |copy| {
            for first in (0..self.planes.channels).step_by(self.block) {
                let channels = first..(first + self.block).min(self.planes.channels);
                let copy = self.copy(region, channels.clone(), copy);
                for (sums, output) in sums.iter().zip(outputs) {
                    let taps = sums.taps.len();
                    if taps == 0 {
                        continue;
                    }
                    rows.clear();
                    for channel in 0..channels.len() {
                        rows.extend(sums.taps.iter().map(|tap| channel * self.channel_stride + tap));
                    }
                    let weights = &weights[sums.first_weight..][..self.planes.channels * taps * sums.rows];
                    let multiply = |b: Columns<'_>| {
                        let block = Block {
                            row_panels: sums.row_panels,
                            panels: panels.clone(),
                            a: Rows::Packed(&weights[first * taps * sums.rows..channels.end * taps * sums.rows]),
                            b,
                            columns: output.columns,
                            row_stride: output.row_stride,
                            add: first > 0,
                            bias: sums.bias,
                        };
                        // SAFETY: the contract is handed on unchanged.
                        unsafe { block.run(sums.instructions, output.elements) };
                    };
                    if in_place || rows.len() > PACKED_ROWS {
                        multiply(Columns::in_place(copy, rows, runs, list));
                    } else {
                        with_buffer(packed_len, |packed| {
                            pack_pixels(copy, sources, rows, packed);
                            multiply(Columns::packed(packed, rows.len(), sources.len(), list));
                        });
                    }
                }
            }
        });
    }

    /// Copies what a region reads of some channels; gives the part of the buffer that begins with it.
    pub(super) fn copy<'b>(&self, region: &Region, channels: Range<usize>, buffer: &'b mut [f32]) -> &'b [f32] {
        // Vectors that begin a line lie in one line each.
        let unaligned = buffer.as_ptr().align_offset(LINE * size_of::<f32>()).min(LINE);
        let copy = &mut buffer[unaligned..];
        let contiguous = self.border.is_contiguous();
        for (channel, copy) in channels.zip(copy.chunks_mut(self.channel_stride)) {
            for (image, copy) in region.images.clone().zip(copy.chunks_exact_mut(self.image_stride())) {
                // Channels lie so far apart that the processor does not fetch the next one by itself.
                if channel + AHEAD < self.planes.channels {
                    let plane = self.planes.plane(image, channel + AHEAD);
                    prefetch(self.border.rows_read(plane, region.rows.start));
                }
                let plane = self.planes.plane(image, channel);
                if contiguous {
                    let rows = &plane[region.rows.start * self.planes.size[1]..];
                    let len = rows.len().min(copy.len());
                    copy[..len].copy_from_slice(&rows[..len]);
                    // Outputs past the last row, of a gradient of pixels that no output has read.
                    copy[len..].fill(0.0);
                } else {
                    self.border.copy_rows(plane, region.rows.start, copy);
                }
            }
        }
        copy
    }

    /// Lists where the pixels of a region lie in the copy of its first channel, as runs of neighbours.
    pub(super) fn list_runs(&self, region: &Region, runs: &mut Vec<Run>) {
        runs.clear();
        for image in 0..region.images.len() {
            for row in 0..region.rows.len() {
                let first = image * self.image_stride() + row * self.border.row_step();
                match runs.last_mut() {
                    Some(last) if last.first + last.len == first => last.len += self.out[1],
                    _ => runs.push(Run { first, len: self.out[1] }),
                }
            }
        }
    }
}

//! The two-dimensional transforms, and the change between NCHW and blocks of channels.
//!
//! A two-dimensional transform is the one-dimensional one on the columns of the pixels, then on the rows of the tiles, or
//! the other way round; neighbouring tiles share the columns where they overlap. The 16 channels of a block go through
//! it side by side; only the change of layout moves values between lanes.

use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Range;

use super::blocks::{Block, CHANNELS, halves, load_at, store_at};
use super::grid::{Grid, Layer, Strip};
use super::points::Linear;
use crate::lanes::{Lanes, Stage, WIDTH};
use crate::parallel::Shared;
use crate::prefetch::prefetch;

/// Where transformed tiles go: plane (i, j), of A×A, starts at (i·A + j)·`stride`, and the tiles at `first` in each.
#[derive(Clone, Copy)]
pub(super) struct Planes<'a> {
    pub(super) blocks: Shared<'a, Block>,
    pub(super) stride: usize,
    pub(super) first: usize,
}

/// An NCHW tensor.
#[derive(Clone, Copy)]
pub(super) struct Maps<'a> {
    pub(super) data: &'a [f32],
    pub(super) channels: usize,
    pub(super) size: [usize; 2],
}

impl Maps<'_> {
    /// Brings columns `columns` of row `y` of a block of channels into `pixels`, as many; half a block without any
    /// channel is left as it is, and lanes without a channel get the values of one that is there.
    #[inline(always)]
    fn interleave<L: Lanes>(&self, image: usize, block: usize, y: usize, columns: Range<usize>, pixels: &mut [Block]) {
        let plane = self.size[0] * self.size[1];
        let channels = (self.channels - block * CHANNELS).min(CHANNELS);
        let first = (image * self.channels + block * CHANNELS) * plane + y * self.size[1] + columns.start;
        for half in 0..channels.div_ceil(WIDTH) {
            let last = WIDTH.min(channels - half * WIDTH) - 1;
            let rows = &self.data[first + half * WIDTH * plane..][..last * plane + columns.len()];
            interleave::<L>(rows, plane, last, pixels, half);
        }
    }
}

/// Transforms the tiles of one strip and one channel block by `T`: inputs by Bᵀ or gradients of outputs by A.
///
/// IN is the side of a tile, A that of a transformed tile.
pub(super) struct ToTiles<'a, T, const IN: usize, const A: usize> {
    pub(super) maps: Maps<'a>,
    /// The zeros around the maps.
    pub(super) padding: [usize; 2],
    pub(super) dilation: [usize; 2],
    /// Outputs from one tile to the next.
    pub(super) tile: usize,
    pub(super) grid: &'a Grid,
    pub(super) strip: Strip,
    pub(super) block: usize,
    /// Work memory: A rows of `grid.strip_width(IN)`.
    pub(super) pixels: &'a mut [Block],
    /// The result: `grid.strip_tiles()` tiles, which no other stage that runs meanwhile writes to.
    pub(super) planes: Planes<'a>,
    pub(super) transform: PhantomData<T>,
}

impl<T: Linear<IN, A>, const IN: usize, const A: usize> ToTiles<'_, T, IN, A> {
    /// Transforms the pixels to tiles whose columns lie `step` apart.
    #[allow(unsafe_code, reason = "indices whose largest values are asserted before the loops")]
    #[inline(always)]
    fn transform<L: Lanes, const HALVES: usize>(self, width: usize, step: usize) {
        let (segment, tiles) = (self.grid.segment, self.grid.strip_tiles());
        assert!(width == ((segment - 1) * self.tile + IN) * step && tiles == segment * step);
        assert!(IN <= A && self.pixels.len() == A * width);
        // SAFETY: IN and A rows of `width` pixels are there.
        unsafe { down::<L, T, IN, A, HALVES>(self.pixels, width) };
        let Planes { blocks, stride, first } = self.planes;
        // As far as the last plane's tiles.
        let planes = blocks.after(first).pointer((A * A - 1) * stride + tiles);
        for (i, pixels) in self.pixels.chunks_exact(width).enumerate().take(A) {
            for phase in 0..step {
                for tile in 0..segment {
                    let (corner, to) = (tile * self.tile * step + phase, phase * segment + tile);
                    for half in 0..HALVES {
                        let mut row = [L::zero(); IN];
                        for j in 0..IN {
                            // SAFETY: the largest index is width − 1, as asserted above.
                            row[j] = unsafe { load_at(pixels, corner + j * step, half) };
                        }
                        let row = T::apply(row);
                        for j in 0..A {
                            // SAFETY: `to` is less than the strip's tiles, and those of each plane are nobody else's.
                            unsafe { (*planes.add((i * A + j) * stride + to)).store(half, row[j]) };
                        }
                    }
                }
            }
        }
    }

    /// Brings the pixels of the strip into blocks of channels, with zeros outside of the map.
    #[inline(always)]
    fn gather<L: Lanes>(&mut self, width: usize) {
        let first = self.strip.left;
        // Columns start..end of the strip lie inside of the map.
        let start = self.padding[1].saturating_sub(first).min(width);
        let end = (self.maps.size[1] + self.padding[1]).saturating_sub(first).clamp(start, width);
        for (row, pixels) in self.pixels.chunks_exact_mut(width).enumerate().take(IN) {
            let y = (self.strip.top + row * self.dilation[0]).checked_sub(self.padding[0]);
            match y {
                Some(y) if y < self.maps.size[0] && start < end => {
                    pixels[..start].fill(Block::ZERO);
                    pixels[end..].fill(Block::ZERO);
                    let from = first + start - self.padding[1];
                    let columns = from..from + end - start;
                    self.maps.interleave::<L>(self.strip.image, self.block, y, columns, &mut pixels[start..end]);
                }
                _ => pixels.fill(Block::ZERO),
            }
        }
    }
}

impl<T: Linear<IN, A>, const IN: usize, const A: usize> Stage for ToTiles<'_, T, IN, A> {
    #[inline(always)]
    fn run<L: Lanes>(mut self) {
        let step = self.dilation[1];
        let width = self.grid.strip_width(IN);
        self.gather::<L>(width);
        // Constants where they are so most often.
        match (halves(self.maps.channels - self.block * CHANNELS), step) {
            (1, 1) => self.transform::<L, 1>(width, 1),
            (1, _) => self.transform::<L, 1>(width, step),
            (_, 1) => self.transform::<L, 2>(width, 1),
            (_, _) => self.transform::<L, 2>(width, step),
        }
    }
}

/// Transforms the columns of IN rows of `width` pixels, in place, to OUT rows.
///
/// # Safety
/// There are as many rows as the larger of IN and OUT.
#[allow(unsafe_code, reason = "hands the caller's proof on to the loads and stores")]
#[inline(always)]
unsafe fn down<L: Lanes, T: Linear<IN, OUT>, const IN: usize, const OUT: usize, const HALVES: usize>(
    pixels: &mut [Block],
    width: usize,
) {
    for x in 0..width {
        for half in 0..HALVES {
            let mut column = [L::zero(); IN];
            for i in 0..IN {
                // SAFETY: by the caller's contract, for x is less than `width`.
                column[i] = unsafe { load_at(pixels, i * width + x, half) };
            }
            let column = T::apply(column);
            for i in 0..OUT {
                // SAFETY: as above.
                unsafe { store_at(pixels, i * width + x, half, column[i]) };
            }
        }
    }
}

/// Transforms the products of one strip and one block of output channels by Aᵀ and writes them to the output.
pub(super) struct FromTiles<'a, T, const A: usize, const M: usize> {
    /// The products: plane (i, j) starts at (i·A + j)·`stride`, the strip's tiles at `first`.
    pub(super) products: &'a [Block],
    pub(super) stride: usize,
    pub(super) first: usize,
    pub(super) layer: &'a Layer,
    pub(super) grid: &'a Grid,
    pub(super) strip: Strip,
    pub(super) block: usize,
    /// What is added to each output channel.
    pub(super) bias: Option<&'a [f32]>,
    /// Work memory: A rows of `grid.strip_width(M)`.
    pub(super) pixels: &'a mut [Block],
    /// The output, NCHW. No other stage that runs meanwhile has the same strip and block.
    pub(super) output: Shared<'a, MaybeUninit<f32>>,
    pub(super) transform: PhantomData<T>,
}

impl<T: Linear<A, M>, const A: usize, const M: usize> FromTiles<'_, T, A, M> {
    /// Transforms the tiles, whose columns lie `step` apart, to pixels, and writes them.
    #[allow(unsafe_code, reason = "indices whose largest values are asserted before the loops")]
    #[inline(always)]
    fn transform<L: Lanes, const HALVES: usize>(self, step: usize) {
        let width = self.grid.strip_width(M);
        let (segment, tiles) = (self.grid.segment, self.grid.strip_tiles());
        assert!(width == segment * M * step && tiles == segment * step);
        assert!(M <= A && self.pixels.len() >= A * width);
        let planes = &self.products[self.first..][..(A * A - 1) * self.stride + tiles];
        for (i, pixels) in self.pixels.chunks_exact_mut(width).take(A).enumerate() {
            for phase in 0..step {
                for tile in 0..segment {
                    let (corner, from) = (tile * M * step + phase, phase * segment + tile);
                    for half in 0..HALVES {
                        let mut row = [L::zero(); A];
                        for j in 0..A {
                            // SAFETY: `from` is less than the strip's tiles, which are there in the last plane.
                            row[j] = unsafe { load_at(planes, (i * A + j) * self.stride + from, half) };
                        }
                        let row = T::apply(row);
                        for j in 0..M {
                            // SAFETY: the largest index is width − 1, as asserted above.
                            unsafe { store_at(pixels, corner + j * step, half, row[j]) };
                        }
                    }
                }
            }
        }
        // SAFETY: A rows of `width` pixels are there.
        unsafe { down::<L, T, A, M, HALVES>(self.pixels, width) };
        if let Some(bias) = self.bias {
            let bias = &bias[(self.block * CHANNELS).min(bias.len())..];
            for half in 0..HALVES {
                let bias = L::load_some(&bias[(half * WIDTH).min(bias.len())..]);
                for pixel in &mut self.pixels[..M * width] {
                    pixel.store(half, pixel.load::<L>(half).add(bias));
                }
            }
        }
        self.scatter::<L>(width);
    }

    /// Writes M rows of `width` pixels to the output.
    #[inline(always)]
    fn scatter<L: Lanes>(&self, width: usize) {
        let [height, map_width] = self.layer.out_size;
        let len = map_width.saturating_sub(self.strip.left).min(width);
        let first_channel = self.block * CHANNELS;
        let plane = height * map_width;
        let channels = (self.layer.out_channels - first_channel).min(CHANNELS);
        for row in 0..M {
            let y = self.strip.top + row * self.layer.dilation[0];
            if y >= height || len == 0 {
                break;
            }
            let pixels = &self.pixels[row * width..row * width + len];
            let first = self.strip.image * self.layer.out_channels + first_channel;
            let start = first * plane + y * map_width + self.strip.left;
            for half in 0..channels.div_ceil(WIDTH) {
                let lanes = WIDTH.min(channels - half * WIDTH);
                let output = self.output.after(start + half * WIDTH * plane);
                #[allow(unsafe_code, reason = "tasks write disjoint parts of the output")]
                // SAFETY: strips do not overlap and this (strip, block) is run by one task only; the channels of a
                // block are different planes.
                unsafe {
                    separate::<L>(pixels, half, output, plane, lanes);
                }
            }
        }
    }
}

impl<T: Linear<A, M>, const A: usize, const M: usize> Stage for FromTiles<'_, T, A, M> {
    #[inline(always)]
    fn run<L: Lanes>(self) {
        match (halves(self.layer.out_channels - self.block * CHANNELS), self.layer.dilation[1]) {
            (1, 1) => self.transform::<L, 1>(1),
            (1, step) => self.transform::<L, 1>(step),
            (_, 1) => self.transform::<L, 2>(1),
            (_, step) => self.transform::<L, 2>(step),
        }
    }
}

/// Transforms the weights from some blocks of input channels to one block of output channels by G.
pub(super) struct Filters<'a, T, const A: usize> {
    pub(super) weight: &'a [f32],
    pub(super) layer: &'a Layer,
    pub(super) block: usize,
    pub(super) in_blocks: Range<usize>,
    /// The result: plane (i, j) starts at (i·A + j)·`stride` and has a block of output channels per input channel,
    /// zeros for those that fill up the last block.
    pub(super) transformed: &'a mut [Block],
    pub(super) stride: usize,
    pub(super) transform: PhantomData<T>,
}

impl<T, const A: usize> Filters<'_, T, A> {
    /// The nine taps of the filters from one input channel to eight output channels of the block; asks for those of a
    /// later input channel, as each lies far from the one before it in one order of the weights or the other.
    #[inline(always)]
    fn taps<L: Lanes>(&self, in_channel: usize, half: usize) -> [L; 9] {
        /// Input channels from those that are read to those that are asked for.
        const AHEAD: usize = 8;
        let (channels, first) = (self.layer.in_channels, self.block * CHANNELS + half * WIDTH);
        let outs = if in_channel < channels { self.layer.out_channels.saturating_sub(first) } else { 0 };
        // From one output channel to the next.
        let (start, step) = if self.layer.reversed {
            (in_channel * self.layer.out_channels + first, 1)
        } else {
            (first * channels + in_channel, channels)
        };
        let weight = self.weight.as_chunks::<9>().0;
        let mut filters = [&[0.0; 9]; WIDTH];
        if outs >= WIDTH {
            // A fixed count, so that the addresses stay in registers.
            for lane in 0..WIDTH {
                filters[lane] = &weight[start + lane * step];
            }
            let later = start + if self.layer.reversed { AHEAD * self.layer.out_channels } else { AHEAD };
            for lane in 0..WIDTH {
                if let Some(later) = weight.get(later + lane * step) {
                    prefetch(&later[..1]);
                }
            }
        } else {
            for lane in 0..outs {
                filters[lane] = &weight[start + lane * step];
            }
        }
        let mut square = [&[0.0; WIDTH]; WIDTH];
        let mut last = [0.0; WIDTH];
        for lane in 0..WIDTH {
            square[lane] = &filters[lane].as_chunks().0[0];
            last[lane] = filters[lane][WIDTH];
        }
        let square = L::load_columns(square);
        let [t0, t1, t2, t3, t4, t5, t6, t7] = square;
        let t8 = L::load(&last);
        if self.layer.reversed { [t8, t7, t6, t5, t4, t3, t2, t1, t0] } else { [t0, t1, t2, t3, t4, t5, t6, t7, t8] }
    }
}

#[allow(unsafe_code, reason = "indices whose largest values are asserted before the loops")]
impl<T: Linear<3, A>, const A: usize> Stage for Filters<'_, T, A> {
    #[inline(always)]
    fn run<L: Lanes>(self) {
        /// Input channels whose filters are read for one half of the output channels before the other: their lines
        /// stay in the first-level cache, and filters a power of two apart do not push each other out.
        const NEIGHBOURS: usize = 4;
        let first = self.in_blocks.start * CHANNELS;
        let count = self.in_blocks.len() * CHANNELS;
        assert!(self.transformed.len() >= (A * A - 1) * self.stride + count);
        for neighbours in (0..count).step_by(NEIGHBOURS) {
            for half in 0..2 {
                for channel in neighbours..neighbours + NEIGHBOURS {
                    let taps = self.taps::<L>(first + channel, half);
                    let mut columns = [[L::zero(); A]; 3];
                    for j in 0..3 {
                        columns[j] = T::apply([taps[j], taps[3 + j], taps[6 + j]]);
                    }
                    for i in 0..A {
                        let row = T::apply([columns[0][i], columns[1][i], columns[2][i]]);
                        for j in 0..A {
                            // SAFETY: `channel` is less than `count`, a multiple of the neighbours.
                            unsafe { store_at(self.transformed, (i * A + j) * self.stride + channel, half, row[j]) };
                        }
                    }
                }
            }
        }
    }
}

/// Transforms the sums of one block of output channels and some blocks of input channels by Gᵀ and writes them to the
/// gradient of the weights.
pub(super) struct FilterGradients<'a, T, const A: usize> {
    /// Plane (i, j) starts at (i·A + j)·`stride` and has 16 output channels of `in_blocks` blocks.
    pub(super) sums: &'a [Block],
    pub(super) stride: usize,
    pub(super) layer: &'a Layer,
    pub(super) out_block: usize,
    pub(super) in_blocks: Range<usize>,
    /// [K,C,3,3]. No other stage that runs meanwhile has the same block of output and of input channels.
    pub(super) grad_weight: Shared<'a, f32>,
    pub(super) transform: PhantomData<T>,
}

impl<T: Linear<A, 3>, const A: usize> Stage for FilterGradients<'_, T, A> {
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let channels = self.layer.in_channels;
        let first_channel = self.in_blocks.start * CHANNELS;
        let count = channels.min(self.in_blocks.end * CHANNELS) - first_channel;
        let first_out = self.out_block * CHANNELS;
        for lane in 0..(self.layer.out_channels - first_out).min(CHANNELS) {
            let start = ((first_out + lane) * channels + first_channel) * 9;
            #[allow(unsafe_code, reason = "tasks write disjoint parts of the gradient")]
            // SAFETY: this (output channel, input channels) is written by one task only.
            let gradients = unsafe { self.grad_weight.part(start, count * 9) };
            for (group, gradients) in gradients.chunks_mut(WIDTH * 9).enumerate() {
                let (block, half) = (lane * self.in_blocks.len() + group / 2, group % 2);
                let mut columns = [[L::zero(); 3]; A];
                for j in 0..A {
                    let mut column = [L::zero(); A];
                    for i in 0..A {
                        column[i] = self.sums[(i * A + j) * self.stride + block].load(half);
                    }
                    columns[j] = T::apply(column);
                }
                let mut taps = [[0.0; WIDTH]; 9];
                for i in 0..3 {
                    let mut row = [L::zero(); A];
                    for j in 0..A {
                        row[j] = columns[j][i];
                    }
                    let row = T::apply(row);
                    for j in 0..3 {
                        row[j].store(&mut taps[3 * i + j]);
                    }
                }
                let [first @ .., last] = &taps;
                let columns = L::load_columns(first.each_ref());
                for (channel, filter) in gradients.as_chunks_mut::<9>().0.iter_mut().enumerate() {
                    let [first @ .., ninth] = filter;
                    columns[channel].store(first);
                    *ninth = last[channel];
                }
            }
        }
    }
}

/// Brings a row of each of `last` + 1 planes, at most 8, into one half of blocks: their first elements lie `plane` apart
/// in `rows`, which ends with the last row. Lanes without a plane get the last one again.
#[inline(always)]
fn interleave<L: Lanes>(rows: &[f32], plane: usize, last: usize, pixels: &mut [Block], half: usize) {
    let len = pixels.len();
    assert!(last < WIDTH && rows.len() == last * plane + len);
    if len < WIDTH {
        let mut padded = [[0.0; WIDTH]; WIDTH];
        for lane in 0..=last {
            padded[lane][..len].copy_from_slice(&rows[lane * plane..][..len]);
        }
        let columns = L::load_columns(padded.each_ref());
        for (pixel, column) in pixels.iter_mut().zip(columns) {
            pixel.store(half, column);
        }
        return;
    }
    // Constants where they are so most often: the addresses of eight planes that are equally far apart stay in registers.
    #[allow(unsafe_code, reason = "bounds that are checked once for all groups")]
    // SAFETY: the row of the last plane ends with `rows`, as asserted above.
    unsafe {
        if last == WIDTH - 1 {
            interleave_rows::<L>(rows, |lane| lane * plane, pixels, half);
        } else {
            interleave_rows::<L>(rows, |lane| lane.min(last) * plane, pixels, half);
        }
    }
}

/// Brings rows that begin at `offset(lane)` into one half of at least eight blocks.
///
/// # Safety
/// Every row has as many elements as there are pixels.
#[allow(unsafe_code, reason = "bounds that the caller has checked once for all groups")]
#[inline(always)]
unsafe fn interleave_rows<L: Lanes>(rows: &[f32], offset: impl Fn(usize) -> usize, pixels: &mut [Block], half: usize) {
    let len = pixels.len();
    for next in (0..len).step_by(WIDTH) {
        // The last group of a long row overlaps the one before it.
        let x = next.min(len - WIDTH);
        let mut group = [&[0.0; WIDTH]; WIDTH];
        for lane in 0..WIDTH {
            // SAFETY: `x` is at most 8 less than the length of a row.
            group[lane] = unsafe { &*rows.as_ptr().add(offset(lane) + x).cast() };
        }
        let columns = L::load_columns(group);
        for i in 0..WIDTH {
            // SAFETY: as above, of the pixels.
            unsafe { store_at(pixels, x + i, half, columns[i]) };
        }
    }
}

/// The opposite of [`interleave`], for the first `lanes` lanes.
///
/// # Safety
/// Nobody else has these rows of `output`.
#[allow(unsafe_code, reason = "hands the caller's proof on to Shared::part")]
#[inline(always)]
unsafe fn separate<L: Lanes>(
    pixels: &[Block],
    half: usize,
    output: Shared<'_, MaybeUninit<f32>>,
    plane: usize,
    lanes: usize,
) {
    let len = pixels.len();
    // A group that overlaps the one before it is written after it.
    if lanes == WIDTH && len >= WIDTH {
        let start = output.pointer((WIDTH - 1) * plane + len);
        // Whole lines of four channels at a time: planes a power of two apart push each other's lines out of the cache.
        let line = if len >= 2 * WIDTH { 2 * WIDTH } else { WIDTH };
        for next in (0..len).step_by(line) {
            let x = next.min(len - line);
            for four in 0..2 {
                for x in (x..x + line).step_by(WIDTH) {
                    let mut rows = [&[0.0; 4]; WIDTH];
                    for i in 0..WIDTH {
                        rows[i] = &pixels[x + i].0.as_chunks().0[2 * half + four];
                    }
                    let columns = L::load_four_columns(rows);
                    for lane in 0..4 {
                        // SAFETY: `x` is at most 8 less than the length of a row, and all rows are inside of `output`; by
                        // the caller's contract they are nobody else's.
                        unsafe { columns[lane].write(&mut *start.add((4 * four + lane) * plane + x).cast()) };
                    }
                }
            }
        }
        return;
    }
    let mut rows: [&mut [MaybeUninit<f32>]; WIDTH] = Default::default();
    for lane in 0..lanes {
        // SAFETY: by the caller's contract.
        rows[lane] = unsafe { output.part(lane * plane, len) };
    }
    for next in (0..len).step_by(WIDTH) {
        let x = next.min(len.saturating_sub(WIDTH));
        let mut square = [&[0.0; WIDTH]; WIDTH];
        for (square, pixel) in square.iter_mut().zip(&pixels[x..]) {
            *square = &pixel.0.as_chunks().0[half];
        }
        let columns = L::load_columns(square);
        for (row, column) in rows[..lanes].iter_mut().zip(columns) {
            column.write_some(&mut row[x..]);
        }
    }
}

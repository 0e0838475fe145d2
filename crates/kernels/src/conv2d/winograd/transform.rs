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

/// One slice of tiles for each of the A×A values that a transformed tile has.
pub(super) type Planes<'a, const A: usize> = [[&'a mut [Block]; A]; A];

/// The planes' parts `first..first + tiles`, where plane (i, j) starts at (i·A + j)·`stride`.
///
/// # Safety
/// As [`Shared::part`]: nobody else holds these parts.
#[allow(unsafe_code, reason = "hands the caller's proof on to Shared::part")]
pub(super) unsafe fn planes<'a, const A: usize>(
    blocks: &Shared<'a, Block>,
    stride: usize,
    first: usize,
    tiles: usize,
) -> Planes<'a, A> {
    // SAFETY: by the caller's contract; the parts differ because the stride is larger than the tiles of a plane.
    std::array::from_fn(|i| std::array::from_fn(|j| unsafe { blocks.part((i * A + j) * stride + first, tiles) }))
}

/// An NCHW tensor.
#[derive(Clone, Copy)]
pub(super) struct Maps<'a> {
    pub(super) data: &'a [f32],
    pub(super) channels: usize,
    pub(super) size: [usize; 2],
}

impl<'a> Maps<'a> {
    /// Columns `columns` of row `y` in the planes of a channel block; nothing where there is no such channel.
    fn rows(&self, image: usize, block: usize, y: usize, columns: Range<usize>) -> [&'a [f32]; CHANNELS] {
        std::array::from_fn(|lane| {
            let channel = block * CHANNELS + lane;
            if channel < self.channels {
                let start = ((image * self.channels + channel) * self.size[0] + y) * self.size[1];
                &self.data[start + columns.start..start + columns.end]
            } else {
                &[]
            }
        })
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
    /// The result: `grid.strip_tiles()` tiles.
    pub(super) planes: Planes<'a, A>,
    pub(super) transform: PhantomData<T>,
}

impl<T: Linear<IN, A>, const IN: usize, const A: usize> ToTiles<'_, T, IN, A> {
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
                    let rows = self.maps.rows(self.strip.image, self.block, y, from..from + end - start);
                    interleave::<L>(&rows, &mut pixels[start..end]);
                }
                _ => pixels.fill(Block::ZERO),
            }
        }
    }
}

#[allow(unsafe_code, reason = "indices whose largest values are asserted before the loops")]
impl<T: Linear<IN, A>, const IN: usize, const A: usize> Stage for ToTiles<'_, T, IN, A> {
    #[inline(always)]
    fn run<L: Lanes>(mut self) {
        let step = self.dilation[1];
        let width = self.grid.strip_width(IN);
        assert!(IN <= A && self.pixels.len() >= A * width);
        assert!(self.planes.as_flattened().iter().all(|plane| plane.len() >= self.grid.strip_tiles()));
        self.gather::<L>(width);
        let halves = halves(self.maps.channels - self.block * CHANNELS);
        // SAFETY: IN and A rows of `width` pixels are there.
        unsafe { down::<L, T, IN, A>(self.pixels, width, halves) };
        for (i, planes) in self.planes.iter_mut().enumerate() {
            for phase in 0..step {
                for tile in 0..self.grid.segment {
                    let corner = i * width + tile * self.tile * step + phase;
                    let to = phase * self.grid.segment + tile;
                    for half in 0..halves {
                        let mut row = [L::zero(); IN];
                        for j in 0..IN {
                            // SAFETY: the largest index is A · width − 1, by the definition of `strip_width`.
                            row[j] = unsafe { load_at(self.pixels, corner + j * step, half) };
                        }
                        let row = T::apply(row);
                        for j in 0..A {
                            // SAFETY: `to` is less than the strip's tiles, and the planes have as many.
                            unsafe { store_at(planes[j], to, half, row[j]) };
                        }
                    }
                }
            }
        }
    }
}

/// Transforms the columns of IN rows of `width` pixels, in place, to OUT rows.
///
/// # Safety
/// There are as many rows as the larger of IN and OUT.
#[allow(unsafe_code, reason = "hands the caller's proof on to the loads and stores")]
#[inline(always)]
unsafe fn down<L: Lanes, T: Linear<IN, OUT>, const IN: usize, const OUT: usize>(
    pixels: &mut [Block],
    width: usize,
    halves: usize,
) {
    for x in 0..width {
        for half in 0..halves {
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
    #[inline(always)]
    fn scatter<L: Lanes>(&self, width: usize) {
        let [height, map_width] = self.layer.out_size;
        let len = map_width.saturating_sub(self.strip.left).min(width);
        let first_channel = self.block * CHANNELS;
        for row in 0..M {
            let y = self.strip.top + row * self.layer.dilation[0];
            if y >= height || len == 0 {
                break;
            }
            let mut rows: [&mut [MaybeUninit<f32>]; CHANNELS] = std::array::from_fn(|lane| {
                let channel = first_channel + lane;
                if channel < self.layer.out_channels {
                    let plane = self.strip.image * self.layer.out_channels + channel;
                    let start = (plane * height + y) * map_width + self.strip.left;
                    #[allow(unsafe_code, reason = "tasks write disjoint parts of the output")]
                    // SAFETY: strips do not overlap and this (strip, block) is run by one task only; the channels
                    // of a block are different planes.
                    unsafe {
                        self.output.part(start, len)
                    }
                } else {
                    Default::default()
                }
            });
            separate::<L>(&self.pixels[row * width..row * width + len], &mut rows);
        }
    }
}

#[allow(unsafe_code, reason = "indices whose largest values are asserted before the loops")]
impl<T: Linear<A, M>, const A: usize, const M: usize> Stage for FromTiles<'_, T, A, M> {
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let step = self.layer.dilation[1];
        let width = self.grid.strip_width(M);
        let halves = halves(self.layer.out_channels - self.block * CHANNELS);
        assert!(M <= A && self.pixels.len() >= A * width);
        assert!(self.products.len() >= (A * A - 1) * self.stride + self.first + self.grid.strip_tiles());
        for i in 0..A {
            for phase in 0..step {
                for tile in 0..self.grid.segment {
                    let corner = i * width + tile * M * step + phase;
                    let from = self.first + phase * self.grid.segment + tile;
                    for half in 0..halves {
                        let mut row = [L::zero(); A];
                        for j in 0..A {
                            // SAFETY: `from` is less than `first` + the strip's tiles.
                            row[j] = unsafe { load_at(self.products, (i * A + j) * self.stride + from, half) };
                        }
                        let row = T::apply(row);
                        for j in 0..M {
                            // SAFETY: the largest index is A · width − 1, by the definition of `strip_width`.
                            unsafe { store_at(self.pixels, corner + j * step, half, row[j]) };
                        }
                    }
                }
            }
        }
        // SAFETY: A rows of `width` pixels are there.
        unsafe { down::<L, T, A, M>(self.pixels, width, halves) };
        if let Some(bias) = self.bias {
            let bias = &bias[(self.block * CHANNELS).min(bias.len())..];
            for half in 0..halves {
                let bias = L::load_some(&bias[(half * WIDTH).min(bias.len())..]);
                for pixel in &mut self.pixels[..M * width] {
                    pixel.store(half, pixel.load::<L>(half).add(bias));
                }
            }
        }
        self.scatter::<L>(width);
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
    /// The nine taps of the filters from one input channel to eight output channels of the block.
    #[inline(always)]
    fn taps<L: Lanes>(&self, in_channel: usize, half: usize) -> [L; 9] {
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
                for (channel, filter) in gradients.chunks_exact_mut(9).enumerate() {
                    for tap in 0..9 {
                        filter[tap] = taps[tap][channel];
                    }
                }
            }
        }
    }
}

/// Brings equally long rows of 16 planes into blocks. A plane that is not there has an empty row and gives zeros; half
/// a block without any is left as it is.
#[inline(always)]
fn interleave<L: Lanes>(rows: &[&[f32]; CHANNELS], pixels: &mut [Block]) {
    static ZEROS: [f32; WIDTH] = [0.0; WIDTH];
    for (half, rows) in rows.as_chunks::<WIDTH>().0.iter().enumerate() {
        if rows[0].is_empty() {
            continue;
        }
        let whole = pixels.len() >= WIDTH && rows.iter().all(|row| row.len() == pixels.len() || row.is_empty());
        for next in (0..pixels.len()).step_by(WIDTH) {
            // The last group of a long row overlaps the one before it.
            let x = next.min(pixels.len().saturating_sub(WIDTH));
            if whole {
                #[allow(unsafe_code, reason = "bounds that are checked once for all groups")]
                // SAFETY: `x` is at most 8 less than the length of each row that is not empty, and of the pixels.
                unsafe {
                    let mut group = [&ZEROS; WIDTH];
                    for lane in 0..WIDTH {
                        if !rows[lane].is_empty() {
                            group[lane] = &*rows[lane].as_ptr().add(x).cast();
                        }
                    }
                    let columns = L::load_columns(group);
                    for i in 0..WIDTH {
                        store_at(pixels, x + i, half, columns[i]);
                    }
                }
                continue;
            }
            let mut padded = [[0.0; WIDTH]; WIDTH];
            for (padded, row) in padded.iter_mut().zip(rows) {
                for (padded, value) in padded.iter_mut().zip(row.get(x..).unwrap_or(&[])) {
                    *padded = *value;
                }
            }
            let columns = L::load_columns(padded.each_ref());
            for (pixel, column) in pixels[x..].iter_mut().zip(columns) {
                pixel.store(half, column);
            }
        }
    }
}

/// The opposite of [`interleave`]: planes with an empty row get nothing.
#[inline(always)]
fn separate<L: Lanes>(pixels: &[Block], rows: &mut [&mut [MaybeUninit<f32>]; CHANNELS]) {
    for (half, rows) in rows.as_chunks_mut::<WIDTH>().0.iter_mut().enumerate() {
        if rows[0].is_empty() {
            continue;
        }
        let whole = pixels.len() >= WIDTH && rows.iter().all(|row| row.len() == pixels.len() || row.is_empty());
        for next in (0..pixels.len()).step_by(WIDTH) {
            let x = next.min(pixels.len().saturating_sub(WIDTH));
            let group = &pixels[x..];
            if whole {
                let mut square = [&[0.0; WIDTH]; WIDTH];
                for i in 0..WIDTH {
                    square[i] = &group[i].0.as_chunks().0[half];
                }
                let columns = L::load_columns(square);
                for lane in 0..WIDTH {
                    if rows[lane].is_empty() {
                        continue;
                    }
                    #[allow(unsafe_code, reason = "bounds that are checked once for all groups")]
                    // SAFETY: `x` is at most 8 less than the length of each row that is not empty.
                    unsafe {
                        columns[lane].write(&mut *rows[lane].as_mut_ptr().add(x).cast());
                    }
                }
                continue;
            }
            let group = std::array::from_fn(|i| group.get(i).unwrap_or(&Block::ZERO));
            let columns = L::load_columns(group.map(|pixel| &pixel.0.as_chunks().0[half]));
            for (row, column) in rows.iter_mut().zip(columns) {
                if let Some(row) = row.get_mut(x..) {
                    column.write_some(row);
                }
            }
        }
    }
}

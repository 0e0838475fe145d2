//! The forward pass, and the backward pass to the input, which is the forward pass of another layer.
//!
//! Two ways to share out the work. *By tiles*: all weights are transformed first, mostly by each thread for itself, then
//! each task takes some strips through the three steps; the transformed tiles stay in its cache. *By filters*, for layers
//! with so many weights that their transforms would not stay in any cache: the tiles are transformed first, then some
//! blocks of 16 output channels at a time are taken through, their weights transformed on the way; where there are many
//! tiles, each thread does so with some of its own, else the threads take different output channels of all tiles.
//! Either way the work memory is bounded, and a sum over input channels is made in one task, in order.

use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Range;

use super::Settings;
use super::blocks::{Block, CHANNELS, channels};
use super::grid::{Grid, Layer};
use super::points::Variant;
use super::product::TileProducts;
use super::scratch::Scratch;
use super::transform::{Filters, FromTiles, Maps, Planes, ToTiles};
use crate::parallel::{Prepared, Shared, for_each_task_if};

/// Blocks between two planes beyond what they hold: planes a power of two apart would fall on the same cache lines.
pub(super) const SKEW: usize = 1;
/// Blocks of output channels that read the same tiles together, at most.
const GROUP: usize = 4;

/// One pass over a layer.
struct Pass<'a, V, const M: usize, const IN: usize, const A: usize> {
    layer: &'a Layer,
    grid: Grid,
    settings: Settings,
    x: &'a [f32],
    weight: &'a [f32],
    bias: Option<&'a [f32]>,
    y: Shared<'a, MaybeUninit<f32>>,
    variant: PhantomData<V>,
}

/// Writes the convolution of `x` to all of `y`.
pub(super) fn run<V: Variant<M, IN, A>, const M: usize, const IN: usize, const A: usize>(
    settings: Settings,
    layer: &Layer,
    x: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    y: &mut [MaybeUninit<f32>],
) {
    let pass = Pass::<V, M, IN, A> {
        layer,
        grid: Grid::new(layer, M),
        settings,
        x,
        weight,
        bias,
        y: Shared::new(y),
        variant: PhantomData,
    };
    let (in_blocks, out_blocks) = (layer.in_blocks(), layer.out_blocks());
    let tile_blocks = A * A * in_blocks * pass.grid.strips * pass.grid.strip_tiles();
    let filter_blocks = A * A * in_blocks * CHANNELS * out_blocks;
    let limits = settings.limits;
    let mostly_weights = filter_blocks > limits.many_filter_blocks && tile_blocks <= limits.few_tile_blocks;
    if out_blocks >= 4 && (mostly_weights || filter_blocks > limits.held_filter_blocks) {
        pass.by_filters();
    } else {
        pass.by_tiles();
    }
}

impl<V: Variant<M, IN, A>, const M: usize, const IN: usize, const A: usize> Pass<'_, V, M, IN, A> {
    fn by_tiles(&self) {
        let (in_blocks, out_blocks) = (self.layer.in_blocks(), self.layer.out_blocks());
        let group = GROUP.min(out_blocks);
        let groups = out_blocks.div_ceil(group);
        let of_group = |index: usize| index * group..((index + 1) * group).min(out_blocks);
        let filters_stride = group * in_blocks * CHANNELS + SKEW;
        let filters_len = A * A * filters_stride;
        let transform = |parallel| {
            let mut filters = Scratch::take(groups * filters_len);
            let shared = Shared::new(&mut filters);
            for_each_task_if(parallel, groups, |index| {
                #[allow(unsafe_code, reason = "tasks write disjoint parts")]
                // SAFETY: each group of output channels has its own part.
                let transformed = unsafe { shared.part(index * filters_len, filters_len) };
                self.transform_filters(of_group(index), 0..in_blocks, filters_stride, transformed);
            });
            filters
        };
        let transformed = Prepared {
            bytes: size_of::<Block>() * groups * filters_len,
            uses: self.grid.strips * self.grid.strip_tiles(),
        };
        // So many tiles per task that V and M stay in the second-level cache, or little more: that each task reads all the
        // weights costs less. Four tasks at least, and an even number of nearly equal ones.
        let wanted = (64 / in_blocks).max(16);
        let (strips, strip_tiles) = (self.grid.strips, self.grid.strip_tiles());
        let tasks = (strips * strip_tiles).div_ceil(wanted).max(4).next_multiple_of(2).min(strips);
        let tiles_stride = strips.div_ceil(tasks) * strip_tiles;
        let values_stride = in_blocks * tiles_stride + SKEW;
        let products_stride = group * tiles_stride + SKEW;
        transformed.for_each_task(tasks, transform, |filters, task| {
            let strips = task * strips / tasks..(task + 1) * strips / tasks;
            let mut values = Scratch::take(A * A * values_stride);
            let shared = Shared::new(&mut values);
            for (place, strip) in strips.clone().enumerate() {
                for block in 0..in_blocks {
                    self.transform_strip(strip, block, &shared, values_stride, tiles_stride, place);
                }
            }
            let mut products = Scratch::take(A * A * products_stride);
            for (index, filters) in filters.chunks_exact(filters_len).enumerate() {
                let blocks = of_group(index);
                self.settings.instructions.run_products(TileProducts {
                    planes: A * A,
                    values: &values,
                    values_stride,
                    tiles_stride,
                    tiles: strips.len() * strip_tiles,
                    filters,
                    filters_stride,
                    in_channels: self.layer.in_channels,
                    out_channels: channels(&blocks, self.layer.out_channels),
                    products: &mut products,
                    products_stride,
                    add: false,
                });
                self.finish(strips.clone(), blocks, &products, products_stride, tiles_stride);
            }
        });
    }

    fn by_filters(&self) {
        let (in_blocks, out_blocks) = (self.layer.in_blocks(), self.layer.out_blocks());
        let strip_tiles = self.grid.strip_tiles();
        let limits = self.settings.limits;
        // Many tiles at a time, because the weights are transformed each time; each thread has its own where their transforms
        // stay in a cache and are much beside those of all the weights.
        let threads = rayon::current_num_threads();
        let rounds = |strips: usize| (limits.round_tiles / strip_tiles).clamp(1, strips);
        let own = rounds(self.grid.strips.div_ceil(threads));
        let tiles = self.grid.strips * strip_tiles;
        let for_each_thread = size_of::<Block>() * A * A * in_blocks * tiles <= Prepared::MOST_BYTES;
        let least = if for_each_thread { limits.own_round_tiles } else { limits.least_own_round_tiles };
        let apart = tiles >= least * threads && A * A * in_blocks * own * strip_tiles <= limits.own_round_blocks;
        let at_once = if apart { own } else { rounds(self.grid.strips) };
        let tiles_stride = at_once * strip_tiles;
        let values_stride = in_blocks * tiles_stride + SKEW;
        // Weights are transformed part by part, so that they are still in the cache when they are multiplied.
        // Eight tasks, where each then has two blocks or more.
        let group = (out_blocks / 8).clamp(2, GROUP).min(out_blocks);
        let products_stride = group * tiles_stride + SKEW;
        let part = limits.part_blocks.min(in_blocks);
        let filters_stride = group * part * CHANNELS + SKEW;
        for_each_task_if(apart, self.grid.strips.div_ceil(at_once), |round| {
            let first = round * at_once;
            let strips = first..(first + at_once).min(self.grid.strips);
            let transform = |parallel| {
                let mut values = Scratch::take(A * A * values_stride);
                let shared = Shared::new(&mut values);
                for_each_task_if(parallel, strips.len() * in_blocks, |task| {
                    let (place, block) = (task / in_blocks, task % in_blocks);
                    self.transform_strip(first + place, block, &shared, values_stride, tiles_stride, place);
                });
                values
            };
            let convolve = |values: &Scratch, task: usize| {
                let blocks = task * group..((task + 1) * group).min(out_blocks);
                let mut filters = Scratch::take(A * A * filters_stride);
                let mut products = Scratch::take(A * A * products_stride);
                for first in (0..in_blocks).step_by(part) {
                    let in_blocks = first..(first + part).min(in_blocks);
                    self.transform_filters(blocks.clone(), in_blocks.clone(), filters_stride, &mut filters);
                    self.settings.instructions.run_products(TileProducts {
                        planes: A * A,
                        values: &values[first * tiles_stride..],
                        values_stride,
                        tiles_stride,
                        tiles: strips.len() * strip_tiles,
                        filters: &filters,
                        filters_stride,
                        in_channels: channels(&in_blocks, self.layer.in_channels),
                        out_channels: channels(&blocks, self.layer.out_channels),
                        products: &mut products,
                        products_stride,
                        add: first > 0,
                    });
                }
                self.finish(strips.clone(), blocks, &products, products_stride, tiles_stride);
            };
            let tasks = out_blocks.div_ceil(group);
            if apart {
                let values = transform(false);
                (0..tasks).for_each(|task| convolve(&values, task));
            } else {
                let bytes = size_of::<Block>() * A * A * values_stride;
                Prepared { bytes, uses: self.layer.out_channels }.for_each_task(tasks, transform, convolve);
            }
        });
    }

    /// U from some blocks of input channels to some blocks of output channels: per plane (`stride`) blocks of output
    /// channels.
    fn transform_filters(&self, blocks: Range<usize>, in_blocks: Range<usize>, stride: usize, filters: &mut [Block]) {
        for (index, block) in blocks.enumerate() {
            self.settings.instructions.run(Filters::<V::Filter, A> {
                weight: self.weight,
                layer: self.layer,
                block,
                in_blocks: in_blocks.clone(),
                transformed: &mut filters[index * in_blocks.len() * CHANNELS..],
                stride,
                transform: PhantomData,
            });
        }
    }

    /// V of one strip and one block of input channels; the strip is number `place` of those in `values`. No two calls
    /// that run at once share (place, block).
    fn transform_strip(
        &self,
        strip: usize,
        block: usize,
        values: &Shared<'_, Block>,
        values_stride: usize,
        tiles_stride: usize,
        place: usize,
    ) {
        let mut pixels = Scratch::take(A * self.grid.strip_width(IN));
        // Each (place, block) has its own part of each plane.
        let first = block * tiles_stride + place * self.grid.strip_tiles();
        self.settings.instructions.run(ToTiles::<V::Input, IN, A> {
            maps: Maps { data: self.x, channels: self.layer.in_channels, size: self.layer.in_size },
            padding: self.layer.padding,
            dilation: self.layer.dilation,
            tile: M,
            grid: &self.grid,
            strip: self.grid.strip(strip),
            block,
            pixels: &mut pixels,
            planes: Planes { blocks: *values, stride: values_stride, first },
            transform: PhantomData,
        });
    }

    /// The outputs of some strips and blocks of output channels, whose products are given: per plane (`stride`) blocks
    /// (`tiles_stride`) of tiles. No two calls that run at once share a strip and a block.
    fn finish(
        &self,
        strips: Range<usize>,
        blocks: Range<usize>,
        products: &[Block],
        stride: usize,
        tiles_stride: usize,
    ) {
        let mut pixels = Scratch::take(A * self.grid.strip_width(M));
        for (index, block) in blocks.enumerate() {
            for (place, strip) in strips.clone().enumerate() {
                self.settings.instructions.run(FromTiles::<V::Output, A, M> {
                    products,
                    stride,
                    first: index * tiles_stride + place * self.grid.strip_tiles(),
                    layer: self.layer,
                    grid: &self.grid,
                    strip: self.grid.strip(strip),
                    block,
                    bias: self.bias,
                    pixels: &mut pixels,
                    output: self.y,
                    transform: PhantomData,
                });
            }
        }
    }
}

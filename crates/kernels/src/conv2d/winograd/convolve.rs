//! The forward pass, and the backward pass to the input, which is the forward pass of another layer.
//!
//! Two ways to share out the work. *By tiles*: all weights are transformed first, then each task takes some strips
//! through the three steps; the transformed tiles stay in its cache. *By filters*: the tiles are transformed first,
//! then each task takes a block of 16 output channels through, transforming its weights on the way; for layers with
//! so many weights that their transforms would not stay in any cache. Either way the work memory is bounded, and a sum
//! over input channels is made in one task, in order.

use std::marker::PhantomData;
use std::ops::Range;

use super::Settings;
use super::grid::{Grid, Layer};
use super::lanes::{Block, CHANNELS};
use super::points::Variant;
use super::product::TileProducts;
use super::scratch::Scratch;
use super::transform::{Filters, FromTiles, Maps, ToTiles, planes};
use crate::parallel::{Shared, for_each_task};

/// Blocks between two planes beyond what they hold: planes a power of two apart would fall on the same cache lines.
pub(super) const SKEW: usize = 1;
/// Blocks of output channels that are multiplied together, at most.
pub(super) const GROUP: usize = 4;

/// One pass over a layer.
struct Pass<'a, V, const M: usize, const A: usize> {
    layer: &'a Layer,
    grid: Grid,
    settings: Settings,
    x: &'a [f32],
    weight: &'a [f32],
    y: Shared<'a, f32>,
    /// Blocks per plane of the transformed weights of a block of output channels.
    filters_stride: usize,
    variant: PhantomData<V>,
}

/// Overwrites `y` with the convolution of `x`.
pub(super) fn run<V: Variant<M, A>, const M: usize, const A: usize>(
    settings: Settings,
    layer: &Layer,
    x: &[f32],
    weight: &[f32],
    y: &mut [f32],
) {
    let pass = Pass::<V, M, A> {
        layer,
        grid: Grid::new(layer, M),
        settings,
        x,
        weight,
        y: Shared::new(y),
        filters_stride: layer.in_blocks() * CHANNELS + SKEW,
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

impl<V: Variant<M, A>, const M: usize, const A: usize> Pass<'_, V, M, A> {
    fn by_tiles(&self) {
        let (in_blocks, out_blocks) = (self.layer.in_blocks(), self.layer.out_blocks());
        let mut filters = Scratch::take(out_blocks * A * A * self.filters_stride);
        let shared = Shared::new(&mut filters);
        for_each_task(out_blocks, |block| {
            let len = A * A * self.filters_stride;
            #[allow(unsafe_code, reason = "tasks write disjoint parts")]
            // SAFETY: each block of output channels has its own part.
            let transformed = unsafe { shared.part(block * len, len) };
            self.transform_filters(block, transformed);
        });
        let filters = &filters[..];

        // Many channels: more tiles per task, because each task reads all the weights. Four tasks at least.
        let wanted = if in_blocks > 8 { 96 } else { 48 };
        let per_task = (wanted / self.grid.strip_tiles()).clamp(1, self.grid.strips.div_ceil(4));
        for_each_task(self.grid.strips.div_ceil(per_task), |task| {
            let first = task * per_task;
            let strips = first..(first + per_task).min(self.grid.strips);
            let tiles_stride = per_task * self.grid.strip_tiles();
            let values_stride = in_blocks * tiles_stride + SKEW;
            let mut values = Scratch::take(A * A * values_stride);
            let shared = Shared::new(&mut values);
            for strip in strips.clone() {
                for block in 0..in_blocks {
                    self.transform_strip(strip, block, &shared, values_stride, tiles_stride, strip - first);
                }
            }
            // Several blocks of output channels read V together where it does not fit into the cache.
            let group = (in_blocks / 4).clamp(1, GROUP);
            for (index, filters) in filters.chunks(group * A * A * self.filters_stride).enumerate() {
                self.finish(strips.clone(), index * group, &values, values_stride, tiles_stride, filters);
            }
        });
    }

    fn by_filters(&self) {
        let (in_blocks, out_blocks) = (self.layer.in_blocks(), self.layer.out_blocks());
        // Many tiles at a time, because the weights are transformed each time.
        let limits = self.settings.limits;
        let tiles = (limits.round_blocks / (A * A * in_blocks)).clamp(limits.round_tiles[0], limits.round_tiles[1]);
        let at_once = (tiles / self.grid.strip_tiles()).clamp(1, self.grid.strips);
        let tiles_stride = at_once * self.grid.strip_tiles();
        let values_stride = in_blocks * tiles_stride + SKEW;
        let mut values = Scratch::take(A * A * values_stride);
        for first in (0..self.grid.strips).step_by(at_once) {
            let strips = first..(first + at_once).min(self.grid.strips);
            let shared = Shared::new(&mut values);
            for_each_task(strips.len() * in_blocks, |task| {
                let (place, block) = (task / in_blocks, task % in_blocks);
                self.transform_strip(first + place, block, &shared, values_stride, tiles_stride, place);
            });
            let values = &values[..];
            let group = (out_blocks / 4).clamp(1, GROUP);
            for_each_task(out_blocks.div_ceil(group), |task| {
                let blocks = task * group..((task + 1) * group).min(out_blocks);
                let len = A * A * self.filters_stride;
                let mut filters = Scratch::take(blocks.len() * len);
                for (block, filters) in blocks.clone().zip(filters.chunks_exact_mut(len)) {
                    self.transform_filters(block, filters);
                }
                self.finish(strips.clone(), blocks.start, values, values_stride, tiles_stride, &filters);
            });
        }
    }

    /// U of one block of output channels.
    fn transform_filters(&self, block: usize, transformed: &mut [Block]) {
        self.settings.instructions.run(Filters::<V::Filter, A> {
            weight: self.weight,
            layer: self.layer,
            block,
            transformed,
            stride: self.filters_stride,
            transform: PhantomData,
        });
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
        let tiles = self.grid.strip_tiles();
        let mut pixels = Scratch::take(A * self.grid.strip_width(A));
        #[allow(unsafe_code, reason = "tasks write disjoint parts")]
        // SAFETY: each (place, block) has its own part of each plane.
        let planes = unsafe { planes(values, values_stride, block * tiles_stride + place * tiles, tiles) };
        self.settings.instructions.run(ToTiles::<V::Input, A, A> {
            maps: Maps { data: self.x, channels: self.layer.in_channels, size: self.layer.in_size },
            padding: self.layer.padding,
            dilation: self.layer.dilation,
            tile: M,
            grid: &self.grid,
            strip: self.grid.strip(strip),
            block,
            pixels: &mut pixels,
            planes,
            transform: PhantomData,
        });
    }

    /// M and the outputs of some strips and of the blocks of output channels from `first_block` on whose transformed
    /// weights come as `filters`. No two calls that run at once share a strip and a block.
    fn finish(
        &self,
        strips: Range<usize>,
        first_block: usize,
        values: &[Block],
        values_stride: usize,
        tiles_stride: usize,
        filters: &[Block],
    ) {
        let strip_tiles = self.grid.strip_tiles();
        let products_stride = tiles_stride + SKEW;
        let blocks = filters.len() / (A * A * self.filters_stride);
        let mut products = Scratch::take(blocks * A * A * products_stride);
        self.settings.instructions.run(TileProducts {
            planes: A * A,
            values,
            values_stride,
            tiles_stride,
            tiles: strips.len() * strip_tiles,
            filters,
            filters_stride: self.filters_stride,
            in_blocks: self.layer.in_blocks(),
            products: &mut products,
            products_stride,
        });
        let mut pixels = Scratch::take(M * self.grid.strip_width(M));
        for (index, products) in products.chunks_exact(A * A * products_stride).enumerate() {
            for (place, strip) in strips.clone().enumerate() {
                self.settings.instructions.run(FromTiles::<V::Output, A, M> {
                    products,
                    stride: products_stride,
                    first: place * strip_tiles,
                    layer: self.layer,
                    grid: &self.grid,
                    strip: self.grid.strip(strip),
                    block: first_block + index,
                    pixels: &mut pixels,
                    output: self.y,
                    transform: PhantomData,
                });
            }
        }
    }
}

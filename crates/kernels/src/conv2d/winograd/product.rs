//! The matrix products between the transforms, one for each of the A×A values of a transformed tile.
//!
//! Both read the layouts that the transforms write, so nothing is packed. Twelve vectors of sums stay in registers: six
//! rows of sixteen channels, or twelve rows of eight, as fewer sums would wait for each other. With AVX-512 twelve rows of
//! sixteen.

use super::blocks::{Block, CHANNELS, halves};
use crate::fresh::uninit;
use crate::lanes::{ProductStage, Vector};
use crate::prefetch::prefetch;

/// Bytes of V that stay in the second-level cache while several blocks of output channels pass over them.
const CACHED_BYTES: usize = 256 << 10;

/// Tiles that are added up before they join the sum: shorter chains of f32 additions lose fewer digits, and both factors
/// stay in the first-level cache.
const CHAIN: usize = 128;

/// Products M = V U of all tiles in `values` with the filters of some blocks of output channels.
pub(super) struct TileProducts<'a> {
    /// A×A.
    pub(super) planes: usize,
    /// V: per plane (`values_stride`) blocks of input channels (`tiles_stride`) of tiles.
    pub(super) values: &'a [Block],
    pub(super) values_stride: usize,
    pub(super) tiles_stride: usize,
    /// Tiles to compute, at most `tiles_stride`.
    pub(super) tiles: usize,
    /// U: per plane (`filters_stride`) blocks of output channels, with a block for each channel of the blocks of input
    /// channels.
    pub(super) filters: &'a [Block],
    pub(super) filters_stride: usize,
    /// Input channels, of as many blocks as they fill.
    pub(super) in_channels: usize,
    /// Output channels, as well.
    pub(super) out_channels: usize,
    /// M: per plane (`products_stride`) blocks of output channels (`tiles_stride`) of tiles.
    pub(super) products: &'a mut [Block],
    pub(super) products_stride: usize,
    /// Adds to the products instead of starting them.
    pub(super) add: bool,
}

impl ProductStage for TileProducts<'_> {
    #[inline(always)]
    fn run<V: Vector, H: Vector>(self) {
        // Whole rounds of twelve rows.
        let in_blocks = self.in_channels.div_ceil(CHANNELS);
        let cached = (CACHED_BYTES / size_of::<Block>() / in_blocks / 12).max(2) * 12;
        for plane in 0..self.planes {
            let values = &self.values[plane * self.values_stride..][..in_blocks * self.tiles_stride];
            for first in (0..self.tiles).step_by(cached) {
                let values = &values[first..];
                let tiles = cached.min(self.tiles - first);
                for block in 0..self.out_channels.div_ceil(CHANNELS) {
                    let filters = plane * self.filters_stride + block * in_blocks * CHANNELS;
                    let filters = &self.filters[filters..][..self.in_channels];
                    let products = plane * self.products_stride + block * self.tiles_stride + first;
                    let products = &mut self.products[products..][..tiles];
                    match halves(self.out_channels - block * CHANNELS) {
                        1 => tile_products::<H>(values, self.tiles_stride, filters, products, self.add),
                        _ => tile_products::<V>(values, self.tiles_stride, filters, products, self.add),
                    }
                }
            }
        }
    }
}

/// The products of one plane with one block of output channels, or the first half of one.
#[inline(always)]
fn tile_products<V: Vector>(
    values: &[Block],
    tiles_stride: usize,
    filters: &[Block],
    products: &mut [Block],
    add: bool,
) {
    let tiles = products.len();
    let mut tile = 0;
    while tile < tiles {
        let (values, products) = (&values[tile..], &mut products[tile..]);
        let rows = even_rows::<V>(tiles - tile);
        match rows {
            1 => tile_rows::<V, 1>(values, tiles_stride, filters, products, add),
            2 => tile_rows::<V, 2>(values, tiles_stride, filters, products, add),
            3 => tile_rows::<V, 3>(values, tiles_stride, filters, products, add),
            4 => tile_rows::<V, 4>(values, tiles_stride, filters, products, add),
            5 => tile_rows::<V, 5>(values, tiles_stride, filters, products, add),
            7 if V::SUMS > 6 => tile_rows::<V, 7>(values, tiles_stride, filters, products, add),
            8 if V::SUMS > 6 => tile_rows::<V, 8>(values, tiles_stride, filters, products, add),
            9 if V::SUMS > 6 => tile_rows::<V, 9>(values, tiles_stride, filters, products, add),
            10 if V::SUMS > 6 => tile_rows::<V, 10>(values, tiles_stride, filters, products, add),
            11 if V::SUMS > 6 => tile_rows::<V, 11>(values, tiles_stride, filters, products, add),
            12 if V::SUMS > 6 => tile_rows::<V, 12>(values, tiles_stride, filters, products, add),
            _ => tile_rows::<V, 6>(values, tiles_stride, filters, products, add),
        }
        tile += rows;
    }
}

/// How many of the rows that are left come next, so that none of the products is thin: 7 is 4 + 3, not 6 + 1.
#[inline(always)]
fn even_rows<V: Vector>(left: usize) -> usize {
    let most = V::SUMS.min(12);
    if left >= 2 * most { most } else { left.div_ceil(left.div_ceil(most)) }
}

/// `products[row] (+)= Σ values[row, channel] · filters[channel]` for ROWS tiles.
#[inline(always)]
fn tile_rows<V: Vector, const ROWS: usize>(
    values: &[Block],
    tiles_stride: usize,
    filters: &[Block],
    products: &mut [Block],
    add: bool,
) {
    let mut sums = [V::splat(0.0); ROWS];
    if add {
        for row in 0..ROWS {
            sums[row] = products[row].vector();
        }
    }
    for (values, filters) in values.chunks(tiles_stride).zip(filters.chunks(CHANNELS)) {
        let Some((values, next)) = values.split_first_chunk::<ROWS>() else { break };
        prefetch(&next[..ROWS.min(next.len())]);
        if let Some(filters) = filters.first_chunk::<CHANNELS>() {
            sums = add_channels(sums, values, filters);
        } else {
            sums = add_channels(sums, values, filters);
        }
    }
    for row in 0..ROWS {
        sums[row].write(uninit(&mut products[row].0));
    }
}

/// Adds the products with up to 16 input channels.
#[inline(always)]
fn add_channels<V: Vector, const ROWS: usize>(
    mut sums: [V; ROWS],
    values: &[Block; ROWS],
    filters: &[Block],
) -> [V; ROWS] {
    for channel in 0..filters.len().min(CHANNELS) {
        let filter: V = filters[channel].vector();
        for row in 0..ROWS {
            sums[row] = V::splat(values[row].0[channel]).mul_add(filter, sums[row]);
        }
    }
    sums
}

/// Sums over tiles: the outer products of some blocks of output channels with some blocks of input channels.
pub(super) struct FilterSums<'a> {
    /// A×A.
    pub(super) planes: usize,
    /// Per plane (`gradients_stride`) blocks of output channels (`tiles_stride`) of tiles.
    pub(super) gradients: &'a [Block],
    pub(super) gradients_stride: usize,
    /// Per plane (`values_stride`) blocks of input channels (`tiles_stride`) of tiles.
    pub(super) values: &'a [Block],
    pub(super) values_stride: usize,
    pub(super) tiles_stride: usize,
    pub(super) tiles: usize,
    /// Input channels, of as many blocks as they fill.
    pub(super) in_channels: usize,
    /// Output channels, as well.
    pub(super) out_channels: usize,
    /// Per plane (`sums_stride`) blocks of output channels, with 16 output channels of those blocks of input channels
    /// each.
    pub(super) sums: &'a mut [Block],
    pub(super) sums_stride: usize,
    /// Adds to the sums instead of starting them.
    pub(super) add: bool,
}

impl ProductStage for FilterSums<'_> {
    #[inline(always)]
    fn run<V: Vector, H: Vector>(self) {
        let in_blocks = self.in_channels.div_ceil(CHANNELS);
        let out_blocks = self.out_channels.div_ceil(CHANNELS);
        for plane in 0..self.planes {
            for first in (0..self.tiles).step_by(CHAIN) {
                let tiles = CHAIN.min(self.tiles - first);
                let add = self.add || first > 0;
                for in_block in 0..in_blocks {
                    let values = &self.values[plane * self.values_stride + first..];
                    let (values, next) = values[in_block * self.tiles_stride..].split_at(tiles);
                    // The tiles of the next block of input channels.
                    let next = next.get(self.tiles_stride - tiles..self.tiles_stride).unwrap_or(&[]);
                    let sums = &mut self.sums[plane * self.sums_stride..][..out_blocks * CHANNELS * in_blocks];
                    for (out_block, sums) in sums.chunks_exact_mut(CHANNELS * in_blocks).enumerate() {
                        let gradients = plane * self.gradients_stride + out_block * self.tiles_stride + first;
                        let gradients = &self.gradients[gradients..][..tiles];
                        let sums = &mut sums[in_block..];
                        let rows = CHANNELS.min(self.out_channels - out_block * CHANNELS);
                        let next = if out_block == 0 { next } else { &[] };
                        match halves(self.in_channels - in_block * CHANNELS) {
                            1 => filter_sums::<H>(gradients, values, next, sums, in_blocks, rows, add),
                            _ => filter_sums::<V>(gradients, values, next, sums, in_blocks, rows, add),
                        }
                    }
                }
            }
        }
    }
}

/// The sums of one plane for `rows` output channels of a block and one block of input channels, or half of one.
#[inline(always)]
fn filter_sums<V: Vector>(
    gradients: &[Block],
    values: &[Block],
    next: &[Block],
    sums: &mut [Block],
    stride: usize,
    rows: usize,
    add: bool,
) {
    let mut row = 0;
    while row < rows {
        row += match rows - row {
            16.. if V::SUMS >= 16 => filter_rows::<V, 16>(gradients, values, next, sums, stride, row, add),
            12 if V::SUMS >= 12 => filter_rows::<V, 12>(gradients, values, next, sums, stride, row, add),
            8 | 13.. if V::SUMS >= 8 => filter_rows::<V, 8>(gradients, values, next, sums, stride, row, add),
            1 => filter_rows::<V, 1>(gradients, values, next, sums, stride, row, add),
            2 => filter_rows::<V, 2>(gradients, values, next, sums, stride, row, add),
            3 => filter_rows::<V, 3>(gradients, values, next, sums, stride, row, add),
            4 | 7 | 8 => filter_rows::<V, 4>(gradients, values, next, sums, stride, row, add),
            5 | 9 | 10 => filter_rows::<V, 5>(gradients, values, next, sums, stride, row, add),
            _ => filter_rows::<V, 6>(gradients, values, next, sums, stride, row, add),
        };
    }
}

/// `sums[row] (+)= Σ gradients[tile, row] · values[tile]` for ROWS output channels from `first` on; returns ROWS.
#[inline(always)]
fn filter_rows<V: Vector, const ROWS: usize>(
    gradients: &[Block],
    values: &[Block],
    next: &[Block],
    sums: &mut [Block],
    stride: usize,
    first: usize,
    add: bool,
) -> usize {
    let mut totals = [V::splat(0.0); ROWS];
    for (tile, (gradients, values)) in gradients.iter().zip(values).enumerate() {
        let Some(gradients) = gradients.0[first..].first_chunk::<ROWS>() else { break };
        if let Some(next) = next.get(tile) {
            prefetch(&next.0);
        }
        let value: V = values.vector();
        for row in 0..ROWS {
            totals[row] = V::splat(gradients[row]).mul_add(value, totals[row]);
        }
    }
    for row in 0..ROWS {
        let sum = &mut sums[(first + row) * stride];
        let total = if add { sum.vector::<V>().add(totals[row]) } else { totals[row] };
        total.write(uninit(&mut sum.0));
    }
    ROWS
}

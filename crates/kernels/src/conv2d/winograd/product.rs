//! The matrix products between the transforms, one for each of the A×A values of a transformed tile.
//!
//! Both read the layouts that the transforms write, so nothing is packed. Twelve vectors of sums stay in registers: six
//! rows of sixteen channels, or twelve rows of eight, as fewer sums would wait for each other.

use super::blocks::{Block, CHANNELS, halves};
use crate::lanes::{Lanes, Stage};

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
    /// U: per block of output channels A×A planes (`filters_stride`) with a block for each input channel.
    pub(super) filters: &'a [Block],
    pub(super) filters_stride: usize,
    /// Input channels, of as many blocks as they fill.
    pub(super) in_channels: usize,
    /// Output channels, as well.
    pub(super) out_channels: usize,
    /// M: per block of output channels A×A planes (`products_stride`) of tiles.
    pub(super) products: &'a mut [Block],
    pub(super) products_stride: usize,
    /// Adds to the products instead of starting them.
    pub(super) add: bool,
}

impl Stage for TileProducts<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self) {
        // Whole rounds of six rows.
        let in_blocks = self.in_channels.div_ceil(CHANNELS);
        let cached = (CACHED_BYTES / size_of::<Block>() / in_blocks / 6).max(4) * 6;
        for plane in 0..self.planes {
            let values = &self.values[plane * self.values_stride..][..in_blocks * self.tiles_stride];
            for first in (0..self.tiles).step_by(cached) {
                let values = &values[first..];
                let tiles = cached.min(self.tiles - first);
                let filters = self.filters.chunks_exact(self.planes * self.filters_stride);
                let products = self.products.chunks_exact_mut(self.planes * self.products_stride);
                for (block, (filters, products)) in filters.zip(products).enumerate() {
                    let filters = &filters[plane * self.filters_stride..][..self.in_channels];
                    let products = &mut products[plane * self.products_stride + first..][..tiles];
                    match halves(self.out_channels - block * CHANNELS) {
                        1 => tile_products::<L, 1>(values, self.tiles_stride, filters, products, self.add),
                        _ => tile_products::<L, 2>(values, self.tiles_stride, filters, products, self.add),
                    }
                }
            }
        }
    }
}

/// The products of one plane with one block of output channels, or the first half of one.
#[inline(always)]
fn tile_products<L: Lanes, const HALVES: usize>(
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
        // The last rows are shared out so that none of the products is thin: 7 is 4 + 3, not 6 + 1.
        tile += match tiles - tile {
            12 | 18.. if HALVES == 1 => tile_rows::<L, 12, HALVES>(values, tiles_stride, filters, products, add),
            8 | 13.. if HALVES == 1 => tile_rows::<L, 8, HALVES>(values, tiles_stride, filters, products, add),
            1 => tile_rows::<L, 1, HALVES>(values, tiles_stride, filters, products, add),
            2 => tile_rows::<L, 2, HALVES>(values, tiles_stride, filters, products, add),
            3 => tile_rows::<L, 3, HALVES>(values, tiles_stride, filters, products, add),
            4 | 7 | 8 => tile_rows::<L, 4, HALVES>(values, tiles_stride, filters, products, add),
            5 | 9 | 10 => tile_rows::<L, 5, HALVES>(values, tiles_stride, filters, products, add),
            _ => tile_rows::<L, 6, HALVES>(values, tiles_stride, filters, products, add),
        };
    }
}

/// `products[row] (+)= Σ values[row, channel] · filters[channel]` for ROWS tiles; returns ROWS.
#[inline(always)]
fn tile_rows<L: Lanes, const ROWS: usize, const HALVES: usize>(
    values: &[Block],
    tiles_stride: usize,
    filters: &[Block],
    products: &mut [Block],
    add: bool,
) -> usize {
    let mut sums = [[L::zero(); HALVES]; ROWS];
    if add {
        for row in 0..ROWS {
            for half in 0..HALVES {
                sums[row][half] = products[row].load(half);
            }
        }
    }
    for (values, filters) in values.chunks(tiles_stride).zip(filters.chunks(CHANNELS)) {
        let Some(values) = values.first_chunk::<ROWS>() else { break };
        if let Some(filters) = filters.first_chunk::<CHANNELS>() {
            sums = add_channels(sums, values, filters);
        } else {
            sums = add_channels(sums, values, filters);
        }
    }
    for row in 0..ROWS {
        for half in 0..HALVES {
            products[row].store(half, sums[row][half]);
        }
    }
    ROWS
}

/// Adds the products with up to 16 input channels.
#[inline(always)]
fn add_channels<L: Lanes, const ROWS: usize, const HALVES: usize>(
    mut sums: [[L; HALVES]; ROWS],
    values: &[Block; ROWS],
    filters: &[Block],
) -> [[L; HALVES]; ROWS] {
    for channel in 0..filters.len().min(CHANNELS) {
        let mut filter = [L::zero(); HALVES];
        for half in 0..HALVES {
            filter[half] = filters[channel].load(half);
        }
        for row in 0..ROWS {
            let value = L::splat(values[row].0[channel]);
            for half in 0..HALVES {
                sums[row][half] = value.mul_add(filter[half], sums[row][half]);
            }
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
    /// Per block of output channels A×A planes (`sums_stride`) with 16 output channels of those blocks of
    /// input channels.
    pub(super) sums: &'a mut [Block],
    pub(super) sums_stride: usize,
    /// Adds to the sums instead of starting them.
    pub(super) add: bool,
}

impl Stage for FilterSums<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let in_blocks = self.in_channels.div_ceil(CHANNELS);
        for plane in 0..self.planes {
            for first in (0..self.tiles).step_by(CHAIN) {
                let tiles = CHAIN.min(self.tiles - first);
                let add = self.add || first > 0;
                for in_block in 0..in_blocks {
                    let values = plane * self.values_stride + in_block * self.tiles_stride + first;
                    let values = &self.values[values..][..tiles];
                    let sums = self.sums.chunks_exact_mut(self.planes * self.sums_stride);
                    for (out_block, sums) in sums.enumerate() {
                        let gradients = plane * self.gradients_stride + out_block * self.tiles_stride + first;
                        let gradients = &self.gradients[gradients..][..tiles];
                        let sums = &mut sums[plane * self.sums_stride + in_block..];
                        let rows = CHANNELS.min(self.out_channels - out_block * CHANNELS);
                        match halves(self.in_channels - in_block * CHANNELS) {
                            1 => filter_sums::<L, 1>(gradients, values, sums, in_blocks, rows, add),
                            _ => filter_sums::<L, 2>(gradients, values, sums, in_blocks, rows, add),
                        }
                    }
                }
            }
        }
    }
}

/// The sums of one plane for `rows` output channels of a block and one block of input channels, or half of one.
#[inline(always)]
fn filter_sums<L: Lanes, const HALVES: usize>(
    gradients: &[Block],
    values: &[Block],
    sums: &mut [Block],
    stride: usize,
    rows: usize,
    add: bool,
) {
    let mut row = 0;
    while row < rows {
        row += match rows - row {
            12 if HALVES == 1 => filter_rows::<L, 12, HALVES>(gradients, values, sums, stride, row, add),
            8 | 13.. if HALVES == 1 => filter_rows::<L, 8, HALVES>(gradients, values, sums, stride, row, add),
            1 => filter_rows::<L, 1, HALVES>(gradients, values, sums, stride, row, add),
            2 => filter_rows::<L, 2, HALVES>(gradients, values, sums, stride, row, add),
            3 => filter_rows::<L, 3, HALVES>(gradients, values, sums, stride, row, add),
            4 | 7 | 8 => filter_rows::<L, 4, HALVES>(gradients, values, sums, stride, row, add),
            5 | 9 | 10 => filter_rows::<L, 5, HALVES>(gradients, values, sums, stride, row, add),
            _ => filter_rows::<L, 6, HALVES>(gradients, values, sums, stride, row, add),
        };
    }
}

/// `sums[row] (+)= Σ gradients[tile, row] · values[tile]` for ROWS output channels from `first` on; returns ROWS.
#[inline(always)]
fn filter_rows<L: Lanes, const ROWS: usize, const HALVES: usize>(
    gradients: &[Block],
    values: &[Block],
    sums: &mut [Block],
    stride: usize,
    first: usize,
    add: bool,
) -> usize {
    let mut totals = [[L::zero(); HALVES]; ROWS];
    for (gradients, values) in gradients.iter().zip(values) {
        let Some(gradients) = gradients.0[first..].first_chunk::<ROWS>() else { break };
        let mut value = [L::zero(); HALVES];
        for half in 0..HALVES {
            value[half] = values.load(half);
        }
        for row in 0..ROWS {
            let gradient = L::splat(gradients[row]);
            for half in 0..HALVES {
                totals[row][half] = gradient.mul_add(value[half], totals[row][half]);
            }
        }
    }
    for row in 0..ROWS {
        let sum = &mut sums[(first + row) * stride];
        for half in 0..HALVES {
            let total = totals[row][half];
            let total = if add { sum.load::<L>(half).add(total) } else { total };
            sum.store(half, total);
        }
    }
    ROWS
}

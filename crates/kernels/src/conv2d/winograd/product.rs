//! The matrix products between the transforms, one for each of the A×A values of a transformed tile.
//!
//! Both read the layouts that the transforms write, so nothing is packed. Twelve vectors of sums stay in registers:
//! six rows of sixteen.

use super::blocks::{Block, CHANNELS};
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
    /// Blocks of input channels.
    pub(super) in_blocks: usize,
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
        let cached = (CACHED_BYTES / size_of::<Block>() / self.in_blocks / 6).max(4) * 6;
        for plane in 0..self.planes {
            let values = &self.values[plane * self.values_stride..][..self.in_blocks * self.tiles_stride];
            for first in (0..self.tiles).step_by(cached) {
                let values = &values[first..];
                let tiles = cached.min(self.tiles - first);
                let filters = self.filters.chunks_exact(self.planes * self.filters_stride);
                let products = self.products.chunks_exact_mut(self.planes * self.products_stride);
                for (filters, products) in filters.zip(products) {
                    let filters = &filters[plane * self.filters_stride..][..self.in_blocks * CHANNELS];
                    let products = &mut products[plane * self.products_stride + first..][..tiles];
                    tile_products::<L>(values, self.tiles_stride, filters, products, self.add);
                }
            }
        }
    }
}

/// The products of one plane with one block of output channels.
#[inline(always)]
fn tile_products<L: Lanes>(
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
            1 => tile_rows::<L, 1>(values, tiles_stride, filters, products, add),
            2 => tile_rows::<L, 2>(values, tiles_stride, filters, products, add),
            3 => tile_rows::<L, 3>(values, tiles_stride, filters, products, add),
            4 | 7 | 8 => tile_rows::<L, 4>(values, tiles_stride, filters, products, add),
            5 | 9 | 10 => tile_rows::<L, 5>(values, tiles_stride, filters, products, add),
            _ => tile_rows::<L, 6>(values, tiles_stride, filters, products, add),
        };
    }
}

/// `products[row] (+)= Σ values[row, channel] · filters[channel]` for ROWS tiles; returns ROWS.
#[inline(always)]
fn tile_rows<L: Lanes, const ROWS: usize>(
    values: &[Block],
    tiles_stride: usize,
    filters: &[Block],
    products: &mut [Block],
    add: bool,
) -> usize {
    let mut sums = [[L::zero(); 2]; ROWS];
    if add {
        for row in 0..ROWS {
            sums[row] = [products[row].load(0), products[row].load(1)];
        }
    }
    for (values, filters) in values.chunks(tiles_stride).zip(filters.as_chunks::<CHANNELS>().0) {
        let Some(values) = values.first_chunk::<ROWS>() else { break };
        for channel in 0..CHANNELS {
            let (low, high) = (filters[channel].load::<L>(0), filters[channel].load::<L>(1));
            for row in 0..ROWS {
                let value = L::splat(values[row].0[channel]);
                sums[row][0] = value.mul_add(low, sums[row][0]);
                sums[row][1] = value.mul_add(high, sums[row][1]);
            }
        }
    }
    for row in 0..ROWS {
        products[row].store(0, sums[row][0]);
        products[row].store(1, sums[row][1]);
    }
    ROWS
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
    /// Blocks of input channels.
    pub(super) in_blocks: usize,
    /// Per block of output channels A×A planes (`sums_stride`) with 16 output channels of `in_blocks` blocks.
    pub(super) sums: &'a mut [Block],
    pub(super) sums_stride: usize,
    /// Adds to the sums instead of starting them.
    pub(super) add: bool,
}

impl Stage for FilterSums<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self) {
        for plane in 0..self.planes {
            for first in (0..self.tiles).step_by(CHAIN) {
                let tiles = CHAIN.min(self.tiles - first);
                let add = self.add || first > 0;
                for in_block in 0..self.in_blocks {
                    let values = plane * self.values_stride + in_block * self.tiles_stride + first;
                    let values = &self.values[values..][..tiles];
                    let sums = self.sums.chunks_exact_mut(self.planes * self.sums_stride);
                    for (out_block, sums) in sums.enumerate() {
                        let gradients = plane * self.gradients_stride + out_block * self.tiles_stride + first;
                        let gradients = &self.gradients[gradients..][..tiles];
                        let sums = &mut sums[plane * self.sums_stride + in_block..];
                        filter_rows::<L, 0, 6>(gradients, values, sums, self.in_blocks, add);
                        filter_rows::<L, 6, 5>(gradients, values, sums, self.in_blocks, add);
                        filter_rows::<L, 11, 5>(gradients, values, sums, self.in_blocks, add);
                    }
                }
            }
        }
    }
}

/// `sums[row] (+)= Σ gradients[tile, row] · values[tile]` for ROWS output channels from FIRST on.
#[inline(always)]
fn filter_rows<L: Lanes, const FIRST: usize, const ROWS: usize>(
    gradients: &[Block],
    values: &[Block],
    sums: &mut [Block],
    stride: usize,
    add: bool,
) {
    let mut totals = [[L::zero(); 2]; ROWS];
    for (gradients, values) in gradients.iter().zip(values) {
        let (low, high) = (values.load::<L>(0), values.load::<L>(1));
        for row in 0..ROWS {
            let gradient = L::splat(gradients.0[FIRST + row]);
            totals[row][0] = gradient.mul_add(low, totals[row][0]);
            totals[row][1] = gradient.mul_add(high, totals[row][1]);
        }
    }
    for row in 0..ROWS {
        let sum = &mut sums[(FIRST + row) * stride];
        for half in 0..2 {
            let total = totals[row][half];
            let total = if add { sum.load::<L>(half).add(total) } else { total };
            sum.store(half, total);
        }
    }
}

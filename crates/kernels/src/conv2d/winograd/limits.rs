//! How much work memory a pass takes, and when it shares out its work in which way.

use super::blocks::Block;

const MEGABYTE: usize = (1 << 20) / size_of::<Block>();

/// Bounds in blocks (64 bytes) and tiles. The numbers were chosen by measurement for cores with 512 KB of second-level
/// cache, own sums and tiles and rounds again for 1 MB; results do not depend on them but for the last bits of gradients of weights, whose sums they split.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Transformed tiles of a whole pass up to this are few ...
    pub(super) few_tile_blocks: usize,
    /// ... and transformed weights beyond this are many: such a pass is shared out by filters.
    pub(super) many_filter_blocks: usize,
    /// Transformed weights beyond this are not held at once.
    pub(super) held_filter_blocks: usize,
    /// Tiles whose transforms are held at once where those of the weights are not, which are made again for each round.
    pub(super) round_tiles: usize,
    /// Tiles for each thread from which on it takes rounds of its own, and those where threads would otherwise share the
    /// transforms of all,
    pub(super) own_round_tiles: usize,
    pub(super) least_own_round_tiles: usize,
    /// if their transforms are no more than this.
    pub(super) own_round_blocks: usize,
    /// Blocks of input channels whose weights are transformed at a time there.
    pub(super) part_blocks: usize,
    /// Sums of the gradient of the weights that a task may have of its own, whatever its tiles,
    pub(super) own_sum_blocks: usize,
    /// or where its tiles are many,
    pub(super) most_own_sum_blocks: usize,
    /// for about these many tiles,
    pub(super) tiles_of_own_sums: usize,
    /// and transformed tiles of inputs and gradients that it then holds at once.
    pub(super) own_tile_blocks: usize,
    /// Tiles of a pass up to which each task takes all of them, and some channels; where it could have sums of its own
    /// instead, this many for each block of channels that tasks share out.
    pub(super) channel_tiles: usize,
    pub(super) channel_tiles_per_block: usize,
    /// Sums of a pass up to which each half of its tiles has its own, if its transformed tiles are no more than that.
    pub(super) halved_sum_blocks: usize,
    pub(super) half_tile_blocks: usize,
    /// Transformed tiles of inputs and gradients that are held at once where tasks share the sums,
    pub(super) gradient_round_blocks: usize,
    /// if that is at least these many tiles,
    pub(super) gradient_round_tiles: usize,
    /// or up to twice as many where the sums, which each round reads and writes, are larger than this,
    pub(super) many_sum_blocks: usize,
    /// and no more transformed tiles. All of the pass where they fit: then no sum is held from round to round, and groups of
    /// input channels take their turns.
    pub(super) most_gradient_round_blocks: usize,
    /// Sums of the gradient of the weights that are held between rounds.
    pub(super) sum_blocks: usize,
}

impl Limits {
    /// What every caller gets.
    pub(super) const DEFAULT: Self = Self {
        few_tile_blocks: 16 * MEGABYTE,
        many_filter_blocks: 4 * MEGABYTE,
        held_filter_blocks: 16 * MEGABYTE,
        round_tiles: 256,
        own_round_tiles: 64,
        least_own_round_tiles: 32,
        own_round_blocks: 6 * MEGABYTE,
        part_blocks: 4,
        own_sum_blocks: MEGABYTE * 5 / 8,
        most_own_sum_blocks: 5 * MEGABYTE,
        tiles_of_own_sums: 512,
        own_tile_blocks: MEGABYTE * 3 / 4,
        channel_tiles: 256,
        channel_tiles_per_block: 64,
        halved_sum_blocks: 10 * MEGABYTE,
        half_tile_blocks: 10 * MEGABYTE,
        gradient_round_blocks: 3 * MEGABYTE,
        gradient_round_tiles: 128,
        many_sum_blocks: 8 * MEGABYTE,
        most_gradient_round_blocks: 40 * MEGABYTE,
        sum_blocks: 20 * MEGABYTE,
    };

    /// So small that every pass takes many rounds.
    #[cfg(test)]
    pub(super) const SMALL: Self = Self {
        few_tile_blocks: 0,
        many_filter_blocks: 0,
        held_filter_blocks: 0,
        round_tiles: 5,
        own_round_tiles: 0,
        least_own_round_tiles: 0,
        own_round_blocks: usize::MAX,
        part_blocks: 1,
        own_sum_blocks: 0,
        most_own_sum_blocks: 0,
        tiles_of_own_sums: 5,
        own_tile_blocks: 0,
        channel_tiles: 0,
        channel_tiles_per_block: 0,
        halved_sum_blocks: usize::MAX,
        half_tile_blocks: usize::MAX,
        gradient_round_blocks: 0,
        gradient_round_tiles: 5,
        many_sum_blocks: 0,
        most_gradient_round_blocks: 0,
        sum_blocks: 0,
    };
}

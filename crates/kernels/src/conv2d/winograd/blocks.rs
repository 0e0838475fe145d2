//! Sixteen channels side by side.

use std::ops::Range;

use crate::lanes::{Lanes, Vector, WIDTH};

/// Channels that one [`Block`] holds: two vectors.
pub(super) const CHANNELS: usize = 16;

/// The values of 16 neighbouring channels at one place; one cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Block(pub(super) [f32; CHANNELS]);

impl Block {
    /// Sixteen zeros.
    pub(super) const ZERO: Self = Self([0.0; CHANNELS]);

    /// Loads the first (`half` = 0) or the last eight channels.
    #[inline(always)]
    pub(super) fn load<L: Lanes>(&self, half: usize) -> L {
        L::load(&self.0.as_chunks::<WIDTH>().0[half])
    }

    /// Loads as many of the first channels as the vector holds.
    #[allow(unsafe_code, reason = "a vector is no longer than a block")]
    #[inline(always)]
    pub(super) fn vector<V: Vector>(&self) -> V {
        const { assert!(V::LEN <= CHANNELS) };
        // SAFETY: as the assertion says.
        unsafe { V::load_at(&self.0, 0) }
    }

    /// Stores the first (`half` = 0) or the last eight channels.
    #[inline(always)]
    pub(super) fn store<L: Lanes>(&mut self, half: usize, value: L) {
        value.store(&mut self.0.as_chunks_mut::<WIDTH>().0[half]);
    }
}

/// How many of `all` channels some blocks have.
pub(super) fn channels(blocks: &Range<usize>, all: usize) -> usize {
    all.min(blocks.end * CHANNELS) - blocks.start * CHANNELS
}

/// How many halves of a block of `channels` channels have any: the second half of up to eight is neither computed nor
/// read.
#[inline(always)]
pub(super) fn halves(channels: usize) -> usize {
    if channels <= WIDTH { 1 } else { 2 }
}

/// Loads half of block `index`, unchecked: the transforms read 36 places per tile whose bounds are proven once.
///
/// # Safety
/// `index` is less than the number of blocks.
#[allow(unsafe_code, reason = "the caller's proof is the point of this function")]
#[inline(always)]
pub(super) unsafe fn load_at<L: Lanes>(blocks: &[Block], index: usize, half: usize) -> L {
    debug_assert!(index < blocks.len());
    // SAFETY: by the caller's contract.
    unsafe { blocks.get_unchecked(index) }.load(half)
}

/// Stores half of block `index`, unchecked as [`load_at`].
///
/// # Safety
/// `index` is less than the number of blocks.
#[allow(unsafe_code, reason = "the caller's proof is the point of this function")]
#[inline(always)]
pub(super) unsafe fn store_at<L: Lanes>(blocks: &mut [Block], index: usize, half: usize, value: L) {
    debug_assert!(index < blocks.len());
    // SAFETY: by the caller's contract.
    unsafe { blocks.get_unchecked_mut(index) }.store(half, value);
}

//! Work memory that each thread keeps between operations.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

use super::blocks::Block;

/// Buffers that a thread keeps; more than one operation ever needs at once.
const KEPT: usize = 6;

/// Blocks of a page, left unused at the end of each buffer, as in the [other scratch memory](super::super::scratch).
const APART: usize = 64;

thread_local! {
    static FREE: RefCell<Vec<Vec<Block>>> = const { RefCell::new(Vec::new()) };
}

/// A buffer of blocks with whatever the last user left in it.
///
/// It is taken out of the thread's store and put back when dropped, so a thread that meets another convolution while
/// it waits for the pool takes other buffers.
pub(super) struct Scratch {
    blocks: Vec<Block>,
    len: usize,
}

impl Scratch {
    /// `len` blocks of arbitrary finite or stale values.
    pub(super) fn take(len: usize) -> Self {
        let mut blocks = FREE.with_borrow_mut(|free| {
            let fits = (0..free.len()).filter(|&i| free[i].len() >= len).min_by_key(|&i| free[i].len());
            let chosen = fits.or_else(|| (0..free.len()).max_by_key(|&i| free[i].len()));
            chosen.map(|index| free.swap_remove(index)).unwrap_or_default()
        });
        if blocks.len() < len {
            // The old values need not move.
            blocks = vec![Block::ZERO; len + APART];
        }
        Self { blocks, len }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let blocks = std::mem::take(&mut self.blocks);
        // While the thread ends, its store may be gone: then the buffer is freed.
        let _ = FREE.try_with(|free| {
            let mut free = free.borrow_mut();
            if free.len() < KEPT {
                free.push(blocks);
            }
        });
    }
}

impl Deref for Scratch {
    type Target = [Block];
    fn deref(&self) -> &[Block] {
        &self.blocks[..self.len]
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [Block] {
        &mut self.blocks[..self.len]
    }
}

//! Buffers that a thread keeps between calls.
//!
//! A convolution needs packed copies of its operands. Fresh memory costs a page fault per 4 KiB, more than the packing
//! itself, so buffers go back to the thread that took them. A buffer in use is not in the pool: a thread that meanwhile
//! runs another convolution (a thread pool steals tasks while it waits) takes another one.
//!
//! Tasks take their lists from here as well: an allocator that all threads share makes them wait for each other, and a
//! task of a thin layer is only some microseconds long.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

use super::inner_products::Pairs;
use crate::gemm::{Panel, Run};

thread_local! {
    static POOL: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
    static LISTS: RefCell<Vec<Lists>> = const { RefCell::new(Vec::new()) };
}

/// Lists that a task fills anew.
pub(super) struct Lists {
    /// Where columns of an output begin.
    pub(super) columns: Vec<usize>,
    /// Where the rows of a second matrix lie.
    pub(super) rows: Vec<usize>,
    /// Where its columns lie, one by one,
    pub(super) sources: Vec<usize>,
    /// as runs,
    pub(super) runs: Vec<Run>,
    /// and in panels.
    pub(super) panels: Vec<Panel>,
    /// Pixels of two matrices.
    pub(super) pairs: Vec<Pairs>,
}

/// Entries for which lists have room from the start, a page: for the same reason as [`APART`].
const ROOM: usize = 512;

/// Runs `body` with lists that have any contents.
pub(super) fn with_lists<R>(body: impl FnOnce(&mut Lists) -> R) -> R {
    let new = || Lists {
        columns: Vec::with_capacity(ROOM),
        rows: Vec::with_capacity(ROOM),
        sources: Vec::with_capacity(ROOM),
        runs: Vec::with_capacity(ROOM),
        panels: Vec::with_capacity(ROOM),
        pairs: Vec::with_capacity(ROOM),
    };
    let mut lists = LISTS.with_borrow_mut(Vec::pop).unwrap_or_else(new);
    let result = body(&mut lists);
    LISTS.with_borrow_mut(|pool| {
        if pool.len() < KEPT {
            pool.push(lists);
        }
    });
    result
}

/// Runs `body` with three of them.
pub(super) fn with_three_lists<R>(body: impl FnOnce([&mut Lists; 3]) -> R) -> R {
    with_lists(|a| with_lists(|b| with_lists(|c| body([a, b, c]))))
}

/// Buffers that one thread keeps at most.
const KEPT: usize = 8;

/// Elements of a page, left unused at the end of each buffer, and elements of a buffer at least: so much apart, buffers of
/// different threads from one heap do not slow each other down. Side by side, thin layers took up to half as long again
/// (measured; the likely reason is that processors read ahead into what another thread writes to).
const APART: usize = 1 << 10;
const LEAST: usize = 1 << 16;

/// Elements of any value, until it is dropped.
pub(super) struct Buffer {
    elements: Vec<f32>,
    len: usize,
}

impl Buffer {
    /// Of `len` elements.
    pub(super) fn take(len: usize) -> Self {
        let mut elements = POOL.with_borrow_mut(|pool| take(pool, len));
        if elements.len() < len {
            // The old contents are worthless: drop them first, so that they are not copied.
            drop(std::mem::take(&mut elements));
            elements = vec![0.0; len.max(LEAST) + APART];
        }
        Self { elements, len }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let elements = std::mem::take(&mut self.elements);
        // While the thread ends, its pool may be gone: then the memory is freed.
        let _ = POOL.try_with(|pool| {
            let mut pool = pool.borrow_mut();
            if pool.len() < KEPT {
                pool.push(elements);
            }
        });
    }
}

impl Deref for Buffer {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &self.elements[..self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.elements[..self.len]
    }
}

/// Runs `body` with a buffer of `len` elements of any value.
pub(super) fn with_buffer<R>(len: usize, body: impl FnOnce(&mut [f32]) -> R) -> R {
    body(&mut Buffer::take(len))
}

/// The smallest buffer that is long enough, else the longest, else an empty one.
fn take(pool: &mut Vec<Vec<f32>>, len: usize) -> Vec<f32> {
    let fits = (0..pool.len()).filter(|&index| pool[index].len() >= len).min_by_key(|&index| pool[index].len());
    let best = fits.or_else(|| (0..pool.len()).max_by_key(|&index| pool[index].len()));
    best.map(|index| pool.swap_remove(index)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nested_buffers_are_different_and_come_back() {
        let outer_address = with_buffer(4 * LEAST, |outer| {
            outer.fill(1.0);
            with_buffer(LEAST, |inner| inner.fill(2.0));
            assert!(outer.iter().all(|&value| value == 1.0));
            outer.as_ptr() as usize
        });
        let len = 3 * LEAST;
        assert_eq!(with_buffer(len, |buffer| (buffer.len(), buffer.as_ptr() as usize)), (len, outer_address));
    }
}

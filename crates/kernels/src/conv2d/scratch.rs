//! Buffers that a thread keeps between calls.
//!
//! A convolution needs packed copies of its operands. Fresh memory costs a page fault per 4 KiB, more than the packing
//! itself, so buffers go back to the thread that took them. A buffer in use is not in the pool: a thread that meanwhile
//! runs another convolution (a thread pool steals tasks while it waits) takes another one.

use std::cell::RefCell;

thread_local! {
    static POOL: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
}

/// Buffers that one thread keeps at most.
const KEPT: usize = 8;

/// Runs `body` with a buffer of `len` elements of any value.
pub(super) fn with_buffer<R>(len: usize, body: impl FnOnce(&mut [f32]) -> R) -> R {
    let mut buffer = POOL.with_borrow_mut(|pool| take(pool, len));
    if buffer.len() < len {
        // The old contents are worthless: drop them first, so that they are not copied.
        drop(std::mem::take(&mut buffer));
        buffer = vec![0.0; len];
    }
    let result = body(&mut buffer[..len]);
    POOL.with_borrow_mut(|pool| {
        if pool.len() < KEPT {
            pool.push(buffer);
        }
    });
    result
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
        let outer_address = with_buffer(100, |outer| {
            outer.fill(1.0);
            with_buffer(50, |inner| inner.fill(2.0));
            assert!(outer.iter().all(|&value| value == 1.0));
            outer.as_ptr() as usize
        });
        assert_eq!(with_buffer(80, |buffer| (buffer.len(), buffer.as_ptr() as usize)), (80, outer_address));
    }
}

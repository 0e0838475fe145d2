//! How much memory the program holds, counted where it is allocated.
//!
//! What the system reports as resident says little here: freed memory is kept for the next step, so it never falls, and
//! a second training in the same process could not be told from the first.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes that are allocated now, and the most since the last [`begin`].
static HELD: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

/// Bytes of a cache line, and those from which a block has lines of its own. The system's allocator begins a block 16
/// bytes into a line most often, and then every second vector lies in two lines; and what two threads write to may be
/// neighbours in one, which the processors then take from each other (docs/benchmarks.md has what that costs).
const LINE: usize = 64;

/// The system's allocator, counting; blocks of a cache line and more share none. A program that makes it its
/// `#[global_allocator]` can ask for [`peak`].
#[derive(Clone, Copy, Debug)]
pub struct Counting;

/// Counts from now on: the peak is what is held now.
pub fn begin() {
    PEAK.store(HELD.load(Ordering::Relaxed), Ordering::Relaxed);
}

/// The most bytes that were held at once since the last [`begin`], by all threads; none where nothing counts.
#[must_use]
pub fn peak() -> Option<u64> {
    let peak = PEAK.load(Ordering::Relaxed);
    (peak > 0).then_some(peak as u64)
}

fn grow(bytes: usize) {
    let held = HELD.fetch_add(bytes, Ordering::Relaxed) + bytes;
    PEAK.fetch_max(held, Ordering::Relaxed);
}

fn shrink(bytes: usize) {
    HELD.fetch_sub(bytes, Ordering::Relaxed);
}

/// What the system is asked for in place of a block of a line or more: whole lines and one more, so that there is room to
/// begin one. Asking for the alignment would leave holes that the same request does not fit into again.
fn with_room(layout: Layout) -> Option<Layout> {
    if layout.size() < LINE || layout.align() > OFFSET_BYTES {
        return None;
    }
    Layout::from_size_align(layout.size().checked_next_multiple_of(LINE)?.checked_add(LINE)?, OFFSET_BYTES).ok()
}

/// The alignment of the system's blocks, which leaves as many bytes before each line inside of one.
const OFFSET_BYTES: usize = 16;

/// The first line that begins inside of a block of [`with_room`]; before it stands how far in that is.
///
/// # Safety
/// The block is not null, and is as large and aligned as asked for.
#[allow(unsafe_code, reason = "hands the caller's proof on")]
unsafe fn line_of(block: *mut u8) -> *mut u8 {
    let offset = LINE - block.addr() % LINE;
    // SAFETY: `offset` is from 16 to 64 bytes, for the block is aligned to 16; so the line begins inside of the block, and
    // the 8 bytes before it are there and aligned.
    unsafe {
        let line = block.add(offset);
        line.sub(size_of::<usize>()).cast::<usize>().write(offset);
        line
    }
}

/// The block that a line of [`line_of`] is in.
///
/// # Safety
/// The line is from [`line_of`].
#[allow(unsafe_code, reason = "hands the caller's proof on")]
unsafe fn block_of(line: *mut u8) -> *mut u8 {
    // SAFETY: `line_of` has written the offset there.
    unsafe { line.sub(line.sub(size_of::<usize>()).cast::<usize>().read()) }
}

/// Asks for huge pages where the heap has grown to a new block, or for the block where it lies elsewhere, before it is
/// written to. Planes of channels lie on many small pages, more than the processor keeps the addresses of, and where
/// those lie in the caches is a matter of luck (docs/benchmarks.md). Where the system has none nothing changes.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code, reason = "calls into the C library that change how memory is held, not what is in it")]
fn huge_pages(block: *mut u8, size: usize) {
    /// Where the heap ended when huge pages were last asked for.
    static HEAP_END: AtomicUsize = AtomicUsize::new(0);
    const PAGE: usize = 4096;
    const HUGE_PAGE: usize = 2 << 20;
    if size < PAGE {
        return;
    }
    // SAFETY: an increment of 0 asks where the heap ends.
    let heap = unsafe { libc::sbrk(0) }.addr();
    let (start, end) = (block.addr(), block.addr() + size);
    let (from, to) = if end <= heap {
        let before = HEAP_END.swap(heap, Ordering::Relaxed);
        if before == heap {
            return;
        }
        // What was given back and taken again lies below the old end.
        (if (1..heap).contains(&before) { before.min(start) } else { start }, heap)
    } else if size >= HUGE_PAGE {
        (start, end)
    } else {
        return;
    };
    let from = from.next_multiple_of(PAGE);
    if let Some(len) = to.checked_sub(from) {
        // SAFETY: an advice about pages that are this program's changes nothing that is in them; what it answers does not
        // matter.
        unsafe {
            libc::madvise(block.with_addr(from).cast(), len, libc::MADV_HUGEPAGE);
        }
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn huge_pages(_block: *mut u8, _size: usize) {}

// SAFETY: every call is passed on to the system's allocator, for large blocks with room for a line, inside of which the
// block that is handed out begins; which blocks are large depends on the layout alone, so each is given back as it was
// taken. Counting touches two atomic numbers and allocates nothing.
#[allow(unsafe_code, reason = "an allocator can be written in no other way")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let large = with_room(layout);
        // SAFETY: the caller's promises about `layout` are the system allocator's conditions.
        let pointer = unsafe { System.alloc(large.unwrap_or(layout)) };
        if pointer.is_null() {
            return pointer;
        }
        grow(layout.size());
        let Some(large) = large else { return pointer };
        huge_pages(pointer, large.size());
        // SAFETY: the block is there, with room for a line.
        unsafe { line_of(pointer) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let large = with_room(layout);
        // SAFETY: as in `alloc`.
        let pointer = unsafe { System.alloc_zeroed(large.unwrap_or(layout)) };
        if pointer.is_null() {
            return pointer;
        }
        grow(layout.size());
        let Some(large) = large else { return pointer };
        huge_pages(pointer, large.size());
        // SAFETY: as in `alloc`; what is written lies before the line.
        unsafe { line_of(pointer) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        shrink(layout.size());
        // SAFETY: the block is from `alloc` with this layout, so it is from `System` with this one, or lies in such a one.
        unsafe {
            match with_room(layout) {
                Some(large) => System.dealloc(block_of(pointer), large),
                None => System.dealloc(pointer, layout),
            }
        }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller promises that the new size is not 0 and is that of a layout.
        let new = unsafe { Layout::from_size_align_unchecked(new_size, layout.align()) };
        if with_room(layout).is_none() && with_room(new).is_none() {
            // SAFETY: as in `dealloc`.
            let moved = unsafe { System.realloc(pointer, layout, new_size) };
            if !moved.is_null() {
                grow(new_size);
                shrink(layout.size());
            }
            return moved;
        }
        // SAFETY: both blocks are there, and are two.
        unsafe {
            let moved = self.alloc(new);
            if !moved.is_null() {
                pointer.copy_to_nonoverlapping(moved, layout.size().min(new_size));
                self.dealloc(pointer, layout);
            }
            moved
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(unsafe_code, reason = "the allocator's own interface")]
    fn large_blocks_begin_a_line_and_keep_what_is_in_them() {
        for (size, align) in [(1, 1), (63, 8), (64, 4), (1025, 16), (70_000, 4), (5000, 32), (5000, 128)] {
            let layout = Layout::from_size_align(size, align).unwrap();
            // SAFETY: the blocks are used as long as they live, within their sizes.
            unsafe {
                let zeroed = Counting.alloc_zeroed(layout);
                assert!((0..size).all(|at| zeroed.add(at).read() == 0));
                let block = Counting.alloc(layout);
                for at in 0..size {
                    block.add(at).write(at as u8);
                }
                assert_eq!(block.addr() % align, 0);
                assert!(size < LINE || block.addr().is_multiple_of(LINE) || align > OFFSET_BYTES);
                let mut held = (block, size);
                for new_size in [size + 2000, 700, 3000, 20] {
                    let layout = Layout::from_size_align(held.1, align).unwrap();
                    held = (Counting.realloc(held.0, layout, new_size), new_size);
                    assert!((0..size.min(20)).all(|at| held.0.add(at).read() == at as u8), "{size} to {new_size}");
                }
                Counting.dealloc(held.0, Layout::from_size_align(held.1, align).unwrap());
                Counting.dealloc(zeroed, layout);
            }
        }
    }
}

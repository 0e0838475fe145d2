//! Splitting work over the caller's rayon pool without changing the result.
//!
//! Tasks are a function of the sizes alone, never of the number of threads; each task writes its own part of the
//! output. A sum over tasks is made in task order afterwards.

use std::marker::PhantomData;

use rayon::prelude::*;

/// A mutable slice whose disjoint parts several tasks write at once.
///
/// The borrow of the slice lives as long as this value, so nobody else reads it meanwhile.
#[derive(Clone, Copy)]
pub(crate) struct Shared<'a, T> {
    start: *mut T,
    len: usize,
    borrow: PhantomData<&'a mut [T]>,
}

#[allow(
    unsafe_code,
    reason = "a pointer into a slice of Send elements may cross threads; disjointness is each user's proof"
)]
// SAFETY: the pointer stands for a `&mut [T]`, which is Send and Sync for such use when T is Send.
unsafe impl<T: Send> Send for Shared<'_, T> {}
#[allow(unsafe_code, reason = "as above")]
// SAFETY: as above; every access goes through `part`, whose caller proves that parts do not overlap.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    /// Shares `slice` between tasks.
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), borrow: PhantomData }
    }

    /// What follows element `from`, shared.
    pub(crate) fn after(self, from: usize) -> Self {
        assert!(from <= self.len, "element {from} of {}", self.len);
        #[allow(unsafe_code, reason = "inside the slice by the assertion")]
        // SAFETY: as the assertion says; the rest of a shared slice is no more shared than the whole.
        let start = unsafe { self.start.add(from) };
        Self { start, len: self.len - from, borrow: PhantomData }
    }

    /// Where the first `len` elements begin, to write those that are the caller's own.
    #[inline(always)]
    pub(crate) fn pointer(&self, len: usize) -> *mut T {
        assert!(len <= self.len, "{len} of {} elements", self.len);
        self.start
    }

    /// The part `from..from + len` to write.
    ///
    /// # Safety
    /// No two parts that are alive at the same time overlap.
    #[allow(unsafe_code, clippy::mut_from_ref, reason = "the caller's proof is the point of this function")]
    #[inline(always)]
    pub(crate) unsafe fn part(&self, from: usize, len: usize) -> &'a mut [T] {
        assert!(from <= self.len && len <= self.len - from, "part {from}+{len} of {}", self.len);
        // SAFETY: inside the slice by the assertion; exclusive by the caller's contract.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(from), len) }
    }
}

/// Runs `task(0) … task(count - 1)` on the pool; in place where there is only one.
pub(crate) fn for_each_task(count: usize, task: impl Fn(usize) + Sync + Send) {
    if count <= 1 {
        (0..count).for_each(task);
    } else {
        (0..count).into_par_iter().with_max_len(1).for_each(task);
    }
}

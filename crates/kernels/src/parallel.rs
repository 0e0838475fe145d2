//! Splitting work over the caller's rayon pool without changing the result.
//!
//! What a task computes is a function of the sizes alone, never of the number of threads, and so is the order of a sum
//! over tasks; each task writes its own part of the output. How often something is prepared that tasks read may depend on
//! the threads: to write to memory that the cache of another processor holds takes several times as long where the two
//! have no cache in common, so threads share as little as they can.

use std::marker::PhantomData;
use std::sync::atomic::{AtomicUsize, Ordering};

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

/// The same, side by side only if `parallel`.
pub(crate) fn for_each_task_if(parallel: bool, count: usize, task: impl Fn(usize) + Sync + Send) {
    if parallel { for_each_task(count, task) } else { (0..count).for_each(task) }
}

/// What has to be made before tasks can read it, such as packed weights.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Prepared {
    pub(crate) bytes: usize,
    /// How often all tasks together multiply by each element.
    pub(crate) uses: usize,
}

impl Prepared {
    /// More is made once for all threads: a cache that they have in common holds it once.
    pub(crate) const MOST_BYTES: usize = 5 << 20;
    /// Uses for each thread but the first that make up for making it once more.
    const USES: usize = 16;

    /// Runs `task(…, 0) … task(…, count - 1)`, each once, with what `prepare` makes; that is the same each time. `prepare` is
    /// told whether it is for all threads and so may run in parallel.
    ///
    /// Each thread makes it for itself where that is little beside the tasks. It takes its share of the tasks in order, then
    /// what is left of the others'.
    pub(crate) fn for_each_task<T: Sync>(
        self,
        count: usize,
        prepare: impl Fn(bool) -> T + Sync + Send,
        task: impl Fn(&T, usize) + Sync + Send,
    ) {
        let threads = rayon::current_num_threads().min(count).max(1);
        if self.bytes > Self::MOST_BYTES || self.uses < Self::USES * (threads - 1) {
            let prepared = prepare(true);
            return for_each_task(count, |number| task(&prepared, number));
        }
        let share = |index: usize| index * count / threads..(index + 1) * count / threads;
        let next: Vec<_> = (0..threads).map(|index| AtomicUsize::new(share(index).start)).collect();
        let take = |index: usize| {
            let number = next[index].fetch_add(1, Ordering::Relaxed);
            (number < share(index).end).then_some(number)
        };
        for_each_task(threads, |thread| {
            let mut prepared = None;
            for index in (thread..threads).chain(0..thread) {
                while let Some(number) = take(index) {
                    task(prepared.get_or_insert_with(|| prepare(false)), number);
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_task_runs_once_with_what_one_of_the_threads_has_prepared() {
        let few_uses = Prepared { bytes: 1, uses: 0 };
        let many_uses = Prepared { bytes: 1, uses: 1000 };
        let large = Prepared { bytes: 1 << 30, uses: 1000 };
        for threads in 1..5 {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            for (prepared, most, in_parallel) in
                [(few_uses, 1, threads > 1), (many_uses, threads, false), (large, 1, true)]
            {
                for count in [0, 1, 2, 3, 7, 100] {
                    let runs: Vec<_> = (0..count).map(|_| AtomicUsize::new(0)).collect();
                    let preparations = AtomicUsize::new(0);
                    let prepare = |parallel| {
                        assert_eq!(parallel, in_parallel && (prepared.bytes > 1 || count > 1));
                        preparations.fetch_add(1, Ordering::Relaxed)
                    };
                    pool.install(|| {
                        prepared.for_each_task(count, prepare, |&number, task| {
                            assert!(number < most);
                            runs[task].fetch_add(1, Ordering::Relaxed);
                        });
                    });
                    assert!(
                        runs.iter().all(|runs| runs.load(Ordering::Relaxed) == 1),
                        "{threads} threads, {count} tasks"
                    );
                    assert!(preparations.into_inner() <= most, "{threads} threads, {count} tasks");
                }
            }
        }
    }
}

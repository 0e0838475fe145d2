//! New memory that is not cleared before it is written: clearing costs as much as a thin layer's arithmetic.

use std::mem::MaybeUninit;

use rayon::prelude::*;

use crate::Float;

/// Elements that one task clears.
const CHUNK: usize = 1 << 16;

/// `len` zeros, written by all threads of the pool: one alone is slower than the kernel that follows.
#[must_use]
pub fn zeros<T: Float>(len: usize) -> Vec<T> {
    let clear = |slots: &mut [MaybeUninit<T>]| slots.fill(MaybeUninit::new(T::ZERO));
    #[allow(unsafe_code, reason = "zeros are all that is written")]
    // SAFETY: the chunks cover the vector, and every element of a chunk is written.
    unsafe {
        written(len, |slots| slots.par_chunks_mut(CHUNK).for_each(clear)).0
    }
}

/// A vector of `len` elements that `fill` writes, and what `fill` returns.
///
/// # Safety
/// `fill` writes every element before it returns.
#[allow(unsafe_code, reason = "the caller's proof is the point of this function")]
pub(crate) unsafe fn written<T: Copy, R>(len: usize, fill: impl FnOnce(&mut [MaybeUninit<T>]) -> R) -> (Vec<T>, R) {
    let mut elements = Vec::with_capacity(len);
    let result = fill(&mut elements.spare_capacity_mut()[..len]);
    // SAFETY: the capacity is at least `len`, and `fill` has written the first `len` elements by contract.
    unsafe { elements.set_len(len) };
    (elements, result)
}

/// An initialised slice as one that need not be. This crate only ever writes values to it.
pub(crate) fn uninit<T: Copy>(slice: &mut [T]) -> &mut [MaybeUninit<T>] {
    let (start, len) = (slice.as_mut_ptr().cast::<MaybeUninit<T>>(), slice.len());
    #[allow(unsafe_code, reason = "the same elements under a type of the same layout")]
    // SAFETY: the borrow goes on in the result, and nobody in this crate writes an uninitialised value to such slices.
    unsafe {
        std::slice::from_raw_parts_mut(start, len)
    }
}

/// Copies a slice into memory of the same length.
pub(crate) fn write_copy<T: Copy>(out: &mut [MaybeUninit<T>], from: &[T]) {
    for (out, from) in out.iter_mut().zip(from) {
        out.write(*from);
    }
}

//! Memory asked for before it is needed, where the processor cannot guess what comes next: short runs far apart.

/// Bytes of a cache line.
const LINE: usize = 64;

/// Asks for the cache lines of `elements`; nothing but time depends on it.
#[inline(always)]
pub(crate) fn prefetch<T>(elements: &[T]) {
    #[cfg(target_arch = "x86_64")]
    for byte in (0..size_of_val(elements)).step_by(LINE) {
        let address = elements.as_ptr().cast::<i8>().wrapping_add(byte);
        #[allow(unsafe_code, reason = "an intrinsic")]
        // SAFETY: a prefetch reads nothing, and all of these processors have it.
        unsafe {
            std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(address);
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = elements;
}

//! The `dsd` program.

#[global_allocator]
static ALLOCATOR: dsd_train::memory::Counting = dsd_train::memory::Counting;

fn main() {
    keep_freed_memory();
    std::process::exit(dsd_train::cli::main());
}

/// Tells the C library's allocator to keep what is freed.
///
/// A training step frees and allocates hundreds of megabytes; handing every large block back to the system costs as much
/// time in page faults as the convolutions themselves (docs/benchmarks.md).
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code, reason = "a call into the C library")]
fn keep_freed_memory() {
    // SAFETY: mallopt only sets parameters of the allocator and is called before any other thread exists.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, i32::MAX);
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
        // The main arena alone: others hand what is freed at their ends back to the system, whatever the threshold.
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_TOP_PAD, 64 << 20);
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn keep_freed_memory() {}

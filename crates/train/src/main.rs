//! The `dsd` program.

#[global_allocator]
static ALLOCATOR: dsd_train::memory::Counting = dsd_train::memory::Counting;

fn main() {
    keep_freed_memory();
    let_idle_threads_sleep();
    std::process::exit(dsd_train::cli::main());
}

/// Lets candle's own threads sleep as soon as they have nothing to do.
///
/// After an elementwise operation of candle they would spin for a third of a millisecond, on the processors that the
/// next kernel of ours runs on (docs/benchmarks.md). A value that is set already stays.
#[allow(unsafe_code, reason = "candle reads this setting from the environment alone")]
fn let_idle_threads_sleep() {
    const LIMIT: &str = "CANDLE_BARRIER_POOL_SPIN_LIMIT";
    if std::env::var_os(LIMIT).is_none() {
        // SAFETY: called before any other thread exists.
        unsafe { std::env::set_var(LIMIT, "1") };
    }
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

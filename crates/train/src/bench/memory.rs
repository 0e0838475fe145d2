//! The memory of this process, as Linux tells it.

use std::fs;

/// What is resident now, freed memory given back, in MB.
pub(super) fn resident() -> Option<f64> {
    give_back();
    field("VmRSS:")
}

/// Begins a new peak, freed memory given back. False where the system does not allow it.
pub(super) fn reset_peak() -> bool {
    give_back();
    fs::write("/proc/self/clear_refs", "5").is_ok()
}

/// The program keeps freed memory; here it would hide what a case needs.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code, reason = "a call into the C library")]
fn give_back() {
    // SAFETY: malloc_trim may be called at any time from any thread; it touches free memory alone.
    unsafe { libc::malloc_trim(0) };
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn give_back() {}

/// The most that was resident since [`reset_peak`], in MB.
pub(super) fn peak() -> Option<f64> {
    field("VmHWM:")
}

fn field(name: &str) -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    let kilobytes: f64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kilobytes / 1024.0)
}

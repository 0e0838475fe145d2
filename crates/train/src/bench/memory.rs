//! The memory of this process, as Linux tells it.

use std::fs;

/// What is resident now, in MB.
pub(super) fn resident() -> Option<f64> {
    field("VmRSS:")
}

/// Begins a new peak. False where the system does not allow it.
pub(super) fn reset_peak() -> bool {
    fs::write("/proc/self/clear_refs", "5").is_ok()
}

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

//! What the whole-program tests share with the fuzz targets: the readers of bytes that come from outside, and a
//! mutator.

#![allow(clippy::expect_used, clippy::panic, reason = "a test that cannot go on must stop")]

pub mod formats;
pub mod mutants;

/// How many cases a test runs: few in every landing, many where `DSD_DEEP` is set (`cargo xtask reliability --deep`).
#[must_use]
pub fn cases(landing: u64, deep: u64) -> u64 {
    if std::env::var_os("DSD_DEEP").is_some() { deep } else { landing }
}

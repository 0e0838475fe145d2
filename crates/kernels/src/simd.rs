//! Which vector instructions the fast kernels may use, found out once at run time.
//!
//! A fast kernel is an `#[inline(always)]` generic body, called from one `#[target_feature(enable = "avx2,fma")]`
//! function and from one plain function (the portable path); matrix products are compiled for AVX-512 as well.
//! `DSD_SIMD=portable` or `avx2` keeps them from better instructions; the tests run each path that the processor has.

use std::ffi::OsStr;
use std::sync::OnceLock;

use crate::error::{Result, param};

/// What fast kernels are compiled for; each level has the instructions of those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    /// Any processor.
    Portable,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512F and AVX-512VL as well.
    Avx512,
}

/// The environment variable that keeps kernels from better instructions, and its values.
const VARIABLE: &str = "DSD_SIMD";
const NAMES: [(&str, Level); 3] = [("portable", Level::Portable), ("avx2", Level::Avx2), ("avx512", Level::Avx512)];

/// The best level that the environment allows.
fn allowed() -> Result<Level> {
    std::env::var_os(VARIABLE).map_or(Ok(Level::Avx512), |value| named(&value))
}

/// The level of that name.
fn named(value: &OsStr) -> Result<Level> {
    let level = NAMES.iter().find(|(name, _)| value == *name).map(|(_, level)| *level);
    level.ok_or_else(|| param("environment", VARIABLE, "portable, avx2 or avx512", value.display()))
}

/// Whether the variable `DSD_SIMD`, which keeps kernels from better instructions, can be understood; kernels ignore what
/// cannot.
///
/// # Errors
/// It is set to something else than `portable`, `avx2` or `avx512`.
pub fn check_environment() -> Result<()> {
    allowed().map(|_| ())
}

/// The best level of this processor that the environment allows.
#[inline]
pub(crate) fn level() -> Level {
    static LEVEL: OnceLock<Level> = OnceLock::new();
    *LEVEL.get_or_init(|| present().min(allowed().unwrap_or(Level::Avx512)))
}

/// The best level of this processor.
fn present() -> Level {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
        return if std::arch::is_x86_feature_detected!("avx512f") && std::arch::is_x86_feature_detected!("avx512vl") {
            Level::Avx512
        } else {
            Level::Avx2
        };
    }
    Level::Portable
}

/// True where the level has AVX2 and FMA.
#[inline]
pub(crate) fn avx2_fma() -> bool {
    level() >= Level::Avx2
}

/// Calls a generic `#[inline(always)]` function compiled twice: with AVX2 and FMA where present, else portably.
///
/// `multiversion!(fn name(args…) { body })` makes a function `name` that dispatches by [`avx2_fma`]; the body is plain
/// Rust that the compiler vectorises with the features of the version.
macro_rules! multiversion {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[allow(unsafe_code, reason = "the same safe body, compiled with more instructions")]
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $ty),*) $(-> $ret)? {
                    body($($arg),*)
                }
                if $crate::simd::avx2_fma() {
                    #[allow(unsafe_code, reason = "run-time detection stands before it")]
                    // SAFETY: `avx2_fma` has found both features on this processor.
                    return unsafe { avx2($($arg),*) };
                }
            }
            body($($arg),*)
        }
    };
}
pub(crate) use multiversion;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_have_names_and_other_names_are_refused() {
        for (name, level) in NAMES {
            assert_eq!(named(OsStr::new(name)), Ok(level));
        }
        let error = named(OsStr::new("sse")).unwrap_err().to_string();
        assert_eq!(error, "environment: DSD_SIMD is sse, expected portable, avx2 or avx512");
        assert!(level() <= present());
    }
}

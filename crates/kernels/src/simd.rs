//! Which vector instructions the fast kernels may use, found out once at run time.
//!
//! A fast kernel is an `#[inline(always)]` generic body, called from one `#[target_feature(enable = "avx2,fma")]`
//! function and from one plain function (the portable path); matrix products are compiled for AVX-512 as well.
//! `DSD_SIMD=portable` or `avx2` keeps them from better instructions; the tests run each path that the processor has.

use std::sync::OnceLock;

/// What fast kernels are compiled for; each level has the instructions of those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    /// Any processor.
    Portable,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512F as well.
    Avx512,
}

/// The best level of this processor, or a lower one that is forced.
#[inline]
pub(crate) fn level() -> Level {
    static LEVEL: OnceLock<Level> = OnceLock::new();
    *LEVEL.get_or_init(|| {
        let most = match std::env::var("DSD_SIMD").as_deref() {
            Ok("portable") => Level::Portable,
            Ok("avx2") => Level::Avx2,
            _ => Level::Avx512,
        };
        present().min(most)
    })
}

/// The best level of this processor.
fn present() -> Level {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
        return if std::arch::is_x86_feature_detected!("avx512f") { Level::Avx512 } else { Level::Avx2 };
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

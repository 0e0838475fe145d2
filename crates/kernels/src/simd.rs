//! Which vector instructions the fast kernels may use, found out once at run time.
//!
//! A fast kernel is an `#[inline(always)]` generic body, called from one `#[target_feature(enable = "avx2,fma")]`
//! function and from one plain function (the portable path). `DSD_PORTABLE=1` forces the portable path, which the tests
//! run as well.

use std::sync::atomic::{AtomicU8, Ordering};

/// 0 not looked up yet, 1 portable, 2 AVX2 and FMA.
static LEVEL: AtomicU8 = AtomicU8::new(0);

/// True where the processor has AVX2 and FMA and the portable path is not forced.
#[inline]
pub(crate) fn avx2_fma() -> bool {
    match LEVEL.load(Ordering::Relaxed) {
        0 => {
            let forced = std::env::var_os("DSD_PORTABLE").is_some_and(|value| value != "0");
            #[cfg(target_arch = "x86_64")]
            let present = std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma");
            #[cfg(not(target_arch = "x86_64"))]
            let present = false;
            let found = present && !forced;
            LEVEL.store(if found { 2 } else { 1 }, Ordering::Relaxed);
            found
        }
        level => level == 2,
    }
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

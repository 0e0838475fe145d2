//! eˣ and ln x in plain arithmetic that the compiler vectorises, and the call that gives a loop this processor's
//! instructions.

use crate::Float;

/// f32, with the vectorisable eˣ and ln x of this module, or f64, with those of the standard library.
pub trait Element: Float {
    /// eˣ. In f32 within 2 ulp; results below the smallest normal number are 0; NaN stays NaN.
    fn e_to(self) -> Self;
    /// ln x of a positive normal number, +∞ or NaN. In f32 within 2 ulp.
    fn log(self) -> Self;
    /// The larger one; `other` where one is NaN.
    #[inline(always)]
    fn larger(self, other: Self) -> Self {
        if self > other { self } else { other }
    }
}

impl Element for f32 {
    #[inline(always)]
    fn e_to(self) -> Self {
        exp(self)
    }

    #[inline(always)]
    fn log(self) -> Self {
        ln(self)
    }
}

impl Element for f64 {
    #[inline(always)]
    fn e_to(self) -> Self {
        self.exp()
    }

    #[inline(always)]
    fn log(self) -> Self {
        self.ln()
    }
}

/// ln 2 in two parts: the first has 9 significant bits, so that n times it is exact for |n| < 2¹⁵.
const LN_2_HIGH: f32 = 355.0 / 512.0;
const LN_2_LOW: f32 = (std::f64::consts::LN_2 - 355.0 / 512.0) as f32;

/// eˣ = 2ⁿ · eʳ with n = round(x / ln 2) and |r| ≤ ln 2 / 2, where eight terms of the series leave an error of 5e-9.
#[inline(always)]
fn exp(x: f32) -> f32 {
    /// Below ln of the smallest normal number the result is 0.
    const LOWEST: f32 = -87.336_54;
    /// Above ln of the largest number; the scaling below then gives +∞.
    const HIGHEST: f32 = 89.0;
    /// 1.5 · 2²³: added to a small number it leaves the number's nearest integer in the low bits.
    const ROUND: f32 = 12_582_912.0;

    // Comparisons, not `clamp`: a NaN goes through, and the compiler makes min and max of them.
    let clamped = if x < LOWEST { LOWEST } else { x };
    let clamped = if clamped > HIGHEST { HIGHEST } else { clamped };
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (clamped - n * LN_2_HIGH) - n * LN_2_LOW;
    let tail = 1.0 / 6.0 + r * (1.0 / 24.0 + r * (1.0 / 120.0 + r * (1.0 / 720.0 + r * (1.0 / 5040.0))));
    let series = 1.0 + (r + r * r * (0.5 + r * tail));
    // 2ⁿ as a product of two factors, because n = 128 has no bit pattern of its own.
    let exponent = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let half = exponent >> 1;
    let power = |n: i32| f32::from_bits((n.wrapping_add(127) as u32) << 23);
    let value = series * power(half) * power(exponent.wrapping_sub(half));
    if x < LOWEST { 0.0 } else { value }
}

/// ln x = e · ln 2 + 2 artanh(s) with x = 2ᵉ · m, √½ ≤ m < √2 and s = (m − 1) / (m + 1).
#[inline(always)]
fn ln(x: f32) -> f32 {
    /// The bits of √½: what lies above it in the mantissa belongs to the next exponent.
    const ROOT_HALF: u32 = std::f32::consts::FRAC_1_SQRT_2.to_bits();

    let shifted = x.to_bits().wrapping_sub(ROOT_HALF);
    let e = (shifted as i32) >> 23;
    let mantissa = f32::from_bits((shifted & 0x007f_ffff).wrapping_add(ROOT_HALF));
    let e = e as f32;
    let f = mantissa - 1.0;
    let s = f / (mantissa + 1.0);
    let square = s * s;
    // 2 artanh(s) = f − s · (f − 2 (s²/3 + s⁴/5 + …)): f is exact, what is subtracted is small.
    let tail = square * (2.0 / 3.0 + square * (2.0 / 5.0 + square * (2.0 / 7.0 + square * (2.0 / 9.0))));
    let value = e * LN_2_HIGH + (f - (s * (f - tail) - e * LN_2_LOW));
    if x < f32::INFINITY { value } else { x }
}

/// A loop that is compiled twice: with AVX2 and FMA, and portably. `run` is `#[inline(always)]`.
///
/// No kernel here fuses a multiplication with an addition, so both versions give the same bits.
pub(crate) trait Kernel {
    /// What the loop returns.
    type Output;
    /// The loop.
    fn run(self) -> Self::Output;
}

/// Runs a kernel with the instructions that this processor has.
#[inline]
pub(crate) fn vectorised<K: Kernel>(kernel: K) -> K::Output {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2,fma")]
        fn avx2<K: Kernel>(kernel: K) -> K::Output {
            kernel.run()
        }
        if crate::simd::avx2_fma() {
            #[allow(unsafe_code, reason = "run-time detection stands before it")]
            // SAFETY: `avx2_fma` has found both features on this processor.
            return unsafe { avx2(kernel) };
        }
    }
    kernel.run()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// |a − b| in units of the last place of b.
    fn ulps(got: f32, expected: f64) -> f64 {
        let rounded = expected as f32;
        let ulp = f64::from(f32::from_bits(rounded.abs().to_bits() + 1)) - f64::from(rounded.abs());
        (f64::from(got) - expected).abs() / ulp
    }

    #[test]
    fn exp_is_within_two_ulp_of_f64() {
        let mut worst = (0.0, 0.0);
        let count = 400_000;
        for step in 0..=count {
            let x = -87.33f32 + (88.72 + 87.33) * step as f32 / count as f32;
            let error = ulps(exp(x), f64::from(x).exp());
            if error > worst.0 {
                worst = (error, x);
            }
        }
        for step in 0..100_000 {
            let x = -(step as f32) * 1e-5;
            let error = ulps(exp(x), f64::from(x).exp());
            if error > worst.0 {
                worst = (error, x);
            }
        }
        assert!(worst.0 <= 2.0, "worst {} ulp at {}", worst.0, worst.1);
    }

    #[test]
    fn exp_has_the_right_ends() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-0.0), 1.0);
        assert_eq!(exp(-88.0), 0.0);
        assert_eq!(exp(-1e30), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(89.0), f32::INFINITY);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(88.72).is_finite());
    }

    #[test]
    fn ln_is_within_two_ulp_of_f64() {
        let mut worst = (0.0, 0.0);
        for step in 0..400_000u32 {
            for x in [1.0 + step as f32 * 1e-5, f32::from_bits(0x0080_0000 + step * 5_000), 0.5 + step as f32 * 2.5e-6]
            {
                let error = ulps(ln(x), f64::from(x).ln());
                if error > worst.0 {
                    worst = (error, x);
                }
            }
        }
        assert!(worst.0 <= 2.0, "worst {} ulp at {}", worst.0, worst.1);
        assert_eq!(ln(1.0), 0.0);
        assert_eq!(ln(f32::INFINITY), f32::INFINITY);
        assert!(ln(f32::NAN).is_nan());
    }
}

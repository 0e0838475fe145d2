//! Eight numbers side by side, and the vector instructions that work on them.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use crate::simd::{self, Level};

mod sums;

pub(crate) use sums::{ProductStage, Vector};

/// Numbers that one vector holds.
pub(crate) const WIDTH: usize = 8;

/// Eight f32 that are worked on together.
pub(crate) trait Lanes: Copy {
    /// The same value eight times.
    fn splat(value: f32) -> Self;
    /// Reads eight values.
    fn load(from: &[f32; WIDTH]) -> Self;
    /// Writes the eight values.
    fn store(self, to: &mut [f32; WIDTH]);
    /// `self + other`.
    fn add(self, other: Self) -> Self;
    /// `self − other`.
    fn sub(self, other: Self) -> Self;
    /// `self · factor`.
    fn mul(self, factor: Self) -> Self;
    /// `self · factor + addend`, rounded once where the processor can.
    fn mul_add(self, factor: Self, addend: Self) -> Self;
    /// The even ones of sixteen values, in order, and the odd ones.
    fn separate(low: Self, high: Self) -> [Self; 2];
    /// The values of `even` and `odd` in turn: sixteen. Undoes `separate`.
    fn alternate(even: Self, odd: Self) -> [Self; 2];
    /// Column j of eight rows of four becomes vector j.
    fn load_four_columns(rows: [&[f32; 4]; WIDTH]) -> [Self; 4];

    /// Column j of eight rows becomes vector j.
    #[inline(always)]
    fn load_columns(rows: [&[f32; WIDTH]; WIDTH]) -> [Self; WIDTH] {
        let mut columns = [Self::zero(); WIDTH];
        for half in 0..2 {
            let mut four = [&[0.0; 4]; WIDTH];
            for row in 0..WIDTH {
                four[row] = &rows[row].as_chunks::<4>().0[half];
            }
            let four = Self::load_four_columns(four);
            for column in 0..4 {
                columns[4 * half + column] = four[column];
            }
        }
        columns
    }

    /// Eight zeros.
    #[inline(always)]
    fn zero() -> Self {
        Self::splat(0.0)
    }

    /// `self · factor` with the same factor in each lane.
    #[inline(always)]
    fn scale(self, factor: f32) -> Self {
        self.mul(Self::splat(factor))
    }

    /// `self + factor · other`.
    #[inline(always)]
    fn plus(self, factor: f32, other: Self) -> Self {
        other.mul_add(Self::splat(factor), self)
    }

    /// Reads the first eight values of a slice; zeros where it is shorter.
    #[inline(always)]
    fn load_some(from: &[f32]) -> Self {
        if let Some(full) = from.first_chunk() {
            Self::load(full)
        } else {
            let mut padded = [0.0; WIDTH];
            padded[..from.len()].copy_from_slice(from);
            Self::load(&padded)
        }
    }

    /// Writes the eight values to memory that need not be initialised.
    #[inline(always)]
    fn write(self, to: &mut [MaybeUninit<f32>; WIDTH]) {
        let mut values = [0.0; WIDTH];
        self.store(&mut values);
        for lane in 0..WIDTH {
            to[lane].write(values[lane]);
        }
    }

    /// Writes as many of the values as there is memory for.
    #[inline(always)]
    fn write_some(self, to: &mut [MaybeUninit<f32>]) {
        if let Some(full) = to.first_chunk_mut() {
            self.write(full);
        } else {
            let mut values = [0.0; WIDTH];
            self.store(&mut values);
            for (to, value) in to.iter_mut().zip(values) {
                to.write(value);
            }
        }
    }

    /// Writes to the first eight values of a slice, or to as many as there are.
    #[inline(always)]
    fn store_some(self, to: &mut [f32]) {
        if let Some(full) = to.first_chunk_mut() {
            self.store(full);
        } else {
            let mut padded = [0.0; WIDTH];
            self.store(&mut padded);
            let len = to.len();
            to.copy_from_slice(&padded[..len]);
        }
    }
}

impl Lanes for [f32; WIDTH] {
    #[inline(always)]
    fn splat(value: f32) -> Self {
        [value; WIDTH]
    }
    #[inline(always)]
    fn load(from: &[f32; WIDTH]) -> Self {
        *from
    }
    #[inline(always)]
    fn store(self, to: &mut [f32; WIDTH]) {
        *to = self;
    }
    #[inline(always)]
    fn add(mut self, other: Self) -> Self {
        for lane in 0..WIDTH {
            self[lane] += other[lane];
        }
        self
    }
    #[inline(always)]
    fn sub(mut self, other: Self) -> Self {
        for lane in 0..WIDTH {
            self[lane] -= other[lane];
        }
        self
    }
    #[inline(always)]
    fn mul(mut self, factor: Self) -> Self {
        for lane in 0..WIDTH {
            self[lane] *= factor[lane];
        }
        self
    }
    #[inline(always)]
    fn mul_add(self, factor: Self, addend: Self) -> Self {
        // Not `f32::mul_add`: without the instruction that is a library call.
        self.mul(factor).add(addend)
    }
    #[inline(always)]
    fn separate([a, b, c, d, e, f, g, h]: Self, [i, j, k, l, m, n, o, p]: Self) -> [Self; 2] {
        [[a, c, e, g, i, k, m, o], [b, d, f, h, j, l, n, p]]
    }
    #[inline(always)]
    fn alternate(even: Self, odd: Self) -> [Self; 2] {
        let mut both = [[0.0; WIDTH]; 2];
        for lane in 0..WIDTH {
            both[lane / 4][lane % 4 * 2] = even[lane];
            both[lane / 4][lane % 4 * 2 + 1] = odd[lane];
        }
        both
    }
    #[inline(always)]
    fn load_four_columns(rows: [&[f32; 4]; WIDTH]) -> [Self; 4] {
        std::array::from_fn(|column| std::array::from_fn(|row| rows[row][column]))
    }
}

/// Eight f32 in an AVX register. Values exist only in code that [`Instructions::run`] has reached after detection.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(crate) struct Avx2(__m256);

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code, reason = "vector instructions behind run-time detection; loads and stores have whole arrays")]
impl Lanes for Avx2 {
    #[inline(always)]
    fn splat(value: f32) -> Self {
        // SAFETY: the processor has AVX2 and FMA, see the type.
        Self(unsafe { _mm256_set1_ps(value) })
    }
    #[inline(always)]
    fn load(from: &[f32; WIDTH]) -> Self {
        // SAFETY: as above; the array has eight values and the load needs no alignment.
        Self(unsafe { _mm256_loadu_ps(from.as_ptr()) })
    }
    #[inline(always)]
    fn store(self, to: &mut [f32; WIDTH]) {
        // SAFETY: as above.
        unsafe { _mm256_storeu_ps(to.as_mut_ptr(), self.0) }
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        // SAFETY: the processor has AVX2 and FMA, see the type.
        Self(unsafe { _mm256_add_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        // SAFETY: as above.
        Self(unsafe { _mm256_sub_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn mul(self, factor: Self) -> Self {
        // SAFETY: as above.
        Self(unsafe { _mm256_mul_ps(self.0, factor.0) })
    }
    #[inline(always)]
    fn mul_add(self, factor: Self, addend: Self) -> Self {
        // SAFETY: as above.
        Self(unsafe { _mm256_fmadd_ps(self.0, factor.0, addend.0) })
    }
    #[inline(always)]
    fn separate(low: Self, high: Self) -> [Self; 2] {
        // SAFETY: as above.
        unsafe {
            // 0 2 and 8 10 next to each other, 4 6 and 12 14: then the middle pairs change places.
            let evens = _mm256_castps_pd(_mm256_shuffle_ps::<0x88>(low.0, high.0));
            let odds = _mm256_castps_pd(_mm256_shuffle_ps::<0xDD>(low.0, high.0));
            [evens, odds].map(|pairs| Self(_mm256_castpd_ps(_mm256_permute4x64_pd::<0xD8>(pairs))))
        }
    }
    #[inline(always)]
    fn alternate(even: Self, odd: Self) -> [Self; 2] {
        // SAFETY: as above.
        unsafe {
            let (low, high) = (_mm256_unpacklo_ps(even.0, odd.0), _mm256_unpackhi_ps(even.0, odd.0));
            [Self(_mm256_permute2f128_ps::<0x20>(low, high)), Self(_mm256_permute2f128_ps::<0x31>(low, high))]
        }
    }
    #[inline(always)]
    fn load_four_columns(rows: [&[f32; 4]; WIDTH]) -> [Self; 4] {
        // Rows that lie four apart side by side: what is left is to transpose squares of 4 × 4.
        let mut pairs = [Self::zero(); 4];
        for row in 0..4 {
            // SAFETY: the processor has AVX2 and FMA, see the type; the rows have four values each.
            let [low, high] = unsafe { [_mm_loadu_ps(rows[row].as_ptr()), _mm_loadu_ps(rows[row + 4].as_ptr())] };
            // SAFETY: as above.
            pairs[row] = Self(unsafe { _mm256_insertf128_ps::<1>(_mm256_castps128_ps256(low), high) });
        }
        let [a, b, c, d] = pairs;
        // SAFETY: as above; these move values between registers.
        unsafe {
            let (ab_low, ab_high) = (_mm256_unpacklo_ps(a.0, b.0), _mm256_unpackhi_ps(a.0, b.0));
            let (cd_low, cd_high) = (_mm256_unpacklo_ps(c.0, d.0), _mm256_unpackhi_ps(c.0, d.0));
            [
                Self(_mm256_shuffle_ps::<0x44>(ab_low, cd_low)),
                Self(_mm256_shuffle_ps::<0xEE>(ab_low, cd_low)),
                Self(_mm256_shuffle_ps::<0x44>(ab_high, cd_high)),
                Self(_mm256_shuffle_ps::<0xEE>(ab_high, cd_high)),
            ]
        }
    }
}

/// Eight elements, unchecked: there are several loads for one vector of outputs.
///
/// # Safety
/// `from` + 8 is at most the length.
#[allow(unsafe_code, reason = "the caller's proof is the point of this function")]
#[inline(always)]
pub(crate) unsafe fn load_at<L: Lanes>(elements: &[f32], from: usize) -> L {
    debug_assert!(from + WIDTH <= elements.len());
    // SAFETY: by the caller's contract.
    L::load(unsafe { &*elements.as_ptr().add(from).cast() })
}

/// A piece of work that is compiled once for each kind of [`Lanes`].
///
/// `run` and all that it calls are `#[inline(always)]` and hold no closures over lanes, so that the whole piece is
/// compiled with the instructions of the function it ends up in.
pub(crate) trait Stage {
    /// Does the work.
    fn run<L: Lanes>(self);
}

/// The instructions that stages run with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Instructions {
    level: Level,
}

impl Instructions {
    /// What this processor has.
    pub(crate) fn detect() -> Self {
        Self { level: simd::level() }
    }

    /// Each choice that this processor has.
    #[cfg(test)]
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        let levels = [Level::Portable, Level::Avx2, Level::Avx512];
        levels.into_iter().filter(|level| *level <= simd::level()).map(|level| Self { level })
    }

    /// Runs a stage.
    pub(crate) fn run(self, stage: impl Stage) {
        #[cfg(target_arch = "x86_64")]
        if self.level >= Level::Avx2 {
            #[allow(unsafe_code, reason = "run-time detection stands before it")]
            // SAFETY: levels from AVX2 on exist only where `detect` has found AVX2 and FMA.
            unsafe {
                run_avx2(stage);
            }
            return;
        }
        stage.run::<[f32; WIDTH]>();
    }
}

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code, reason = "compiled with more instructions than the rest of the crate")]
#[target_feature(enable = "avx2,fma")]
fn run_avx2(stage: impl Stage) {
    stage.run::<Avx2>();
}

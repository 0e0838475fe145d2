//! Vectors of eight or sixteen numbers for sums of products, which fill whole registers with nothing but sums.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;
use std::mem::MaybeUninit;

#[cfg(target_arch = "x86_64")]
use super::Avx2;
use super::{Instructions, Lanes, WIDTH};
#[cfg(target_arch = "x86_64")]
use crate::simd::Level;

/// Some f32 that are worked on together.
pub(crate) trait Vector: Copy {
    /// How many.
    const LEN: usize;
    /// Sums that stay in registers beside their factors.
    const SUMS: usize;

    /// The same value in each lane.
    fn splat(value: f32) -> Self;
    /// Reads the values from `from` on.
    ///
    /// # Safety
    /// There are [`Vector::LEN`] of them.
    #[allow(unsafe_code, reason = "there are several loads for one vector of sums: the caller's proof is the point")]
    unsafe fn load_at(elements: &[f32], from: usize) -> Self;
    /// Reads the values of a slice that is shorter than a vector; zeros after them.
    fn load_first(elements: &[f32]) -> Self;
    /// Writes to the first elements of `to`.
    fn write(self, to: &mut [MaybeUninit<f32>]);
    /// `self + other`.
    fn add(self, other: Self) -> Self;
    /// `self · factor + addend`, rounded once where the processor can.
    fn mul_add(self, factor: Self, addend: Self) -> Self;
}

impl<L: Lanes, const N: usize> Vector for [L; N] {
    const LEN: usize = N * WIDTH;
    const SUMS: usize = 12 / N;

    #[inline(always)]
    fn splat(value: f32) -> Self {
        [L::splat(value); N]
    }
    #[allow(unsafe_code, reason = "as in the trait")]
    #[inline(always)]
    unsafe fn load_at(elements: &[f32], from: usize) -> Self {
        let mut vector = [L::zero(); N];
        for part in 0..N {
            // SAFETY: all N parts lie inside by contract.
            vector[part] = unsafe { super::load_at(elements, from + part * WIDTH) };
        }
        vector
    }
    #[inline(always)]
    fn load_first(elements: &[f32]) -> Self {
        let mut vector = [L::zero(); N];
        for (part, elements) in vector.iter_mut().zip(elements.chunks(WIDTH)) {
            *part = L::load_some(elements);
        }
        vector
    }
    #[inline(always)]
    fn write(self, to: &mut [MaybeUninit<f32>]) {
        for part in 0..N {
            self[part].write(&mut to.as_chunks_mut::<WIDTH>().0[part]);
        }
    }
    #[inline(always)]
    fn add(mut self, other: Self) -> Self {
        for part in 0..N {
            self[part] = self[part].add(other[part]);
        }
        self
    }
    #[inline(always)]
    fn mul_add(mut self, factor: Self, addend: Self) -> Self {
        for part in 0..N {
            self[part] = self[part].mul_add(factor[part], addend[part]);
        }
        self
    }
}

/// Sixteen f32 in an AVX-512 register. Values exist only in code that [`Instructions::run_products`] has reached after
/// detection.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(crate) struct Avx512(__m512);

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code, reason = "vector instructions behind run-time detection")]
impl Vector for Avx512 {
    const LEN: usize = 2 * WIDTH;
    const SUMS: usize = 24;

    #[inline(always)]
    fn splat(value: f32) -> Self {
        // SAFETY: the processor has AVX-512F, see the type.
        Self(unsafe { _mm512_set1_ps(value) })
    }
    #[inline(always)]
    unsafe fn load_at(elements: &[f32], from: usize) -> Self {
        debug_assert!(from + Self::LEN <= elements.len());
        // SAFETY: as above; sixteen elements lie there by contract, and the load needs no alignment.
        Self(unsafe { _mm512_loadu_ps(elements.as_ptr().add(from)) })
    }
    #[inline(always)]
    fn load_first(elements: &[f32]) -> Self {
        let mask = ((1u32 << elements.len().min(Self::LEN)) - 1) as u16;
        // SAFETY: as above; lanes that the mask leaves out are not read, and those that it has lie in the slice.
        Self(unsafe { _mm512_maskz_loadu_ps(mask, elements.as_ptr()) })
    }
    #[inline(always)]
    fn write(self, to: &mut [MaybeUninit<f32>]) {
        let to = &mut to[..Self::LEN];
        // SAFETY: as above; there are sixteen elements to write to.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr().cast(), self.0) }
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        // SAFETY: the processor has AVX-512F, see the type.
        Self(unsafe { _mm512_add_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn mul_add(self, factor: Self, addend: Self) -> Self {
        // SAFETY: as above.
        Self(unsafe { _mm512_fmadd_ps(self.0, factor.0, addend.0) })
    }
}

/// A piece of work made of sums of products, compiled once for each kind of [`Vector`]; as [`Stage`](super::Stage).
pub(crate) trait ProductStage {
    /// Does the work: `V` holds sixteen numbers, `H` eight.
    fn run<V: Vector, H: Vector>(self);
}

impl Instructions {
    /// Runs a stage of products.
    pub(crate) fn run_products(self, stage: impl ProductStage) {
        #[cfg(target_arch = "x86_64")]
        #[allow(unsafe_code, reason = "run-time detection stands before it")]
        match self.level {
            // SAFETY: this level exists only where `detect` has found AVX2, FMA, AVX-512F and AVX-512VL.
            Level::Avx512 => return unsafe { run_avx512(stage) },
            // SAFETY: this level exists only where `detect` has found AVX2 and FMA.
            Level::Avx2 => return unsafe { run_avx2(stage) },
            Level::Portable => {}
        }
        stage.run::<[[f32; WIDTH]; 2], [[f32; WIDTH]; 1]>();
    }
}

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code, reason = "compiled with more instructions than the rest of the crate")]
#[target_feature(enable = "avx2,fma")]
fn run_avx2(stage: impl ProductStage) {
    stage.run::<[Avx2; 2], [Avx2; 1]>();
}

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code, reason = "compiled with more instructions than the rest of the crate")]
#[target_feature(enable = "avx2,fma,avx512f,avx512vl")]
fn run_avx512(stage: impl ProductStage) {
    stage.run::<Avx512, [Avx2; 1]>();
}

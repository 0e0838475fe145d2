//! Random numbers as a function of (seed, purpose, epoch, index).
//!
//! Augmentation, shuffling, initialisation and dropout all draw from [`Stream`]. A stream is not an object with a
//! history that a checkpoint would have to save: two streams made from the same four values give the same numbers,
//! in any process, on any thread, in any order of use. The generator is ChaCha with 8 rounds; the four values *are*
//! its 256-bit key, so different purposes never share a sequence.
//!
//! ```
//! use dsd_random::Stream;
//! let mut a = Stream::new(7, "crop", 3, 42);
//! let mut b = Stream::new(7, "crop", 3, 42);
//! assert_eq!(a.below(1000), b.below(1000));
//! ```

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// A stream of random numbers that belongs to one (seed, purpose, epoch, index).
#[derive(Clone, Debug)]
pub struct Stream {
    generator: ChaCha8Rng,
}

impl Stream {
    /// The stream of `seed` for one `purpose` (a fixed name such as `"crop"`), one `epoch` (or step) and one `index`
    /// (sample, layer or parameter).
    #[must_use]
    pub fn new(seed: u64, purpose: &str, epoch: u64, index: u64) -> Self {
        let mut key = [0u8; 32];
        for (slot, word) in key.chunks_exact_mut(8).zip([seed, name_hash(purpose), epoch, index]) {
            slot.copy_from_slice(&word.to_le_bytes());
        }
        Self { generator: ChaCha8Rng::from_seed(key) }
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.generator.next_u64()
    }

    /// Uniform in [0, 1), 53 random bits.
    pub fn uniform(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in [low, high).
    pub fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.uniform()
    }

    /// Uniform in 0..limit; 0 where limit is 0. The bias is below limit / 2⁶⁴.
    pub fn below(&mut self, limit: usize) -> usize {
        ((u128::from(self.bits()) * limit as u128) >> 64) as usize
    }

    /// True with the given probability.
    pub fn chance(&mut self, probability: f64) -> bool {
        self.uniform() < probability
    }

    /// Normal with mean 0 and standard deviation 1 (Box–Muller, one value of the pair).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// Puts the items into a uniformly random order (Fisher–Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let other = self.below(last + 1);
            items.swap(last, other);
        }
    }
}

/// A fixed 64-bit hash of a name (FNV-1a): the index of a stream that belongs to a named parameter or layer.
#[must_use]
pub fn name_hash(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_keys_give_equal_numbers_and_each_part_of_the_key_counts() {
        let first = |seed, purpose, epoch, index| Stream::new(seed, purpose, epoch, index).bits();
        let base = first(1, "crop", 2, 3);
        assert_eq!(base, first(1, "crop", 2, 3));
        for other in [first(9, "crop", 2, 3), first(1, "flip", 2, 3), first(1, "crop", 9, 3), first(1, "crop", 2, 9)] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn moments_are_those_of_the_distributions() {
        let mut stream = Stream::new(5, "moments", 0, 0);
        let count = 200_000;
        let uniform: f64 = (0..count).map(|_| stream.uniform()).sum::<f64>() / f64::from(count);
        assert!((uniform - 0.5).abs() < 3e-3, "mean {uniform}");
        let normals: Vec<f64> = (0..count).map(|_| stream.normal()).collect();
        let mean = normals.iter().sum::<f64>() / f64::from(count);
        let variance = normals.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / f64::from(count);
        assert!(mean.abs() < 1e-2 && (variance - 1.0).abs() < 2e-2, "mean {mean}, variance {variance}");
    }

    #[test]
    fn a_shuffle_is_a_permutation_and_below_stays_below() {
        let mut stream = Stream::new(0, "order", 0, 0);
        let mut order: Vec<usize> = (0..100).collect();
        stream.shuffle(&mut order);
        assert_ne!(order, (0..100).collect::<Vec<_>>());
        order.sort_unstable();
        assert_eq!(order, (0..100).collect::<Vec<_>>());
        assert!((0..1000).all(|_| stream.below(7) < 7));
        assert_eq!(stream.below(0), 0);
    }
}

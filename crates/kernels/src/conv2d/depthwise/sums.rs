//! Sums of shifted rows: the output and the gradient of the input.

use std::mem::MaybeUninit;

use super::places::{Place, Places, STACK, Stacks};
use crate::lanes::{Lanes, Stage, WIDTH, load_at};

/// Vectors that are summed together: while one waits for its sum, the others are added to.
const TOGETHER: usize = 8;
/// Places whose vectors are, where each has two.
const PAIRS: usize = TOGETHER / 2;

/// A tap: where it reads, and its factor.
#[derive(Clone, Copy)]
pub(super) struct Tap {
    pub(super) offset: usize,
    pub(super) factor: f32,
}

/// out[to + s·j + rest] = start + Σ over the taps of `rest` of factor · copy[from + offset + j], for the eight j of each
/// place and every remainder `rest` of s, as far as a row of `out` goes.
pub(super) struct Sums<'a> {
    pub(super) copy: &'a [f32],
    /// The taps of each remainder.
    pub(super) taps: &'a [Vec<Tap>],
    pub(super) start: f32,
    pub(super) places: &'a Places,
    pub(super) out: &'a mut [MaybeUninit<f32>],
}

impl Stage for Sums<'_> {
    #[inline(always)]
    fn run<L: Lanes>(mut self) {
        let offsets = self.taps.iter().flatten().map(|tap| tap.offset);
        assert!(self.places.reach + offsets.max().unwrap_or(0) + WIDTH <= self.copy.len());
        match self.taps {
            [_] => self.all::<L, TOGETHER>(),
            _ => self.all::<L, PAIRS>(),
        }
    }
}

impl Sums<'_> {
    #[inline(always)]
    fn all<L: Lanes, const COUNT: usize>(&mut self) {
        let (groups, rest) = self.places.list.as_chunks::<COUNT>();
        for group in groups {
            self.places::<L, COUNT>(group);
        }
        for place in rest {
            self.places::<L, 1>(&[*place]);
        }
    }

    #[inline(always)]
    fn places<L: Lanes, const COUNT: usize>(&mut self, places: &[Place; COUNT]) {
        match self.taps {
            [taps] => {
                let sums = self.sums::<L, COUNT>(places, taps);
                for index in 0..COUNT {
                    let Place { to, room, .. } = places[index];
                    sums[index].write_some(&mut self.out[to..to + room.min(WIDTH)]);
                }
            }
            [even, odd] => {
                let (even, odd) = (self.sums::<L, COUNT>(places, even), self.sums::<L, COUNT>(places, odd));
                for index in 0..COUNT {
                    let Place { to, room, .. } = places[index];
                    let out = &mut self.out[to..to + room.min(2 * WIDTH)];
                    let [low, high] = L::alternate(even[index], odd[index]);
                    let (first, second) = out.split_at_mut(out.len().min(WIDTH));
                    low.write_some(first);
                    high.write_some(second);
                }
            }
            all => {
                for (rest, taps) in all.iter().enumerate() {
                    let sums = self.sums::<L, COUNT>(places, taps);
                    for index in 0..COUNT {
                        let mut values = [0.0; WIDTH];
                        sums[index].store(&mut values);
                        let Place { to, room, .. } = places[index];
                        let outs = self.out[to..to + room].iter_mut().skip(rest).step_by(all.len());
                        for (out, value) in outs.zip(values) {
                            out.write(value);
                        }
                    }
                }
            }
        }
    }

    #[allow(unsafe_code, reason = "a bound that is asserted once")]
    #[inline(always)]
    fn sums<L: Lanes, const COUNT: usize>(&self, places: &[Place; COUNT], taps: &[Tap]) -> [L; COUNT] {
        let mut sums = [L::splat(self.start); COUNT];
        for tap in taps {
            let factor = L::splat(tap.factor);
            for index in 0..COUNT {
                // SAFETY: asserted in `run` for the largest place and offset.
                let values = unsafe { load_at::<L>(self.copy, places[index].from + tap.offset) };
                sums[index] = values.mul_add(factor, sums[index]);
            }
        }
        sums
    }
}

/// As [`Sums`] without remainders for the stacks of `stacks`, where the taps are a grid: column x starts at
/// `columns[x]`, and its HEIGHT taps are a pitch apart; factors are \[HEIGHT\]\[columns\].
pub(super) struct StackedSums<'a, const HEIGHT: usize> {
    pub(super) copy: &'a [f32],
    pub(super) columns: &'a [usize],
    pub(super) factors: &'a [f32],
    pub(super) start: f32,
    pub(super) stacks: &'a Stacks,
    pub(super) out: &'a mut [MaybeUninit<f32>],
}

impl<const HEIGHT: usize> Stage for StackedSums<'_, HEIGHT> {
    #[inline(always)]
    fn run<L: Lanes>(mut self) {
        let Stacks { top, pitch, .. } = self.stacks;
        if top.list.is_empty() {
            return;
        }
        let below = (HEIGHT + STACK - 2) * pitch;
        assert!(top.reach + self.columns.iter().max().unwrap_or(&0) + below + WIDTH <= self.copy.len());
        // Two stacks share their factors, and one is added to while the other waits for its sums.
        let (pairs, rest) = top.list.as_chunks::<2>();
        for pair in pairs {
            self.stacks::<L, 2>(pair);
        }
        for place in rest {
            self.stacks::<L, 1>(&[*place]);
        }
    }
}

impl<const HEIGHT: usize> StackedSums<'_, HEIGHT> {
    #[allow(unsafe_code, reason = "a bound that is asserted once")]
    #[inline(always)]
    fn stacks<L: Lanes, const COUNT: usize>(&mut self, places: &[Place; COUNT]) {
        let Stacks { pitch, rise, .. } = self.stacks;
        let mut sums = [[L::splat(self.start); STACK]; COUNT];
        for (x, column) in self.columns.iter().enumerate() {
            let mut factors = [L::zero(); HEIGHT];
            for tap in 0..HEIGHT {
                factors[tap] = L::splat(self.factors[tap * self.columns.len() + x]);
            }
            for row in 0..HEIGHT + STACK - 1 {
                for index in 0..COUNT {
                    // SAFETY: asserted in `run` for the largest place, column and row.
                    let values = unsafe { load_at::<L>(self.copy, places[index].from + column + row * pitch) };
                    for tap in 0..HEIGHT {
                        if tap <= row && row - tap < STACK {
                            sums[index][row - tap] = values.mul_add(factors[tap], sums[index][row - tap]);
                        }
                    }
                }
            }
        }
        for index in 0..COUNT {
            for row in 0..STACK {
                let Place { to, room, .. } = places[index];
                sums[index][row].write_some(&mut self.out[to + row * rise..][..room.min(WIDTH)]);
            }
        }
    }
}

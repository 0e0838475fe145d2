//! Sums of products of a gradient and shifted rows: the gradient of the weight.

use super::places::{Place, Places, STACK, Stacks};
use crate::activation::BLOCK;
use crate::lanes::{Lanes, Stage, WIDTH, load_at};

/// Taps whose products are summed in one pass at most: as many vectors as stay in registers.
const MOST_TAPS: usize = 9;

/// What is multiplied, for one plane of each.
#[derive(Clone, Copy)]
pub(super) struct Factors<'a> {
    pub(super) grad: &'a [f32],
    pub(super) copy: &'a [f32],
}

impl Factors<'_> {
    /// The gradient at a place, `below` elements further: eight elements, or as many as its row still has and zeros.
    #[inline(always)]
    fn grad<L: Lanes>(&self, place: &Place, below: usize) -> L {
        L::load_some(&self.grad[place.to + below..][..place.room])
    }
}

/// sums[t] += Σ over the places of grad[to..] · copy[from + offsets[t]..].
pub(super) struct Products<'a> {
    pub(super) factors: Factors<'a>,
    pub(super) places: &'a Places,
    pub(super) offsets: &'a [usize],
    pub(super) sums: &'a mut [f64],
}

impl Stage for Products<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self) {
        assert!(self.places.reach + self.offsets.iter().max().unwrap_or(&0) + WIDTH <= self.factors.copy.len());
        for (offsets, sums) in self.offsets.chunks(MOST_TAPS).zip(self.sums.chunks_mut(MOST_TAPS)) {
            // One vector of partial sums for each tap, in f64 after each block.
            for places in self.places.list.chunks(BLOCK / WIDTH) {
                match offsets.len() {
                    1 => products::<L, 1>(self.factors, places, offsets, sums),
                    2 => products::<L, 2>(self.factors, places, offsets, sums),
                    3 => products::<L, 3>(self.factors, places, offsets, sums),
                    4 => products::<L, 4>(self.factors, places, offsets, sums),
                    5 => products::<L, 5>(self.factors, places, offsets, sums),
                    6 => products::<L, 6>(self.factors, places, offsets, sums),
                    7 => products::<L, 7>(self.factors, places, offsets, sums),
                    8 => products::<L, 8>(self.factors, places, offsets, sums),
                    _ => products::<L, MOST_TAPS>(self.factors, places, offsets, sums),
                }
            }
        }
    }
}

#[allow(unsafe_code, reason = "a bound that is asserted once")]
#[inline(always)]
fn products<L: Lanes, const TAPS: usize>(factors: Factors<'_>, places: &[Place], offsets: &[usize], sums: &mut [f64]) {
    let mut lanes = [L::zero(); TAPS];
    for place in places {
        let grad = factors.grad::<L>(place, 0);
        for tap in 0..TAPS {
            // SAFETY: asserted in `run` for the largest place and offset.
            let values = unsafe { load_at::<L>(factors.copy, place.from + offsets[tap]) };
            lanes[tap] = values.mul_add(grad, lanes[tap]);
        }
    }
    for tap in 0..TAPS {
        sums[tap] += total(lanes[tap]);
    }
}

#[inline(always)]
fn total<L: Lanes>(lanes: L) -> f64 {
    let mut values = [0.0; WIDTH];
    lanes.store(&mut values);
    values.into_iter().map(f64::from).sum()
}

/// As [`Products`] for the stacks of `stacks`, where the taps are a grid: column x starts at `columns[x]`, and its
/// HEIGHT taps are a pitch apart; sums are \[HEIGHT\]\[columns\].
pub(super) struct StackedProducts<'a, const HEIGHT: usize> {
    pub(super) factors: Factors<'a>,
    pub(super) stacks: &'a Stacks,
    pub(super) columns: &'a [usize],
    pub(super) sums: &'a mut [f64],
}

impl<const HEIGHT: usize> Stage for StackedProducts<'_, HEIGHT> {
    #[inline(always)]
    fn run<L: Lanes>(mut self) {
        if self.stacks.top.list.is_empty() {
            return;
        }
        let below = (HEIGHT + STACK - 2) * self.stacks.pitch;
        let reach = self.stacks.top.reach + self.columns.iter().max().unwrap_or(&0) + below;
        assert!(reach + WIDTH <= self.factors.copy.len());
        if HEIGHT * 3 <= MOST_TAPS && self.columns.len() == 3 {
            self.columns::<L, 3>(0);
        } else {
            for first in 0..self.columns.len() {
                self.columns::<L, 1>(first);
            }
        }
    }
}

impl<const HEIGHT: usize> StackedProducts<'_, HEIGHT> {
    /// The sums of COUNT columns of taps.
    #[allow(unsafe_code, reason = "a bound that is asserted once")]
    #[inline(always)]
    fn columns<L: Lanes, const COUNT: usize>(&mut self, first: usize) {
        let Stacks { top, pitch, rise, .. } = self.stacks;
        for places in top.list.chunks(BLOCK / WIDTH / STACK) {
            let mut lanes = [[L::zero(); HEIGHT]; COUNT];
            for place in places {
                let mut grads = [L::zero(); STACK];
                for index in 0..STACK {
                    grads[index] = self.factors.grad::<L>(place, index * rise);
                }
                for column in 0..COUNT {
                    let from = place.from + self.columns[first + column];
                    for row in 0..HEIGHT + STACK - 1 {
                        // SAFETY: asserted in `run` for the largest place, column and row.
                        let values = unsafe { load_at::<L>(self.factors.copy, from + row * pitch) };
                        for tap in 0..HEIGHT {
                            if tap <= row && row - tap < STACK {
                                lanes[column][tap] = values.mul_add(grads[row - tap], lanes[column][tap]);
                            }
                        }
                    }
                }
            }
            for column in 0..COUNT {
                for tap in 0..HEIGHT {
                    self.sums[tap * self.columns.len() + first + column] += total(lanes[column][tap]);
                }
            }
        }
    }
}

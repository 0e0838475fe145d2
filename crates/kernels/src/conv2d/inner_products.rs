//! Inner products of the rows of two matrices, both read where they lie.
//!
//! C[i, j] = Σ_pixels A[i, pixel] · B[j, pixel] with vectors along the pixels. Nothing is packed, and no lane is empty where
//! there are fewer rows than a vector has numbers, as in a gradient of few weights. Each sum is a vector, whose lanes are added at the end.

use std::ops::Range;

use super::weight_gradient::Side;
use crate::fresh::uninit;
use crate::gemm::PANEL_COLUMNS;
use crate::lanes::{Instructions, ProductStage, Vector};

/// Numbers that a sum has room for, as many as the longest vector.
pub(super) const LANES: usize = PANEL_COLUMNS;

/// Neighbouring pixels in both matrices: where the first one lies in their first rows, and how many they are.
#[derive(Clone, Copy)]
pub(super) struct Pairs {
    first: [usize; 2],
    len: usize,
}

/// Lists the pixels that two matrices have in the same order, as pairs.
pub(super) fn list_pairs(sides: [&Side<'_>; 2], pairs: &mut Vec<Pairs>) {
    pairs.clear();
    let [mut a, mut b] = sides.map(|side| side.runs.iter().copied());
    let (mut of_a, mut of_b) = (a.next(), b.next());
    while let (Some(run_a), Some(run_b)) = (&mut of_a, &mut of_b) {
        let len = run_a.len.min(run_b.len);
        pairs.push(Pairs { first: [run_a.first, run_b.first], len });
        for run in [&mut *run_a, &mut *run_b] {
            (run.first, run.len) = (run.first + len, run.len - len);
        }
        if run_a.len == 0 {
            of_a = a.next();
        }
        if run_b.len == 0 {
            of_b = b.next();
        }
    }
}

/// Adds the products of all rows of `a` and `b` to `sums`, [row of a][row of b][[`LANES`]].
pub(super) fn add_products(instructions: Instructions, [a, b]: [Side<'_>; 2], pairs: &[Pairs], sums: &mut [f32]) {
    assert_eq!(sums.len(), a.rows.len() * b.rows.len() * LANES);
    for (index, side) in [a, b].iter().enumerate() {
        let end = pairs.iter().map(|pairs| pairs.first[index] + pairs.len).max().unwrap_or(0);
        assert!(side.rows.iter().max().unwrap_or(&0) + end <= side.elements.len());
    }
    instructions.run_products(Products { a, b, pairs, sums });
}

/// What the lanes of each sum add up to.
pub(super) fn totals(sums: &[f32]) -> impl Iterator<Item = f32> {
    sums.as_chunks::<LANES>().0.iter().map(|lanes| {
        let mut halves = [0.0; LANES / 2];
        for (lane, half) in halves.iter_mut().enumerate() {
            *half = lanes[lane] + lanes[lane + LANES / 2];
        }
        halves.iter().sum()
    })
}

/// Made by [`add_products`] only, which has checked the places.
struct Products<'a> {
    a: Side<'a>,
    b: Side<'a>,
    pairs: &'a [Pairs],
    sums: &'a mut [f32],
}

impl ProductStage for Products<'_> {
    #[inline(always)]
    fn run<V: Vector, H: Vector>(mut self) {
        // As many sums as stay in registers beside their factors.
        if V::SUMS >= 24 {
            self.all::<V>([4, 6]);
        } else {
            self.all::<H>([3, 4]);
        }
    }
}

/// `count` cut into nearly equal parts of at most `most`.
#[inline(always)]
fn parts(count: usize, most: usize) -> impl Iterator<Item = Range<usize>> {
    let parts = count.div_ceil(most);
    (0..parts).map(move |part| part * count / parts..(part + 1) * count / parts)
}

impl Products<'_> {
    #[inline(always)]
    fn all<V: Vector>(&mut self, most: [usize; 2]) {
        for a in parts(self.a.rows.len(), most[0]) {
            for b in parts(self.b.rows.len(), most[1]) {
                match a.len() {
                    1 => self.rows::<V, 1>(a.start, b),
                    2 => self.rows::<V, 2>(a.start, b),
                    3 => self.rows::<V, 3>(a.start, b),
                    _ => self.rows::<V, 4>(a.start, b),
                }
            }
        }
    }

    #[inline(always)]
    fn rows<V: Vector, const A: usize>(&mut self, a: usize, b: Range<usize>) {
        match b.len() {
            1 => self.tile::<V, A, 1>(a, b.start),
            2 => self.tile::<V, A, 2>(a, b.start),
            3 => self.tile::<V, A, 3>(a, b.start),
            4 => self.tile::<V, A, 4>(a, b.start),
            5 => self.tile::<V, A, 5>(a, b.start),
            _ => self.tile::<V, A, 6>(a, b.start),
        }
    }

    /// The products of A rows from `a` on with B rows from `b` on.
    #[allow(unsafe_code, reason = "bounds that are asserted once")]
    #[inline(always)]
    fn tile<V: Vector, const A: usize, const B: usize>(&mut self, a: usize, b: usize) {
        const { assert!(V::LEN <= LANES) };
        let mut rows_a = [0; A];
        rows_a.copy_from_slice(&self.a.rows[a..a + A]);
        let mut rows_b = [0; B];
        rows_b.copy_from_slice(&self.b.rows[b..b + B]);
        let mut sums = [[V::splat(0.0); B]; A];
        for pairs in self.pairs {
            let [of_a, of_b] = pairs.first;
            let mut pixel = 0;
            while pixel < pairs.len {
                let len = pairs.len - pixel;
                let mut b = [V::splat(0.0); B];
                if len >= V::LEN {
                    for row in 0..B {
                        // SAFETY: `add_products` has checked the last pixel of all pairs in all rows.
                        b[row] = unsafe { V::load_at(self.b.elements, rows_b[row] + of_b + pixel) };
                    }
                    for row in 0..A {
                        // SAFETY: as above.
                        let a = unsafe { V::load_at(self.a.elements, rows_a[row] + of_a + pixel) };
                        for column in 0..B {
                            sums[row][column] = a.mul_add(b[column], sums[row][column]);
                        }
                    }
                } else {
                    for row in 0..B {
                        b[row] = V::load_first(&self.b.elements[rows_b[row] + of_b + pixel..][..len]);
                    }
                    for row in 0..A {
                        let a = V::load_first(&self.a.elements[rows_a[row] + of_a + pixel..][..len]);
                        for column in 0..B {
                            sums[row][column] = a.mul_add(b[column], sums[row][column]);
                        }
                    }
                }
                pixel += V::LEN;
            }
        }
        for row in 0..A {
            for column in 0..B {
                let place = ((a + row) * self.b.rows.len() + b + column) * LANES;
                let sum = &mut self.sums[place..place + V::LEN];
                // SAFETY: as many elements as a vector has.
                let old = unsafe { V::load_at(sum, 0) };
                old.add(sums[row][column]).write(uninit(sum));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use dsd_random::Stream;

    use super::*;
    use crate::gemm::Run;

    #[test]
    fn pairs_are_cut_where_a_run_of_either_side_ends() {
        let runs = |list: &[[usize; 2]]| list.iter().map(|&[first, len]| Run { first, len }).collect::<Vec<_>>();
        let (a, b) = (runs(&[[0, 5], [10, 4]]), runs(&[[100, 3], [200, 2], [300, 4]]));
        let side = |runs| Side { elements: &[], rows: &[], runs, far: false };
        let mut pairs = Vec::new();
        list_pairs([&side(&a), &side(&b)], &mut pairs);
        let listed: Vec<_> = pairs.iter().map(|pairs| (pairs.first, pairs.len)).collect();
        assert_eq!(listed, [([0, 100], 3), ([3, 200], 2), ([10, 300], 4)]);
    }

    #[test]
    fn products_are_those_of_the_formula_for_any_number_of_rows_and_pixels() {
        let mut stream = Stream::new(4, "inner products", 0, 0);
        let pairs =
            [([0, 2], 1), ([1, 5], 37), ([40, 60], 16), ([70, 90], 48)].map(|(first, len)| Pairs { first, len });
        let (plane_a, plane_b) = (118, 138);
        for (count_a, count_b) in [(1, 1), (2, 3), (3, 4), (4, 6), (5, 7), (9, 13), (1, 11)] {
            let mut draw = |len: usize| (0..len).map(|_| stream.normal() as f32).collect::<Vec<f32>>();
            let (a, b) = (draw(count_a * plane_a), draw(count_b * plane_b));
            let rows_a: Vec<usize> = (0..count_a).rev().map(|row| row * plane_a).collect();
            let rows_b: Vec<usize> = (0..count_b).map(|row| row * plane_b).collect();
            let side_a = Side { elements: &a, rows: &rows_a, runs: &[], far: false };
            let side_b = Side { elements: &b, rows: &rows_b, runs: &[], far: false };
            for instructions in Instructions::all() {
                let mut sums = vec![0.0; count_a * count_b * LANES];
                // Twice: the second time on top of the first.
                for _ in 0..2 {
                    add_products(instructions, [side_a, side_b], &pairs, &mut sums);
                }
                for (index, total) in totals(&sums).enumerate() {
                    let (row_a, row_b) = (rows_a[index / count_b], rows_b[index % count_b]);
                    let product = |pixel: usize, of: [usize; 2]| {
                        f64::from(a[row_a + of[0] + pixel]) * f64::from(b[row_b + of[1] + pixel])
                    };
                    let sum: f64 =
                        pairs.iter().flat_map(|pairs| (0..pairs.len).map(|pixel| product(pixel, pairs.first))).sum();
                    assert!(
                        (f64::from(total) - 2.0 * sum).abs() < 1e-4,
                        "{instructions:?} {count_a} {count_b} {index}"
                    );
                }
            }
        }
    }
}

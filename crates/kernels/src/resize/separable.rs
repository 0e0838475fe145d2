//! Linear maps of a plane that treat rows and columns apart: y = R · x · Cᵀ with sparse R and C.
//!
//! Bilinear and nearest resize and every average pool are such maps; their gradients are the same maps with R and C
//! transposed. One engine serves them all: it works a row at a time, with the weights of both axes computed once.

use std::any::Any;
use std::mem::{MaybeUninit, take};

use crate::Float;
use crate::parallel::{Shared, for_each_task};
use crate::simd::multiversion;

/// Elements that a task reads or writes, about: large against the cost of a task, small against a level 2 cache.
pub(crate) const TASK_ELEMENTS: usize = 32 * 1024;

/// The inputs `first..first + count` of one output position, with the weights `offset..offset + count`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    first: usize,
    count: usize,
    offset: usize,
}

/// One axis of a separable map: each output position is a weighted sum of a run of input positions.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Axis {
    input: usize,
    spans: Vec<Span>,
    weights: Vec<f64>,
}

impl Axis {
    /// From the first input position and the weights of each output position, in order.
    pub(crate) fn new<W: IntoIterator<Item = f64>>(input: usize, spans: impl Iterator<Item = (usize, W)>) -> Self {
        let mut axis = Self { input, spans: Vec::new(), weights: Vec::new() };
        for (first, weights) in spans {
            let offset = axis.weights.len();
            axis.weights.extend(weights);
            axis.spans.push(Span { first, count: axis.weights.len() - offset, offset });
        }
        axis
    }

    /// The transposed axis: what each input position receives from the outputs that it went into.
    pub(crate) fn transposed(&self) -> Self {
        let mut reach = vec![(usize::MAX, 0); self.input]; // first and last + 1 output of each input
        for (output, span) in self.spans.iter().enumerate() {
            for (from, to) in &mut reach[span.first..span.first + span.count] {
                *from = output.min(*from);
                *to = output + 1;
            }
        }
        let mut offset = 0;
        let spans: Vec<Span> = reach
            .into_iter()
            .map(|(from, to)| {
                let span = if to == 0 {
                    Span { first: 0, count: 0, offset }
                } else {
                    Span { first: from, count: to - from, offset }
                };
                offset += span.count;
                span
            })
            .collect();
        let mut weights = vec![0.0; offset];
        for (output, span) in self.spans.iter().enumerate() {
            for tap in 0..span.count {
                let target = spans[span.first + tap];
                weights[target.offset + output - target.first] = self.weights[span.offset + tap];
            }
        }
        Self { input: self.spans.len(), spans, weights }
    }

    /// Output positions.
    pub(crate) fn output(&self) -> usize {
        self.spans.len()
    }
}

/// Two inputs of an output, possibly the same one, with their weights.
#[derive(Clone, Copy, Debug)]
struct Pair<T> {
    places: [u32; 2],
    weights: [T; 2],
}

/// What the axis along a row comes down to.
#[derive(Debug)]
enum Along<T> {
    /// The row itself.
    Identity,
    /// Every output has one or two inputs.
    Pairs(Vec<Pair<T>>),
    /// Anything else.
    Spans,
}

/// An axis with weights of the element type.
#[derive(Debug)]
struct Taps<T> {
    input: usize,
    spans: Vec<Span>,
    weights: Vec<T>,
    along: Along<T>,
}

impl<T: Float> Taps<T> {
    fn new(axis: &Axis) -> Self {
        let weights: Vec<T> = axis.weights.iter().map(|&weight| T::from_f64(weight)).collect();
        let identity = axis.input == axis.output()
            && axis.spans.iter().enumerate().all(|(place, span)| (span.first, span.count) == (place, 1))
            && weights.iter().all(|&weight| weight == T::ONE);
        let pairs = || {
            axis.spans.iter().map(|span| match weights[span.offset..span.offset + span.count] {
                // Half and half instead of one and nothing: 0 · ∞ would not be 0.
                [only] => {
                    let half = only * T::from_f64(0.5);
                    Some(Pair { places: [u32::try_from(span.first).ok()?; 2], weights: [half; 2] })
                }
                [left, right] => {
                    let first = u32::try_from(span.first).ok()?;
                    Some(Pair { places: [first, first.checked_add(1)?], weights: [left, right] })
                }
                _ => None,
            })
        };
        let along = match (identity, pairs().collect::<Option<Vec<_>>>()) {
            (true, _) => Along::Identity,
            (false, Some(pairs)) => Along::Pairs(pairs),
            (false, None) => Along::Spans,
        };
        Self { input: axis.input, spans: axis.spans.clone(), weights, along }
    }

    /// One output row from one input row.
    #[inline(always)]
    fn along_row(&self, row: &[T], out: &mut [T]) {
        match &self.along {
            Along::Identity => out.copy_from_slice(row),
            Along::Pairs(pairs) => {
                for (slot, pair) in out.iter_mut().zip(pairs) {
                    let [left, right] = pair.places;
                    *slot = row[left as usize] * pair.weights[0] + row[right as usize] * pair.weights[1];
                }
            }
            Along::Spans => {
                for (slot, span) in out.iter_mut().zip(&self.spans) {
                    *slot = dot(
                        &row[span.first..span.first + span.count],
                        &self.weights[span.offset..span.offset + span.count],
                    );
                }
            }
        }
    }

    /// Output row `place` from input rows as long as `out`; the slice begins with input row `start`.
    #[inline(always)]
    fn across_rows(&self, place: usize, start: usize, image: &[T], out: &mut [T]) {
        let span = self.spans[place];
        let weights = &self.weights[span.offset..span.offset + span.count];
        let width = out.len();
        let rows = &image[(span.first - start) * width..(span.first - start + span.count) * width];
        for (index, (weights, rows)) in weights.chunks(2).zip(rows.chunks(2 * width)).enumerate() {
            match (index, weights) {
                (0, &[only]) if only == T::ONE => out.copy_from_slice(rows),
                (0, &[only]) => out.iter_mut().zip(rows).for_each(|(slot, &x)| *slot = only * x),
                (_, &[only]) => out.iter_mut().zip(rows).for_each(|(slot, &x)| *slot += only * x),
                (_, &[first, second]) => {
                    let (upper, lower) = rows.split_at(width);
                    let sums = out.iter_mut().zip(upper.iter().zip(lower));
                    if index == 0 {
                        sums.for_each(|(slot, (&a, &b))| *slot = first * a + second * b);
                    } else {
                        sums.for_each(|(slot, (&a, &b))| *slot += first * a + second * b);
                    }
                }
                _ => {}
            }
        }
    }
}

/// The sum of the products, eight partial sums at a time.
#[inline(always)]
fn dot<T: Float>(x: &[T], weights: &[T]) -> T {
    let (x_blocks, x_rest) = x.as_chunks::<8>();
    let (weight_blocks, weight_rest) = weights.as_chunks::<8>();
    let mut sum = T::ZERO;
    if !x_blocks.is_empty() {
        let mut partial = [T::ZERO; 8];
        for (x, weights) in x_blocks.iter().zip(weight_blocks) {
            for lane in 0..8 {
                partial[lane] += x[lane] * weights[lane];
            }
        }
        let [a, b, c, d, e, f, g, h] = partial;
        sum = ((a + e) + (b + f)) + ((c + g) + (d + h));
    }
    for (&x, &weight) in x_rest.iter().zip(weight_rest) {
        sum += x * weight;
    }
    sum
}

/// A separable map with everything computed that does not depend on the elements.
#[derive(Debug)]
struct Map<T> {
    rows: Taps<T>,
    columns: Taps<T>,
}

/// Applies the map to each of the `planes` planes of `x`; the caller has checked the length of `x`.
pub(crate) fn apply<T: Float>(rows: &Axis, columns: &Axis, x: &[T], planes: usize) -> Vec<T> {
    let map = Map { rows: Taps::<T>::new(rows), columns: Taps::<T>::new(columns) };
    let [height, width] = [rows.output(), columns.output()];
    let read_per_row = (rows.input * columns.input).div_ceil(height.max(1));
    let rows_per_task = TASK_ELEMENTS / read_per_row.max(columns.input).max(width).max(1);
    let work = for_f32_or(map_rows_f32 as fn(&Map<f32>, &[f32], usize, &mut [f32]), map_rows::<T>);
    let (out, _) = build_rows(planes * height, [width, 0], rows_per_task, |first, out: &mut [T], _: &mut [()]| {
        work(&map, x, first, out);
    });
    out
}

/// The fast f32 function where `Other` is the same type, else the plain one.
pub(crate) fn for_f32_or<Fast: 'static, Other: Copy + 'static>(fast: Fast, plain: Other) -> Other {
    let fast: &dyn Any = &fast;
    fast.downcast_ref::<Other>().copied().unwrap_or(plain)
}

multiversion! {
    fn map_rows_f32(map: &Map<f32>, x: &[f32], first: usize, out: &mut [f32]) {
        map_rows(map, x, first, out);
    }
}

/// The output rows from row `first` on, counted through all planes, as many as `out` holds.
#[inline(always)]
fn map_rows<T: Float>(map: &Map<T>, x: &[T], first: usize, out: &mut [T]) {
    let [in_height, in_width] = [map.rows.input, map.columns.input];
    let [height, width] = [map.rows.spans.len(), map.columns.spans.len()];
    let mut scratch = Vec::new();
    let (mut row, mut rest) = (first, out);
    while !rest.is_empty() {
        let (plane, from) = (row / height, row % height);
        let count = (height - from).min(rest.len() / width);
        let (band, tail) = take(&mut rest).split_at_mut(count * width);
        let image = &x[plane * in_height * in_width..(plane + 1) * in_height * in_width];
        if height > in_height {
            columns_first(map, image, from, band, &mut scratch);
        } else {
            rows_first(map, image, from, band, &mut scratch);
        }
        row += count;
        rest = tail;
    }
}

/// Fewer rows go out than come in: sum up rows, then work along the sum.
#[inline(always)]
fn rows_first<T: Float>(map: &Map<T>, image: &[T], from: usize, band: &mut [T], scratch: &mut Vec<T>) {
    let in_width = map.columns.input;
    scratch.resize(in_width, T::ZERO);
    for (index, out) in band.chunks_exact_mut(map.columns.spans.len()).enumerate() {
        let span = map.rows.spans[from + index];
        if span.count == 0 {
            continue; // the rows come zeroed
        }
        if matches!(map.columns.along, Along::Identity) {
            map.rows.across_rows(from + index, 0, image, out);
        } else if span.count == 1 && map.rows.weights[span.offset] == T::ONE {
            map.columns.along_row(&image[span.first * in_width..(span.first + 1) * in_width], out);
        } else {
            map.rows.across_rows(from + index, 0, image, scratch);
            map.columns.along_row(scratch, out);
        }
    }
}

/// More rows go out than come in: work along the incoming rows once, then sum them up.
#[inline(always)]
fn columns_first<T: Float>(map: &Map<T>, image: &[T], from: usize, band: &mut [T], scratch: &mut Vec<T>) {
    let [in_width, width] = [map.columns.input, map.columns.spans.len()];
    let count = band.len() / width;
    let spans = || map.rows.spans[from..from + count].iter().filter(|span| span.count > 0);
    let Some(start) = spans().map(|span| span.first).min() else { return };
    let end = spans().map(|span| span.first + span.count).max().unwrap_or(start);
    scratch.resize((end - start) * width, T::ZERO);
    for (place, row) in (start..end).zip(scratch.chunks_exact_mut(width)) {
        map.columns.along_row(&image[place * in_width..(place + 1) * in_width], row);
    }
    for (index, out) in band.chunks_exact_mut(width).enumerate() {
        if map.rows.spans[from + index].count > 0 {
            map.rows.across_rows(from + index, start, scratch, out);
        }
    }
}

/// Two vectors of `rows` rows with the given lengths, filled by tasks of `rows_per_task` rows.
///
/// A task receives the number of its first row and its rows, zeroed just before by the same thread, so that the zeros
/// stay in its cache.
#[allow(unsafe_code, reason = "elements are written by several tasks before the vector knows of them")]
pub(crate) fn build_rows<A, B>(
    rows: usize,
    lengths: [usize; 2],
    rows_per_task: usize,
    task: impl Fn(usize, &mut [A], &mut [B]) + Sync + Send,
) -> (Vec<A>, Vec<B>)
where
    A: Copy + Default + Send,
    B: Copy + Default + Send,
{
    let rows_per_task = rows_per_task.max(1);
    let totals = lengths.map(|length| rows * length);
    let (mut left, mut right) = (Vec::with_capacity(totals[0]), Vec::with_capacity(totals[1]));
    let left_parts = Shared::new(&mut left.spare_capacity_mut()[..totals[0]]);
    let right_parts = Shared::new(&mut right.spare_capacity_mut()[..totals[1]]);
    for_each_task(rows.div_ceil(rows_per_task), |index| {
        let first = index * rows_per_task;
        let count = rows_per_task.min(rows - first);
        // SAFETY: tasks have different indices, so their runs of rows do not overlap.
        let (left, right) = unsafe {
            (
                left_parts.part(first * lengths[0], count * lengths[0]),
                right_parts.part(first * lengths[1], count * lengths[1]),
            )
        };
        task(first, zeroed(left), zeroed(right));
    });
    // SAFETY: the tasks together cover `0..rows`, and each has written its whole part; a task that panics has unwound
    // past this line.
    unsafe {
        left.set_len(totals[0]);
        right.set_len(totals[1]);
    }
    (left, right)
}

/// The slots with zero in each of them.
#[allow(unsafe_code, reason = "slices of written slots have no safe conversion in our Rust version")]
fn zeroed<T: Copy + Default>(slots: &mut [MaybeUninit<T>]) -> &mut [T] {
    slots.fill(MaybeUninit::new(T::default()));
    // SAFETY: every slot has just been written, and `MaybeUninit<T>` has the layout of `T`.
    unsafe { &mut *(std::ptr::from_mut(slots) as *mut [T]) }
}

#[cfg(test)]
mod tests {
    use dsd_random::Stream;

    use super::*;

    #[test]
    fn transposing_twice_gives_the_axis_back() {
        let axis = Axis::new(4, [(0, vec![1.0, 2.0]), (1, vec![3.0, 4.0, 5.0]), (2, vec![6.0])].into_iter());
        let transposed = axis.transposed();
        // Column 3 of the matrix has one entry, row 1 of the transposed one has two.
        assert_eq!(transposed.weights, [1.0, 2.0, 3.0, 4.0, 6.0, 5.0]);
        assert_eq!(transposed.transposed(), axis);
    }

    #[test]
    fn an_axis_without_inputs_gives_zeros() {
        let rows = Axis::new(2, [(0, vec![1.0]), (0, vec![]), (1, vec![2.0])].into_iter());
        let columns = Axis::new(1, [(0, vec![1.0])].into_iter());
        assert_eq!(apply(&rows, &columns, &[5.0f32, 7.0], 1), [5.0, 0.0, 14.0]);
        assert_eq!(apply(&columns, &rows, &[5.0f32, 7.0], 1), [5.0, 0.0, 14.0]);
    }

    #[test]
    fn long_sums_are_whole() {
        let x: Vec<f64> = (0..29).map(f64::from).collect();
        for len in 0..x.len() {
            let expected = (0..len).map(|index| (index * index) as f64).sum::<f64>();
            assert_eq!(dot(&x[..len], &x[..len]), expected);
        }
    }

    #[test]
    fn one_thread_and_many_give_the_same_bits() {
        let mut stream = Stream::new(0, "separable", 0, 0);
        let (planes, input) = (5, [150, 130]); // several tasks
        let x: Vec<f32> = (0..planes * input[0] * input[1]).map(|_| stream.normal() as f32).collect();
        let on = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let up = crate::resize::resize_bilinear(&x, planes, input, [301, 200], true).unwrap();
                let down = crate::resize::resize_bilinear_backward(&up, planes, input, [301, 200], true).unwrap();
                let windows =
                    crate::max_pool2d::Pool2d { kernel: [3; 2], stride: [2; 2], padding: [1; 2], ceil_mode: false };
                let (maxima, places) = crate::max_pool2d::max_pool2d(&x, planes, input, windows).unwrap();
                let scattered = crate::max_pool2d::max_pool2d_backward(&maxima, &places, planes, input).unwrap();
                [up, down, maxima, scattered].map(|part| part.into_iter().map(f32::to_bits).collect::<Vec<_>>())
            })
        };
        let one = on(1);
        assert_eq!(one, on(2));
        assert_eq!(one, on(7));
    }
}

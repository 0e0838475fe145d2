//! Max pool with the places of the maxima, and the maps that follow these places: its gradient, max unpool and its
//! gradient.
//!
//! PyTorch's rules. Padding counts as −∞ and is never chosen; the first of equal maxima in row order is chosen; a NaN in
//! the window is the maximum, the last one if there are several. A place is `h · W + w` in the input plane.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{check_length, param};
use crate::lanes::WIDTH;
use crate::resize::separable::{TASK_ELEMENTS, build_rows, for_f32_or};
use crate::simd::multiversion;
use crate::{Error, Float, Result};

/// The windows of a pool, as (vertical, horizontal) pairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool2d {
    /// Size of a window, pixels.
    pub kernel: [usize; 2],
    /// Distance of neighbouring windows, pixels.
    pub stride: [usize; 2],
    /// Pixels added on each side, at most half a kernel.
    pub padding: [usize; 2],
    /// Whether a last window that is only partly inside counts. It must start inside the input or the left padding.
    pub ceil_mode: bool,
}

impl Pool2d {
    /// Height and width of the output for an input of the given height and width.
    ///
    /// # Errors
    /// Param, in the name of `op`, where a setting is out of range or no window fits.
    pub fn output_size(&self, op: &'static str, input: [usize; 2]) -> Result<[usize; 2]> {
        let mut output = [0; 2];
        for axis in 0..2 {
            let [size, kernel, stride, padding] =
                [input[axis], self.kernel[axis], self.stride[axis], self.padding[axis]];
            for (name, value) in [("kernel", kernel), ("stride", stride), ("input size", size)] {
                if value == 0 || value > u32::MAX as usize {
                    return Err(param(op, name, "from 1 to 4294967295", value));
                }
            }
            if padding > kernel / 2 {
                return Err(param(op, "padding", format!("at most half the kernel ({})", kernel / 2), padding));
            }
            let slack = if self.ceil_mode { stride - 1 } else { 0 };
            let Some(span) = (size + 2 * padding + slack).checked_sub(kernel) else {
                return Err(param(op, "kernel", format!("at most the padded input ({})", size + 2 * padding), kernel));
            };
            let mut count = span / stride + 1;
            if self.ceil_mode && (count - 1) * stride >= size + padding {
                count -= 1;
            }
            output[axis] = count;
        }
        Ok(output)
    }

    /// The part `from..to` of an input axis that window `place` covers; never empty.
    #[inline(always)]
    pub(crate) fn window(&self, axis: usize, place: usize, size: usize) -> (usize, usize) {
        let start = place * self.stride[axis];
        let padding = self.padding[axis];
        (start.saturating_sub(padding), (start + self.kernel[axis] - padding).min(size))
    }
}

/// Max pool of `planes` planes of `input` (height, width): the maxima and their places, both `[planes, H', W']`.
///
/// # Errors
/// Param where the windows do not fit or a plane has more than 2³² − 1 pixels; Length where `x` does not match.
pub fn max_pool2d<T: Float>(x: &[T], planes: usize, input: [usize; 2], pool: Pool2d) -> Result<(Vec<T>, Vec<u32>)> {
    const OP: &str = "max_pool2d";
    let output = pool.output_size(OP, input)?;
    check_plane(OP, input)?;
    check_length(OP, "x", x.len(), planes * input[0] * input[1])?;
    let windows = Windows { pool, input, output };
    let work = for_f32_or(
        rows_fast as fn(&Windows, &[f32], usize, &mut [f32], &mut [u32]),
        rows_plain::<T> as fn(&Windows, &[T], usize, &mut [T], &mut [u32]),
    );
    let per_row = (pool.kernel[0].min(input[0]) * input[1]).max(output[1]);
    Ok(build_rows(planes * output[0], [output[1]; 2], TASK_ELEMENTS / per_row, |first, maxima, places| {
        work(&windows, x, first, maxima, places);
    }))
}

/// The gradient of [`max_pool2d`] for its input of size `input`: each output's gradient goes to the place of its maximum.
///
/// `gradient` and `indices` are `[planes, H', W']`, the result is `[planes, H, W]`.
///
/// # Errors
/// Length where the slices do not match; Param where an index lies outside the input plane.
pub fn max_pool2d_backward<T: Float>(
    gradient: &[T],
    indices: &[u32],
    planes: usize,
    input: [usize; 2],
) -> Result<Vec<T>> {
    scatter("max_pool2d_backward", "gradient", gradient, indices, planes, input, |slot, value| *slot += value)
}

/// Max unpool: zeros with the values at their places, `[planes, H, W]` to planes of size `output`.
///
/// Where an index comes twice in a plane (overlapping windows), the last one in row order wins.
///
/// # Errors
/// Length where the slices do not match; Param where an index lies outside the output plane.
pub fn max_unpool2d<T: Float>(x: &[T], indices: &[u32], planes: usize, output: [usize; 2]) -> Result<Vec<T>> {
    scatter("max_unpool2d", "x", x, indices, planes, output, |slot, value| *slot = value)
}

/// The gradient of [`max_unpool2d`] for its input: the gradient at each place, also for a value that was overwritten by
/// a later one with the same index (PyTorch's choice).
///
/// # Errors
/// Length where the slices do not match; Param where an index lies outside the output plane.
pub fn max_unpool2d_backward<T: Float>(
    gradient: &[T],
    indices: &[u32],
    planes: usize,
    output: [usize; 2],
) -> Result<Vec<T>> {
    const OP: &str = "max_unpool2d_backward";
    let plane = check_plane(OP, output)?;
    check_length(OP, "gradient", gradient.len(), planes * plane)?;
    let count = plane_of(OP, "indices", indices.len(), planes)?;
    let outside = AtomicBool::new(false);
    let (x_gradient, _) =
        build_rows(planes, [count, 0], TASK_ELEMENTS / count.max(1), |first, out: &mut [T], _: &mut [()]| {
            for (index, out) in out.chunks_exact_mut(count).enumerate() {
                let gradient = &gradient[(first + index) * plane..(first + index + 1) * plane];
                let indices = &indices[(first + index) * count..(first + index + 1) * count];
                for (slot, &place) in out.iter_mut().zip(indices) {
                    match gradient.get(place as usize) {
                        Some(&value) => *slot = value,
                        None => outside.store(true, Ordering::Relaxed),
                    }
                }
            }
        });
    if outside.into_inner() { Err(outside_index(OP, indices, plane)) } else { Ok(x_gradient) }
}

/// What a task of the forward pass needs to know.
struct Windows {
    pool: Pool2d,
    input: [usize; 2],
    output: [usize; 2],
}

/// The output rows from row `first` on, counted through all planes, by the definition.
fn rows_plain<T: Float>(windows: &Windows, x: &[T], first: usize, maxima: &mut [T], places: &mut [u32]) {
    let Windows { pool, input: [height, width], output: [out_height, out_width] } = *windows;
    for (index, (maxima, places)) in
        maxima.chunks_exact_mut(out_width).zip(places.chunks_exact_mut(out_width)).enumerate()
    {
        let (plane, row) = ((first + index) / out_height, (first + index) % out_height);
        let image = &x[plane * height * width..(plane + 1) * height * width];
        let rows = pool.window(0, row, height);
        for (column, (maximum, place)) in maxima.iter_mut().zip(places).enumerate() {
            (*maximum, *place) = maximum_of(image, width, rows, pool.window(1, column, width));
        }
    }
}

/// The maximum of one window and its place.
#[inline(always)]
fn maximum_of<T: Float>(image: &[T], width: usize, rows: (usize, usize), columns: (usize, usize)) -> (T, u32) {
    let mut maximum = T::NEG_INFINITY;
    let mut place = rows.0 * width + columns.0;
    for row in rows.0..rows.1 {
        for column in columns.0..columns.1 {
            let value = image[row * width + column];
            if value > maximum || value.is_nan() {
                maximum = value;
                place = row * width + column;
            }
        }
    }
    (maximum, place as u32) // `check_plane`: every place fits
}

multiversion! {
    /// As [`rows_plain`]: first down the columns of the window rows, then along what that leaves.
    fn rows_fast(windows: &Windows, x: &[f32], first: usize, maxima: &mut [f32], places: &mut [u32]) {
        let Windows { pool, input: [height, width], output: [out_height, out_width] } = *windows;
        if width.min(out_width) < WIDTH {
            return rows_plain(windows, x, first, maxima, places);
        }
        let [kernel, stride, padding] = [pool.kernel[1], pool.stride[1], pool.padding[1]];
        // A row with its padding, which is never chosen: its places come after all others.
        let padded = ((out_width - 1) * stride + kernel).max(padding + width);
        let mut column_maxima = vec![f32::NEG_INFINITY; padded];
        let mut column_places = vec![u32::MAX; padded];
        let inside = padding..padding + width;
        let phase_len = out_width + (kernel - 1) / stride;
        let mut phase_maxima = vec![0.0f32; if stride > 1 { stride.min(kernel) * phase_len } else { 0 }];
        let mut phase_places = vec![0u32; phase_maxima.len()];
        for (index, (maxima, places)) in maxima.chunks_exact_mut(out_width).zip(places.chunks_exact_mut(out_width)).enumerate() {
            let (plane, row) = ((first + index) / out_height, (first + index) % out_height);
            let image = &x[plane * height * width..(plane + 1) * height * width];
            let rows = pool.window(0, row, height);
            let window = &image[rows.0 * width..rows.1 * width];
            if column_pass(window, rows.0 * width, &mut column_maxima[inside.clone()], &mut column_places[inside.clone()]) {
                // The vector comparisons do not know the rule for NaN.
                for (column, (maximum, place)) in maxima.iter_mut().zip(places).enumerate() {
                    (*maximum, *place) = maximum_of(image, width, rows, pool.window(1, column, width));
                }
                continue;
            }
            let (values, of_values) = if stride > 1 {
                split_phases(&column_maxima, stride, phase_len, &mut phase_maxima);
                split_phases(&column_places, stride, phase_len, &mut phase_places);
                (&phase_maxima, &phase_places)
            } else {
                (&column_maxima, &column_places)
            };
            for start in (0..out_width).step_by(WIDTH) {
                let start = start.min(out_width - WIDTH);
                let mut largest = Candidates::load(&values[start..], &of_values[start..]);
                for tap in 1..kernel {
                    let from = (tap % stride) * phase_len + tap / stride + start;
                    largest.take_larger(Candidates::load(&values[from..], &of_values[from..]));
                }
                largest.store(&mut maxima[start..], &mut places[start..]);
            }
        }
    }
}

/// The maximum of each column of `rows` and its place, counted from `offset`; tells whether there is a NaN. At least
/// eight columns.
#[inline(always)]
fn column_pass(rows: &[f32], offset: usize, maxima: &mut [f32], places: &mut [u32]) -> bool {
    let width = maxima.len();
    let mut nans = [0u32; WIDTH];
    for start in (0..width).step_by(WIDTH) {
        let start = start.min(width - WIDTH);
        // A whole vector goes down all rows before it is written: to write where the maximum changes is far slower.
        let mut largest = Candidates::at(&rows[start..], (offset + start) as u32, &mut nans);
        for from in (start + width..rows.len()).step_by(width) {
            largest.take_larger(Candidates::at(&rows[from..], (offset + from) as u32, &mut nans));
        }
        largest.store(&mut maxima[start..], &mut places[start..]);
    }
    nans != [0; WIDTH]
}

/// Eight values and their places.
#[derive(Clone, Copy)]
struct Candidates {
    values: [f32; WIDTH],
    places: [u32; WIDTH],
}

impl Candidates {
    /// The first eight values of `row`, at the places from `place` on; marks the NaN.
    #[inline(always)]
    fn at(row: &[f32], place: u32, nans: &mut [u32; WIDTH]) -> Self {
        let mut values = [0.0; WIDTH];
        values.copy_from_slice(&row[..WIDTH]);
        let mut places = [place; WIDTH];
        for lane in 0..WIDTH {
            places[lane] += lane as u32;
            nans[lane] |= u32::from(values[lane].is_nan());
        }
        Self { values, places }
    }

    /// Keeps the larger of two values in each lane, at equality the one whose place comes first.
    #[inline(always)]
    fn take_larger(&mut self, other: Self) {
        for lane in 0..WIDTH {
            let larger = (other.values[lane] > self.values[lane])
                | ((other.values[lane] == self.values[lane]) & (other.places[lane] < self.places[lane]));
            self.values[lane] = if larger { other.values[lane] } else { self.values[lane] };
            self.places[lane] = if larger { other.places[lane] } else { self.places[lane] };
        }
    }

    #[inline(always)]
    fn load(values: &[f32], places: &[u32]) -> Self {
        let mut own = Self { values: [0.0; WIDTH], places: [0; WIDTH] };
        own.values.copy_from_slice(&values[..WIDTH]);
        own.places.copy_from_slice(&places[..WIDTH]);
        own
    }

    #[inline(always)]
    fn store(self, values: &mut [f32], places: &mut [u32]) {
        values[..WIDTH].copy_from_slice(&self.values);
        places[..WIDTH].copy_from_slice(&self.places);
    }
}

/// Sorts the elements by their position modulo `stride`, so that every `stride`-th one lies side by side.
#[inline(always)]
fn split_phases<E: Copy>(elements: &[E], stride: usize, phase_len: usize, phases: &mut [E]) {
    if stride == 2 && phases.len() == 2 * phase_len {
        // The common case in a form that the compiler turns into shuffles.
        let (even, odd) = phases.split_at_mut(phase_len);
        let (pairs, last) = elements.as_chunks::<2>();
        for ((even, odd), &[first, second]) in even.iter_mut().zip(odd).zip(pairs) {
            (*even, *odd) = (first, second);
        }
        if let (&[last], Some(slot)) = (last, even.get_mut(pairs.len())) {
            *slot = last;
        }
        return;
    }
    for (phase, slots) in phases.chunks_exact_mut(phase_len).enumerate() {
        for (slot, &element) in slots.iter_mut().zip(elements.iter().skip(phase).step_by(stride)) {
            *slot = element;
        }
    }
}

/// Zero planes of size `target` into which `put` writes each element at its index.
fn scatter<T: Float>(
    op: &'static str,
    argument: &'static str,
    elements: &[T],
    indices: &[u32],
    planes: usize,
    target: [usize; 2],
    put: impl Fn(&mut T, T) + Sync + Send,
) -> Result<Vec<T>> {
    let plane = check_plane(op, target)?;
    let count = plane_of(op, argument, elements.len(), planes)?;
    check_length(op, "indices", indices.len(), elements.len())?;
    let outside = AtomicBool::new(false);
    let (out, _) = build_rows(planes, [plane, 0], TASK_ELEMENTS / plane, |first, out: &mut [T], _: &mut [()]| {
        for (index, out) in out.chunks_exact_mut(plane).enumerate() {
            let part = (first + index) * count..(first + index + 1) * count;
            for (&place, &element) in indices[part.clone()].iter().zip(&elements[part]) {
                match out.get_mut(place as usize) {
                    Some(slot) => put(slot, element),
                    None => outside.store(true, Ordering::Relaxed),
                }
            }
        }
    });
    if outside.into_inner() { Err(outside_index(op, indices, plane)) } else { Ok(out) }
}

/// Pixels of a plane whose places must fit into u32.
fn check_plane(op: &'static str, size: [usize; 2]) -> Result<usize> {
    match size[0].checked_mul(size[1]) {
        Some(plane) if plane > 0 && u32::try_from(plane).is_ok() => Ok(plane),
        _ => Err(param(op, "plane size", "from 1 to 4294967295 pixels", format!("{size:?}"))),
    }
}

/// Elements of each plane of a slice that must divide into planes.
fn plane_of(op: &'static str, argument: &'static str, len: usize, planes: usize) -> Result<usize> {
    let count = len.checked_div(planes).unwrap_or(0);
    check_length(op, argument, len, count * planes)?;
    Ok(count)
}

fn outside_index(op: &'static str, indices: &[u32], plane: usize) -> Error {
    let largest = indices.iter().copied().max().unwrap_or(0);
    param(op, "indices", format!("below the {plane} pixels of a plane"), largest)
}

#[cfg(test)]
mod tests {
    use dsd_random::Stream;

    use super::*;

    fn pool(kernel: [usize; 2], stride: [usize; 2], padding: [usize; 2], ceil_mode: bool) -> Pool2d {
        Pool2d { kernel, stride, padding, ceil_mode }
    }

    #[test]
    fn the_first_of_equal_maxima_in_row_order_is_chosen() {
        let x = [1.0, 5.0, 0.0, 0.0, 5.0, 5.0, 0.0, 0.0, 2.0, 2.0, 3.0, 4.0, 2.0, 2.0, 4.0, 4.0];
        let (maxima, places) = max_pool2d(&x, 1, [4, 4], pool([2, 2], [2, 2], [0, 0], false)).unwrap();
        assert_eq!(maxima, [5.0, 0.0, 2.0, 4.0]);
        assert_eq!(places, [1, 2, 8, 11]);
        let gradient = max_pool2d_backward(&[1.0, 2.0, 3.0, 4.0], &places, 1, [4, 4]).unwrap();
        let mut expected = [0.0; 16];
        (expected[1], expected[2], expected[8], expected[11]) = (1.0, 2.0, 3.0, 4.0);
        assert_eq!(gradient, expected);
    }

    #[test]
    fn overlapping_windows_add_their_gradients() {
        let x = [0.0, 0.0, 0.0, 0.0, 9.0, 0.0, 0.0, 0.0, 0.0f32];
        let (maxima, places) = max_pool2d(&x, 1, [3, 3], pool([2, 2], [1, 1], [0, 0], false)).unwrap();
        assert_eq!((maxima, places.clone()), (vec![9.0; 4], vec![4; 4]));
        let gradient = max_pool2d_backward(&[1.0, 2.0, 3.0, 4.0], &places, 1, [3, 3]).unwrap();
        assert_eq!(gradient, [0.0, 0.0, 0.0, 0.0, 10.0, 0.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn padding_is_never_chosen_and_nan_is_a_maximum() {
        let lowest = f32::NEG_INFINITY;
        let options = pool([3, 3], [2, 2], [1, 1], false);
        let (maxima, places) = max_pool2d(&[lowest; 9], 1, [3, 3], options).unwrap();
        assert_eq!((maxima, places), (vec![lowest; 4], vec![0, 1, 3, 4]));
        let nan = f32::NAN;
        let (maxima, places) =
            max_pool2d(&[nan, 1.0, nan, 7.0], 1, [2, 2], pool([2, 2], [1, 1], [0, 0], false)).unwrap();
        assert!(maxima[0].is_nan());
        assert_eq!(places, [2], "the last NaN in row order");
    }

    #[test]
    fn output_sizes_follow_the_ceil_rule() {
        // (input, kernel, stride, padding) -> (floor, ceil)
        let rows = [
            ((5, 2, 2, 0), (2, 3)),
            ((6, 3, 2, 0), (2, 3)),
            ((7, 3, 2, 1), (4, 4)),
            ((8, 3, 2, 1), (4, 5)),
            ((1, 3, 2, 1), (1, 1)),
            ((4, 2, 3, 1), (2, 2)),
            ((4, 1, 3, 0), (2, 2)), // the third window would start behind the input
            ((5, 2, 4, 1), (2, 2)),
            ((2, 2, 3, 1), (1, 1)), // a second window would start in the right padding
        ];
        for ((size, kernel, stride, padding), (floor, ceil)) in rows {
            for (ceil_mode, expected) in [(false, floor), (true, ceil)] {
                let options = pool([kernel; 2], [stride; 2], [padding; 2], ceil_mode);
                let got = options.output_size("test", [size, size]);
                assert_eq!(got, Ok([expected; 2]), "{size} {options:?}");
            }
        }
        assert_eq!(pool([2; 2], [2; 2], [0; 2], true).output_size("test", [1, 1]), Ok([1, 1]));
    }

    #[test]
    fn bad_arguments_are_named() {
        let message = |result: Result<[usize; 2]>| result.unwrap_err().to_string();
        let good = pool([2, 2], [1, 1], [0, 0], false);
        let padded = Pool2d { padding: [0, 2], ..good };
        assert_eq!(message(padded.output_size("p", [4, 4])), "p: padding is 2, expected at most half the kernel (1)");
        assert!(message(Pool2d { stride: [0, 1], ..good }.output_size("p", [4, 4])).contains("stride is 0"));
        assert!(message(Pool2d { kernel: [1, 0], ..good }.output_size("p", [4, 4])).contains("kernel is 0"));
        assert!(message(good.output_size("p", [1, 4])).contains("kernel is 2, expected at most the padded input (1)"));
        assert!(max_pool2d(&[0.0f32; 5], 1, [2, 3], good).is_err());
        let outside = max_unpool2d(&[1.0f32, 2.0], &[0, 6], 1, [2, 3]).unwrap_err();
        assert_eq!(outside.to_string(), "max_unpool2d: indices is 6, expected below the 6 pixels of a plane");
        assert!(max_unpool2d_backward(&[0.0f32; 6], &[0, 6], 1, [2, 3]).is_err());
        assert!(max_pool2d_backward(&[0.0f32; 2], &[0, 6], 1, [2, 3]).is_err());
        assert!(max_unpool2d(&[1.0f32, 2.0], &[0], 1, [2, 3]).is_err());
        assert!(max_unpool2d(&[1.0f32, 2.0, 3.0], &[0, 1, 2], 2, [2, 3]).is_err());
    }

    #[test]
    fn unpool_puts_values_back_and_the_last_of_two_wins() {
        let unpooled = max_unpool2d(&[1.0, 2.0, 3.0, 4.0], &[3, 0, 5, 5], 2, [2, 3]).unwrap();
        assert_eq!(unpooled, [2.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 4.0]);
        let gradient: Vec<f64> = (0..12).map(f64::from).collect();
        assert_eq!(max_unpool2d_backward(&gradient, &[3, 0, 5, 5], 2, [2, 3]).unwrap(), [3.0, 0.0, 11.0, 11.0]);
    }

    /// The fast f32 version against the definition in f64, with many ties, and both gradients as adjoint maps.
    #[test]
    fn fast_equals_plain_and_gradients_are_adjoint() {
        let mut stream = Stream::new(1, "max_pool2d", 0, 0);
        for case in 0..400 {
            let input = [1 + stream.below(12), 1 + stream.below(40)];
            let kernel = [1 + stream.below(5), 1 + stream.below(5)];
            let stride = [1 + stream.below(4), 1 + stream.below(4)];
            let padding = [stream.below(kernel[0] / 2 + 1), stream.below(kernel[1] / 2 + 1)];
            let options = pool(kernel, stride, padding, stream.chance(0.5));
            let planes = 1 + stream.below(3);
            let Ok(output) = options.output_size("test", input) else { continue };
            let [nan, lowest] = [stream.chance(0.2), stream.chance(0.2)];
            let x: Vec<f32> = (0..planes * input[0] * input[1])
                .map(|_| match stream.below(10) {
                    0 if nan => f32::NAN,
                    1..=8 if lowest => f32::NEG_INFINITY,
                    digit => (digit as f32) - 4.0,
                })
                .collect();
            let wide: Vec<f64> = x.iter().map(|&value| f64::from(value)).collect();
            let (maxima, places) = max_pool2d(&x, planes, input, options).unwrap();
            let (wide_maxima, wide_places) = max_pool2d(&wide, planes, input, options).unwrap();
            assert_eq!(places, wide_places, "case {case}: {input:?} {options:?}");
            for (fast, plain) in maxima.iter().zip(&wide_maxima) {
                assert_eq!(f64::from(*fast).to_bits(), plain.to_bits(), "case {case}: {input:?} {options:?}");
            }
            // <x[places], g> = <x, backward(g)>, and max unpool with its gradient the other way round.
            let x: Vec<f64> = wide.iter().map(|_| stream.normal()).collect();
            let gradient: Vec<f64> = places.iter().map(|_| stream.normal()).collect();
            let gathered = max_unpool2d_backward(&x, &places, planes, input).unwrap();
            let scattered = max_pool2d_backward(&gradient, &places, planes, input).unwrap();
            assert_eq!(gathered.len(), planes * output[0] * output[1]);
            let inner = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
            let (left, right) = (inner(&gathered, &gradient), inner(&x, &scattered));
            assert!((left - right).abs() < 1e-10 * (1.0 + left.abs()), "case {case}: {left} and {right}");
        }
    }
}

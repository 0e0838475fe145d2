//! Rows of several arrays one behind the other, and taken apart again.

use std::mem::MaybeUninit;

use rayon::prelude::*;

use crate::error::check_length;
use crate::fresh::{write_copy, written};
use crate::{Float, Result};

/// Row i of the result is row i of each part in turn. A part is its elements and the length of one of its rows.
///
/// # Errors
/// Length, where a part does not have `rows` rows.
pub fn concat_vec<T: Float>(rows: usize, parts: &[(&[T], usize)]) -> Result<Vec<T>> {
    for (elements, length) in parts {
        check_length("concat", "part", elements.len(), rows * length)?;
    }
    let whole: usize = parts.iter().map(|(_, length)| length).sum();
    let join = |(row, mut joined): (usize, &mut [MaybeUninit<T>])| {
        for (elements, length) in parts {
            let (own, rest) = joined.split_at_mut(*length);
            write_copy(own, &elements[row * length..(row + 1) * length]);
            joined = rest;
        }
    };
    #[allow(unsafe_code, reason = "the parts' rows are all that is written")]
    // SAFETY: the parts' lengths add up to that of a row of the result, so each row is written whole.
    Ok(unsafe { written(rows * whole, |joined| joined.par_chunks_mut(whole.max(1)).enumerate().for_each(join)).0 })
}

/// Columns `from..from + length` of each row.
///
/// # Errors
/// Length, where `joined` does not have `rows` equal rows of at least `from + length`.
pub fn part_vec<T: Float>(rows: usize, joined: &[T], from: usize, length: usize) -> Result<Vec<T>> {
    let whole = joined.len().checked_div(rows).unwrap_or(0).max(from + length);
    check_length("concat", "joined", joined.len(), rows * whole)?;
    let copy = |(part, row): (&mut [MaybeUninit<T>], &[T])| write_copy(part, &row[from..from + length]);
    #[allow(unsafe_code, reason = "copies are all that is written")]
    // SAFETY: the chunks cover the vector, and each is written whole.
    Ok(unsafe {
        written(rows * length, |parts: &mut [MaybeUninit<T>]| {
            parts.par_chunks_mut(length.max(1)).zip(joined.par_chunks(whole.max(1))).for_each(copy);
        })
        .0
    })
}

/// Planes that are kept times `factor`; zeros for the others.
///
/// # Errors
/// Length, where x is not as many planes as `kept` has entries.
pub fn drop_planes_vec<T: Float>(x: &[T], kept: &[bool], factor: T) -> Result<Vec<T>> {
    let pixels = x.len().checked_div(kept.len()).unwrap_or(0);
    check_length("dropout2d", "x", x.len(), kept.len() * pixels)?;
    let plane = |((y, x), kept): ((&mut [MaybeUninit<T>], &[T]), &bool)| {
        for (y, x) in y.iter_mut().zip(x) {
            y.write(if *kept { *x * factor } else { T::ZERO });
        }
    };
    #[allow(unsafe_code, reason = "each element is written once")]
    // SAFETY: the planes cover the vector, and each is written whole.
    Ok(unsafe {
        written(x.len(), |y: &mut [MaybeUninit<T>]| {
            y.par_chunks_mut(pixels.max(1)).zip(x.par_chunks(pixels.max(1))).zip(kept).for_each(plane);
        })
        .0
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_joined_and_taken_apart() {
        let (a, b) = ([1.0f32, 2.0, 3.0, 4.0], [5.0f32, 6.0]);
        let joined = concat_vec(2, &[(&a, 2), (&b, 1)]).unwrap();
        assert_eq!(joined, [1.0, 2.0, 5.0, 3.0, 4.0, 6.0]);
        assert_eq!(part_vec(2, &joined, 0, 2).unwrap(), a);
        assert_eq!(part_vec(2, &joined, 2, 1).unwrap(), b);
        assert!(concat_vec::<f32>(0, &[(&[], 3)]).unwrap().is_empty());
        assert!(part_vec::<f32>(0, &[], 1, 3).unwrap().is_empty());
        assert!(part_vec::<f32>(2, &joined, 1, 2).is_ok() && part_vec(2, &joined, 2, 2).is_err());
        assert!(concat_vec(2, &[(&a[..3], 2)]).is_err());
    }

    #[test]
    fn a_dropped_plane_is_zero_even_where_it_was_no_number() {
        let x = [f64::NAN, 1.0, 2.0, -3.0];
        assert_eq!(drop_planes_vec(&x, &[false, true], 2.0).unwrap(), [0.0, 0.0, 4.0, -6.0]);
        assert!(drop_planes_vec(&x, &[true; 3], 2.0).is_err());
        assert!(drop_planes_vec::<f32>(&[], &[], 2.0).unwrap().is_empty());
    }
}

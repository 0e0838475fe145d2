//! Kernels without the outer taps that never read inside of the input.
//!
//! A dilation of the size of the map or more, as pyramids of dilated convolutions have on small maps, puts every tap but
//! the middle one into the padding: a 3×3 kernel is a 1×1 kernel then, with a ninth of the work.

use std::borrow::Cow;
use std::ops::Range;

use super::{Conv2dShape, Element};
use crate::Result;

/// A convolution and the smaller one that computes the same.
pub(super) struct LiveTaps {
    /// The kernel as it was given.
    kernel: [usize; 2],
    /// Rows and columns of it that are left.
    taps: [Range<usize>; 2],
    /// The convolution with what is left.
    shape: Conv2dShape,
}

impl LiveTaps {
    /// Of a shape that has been checked.
    pub(super) fn of(full: &Conv2dShape) -> Self {
        let mut shape = *full;
        let taps = [0, 1].map(|axis| {
            let taps = live(full, axis);
            let before = taps.start * full.dilation[axis];
            let zeros = 2 * full.padding[axis] + full.extra_padding[axis];
            let dead = (full.kernel[axis] - taps.len()) * full.dilation[axis];
            // The zeros that the taps read which are left, before and after the input.
            let left = full.padding[axis].checked_sub(before);
            let extra = left.and_then(|left| zeros.checked_sub(dead + 2 * left));
            match (left, extra) {
                (Some(left), Some(extra)) => {
                    shape.kernel[axis] = taps.len();
                    shape.padding[axis] = left;
                    shape.extra_padding[axis] = extra;
                    taps
                }
                _ => 0..full.kernel[axis],
            }
        });
        Self { kernel: full.kernel, taps, shape }
    }

    /// The convolution without the taps that are left out.
    pub(super) fn shape(&self) -> &Conv2dShape {
        &self.shape
    }

    /// Where the taps that are left lie in a filter.
    fn places(&self) -> impl Iterator<Item = usize> + '_ {
        self.taps[0].clone().flat_map(move |row| self.taps[1].clone().map(move |column| row * self.kernel[1] + column))
    }

    /// The weight `[K,C/groups,kh,kw]` without them.
    pub(super) fn weight<'a, T: Element>(&self, weight: &'a [T]) -> Cow<'a, [T]> {
        if self.shape.kernel == self.kernel {
            return Cow::Borrowed(weight);
        }
        let filters = weight.chunks_exact(self.kernel[0] * self.kernel[1]);
        Cow::Owned(filters.flat_map(|filter| self.places().map(|place| filter[place])).collect())
    }

    /// Writes the gradient that `compute` gives of the weight without them to a gradient with them, whose others are zero.
    pub(super) fn gradient<T: Element>(
        &self,
        grad_weight: &mut [T],
        compute: impl FnOnce(&Conv2dShape, &mut [T]) -> Result<()>,
    ) -> Result<()> {
        if self.shape.kernel == self.kernel {
            return compute(&self.shape, grad_weight);
        }
        let mut live = vec![T::ZERO; self.shape.weight_len()];
        compute(&self.shape, &mut live)?;
        grad_weight.fill(T::ZERO);
        let filters = grad_weight.chunks_exact_mut(self.kernel[0] * self.kernel[1]);
        for (filter, live) in filters.zip(live.chunks_exact(self.shape.taps())) {
            for (place, value) in self.places().zip(live) {
                filter[place] = *value;
            }
        }
        Ok(())
    }
}

/// From the first to the last tap of an axis that reads inside of the input for some output; all where none does.
fn live(shape: &Conv2dShape, axis: usize) -> Range<usize> {
    let reads = |tap: &usize| !shape.inside(axis, *tap).is_empty();
    let taps = 0..shape.kernel[axis];
    match (taps.clone().find(reads), taps.clone().rfind(reads)) {
        (Some(first), Some(last)) => first..last + 1,
        _ => taps,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(size: [usize; 2], padding: [usize; 2], dilation: [usize; 2]) -> Conv2dShape {
        let plain = Conv2dShape::new([1, 1, 40, 40], 1, [3, 3]).unwrap();
        Conv2dShape { in_height: size[0], in_width: size[1], padding, dilation, ..plain }
    }

    #[test]
    fn a_dilation_as_large_as_the_map_leaves_the_middle_tap() {
        let full = shape([32, 20], [32, 18], [32, 18]);
        let live = LiveTaps::of(&full);
        assert_eq!(live.taps, [1..2, 0..3]);
        assert_eq!(*live.shape(), Conv2dShape { kernel: [1, 3], padding: [0, 18], ..full });
        let weight: Vec<f32> = (0..9u8).map(f32::from).collect();
        assert_eq!(*live.weight(&weight), [3.0, 4.0, 5.0]);
        let mut gradient = [7f32; 9];
        live.gradient(&mut gradient, |_, live| {
            live.copy_from_slice(&[1.0, 2.0, 3.0]);
            Ok(())
        })
        .unwrap();
        assert_eq!(gradient, [0.0, 0.0, 0.0, 1.0, 2.0, 3.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn kernels_whose_taps_all_read_the_map_or_none_are_left_as_they_are() {
        for full in [shape([32, 32], [1, 1], [1, 1]), shape([2, 3], [2, 2], [1, 1]), shape([1, 1], [40, 40], [20, 20])]
        {
            assert_eq!(LiveTaps::of(&full).shape().out_height(), full.out_height());
        }
        let full = shape([32, 32], [1, 1], [1, 1]);
        let weight = [0f32; 9];
        assert!(matches!(LiveTaps::of(&full).weight(&weight), Cow::Borrowed(_)));
    }

    #[test]
    fn outputs_keep_their_number() {
        let mut trimmed = 0;
        for case in 0..4000usize {
            let pick = |divisor: usize, values: usize| case / divisor % values;
            let (size, kernel, stride) = (1 + pick(1, 5), 1 + pick(5, 5), 1 + pick(25, 2));
            let (dilation, padding, extra) = (1 + pick(50, 4), pick(200, 10), pick(2000, 2));
            let full = Conv2dShape {
                kernel: [kernel, 1],
                stride: [stride, 1],
                extra_padding: [extra, 0],
                ..shape([size, 1], [padding, 0], [dilation, 1])
            };
            if full.check().is_err() {
                continue;
            }
            let live = LiveTaps::of(&full);
            live.shape().check().unwrap();
            assert_eq!(live.shape().out_height(), full.out_height(), "{full:?}");
            for output in 0..full.out_height() {
                for tap in 0..kernel {
                    let inside = |shape: &Conv2dShape, tap: usize| {
                        shape.inside(0, tap).contains(&output).then(|| shape.source(0, tap, output))
                    };
                    let left = live.taps[0].contains(&tap).then(|| inside(live.shape(), tap - live.taps[0].start));
                    assert_eq!(inside(&full, tap), left.flatten(), "{full:?}, tap {tap}, output {output}");
                }
            }
            trimmed += usize::from(live.taps[0].len() < kernel);
        }
        assert!(trimmed > 400, "{trimmed} kernels were made smaller");
    }
}

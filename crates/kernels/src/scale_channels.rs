//! Each plane times its own number: `y[n,c,…] = x[n,c,…] · scale[n,c]`, as squeeze-and-excitation and gates on pooled
//! features need it.
//!
//! `dx = g · scale`; `dscale[n,c]` = Σ over the plane of g · x.

use rayon::prelude::*;

use crate::activation::{BLOCK, Kernel, LANES, Planes, sum, vectorised};
use crate::error::check_length;
use crate::{Float, Result};

const OP: &str = "scale_channels";

/// y = x · scale, with one number for each of the N·C planes.
///
/// # Errors
/// Length.
pub fn forward<T: Float>(sizes: Planes, x: &[T], scale: &[T], y: &mut [T]) -> Result<()> {
    check_length(OP, "x", x.len(), sizes.elements())?;
    check_length(OP, "scale", scale.len(), sizes.batch * sizes.channels)?;
    check_length(OP, "output", y.len(), sizes.elements())?;
    scaled(sizes, x, scale, y);
    Ok(())
}

/// The gradient of x: dx = g · scale.
///
/// # Errors
/// Length.
pub fn backward_x<T: Float>(sizes: Planes, scale: &[T], g: &[T], dx: &mut [T]) -> Result<()> {
    check_length(OP, "gradient", g.len(), sizes.elements())?;
    check_length(OP, "scale", scale.len(), sizes.batch * sizes.channels)?;
    check_length(OP, "input gradient", dx.len(), sizes.elements())?;
    scaled(sizes, g, scale, dx);
    Ok(())
}

/// The gradient of scale: dscale = Σ g · x over each plane.
///
/// # Errors
/// Length.
pub fn backward_scale<T: Float>(sizes: Planes, x: &[T], g: &[T], dscale: &mut [T]) -> Result<()> {
    check_length(OP, "x", x.len(), sizes.elements())?;
    check_length(OP, "gradient", g.len(), sizes.elements())?;
    check_length(OP, "scale gradient", dscale.len(), sizes.batch * sizes.channels)?;
    if x.is_empty() {
        dscale.fill(T::ZERO);
        return Ok(());
    }
    dscale
        .par_iter_mut()
        .zip(x.par_chunks(sizes.pixels).zip(g.par_chunks(sizes.pixels)))
        .for_each(|(dscale, (x, g))| *dscale = T::from_f64(vectorised(Product { x, g })));
    Ok(())
}

fn scaled<T: Float>(sizes: Planes, x: &[T], scale: &[T], y: &mut [T]) {
    if x.is_empty() {
        return;
    }
    y.par_chunks_mut(sizes.pixels).zip(x.par_chunks(sizes.pixels)).zip(scale).for_each(|((y, x), scale)| {
        for (y, x) in y.iter_mut().zip(x) {
            *y = *x * *scale;
        }
    });
}

/// Σ x · g of one plane: partial sums of the element type, in f64 after each block.
struct Product<'a, T> {
    x: &'a [T],
    g: &'a [T],
}

impl<T: Float> Kernel for Product<'_, T> {
    type Output = f64;

    #[inline(always)]
    fn run(self) -> f64 {
        let mut total = 0.0;
        for (x, g) in self.x.chunks(BLOCK).zip(self.g.chunks(BLOCK)) {
            let ((x, last_x), (g, last_g)) = (x.as_chunks::<LANES>(), g.as_chunks::<LANES>());
            let mut sums = [T::ZERO; LANES];
            for (x, g) in x.iter().zip(g) {
                for lane in 0..LANES {
                    sums[lane] += x[lane] * g[lane];
                }
            }
            for lane in 0..last_x.len() {
                sums[lane] += last_x[lane] * last_g[lane];
            }
            total += sum(&sums);
        }
        total
    }
}

#[cfg(test)]
mod tests {
    use dsd_random::Stream;

    use super::*;

    #[test]
    fn each_plane_has_its_own_number() {
        let sizes = Planes { batch: 2, channels: 2, pixels: 2 };
        let x = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0f32];
        let (mut y, mut dx, mut dscale) = ([9.0; 8], [9.0; 8], [9.0; 4]);
        forward(sizes, &x, &[1.0, 0.0, -1.0, 2.0], &mut y).unwrap();
        assert_eq!(y, [1.0, 2.0, 0.0, 0.0, -5.0, -6.0, 14.0, 16.0]);
        backward_x(sizes, &[1.0, 0.0, -1.0, 2.0], &[1.0; 8], &mut dx).unwrap();
        assert_eq!(dx, [1.0, 1.0, 0.0, 0.0, -1.0, -1.0, 2.0, 2.0]);
        backward_scale(sizes, &x, &[1.0, 0.0, 1.0, 1.0, 0.0, 2.0, 0.0, 0.0], &mut dscale).unwrap();
        assert_eq!(dscale, [1.0, 7.0, 12.0, 0.0]);
        let error = forward(sizes, &x, &[1.0; 2], &mut y).unwrap_err();
        assert_eq!(error.to_string(), "scale_channels: scale has 2 elements, expected 4");
    }

    #[test]
    fn long_planes_are_summed_to_f32_precision() {
        let sizes = Planes { batch: 1, channels: 3, pixels: 9001 };
        let mut stream = Stream::new(6, "scale channels test", 0, 0);
        let mut draw = || (0..sizes.elements()).map(|_| stream.normal() as f32).collect::<Vec<f32>>();
        let (x, g) = (draw(), draw());
        let mut dscale = [0.0; 3];
        backward_scale(sizes, &x, &g, &mut dscale).unwrap();
        for (channel, got) in dscale.into_iter().enumerate() {
            let range = channel * sizes.pixels..(channel + 1) * sizes.pixels;
            let products = x[range.clone()].iter().zip(&g[range]).map(|(x, g)| f64::from(*x) * f64::from(*g));
            let expected: f64 = products.sum();
            assert!((f64::from(got) - expected).abs() < 1e-4, "{got} instead of {expected}");
        }
    }
}

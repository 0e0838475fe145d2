//! PReLU: a slope below zero that is learned.

use rayon::prelude::*;

use super::{BLOCK, LANES, Planes, sum};
use crate::error::check_length;
use crate::{Float, Result};

/// The one slope, or the slope of each channel.
#[inline(always)]
fn slope<T: Float>(weight: &[T], channel: usize) -> T {
    if let [one] = weight { *one } else { weight[channel] }
}

fn check_slopes(weight: usize, channels: usize) -> Result<()> {
    if weight == 1 { Ok(()) } else { check_length("prelu", "weight", weight, channels) }
}

/// y = x where x > 0, else weight · x, with one slope for all channels or one for each.
///
/// # Errors
/// Length.
pub fn prelu_forward<T: Float>(sizes: Planes, x: &[T], weight: &[T], y: &mut [T]) -> Result<()> {
    check_length("prelu", "x", x.len(), sizes.elements())?;
    check_length("prelu", "output", y.len(), sizes.elements())?;
    check_slopes(weight.len(), sizes.channels)?;
    if x.is_empty() {
        return Ok(());
    }
    y.par_chunks_mut(sizes.pixels).zip(x.par_chunks(sizes.pixels)).enumerate().for_each(|(plane, (y, x))| {
        let slope = slope(weight, plane % sizes.channels);
        for (y, x) in y.iter_mut().zip(x) {
            *y = if *x > T::ZERO { *x } else { slope * *x };
        }
    });
    Ok(())
}

/// The gradients of [`prelu_forward`]: dx = g · (1 where x > 0, else weight); dweight = Σ g · x over x ≤ 0.
///
/// # Errors
/// Length.
pub fn prelu_backward<T: Float>(
    sizes: Planes,
    x: &[T],
    weight: &[T],
    g: &[T],
    dx: &mut [T],
    dweight: &mut [T],
) -> Result<()> {
    check_length("prelu", "x", x.len(), sizes.elements())?;
    check_length("prelu", "gradient", g.len(), sizes.elements())?;
    check_length("prelu", "input gradient", dx.len(), sizes.elements())?;
    check_slopes(weight.len(), sizes.channels)?;
    check_length("prelu", "weight gradient", dweight.len(), weight.len())?;
    dweight.fill(T::ZERO);
    if x.is_empty() {
        return Ok(());
    }
    let planes = dx.par_chunks_mut(sizes.pixels).zip(g.par_chunks(sizes.pixels)).zip(x.par_chunks(sizes.pixels));
    let sums: Vec<f64> = planes
        .enumerate()
        .map(|(plane, ((dx, g), x))| {
            let slope = slope(weight, plane % sizes.channels);
            let mut total = 0.0;
            for ((dx, g), x) in dx.chunks_mut(BLOCK).zip(g.chunks(BLOCK)).zip(x.chunks(BLOCK)) {
                let mut lanes = [T::ZERO; LANES];
                for ((dx, g), x) in dx.chunks_mut(LANES).zip(g.chunks(LANES)).zip(x.chunks(LANES)) {
                    for (((dx, g), x), lane) in dx.iter_mut().zip(g).zip(x).zip(&mut lanes) {
                        let positive = *x > T::ZERO;
                        *dx = if positive { *g } else { slope * *g };
                        *lane += if positive { T::ZERO } else { *g * *x };
                    }
                }
                total += sum(&lanes);
            }
            total
        })
        .collect();
    for (slot, dweight) in dweight.iter_mut().enumerate() {
        let own = sums.iter().enumerate().filter(|(plane, _)| weight.len() == 1 || plane % sizes.channels == slot);
        *dweight = T::from_f64(own.map(|(_, sum)| sum).sum());
    }
    Ok(())
}

//! Parameter updates in one pass over memory, by the formulas of PyTorch 2's `SGD` and `AdamW`.

use rayon::prelude::*;

use crate::activation::{Kernel, LANES, sum, vectorised};
use crate::error::{check_length, param};
use crate::{Float, Result};

/// Elements per task.
const CHUNK: usize = 1 << 15;

/// Settings of [`sgd_step`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sgd {
    /// Step size ≥ 0.
    pub learning_rate: f64,
    /// Part of the old velocity that stays, in [0, 1); 0: the velocity is neither read nor written. Dampening is 0.
    pub momentum: f64,
    /// Factor ≥ 0 of the parameter that is added to its gradient (coupled weight decay).
    pub weight_decay: f64,
    /// Look one momentum step ahead.
    pub nesterov: bool,
}

/// Settings of [`adamw_step`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Step size ≥ 0.
    pub learning_rate: f64,
    /// Part of the old first moment that stays, in [0, 1).
    pub beta1: f64,
    /// Part of the old second moment that stays, in [0, 1).
    pub beta2: f64,
    /// Added to the root of the corrected second moment, > 0.
    pub eps: f64,
    /// Times the step size: the part of the parameter that is taken away before the step (decoupled weight decay).
    pub weight_decay: f64,
}

/// One step of stochastic gradient descent with momentum.
///
/// d = gradient + weight_decay · p; v = d at the first step, momentum · v + d later;
/// p −= learning_rate · (d + momentum · v with nesterov, else v; d without momentum).
///
/// # Errors
/// Length, Param.
pub fn sgd_step<T: Float>(
    parameters: &mut [T],
    gradient: &[T],
    velocity: &mut [T],
    settings: Sgd,
    first_step: bool,
) -> Result<()> {
    const OP: &str = "sgd_step";
    check_length(OP, "gradient", gradient.len(), parameters.len())?;
    check_length(OP, "velocity", velocity.len(), parameters.len())?;
    not_negative(OP, "learning_rate", settings.learning_rate)?;
    not_negative(OP, "weight_decay", settings.weight_decay)?;
    part_that_stays(OP, "momentum", settings.momentum)?;
    let rate = T::from_f64(settings.learning_rate);
    let momentum = T::from_f64(settings.momentum);
    let decay = T::from_f64(settings.weight_decay);
    let chunks = parameters.par_chunks_mut(CHUNK).zip(gradient.par_chunks(CHUNK));
    if settings.momentum == 0.0 {
        chunks.for_each(|(parameters, gradient)| {
            for (p, g) in parameters.iter_mut().zip(gradient) {
                *p -= rate * (*g + decay * *p);
            }
        });
        return Ok(());
    }
    chunks.zip(velocity.par_chunks_mut(CHUNK)).for_each(|((parameters, gradient), velocity)| {
        for ((p, g), v) in parameters.iter_mut().zip(gradient).zip(velocity) {
            let d = *g + decay * *p;
            *v = if first_step { d } else { momentum * *v + d };
            *p -= rate * if settings.nesterov { d + momentum * *v } else { *v };
        }
    });
    Ok(())
}

/// One step of Adam with decoupled weight decay. `step` counts from 1; both moments start as zeros.
///
/// p −= learning_rate · weight_decay · p; m += (1 − β₁) · (g − m); v = β₂ · v + (1 − β₂) · g²;
/// p −= learning_rate / (1 − β₁ˢ) · m / (√v / √(1 − β₂ˢ) + eps).
///
/// # Errors
/// Length, Param.
pub fn adamw_step<T: Float>(
    parameters: &mut [T],
    gradient: &[T],
    first_moment: &mut [T],
    second_moment: &mut [T],
    step: u64,
    settings: AdamW,
) -> Result<()> {
    const OP: &str = "adamw_step";
    check_length(OP, "gradient", gradient.len(), parameters.len())?;
    check_length(OP, "first_moment", first_moment.len(), parameters.len())?;
    check_length(OP, "second_moment", second_moment.len(), parameters.len())?;
    if step == 0 {
        return Err(param(OP, "step", "a count from 1", step));
    }
    not_negative(OP, "learning_rate", settings.learning_rate)?;
    not_negative(OP, "weight_decay", settings.weight_decay)?;
    part_that_stays(OP, "beta1", settings.beta1)?;
    part_that_stays(OP, "beta2", settings.beta2)?;
    if !(settings.eps.is_finite() && settings.eps > 0.0) {
        return Err(param(OP, "eps", "a finite number above 0", settings.eps));
    }
    let steps = step as f64;
    let keep = T::from_f64(1.0 - settings.learning_rate * settings.weight_decay);
    let first_share = T::from_f64(1.0 - settings.beta1);
    let (second_keep, second_share) = (T::from_f64(settings.beta2), T::from_f64(1.0 - settings.beta2));
    let rate = T::from_f64(settings.learning_rate / (1.0 - settings.beta1.powf(steps)));
    let root = T::from_f64((1.0 - settings.beta2.powf(steps)).sqrt());
    let eps = T::from_f64(settings.eps);
    parameters
        .par_chunks_mut(CHUNK)
        .zip(gradient.par_chunks(CHUNK))
        .zip(first_moment.par_chunks_mut(CHUNK))
        .zip(second_moment.par_chunks_mut(CHUNK))
        .for_each(|(((parameters, gradient), first), second)| {
            for (((p, g), m), v) in parameters.iter_mut().zip(gradient).zip(first).zip(second) {
                *m += first_share * (*g - *m);
                *v = second_keep * *v + second_share * (*g * *g);
                *p = keep * *p - rate * (*m / (v.sqrt() / root + eps));
            }
        });
    Ok(())
}

/// One step of an exponential moving average: a = keep · a + (1 − keep) · v.
///
/// # Errors
/// Length, Param: keep lies in [0, 1).
pub fn average_step<T: Float>(average: &mut [T], values: &[T], keep: f64) -> Result<()> {
    const OP: &str = "average_step";
    check_length(OP, "values", values.len(), average.len())?;
    part_that_stays(OP, "keep", keep)?;
    if keep == 0.0 {
        average.copy_from_slice(values);
        return Ok(());
    }
    let (keep, share) = (T::from_f64(keep), T::from_f64(1.0 - keep));
    average.par_chunks_mut(CHUNK).zip(values.par_chunks(CHUNK)).for_each(|(average, values)| {
        for (a, v) in average.iter_mut().zip(values) {
            *a = keep * *a + share * *v;
        }
    });
    Ok(())
}

/// Σ x² in f64: the square of a gradient's norm. The same for any number of threads.
#[must_use]
pub fn sum_of_squares<T: Float>(values: &[T]) -> f64 {
    let sums: Vec<f64> = values.par_chunks(CHUNK).map(|values| vectorised(Squares { values })).collect();
    sums.iter().sum()
}

/// Σ x² of one chunk, in partial sums.
struct Squares<'a, T> {
    values: &'a [T],
}

impl<T: Float> Kernel for Squares<'_, T> {
    type Output = f64;

    #[inline(always)]
    fn run(self) -> f64 {
        let mut sums = [0.0; LANES];
        let (chunks, rest) = self.values.as_chunks::<LANES>();
        for chunk in chunks {
            for (sum, x) in sums.iter_mut().zip(chunk) {
                *sum += x.to_f64() * x.to_f64();
            }
        }
        for (sum, x) in sums.iter_mut().zip(rest) {
            *sum += x.to_f64() * x.to_f64();
        }
        sum(&sums)
    }
}

fn not_negative(op: &'static str, argument: &'static str, value: f64) -> Result<()> {
    if value.is_finite() && value >= 0.0 { Ok(()) } else { Err(param(op, argument, "a finite number ≥ 0", value)) }
}

fn part_that_stays(op: &'static str, argument: &'static str, value: f64) -> Result<()> {
    if (0.0..1.0).contains(&value) { Ok(()) } else { Err(param(op, argument, "a number in [0, 1)", value)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_of_squares_is_exact_in_f64_and_keeps_a_nan() {
        // Whole numbers: no sum is rounded, in any order; neither is that of f32, whose squares would be.
        for len in [0, 1, 17, CHUNK + 21] {
            let values: Vec<f32> = (0..len).map(|index| 4097.0 + (index % 7) as f32).collect();
            let wide: Vec<f64> = values.iter().map(|x| f64::from(*x)).collect();
            let expected: f64 = wide.iter().map(|x| x * x).sum();
            assert_eq!((sum_of_squares(&values), sum_of_squares(&wide)), (expected, expected), "{len}");
        }
        assert!(sum_of_squares(&[1f32, f32::NAN]).is_nan());
    }

    fn close(got: &[f64], expected: &[f64]) {
        for (index, (got, expected)) in got.iter().zip(expected).enumerate() {
            assert!((got - expected).abs() <= 1e-14 * expected.abs().max(1.0), "{index}: {got} instead of {expected}");
        }
    }

    /// p₀ = 1, gradients 0.5, −1, 0.25.
    fn three_sgd_steps(settings: Sgd) -> (Vec<f64>, f64) {
        let (mut p, mut v) = ([1.0], [f64::NAN]);
        let path = [0.5, -1.0, 0.25].iter().enumerate().map(|(step, g)| {
            sgd_step(&mut p, &[*g], &mut v, settings, step == 0).unwrap();
            p[0]
        });
        (path.collect(), v[0])
    }

    #[test]
    fn sgd_takes_the_three_steps_computed_by_hand() {
        let plain = Sgd { learning_rate: 0.1, momentum: 0.0, weight_decay: 0.0, nesterov: false };
        let (path, v) = three_sgd_steps(plain);
        close(&path, &[0.95, 1.05, 1.025]);
        assert!(v.is_nan(), "without momentum the velocity is left alone");
        // v: 0.5, −0.55, −0.245.
        let momentum = Sgd { momentum: 0.9, ..plain };
        close(&three_sgd_steps(momentum).0, &[0.95, 1.005, 1.0295]);
        // d: 0.6, −1 + 0.1 · 0.94 = −0.906, 0.25 + 0.1 · 0.9766; v: 0.6, −0.366, 0.01826 (first step: v = d).
        let decay = Sgd { weight_decay: 0.1, ..momentum };
        close(&three_sgd_steps(decay).0, &[0.94, 0.9766, 0.974774]);
        // v: 0.5, −0.55, −0.245; step: 0.95, −1.495, 0.0295.
        let nesterov = Sgd { nesterov: true, ..momentum };
        close(&three_sgd_steps(nesterov).0, &[0.905, 1.0545, 1.05155]);
    }

    #[test]
    fn adamw_takes_the_three_steps_computed_by_hand() {
        // β₁ = β₂ = ½, gradient 1 at each step: m = v = 1 − 2⁻ˢ, both corrected to 1, so each step takes away
        // rate · 1 / (1 + eps) after the decay.
        let settings = AdamW { learning_rate: 0.1, beta1: 0.5, beta2: 0.5, eps: 0.25, weight_decay: 0.5 };
        let (mut p, mut m, mut v) = ([2.0], [0.0], [0.0]);
        let mut path = Vec::new();
        for step in 1..=3 {
            adamw_step(&mut p, &[1.0], &mut m, &mut v, step, settings).unwrap();
            path.push(p[0]);
        }
        // 2 · 0.95 − 0.08 = 1.82; 1.82 · 0.95 − 0.08 = 1.649; 1.649 · 0.95 − 0.08 = 1.48655.
        close(&path, &[1.82, 1.649, 1.48655]);
        close(&[m[0], v[0]], &[0.875, 0.875]);
        // Gradients 1, 0: m = ½, ¼; v = ½, ¼. Corrected by 1 − ¼: ⅓ and ⅓.
        let settings = AdamW { weight_decay: 0.0, ..settings };
        let (mut p, mut m, mut v) = ([0.0], [0.0], [0.0]);
        adamw_step(&mut p, &[1.0], &mut m, &mut v, 1, settings).unwrap();
        close(&p, &[-0.08]);
        adamw_step(&mut p, &[0.0], &mut m, &mut v, 2, settings).unwrap();
        let third = 1.0 / 3.0f64;
        close(&p, &[-0.08 - 0.1 * third / (third.sqrt() + 0.25)]);
    }

    #[test]
    fn every_element_is_updated_once_whatever_the_length() {
        let settings = Sgd { learning_rate: 1.0, momentum: 0.5, weight_decay: 0.0, nesterov: false };
        for len in [0, 1, CHUNK - 1, CHUNK, 2 * CHUNK + 3] {
            let gradient: Vec<f32> = (0..len).map(|i| (i % 7) as f32).collect();
            let (mut p, mut v) = (vec![0.0f32; len], vec![0.0f32; len]);
            sgd_step(&mut p, &gradient, &mut v, settings, true).unwrap();
            assert!(p.iter().zip(&gradient).all(|(p, g)| *p == -*g), "{len}");
            assert_eq!(v, gradient);
        }
    }

    #[test]
    fn wrong_lengths_and_settings_are_refused_by_name() {
        let good = Sgd { learning_rate: 0.1, momentum: 0.9, weight_decay: 0.0, nesterov: false };
        let adam = AdamW { learning_rate: 0.1, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 };
        let sgd = |g: &[f64], settings| sgd_step(&mut [0.0], g, &mut [0.0], settings, true).unwrap_err().to_string();
        let adamw = |step, settings| {
            adamw_step(&mut [0.0], &[0.0], &mut [0.0], &mut [0.0], step, settings).unwrap_err().to_string()
        };
        let rows = [
            (sgd(&[], good), "sgd_step: gradient has 0 elements, expected 1"),
            (sgd(&[0.0], Sgd { momentum: 1.0, ..good }), "sgd_step: momentum is 1, expected a number in [0, 1)"),
            (sgd(&[0.0], Sgd { learning_rate: f64::NAN, ..good }), "sgd_step: learning_rate is NaN"),
            (adamw(0, adam), "adamw_step: step is 0, expected a count from 1"),
            (adamw(1, AdamW { eps: 0.0, ..adam }), "adamw_step: eps is 0, expected a finite number above 0"),
        ];
        for (message, expected) in rows {
            assert!(message.starts_with(expected), "{message}");
        }
    }
}

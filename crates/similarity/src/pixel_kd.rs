//! Pixel-wise distillation: pull the student's class distribution to the teacher's at each position.
//!
//! p = softmax_c(t / T), q = softmax_c(s / T);   L = T² · mean over counted (n,h,w) of Σ_c p · (ln p − ln q)
//!
//! Sources: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015 (the loss and T²); Liu et al.,
//! "Structured Knowledge Distillation for Semantic Segmentation", CVPR 2019 (per position). Differs from the code of
//! CIRKD (`losses/kd.py`): ignored pixels are left out, of the sum and of the denominator.
//! Derivation of the gradient: docs/losses/pixel_kd.md.

use candle_core::{DType, Tensor, WithDType};
use dsd_ops::{check, log_softmax_channels, softmax_channels};
use rayon::prelude::*;

use crate::Result;
use crate::csd::same_grid;
use crate::mask::Counted;
use crate::task::node::{Slope, by_element, node, with_values};

/// Settings of [`pixel_kd`]. No `Default`: the recipe owns the number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PixelKd {
    /// T, dimensionless, finite, > 0.
    pub temperature: f64,
}

/// Pixel-wise distillation with a temperature.
///
/// # Shapes
/// student: `[N,C,H,W]` float, raw logits. teacher: `[N,C,H',W']` of the same type; where the sizes differ, the
/// student's logits are resized to the teacher's (bilinear, corners aligned). valid: `[N,H'',W'']` u8, 1 = counted,
/// 0 = ignored; `None` counts all.
/// # Returns
/// `[]` float, in nats, ≥ 0 up to rounding. No counted pixel: 0, with zero gradient.
/// # Gradient
/// Reaches `student` only.
/// # Numerics
/// Finite for |logit| ≤ 1e4 in f32.
/// # Errors
/// Shape, DType or Param, naming the argument.
/// # Source
/// As at the top of the file.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use dsd_similarity::{PixelKd, pixel_kd};
/// // The teacher gives odds of 3 to 1, the student even ones.
/// let teacher = Tensor::from_vec(vec![3f64.ln(), 0.], (1, 2, 1, 1), &Device::Cpu)?;
/// let student = teacher.zeros_like()?;
/// let loss = pixel_kd(&student, &teacher, None, PixelKd { temperature: 1.0 })?.to_scalar::<f64>()?;
/// let expected = 0.75 * 1.5f64.ln() + 0.25 * 0.5f64.ln();
/// assert!((loss - expected).abs() < 1e-12);
/// # Ok::<(), dsd_similarity::Error>(())
/// ```
pub fn pixel_kd(student: &Tensor, teacher: &Tensor, valid: Option<&Tensor>, cfg: PixelKd) -> Result<Tensor> {
    distil("pixel_kd", student, teacher, valid, None, cfg)
}

/// [`pixel_kd`] with pixels weighted by the classes that the teacher sees in them.
///
/// u = softmax_c(t);   w = Σ_c weight_c · u_c;   L = T² · Σ w · Σ_c p · (ln p − ln q) / Σ w over counted (n,h,w)
///
/// The weight belongs to the pixel, not to the single terms of the divergence: weighted terms would be least for a
/// student that is not the teacher.
///
/// # Shapes
/// As [`pixel_kd`]; class_weights: one factor for each of the C classes, finite, ≥ 0.
/// # Returns
/// `[]` float, in nats, ≥ 0 up to rounding; equal weights give [`pixel_kd`]. No counted pixel, or weights of 0 alone: 0,
/// with zero gradient.
/// # Gradient
/// Reaches `student` only.
/// # Numerics
/// Finite for |logit| ≤ 1e4 in f32.
/// # Errors
/// Shape, DType or Param, naming the argument.
/// # Source
/// Ours: published code weights the task's cross-entropy alone.
pub fn class_weighted_pixel_kd(
    student: &Tensor,
    teacher: &Tensor,
    valid: Option<&Tensor>,
    class_weights: &[f64],
    cfg: PixelKd,
) -> Result<Tensor> {
    distil("class_weighted_pixel_kd", student, teacher, valid, Some(class_weights), cfg)
}

fn distil(
    op: &'static str,
    student: &Tensor,
    teacher: &Tensor,
    valid: Option<&Tensor>,
    class_weights: Option<&[f64]>,
    cfg: PixelKd,
) -> Result<Tensor> {
    let t = check::positive(op, "temperature", cfg.temperature)?;
    let (student, teacher) = same_grid(op, student, teacher)?;
    let (_, classes, h, w) = teacher.dims4()?;
    let counted = Counted::at(op, valid, &teacher, [h, w])?;
    let (pixel_weight, total) = match class_weights {
        None => (None, counted.positions),
        Some(weights) => {
            let (weight, total) = pixel_weights(op, &teacher, weights, classes, &counted)?;
            (Some(weight), total)
        }
    };

    let (teacher, own) = ((teacher / t)?, (student.detach() / t)?); // [N,C,H,W]
    // 0 at ignored positions
    let weight = match (&counted.mask, pixel_weight) {
        (Some(mask), Some(weight)) => Some((weight * mask)?),
        (mask, weight) => mask.clone().or(weight),
    };
    by_element!(student, typed(op, &student, [&teacher, &own], weight.as_ref(), [t * t / total, t / total]))
}

/// `factor` · Σ w · Σ_c p · (ln p − ln q) of softened logits as a node with the gradient `slope` · w · (q − p).
fn typed<T: WithDType>(
    op: &'static str,
    student: &Tensor,
    softened: [&Tensor; 2],
    weight: Option<&Tensor>,
    [factor, slope]: [f64; 2],
) -> Result<Tensor> {
    let (_, classes, h, w) = student.dims4()?;
    let [log_p, log_q] = softened.map(log_softmax_channels);
    let [p, q] = softened.map(softmax_channels);
    let weight = weight.map(|weight| weight.flatten_all()?.to_vec1::<T>()).transpose()?;
    let (slope, mut gradient) = (T::from_f64(slope), vec![T::zero(); student.elem_count()]);
    let sums = with_values(&(log_p? - log_q?)?, |difference: &[T]| {
        with_values(&p?, |p: &[T]| {
            let in_planes = with_values(&q?, |q: &[T]| {
                let planes = gradient.par_chunks_mut(h * w).zip(difference.par_chunks(h * w));
                let planes = planes.zip(p.par_chunks(h * w).zip(q.par_chunks(h * w)));
                let of_plane = |(plane, ((gradient, difference), (p, q)))| {
                    let weight = weight.as_ref().map(|weight| &weight[plane / classes * h * w..][..h * w]);
                    divergence(gradient, difference, p, q, weight, slope)
                };
                planes.enumerate().map(of_plane).collect::<Vec<f64>>()
            });
            Result::Ok(in_planes?)
        })
    })???;
    node::<T>(op, student, factor * sums.iter().sum::<f64>(), Kept(gradient))
}

/// Σ w · p · (ln p − ln q) of one class in one image, and its gradient.
fn divergence<T: WithDType>(
    gradient: &mut [T],
    difference: &[T],
    p: &[T],
    q: &[T],
    weight: Option<&[T]>,
    slope: T,
) -> f64 {
    let mut sum = 0.0;
    for (pixel, ((gradient, &difference), (&p, &q))) in
        gradient.iter_mut().zip(difference).zip(p.iter().zip(q)).enumerate()
    {
        let weight = weight.map_or(T::one(), |weight| weight[pixel]);
        // Exactly 0 where the pixel does not count, even beside a NaN.
        if weight != T::zero() {
            sum += (weight * p * difference).to_f64();
            *gradient = slope * weight * (q - p);
        }
    }
    sum
}

/// The gradient, found together with the value.
struct Kept<T>(Vec<T>);

impl<T: WithDType> Slope<T> for Kept<T> {
    fn gradient(&self, _: &Tensor, upstream: f64) -> Result<Vec<T>> {
        let upstream = T::from_f64(upstream);
        Ok(self.0.par_iter().map(|gradient| *gradient * upstream).collect())
    }
}

/// The weight of each pixel, `[N,1,H,W]`, and the sum over counted ones, 1 where that is 0.
fn pixel_weights(
    op: &'static str,
    teacher: &Tensor,
    weights: &[f64],
    classes: usize,
    counted: &Counted,
) -> Result<(Tensor, f64)> {
    if weights.len() != classes {
        return Err(check::param(op, "class_weights", format!("{classes} factors"), weights.len()));
    }
    if let Some(bad) = weights.iter().find(|weight| !(weight.is_finite() && **weight >= 0.0)) {
        return Err(check::param(op, "class_weights", "finite numbers of at least 0", bad));
    }
    let factors = Tensor::from_slice(weights, (1, classes, 1, 1), teacher.device())?.to_dtype(teacher.dtype())?;
    let weight = softmax_channels(teacher)?.broadcast_mul(&factors)?.sum_keepdim(1)?; // [N,1,H,W]
    let total = counted.apply(weight.clone())?.to_dtype(DType::F64)?.sum_all()?.to_scalar::<f64>()?;
    Ok((weight, if total > 0.0 { total } else { 1.0 }))
}

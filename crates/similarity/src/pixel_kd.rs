//! Pixel-wise distillation: pull the student's class distribution to the teacher's at each position.
//!
//! p = softmax_c(t / T), q = softmax_c(s / T);   L = T² · mean over counted (n,h,w) of Σ_c p · (ln p − ln q)
//!
//! Sources: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015 (the loss and T²); Liu et al.,
//! "Structured Knowledge Distillation for Semantic Segmentation", CVPR 2019 (per position). Differs from the code of
//! CIRKD (`losses/kd.py`): ignored pixels are left out, of the sum and of the denominator.
//! Derivation of the gradient: docs/losses/pixel_kd.md.

use candle_core::Tensor;
use dsd_ops::{check, log_softmax_channels};

use crate::Result;
use crate::csd::same_grid;
use crate::mask::Counted;

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
    const OP: &str = "pixel_kd";
    let t = check::positive(OP, "temperature", cfg.temperature)?;
    let (student, teacher) = same_grid(OP, student, teacher)?;
    let (_, _, h, w) = teacher.dims4()?;
    let counted = Counted::at(OP, valid, &teacher, [h, w])?;

    let log_p = log_softmax_channels(&(teacher / t)?)?; // [N,C,H,W]
    let log_q = log_softmax_channels(&(student / t)?)?; // [N,C,H,W]
    let weight = counted.apply(log_p.exp()?)?; // p, 0 at ignored positions
    let kl = (weight * (log_p - log_q)?)?.flatten_from(2)?.sum(2)?.sum_all()?; // row by row: f32 sums stay accurate
    Ok((kl * (t * t / counted.positions))?)
}

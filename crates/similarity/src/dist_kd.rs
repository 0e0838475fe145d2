//! DIST: the student's probabilities should be in line with the teacher's, pixel by pixel and class by class.
//!
//! p = softmax_c(t / T), q = softmax_c(s / T);   ρ is Pearson's correlation
//! L = T² · (β · (1 − mean over pixels of ρ over classes) + γ · (1 − mean over classes of ρ over the batch's pixels))
//!
//! Source: Huang et al., "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022, eq. 6 to 10, and the authors'
//! segmentation code, which takes each pixel for a sample. Differs: ignored pixels are no samples; where a network's
//! values do not vary, see the docstring. Derivation of the gradient: docs/losses/dist_kd.md.

use candle_core::{D, Tensor};
use dsd_ops::{check, softmax_channels};
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::csd::same_grid;
use crate::mask::Counted;
use crate::unit::unit;

/// A class whose greatest probability is at most this has no variation worth the name.
const SILENT: f64 = 1e-20;
/// The norm, relative to the greatest value, up to which a centred vector is rounding: f32 makes some 1e-7 per value.
const FLAT: f64 = 1e-5;

/// Settings of [`dist_kd`]. No `Default`: take the published numbers and change them, or let the recipe say all of it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default = "DistKd::published", deny_unknown_fields)]
pub struct DistKd {
    /// β, the weight of the relation between classes, dimensionless, finite, ≥ 0.
    pub inter: f64,
    /// γ, the weight of the relation within a class, dimensionless, finite, ≥ 0.
    pub intra: f64,
    /// T, dimensionless, finite, > 0.
    pub temperature: f64,
}

impl DistKd {
    /// The authors' segmentation code: β = γ = 1, T = 1, total weight 1.
    #[must_use]
    pub const fn published() -> Self {
        Self { inter: 1.0, intra: 1.0, temperature: 1.0 }
    }
}

/// Correlation of predictions, between classes and within a class.
///
/// # Shapes
/// student: `[N,K,H,W]` float, raw logits. teacher: `[N,K,H',W']` of the same type; where the sizes differ, the
/// student's logits are resized to the teacher's (bilinear, corners aligned). valid: `[N,H'',W'']` u8, 1 = counted,
/// 0 = ignored; `None` counts all.
/// # Returns
/// `[]` float, dimensionless, 0 to 2·T²·(β + γ) up to rounding. A pixel or class in which the teacher's probabilities do
/// not vary leaves its mean; one in which only the student's do not counts as uncorrelated. Nothing counted: 0, with
/// zero gradient.
/// # Gradient
/// Reaches `student` only; none where the student's probabilities do not vary.
/// # Numerics
/// Finite for |logit| ≤ 1e4 in f32.
/// # Errors
/// Shape, DType or Param, naming the argument.
/// # Source
/// As at the top of the file.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use dsd_similarity::{DistKd, dist_kd};
/// // Two classes, two pixels, and the student says the opposite of the teacher: every correlation is −1.
/// let teacher = Tensor::from_vec(vec![1f64, 0., 0., 1.], (1, 2, 1, 2), &Device::Cpu)?;
/// let student = Tensor::from_vec(vec![0f64, 1., 1., 0.], (1, 2, 1, 2), &Device::Cpu)?;
/// let loss = dist_kd(&student, &teacher, None, DistKd::published())?.to_scalar::<f64>()?;
/// assert!((loss - 4.0).abs() < 1e-12);
/// # Ok::<(), dsd_similarity::Error>(())
/// ```
pub fn dist_kd(student: &Tensor, teacher: &Tensor, valid: Option<&Tensor>, cfg: DistKd) -> Result<Tensor> {
    const OP: &str = "dist_kd";
    for (argument, weight) in [("inter", cfg.inter), ("intra", cfg.intra)] {
        if !(weight.is_finite() && weight >= 0.0) {
            return Err(check::param(OP, argument, "a finite number of at least 0", weight));
        }
    }
    let t = check::positive(OP, "temperature", cfg.temperature)?;
    let (student, teacher) = same_grid(OP, student, teacher)?;
    let (n, k, h, w) = teacher.dims4()?;
    let counted = Counted::at(OP, valid, &teacher, [h, w])?;
    let pixels = match &counted.mask {
        Some(mask) => mask.flatten_all()?,
        None => Tensor::ones(n * h * w, teacher.dtype(), teacher.device())?,
    };
    // One row per class, one column per pixel of the batch: [K,N·P].
    let by_class = |logits: &Tensor| -> Result<Tensor> {
        let probs = softmax_channels(&(logits / t)?)?;
        Ok(probs.transpose(0, 1)?.contiguous()?.reshape((k, n * h * w))?)
    };
    let (q, p) = (by_class(&student)?, by_class(&teacher)?);

    let of_pixels = Tensor::ones((1, k), q.dtype(), q.device())?;
    let transposed = |x: &Tensor| -> Result<Tensor> { Ok(x.t()?.contiguous()?) };
    let inter = distance(&transposed(&q)?, &transposed(&p)?, &of_pixels, k as f64, &pixels)?;
    let of_classes = Tensor::ones(k, q.dtype(), q.device())?;
    let intra = distance(&q, &p, &pixels.unsqueeze(0)?, counted.positions, &of_classes)?;
    Ok(((inter * (t * t * cfg.inter))? + (intra * (t * t * cfg.intra))?)?)
}

/// 1 − the mean of the correlations of corresponding rows of two `[R,L]` matrices, over rows that count and vary in p.
///
/// columns: `[1,L]`, which entries of a row count; length: how many; rows: `[R]`, which rows count.
fn distance(q: &Tensor, p: &Tensor, columns: &Tensor, length: f64, rows: &Tensor) -> Result<Tensor> {
    let (q, p) = (standard(q, columns, length)?, standard(p, columns, length)?);
    let varies = (p.sqr()?.sum(D::Minus1)?.gt(0.5)?.to_dtype(p.dtype())? * rows)?; // [R]
    let count = varies.to_dtype(candle_core::DType::F64)?.sum_all()?.to_scalar::<f64>()?.max(1.0);
    // Half the squared distance of unit vectors is 1 − ρ, without the rounding of ρ near 1; 1 where q does not vary.
    let flat = q.detach().sqr()?.sum(D::Minus1)?.lt(0.5)?.to_dtype(q.dtype())?;
    let half = ((q - p)?.sqr()?.sum(D::Minus1)? * 0.5)?; // [R]
    Ok((((half + (flat * 0.5)?)? * varies)?.sum_all()? / count)?)
}

/// Rows with mean 0 and length 1 over the columns that count; 0 where a row does not vary.
fn standard(x: &Tensor, columns: &Tensor, length: f64) -> Result<Tensor> {
    let x = x.broadcast_mul(columns)?;
    // Correlation does not depend on the scale, so this one is a constant for the gradient.
    let greatest = x.detach().max_keepdim(D::Minus1)?;
    let silent = greatest.le(SILENT)?.to_dtype(x.dtype())?;
    let x = x.broadcast_div(&(greatest + silent)?)?;
    let mean = (x.sum_keepdim(D::Minus1)? / length)?;
    unit(&x.broadcast_sub(&mean)?.broadcast_mul(columns)?, FLAT)
}

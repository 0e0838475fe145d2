//! Focal loss: cross-entropy in which pixels that are right already count little.
//!
//! L = Σ w_t · (1 − p_t)^γ · (−ln p_t) / Σ w_t   over the counted pixels, p_t = softmax(z) at the label t
//!
//! Source: Lin, Goyal, Girshick, He, Dollár, "Focal Loss for Dense Object Detection", ICCV 2017, eq. 4 and 5, with the
//! softmax over classes in place of their sigmoid. Their α_t is the class weight; differs from them in the divisor, the
//! sum of weights instead of a number of anchors, so that γ = 0 is the weighted cross-entropy.
//! Derivation of the gradient: docs/losses/focal.md.

use candle_core::{Tensor, WithDType};
use dsd_ops::{CrossEntropyOptions, check, softmax_channels};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::labels::Labels;
use super::node::{Slope, by_element, label_log_probs, node, with_values};
use crate::Result;

const OP: &str = "focal";

/// Settings of [`focal`]. No `Default`: the recipe owns the number.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Focal {
    /// γ, dimensionless, finite, ≥ 0. The paper's choice is 2.
    pub gamma: f64,
}

/// Multi-class focal loss.
///
/// # Shapes
/// logits: `[N,C,H,W]` float. labels: `[N,H,W]` u8, class ids below C or the ignored label. Class weights: `[C]`.
/// # Returns
/// `[]` float, in nats, ≥ 0, at most the cross-entropy. No pixel that counts: 0, with zero gradient.
/// # Gradient
/// Reaches `logits`.
/// # Numerics
/// Finite for |logit| ≤ 1e4 in f32; summed in f64 in a fixed order.
/// # Errors
/// Shape, DType or Param, naming the argument.
/// # Source
/// As at the top of the file.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use dsd_similarity::{CrossEntropyOptions, Focal, focal};
/// // Two classes with even odds: (1 − ½)² · ln 2.
/// let logits = Tensor::zeros((1, 2, 1, 1), DType::F64, &Device::Cpu)?;
/// let labels = Tensor::zeros((1, 1, 1), DType::U8, &Device::Cpu)?;
/// let pixels = CrossEntropyOptions { ignore_label: 255, class_weights: None };
/// let loss = focal(&logits, &labels, pixels, Focal { gamma: 2.0 })?.to_scalar::<f64>()?;
/// assert!((loss - 0.25 * 2f64.ln()).abs() < 1e-15);
/// # Ok::<(), dsd_similarity::Error>(())
/// ```
pub fn focal(logits: &Tensor, labels: &Tensor, pixels: CrossEntropyOptions<'_>, cfg: Focal) -> Result<Tensor> {
    let labels = Labels::read(OP, logits, labels, pixels.ignore_label)?;
    let weights = class_weights(OP, labels.classes, pixels.class_weights)?;
    if !(cfg.gamma.is_finite() && cfg.gamma >= 0.0) {
        return Err(check::param(OP, "gamma", "a finite number of at least 0", cfg.gamma));
    }
    by_element!(logits, typed(logits, labels, &weights, cfg))
}

/// A weight for each class, 1 where none are given.
pub(super) fn class_weights(op: &'static str, classes: usize, weights: Option<&[f64]>) -> Result<Vec<f64>> {
    let Some(weights) = weights else { return Ok(vec![1.0; classes]) };
    if weights.len() != classes {
        return Err(check::param(op, "class_weights", format!("{classes} numbers"), weights.len()));
    }
    match weights.iter().enumerate().find(|(_, weight)| !(weight.is_finite() && **weight >= 0.0)) {
        Some((class, weight)) => {
            Err(check::param(op, "class_weights", "finite numbers ≥ 0", format!("{weight} for class {class}")))
        }
        None => Ok(weights.to_vec()),
    }
}

fn typed<T: WithDType>(logits: &Tensor, labels: Labels, weights: &[f64], cfg: Focal) -> Result<Tensor> {
    let log_probs = label_log_probs::<T>(logits, &labels)?;
    let weight_of = |id: u8| if id == labels.ignored { 0.0 } else { weights[usize::from(id)] };
    let total: f64 = labels.ids.iter().map(|&id| weight_of(id)).sum();
    // The weight of each pixel, and its loss and slope before the weight.
    let of_pixel = |(&log_p, &id): (&T, &u8)| {
        let weight = if total > 0.0 { weight_of(id) / total } else { 0.0 };
        if weight > 0.0 {
            let (loss, slope) = modulated(log_p.to_f64(), cfg.gamma);
            (weight * loss, T::from_f64(weight * slope))
        } else {
            (0.0, T::zero())
        }
    };
    let (losses, slopes): (Vec<f64>, Vec<T>) = log_probs.par_iter().zip(&labels.ids).map(of_pixel).unzip();
    let value = losses.iter().sum();
    node(OP, logits, value, FocalSlope { labels, slopes })
}

/// The loss of a pixel, and h such that its gradient is h · (p_c − [c = t]).
fn modulated(log_p: f64, gamma: f64) -> (f64, f64) {
    let missing = -log_p.exp_m1(); // 1 − p
    // Below 0 where p was rounded above 1. A NaN goes on, into the loss.
    if missing <= 0.0 {
        return (0.0, if gamma == 0.0 { 1.0 } else { 0.0 });
    }
    let factor = missing.powf(gamma);
    (-factor * log_p, factor - gamma * (1.0 - missing) * (factor / missing) * log_p)
}

struct FocalSlope<T> {
    labels: Labels,
    /// ∂L/∂z_c = slope · (p_c − [c = t]), `[N,H,W]`.
    slopes: Vec<T>,
}

impl<T: WithDType> Slope<T> for FocalSlope<T> {
    fn gradient(&self, logits: &Tensor, upstream: f64) -> Result<Vec<T>> {
        let (classes, positions) = (self.labels.classes, self.labels.positions());
        let upstream = T::from_f64(upstream);
        let probs = softmax_channels(logits)?;
        Ok(with_values(&probs, |probs: &[T]| {
            let mut gradient = vec![T::zero(); probs.len()];
            gradient.par_chunks_mut(positions).zip(probs.par_chunks(positions)).enumerate().for_each(
                |(plane, (gradient, probs))| {
                    let (image, class) = (plane / classes, plane % classes);
                    let pixels = self.labels.image(image).iter().zip(&self.slopes[image * positions..]);
                    for ((gradient, &p), (&id, &slope)) in gradient.iter_mut().zip(probs).zip(pixels) {
                        let residual = if usize::from(id) == class { p - T::one() } else { p };
                        // Exactly 0 where the pixel does not count, even beside a NaN.
                        *gradient = if slope == T::zero() { T::zero() } else { upstream * slope * residual };
                    }
                },
            );
            gradient
        })?)
    }
}

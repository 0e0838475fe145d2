//! Cross-entropy on the hardest pixels (online hard example mining).
//!
//! K = counted pixels with p_t < threshold; where these are fewer than the minimum, the `minimum` counted pixels with
//! the smallest p_t;   L = Σ_K w_t · (−ln p_t) / Σ_K w_t
//!
//! Sources: Shrivastava, Gupta, Girshick, "Training Region-based Object Detectors with Online Hard Example Mining", CVPR
//! 2016 (the idea); Wu, Shen, van den Hengel, "High-performance Semantic Segmentation Using Very Deep Fully
//! Convolutional Networks", 2016 (threshold and minimum for segmentation). How the code bases' rule differs: see
//! docs/losses/ohem.md.

use candle_core::{Device, Tensor, WithDType};
use dsd_ops::{CrossEntropyOptions, check, cross_entropy};
use serde::{Deserialize, Serialize};

use super::focal::class_weights;
use super::labels::Labels;
use super::node::{by_element, label_log_probs};
use crate::Result;

const OP: &str = "ohem_cross_entropy";

/// The least that [`ohem_cross_entropy`] keeps of the counted pixels of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Keep {
    /// A number of pixels. Published settings: 100 000 to 131 072 for a batch; they belong to their crop and batch size.
    Pixels(usize),
    /// A share, 0 to 1, rounded up to whole pixels; the same at every crop and batch size.
    Share(f64),
}

/// Settings of [`ohem_cross_entropy`]. No `Default`: the recipe owns the numbers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ohem {
    /// Pixels whose probability of the labelled class is below it are kept; 0 to 1. Published settings: 0.7 and 0.9.
    pub threshold: f64,
    /// The least that is kept.
    pub minimum: Keep,
}

/// Cross-entropy over the hard pixels of the batch.
///
/// Exactly: pixels count whose label is not the ignored one and whose class weight is above 0. Those with
/// ln p_t < ln threshold are kept. If they are fewer than the minimum, the minimum number of counted pixels (all, if
/// there are fewer) with the smallest ln p_t is kept; of equal ones the first in row-major order of (n, h, w). The
/// selection carries no gradient.
///
/// # Shapes
/// logits: `[N,C,H,W]` float. labels: `[N,H,W]` u8, class ids below C or the ignored label. Class weights: `[C]`.
/// # Returns
/// `[]` float, in nats, ≥ 0: [`cross_entropy`] of the kept pixels. None kept: 0, with zero gradient.
/// # Gradient
/// Reaches `logits`, at kept pixels.
/// # Numerics
/// Finite for |logit| ≤ 1e4 in f32. Ranked by ln p_t, so pixels stay apart where p_t itself would round to 0.
/// # Errors
/// Shape, DType or Param, naming the argument.
/// # Source
/// As at the top of the file.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use dsd_similarity::{CrossEntropyOptions, Keep, Ohem, ohem_cross_entropy};
/// // Three pixels with p = ½, 0.8 and 0.9: none is below 0.4, but one has to be kept.
/// let logits = Tensor::new(&[[[[0f64, 4f64.ln(), 9f64.ln()]], [[0., 0., 0.]]]], &Device::Cpu)?;
/// let labels = Tensor::new(&[[[0u8, 0, 0]]], &Device::Cpu)?;
/// let pixels = CrossEntropyOptions { ignore_label: 255, class_weights: None };
/// let cfg = Ohem { threshold: 0.4, minimum: Keep::Pixels(1) };
/// let loss = ohem_cross_entropy(&logits, &labels, pixels, cfg)?.to_scalar::<f64>()?;
/// assert!((loss - 2f64.ln()).abs() < 1e-15);
/// # Ok::<(), dsd_similarity::Error>(())
/// ```
pub fn ohem_cross_entropy(
    logits: &Tensor,
    labels: &Tensor,
    pixels: CrossEntropyOptions<'_>,
    cfg: Ohem,
) -> Result<Tensor> {
    let labels = Labels::read(OP, logits, labels, pixels.ignore_label)?;
    let weights = class_weights(OP, labels.classes, pixels.class_weights)?;
    if !(0.0..=1.0).contains(&cfg.threshold) {
        return Err(check::param(OP, "threshold", "a number from 0 to 1", cfg.threshold));
    }
    if let Keep::Share(share) = cfg.minimum
        && !(0.0..=1.0).contains(&share)
    {
        return Err(check::param(OP, "minimum", "a share from 0 to 1", share));
    }
    let hard = by_element!(logits, select(logits, &labels, &weights, cfg))?;
    let hard = Tensor::from_vec(hard, (labels.batch, labels.height, labels.width), &Device::Cpu)?;
    cross_entropy(logits, &hard, pixels)
}

/// The labels, with the ignored one at pixels that are not kept.
fn select<T: WithDType>(logits: &Tensor, labels: &Labels, weights: &[f64], cfg: Ohem) -> Result<Vec<u8>> {
    let log_probs = label_log_probs::<T>(logits, labels)?;
    let counts = |pixel: &usize| {
        let id = labels.ids[*pixel];
        id != labels.ignored && weights[usize::from(id)] > 0.0
    };
    let mut ranked: Vec<usize> = (0..labels.ids.len()).filter(counts).collect();
    let minimum = match cfg.minimum {
        Keep::Pixels(pixels) => pixels.min(ranked.len()),
        Keep::Share(share) => ((share * ranked.len() as f64).ceil() as usize).min(ranked.len()),
    };
    // A NaN is the hardest: it has to reach the loss, where training reports it.
    let value = |pixel: usize| match log_probs[pixel].to_f64() {
        log_p if log_p.is_nan() => f64::NEG_INFINITY,
        log_p => log_p,
    };
    let limit = cfg.threshold.ln();
    let hard = |pixel: &usize| value(*pixel) < limit || value(*pixel) == f64::NEG_INFINITY;
    let below: Vec<usize> = ranked.iter().copied().filter(hard).collect();
    let kept = if below.len() >= minimum {
        below
    } else {
        ranked.select_nth_unstable_by(minimum - 1, |&a, &b| value(a).total_cmp(&value(b)).then(a.cmp(&b)));
        ranked.truncate(minimum);
        ranked
    };
    let mut hard = vec![labels.ignored; labels.ids.len()];
    for pixel in kept {
        hard[pixel] = labels.ids[pixel];
    }
    Ok(hard)
}

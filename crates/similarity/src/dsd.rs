//! Double similarity distillation: the weighted sum of [`psd`] and [`csd`].
//!
//! L = λ₁ · L_psd + λ₂ · L_csd
//!
//! Source: Feng, Sun, Diao, Li, Gao, "Double Similarity Distillation for Semantic Image Segmentation", IEEE TIP 30
//! (2021) 5363–5376; weights from the training script of winycg/CIRKD. Differs from that script: either part can be
//! switched off alone (there both weights must be non-zero for any of it to run).

use candle_core::Tensor;
use dsd_ops::check;

use crate::{Csd, Psd, Result, csd, psd};

/// Settings of [`dsd`]. No `Default`: take a named reading and change it, or let the recipe say all of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dsd {
    /// λ₁, dimensionless, finite, ≥ 0; 0 switches PSD off.
    pub psd_weight: f64,
    /// λ₂, dimensionless, finite, ≥ 0; 0 switches CSD off.
    pub csd_weight: f64,
    /// Settings of the pixel-wise part.
    pub psd: Psd,
    /// Settings of the category-wise part.
    pub csd: Csd,
}

impl Dsd {
    /// The reading of the paper that the sources support best, with weights 1000 and 10.
    #[must_use]
    pub const fn paper_reading() -> Self {
        Self { psd_weight: 1000.0, csd_weight: 10.0, psd: Psd::paper_reading(), csd: Csd::paper_reading() }
    }

    /// What the published "DSD" rows of CIRKD's tables were computed with, weights 1000 and 10. Its layers are the
    /// auxiliary logits, the head's feature and the final logits, in this order, all at one stride.
    #[must_use]
    pub const fn cirkd_compat() -> Self {
        Self { psd_weight: 1000.0, csd_weight: 10.0, psd: Psd::cirkd_compat(), csd: Csd::cirkd_compat() }
    }
}

/// What [`dsd`] compares of a network.
#[derive(Clone, Copy, Debug)]
pub struct NetworkOutput<'a> {
    /// Feature layers, shallow to deep, `[N,C_l,H_l,W_l]`; not looked at where PSD is off.
    pub features: &'a [Tensor],
    /// Raw logits `[N,K,H,W]`; not looked at where CSD is off.
    pub logits: &'a Tensor,
}

/// The loss and its parts, all `[]` float.
#[derive(Clone, Debug)]
pub struct DsdLoss {
    /// λ₁ · psd + λ₂ · csd.
    pub total: Tensor,
    /// The pixel-wise part before its weight; `None` where it is off.
    pub psd: Option<Tensor>,
    /// The category-wise part before its weight; `None` where it is off.
    pub csd: Option<Tensor>,
}

/// Double similarity distillation of a student from a teacher.
///
/// # Shapes
/// As [`psd`] for the features and [`csd`] for the logits; valid: `[N,H,W]` u8, 1 = counted, 0 = ignored, for both.
/// # Returns
/// The total and its parts, ≥ 0, dimensionless. Both parts off: a total of 0 without a graph.
/// # Gradient
/// Reaches `student` only.
/// # Numerics
/// As of the parts.
/// # Errors
/// Param where a weight is negative or not finite; otherwise as [`psd`] and [`csd`].
/// # Source
/// As at the top of the file.
pub fn dsd(
    student: NetworkOutput<'_>,
    teacher: NetworkOutput<'_>,
    valid: Option<&Tensor>,
    cfg: Dsd,
) -> Result<DsdLoss> {
    for (argument, weight) in [("psd_weight", cfg.psd_weight), ("csd_weight", cfg.csd_weight)] {
        if !(weight.is_finite() && weight >= 0.0) {
            return Err(check::param("dsd", argument, "a finite number of at least 0", weight));
        }
    }
    let psd_part = match cfg.psd_weight {
        0.0 => None,
        _ => Some(psd(student.features, teacher.features, valid, cfg.psd)?),
    };
    let csd_part = match cfg.csd_weight {
        0.0 => None,
        _ => Some(csd(student.logits, teacher.logits, valid, cfg.csd)?),
    };
    let weighted = |part: &Tensor, weight: f64| part.affine(weight, 0.0);
    let total = match (&psd_part, &csd_part) {
        (Some(psd), Some(csd)) => (weighted(psd, cfg.psd_weight)? + weighted(csd, cfg.csd_weight)?)?,
        (Some(psd), None) => weighted(psd, cfg.psd_weight)?,
        (None, Some(csd)) => weighted(csd, cfg.csd_weight)?,
        (None, None) => Tensor::zeros((), student.logits.dtype(), student.logits.device())?,
    };
    Ok(DsdLoss { total, psd: psd_part, csd: csd_part })
}

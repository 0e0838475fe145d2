//! Channel-wise distillation: each channel should be active at the same places as the teacher's.
//!
//! p = softmax over positions of t / T, q likewise of s;   L = T² · 1/(N·C) · Σ_{n,c} Σ_positions p · (ln p − ln q)
//!
//! Source: Shu et al., "Channel-wise Knowledge Distillation for Dense Prediction", ICCV 2021, eq. 5; divisor as in the
//! authors' code and mmrazor's `ChannelWiseDivergence`. Differs: ignored pixels leave the softmax, images without a
//! counted pixel the mean. Derivation of the gradient: docs/losses/channel_kd.md.

use candle_core::Tensor;
use dsd_ops::{check, log_softmax_channels};

use crate::Result;
use crate::grid::{Channels, pair};

/// Settings of [`channel_kd`]. No `Default`: the recipe owns the number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ChannelKd {
    /// T, dimensionless, finite, > 0.
    pub temperature: f64,
}

impl ChannelKd {
    /// T = 4, as the authors' code has it for features (weight 50) and for logits (weight 3).
    #[must_use]
    pub const fn published() -> Self {
        Self { temperature: 4.0 }
    }
}

/// Channel-wise distillation of features or of logits.
///
/// # Shapes
/// student: `[N,C,H,W]` float: raw logits, or a feature that an adaptor has brought to the teacher's channels. teacher:
/// `[N,C,H',W']` of the same type; where the sizes differ, the finer one is resized to the coarser (bilinear, corners
/// aligned). valid: `[N,H'',W'']` u8, 1 = counted, 0 = ignored; `None` counts all.
/// # Returns
/// `[]` float, in nats per channel, ≥ 0 up to rounding. No counted position: 0, with zero gradient.
/// # Gradient
/// Reaches `student` only.
/// # Numerics
/// Finite for |value| ≤ 1e4 in f32. Does not change with a number added to a whole channel; grows steeply with the
/// scale of the teacher's values.
/// # Errors
/// Shape, DType or Param, naming the argument.
/// # Source
/// As at the top of the file.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use dsd_similarity::{ChannelKd, channel_kd};
/// // One channel on two positions: the teacher is three times as active on the left, the student even.
/// let teacher = Tensor::from_vec(vec![3f64.ln(), 0.], (1, 1, 1, 2), &Device::Cpu)?;
/// let student = teacher.zeros_like()?;
/// let loss = channel_kd(&student, &teacher, None, ChannelKd { temperature: 1.0 })?.to_scalar::<f64>()?;
/// let expected = 0.75 * 1.5f64.ln() + 0.25 * 0.5f64.ln();
/// assert!((loss - expected).abs() < 1e-12);
/// # Ok::<(), dsd_similarity::Error>(())
/// ```
pub fn channel_kd(student: &Tensor, teacher: &Tensor, valid: Option<&Tensor>, cfg: ChannelKd) -> Result<Tensor> {
    const OP: &str = "channel_kd";
    let t = check::positive(OP, "temperature", cfg.temperature)?;
    let pair = pair(OP, student, teacher, valid, Channels::Equal)?;
    let (n, c, h, w) = pair.teacher.dims4()?;
    let over_positions = |x: &Tensor| -> Result<Tensor> {
        let rows = pair.counted.lower(&(x / t)?)?.reshape((n * c, h * w))?;
        log_softmax_channels(&rows)
    };

    let log_p = over_positions(&pair.teacher)?; // [N·C,P]
    let log_q = over_positions(&pair.student)?; // [N·C,P]
    let weight = pair.counted.apply(log_p.exp()?.reshape((n, c, h, w))?)?.reshape((n * c, h * w))?;
    let kl = (weight * (log_p - log_q)?)?.sum(1)?.sum_all()?;
    Ok((kl * (t * t / (pair.counted.images * c as f64)))?)
}

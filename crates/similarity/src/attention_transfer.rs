//! Attention transfer: the student should attend to the same places as the teacher, layer by layer.
//!
//! A_l = n(mean_c |F_l[c]|^p);   L = Σ_l mean over n, positions of (A^S_l − A^T_l)²
//!
//! Source: Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR 2017, eq. 2 (there the norm, not its
//! square) and the authors' code (the squared mean). Differs: ignored positions have no attention and leave the mean.
//! Derivation of the gradient: docs/losses/attention_transfer.md.

use candle_core::Tensor;
use dsd_ops::check;

use crate::attention::{check_eps, check_power, unit_attention};
use crate::mask::Counted;
use crate::mean_power::mean_power;
use crate::psd::{check_layer, common_size, reduced, resized};
use crate::{MapSize, PsdReduction, Result};

/// Settings of [`attention_transfer`]. No `Default`: take the published form and change it, or let the recipe say all.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionTransfer {
    /// p of the attention map, dimensionless, ≥ 1.
    pub power: f64,
    /// How differences become a number, for each layer; the layers are added up.
    pub reduction: PsdReduction,
    /// What happens to maps of different sizes.
    pub map_size: MapSize,
    /// Under [`PsdReduction::Norm`] the distance, dimensionless, up to which two maps count as equal; > 0, and ≥ 1e-8
    /// with f32 tensors. Not used otherwise.
    pub eps: f64,
}

impl AttentionTransfer {
    /// As the authors' code and CIRKD's compute it: p = 2, mean of squares. CIRKD's weight, 10000 on the head's feature,
    /// belongs to it.
    #[must_use]
    pub const fn published() -> Self {
        Self { power: 2.0, reduction: PsdReduction::SquaredMean, map_size: MapSize::Coarsest, eps: 1e-6 }
    }

    /// The same × positions / [`REFERENCE_POSITIONS`](crate::REFERENCE_POSITIONS): a weight keeps its meaning when the
    /// crop changes.
    #[must_use]
    pub const fn resolution_normalised() -> Self {
        Self { reduction: PsdReduction::ResolutionNormalised, ..Self::published() }
    }
}

/// Attention transfer between pairs of feature layers.
///
/// # Shapes
/// student, teacher: L ≥ 1 layers each, `[N,C_l,H_l,W_l]` float, compared one by one; channels and sizes may differ
/// between layers and between student and teacher: energies are resized to the smaller of the two maps (bilinear,
/// corners aligned). valid: `[N,H,W]` u8, 1 = counted, 0 = ignored; `None` counts all.
/// # Returns
/// `[]` float, ≥ 0, dimensionless. At ignored positions the attention is 0 before normalisation; they, and images
/// without a counted position, leave the means. Nothing counted: 0, with zero gradient.
/// # Gradient
/// Reaches `student` only.
/// # Numerics
/// Finite for |feature| ≤ 1e4 in f32 with power 2 or 4. Independent of the scale of each layer.
/// # Errors
/// Shape, DType or Param, naming the argument; layers of different sizes where `map_size` is [`MapSize::Equal`].
/// # Source
/// As at the top of the file.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use dsd_similarity::{AttentionTransfer, attention_transfer};
/// let layer = |values: Vec<f64>| Tensor::from_vec(values, (1, 1, 1, 2), &Device::Cpu);
/// // All attention on the left against all on the right: the maps differ by 1 at each of two positions.
/// let (student, teacher) = ([layer(vec![2., 0.])?], [layer(vec![0., 5.])?]);
/// let loss = attention_transfer(&student, &teacher, None, AttentionTransfer::published())?.to_scalar::<f64>()?;
/// assert!((loss - 1.0).abs() < 1e-12);
/// # Ok::<(), dsd_similarity::Error>(())
/// ```
pub fn attention_transfer(
    student: &[Tensor],
    teacher: &[Tensor],
    valid: Option<&Tensor>,
    cfg: AttentionTransfer,
) -> Result<Tensor> {
    const OP: &str = "attention_transfer";
    let Some(first) = student.first() else {
        return Err(check::param(OP, "student", "at least 1 feature layer", 0));
    };
    if teacher.len() != student.len() {
        return Err(check::param(OP, "teacher", format!("{} feature layers as student", student.len()), teacher.len()));
    }
    for (argument, layers) in [("student", student), ("teacher", teacher)] {
        for (index, layer) in layers.iter().enumerate() {
            check_layer(OP, argument, index, layer, first)?;
        }
    }
    check_power(OP, cfg.power)?;
    check_eps(OP, cfg.eps, first)?;

    let mut sum = Tensor::zeros((), first.dtype(), first.device())?;
    for (student, teacher) in student.iter().zip(teacher) {
        let (of_student, of_teacher) = (mean_power(student, cfg.power)?, mean_power(&teacher.detach(), cfg.power)?);
        let size = common_size(OP, &[("student", &of_student), ("teacher", &of_teacher)], cfg.map_size)?;
        let counted = Counted::at(OP, valid, student, size)?;
        let of_student = unit_attention(resized(&of_student, size)?, &counted)?; // [N,P]
        let of_teacher = unit_attention(resized(&of_teacher, size)?, &counted)?;
        sum = (sum + reduced(&(of_student - of_teacher)?, &counted, cfg.reduction, cfg.eps)?)?;
    }
    Ok(sum)
}

//! Category-wise similarity distillation: the class maps of the student should correlate as the teacher's do.
//!
//! q = softmax_classes(z / τ);   u_i = q_i / ‖q_i‖₂ over positions;   M_ij = u_i · u_j
//! L = mean over n, i, j of (M^S − M^T)²
//!
//! Source: Feng, Sun, Diao, Li, Gao, "Double Similarity Distillation for Semantic Image Segmentation", IEEE TIP 30
//! (2021) 5363–5376. The paper's text leaves several choices open; each is a switch here, and the two readings in use
//! are [`Csd::paper_reading`] and [`Csd::cirkd_compat`]. Derivation of the gradient: docs/losses/dsd.md.

use candle_core::Tensor;
use dsd_ops::{PoolOptions, avg_pool2d, check, resize_bilinear, softmax_channels};

use crate::Result;
use crate::class_correlation::ClassMaps;
use crate::mask::Counted;

/// The norm up to which a class map counts as absent; its square is still a normal f32.
const ABSENT_NORM: f64 = 1e-12;

/// Which axis the temperature-softened distribution runs over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SoftmaxAxis {
    /// Over the classes at each position. What a reader's note on the paper says.
    Classes,
    /// Over the positions for each class. What the re-implementation in CIRKD does.
    Positions,
}

/// Settings of [`csd`]. No `Default`: take a named reading and change it, or let the recipe say all of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Csd {
    /// The axis of the softmax.
    pub softmax_axis: SoftmaxAxis,
    /// Whether each class's map is given length 1 over the positions, so that M holds cosines.
    pub normalise_maps: bool,
    /// Whether the logits are first averaged over 2 × 2 windows (stride 2; windows at an odd edge hold fewer).
    pub average_pool: bool,
    /// τ, dimensionless, finite, > 0.
    pub temperature: f64,
}

impl Csd {
    /// The reading that the sources support best: softmax over classes, cosine of class maps, no pooling, τ = 4.
    #[must_use]
    pub const fn paper_reading() -> Self {
        Self { softmax_axis: SoftmaxAxis::Classes, normalise_maps: true, average_pool: false, temperature: 4.0 }
    }

    /// As the re-implementation in winycg/CIRKD computes it: pooled, softmax over positions, plain products. The
    /// products are of the order 1/positions, so with its own weight this part hardly pulls unless the logits are very
    /// peaked.
    #[must_use]
    pub const fn cirkd_compat() -> Self {
        Self { softmax_axis: SoftmaxAxis::Positions, normalise_maps: false, average_pool: true, temperature: 4.0 }
    }
}

/// The correlation matrix M of the class maps of each image.
///
/// # Shapes
/// logits: `[N,K,H,W]` float, raw. valid: `[N,H',W']` u8, 1 = counted, 0 = ignored.
/// # Returns
/// `[N,K,K]`, symmetric, ≥ 0. With `normalise_maps` each value is a cosine, ≤ 1, and the diagonal is 1. Rows and
/// columns of a class whose softened map is below 1e-12 in norm, and images without a counted position, are 0.
/// # Gradient
/// Reaches `logits`.
/// # Numerics
/// Finite for |logit| ≤ 1e4 in f32.
/// # Errors
/// Shape, DType or Param, naming the argument.
/// # Source
/// As at the top of the file.
pub fn category_correlation(logits: &Tensor, valid: Option<&Tensor>, cfg: Csd) -> Result<Tensor> {
    const OP: &str = "category_correlation";
    check::nchw(OP, "logits", logits)?;
    let temperature = check::positive(OP, "temperature", cfg.temperature)?;
    Ok(correlation(OP, logits, valid, cfg, temperature)?.0)
}

/// Category-wise similarity distillation.
///
/// # Shapes
/// student: `[N,K,H,W]` float, raw logits. teacher: `[N,K,H',W']` of the same type; where the sizes differ, the
/// student's logits are resized to the teacher's (bilinear, corners aligned). valid: `[N,H'',W'']` u8, 1 = counted,
/// 0 = ignored.
/// # Returns
/// `[]` float, ≥ 0, dimensionless; at most 1 with `normalise_maps`. Ignored positions leave the softmax (over
/// positions) and every product; images without a counted position leave the mean. Nothing counted: 0, with zero
/// gradient.
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
/// use dsd_similarity::{Csd, csd};
/// // Two classes on two positions. The teacher is sure: different places, cosine 0. The student cannot tell: cosine 1.
/// let teacher = Tensor::from_vec(vec![400f64, 0., 0., 400.], (1, 2, 1, 2), &Device::Cpu)?;
/// let student = teacher.zeros_like()?;
/// let loss = csd(&student, &teacher, None, Csd::paper_reading())?.to_scalar::<f64>()?;
/// assert!((loss - 0.5).abs() < 1e-12); // two of the four entries differ by 1
/// # Ok::<(), dsd_similarity::Error>(())
/// ```
pub fn csd(student: &Tensor, teacher: &Tensor, valid: Option<&Tensor>, cfg: Csd) -> Result<Tensor> {
    const OP: &str = "csd";
    let temperature = check::positive(OP, "temperature", cfg.temperature)?;
    let (student, teacher) = same_grid(OP, student, teacher)?;
    let classes = teacher.dim(1)? as f64;

    let (of_student, images) = correlation(OP, &student, valid, cfg, temperature)?;
    let (of_teacher, _) = correlation(OP, &teacher, valid, cfg, temperature)?;
    let squared = (of_student - of_teacher)?.sqr()?.sum_all()?;
    Ok((squared / (images * classes * classes))?)
}

/// Student logits on the teacher's grid, and the teacher's without a graph.
pub(crate) fn same_grid(op: &'static str, student: &Tensor, teacher: &Tensor) -> Result<(Tensor, Tensor)> {
    let (n, k, height, width) = check::nchw(op, "student", student)?;
    check::dtype(op, "teacher", teacher, student.dtype())?;
    let size = match *teacher.dims() {
        [tn, tk, h, w] if tn == n && tk == k && h * w > 0 => [h, w],
        _ => return Err(check::shape(op, "teacher", format!("[{n},{k},H,W] with no size 0"), teacher)),
    };
    let student = if size == [height, width] { student.clone() } else { resize_bilinear(student, size, true)? };
    Ok((student, teacher.detach()))
}

/// M, and the number of images that it counts.
fn correlation(
    op: &'static str,
    logits: &Tensor,
    valid: Option<&Tensor>,
    cfg: Csd,
    temperature: f64,
) -> Result<(Tensor, f64)> {
    let pooling = PoolOptions { kernel: [2, 2], stride: [2, 2], padding: [0, 0], ceil_mode: true };
    let logits = if cfg.average_pool { avg_pool2d(logits, pooling, false)? } else { logits.clone() };
    let (_, _, h, w) = logits.dims4()?;
    let counted = Counted::at(op, valid, &logits, [h, w])?;
    let softened = (logits.detach() / temperature)?;
    let probs = match cfg.softmax_axis {
        SoftmaxAxis::Classes => softmax_channels(&softened)?,
        SoftmaxAxis::Positions => softmax_positions(&softened, &counted)?,
    };
    let probs = counted.apply(probs)?;
    let cosines = cfg.normalise_maps.then_some(ABSENT_NORM);
    let matrix = ClassMaps { probs, axis: cfg.softmax_axis, temperature, cosines }.correlation(&logits)?; // [N,K,K]
    Ok((matrix, counted.images))
}

/// The softmax over the counted positions of each class.
fn softmax_positions(logits: &Tensor, counted: &Counted) -> Result<Tensor> {
    let logits = counted.lower(logits)?;
    let dims = logits.dims4()?;
    // The fused softmax runs over the second axis: positions take the place of channels.
    let positions_second = logits.flatten_from(2)?.transpose(1, 2)?.unsqueeze(3)?; // [N,P,K,1]
    let probs = softmax_channels(&positions_second)?;
    Ok(probs.squeeze(3)?.transpose(1, 2)?.contiguous()?.reshape(dims)?)
}

//! Cross-image relations within a batch: a place should resemble the places of all images as it does to the teacher.
//!
//! f̂ = f / ‖f‖₂ over channels;   for images i, j and a place a of i: p = softmax_b(f̂_ia · f̂_jb / τ) over places b of j
//! L = mean over i, j and places a of KL(p^T ‖ p^S)
//!
//! Source: Yang et al., "Cross-Image Relational Knowledge Distillation for Semantic Segmentation", CVPR 2022, eq. 4 and
//! 5. Differs from their code: ignored pixels are no places; the pooling is a setting (there 4 × 4 from 256 × 256 on).
//! Derivation, cost and the memory variant: docs/losses/cirkd.md.

use candle_core::Tensor;
use dsd_ops::{PoolOptions, avg_pool2d, check};

use crate::Result;
use crate::grid::{Channels, Pair, pair, unit_channels};
use crate::mask::Counted;
use crate::relation::{Relation, Wanted, with_gradients};

/// Settings of [`cross_image_kd`]. No `Default`: take the published numbers, or let the recipe say all of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CrossImageKd {
    /// τ, dimensionless, finite, > 0.
    pub temperature: f64,
    /// Both features are first averaged over windows of this many positions squared, at least 1; 1 averages nothing.
    /// Time falls with its fourth power.
    pub average_pool: usize,
}

impl CrossImageKd {
    /// τ = 0.1, no pooling, weight 1: what CIRKD's scripts do on features below 256 × 256.
    #[must_use]
    pub const fn published() -> Self {
        Self { temperature: 0.1, average_pool: 1 }
    }
}

/// Mini-batch cross-image relational distillation of one feature.
///
/// # Shapes
/// student: `[N,C,H,W]` float. teacher: `[N,C',H',W']` of the same type; channels may differ; where the sizes differ,
/// the finer one is resized to the coarser (bilinear, corners aligned). valid: `[N,H'',W'']` u8, 1 = counted, 0 =
/// ignored, brought to the pooled grid by nearest neighbour; `None` counts all. Before pooling, ignored positions leave
/// the averages.
/// # Returns
/// `[]` float, in nats, ≥ 0 up to rounding. Nothing counted: 0, with zero gradient.
/// # Gradient
/// Reaches `student` only. A place whose feature is 1e-12 or less in norm gets none.
/// # Numerics
/// Finite for |feature| ≤ 1e4 in f32. Independent of the scale of each place's feature.
/// # Memory and time
/// Similarities exist a tile of about a million at a time. P places per image cost about 2·C·(N·P)² multiply-adds
/// forward, and as many for the gradient, which is found in the same pass; without a graph on `student` it is not.
/// # Errors
/// Shape, DType or Param, naming the argument.
/// # Source
/// As at the top of the file.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use dsd_similarity::{CrossImageKd, cross_image_kd};
/// // Two places: alike to the student, who spreads ½ and ½; the teacher gives odds of e to 1 to the place itself.
/// let student = Tensor::from_vec(vec![1f64, 2., 0., 0.], (1, 2, 1, 2), &Device::Cpu)?;
/// let teacher = Tensor::from_vec(vec![1f64, 0., 0., 1.], (1, 2, 1, 2), &Device::Cpu)?;
/// let cfg = CrossImageKd { temperature: 1.0, average_pool: 1 };
/// let loss = cross_image_kd(&student, &teacher, None, cfg)?.to_scalar::<f64>()?;
/// let p = 1.0 / (1.0 + (-1f64).exp());
/// assert!((loss - (p * (2.0 * p).ln() + (1.0 - p) * (2.0 * (1.0 - p)).ln())).abs() < 1e-12);
/// # Ok::<(), dsd_similarity::Error>(())
/// ```
pub fn cross_image_kd(student: &Tensor, teacher: &Tensor, valid: Option<&Tensor>, cfg: CrossImageKd) -> Result<Tensor> {
    const OP: &str = "cross_image_kd";
    let temperature = check::positive(OP, "temperature", cfg.temperature)?;
    if cfg.average_pool == 0 {
        return Err(check::param(OP, "average_pool", "at least 1", 0));
    }
    let pair = averaged(pair(OP, student, teacher, valid, Channels::Free)?, cfg.average_pool)?;
    let (of_student, of_teacher) = (places(&pair.student, &pair.counted)?, places(&pair.teacher, &pair.counted)?);
    let anchors: usize = of_student.iter().map(|rows| rows.dims()[0]).sum();
    let scale = 1.0 / (anchors as f64 * of_student.len() as f64).max(1.0);
    let wanted = if student.track_op() { Wanted::Both } else { Wanted::Nothing };

    let plain: Vec<Tensor> = of_student.iter().map(Tensor::detach).collect();
    let mut value = 0.0;
    let mut gradients = plain.iter().map(Tensor::zeros_like).collect::<candle_core::Result<Vec<_>>>()?;
    for i in 0..plain.len() {
        for j in 0..plain.len() {
            let relation = Relation {
                student_anchors: &plain[i],
                student_others: &plain[j],
                teacher_anchors: &of_teacher[i],
                teacher_others: &of_teacher[j],
                temperature,
            };
            let found = relation.divergence(wanted)?;
            value += found.value * scale;
            for (image, gradient) in [(i, found.of_anchors), (j, found.of_others)] {
                if let Some(gradient) = gradient {
                    gradients[image] = (&gradients[image] + (gradient * scale)?)?;
                }
            }
        }
    }
    let parts: Vec<(&Tensor, Tensor)> = of_student.iter().zip(gradients).collect();
    with_gradients(value, student, &parts)
}

/// The average over the counted positions of each window; a window counts where it holds one.
fn averaged(pair: Pair, window: usize) -> Result<Pair> {
    if window == 1 {
        return Ok(pair);
    }
    let pooling = PoolOptions { kernel: [window; 2], stride: [window; 2], padding: [0; 2], ceil_mode: true };
    let (n, _, h, w) = pair.teacher.dims4()?;
    let Some(mask) = &pair.counted.mask else {
        return Ok(Pair {
            student: avg_pool2d(&pair.student, pooling, false)?,
            teacher: avg_pool2d(&pair.teacher, pooling, false)?,
            counted: Counted::everything(n, [h.div_ceil(window), w.div_ceil(window)]),
        });
    };
    // A constant factor at a place does not change its direction: sums do where averages are meant.
    let average = |x: &Tensor| -> Result<Tensor> { avg_pool2d(&x.broadcast_mul(mask)?, pooling, false) };
    let share = avg_pool2d(mask, pooling, false)?;
    let counted = Counted::of_mask(share.gt(0.0)?.to_dtype(share.dtype())?)?;
    Ok(Pair { student: average(&pair.student)?, teacher: average(&pair.teacher)?, counted })
}

/// Unit features of the counted places, `[places,C]`, one tensor for each image that has one.
pub(crate) fn places(features: &Tensor, counted: &Counted) -> Result<Vec<Tensor>> {
    let rows = unit_channels(features)?.flatten_from(2)?.transpose(1, 2)?.contiguous()?; // [N,P,C]
    let indices = counted.indices()?;
    let mut places = Vec::new();
    for image in 0..rows.dim(0)? {
        let rows = rows.get(image)?;
        match &indices {
            None => places.push(rows),
            Some(indices) if indices[image].elem_count() > 0 => places.push(rows.index_select(&indices[image], 0)?),
            Some(_) => {}
        }
    }
    Ok(places)
}

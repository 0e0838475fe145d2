//! Intra-class feature variation: places of a class should lie about its centre as they do in the teacher.
//!
//! c_k = mean of f over the positions of class k in an image;   S_i = cos(f_i, c_{y_i});   L = mean of (S^S − S^T)²
//!
//! Source: Wang et al., "Intra-class Feature Variation Distillation for Semantic Segmentation", ECCV 2020, eq. 1 to 3.
//! Differs from their code: ignored pixels leave the mean (there their difference is 0, but they are counted).
//! Derivation of the gradient: docs/losses/ifvd.md.

use candle_core::{DType, Tensor};
use dsd_ops::{check, resize_nearest};

use crate::Result;
use crate::grid::{Channels, pair, unit_channels};
use crate::unit::unit;

/// The norm up to which a centre counts as zero; its square is still a normal f32.
const ABSENT_NORM: f64 = 1e-12;

/// Settings of [`ifvd`]. No `Default`: the recipe owns the number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ifvd {
    /// Number of classes, 1 to 255.
    pub num_classes: usize,
}

/// Intra-class feature variation distillation of one feature.
///
/// # Shapes
/// student: `[N,C,H,W]` float. teacher: `[N,C',H',W']` of the same type; channels may differ; where the sizes differ,
/// the finer one is resized to the coarser (bilinear, corners aligned). labels: `[N,H'',W'']` u8 class ids at any
/// resolution, brought to the features' grid by nearest neighbour. valid: as the labels, 1 = counted, 0 = ignored;
/// `None` counts all. A label that is no class is ignored as well.
/// # Returns
/// `[]` float, dimensionless, at most 4. Ignored positions leave the centres and the mean. Nothing counted: 0, with zero
/// gradient.
/// # Gradient
/// Reaches `student` only, through the places and the centres.
/// # Numerics
/// Finite for |feature| ≤ 1e4 in f32. Independent of the scale of a network's feature.
/// # Errors
/// Shape, DType or Param, naming the argument.
/// # Source
/// As at the top of the file.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use dsd_similarity::{Ifvd, ifvd};
/// // Two places of one class: the same to the student (cosine 1 with the centre), at right angles to the teacher (√½).
/// let student = Tensor::from_vec(vec![1f64, 1., 0., 0.], (1, 2, 1, 2), &Device::Cpu)?;
/// let teacher = Tensor::from_vec(vec![1f64, 0., 0., 1.], (1, 2, 1, 2), &Device::Cpu)?;
/// let labels = Tensor::new(&[[[0u8, 0]]], &Device::Cpu)?;
/// let loss = ifvd(&student, &teacher, &labels, None, Ifvd { num_classes: 1 })?.to_scalar::<f64>()?;
/// assert!((loss - (1.0 - 0.5f64.sqrt()).powi(2)).abs() < 1e-12);
/// # Ok::<(), dsd_similarity::Error>(())
/// ```
pub fn ifvd(student: &Tensor, teacher: &Tensor, labels: &Tensor, valid: Option<&Tensor>, cfg: Ifvd) -> Result<Tensor> {
    const OP: &str = "ifvd";
    if !(1..=255).contains(&cfg.num_classes) {
        return Err(check::param(OP, "num_classes", "1 to 255", cfg.num_classes));
    }
    let pair = pair(OP, student, teacher, valid, Channels::Free)?;
    let (n, _, h, w) = pair.teacher.dims4()?;
    let members = members(OP, labels, [n, h, w], cfg.num_classes, student.dtype())?; // [N,K,h,w]
    let members = pair.counted.apply(members)?.flatten_from(2)?; // [N,K,P]
    let counts = members.sum_keepdim(2)?; // [N,K,1]
    let means = members.broadcast_div(&counts.maximum(1.0)?)?;

    let of_student = similarity(&pair.student, &members, &means)?; // [N,P]
    let of_teacher = similarity(&pair.teacher, &members, &means)?;
    let counted = counts.to_dtype(DType::F64)?.sum_all()?.to_scalar::<f64>()?.max(1.0);
    Ok(((of_student - of_teacher)?.sqr()?.sum(1)?.sum_all()? / counted)?)
}

/// 1 where a position of the grid has the class, `[N,K,h,w]`.
pub(crate) fn members(
    op: &'static str,
    labels: &Tensor,
    [n, h, w]: [usize; 3],
    num_classes: usize,
    dtype: DType,
) -> Result<Tensor> {
    check::dtype(op, "labels", labels, DType::U8)?;
    match *labels.dims() {
        [ln, lh, lw] if ln == n && lh * lw > 0 => {}
        _ => return Err(check::shape(op, "labels", format!("[{n},H,W] with no size 0"), labels)),
    }
    let labels = resize_nearest(&labels.to_dtype(DType::F32)?.unsqueeze(1)?, [h, w])?.to_dtype(DType::U8)?; // [N,1,h,w]
    let classes: Vec<u8> = (0u8..=254).take(num_classes).collect();
    let classes = Tensor::from_vec(classes, (1, num_classes, 1, 1), labels.device())?;
    Ok(labels.broadcast_eq(&classes)?.to_dtype(dtype)?)
}

/// The cosine of each position with the centre of its class, 0 where it has none: `[N,C,h,w]` to `[N,P]`.
fn similarity(features: &Tensor, members: &Tensor, means: &Tensor) -> Result<Tensor> {
    let places = features.flatten_from(2)?.transpose(1, 2)?.contiguous()?; // [N,P,C]
    let centres = unit(&means.matmul(&places)?, ABSENT_NORM)?; // [N,K,C]
    let directions = unit_channels(features)?.flatten_from(2)?; // [N,C,P]
    let with_each = centres.matmul(&directions)?; // [N,K,P]
    Ok((with_each * members)?.sum(1)?)
}

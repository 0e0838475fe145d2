//! FitNet hints: the student's feature, brought to the teacher's channels by an adaptor, should equal the teacher's.
//!
//! L = mean over counted (n,h,w) and channels of (F^S − F^T)²
//!
//! Source: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, eq. 3 (there half the sum), with the mean as
//! in winycg/CIRKD, `losses/fitnet.py`. Differs from that code: ignored pixels leave the mean. The adaptor, a 1×1
//! convolution that is trained with the student, belongs to the caller. Details: docs/losses/fitnet.md.

use candle_core::Tensor;

use crate::Result;
use crate::grid::{Channels, pair};

/// The mean squared difference of two features.
///
/// # Shapes
/// student: `[N,C,H,W]` float, already adapted to the teacher's channels. teacher: `[N,C,H',W']` of the same type; where
/// the sizes differ, the finer one is resized to the coarser (bilinear, corners aligned). valid: `[N,H'',W'']` u8, 1 =
/// counted, 0 = ignored; `None` counts all.
/// # Returns
/// `[]` float, ≥ 0, in squared units of the teacher's feature. No counted position: 0, with zero gradient.
/// # Gradient
/// Reaches `student` only, and through it the adaptor.
/// # Numerics
/// Finite for |feature| ≤ 1e4 in f32. Grows with the square of the features' scale: a published weight does not
/// transfer to another teacher.
/// # Errors
/// Shape or DType, naming the argument.
/// # Source
/// As at the top of the file.
///
/// ```
/// use candle_core::{Device, Tensor};
/// let student = Tensor::from_vec(vec![1f64, 2.], (1, 2, 1, 1), &Device::Cpu)?;
/// let teacher = Tensor::from_vec(vec![1f64, 5.], (1, 2, 1, 1), &Device::Cpu)?;
/// assert_eq!(dsd_similarity::fitnet(&student, &teacher, None)?.to_scalar::<f64>()?, 4.5);
/// # Ok::<(), dsd_similarity::Error>(())
/// ```
pub fn fitnet(student: &Tensor, teacher: &Tensor, valid: Option<&Tensor>) -> Result<Tensor> {
    let pair = pair("fitnet", student, teacher, valid, Channels::Equal)?;
    let channels = pair.teacher.dim(1)? as f64;
    let difference = pair.counted.apply((pair.student - pair.teacher)?)?; // [N,C,h,w]
    let squared = difference.sqr()?.flatten_from(2)?.sum(2)?.sum_all()?; // row by row: f32 sums stay accurate
    Ok((squared / (pair.counted.positions * channels))?)
}

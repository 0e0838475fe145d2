//! Features of two networks on one grid.

use candle_core::Tensor;
use dsd_ops::{check, resize_bilinear};

use crate::Result;
use crate::mask::Counted;
use crate::mean_power::mean_power;
use crate::unit::guarded_sqrt;

/// The norm up to which the vector of a position counts as zero; its square is still a normal f32.
const ABSENT_NORM: f64 = 1e-12;

/// Whether the student's feature must have as many channels as the teacher's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Channels {
    Equal,
    Free,
}

/// Two features on the coarser of their grids; the teacher's has no graph.
pub(crate) struct Pair {
    /// `[N,C_s,h,w]`.
    pub(crate) student: Tensor,
    /// `[N,C_t,h,w]`.
    pub(crate) teacher: Tensor,
    pub(crate) counted: Counted,
}

/// Checks two features and brings the finer one to the grid of the one with fewer positions (bilinear, corners aligned).
pub(crate) fn pair(
    op: &'static str,
    student: &Tensor,
    teacher: &Tensor,
    valid: Option<&Tensor>,
    channels: Channels,
) -> Result<Pair> {
    let (n, c, height, width) = check::nchw(op, "student", student)?;
    check::dtype(op, "teacher", teacher, student.dtype())?;
    let (teacher_height, teacher_width) = match *teacher.dims() {
        [tn, tc, h, w] if tn == n && tc * h * w > 0 && (channels == Channels::Free || tc == c) => (h, w),
        _ => {
            let of_channels = if channels == Channels::Free { "C".to_string() } else { c.to_string() };
            return Err(check::shape(op, "teacher", format!("[{n},{of_channels},H,W] with no size 0"), teacher));
        }
    };
    let (own, other) = ([height, width], [teacher_height, teacher_width]);
    let size = if other[0] * other[1] < own[0] * own[1] { other } else { own };
    let resized = |x: &Tensor, from: [usize; 2]| -> Result<Tensor> {
        if from == size { Ok(x.clone()) } else { resize_bilinear(x, size, true) }
    };
    let counted = Counted::at(op, valid, student, size)?;
    Ok(Pair { student: resized(student, own)?, teacher: resized(&teacher.detach(), other)?, counted })
}

/// Divides the vector of each position, over the channels, by its L2 norm; a vector without a direction becomes 0 and
/// passes no gradient on. `[N,C,h,w]` to the same.
pub(crate) fn unit_channels(features: &Tensor) -> Result<Tensor> {
    let squared = (mean_power(features, 2.0)? * features.dim(1)? as f64)?; // [N,1,h,w]
    let (root, kept) = guarded_sqrt(&squared, ABSENT_NORM)?;
    let divisor = (root + kept.affine(-1.0, 1.0)?)?;
    Ok(features.broadcast_mul(&(kept / divisor)?)?)
}

//! Similarity distributions compared tile by tile: the matrix of all similarities is never held at once.
//!
//! p_a = softmax_b(a^T · b^T / τ), q_a = softmax_b(a^S · b^S / τ);   Σ_a Σ_b p_ab · (ln p_ab − ln q_ab)
//! ∂/∂(a^S · b^S) = (q_ab − p_ab) / τ
//!
//! The gradient is found together with the value, since both need the tile, and kept instead of the matrices.

use candle_core::{DType, Tensor};
use dsd_ops::log_softmax_channels;

use crate::Result;

/// Similarities of a tile: some megabytes.
const TILE: usize = 1 << 20;

/// Anchors (rows) and what they are compared with (columns), by network; `[A,D]` and `[B,D]`, without a graph.
pub(crate) struct Relation<'a> {
    pub(crate) student_anchors: &'a Tensor,
    pub(crate) student_others: &'a Tensor,
    pub(crate) teacher_anchors: &'a Tensor,
    pub(crate) teacher_others: &'a Tensor,
    pub(crate) temperature: f64,
}

/// What [`Relation::divergence`] finds, summed over the anchors.
pub(crate) struct Divergence {
    /// In nats.
    pub(crate) value: f64,
    /// With respect to the student's anchors, `[A,D]`, if asked for.
    pub(crate) of_anchors: Option<Tensor>,
    /// With respect to the student's others, `[B,D]`, if asked for.
    pub(crate) of_others: Option<Tensor>,
}

/// Which gradients are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    Nothing,
    Anchors,
    Both,
}

impl Relation<'_> {
    pub(crate) fn divergence(&self, wanted: Wanted) -> Result<Divergence> {
        let (anchors, others) = (self.student_anchors.dim(0)?, self.student_others.dim(0)?);
        let rows = (TILE / others.max(1)).clamp(1, anchors.max(1));
        let transposed = |x: &Tensor| -> Result<Tensor> { Ok(x.t()?.contiguous()?) };
        let (student_columns, teacher_columns) = (transposed(self.student_others)?, transposed(self.teacher_others)?);
        let mut value = 0.0;
        let mut of_anchors = Vec::new();
        let mut of_others: Option<Tensor> = None;
        for from in (0..anchors).step_by(rows) {
            let count = rows.min(anchors - from);
            let student = self.student_anchors.narrow(0, from, count)?;
            let teacher = self.teacher_anchors.narrow(0, from, count)?;
            let log_p = log_softmax_channels(&(teacher.matmul(&teacher_columns)? / self.temperature)?)?; // [rows,B]
            let log_q = log_softmax_channels(&(student.matmul(&student_columns)? / self.temperature)?)?;
            let p = log_p.exp()?;
            let divergence = (&p * (log_p - &log_q)?)?.sum(1)?; // [rows]
            value += divergence.to_dtype(DType::F64)?.sum_all()?.to_scalar::<f64>()?;
            if wanted == Wanted::Nothing {
                continue;
            }
            let slope = ((log_q.exp()? - p)? / self.temperature)?; // [rows,B]
            of_anchors.push(slope.matmul(self.student_others)?);
            if wanted == Wanted::Both {
                let of_tile = transposed(&slope)?.matmul(&student)?;
                of_others = Some(match of_others {
                    Some(sum) => (sum + of_tile)?,
                    None => of_tile,
                });
            }
        }
        let of_anchors = if of_anchors.is_empty() { None } else { Some(Tensor::cat(&of_anchors, 0)?) };
        Ok(Divergence { value, of_anchors, of_others })
    }
}

/// A scalar of this value whose gradient with respect to each input is the one given beside it.
pub(crate) fn with_gradients(value: f64, like: &Tensor, parts: &[(&Tensor, Tensor)]) -> Result<Tensor> {
    let mut linear = Tensor::zeros((), like.dtype(), like.device())?;
    for (input, gradient) in parts {
        linear = (linear + (*input * gradient)?.sum_all()?)?;
    }
    Ok(((&linear - linear.detach())? + value)?)
}

//! The holistic term: a critic that cannot tell the student's predictions from the teacher's. Loss functions of scores.
//!
//! hinge:        critic  mean max(0, 1 − D(t)) + mean max(0, 1 + D(s));   student  −mean D(s)
//! Wasserstein:  critic  −mean D(t) + mean D(s);                          student  −mean D(s)
//!
//! Source: Liu et al., "Structured Knowledge Distillation for Semantic Segmentation", CVPR 2019, section 3.2, and the
//! authors' code. Their gradient penalty ("wgan-gp") is left out: it needs the gradient of a gradient, which candle does
//! not have. The critic network is `dsd_models::Discriminator`. Details: docs/losses/adversarial.md.

use candle_core::{DType, Tensor};
use dsd_ops::{check, relu};
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::mask::Counted;

/// Which pair of losses; the student's is the same in both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdversarialForm {
    /// Bounded pull: pairs that are told apart by a margin of 1 teach the critic nothing more.
    Hinge,
    /// Unbounded: the critic must be kept smooth by its own means (spectral normalisation).
    Wasserstein,
}

/// What the critic sees: logits with ignored positions set to 0, the same for teacher and student.
///
/// # Shapes
/// logits: `[N,K,H,W]` float. valid: `[N,H',W']` u8, 1 = counted, 0 = ignored; `None` counts all.
/// # Returns
/// `[N,K,H,W]`.
/// # Gradient
/// Reaches `logits` at counted positions; detach the teacher's, and the student's for the critic's own step.
/// # Errors
/// Shape, DType or Param, naming the argument.
pub fn critic_input(logits: &Tensor, valid: Option<&Tensor>) -> Result<Tensor> {
    const OP: &str = "critic_input";
    let (_, _, h, w) = check::nchw(OP, "logits", logits)?;
    Counted::at(OP, valid, logits, [h, w])?.apply(logits.clone())
}

/// The student's side: −mean of the critic's scores of the student.
///
/// # Shapes
/// student: scores of any shape, float, not empty.
/// # Returns
/// `[]` float, any sign, in units of the score.
/// # Gradient
/// Reaches `student`, through the critic, whose parameters must not be stepped with it.
/// # Errors
/// Shape or DType.
/// # Source
/// As at the top of the file; the authors' weight is 0.1, CIRKD's 0.001.
pub fn adversarial_student(student: &Tensor) -> Result<Tensor> {
    check_scores("adversarial_student", "student", student)?;
    Ok(student.mean_all()?.neg()?)
}

/// The critic's side: scores of the teacher up, scores of the student down.
///
/// # Shapes
/// teacher, student: scores of one shape, float, not empty; made from detached logits.
/// # Returns
/// `[]` float, in units of the score; ≥ 0 with [`AdversarialForm::Hinge`].
/// # Gradient
/// Reaches both, that is, the critic's parameters.
/// # Errors
/// Shape or DType.
/// # Source
/// As at the top of the file.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use dsd_similarity::{AdversarialForm, adversarial_critic};
/// let (teacher, student) = (Tensor::new(&[0.5f64, 3.0], &Device::Cpu)?, Tensor::new(&[-2f64, 0.0], &Device::Cpu)?);
/// let hinge = adversarial_critic(&teacher, &student, AdversarialForm::Hinge)?.to_scalar::<f64>()?;
/// assert_eq!(hinge, (0.5 + 0.0) / 2.0 + (0.0 + 1.0) / 2.0);
/// # Ok::<(), dsd_similarity::Error>(())
/// ```
pub fn adversarial_critic(teacher: &Tensor, student: &Tensor, form: AdversarialForm) -> Result<Tensor> {
    const OP: &str = "adversarial_critic";
    check_scores(OP, "teacher", teacher)?;
    check::dtype(OP, "student", student, teacher.dtype())?;
    check::same_shape(OP, "student", student, teacher.dims())?;
    Ok(match form {
        AdversarialForm::Hinge => {
            (relu(&teacher.affine(-1.0, 1.0)?)?.mean_all()? + relu(&student.affine(1.0, 1.0)?)?.mean_all()?)?
        }
        AdversarialForm::Wasserstein => (student.mean_all()? - teacher.mean_all()?)?,
    })
}

fn check_scores(op: &'static str, argument: &'static str, scores: &Tensor) -> Result<()> {
    match scores.dtype() {
        DType::F32 | DType::F64 if scores.elem_count() > 0 => Ok(()),
        DType::F32 | DType::F64 => Err(check::shape(op, argument, "at least one score", scores)),
        _ => check::float(op, argument, scores),
    }
}

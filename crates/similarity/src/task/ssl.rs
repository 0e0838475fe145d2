//! SSL, the structural similarity loss: cross-entropy weighted by how much the local pattern of a class's probabilities
//! differs from the pattern of its labels, on the elements where it differs most.
//!
//! e = | (y − μ_y + C₄) / (σ_y + C₄) − (p − μ_p + C₄) / (σ_p + C₄) |,  μ, σ of a Gaussian window around each element
//! f = 1 where e is above the mining threshold, else 0;   M = Σ f
//! L = λ · mean b + (1 − λ) · (1/M) Σ e · f · b,   b = −y ln p − (1 − y) ln(1 − p)
//!
//! An element is one class at one counted pixel of one image. Source: Zhao, Wu, Wang, "Correlation Maximized Structural
//! Similarity Loss for Semantic Segmentation", 2019, arXiv 1910.08711. The text leaves several choices open and there is
//! no code of the authors: each is a switch here. [`ssl_distillation`] puts a teacher's probabilities in the place of
//! the labels. Which reading is supported by what, and the gradient: docs/losses/ssl.md.

mod local;
mod objective;
mod probability;
mod settings;

use candle_core::{DType, Device, Tensor, WithDType};
use dsd_ops::log_softmax_channels;

use self::objective::{Forward, Problem};
use self::probability::Source;
pub use self::settings::{Deviation, EntropyMean, Mining, Padding, Probability, Ssl};
use super::labels::Labels;
use super::node::{Slope, by_element, node, with_values};
use crate::Result;
use crate::csd::same_grid;
use crate::mask::Counted;

/// Structural similarity loss.
///
/// # Shapes
/// logits: `[N,C,H,W]` float. labels: `[N,H,W]` u8, class ids below C or `ignore_label`.
/// # Returns
/// `[]` float, in nats, ≥ 0. No pixel that counts: 0, with zero gradient. No element above the threshold: the second
/// part is 0.
/// # Gradient
/// Reaches `logits`. The selection f and M carry none; e does where `differentiate_error` says so.
/// # Numerics
/// Finite for |logit| ≤ 1e4 in f32; windows and sums in f64. Ignored pixels have y = p = 0 in the windows of others.
/// # Errors
/// Shape, DType or Param, naming the argument.
/// # Source
/// As at the top of the file.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use dsd_similarity::{Ssl, ssl};
/// // Where labels and probabilities are flat, e = 0: half the cross-entropy of two classes with even odds is left.
/// let logits = Tensor::zeros((1, 2, 4, 4), DType::F64, &Device::Cpu)?;
/// let labels = Tensor::zeros((1, 4, 4), DType::U8, &Device::Cpu)?;
/// let loss = ssl(&logits, &labels, 255, Ssl::paper_reading())?.to_scalar::<f64>()?;
/// assert!((loss - 0.5 * 2.0 * 2f64.ln()).abs() < 1e-12);
/// # Ok::<(), dsd_similarity::Error>(())
/// ```
pub fn ssl(logits: &Tensor, labels: &Tensor, ignore_label: u8, cfg: Ssl) -> Result<Tensor> {
    const OP: &str = "ssl";
    let labels = Labels::read(OP, logits, labels, ignore_label)?;
    cfg.check(OP)?;
    let counted = labels.ids.iter().map(|&id| id != ignore_label).collect();
    let problem = Problem::new(logits, counted, cfg)?;
    by_element!(logits, typed(OP, logits, Target::Labels(labels), problem))
}

/// Structural similarity to a teacher: [`ssl`] with y = the teacher's probabilities, and b = the divergence
/// y ln (y/p) + (1 − y) ln ((1 − y)/(1 − p)), which is the same b for labels and 0 where the student equals the teacher.
///
/// # Shapes
/// student: `[N,C,H,W]` float, raw logits. teacher: `[N,C,H',W']` of the same type; where the sizes differ, the
/// student's logits are resized to the teacher's (bilinear, corners aligned). valid: `[N,H'',W'']` u8, 1 = counted,
/// 0 = ignored; `None` counts all.
/// # Returns
/// `[]` float, in nats, ≥ 0; 0 where the student equals the teacher. No counted pixel: 0, with zero gradient.
/// # Gradient
/// Reaches `student` only.
/// # Numerics
/// As [`ssl`].
/// # Errors
/// Shape, DType or Param, naming the argument.
/// # Source
/// A term of this crate, made from [`ssl`]; not published.
pub fn ssl_distillation(student: &Tensor, teacher: &Tensor, valid: Option<&Tensor>, cfg: Ssl) -> Result<Tensor> {
    const OP: &str = "ssl_distillation";
    cfg.check(OP)?;
    let (student, teacher) = same_grid(OP, student, teacher)?;
    let (n, _, h, w) = teacher.dims4()?;
    let counted = match Counted::at(OP, valid, &teacher, [h, w])?.mask {
        Some(mask) => {
            let mask = mask.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
            mask.into_iter().map(|counted| counted > 0.0).collect()
        }
        None => vec![true; n * h * w],
    };
    let problem = Problem::new(&student, counted, cfg)?;
    by_element!(&student, typed(OP, &student, Target::Teacher(field(&teacher, cfg)?), problem))
}

/// The structure error e of every element, for looking at.
///
/// # Shapes
/// As [`ssl`].
/// # Returns
/// `[N,C,H,W]` of the type of the logits, dimensionless, 0 to [`Ssl::greatest_error`]; 0 at ignored pixels and, with
/// [`Padding::Valid`], at the border.
/// # Gradient
/// None.
/// # Errors
/// As [`ssl`].
pub fn structure_error(logits: &Tensor, labels: &Tensor, ignore_label: u8, cfg: Ssl) -> Result<Tensor> {
    const OP: &str = "structure_error";
    let labels = Labels::read(OP, logits, labels, ignore_label)?;
    cfg.check(OP)?;
    let counted = labels.ids.iter().map(|&id| id != ignore_label).collect();
    let problem = Problem::new(logits, counted, cfg)?;
    by_element!(logits, errors(logits, labels, problem))
}

fn errors<T: WithDType>(logits: &Tensor, labels: Labels, problem: Problem) -> Result<Tensor> {
    let fields = field(&logits.detach(), problem.cfg)?;
    let forward = with_sources(&fields, &Target::Labels(labels), &problem, |student, target| {
        problem.forward::<T>(student, target)
    })?;
    Ok(Tensor::from_vec(forward.differences, logits.shape(), &Device::Cpu)?.abs()?)
}

/// What the probabilities are compared with.
enum Target {
    Labels(Labels),
    /// The teacher's [`field`].
    Teacher(Tensor),
}

/// What probabilities are made of: the logits, or their log-softmax.
fn field(logits: &Tensor, cfg: Ssl) -> Result<Tensor> {
    match cfg.probability {
        Probability::Sigmoid => Ok(logits.contiguous()?),
        Probability::Softmax => log_softmax_channels(logits),
    }
}

fn with_sources<T: WithDType, R>(
    student: &Tensor,
    target: &Target,
    problem: &Problem,
    f: impl FnOnce(&Source<'_, T>, &Source<'_, T>) -> R,
) -> Result<R> {
    let result = with_values(student, |student: &[T]| match target {
        Target::Labels(labels) => Ok(f(&problem.source(student), &Source::Labels(&labels.ids))),
        Target::Teacher(teacher) => {
            with_values(teacher, |teacher: &[T]| f(&problem.source(student), &problem.source(teacher)))
        }
    })?;
    Ok(result?)
}

fn typed<T: WithDType>(op: &'static str, logits: &Tensor, target: Target, problem: Problem) -> Result<Tensor> {
    let fields = field(&logits.detach(), problem.cfg)?;
    let forward = with_sources(&fields, &target, &problem, |student, target| problem.forward::<T>(student, target))?;
    node(op, logits, forward.value, SslSlope { target, problem, forward })
}

struct SslSlope<T> {
    target: Target,
    problem: Problem,
    forward: Forward<T>,
}

impl<T: WithDType> Slope<T> for SslSlope<T> {
    fn gradient(&self, logits: &Tensor, upstream: f64) -> Result<Vec<T>> {
        let fields = field(logits, self.problem.cfg)?;
        with_sources(&fields, &self.target, &self.problem, |student, target| {
            self.problem.backward(student, target, &self.forward, upstream)
        })
    }
}

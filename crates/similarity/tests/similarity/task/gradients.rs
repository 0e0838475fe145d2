//! The gradient table of the task losses: central differences in f64.

use candle_core::Tensor;
use dsd_ops::gradcheck::check_gradients;
use dsd_similarity::{Result, ssl_distillation};

use super::super::{mask, normal};
use super::{Named, all_losses, all_ssl, labels};

fn check(name: &str, logits: &Tensor, f: impl Fn(&Tensor) -> Result<Tensor>) {
    check_gradients(name, std::slice::from_ref(logits), |x| Ok(f(&x[0])?)).unwrap();
}

/// The same values behind other strides: stored as [N,C,W,H].
fn strided(tensor: &Tensor) -> Result<Tensor> {
    Ok(tensor.transpose(2, 3)?.contiguous()?.transpose(2, 3)?)
}

/// The losses whose gradient is the derivative: one that weighs by an error without a gradient is not (its gradient is
/// compared with PyTorch).
fn with_whole_gradient(classes: usize) -> impl Iterator<Item = Named> {
    all_losses(classes).into_iter().filter(|(name, _)| !name.contains("differentiate_error: false"))
}

#[test]
fn every_loss_with_every_switch() {
    let (logits, ids) = (normal("task gradients", &[2, 4, 5, 7], 2.0), labels("gradients", &[2, 5, 7], 3, 0.2));
    for (name, loss) in with_whole_gradient(4) {
        check(&name, &logits, |z| loss(z, &ids));
    }
}

#[test]
fn one_image_one_class_two_classes_strided_and_used_twice() {
    for (shape, classes) in [([1, 3, 4, 5], 3), ([2, 1, 3, 4], 1), ([1, 2, 1, 3], 2), ([2, 2, 3, 3], 2)] {
        let logits = normal("task shapes", &shape, 1.5);
        let ids = labels("shapes", &[shape[0], shape[2], shape[3]], classes, 0.1);
        for (name, loss) in with_whole_gradient(shape[1]) {
            check(&format!("{name} {shape:?}"), &logits, |z| loss(z, &ids));
            check(&format!("{name} {shape:?} strided"), &logits, |z| loss(&strided(z)?, &ids));
            check(&format!("{name} {shape:?} twice"), &logits, |z| Ok((loss(z, &ids)? + z.sqr()?.sum_all()?)?));
        }
    }
}

#[test]
fn nothing_counted() {
    let (logits, ids) = (normal("task nothing", &[2, 3, 3, 4], 2.0), labels("nothing", &[2, 3, 4], 3, 1.0));
    for (name, loss) in with_whole_gradient(3) {
        check(&format!("{name}, nothing"), &logits, |z| loss(z, &ids));
    }
}

#[test]
fn structural_similarity_to_a_teacher() {
    let (student, teacher) = (normal("task student", &[2, 3, 5, 4], 1.5), normal("task teacher", &[2, 3, 5, 4], 3.0));
    let (coarse, valid) = (normal("task coarse", &[2, 3, 3, 3], 3.0), mask("task", &[2, 10, 8], 0.7));
    for cfg in all_ssl().into_iter().filter(|cfg| cfg.differentiate_error) {
        check(&format!("distillation {cfg:?}"), &student, |z| ssl_distillation(z, &teacher, None, cfg));
        check(&format!("distillation {cfg:?}, masked"), &student, |z| ssl_distillation(z, &teacher, Some(&valid), cfg));
        check(&format!("distillation {cfg:?}, coarse"), &student, |z| ssl_distillation(z, &coarse, None, cfg));
    }
}

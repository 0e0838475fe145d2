//! The gradient table of the distillation losses: central differences in f64.

use candle_core::{DType, Device, Tensor};
use dsd_similarity::{AdversarialForm, adversarial_critic, adversarial_student, critic_input};

use super::{CLASSES, Inputs, labels, losses, teacher_layers};
use crate::gradients::{check, strided};
use crate::{layers, mask, normal};

#[test]
fn every_loss_in_every_geometry() {
    let mut rows = 0;
    for loss in losses() {
        for (what, images, channels, own, other) in [
            ("one grid", 2, 4, [6, 5], [6, 5]),
            ("finer student", 2, 3, [7, 9], [4, 5]),
            ("coarser student", 1, 3, [4, 3], [7, 6]),
            ("one channel", 2, 1, [3, 4], [3, 4]),
            ("one position", 2, 4, [1, 1], [1, 1]),
        ] {
            let name = format!("{}, {what}", loss.name);
            let student = layers(&name, &[[images, channels, own[0], own[1]], [images, 2, own[0], own[1]]]);
            let teacher = teacher_layers(&loss, &format!("{name} teacher"), channels, other, images);
            let labels = labels(&name, &[images, 14, 18], CLASSES + 1); // one label that is no class
            for valid in [None, Some(mask(&name, &[images, 12, 10], 0.7))] {
                let name = format!("{name}, masked {}", valid.is_some());
                check(&name, &student, |x| {
                    let valid = valid.as_ref();
                    (loss.run)(Inputs { student: x, teacher: &teacher, labels: &labels, valid })
                });
                rows += 1;
            }
        }
    }
    assert_eq!(rows, 10 * losses().len());
}

#[test]
fn strided_inputs_inputs_used_twice_and_nothing_to_learn() {
    for loss in losses() {
        let student = layers(loss.name, &[[2, 4, 5, 6], [2, 2, 5, 6]]);
        let teacher = teacher_layers(&loss, "strided teacher", 4, [5, 6], 2);
        let labels = labels(loss.name, &[2, 5, 6], CLASSES);
        let nothing = Tensor::zeros((2, 5, 6), DType::U8, &Device::Cpu).unwrap();
        let run = |student: &[Tensor], valid: Option<&Tensor>| {
            (loss.run)(Inputs { student, teacher: &teacher, labels: &labels, valid })
        };
        check(&format!("{} strided and used twice", loss.name), &student, |x| {
            let views = x.iter().map(strided).collect::<dsd_similarity::Result<Vec<_>>>()?;
            Ok((run(&views, None)? + x[0].sqr()?.sum_all()?)?)
        });
        check(&format!("{} all ignored", loss.name), &student, |x| run(x, Some(&nothing)));
    }
}

#[test]
fn adversarial_losses() {
    let scores = [normal("teacher scores", &[2, 1, 3, 2], 2.0), normal("student scores", &[2, 1, 3, 2], 2.0)];
    for form in [AdversarialForm::Hinge, AdversarialForm::Wasserstein] {
        check(&format!("adversarial_critic {form:?}"), &scores, |x| adversarial_critic(&x[0], &x[1], form));
    }
    check("adversarial_student", &scores[..1], |x| adversarial_student(&x[0]));
    let valid = mask("critic", &[2, 6, 4], 0.5);
    check("critic_input", &scores[..1], |x| critic_input(&x[0], Some(&valid)));
}

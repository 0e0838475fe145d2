//! Distillation losses at the edge of f32, and f32 against f64.

use candle_core::{DType, Device, Tensor};
use dsd_similarity::{AdversarialForm, adversarial_critic, adversarial_student};

use super::{CLASSES, Inputs, labels, losses, teacher_layers, to};
use crate::extremes::{assert_finite, saturated, scaled, single};
use crate::{layers, mask, normal, scalar};

#[test]
fn losses_and_gradients_are_finite_at_the_edges_of_f32() {
    let mut rows = 0;
    for (channels, height, width) in [(4, 6, 5), (1, 6, 5), (4, 1, 1), (1, 1, 1)] {
        let shapes = [[2, channels, height, width], [2, 3, height, width]];
        let base = layers("extreme", &shapes);
        let zeros: Vec<Tensor> = base.iter().map(|tensor| tensor.zeros_like().unwrap()).collect();
        let mostly_zero: Vec<Tensor> =
            base.iter().map(|t| (t.gt(2.0).unwrap().to_dtype(DType::F64).unwrap() * 1e4).unwrap()).collect();
        let inputs = [
            ("plain", base.clone()),
            ("large", scaled(&base, 1e4)),
            ("±1e4", saturated(&base, 1e4)),
            ("1e4 everywhere", zeros.iter().map(|t| (t + 1e4).unwrap()).collect()),
            ("small", scaled(&base, 1e-8)),
            ("below the range of squares", scaled(&base, 1e-25)),
            ("zero", zeros),
            ("mostly zero", mostly_zero),
        ];
        let labels = labels("extreme", &[2, 6, 5], CLASSES);
        let some = mask("extreme", &[2, 6, 5], 0.5);
        let nothing = some.zeros_like().unwrap();
        for loss in losses() {
            let teacher = single(&teacher_layers(&loss, "extreme teacher", channels, [height, width], 2));
            for (what, student) in &inputs {
                let student = single(student);
                for valid in [None, Some(&some), Some(&nothing)] {
                    let run = |student: &[Tensor], teacher: &[Tensor]| {
                        (loss.run)(Inputs { student, teacher, labels: &labels, valid }).unwrap()
                    };
                    let name =
                        format!("{}, {what}, {channels}×{height}×{width}, masked {}", loss.name, valid.is_some());
                    assert_finite(&name, &student, |x| run(x, &teacher));
                    assert_finite(&format!("{name}, as teacher"), &teacher, |x| run(x, &student));
                    assert_finite(&format!("{name}, of itself"), &student, |x| run(x, &student));
                    rows += 3;
                }
            }
        }
    }
    assert_eq!(rows, 4 * 8 * 3 * 3 * losses().len());
}

#[test]
fn f32_agrees_with_f64() {
    for index in 0..20 {
        for loss in losses() {
            let name = format!("precision {index}");
            let mut student = layers(&name, &[[2, 8, 9, 11], [2, 6, 9, 11]]);
            let teacher = teacher_layers(&loss, &format!("{name} teacher"), 8, [9, 11], 2);
            student[0] = (&student[0] * 3.0).unwrap();
            let (labels, valid) = (labels(&name, &[2, 36, 44], CLASSES), mask(&name, &[2, 36, 44], 0.8));
            let value = |dtype| {
                let (student, teacher) = (to(&student, dtype), to(&teacher, dtype));
                let inputs = Inputs { student: &student, teacher: &teacher, labels: &labels, valid: Some(&valid) };
                let loss = (loss.run)(inputs).unwrap();
                assert_eq!(loss.dtype(), dtype);
                scalar(&loss)
            };
            let (double, single) = (value(DType::F64), value(DType::F32));
            let tolerance = 1e-5 * double.abs() + 1e-9;
            assert!((single - double).abs() <= tolerance, "{}, {name}: {single} in f32, {double} in f64", loss.name);
        }
    }
}

#[test]
fn adversarial_losses_of_large_scores() {
    for scale in [0.0, 1e-30, 1e4, 1e30] {
        let scores = scaled(&layers("scores", &[[2, 1, 1, 3], [2, 1, 1, 3]]), scale);
        let scores = single(&scores);
        for form in [AdversarialForm::Hinge, AdversarialForm::Wasserstein] {
            let value = adversarial_critic(&scores[0], &scores[1], form).unwrap();
            assert!(scalar(&value).is_finite());
        }
        assert!(scalar(&adversarial_student(&scores[0]).unwrap()).is_finite());
    }
    let (teacher, student) = (normal("margin", &[4], 0.1), normal("margin student", &[4], 0.1));
    let apart = adversarial_critic(&(teacher + 2.0).unwrap(), &(student - 2.0).unwrap(), AdversarialForm::Hinge);
    assert_eq!(scalar(&apart.unwrap()), 0.0, "pairs beyond the margin teach the critic nothing");
    let one = Tensor::new(1f64, &Device::Cpu).unwrap();
    assert_eq!(scalar(&adversarial_student(&one).unwrap()), -1.0);
}

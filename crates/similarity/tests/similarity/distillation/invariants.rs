//! What must not change a distillation loss, and who receives a gradient.

use candle_core::{DType, Device, Tensor, Var};
use dsd_similarity::{CrossImageKd, PairwiseKd, PixelKd, PoolWindow, class_weighted_pixel_kd, pairwise_kd, pixel_kd};

use super::{CLASSES, Inputs, Invariance, labels, losses, teacher_layers, to};
use crate::{assert_close, flat, layers, mask, normal, scalar, tensors, variables};

const ROUNDING: f64 = 1e-11;
const STUDENT: [[usize; 4]; 2] = [[2, 4, 6, 5], [2, 3, 6, 5]];
const SIZE: [usize; 2] = [6, 5];

#[test]
fn equal_networks_have_loss_zero_and_no_gradient() {
    for dtype in [DType::F64, DType::F32] {
        let same = to(&layers("same", &STUDENT), dtype);
        let labels = labels("same", &[2, 6, 5], CLASSES);
        let student = variables(&same);
        for loss in losses() {
            let inputs = tensors(&student);
            let value = (loss.run)(Inputs { student: &inputs, teacher: &same, labels: &labels, valid: None }).unwrap();
            assert_eq!(scalar(&value), 0.0, "{} in {dtype:?}", loss.name);
            let gradients = value.backward().unwrap();
            for gradient in student.iter().filter_map(|variable| gradients.get(variable)) {
                let worst = flat(gradient).into_iter().fold(0f64, |worst, slope| worst.max(slope.abs()));
                assert!(worst < 1e-6, "{} in {dtype:?}: {worst}", loss.name);
            }
        }
    }
}

#[test]
fn the_teacher_receives_no_gradient_and_the_student_does() {
    let labels = labels("reached", &[2, 6, 5], CLASSES);
    for loss in losses() {
        let student = variables(&layers("student", &STUDENT));
        let teacher = variables(&teacher_layers(&loss, "teacher", 4, SIZE, 2));
        let (s, t) = (tensors(&student), tensors(&teacher));
        let value = (loss.run)(Inputs { student: &s, teacher: &t, labels: &labels, valid: None }).unwrap();
        let gradients = value.backward().unwrap();
        let reached = |variables: &[Var]| variables.iter().filter(|v| gradients.get(v).is_some()).count();
        assert_eq!(reached(&teacher), 0, "{}", loss.name);
        let slope =
            flat(gradients.get(&student[0]).unwrap()).into_iter().fold(0f64, |most, slope| most.max(slope.abs()));
        assert!(slope > 1e-6 && scalar(&value) > 1e-6, "{}: gradient {slope}, value {}", loss.name, scalar(&value));
    }
}

#[test]
fn what_a_loss_does_not_look_at_does_not_change_it() {
    let student = layers("student", &STUDENT);
    let labels = labels("invariance", &[2, 6, 5], CLASSES);
    for loss in losses() {
        let teacher = teacher_layers(&loss, "teacher", 4, SIZE, 2);
        let value = |student: &[Tensor]| {
            scalar(&(loss.run)(Inputs { student, teacher: &teacher, labels: &labels, valid: None }).unwrap())
        };
        let changed = match loss.invariance {
            Invariance::Scale => vec![(&student[0] * 1e-3).unwrap(), (&student[0] * 7.0).unwrap()],
            Invariance::PerPosition => {
                vec![student[0].broadcast_add(&normal("per position", &[2, 1, 6, 5], 3.0)).unwrap()]
            }
            Invariance::PerChannel => {
                vec![student[0].broadcast_add(&normal("per channel", &[2, 4, 1, 1], 3.0)).unwrap()]
            }
            Invariance::Nothing => Vec::new(),
        };
        for first in changed {
            let with = [first, student[1].clone()];
            assert_close(loss.name, &[value(&with)], &[value(&student)], ROUNDING);
        }
    }
}

#[test]
fn ignored_pixels_change_nothing() {
    let valid = mask("ignored", &[2, 6, 5], 0.6);
    let ignored = valid.unsqueeze(1).unwrap().to_dtype(DType::F64).unwrap().affine(-1.0, 1.0).unwrap();
    let noise = |name: &str, layers: &[Tensor]| -> Vec<Tensor> {
        let noisy = |x: &Tensor| (x + normal(name, x.dims(), 9.0).broadcast_mul(&ignored).unwrap()).unwrap();
        layers.iter().map(noisy).collect()
    };
    let student = layers("student", &STUDENT);
    let plain = labels("ignored", &[2, 6, 5], CLASSES);
    // Any label at ignored pixels, as datasets have it: 255.
    let noisy = valid.where_cond(&plain, &(plain.zeros_like().unwrap() + 255.0).unwrap()).unwrap();
    for loss in losses() {
        let teacher = teacher_layers(&loss, "teacher", 4, SIZE, 2);
        let value = |student: &[Tensor], teacher: &[Tensor], labels: &Tensor| {
            scalar(&(loss.run)(Inputs { student, teacher, labels, valid: Some(&valid) }).unwrap())
        };
        let (noisy_student, noisy_teacher) = (noise("a", &student), noise("b", &teacher));
        let (got, expected) = (value(&noisy_student, &noisy_teacher, &noisy), value(&student, &teacher, &plain));
        assert_close(loss.name, &[got], &[expected], ROUNDING);
        assert!(expected > 1e-6, "{}", loss.name);
    }
}

#[test]
fn a_mask_that_counts_everything_is_no_mask_and_an_ignored_image_is_no_image() {
    let first = |layers: &[Tensor]| -> Vec<Tensor> { layers.iter().map(|l| l.narrow(0, 0, 1).unwrap()).collect() };
    let everything = Tensor::ones((2, 24, 20), DType::U8, &Device::Cpu).unwrap();
    let image = Tensor::ones((1, 24, 20), DType::U8, &Device::Cpu).unwrap();
    let first_image = Tensor::cat(&[&image, &image.zeros_like().unwrap()], 0).unwrap();
    let nothing = everything.zeros_like().unwrap();
    let student = layers("student", &STUDENT);
    let both = labels("images", &[2, 6, 5], CLASSES);
    let one = both.narrow(0, 0, 1).unwrap();
    for loss in losses() {
        let teacher = teacher_layers(&loss, "teacher", 4, SIZE, 2);
        let value = |student: &[Tensor], teacher: &[Tensor], labels: &Tensor, valid: Option<&Tensor>| {
            scalar(&(loss.run)(Inputs { student, teacher, labels, valid }).unwrap())
        };
        let all = value(&student, &teacher, &both, None);
        assert_close(loss.name, &[value(&student, &teacher, &both, Some(&everything))], &[all], ROUNDING);
        let alone = value(&first(&student), &first(&teacher), &one, None);
        assert_close(loss.name, &[value(&student, &teacher, &both, Some(&first_image))], &[alone], ROUNDING);
        assert!((all - alone).abs() > 1e-7, "{}: the images should differ", loss.name);
        assert_eq!(value(&student, &teacher, &both, Some(&nothing)), 0.0, "{}", loss.name);
    }
}

#[test]
fn pairwise_by_channels_is_pairwise_by_places() {
    // With more channels than places the matrix of places is built, with fewer it is not; zero channels change nothing.
    let (student, teacher) = (normal("few", &[2, 3, 4, 5], 1.0), normal("few teacher", &[2, 2, 4, 5], 1.0));
    let padded = |x: &Tensor| Tensor::cat(&[x, &Tensor::zeros((2, 40, 4, 5), DType::F64, &Device::Cpu).unwrap()], 1);
    let value = |s: &Tensor, t: &Tensor| scalar(&pairwise_kd(s, t, None, PairwiseKd::unpooled()).unwrap());
    let (channels, places) = (value(&student, &teacher), value(&padded(&student).unwrap(), &padded(&teacher).unwrap()));
    assert_close("both ways", &[channels], &[places], 1e-13);
    let whole = PairwiseKd { window: PoolWindow::Pixels([1, 1]), average: false };
    assert_eq!(scalar(&pairwise_kd(&student, &teacher, None, whole).unwrap()), channels);
}

#[test]
fn tiles_do_not_change_a_relation() {
    // 1100 places in each image: more similarities than one tile holds, and a last tile that is not full.
    let (student, teacher) = (normal("tiles", &[2, 3, 25, 44], 1.0), normal("tiles teacher", &[2, 5, 25, 44], 1.0));
    let cfg = CrossImageKd::published();
    let both = scalar(&dsd_similarity::cross_image_kd(&student, &teacher, None, cfg).unwrap());
    let unit = |x: &Tensor| {
        let norm = x.sqr().unwrap().sum_keepdim(1).unwrap().sqrt().unwrap();
        x.broadcast_div(&norm).unwrap().flatten_from(2).unwrap().transpose(1, 2).unwrap().contiguous().unwrap()
    };
    let (s, t) = (unit(&student), unit(&teacher));
    let mut sum = 0.0;
    for i in 0..2 {
        for j in 0..2 {
            let log_softmax = |x: &Tensor| {
                let similarity = x.get(i).unwrap().matmul(&x.get(j).unwrap().t().unwrap().contiguous().unwrap());
                let scaled = (similarity.unwrap() / cfg.temperature).unwrap();
                let total = scaled.exp().unwrap().sum_keepdim(1).unwrap().log().unwrap();
                scaled.broadcast_sub(&total).unwrap()
            };
            let (log_q, log_p) = (log_softmax(&s), log_softmax(&t));
            let kl = (log_p.exp().unwrap() * (log_p - log_q).unwrap()).unwrap();
            sum += scalar(&kl.sum_all().unwrap()) / (4.0 * 1100.0);
        }
    }
    assert_close("tiles", &[both], &[sum], 1e-12);
}

#[test]
fn equal_class_weights_are_none_and_a_weight_of_zero_silences_a_class() {
    let (student, teacher) = (normal("weights", &[2, 3, 4, 5], 2.0), normal("weights teacher", &[2, 3, 4, 5], 2.0));
    let cfg = PixelKd { temperature: 3.0 };
    let plain = scalar(&pixel_kd(&student, &teacher, None, cfg).unwrap());
    let value = |teacher: &Tensor, weights: &[f64]| {
        scalar(&class_weighted_pixel_kd(&student, teacher, None, weights, cfg).unwrap())
    };
    assert_close("equal", &[value(&teacher, &[5.0; 3])], &[plain], ROUNDING);
    assert_eq!(value(&teacher, &[0.0; 3]), 0.0);
    // A teacher that is sure: pixels of class 0 count nothing, the others once.
    let sure = (teacher.ge(0.8).unwrap().to_dtype(DType::F64).unwrap() * 0.0).unwrap();
    let hot = Tensor::new(&[[[[900f64, 0., 0., 900.]], [[0f64, 900., 0., 0.]], [[0f64, 0., 900., 0.]]]], &Device::Cpu);
    let hot = hot.unwrap();
    let small = sure.narrow(0, 0, 1).unwrap().narrow(2, 0, 1).unwrap().narrow(3, 0, 4).unwrap();
    let uniform = PixelKd { temperature: 1.0 };
    let both = class_weighted_pixel_kd(&small, &hot, None, &[0.0, 1.0, 1.0], uniform).unwrap();
    assert_close("silenced", &[scalar(&both)], &[3f64.ln()], ROUNDING);
}

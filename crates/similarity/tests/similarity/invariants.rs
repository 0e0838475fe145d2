//! What must not change the losses, and who receives a gradient.

use candle_core::{Device, Tensor, Var};
use dsd_similarity::{
    Csd, Dsd, LayerPairs, NetworkOutput, PixelKd, Psd, PsdReduction, SoftmaxAxis, csd, dsd, pixel_kd, psd,
};

use super::{assert_close, flat, layers, mask, normal, scalar, tensors, variables};

const ROUNDING: f64 = 1e-12;
const SHAPES: [[usize; 4]; 3] = [[2, 3, 6, 5], [2, 4, 6, 5], [2, 3, 6, 5]];

fn all_psd() -> [Psd; 5] {
    let base = Psd { pairs: LayerPairs::All, ..Psd::paper_reading() };
    [
        base,
        Psd { normalise_residual: false, ..base },
        Psd { reduction: PsdReduction::ResolutionNormalised, ..base },
        Psd { reduction: PsdReduction::SquaredSum, ..base },
        Psd { reduction: PsdReduction::Norm, ..base },
    ]
}

fn all_csd() -> Vec<Csd> {
    let mut all = Vec::new();
    for softmax_axis in [SoftmaxAxis::Classes, SoftmaxAxis::Positions] {
        for normalise_maps in [true, false] {
            for average_pool in [true, false] {
                all.push(Csd { softmax_axis, normalise_maps, average_pool, temperature: 4.0 });
            }
        }
    }
    all
}

#[test]
fn equal_networks_have_loss_zero_and_no_gradient() {
    let same = layers("same", &SHAPES);
    for dtype in [candle_core::DType::F64, candle_core::DType::F32] {
        let same: Vec<Tensor> = same.iter().map(|layer| layer.to_dtype(dtype).unwrap()).collect();
        let student = variables(&same);
        let inputs = tensors(&student);
        let check = |name: String, loss: Tensor| {
            assert_eq!(scalar(&loss), 0.0, "{name}");
            let gradients = loss.backward().unwrap();
            for gradient in student.iter().filter_map(|variable| gradients.get(variable)) {
                assert!(flat(gradient).iter().all(|&slope| slope.abs() < 1e-6), "{name}: {:?}", flat(gradient));
            }
        };
        for cfg in all_psd() {
            check(format!("{cfg:?}"), psd(&inputs, &same, None, cfg).unwrap());
        }
        for cfg in all_csd() {
            check(format!("{cfg:?}"), csd(&inputs[2], &same[2], None, cfg).unwrap());
        }
        check("pixel_kd".to_string(), pixel_kd(&inputs[2], &same[2], None, PixelKd { temperature: 2.0 }).unwrap());
    }
}

#[test]
fn psd_does_not_depend_on_the_scale_of_a_layer() {
    let (student, teacher) = (layers("student", &SHAPES), layers("teacher", &SHAPES));
    for cfg in all_psd() {
        let base = scalar(&psd(&student, &teacher, None, cfg).unwrap());
        for (layer, scale) in [(0, 1e-6), (1, -3.0), (2, 1e6)] {
            let (mut student, mut teacher) = (student.clone(), teacher.clone());
            student[layer] = (&student[layer] * scale).unwrap();
            teacher[layer] = (&teacher[layer] * (2.0 * scale)).unwrap();
            let scaled = scalar(&psd(&student, &teacher, None, cfg).unwrap());
            assert_close(&format!("{cfg:?}, layer {layer} × {scale}"), &[scaled], &[base], ROUNDING);
        }
    }
}

#[test]
fn csd_does_not_depend_on_what_its_softmax_ignores() {
    let (student, teacher) = (normal("student", &[2, 4, 5, 6], 2.0), normal("teacher", &[2, 4, 5, 6], 4.0));
    let per_pixel = normal("per pixel", &[2, 1, 5, 6], 3.0);
    let per_class = normal("per class", &[2, 4, 1, 1], 3.0);
    for cfg in all_csd() {
        let constant = match cfg.softmax_axis {
            SoftmaxAxis::Classes => &per_pixel,
            SoftmaxAxis::Positions => &per_class,
        };
        let base = scalar(&csd(&student, &teacher, None, cfg).unwrap());
        let shifted = scalar(&csd(&student.broadcast_add(constant).unwrap(), &teacher, None, cfg).unwrap());
        assert_close(&format!("{cfg:?}"), &[shifted], &[base], ROUNDING);
    }
    let cfg = PixelKd { temperature: 3.0 };
    let base = scalar(&pixel_kd(&student, &teacher, None, cfg).unwrap());
    let shifted = scalar(&pixel_kd(&student.broadcast_add(&per_pixel).unwrap(), &teacher, None, cfg).unwrap());
    assert_close("pixel_kd", &[shifted], &[base], ROUNDING);
}

#[test]
fn the_teacher_receives_no_gradient() {
    let (student, teacher) = (variables(&layers("student", &SHAPES)), variables(&layers("teacher", &SHAPES)));
    let (of_student, of_teacher) = (tensors(&student), tensors(&teacher));
    let side = |layers: &'_ [Tensor]| -> (Vec<Tensor>, Tensor) { (layers.to_vec(), layers[2].clone()) };
    let (student_layers, student_logits) = side(&of_student);
    let (teacher_layers, teacher_logits) = side(&of_teacher);
    let losses = [
        psd(&student_layers, &teacher_layers, None, Psd::paper_reading()).unwrap(),
        csd(&student_logits, &teacher_logits, None, Csd::paper_reading()).unwrap(),
        pixel_kd(&student_logits, &teacher_logits, None, PixelKd { temperature: 1.0 }).unwrap(),
        dsd(
            NetworkOutput { features: &student_layers, logits: &student_logits },
            NetworkOutput { features: &teacher_layers, logits: &teacher_logits },
            None,
            Dsd::cirkd_compat(),
        )
        .unwrap()
        .total,
    ];
    for (index, loss) in losses.iter().enumerate() {
        let gradients = loss.backward().unwrap();
        let reached = |variables: &[Var]| variables.iter().filter(|v| gradients.get(v).is_some()).count();
        assert_eq!(reached(&teacher), 0, "loss {index}");
        assert!(reached(&student) > 0, "loss {index}");
    }
}

#[test]
fn a_weight_of_zero_switches_a_part_off_and_the_total_is_the_weighted_sum() {
    let (student, teacher) = (layers("student", &SHAPES), layers("teacher", &SHAPES));
    let side = |features: &'static [Tensor], logits| NetworkOutput { features, logits };
    let none: &'static [Tensor] = &[];
    let full_student = NetworkOutput { features: &student, logits: &student[2] };
    let full_teacher = NetworkOutput { features: &teacher, logits: &teacher[2] };
    for preset in [Dsd::paper_reading(), Dsd::cirkd_compat()] {
        let both = dsd(full_student, full_teacher, None, preset).unwrap();
        let (psd_part, csd_part) = (scalar(both.psd.as_ref().unwrap()), scalar(both.csd.as_ref().unwrap()));
        assert_eq!(psd_part, scalar(&psd(&student, &teacher, None, preset.psd).unwrap()));
        assert_eq!(csd_part, scalar(&csd(&student[2], &teacher[2], None, preset.csd).unwrap()));
        assert_close("total", &[scalar(&both.total)], &[1000.0 * psd_part + 10.0 * csd_part], ROUNDING);

        let only_psd = dsd(full_student, full_teacher, None, Dsd { csd_weight: 0.0, ..preset }).unwrap();
        assert!(only_psd.csd.is_none());
        assert_close("psd only", &[scalar(&only_psd.total)], &[1000.0 * psd_part], ROUNDING);

        // Without PSD no feature is needed.
        let (s, t) = (side(none, &student[2]), side(none, &teacher[2]));
        let only_csd = dsd(s, t, None, Dsd { psd_weight: 0.0, ..preset }).unwrap();
        assert!(only_csd.psd.is_none());
        assert_close("csd only", &[scalar(&only_csd.total)], &[10.0 * csd_part], ROUNDING);

        let off = dsd(s, t, None, Dsd { psd_weight: 0.0, csd_weight: 0.0, ..preset }).unwrap();
        assert_eq!((scalar(&off.total), off.psd.is_none(), off.csd.is_none()), (0.0, true, true));
    }
}

#[test]
fn ignored_pixels_change_nothing() {
    let valid = mask("ignored", &[2, 6, 5], 0.6);
    let noise = |name: &str, like: &Tensor| {
        let ignored = valid.unsqueeze(1).unwrap().to_dtype(like.dtype()).unwrap().affine(-1.0, 1.0).unwrap();
        (like + normal(name, like.dims(), 5.0).broadcast_mul(&ignored).unwrap()).unwrap()
    };
    let (student, teacher) = (layers("student", &SHAPES), layers("teacher", &SHAPES));
    let noisy =
        |name: &str, layers: &[Tensor]| -> Vec<Tensor> { layers.iter().map(|layer| noise(name, layer)).collect() };
    let (noisy_student, noisy_teacher) = (noisy("a", &student), noisy("b", &teacher));
    for cfg in all_psd() {
        let value = |s: &[Tensor], t: &[Tensor]| scalar(&psd(s, t, Some(&valid), cfg).unwrap());
        assert_close(
            &format!("{cfg:?}"),
            &[value(&noisy_student, &noisy_teacher)],
            &[value(&student, &teacher)],
            ROUNDING,
        );
    }
    for cfg in all_csd().into_iter().filter(|cfg| !cfg.average_pool) {
        let value = |s: &[Tensor], t: &[Tensor]| scalar(&csd(&s[2], &t[2], Some(&valid), cfg).unwrap());
        assert_close(
            &format!("{cfg:?}"),
            &[value(&noisy_student, &noisy_teacher)],
            &[value(&student, &teacher)],
            ROUNDING,
        );
    }
    let value = |s: &[Tensor], t: &[Tensor]| {
        scalar(&pixel_kd(&s[2], &t[2], Some(&valid), PixelKd { temperature: 2.0 }).unwrap())
    };
    assert_close("pixel_kd", &[value(&noisy_student, &noisy_teacher)], &[value(&student, &teacher)], ROUNDING);
}

/// Student, teacher, mask.
type Loss<'a> = dyn Fn(&[Tensor], &[Tensor], Option<&Tensor>) -> Tensor + 'a;

#[test]
fn a_mask_that_counts_everything_is_no_mask_and_an_ignored_image_is_no_image() {
    let (student, teacher) = (layers("student", &SHAPES), layers("teacher", &SHAPES));
    let first = |layers: &[Tensor]| -> Vec<Tensor> { layers.iter().map(|l| l.narrow(0, 0, 1).unwrap()).collect() };
    let everything = Tensor::ones((2, 24, 20), candle_core::DType::U8, &Device::Cpu).unwrap();
    let first_image = {
        let image = Tensor::ones((1, 24, 20), candle_core::DType::U8, &Device::Cpu).unwrap();
        Tensor::cat(&[&image, &image.zeros_like().unwrap()], 0).unwrap()
    };
    let check = |name: String, loss: &Loss| {
        let all = scalar(&loss(&student, &teacher, None));
        assert_close(&name, &[scalar(&loss(&student, &teacher, Some(&everything)))], &[all], ROUNDING);
        let alone = scalar(&loss(&first(&student), &first(&teacher), None));
        assert_close(&name, &[scalar(&loss(&student, &teacher, Some(&first_image)))], &[alone], ROUNDING);
        assert!((all - alone).abs() > 1e-6, "{name}: the images should differ");
    };
    for cfg in all_psd() {
        check(format!("{cfg:?}"), &|s, t, valid| psd(s, t, valid, cfg).unwrap());
    }
    for cfg in all_csd() {
        let cfg = Csd { temperature: 0.5, ..cfg };
        check(format!("{cfg:?}"), &|s, t, valid| csd(&s[2], &t[2], valid, cfg).unwrap());
    }
    let cfg = PixelKd { temperature: 2.0 };
    check("pixel_kd".to_string(), &|s, t, valid| pixel_kd(&s[2], &t[2], valid, cfg).unwrap());
}

#[test]
fn with_everything_ignored_every_loss_is_zero() {
    let (student, teacher) = (layers("student", &SHAPES), layers("teacher", &SHAPES));
    let nothing = Tensor::zeros((2, 24, 20), candle_core::DType::U8, &Device::Cpu).unwrap();
    for cfg in all_psd() {
        assert_eq!(scalar(&psd(&student, &teacher, Some(&nothing), cfg).unwrap()), 0.0, "{cfg:?}");
    }
    for cfg in all_csd() {
        assert_eq!(scalar(&csd(&student[2], &teacher[2], Some(&nothing), cfg).unwrap()), 0.0, "{cfg:?}");
    }
    let cfg = PixelKd { temperature: 2.0 };
    assert_eq!(scalar(&pixel_kd(&student[2], &teacher[2], Some(&nothing), cfg).unwrap()), 0.0);
}

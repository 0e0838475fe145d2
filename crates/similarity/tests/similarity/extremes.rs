//! Inputs at the edge of f32: values and gradients stay finite.

use candle_core::{DType, Tensor};
use dsd_similarity::{Csd, Dsd, LayerPairs, NetworkOutput, PixelKd, Psd, PsdReduction, csd, dsd, pixel_kd, psd};

use super::{flat, layers, mask, normal, scalar, tensors, variables};

const SHAPES: [[usize; 4]; 3] = [[2, 4, 6, 5], [2, 3, 6, 5], [2, 5, 6, 5]];

pub(crate) fn single(tensors: &[Tensor]) -> Vec<Tensor> {
    tensors.iter().map(|tensor| tensor.to_dtype(DType::F32).unwrap()).collect()
}

pub(crate) fn scaled(tensors: &[Tensor], scale: f64) -> Vec<Tensor> {
    tensors.iter().map(|tensor| (tensor * scale).unwrap()).collect()
}

/// Features of one sign and size everywhere, ±`size`.
pub(crate) fn saturated(tensors: &[Tensor], size: f64) -> Vec<Tensor> {
    tensors.iter().map(|tensor| (tensor.sign().unwrap() * size).unwrap()).collect()
}

pub(crate) fn assert_finite(name: &str, student: &[Tensor], loss: impl Fn(&[Tensor]) -> Tensor) {
    let variables = variables(student);
    let loss = loss(&tensors(&variables));
    assert!(scalar(&loss).is_finite() && scalar(&loss) >= -1e-6, "{name}: value {}", scalar(&loss));
    let gradients = loss.backward().unwrap();
    for (index, variable) in variables.iter().enumerate() {
        if let Some(gradient) = gradients.get(variable) {
            let bad = flat(gradient).into_iter().find(|slope| !slope.is_finite());
            assert_eq!(bad, None, "{name}: gradient of input {index}");
        }
    }
}

#[test]
fn losses_and_gradients_are_finite_at_the_edges_of_f32() {
    let base = layers("extreme", &SHAPES);
    let zeros: Vec<Tensor> = base.iter().map(|tensor| tensor.zeros_like().unwrap()).collect();
    let one_hot: Vec<Tensor> =
        base.iter().map(|t| (t.gt(2.0).unwrap().to_dtype(DType::F64).unwrap() * 1e4).unwrap()).collect();
    let mut one_layer_zero = base.clone();
    one_layer_zero[1] = zeros[1].clone();
    let proportional = vec![base[0].clone(), (&base[0] * 3.0).unwrap(), (&base[0] * (1.0 / 3.0)).unwrap()];
    let inputs = [
        ("plain", base.clone()),
        ("large", scaled(&base, 1e4)),
        ("±1e4", saturated(&base, 1e4)),
        ("small", scaled(&base, 1e-8)),
        ("below the range of squares", scaled(&base, 1e-25)),
        ("zero", zeros),
        ("one layer zero", one_layer_zero),
        ("mostly zero", one_hot),
        ("proportional layers", proportional),
    ];
    let teacher = single(&layers("extreme teacher", &SHAPES));
    let valid = mask("extreme", &[2, 6, 5], 0.5);
    let mut rows = 0;
    for (name, student) in &inputs {
        let student = single(student);
        for reduction in [
            PsdReduction::SquaredMean,
            PsdReduction::ResolutionNormalised,
            PsdReduction::SquaredSum,
            PsdReduction::Norm,
        ] {
            for (power, normalise_residual) in [(1.0, true), (1.5, true), (2.0, true), (2.0, false), (4.0, true)] {
                let cfg = Psd { pairs: LayerPairs::All, power, normalise_residual, reduction, ..Psd::paper_reading() };
                for valid in [None, Some(&valid)] {
                    let name = format!("psd of {name} features, {cfg:?}, masked {}", valid.is_some());
                    assert_finite(&name, &student, |x| psd(x, &teacher, valid, cfg).unwrap());
                    assert_finite(&name, &teacher, |x| psd(x, &student, valid, cfg).unwrap());
                    assert_finite(&name, &student, |x| psd(x, &student, valid, cfg).unwrap());
                    rows += 3;
                }
            }
        }
    }
    assert_eq!(rows, 9 * 4 * 5 * 2 * 3);

    let logits = [normal("extreme logits", &[2, 5, 6, 5], 1.0)];
    let teacher = single(&[logits[0].affine(-3.0, 0.5).unwrap()]);
    for scale in [0.0, 1e-8, 1.0, 100.0, 1e4] {
        for student in [scaled(&logits, scale), saturated(&logits, scale)] {
            let student = single(&student);
            for valid in [None, Some(&valid)] {
                for temperature in [0.5, 1.0, 4.0] {
                    for cfg in [Csd::paper_reading(), Csd::cirkd_compat()] {
                        let cfg = Csd { temperature, ..cfg };
                        let name = format!("csd, logits × {scale}, {cfg:?}");
                        assert_finite(&name, &student, |x| csd(&x[0], &teacher[0], valid, cfg).unwrap());
                        assert_finite(&name, &teacher, |x| csd(&x[0], &student[0], valid, cfg).unwrap());
                    }
                    let name = format!("pixel_kd, logits × {scale}, T = {temperature}");
                    let cfg = PixelKd { temperature };
                    assert_finite(&name, &student, |x| pixel_kd(&x[0], &teacher[0], valid, cfg).unwrap());
                    assert_finite(&name, &teacher, |x| pixel_kd(&x[0], &student[0], valid, cfg).unwrap());
                }
            }
        }
    }
}

#[test]
fn a_layer_repeated_in_the_list_does_not_drown_the_other_gradients() {
    // A student without auxiliary head gives CIRKD's list as [logits, feature, logits]: pair (1,3) has no residual.
    let student = single(&layers("repeated", &[[1, 3, 6, 5], [1, 4, 6, 5]]));
    let teacher = single(&layers("repeated teacher", &[[1, 3, 6, 5], [1, 6, 6, 5], [1, 3, 6, 5]]));
    let gradient = |cfg: Dsd, dtype: DType| {
        let to = |tensors: &[Tensor]| -> Vec<Tensor> { tensors.iter().map(|t| t.to_dtype(dtype).unwrap()).collect() };
        let (variables, teacher) = (variables(&to(&student)), to(&teacher));
        let x = tensors(&variables);
        let features = [x[0].clone(), x[1].clone(), x[0].clone()];
        let student = NetworkOutput { features: &features, logits: &x[0] };
        let total = dsd(student, NetworkOutput { features: &teacher, logits: &teacher[2] }, None, cfg).unwrap().total;
        let gradients = total.backward().unwrap();
        flat(gradients.get(&variables[0]).unwrap())
    };
    let (single, double) = (gradient(Dsd::cirkd_compat(), DType::F32), gradient(Dsd::cirkd_compat(), DType::F64));
    let size = double.iter().fold(0f64, |size, slope| size.max(slope.abs()));
    assert!(size > 1e-3 && size < 1e3, "the gradient has an ordinary size, got {size}");
    for (index, (single, double)) in single.iter().zip(&double).enumerate() {
        assert!((single - double).abs() <= 1e-5 * size, "element {index}: {single} in f32, {double} in f64");
    }
}

#[test]
fn f32_agrees_with_f64() {
    let mut rows = 0;
    for index in 0..100 {
        let name = format!("precision {index}");
        let shapes = [[2, 8, 9, 11], [2, 6, 9, 11], [2, 5, 9, 11]];
        let (mut student, mut teacher) = (layers(&name, &shapes), layers(&format!("{name} teacher"), &shapes));
        // The last layer is the logits. Logits near 0 make all class maps equal, and CSD a difference of rounded ones.
        student[2] = (&student[2] * 5.0).unwrap();
        teacher[2] = (&teacher[2] * 8.0).unwrap();
        let valid = mask(&name, &[2, 36, 44], 0.8);
        let values = |s: &[Tensor], t: &[Tensor]| {
            let side = |layers: &[Tensor]| (layers.to_vec(), layers[2].clone());
            let ((s, sl), (t, tl)) = (side(s), side(t));
            let mut values = Vec::new();
            for cfg in [Dsd::paper_reading(), Dsd::cirkd_compat()] {
                let student = NetworkOutput { features: &s, logits: &sl };
                let teacher = NetworkOutput { features: &t, logits: &tl };
                let loss = dsd(student, teacher, Some(&valid), cfg).unwrap();
                values.extend([scalar(&loss.total), scalar(&loss.psd.unwrap()), scalar(&loss.csd.unwrap())]);
            }
            values.push(scalar(&pixel_kd(&sl, &tl, Some(&valid), PixelKd { temperature: 2.0 }).unwrap()));
            values
        };
        let (double, single) = (values(&student, &teacher), values(&single(&student), &single(&teacher)));
        for (which, (single, double)) in single.iter().zip(&double).enumerate() {
            let tolerance = 1e-5 * double.abs() + 1e-9;
            assert!((single - double).abs() <= tolerance, "{name}, value {which}: {single} in f32, {double} in f64");
            rows += 1;
        }
    }
    assert_eq!(rows, 700);
}

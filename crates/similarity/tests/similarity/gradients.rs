//! The gradient table: every public differentiable function against central differences in f64.

use candle_core::Tensor;
use dsd_ops::gradcheck::check_gradients;
use dsd_similarity::{
    Csd, Dsd, LayerPairs, MapSize, NetworkOutput, PixelKd, Psd, PsdReduction, Result, SoftmaxAxis, attention_map,
    category_correlation, csd, dsd, pixel_kd, psd, residual_attention,
};

use super::{layers, mask, normal};

/// Student and teacher with other channels, strides and depth of layers, H ≠ W.
const STUDENT: [[usize; 4]; 3] = [[2, 3, 5, 7], [2, 2, 5, 7], [2, 4, 3, 4]];
const TEACHER: [[usize; 4]; 3] = [[2, 5, 9, 6], [2, 1, 5, 7], [2, 6, 5, 7]];

pub(crate) fn check(name: &str, inputs: &[Tensor], f: impl Fn(&[Tensor]) -> Result<Tensor>) {
    check_gradients(name, inputs, |inputs| Ok(f(inputs)?)).unwrap();
}

/// The same values behind other strides: stored as [N,C,W,H].
pub(crate) fn strided(tensor: &Tensor) -> Result<Tensor> {
    Ok(tensor.transpose(2, 3)?.contiguous()?.transpose(2, 3)?)
}

#[test]
fn attention_maps() {
    for power in [1.0, 1.5, 2.0, 3.0, 4.0] {
        for shape in [[2, 3, 4, 5], [1, 1, 3, 4], [1, 5, 1, 2]] {
            let name = format!("attention_map p={power} {shape:?}");
            check(&name, &[normal("attention", &shape, 1.0)], |x| attention_map(&x[0], power));
        }
    }
    let x = normal("attention", &[2, 3, 4, 5], 1.0);
    check("attention_map strided", std::slice::from_ref(&x), |x| attention_map(&strided(&x[0])?, 2.0));
    // More positions than one task sums.
    let wide = normal("attention wide", &[1, 2, 41, 57], 1.0);
    check("attention_map wide", &[wide], |x| attention_map(&x[0], 2.0));
    // Around features that are all zero the map jumps, so only the other image is compared.
    let image = [x.narrow(0, 0, 1).unwrap()];
    check("attention_map beside a zero image", &image, |x| {
        let both = Tensor::cat(&[&x[0], &x[0].zeros_like()?], 0)?;
        attention_map(&both, 2.0)
    });
}

#[test]
fn residual_attention_maps() {
    let maps = [normal("shallow", &[2, 3, 4], 1.0), normal("deep", &[2, 3, 4], 1.0)];
    for normalise in [true, false] {
        check(&format!("residual_attention {normalise}"), &maps, |x| residual_attention(&x[0], &x[1], normalise, 1e-6));
    }
    check("residual_attention of one map", &maps[..1], |x| residual_attention(&x[0], &x[0], true, 1e-6));
    check("residual_attention strided", &maps[..1], |x| {
        residual_attention(&x[0].transpose(1, 2)?, &x[0].transpose(1, 2)?.sqr()?, true, 1e-6)
    });
}

#[test]
fn psd_with_every_switch() {
    let (student, teacher) = (layers("student", &STUDENT), layers("teacher", &TEACHER));
    let base = Psd::paper_reading();
    let valid = mask("psd", &[2, 19, 25], 0.7);
    for (name, cfg) in [
        ("paper_reading", base),
        ("all pairs", Psd { pairs: LayerPairs::All, ..base }),
        ("power 1", Psd { power: 1.0, ..base }),
        ("power 3", Psd { power: 3.0, ..base }),
        ("raw residual", Psd { normalise_residual: false, ..base }),
        ("resolution normalised", Psd { reduction: PsdReduction::ResolutionNormalised, ..base }),
        ("squared sum", Psd { reduction: PsdReduction::SquaredSum, ..base }),
        ("norm", Psd { reduction: PsdReduction::Norm, ..base }),
    ] {
        check(&format!("psd {name}"), &student, |x| psd(x, &teacher, None, cfg));
        check(&format!("psd {name}, masked"), &student, |x| psd(x, &teacher, Some(&valid), cfg));
    }
}

#[test]
fn psd_at_the_edges() {
    let base = Psd::paper_reading();
    let equal = Psd { map_size: MapSize::Equal, pairs: LayerPairs::All, ..base };
    let one = [[1, 1, 3, 4], [1, 1, 3, 4]];
    let (student, teacher) = (layers("one", &one), layers("one teacher", &one));
    check("psd N=1 C=1", &student, |x| psd(x, &teacher, None, equal));

    let shapes = [[2, 3, 5, 4]; 3];
    let (student, teacher) = (layers("same", &shapes), layers("same teacher", &[[2, 6, 5, 4]; 3]));
    check("psd strided", &student, |x| {
        let views = x.iter().map(strided).collect::<Result<Vec<_>>>()?;
        psd(&views, &teacher, None, equal)
    });
    check("psd layer used twice", &student[..2], |x| {
        psd(&[x[0].clone(), x[1].clone(), x[0].sqr()?], &teacher, None, equal)
    });
    // Pair (1,3) has no residual at all: a constant, not a gradient that drowns the others.
    check("psd layer compared with itself", &student[..2], |x| {
        psd(&[x[0].clone(), x[1].clone(), x[0].clone()], &teacher, None, equal)
    });
    let nothing = mask("nothing", &[2, 5, 4], 0.0);
    check("psd all ignored", &student, |x| psd(x, &teacher, Some(&nothing), equal));
    check("psd of itself", &student, |x| psd(x, &student, None, equal));
}

#[test]
fn csd_with_every_switch() {
    let (student, teacher) = (normal("csd student", &[2, 4, 5, 7], 2.0), normal("csd teacher", &[2, 4, 5, 7], 4.0));
    let (coarse, valid) = (normal("csd coarse", &[2, 4, 3, 4], 4.0), mask("csd", &[2, 20, 28], 0.6));
    let mut rows = 0;
    for softmax_axis in [SoftmaxAxis::Classes, SoftmaxAxis::Positions] {
        for normalise_maps in [true, false] {
            for average_pool in [true, false] {
                let cfg = Csd { softmax_axis, normalise_maps, average_pool, temperature: 2.0 };
                let input = [student.clone()];
                check(&format!("csd {cfg:?}"), &input, |x| csd(&x[0], &teacher, None, cfg));
                check(&format!("csd {cfg:?}, masked"), &input, |x| csd(&x[0], &teacher, Some(&valid), cfg));
                check(&format!("csd {cfg:?}, resized"), &input, |x| csd(&x[0], &coarse, None, cfg));
                check(&format!("category_correlation {cfg:?}"), &input, |x| {
                    category_correlation(&x[0], Some(&valid), cfg)
                });
                rows += 4;
            }
        }
    }
    assert_eq!(rows, 32);
}

#[test]
fn csd_at_the_edges() {
    for cfg in [Csd::paper_reading(), Csd::cirkd_compat()] {
        let student = [normal("csd student", &[1, 3, 5, 4], 2.0)];
        let teacher = normal("csd teacher", &[1, 3, 5, 4], 4.0);
        let nothing = mask("nothing", &[1, 5, 4], 0.0);
        check("csd strided", &student, |x| csd(&strided(&x[0])?, &teacher, None, cfg));
        check("csd all ignored", &student, |x| csd(&x[0], &teacher, Some(&nothing), cfg));
        check("csd of itself", &student, |x| csd(&x[0], &student[0], None, cfg));
        check("csd used twice", &student, |x| Ok((csd(&x[0], &teacher, None, cfg)? + x[0].sqr()?.sum_all()?)?));
        let one_class = [normal("one class", &[2, 1, 3, 2], 1.0)];
        let other = normal("one class teacher", &[2, 1, 3, 2], 1.0);
        check("csd C=1", &one_class, |x| csd(&x[0], &other, None, cfg));
        let one_position = [normal("one position", &[1, 3, 1, 1], 1.0)];
        let other = normal("one position teacher", &[1, 3, 1, 1], 1.0);
        check("csd one position", &one_position, |x| csd(&x[0], &other, None, cfg));
    }
}

#[test]
fn pixel_kd_everywhere() {
    let valid = mask("kd", &[2, 15, 21], 0.5);
    for (name, student, teacher) in [
        ("equal", [2, 4, 5, 7], [2, 4, 5, 7]),
        ("resized", [2, 4, 9, 6], [2, 4, 5, 7]),
        ("N=1 C=1", [1, 1, 2, 3], [1, 1, 2, 3]),
    ] {
        let teacher = normal("kd teacher", &teacher, 3.0);
        let student = [normal("kd student", &student, 2.0)];
        for temperature in [1.0, 4.0] {
            let cfg = PixelKd { temperature };
            check(&format!("pixel_kd {name} T={temperature}"), &student, |x| pixel_kd(&x[0], &teacher, None, cfg));
            let valid = valid.narrow(0, 0, teacher.dim(0).unwrap()).unwrap();
            check(&format!("pixel_kd {name} T={temperature}, masked"), &student, |x| {
                pixel_kd(&strided(&x[0])?, &teacher, Some(&valid), cfg)
            });
        }
        let cfg = PixelKd { temperature: 2.0 };
        let nothing = valid.zeros_like().unwrap().narrow(0, 0, teacher.dim(0).unwrap()).unwrap();
        check(&format!("pixel_kd {name}, all ignored"), &student, |x| pixel_kd(&x[0], &teacher, Some(&nothing), cfg));
    }
}

#[test]
fn dsd_presets_and_features_that_are_also_logits() {
    let teacher_layers = layers("dsd teacher", &[[2, 5, 4, 6], [2, 6, 4, 6], [2, 3, 4, 6]]);
    let teacher = NetworkOutput { features: &teacher_layers, logits: &teacher_layers[2] };
    let student = layers("dsd student", &[[2, 2, 4, 6], [2, 4, 4, 6], [2, 3, 4, 6]]);
    let valid = mask("dsd", &[2, 16, 24], 0.8);
    for cfg in [Dsd::paper_reading(), Dsd::cirkd_compat()] {
        // As CIRKD uses it: the last layer is the logits, so they receive both gradients.
        for valid in [None, Some(&valid)] {
            check(&format!("dsd {cfg:?} masked {}", valid.is_some()), &student, |x| {
                Ok(dsd(NetworkOutput { features: x, logits: &x[2] }, teacher, valid, cfg)?.total)
            });
        }
    }
}
